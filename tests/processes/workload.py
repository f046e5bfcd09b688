"""Writers and readers on a group whose members come and go, each with a thread here, all reporting to one history.

What must not live here: what is done to the members (the tests).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import coord
from processes.harness import PATIENCE, Group, MemberGone, MemberProcess
from processes.history import History

WRITERS = 6
READERS = 2
#: Every so many writes of a writer, one goes to the key it writes over and over.
AGAIN = 4
CALL_SECONDS = 8.0


class Workload:
    """Runs from `with` to the end of the block; `check` raises what any of its threads ran into."""

    def __init__(self, group: Group, history: History, seed: int) -> None:
        self._group = group
        self.history = history
        self._seed = seed
        self._ending = threading.Event()
        self._problems: list[BaseException] = []
        self._progress = threading.Condition()
        self._threads = [self._thread(self._write, number) for number in range(WRITERS)]
        self._threads += [self._thread(self._read, number) for number in range(READERS)]
        self.keys = [f"again/{seed}/{number}" for number in range(WRITERS)]

    def __enter__(self) -> Workload:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call hangs"

    def wait(self, acknowledged: int) -> None:
        """Until so many writes have been acknowledged in all."""
        with self._progress:
            done = self._progress.wait_for(
                lambda: self._problems or self.history.acknowledged >= acknowledged, PATIENCE
            )
        self.check()
        assert done, "the writes do not go on:\n" + "\n".join(member.tail() for member in self._group.members.values())

    def check(self) -> None:
        if self._problems:
            raise self._problems[0]

    def saw(self, member: str, process: int, key: str, revision: int, value: Any) -> None:
        """A member has seen a change in its own copy."""
        try:
            self.history.see((member, process), key, revision, value)
        except AssertionError as problem:
            self._fail(problem)

    def _thread(self, target: Callable[[int], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                target(number)
            except BaseException as problem:
                self._fail(problem)

        return threading.Thread(target=run, daemon=True)

    def _fail(self, problem: BaseException) -> None:
        with self._progress:
            self._problems.append(problem)
            self._progress.notify_all()
        self._ending.set()

    def _some_member(self, rng: random.Random) -> MemberProcess | None:
        alive = self._group.alive
        if not alive:
            # All are down: whoever took them down brings them back.
            time.sleep(0.01)
            return None
        return rng.choice(alive)

    def _write(self, writer: int) -> None:
        rng = random.Random(f"{self._seed} writer {writer}")
        number = 0
        while not self._ending.is_set():
            member = self._some_member(rng)
            if member is None:
                continue
            number += 1
            key = self.keys[writer] if number % AGAIN == 0 else f"once/{self._seed}/{writer}/{number}"
            value = f"{self._seed} {writer} {number}"
            self.history.attempt(key, value)
            try:
                revision = member.call("put", key=key, value=value, timeout=CALL_SECONDS)
            except coord.Unavailable:
                self.history.refuse(key, value)
            except (coord.OutcomeUnknown, MemberGone):
                self.history.doubt()
            else:
                self.history.acknowledge(key, value, revision)
                with self._progress:
                    self._progress.notify_all()

    def _read(self, reader: int) -> None:
        """Linearizable reads, from a different member each time."""
        rng = random.Random(f"{self._seed} reader {reader}")
        while not self._ending.is_set():
            member = self._some_member(rng)
            if member is None:
                continue
            key = rng.choice(self.keys)
            floor = self.history.floor(key)
            try:
                found = member.call("entry", key=key, linearizable=True, timeout=CALL_SECONDS)
            except (coord.Unavailable, MemberGone):
                continue
            value, revision = found or (None, 0)
            self.history.see(f"reader {reader}", key, revision, value, floor)
