"""Clients in a member's own process: threads that write, read and watch a handful of keys, and record all of it.

Every value is written once. The keys change every few seconds, in all processes together, as they share a clock: no key
has a history too long to search. What must not live here: judging (`faults.judge`), faults.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from typing import Any

import coord
from coord.clock import clock
from faults.record import CONFLICT, REFUSED, UNKNOWN, Recorder

PREFIX = "k/"
#: Keys in use at a time, and for how long.
KEYS = 6
KEY_SECONDS = 1.5
#: Seconds a call may take: short enough that a fault shows, long enough that not every call fails.
TIMEOUTS = (0.4, 2.5)
#: After a refusal, so that a member that is cut off does not spin.
PAUSE_AFTER_REFUSAL = 0.02
ROLE_SECONDS = 0.02
_ROLE = re.compile(r"(\S+) in term (\d+), leader (\S+):")


class Clients:
    """The clients of one member. `stop` ends them; each ends by itself once the member has."""

    def __init__(
        self,
        node: coord.Node,
        recorder: Recorder,
        *,
        seed: str,
        pace: float,
        value_bytes: int,
        writers: int,
        readers: int,
    ) -> None:
        self._node = node
        self._recorder = recorder
        self._seed = seed
        self._pace = pace
        self._padding = "." * value_bytes
        self._ending = threading.Event()
        self._note_resyncs()
        self._threads = [self._thread(self._write, f"writer {number}") for number in range(writers)]
        self._threads += [self._thread(self._read, f"reader {number}") for number in range(readers)]
        self._threads.append(self._thread(self._look, "looker"))
        self._watching = [threading.Thread(target=self._watch, args=("watch",), daemon=True)]
        self._watching.append(threading.Thread(target=self._tell_roles, daemon=True))
        for thread in (*self._threads, *self._watching):
            thread.start()

    def stop(self, timeout: float) -> None:
        """End the clients; those that watch go on, to see what comes late."""
        self._ending.set()
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), f"a call of {thread.name} hangs"

    def _thread(self, target: Callable[[str, random.Random], None], name: str) -> threading.Thread:
        rng = random.Random(f"{self._seed} {name}")

        def run() -> None:
            while not self._ending.is_set():
                try:
                    target(name, rng)
                except (coord.StorageError, coord.ClosedError, coord.IdentityError):
                    # It has no effect any more. Perhaps somebody repairs it; a client of a user would try again too.
                    self._ending.wait(0.25)

        return threading.Thread(target=run, name=name, daemon=True)

    def _key(self, rng: random.Random) -> str:
        return f"{PREFIX}{int(clock() / KEY_SECONDS)}/{rng.randrange(KEYS)}"

    # -- Writing

    def _write(self, client: str, rng: random.Random) -> None:
        """One write after the other, of all kinds."""
        number = 0
        while not self._ending.wait(rng.uniform(0, 2 * self._pace)):
            number += 1
            key, timeout = self._key(rng), rng.uniform(*TIMEOUTS)
            value = f"{self._seed} {client} {clock():.6f} {number}{self._padding}"
            kind = rng.random()
            if kind < 0.5:
                self._call(client, "put", key=key, value=value, timeout=timeout)
            elif kind < 0.8:
                expected = self._local(client, key)[1]
                if rng.random() < 0.1:
                    expected = max(0, expected - 1)
                self._call(client, "cas", key=key, value=value, expected=expected, timeout=timeout)
            elif kind < 0.95:
                other = self._key(rng)
                puts = {key: value, other: value + " too"} if other != key else {key: value}
                requires = {key: self._local(client, key)[1]} if rng.random() < 0.5 else {}
                self._call(client, "transaction", puts=puts, requires=requires, timeout=timeout)
            else:
                self._call(client, "delete", key=key, timeout=timeout)

    def _call(self, client: str, op: str, **asked: Any) -> None:
        number = self._recorder.begin(client, op, **asked)
        try:
            revision = getattr(self, f"_do_{op}")(**asked)
        except coord.Conflict as conflict:
            entry = conflict.entry
            self._recorder.end(
                number,
                CONFLICT,
                key=None if entry is None else entry.key,
                revision=0 if entry is None else entry.revision,
                value=None if entry is None else entry.value,
            )
        except (coord.Unavailable, coord.QueueFull, coord.QuotaExceeded, coord.IdentityError):
            self._recorder.end(number, REFUSED)
            self._ending.wait(PAUSE_AFTER_REFUSAL)
        except coord.OutcomeUnknown:
            self._recorder.end(number, UNKNOWN)
        except coord.CoordError:
            # The member ended while this was under way.
            self._recorder.end(number, UNKNOWN)
            raise
        else:
            self._recorder.acknowledge(number, revision)

    def _do_put(self, key: str, value: str, timeout: float) -> int:
        return self._node.config.put(key, value, timeout=timeout)

    def _do_cas(self, key: str, value: str, expected: int, timeout: float) -> int:
        return self._node.config.compare_and_set(key, value, revision=expected, timeout=timeout)

    def _do_transaction(self, puts: dict[str, str], requires: dict[str, int], timeout: float) -> int:
        change = self._node.config.transaction(timeout=timeout)
        for key, revision in requires.items():
            change.require_revision(key, revision)
        for key, value in puts.items():
            change.put(key, value)
        return change.commit()

    def _do_delete(self, key: str, timeout: float) -> int:
        # As a transaction, which tells its revision.
        change = self._node.config.transaction(timeout=timeout)
        change.delete(key)
        return change.commit()

    # -- Reading

    def _read(self, client: str, rng: random.Random) -> None:
        """Linearizable reads."""
        while not self._ending.wait(rng.uniform(0, self._pace)):
            key = self._key(rng)
            number = self._recorder.begin(client, "read", key=key)
            try:
                entry = self._node.config.entry(key, linearizable=True, timeout=rng.uniform(*TIMEOUTS))
            except (coord.Unavailable, coord.IdentityError):
                self._recorder.end(number, REFUSED)
                self._ending.wait(PAUSE_AFTER_REFUSAL)
            except coord.CoordError:
                self._recorder.end(number, REFUSED)
                raise
            else:
                self._answer(number, entry)

    def _look(self, client: str, rng: random.Random) -> None:
        """Local reads, of one client."""
        while not self._ending.wait(rng.uniform(0, 2 * self._pace)):
            self._local(client, self._key(rng))

    def _local(self, client: str, key: str) -> tuple[Any, int]:
        number = self._recorder.begin(client, "look", key=key)
        try:
            entry = self._node.config.entry(key)
        except coord.CoordError:
            self._recorder.end(number, REFUSED)
            raise
        return self._answer(number, entry)

    def _answer(self, number: int, entry: coord.Entry | None) -> tuple[Any, int]:
        value, revision = (None, 0) if entry is None else (entry.value, entry.revision)
        self._recorder.end(number, "ok", value=value, revision=revision)
        return value, revision

    # -- Watching

    def _note_resyncs(self) -> None:
        """Record which changes watches are told of only because a snapshot replaced the state. What was between is
        lost, and the revision of a delete is; users are not told which these are, and the judge has to know."""
        watches = self._node._running_loop().replica.watches
        publish = watches.publish

        def note(changes: list[Any]) -> None:
            for change in changes:
                if change.resync:
                    self._recorder.note(resync=change.key, revision=change.revision)
            publish(changes)

        vars(watches)["publish"] = note

    def _watch(self, name: str) -> None:
        """Every change there ever was, as far back as it is kept, until the member ends."""
        since, number = 1, 0
        while True:
            try:
                watch = self._node.config.watch(PREFIX, from_revision=since, conflate=False)
                number += 1
                self._recorder.note(begin_watch=f"{name} {number}", since=since)
                for event in watch:
                    self._recorder.event(f"{name} {number}", event.kind, event.key, event.value, event.revision)
            except coord.Compacted as error:
                # Too slow, or a snapshot has replaced what was to be told: from there on, then.
                since = error.revision + 1
            except coord.Unavailable:
                continue
            except coord.CoordError:
                # The member has ended: what came before counts all the same.
                return

    def _tell_roles(self) -> None:
        """Each change of role the member has noted, with the time at which it was."""
        told: Any = None
        pause = threading.Event()
        while not pause.wait(ROLE_SECONDS):
            recent = self._node._running_loop().replica.counters.recent
            known = next((number for number, note in enumerate(recent) if note is told), -1)
            for note in recent[known + 1 :]:
                found = _ROLE.match(note.text) if note.kind == "role" else None
                if found is not None:
                    self._recorder.note(role=found[1], term=int(found[2]), at=note.at)
            told = recent[-1] if recent else None
