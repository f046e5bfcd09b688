"""What callers want of the group, what they are told, and what they see: the histories that are checked at the end.

Each client has one wish at a time, at a member that lives; a write whose fate is unknown stays open for ever, and the
client goes on under a new name. What must not live here: what the answers must be (`replies`, the checkers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coord.config_map import _begin_watch
from coord.errors import Compacted, CoordError, OutcomeUnknown, QuotaExceeded
from coord.machine import commands
from coord.machine.records import PUT, Change
from coord.proposals import EXPIRED, WITHDRAWN, Proposal
from coord.raft.roles import LEADER
from coord.testing.chance import stream
from coord.testing.process import Process
from coord.watch import Watch
from simulation.history import Histories, Wish
from simulation.knobs import NEVER
from simulation.rules import FlooredRead

if TYPE_CHECKING:
    from simulation.world import World

_OK, _CONFLICT = 0, 4
_NANOSECONDS = 1_000_000_000


class Clients:
    def __init__(self, world: World) -> None:
        self._world = world
        self.histories = Histories(world)
        self._clients = [Client(world, self.histories, number) for number in range(world.knobs.clients)]
        self._bursts = stream(world.seed, "bursts")

    def begin(self) -> None:
        for client in self._clients:
            client.rest()
        if self._world.knobs.burst_every < NEVER:
            self._burst_later()

    def _burst_later(self) -> None:
        self._world.timeline.after(self._bursts.expovariate(1 / self._world.knobs.burst_every), self._burst)

    def _burst(self) -> None:
        world, name = self._world, self._bursts.choice(self._world.names)
        if world.calm:
            return
        process = world.living(name)
        if process is not None and process.replica.unanswered < 2 * world.knobs.burst:
            world.write(process, world.knobs.burst)
        self._burst_later()

    def died(self, process: Process) -> None:
        for client in self._clients:
            client.process_died(process)

    def make_peace(self) -> None:
        """Everybody, at every member, wants one more write and one more read; at a wiped one nobody wants anything."""
        for process in self._world.alive():
            if self._world.atlas.is_wiped(process.name):
                self.died(process)
        for process in self._world.healthy():
            client = Client(self._world, self.histories, len(self._clients))
            self._clients.append(client)
            client.last_wishes(process)

    def unfinished(self) -> list[str]:
        return [f"{client.name} waits for {client.wish}" for client in self._clients if client.wish is not None]

    def check_end(self) -> None:
        for client in self._clients:
            client.look(final=True)
        self.histories.check_end()


class Client:
    def __init__(self, world: World, histories: Histories, number: int) -> None:
        self._world = world
        self._histories = histories
        self._rng = stream(world.seed, "client", number)
        self._number = number
        self._names = 0
        self._values = 0
        self.name = f"c{number}"
        self.wish: Wish | None = None
        self._process: Process | None = None
        self._proposal: Proposal | None = None
        self._read: FlooredRead | None = None
        #: Revisions last seen, for compare-and-set.
        self._seen: dict[str, int] = {}
        self._last: list[Callable[[], None]] = []
        self._watch: WatchedChanges | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # One wish after the other.

    def rest(self) -> None:
        if self._last:
            self._world.timeline.after(0.01, self._last.pop(0))
        elif not self._world.calm:
            self._world.timeline.after(self._rng.expovariate(1 / self._world.knobs.think), self._want)

    def last_wishes(self, process: Process) -> None:
        self._last = [
            lambda: None if process.dead else self._put(process, "k0"),
            lambda: None if process.dead else self._linearizable(process, "k0"),
        ]
        self.rest()

    def _want(self) -> None:
        world, rng, knobs = self._world, self._rng, self._world.knobs
        if world.calm or self.wish is not None:
            return
        process = self._somebody()
        key = f"k{rng.randrange(knobs.keys)}"
        weights = (knobs.writes, knobs.reads, knobs.local_reads)
        kind = rng.choices(("write", "read", "local"), weights)[0]
        if process is None:
            self.rest()
        elif kind == "local":
            self._look_locally(process, key)
            self.rest()
        elif kind == "read":
            self._linearizable(process, key)
        else:
            makers = (self._put, self._put, self._compare_and_set, self._delete, self._ephemeral, self._transaction)
            rng.choice(makers if knobs.transactions else makers[:-1])(process, key)
        self.look()

    def _somebody(self) -> Process | None:
        """Mostly the same member; now and then whoever believes that it leads."""
        world, rng = self._world, self._rng
        leaders = [process for process in world.alive() if process.replica.core.role == LEADER]
        stays, asks_leader, other = rng.random() < 0.7, rng.random() < 0.4, rng.choice(world.names)
        process = self._process
        if process is None or process.dead or not stays:
            process = rng.choice(leaders) if leaders and asks_leader else world.living(other)
        # A process that stands still asks nothing; it would look like a wish of long ago.
        if process is None or process.paused_until > world.timeline.now or process.failure is not None:
            return None
        if process is not self._process:
            self._process = process
        return process

    # -----------------------------------------------------------------------------------------------------------------
    # Writes.

    def _value(self) -> bytes:
        self._values += 1
        return f"{self._number}.{self._values}".encode().ljust(self._world.knobs.value_bytes, b".")

    def _put(self, process: Process, key: str) -> None:
        value = self._value()
        self._write(process, Wish("put", {key: value}), commands.put, (key, value))

    def _compare_and_set(self, process: Process, key: str) -> None:
        value, expected = self._value(), self._seen.get(key, 0)
        wish = Wish("put", {key: value}, required={key: expected})
        self._write(process, wish, commands.put, (key, value, False, 0, expected))

    def _delete(self, process: Process, key: str) -> None:
        self._write(process, Wish("delete", {key: None}), commands.delete, (key,))

    def _transaction(self, process: Process, key: str) -> None:
        other = f"k{self._rng.randrange(self._world.knobs.keys)}"
        value, expected = self._value(), self._seen.get(other, 0)
        changes: dict[str, bytes | None] = {key: value}
        operations: list[Any] = [commands.put_operation(key, value)]
        if other != key:
            changes[other] = value if self._rng.random() < 0.7 else None
            operations.append(
                commands.put_operation(other, value) if changes[other] else commands.delete_operation(other)
            )
        required = {other: expected} if self._rng.random() < 0.6 else {}
        compares = [commands.compare_revision(name, revision) for name, revision in required.items()]
        self._write(
            process, Wish("transaction", changes, required=required), commands.transaction, (compares, operations)
        )

    def _ephemeral(self, process: Process, key: str) -> None:
        """Keys of a kind that end by themselves; only the model judges these."""
        lives = int(self._rng.uniform(0.1, 3) * _NANOSECONDS) if self._rng.random() < 0.5 else 0
        wish = Wish("other", {})
        self._write(process, wish, commands.put, (f"e{self._rng.randrange(3)}", self._value(), not lives, lives))

    def _write(self, process: Process, wish: Wish, maker: Callable[..., bytes], arguments: tuple[Any, ...]) -> None:
        self._begin(process, wish)
        timeout = self._world.knobs.client_timeout
        keeps_watch = self._rng.random() < 0.5
        expires_at = float("inf") if keeps_watch else process.local() + timeout
        try:
            proposal = process.propose(maker, arguments, lambda reply: self._written(wish, reply), expires_at)
        except QuotaExceeded:
            proposal = None
        if proposal is None:
            self._end(wish, "failed")
            return
        self._proposal = proposal
        if keeps_watch:
            self._world.timeline.after(timeout, self._give_up, wish, proposal, process)

    def _written(self, wish: Wish, reply: Any) -> None:
        if wish is not self.wish:
            return
        proposal, self._proposal = self._proposal, None
        assert proposal is not None
        if reply is WITHDRAWN:
            self._withdraw(proposal)
            self._end(wish, "failed")
        elif reply is EXPIRED or isinstance(reply, OutcomeUnknown):
            self._doubt(proposal)
            self._end(wish, "unknown")
        elif isinstance(reply, CoordError):
            # Any other error says that it had no effect and never will.
            self._withdraw(proposal)
            self._end(wish, "failed")
        elif reply[0] == _OK:
            for key in wish.changes:
                self._seen[key] = reply[1]
            self._end(wish, "ok", revision=reply[1], changed=reply[2])
        elif reply[0] == _CONFLICT:
            _, key, current = reply
            self._seen[key] = 0 if current is None else current[1]
            self._end(wish, "conflict", found=(key, None if current is None else (current[0], current[1])))
        else:
            self._end(wish, "failed")

    def _withdraw(self, proposal: Proposal) -> None:
        self._world.replies.withdrawn.add((proposal.session, proposal.sequence))
        self._world.truth.note("withdrawn in time")

    def _doubt(self, proposal: Proposal) -> None:
        self._world.replies.doubtful.add((proposal.session, proposal.sequence))

    def _give_up(self, wish: Wish, proposal: Proposal, process: Process) -> None:
        """As `Loop.give_up`, in the caller's thread."""
        if wish is not self.wish or process.dead:
            return
        if process.paused_until > self._world.timeline.now:
            self._world.timeline.at(process.paused_until, self._give_up, wish, proposal, process)
            return
        unsent = proposal.give_up()
        process.replica.numbering.end(proposal.sequence)
        if unsent:
            self._withdraw(proposal)
        else:
            self._doubt(proposal)
        self._proposal = None
        self._end(wish, "failed" if unsent else "unknown")

    # -----------------------------------------------------------------------------------------------------------------
    # Reads.

    def _linearizable(self, process: Process, key: str) -> None:
        wish = Wish("get", {key: None})
        self._begin(process, wish)

        def done(answer: Any) -> None:
            if wish is not self.wish:
                return
            self._read = None
            if answer is not None:
                self._end(wish, "failed")
                return
            self._world.rules.answered(process, read)
            row = process.replica.machine.store.get(key)
            self._seen[key] = 0 if row is None else row.revision
            self._end(wish, "ok", found=(key, None if row is None else (row.value, row.revision)))

        read = FlooredRead(done)
        read.floor, read.invoked = self._world.truth.committed, self._world.timeline.now
        self._read = read
        process.read(read)
        self._world.timeline.after(self._world.knobs.client_timeout, self._stop_reading, wish, read)

    def _stop_reading(self, wish: Wish, read: FlooredRead) -> None:
        if wish is self.wish and not self._world.calm:
            read.abandoned = True
            self._read = None
            self._end(wish, "failed")

    def _look_locally(self, process: Process, key: str) -> None:
        row = process.replica.machine.store.get(key)
        found = None if row is None else (row.value, row.revision)
        self._histories.local(self.name, process, key, found)
        self._seen[key] = 0 if row is None else row.revision

    # -----------------------------------------------------------------------------------------------------------------
    # Beginnings and ends.

    def _begin(self, process: Process, wish: Wish) -> None:
        self.wish = wish
        self._process = process
        self._histories.begin(self.name, process, wish)
        if self._world.trace is not None:
            self._world.say(self.name, f"at {process.name}: {wish}")

    def _end(self, wish: Wish, outcome: str, **result: Any) -> None:
        self.wish = None
        if self._world.trace is not None:
            self._world.say(self.name, f"{outcome} {result or ''}")
        self._histories.end(wish, outcome, **result)
        if outcome == "unknown":
            self._names += 1
            self.name = f"c{self._number}'{self._names}"
        self.rest()

    def process_died(self, process: Process) -> None:
        if self._watch is not None and self._watch.process is process:
            self._watch.process = None
        if self.wish is None or self._process is not process:
            return
        proposal, self._proposal, self._read = self._proposal, None, None
        writes = self.wish.kind != "get"
        sent = proposal is not None and proposal.sent
        self._end(self.wish, "unknown" if writes and sent else "failed")

    # -----------------------------------------------------------------------------------------------------------------
    # The watch.

    def look(self, *, final: bool = False) -> None:
        """Take what the watch has to tell."""
        if not self._world.knobs.watches:
            return
        if self._watch is None:
            self._watch = WatchedChanges(self._world, conflate=self._rng.random() < 0.3)
        process = self._process
        if process is None or process.dead or process.failure is not None:
            return
        if not final and process.paused_until > self._world.timeline.now:
            return
        self._watch.look(process, self._rng)
        if final and not self._world.atlas.is_wiped(process.name):
            self._watch.check_end()


class WatchedChanges:
    """One watch of everything under "k", resumed at the next member when its member dies; held against the truth."""

    def __init__(self, world: World, *, conflate: bool) -> None:
        self._world = world
        self._conflate = conflate
        self.process: Process | None = None
        self._watch: Watch | None = None
        #: What it has told so far adds up to this, as of that revision.
        self._map: dict[str, tuple[bytes, int]] = {}
        self._revision = 0
        #: In `truth.changes`: the first that it has not told.
        self._next = 0
        #: Up to here it need not tell every change: what was there when it began, or a snapshot's difference.
        self._skip_to = 0

    def look(self, process: Process, rng: Any) -> None:
        if self.process is not process:
            self._begin(process, resume=self._revision > 0 and rng.random() < 0.7)
        assert self._watch is not None
        try:
            while (change := self._watch.take()) is not None:
                self._told(change)  # type: ignore[arg-type]
        except Compacted:
            self._world.truth.note("watch ended by a snapshot")
            self._begin(process, resume=False)
            self.look(process, rng)

    def _begin(self, process: Process, *, resume: bool) -> None:
        machine = process.replica.machine
        if machine.store.revision < self._revision and not resume:
            # A member that lags; who begins anew there begins in the past, and may.
            self._world.truth.note("watch begun in the past")
        watch = self._new(process)
        if resume:
            try:
                _begin_watch(process.replica, watch, self._revision + 1, False)
            except Compacted:
                self._world.truth.note("watch resumed too late")
                resume = False
            else:
                self._world.truth.note("watch resumed")
        if not resume:
            watch = self._new(process)
            self._map, self._revision, self._next = {}, 0, 0
            _begin_watch(process.replica, watch, None, True)
            # What was there is told as puts at the revisions that made them; deletes before that are not.
            self._skip_to = machine.store.revision
        self.process, self._watch = process, watch

    def _new(self, process: Process) -> Watch:
        return Watch(
            "k",
            conflate=self._conflate,
            timeout=None,
            decode=lambda change: change,
            notify=None,
            on_close=process.replica.watches.discard,
        )

    def _told(self, change: Change) -> None:
        truth = self._world.truth
        if change.revision < self._revision:
            truth.fail(f"W1: a watch goes back from {self._revision} to {change}")
        assert self.process is not None
        # A snapshot is told as the difference it makes, which may be none.
        self._skip_to = max(self._skip_to, self._world.installed.get(self.process.name, 0))
        if change.resync:
            truth.note("watch across a snapshot")
        if change.resync or change.revision <= self._skip_to or self._conflate:
            self._is_true(change)
        else:
            self._is_next(change)
        self._revision = change.revision
        if change.kind == PUT:
            assert change.record is not None
            self._map[change.key] = change.record.value, change.record.revision
        else:
            self._map.pop(change.key, None)

    def _is_next(self, change: Change) -> None:
        """Every revision once, in order, none left out."""
        changes, truth = self._world.truth.changes, self._world.truth
        after = max(self._revision, self._skip_to)
        while self._next < len(changes) and (
            changes[self._next].revision <= self._skip_to
            or changes[self._next].revision < self._revision
            or not changes[self._next].key.startswith("k")
        ):
            self._next += 1
        expected = changes[self._next] if self._next < len(changes) else None
        if expected is None or (expected.kind, expected.key, expected.record, expected.revision) != change[:4]:
            truth.fail(f"W1: after {after} a watch tells {change}; the next change was {expected}")
        self._next += 1

    def _is_true(self, change: Change) -> None:
        """It happened; or, told from the difference with a snapshot, it is gone by then."""
        truth = self._world.truth
        if change.kind == PUT:
            known = [made for made in truth.changes if made.revision == change.revision and made.key == change.key]
            if not known or known[0].record != change.record:
                truth.fail(f"W1: a watch tells {change}, which never was")

    def check_end(self) -> None:
        """Nothing was left out: what it told adds up to what is there."""
        rows = self._world.truth.machine.store.view()[1]
        expected = {key: (row[0], row[1]) for key, row in rows.items() if key.startswith("k")}
        if self._map != expected:
            self._world.truth.fail(f"W1: at the end a watch adds up to {self._map}, and there is {expected}")
