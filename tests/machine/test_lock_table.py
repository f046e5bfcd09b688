"""The lock table over random histories: what must be true after every step, and what other threads see of it.

What single commands mean is in test_lock_commands.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from coord.machine import commands, lock_table, replies
from coord.machine.limits import Limits
from coord.machine.lock_table import Hold, LockEvent, LockRecord, LockTable, Waiting
from coord.machine.machine import Machine
from machine.test_lock_commands import A, B, C, Locks

SEEDS = range(40)
STEPS = 300
#: Name of each lock of the random histories, and its permits.
NAMES = {"a": 1, "b": 1, "é/s": 2, "t": 3}

# ---------------------------------------------------------------------------------------------------------------------
# Random histories, of members that are careless: duplicates, stale releases, cancels that come too early or late.


class Careless:
    """Makes commands out of what it remembers of the ones before, and of what the machine holds now and then."""

    def __init__(self, rng: random.Random, machine: Machine, successors: bool) -> None:
        self.rng = rng
        self.machine = machine
        self.successors = successors
        self.sequences: dict[int, int] = {}
        self.sessions: list[int] = []
        self.born = 0
        self.old: list[bytes] = []
        self.requests: list[tuple[int, int, str]] = []
        self.holds: list[Hold] = []

    def payload(self, term: int) -> bytes:
        rng = self.rng
        self.holds += [hold for name in self.machine.locks.names() for hold in self.machine.locks.holders(name)]
        self.holds = self.holds[-30:]
        if len(self.sessions) < 2 or rng.random() < 0.04:
            return self.open()
        if self.old and rng.random() < 0.12:
            return rng.choice(self.old[-15:])
        makers = (self.acquire, self.release, self.cancel, self.change, self.transaction, self.end, self.group)
        made = rng.choices(makers, (12, 7, 3, 2, 1, 1.2, 4))[0](term)
        self.old.append(made)
        return made

    def open(self) -> bytes:
        self.born += 1
        self.sessions = [*self.sessions[-3:], self.born]
        owner = self.rng.choice("wxyz")
        older = self.machine.session_of(owner) if self.rng.random() < 0.8 else 0
        return commands.open_session(self.born, owner, 1, 10, older, self.rng.random() < 0.3)

    def sender(self, session: int) -> tuple[int, int, int]:
        sequence = self.sequences.get(session, 0) + self.rng.choice([1, 1, 1, 2])
        self.sequences[session] = sequence
        return session, sequence, max(0, sequence - self.rng.choice([1, 5, 20, 20]))

    def acquire(self, term: int) -> bytes:
        rng = self.rng
        name = rng.choice(list(NAMES))
        permits = NAMES[name] if rng.random() < 0.97 else 4
        sender = self.sender(rng.choice(self.sessions))
        self.requests = [*self.requests[-20:], (sender[0], sender[1], name)]
        return commands.acquire(
            *sender,
            name,
            shared=permits == 1 and rng.random() < 0.5,
            permits=permits,
            priority=rng.choice([0, 0, 0, 1, -5]),
            wait=rng.random() < 0.8,
            delay=rng.choice([0, 5, 30]),
            reclaim=rng.random() < 0.3,
            value=rng.randbytes(rng.randrange(3)),
        )

    def release(self, term: int) -> bytes:
        rng = self.rng
        if not self.holds:
            return self.acquire(term)
        hold = rng.choice(self.holds)
        token = hold.token + rng.choice([0, 0, 0, 0, 1, -1])
        successor = rng.choice(["", *"wxyz"]) if self.successors else ""
        return commands.release(*self.sender(hold.session), hold.name, hold.request, token, successor)

    def cancel(self, term: int) -> bytes:
        rng = self.rng
        if rng.random() < 0.2 or not self.requests:
            session = rng.choice(self.sessions)
            # Of what is still to come.
            return commands.cancel(*self.sender(session), rng.choice(list(NAMES)), self.sequences[session] + 1)
        session, request, name = rng.choice(self.requests)
        return commands.cancel(*self.sender(session), name, request)

    def change(self, term: int) -> bytes:
        if not self.holds:
            return self.acquire(term)
        hold = self.rng.choice(self.holds)
        target = (hold.name, hold.request, hold.token)
        if self.rng.random() < 0.5:
            return commands.set_value(*self.sender(hold.session), *target, self.rng.randbytes(2))
        return commands.downgrade(*self.sender(hold.session), *target)

    def transaction(self, term: int) -> bytes:
        if not self.holds:
            return self.acquire(term)
        hold = self.rng.choice(self.holds)
        compare = commands.compare_hold(hold.name, hold.session, hold.request, hold.token)
        return commands.transaction(*self.sender(self.rng.choice(self.sessions)), [compare], [])

    def end(self, term: int) -> bytes:
        session = self.rng.choice(self.sessions)
        if self.rng.random() < 0.3:
            return commands.close_session(*self.sender(session))
        return commands.expire_session(session, term - self.rng.choice([0, 0, 0, 1]))

    def group(self, term: int) -> bytes:
        rng = self.rng
        draw = rng.random()
        if draw < 0.85:
            return commands.tick()
        if draw < 0.95:
            return commands.set_epoch(rng.randint(1, 9))
        limits = rng.choice([Limits(), Limits(lock_requests=6, waiters=2)])
        return commands.set_limits(limits, self.machine.limits_index)


Snapshot = dict[str, tuple[int, Any, list[Any], list[Any]]]


def table_of(machine: Machine) -> Snapshot:
    locks = machine.locks
    return {
        name: (locks.permits(name), locks.delayed(name), locks.holders(name), locks.queue(name))
        for name in locks.names()
    }


# ---------------------------------------------------------------------------------------------------------------------
# What must be true.


def check_state(machine: Machine, successors: bool) -> None:
    """What must be true at any moment."""
    table = table_of(machine)
    requests: dict[int, dict[int, str]] = {session: {} for session in machine.sessions}
    for name, (permits, delays, holders, queue) in table.items():
        assert holders or queue or delays, f"{name!r} is kept for nobody"
        check_slots(name, permits, holders)
        for item in (*holders, *queue):
            assert item.session in requests, f"{item} outlived its session"
            assert item.request not in requests[item.session], f"{item} is in two places"
            assert item.owner == machine.sessions[item.session].owner
            requests[item.session][item.request] = name
        for slot, (not_before, not_before_shared, _) in delays.items():
            assert 0 <= slot < permits
            assert not_before_shared == not_before or not_before_shared <= machine.time
            assert not_before > machine.time or machine.next_due() is not None
        if machine.epoch == 0:
            assert not holders, "granted before there was an epoch"
        elif queue and all(delay[0] > machine.time for delay in delays.values()):
            assert not grantable(queue[0], permits, delays, holders, machine.time), f"{queue[0]} was not woken"
        if not successors:
            assert queue == sorted(queue, key=lambda waiting: (-waiting.priority, waiting.asked))
    assert requests == {session.id: session.requests for session in machine.sessions.values()}
    for item in (item for _, _, holders, queue in table.values() for item in (*holders, *queue)):
        found = machine.locks.hold(item.session, item.request), machine.locks.waiting(item.session, item.request)
        assert found == ((item, None) if isinstance(item, Hold) else (None, item))
    assert machine.locks.request_count() == sum(map(len, requests.values()))
    due = [delay[0] for _, delays, _, _ in table.values() for delay in delays.values()]
    assert machine.next_due() == min(due, default=None)


def check_slots(name: str, permits: int, holders: list[Hold]) -> None:
    if any(hold.shared for hold in holders):
        assert permits == 1
        assert all(hold.shared for hold in holders), f"{name!r} is shared and exclusive at once: {holders}"
        assert {(hold.slot, hold.token) for hold in holders} == {(0, holders[0].token)}
    else:
        slots = [hold.slot for hold in holders]
        assert len(set(slots)) == len(slots), f"two have one slot of {name!r}: {holders}"
        assert all(0 <= slot < permits for slot in slots)


def grantable(head: Any, permits: int, delays: Any, holders: list[Hold], now: int) -> bool:
    """The same question as the table's own, asked slot by slot."""
    for slot in range(permits):
        there = [hold for hold in holders if hold.slot == slot]
        if there and not (head.shared and all(hold.shared for hold in there)):
            continue
        not_before, not_before_shared, _ = delays.get(slot, (0, 0, ""))
        if (not_before_shared if head.shared else not_before) <= now:
            return True
    return False


class Observer:
    """Follows one machine by its events, and holds what was granted against what was before."""

    def __init__(self) -> None:
        self.holds: set[tuple[str, int, int]] = set()
        self.ever: set[tuple[int, int]] = set()
        self.newest: dict[tuple[str, int], int] = {}

    def step(self, machine: Machine, before: Snapshot, events: list[LockEvent]) -> None:
        now, index = machine.time, machine.applied_index
        for kind, name, session, request in events:
            if kind == "gone":
                self.holds.discard((name, session, request))
                continue
            hold = machine.locks.hold(session, request)
            assert hold is not None, f"{kind} of {name!r}, which is not held"
            if kind == "changed":
                assert (name, session, request) in self.holds
                self.newest[name, hold.slot] = max(self.newest[name, hold.slot], hold.token)
                continue
            assert (session, request) not in self.ever, f"{hold} is granted a second time"
            assert (hold.name, hold.granted, hold.granted_at) == (name, index, now)
            self.check_token(machine, hold)
            self.check_delay(machine, before, hold)
            self.ever.add((session, request))
            self.holds.add((name, session, request))
        held = {(name, hold.session, hold.request) for name, parts in table_of(machine).items() for hold in parts[2]}
        assert self.holds == held, "the events tell another story than the table"

    def check_token(self, machine: Machine, hold: Hold) -> None:
        """Greater than every earlier one of that slot, but for those who share."""
        joined = [other for other in machine.locks.holders(hold.name) if other is not hold]
        slot = (hold.name, hold.slot)
        if hold.shared and joined:
            assert hold.token == joined[0].token
        else:
            assert hold.token == (machine.epoch << 39) + machine.applied_index
            assert hold.token > self.newest.get(slot, 0), f"the token of {hold} is not new"
        self.newest[slot] = hold.token

    def check_delay(self, machine: Machine, before: Snapshot, hold: Hold) -> None:
        """Nobody is granted a slot under delay, but who reclaims it, and those who then share it."""
        if hold.name not in before:
            return
        _, delays, _, queue = before[hold.name]
        not_before, not_before_shared, lost = delays.get(hold.slot, (0, 0, ""))
        bound = not_before_shared if hold.shared else not_before
        waited = {(waiting.session, waiting.request) for waiting in queue}
        with_it = machine.locks.holders(hold.name) if hold.shared else [hold]
        reclaimed = any(other.owner == lost and (other.session, other.request) not in waited for other in with_it)
        assert bound <= machine.time or reclaimed, f"{hold} was granted during a delay until {bound}"


def run(seed: int, steps: int = STEPS) -> Iterator[tuple[Machine, bytes, Any]]:
    """A random history, checked after every step; yields (machine, payload, outcome) after each."""
    rng = random.Random(seed)
    successors = seed % 2 == 1
    machine = Machine()
    careless, observer = Careless(rng, machine, successors), Observer()
    twin: Machine | None = None
    term, time = 1, 0
    for _ in range(steps):
        term += rng.random() < 0.03
        time += rng.choice([0, 0, 0, 1, 3, 20])
        payload = careless.payload(term)
        before, digest = table_of(machine), machine.locks.digest()
        index = machine.applied_index + 1
        outcome = machine.apply(index, term, time, payload)
        check_state(machine, successors)
        events = machine.take_lock_events()
        observer.step(machine, before, events)
        if outcome is not None and outcome[2][0] in (replies.DENIED, replies.NOT_HELD, replies.PERMITS_DIFFER):
            assert machine.locks.digest() == digest, f"{outcome} changed something"
        if twin is not None:
            assert twin.apply(index, term, time, payload) == outcome
            assert twin.take_lock_events() == events
            assert table_of(twin) == table_of(machine)
            assert twin.state_hash == machine.state_hash
        if index % 25 == 0:
            data = b"".join(machine.cut().chunks())
            twin = Machine()
            twin.restore([data])
            twin.take_lock_events()
            assert twin.state_hash == machine.state_hash
            assert b"".join(twin.cut().chunks()) == data
            check_state(twin, successors)
        yield machine, payload, outcome


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rules_hold_after_every_step_with_and_without_a_snapshot(seed: int) -> None:
    steps = sum(1 for _ in run(seed))
    assert steps == STEPS


def test_the_histories_reach_every_answer_and_event() -> None:
    """A random test that never gets anywhere proves nothing."""
    seen: set[Any] = set()
    longest = 0
    for seed in SEEDS:
        for machine, _, outcome in run(seed, 150):
            if outcome is not None:
                seen.add(outcome[2][0])
            table = table_of(machine)
            longest = max([longest, *(len(queue) for _, _, _, queue in table.values())])
            seen.update(
                "shared by several" for _, _, holders, _ in table.values() if len(holders) > 1 and holders[0].shared
            )
            seen.update("a delay and holders" for _, delays, holders, _ in table.values() if delays and holders)
    wanted = {
        *(replies.OK, replies.SESSION_ENDED, replies.STALE, replies.QUOTA, replies.GRANTED, replies.WAITING),
        *(replies.DENIED, replies.NOT_HELD, replies.PERMITS_DIFFER, replies.QUEUE_FULL, replies.HOLD_GONE),
        *(replies.CANCELLED, "shared by several", "a delay and holders"),
    }
    assert not wanted - seen, f"never reached: {wanted - seen}"
    assert longest > 4


def _pump_but_not_for(name: str) -> Callable[..., None]:
    """A pump that is forgotten when the function of that name in the table or the commands calls it."""
    original = LockTable.pump

    def pump(self: LockTable, lock: LockRecord, index: int, now: int) -> None:
        if sys._getframe(1).f_code.co_name != name or not lock.queue:
            original(self, lock, index, now)

    return pump


def _never_free(self: LockRecord, shared: bool, now: int) -> int:
    return 0 if not self.holders else -1


def _new_token_for_each(self: LockRecord) -> Hold:
    return next(iter(self.holders.values()))._replace(token=1 << 62)


def _at_the_end(self: LockTable, lock: LockRecord, waiting: Waiting) -> None:
    lock.queue.append(waiting)
    self._waits[waiting.session, waiting.request] = waiting
    self._touched[lock.name] = lock


def _only_touch(self: LockTable, lock: LockRecord) -> None:
    self._touched[lock.name] = lock


MISTAKES: dict[str, tuple[type, str, Any]] = {
    "removed requests wake nobody": (LockTable, "pump", _pump_but_not_for("_remove")),
    "ended sessions wake nobody": (LockTable, "pump", _pump_but_not_for("end_session")),
    "ticks wake nobody": (LockTable, "pump", _pump_but_not_for("tick")),
    "an epoch wakes nobody": (LockTable, "pump", _pump_but_not_for("pump_all")),
    "delays are forgotten": (LockRecord, "free_slot", _never_free),
    "those who share have tokens of their own": (LockRecord, "first_holder", _new_token_for_each),
    "waiters outlive their session": (LockTable, "_drop_waiters", lambda self, lock, session, requests: None),
    "priorities are forgotten": (LockTable, "enqueue", _at_the_end),
    "a delay is not waited for": (LockTable, "_delays_changed", _only_touch),
}


def run_all() -> None:
    for seed in SEEDS:
        for _ in run(seed):
            pass


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_table_is_found_by_these_checks(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(AssertionError):
        run_all()


# ---------------------------------------------------------------------------------------------------------------------
# What only this table can be asked.


def test_names_are_sorted_and_chosen_by_prefix() -> None:
    locks = Locks()
    for name in ("b/2", "a", "b/10", "c", "b"):
        locks.hold(A, name)
    assert locks.machine.locks.names() == ["a", "b", "b/10", "b/2", "c"]
    assert locks.machine.locks.names("b/") == ["b/10", "b/2"]
    assert locks.machine.locks.names("x") == []


def test_a_lock_nobody_has_asked_for_is_empty() -> None:
    table = Machine().locks
    assert (table.permits("l"), table.holders("l"), table.queue("l"), table.delayed("l")) == (0, [], [], {})
    assert (table.hold(1, 1), table.waiting(1, 1), table.next_due(), table.names()) == (None, None, None, [])


def test_what_is_returned_is_the_callers_own() -> None:
    locks = Locks()
    locks.hold(A, delay=5, permits=2)
    locks.hold(A, permits=2)
    locks.wait(B, permits=2)
    before = locks.machine.locks.digest()
    for lists in (locks.machine.locks.holders("l"), locks.machine.locks.queue("l"), locks.machine.locks.names()):
        lists.clear()
    locks.expire(A)
    delays = locks.machine.locks.delayed("l")
    assert delays
    delays.clear()
    assert locks.machine.locks.delayed("l")
    assert locks.machine.locks.digest() != before


def test_the_digest_of_an_emptied_table_is_that_of_an_empty_one() -> None:
    locks = Locks()
    digests = {locks.machine.locks.digest()}
    request = locks.hold(A)
    digests.add(locks.machine.locks.digest())
    locks.wait(B)
    digests.add(locks.machine.locks.digest())
    locks.release(A, request)
    digests.add(locks.machine.locks.digest())
    locks.apply(commands.close_session(*locks.sender(B)))
    assert len(digests) == 4
    assert locks.machine.locks.digest() == Machine().locks.digest()


def test_every_part_of_a_lock_shows_in_the_state_hash() -> None:
    def machine(
        epoch: int = 5, time: int = 1000, swap: bool = False, options: dict[str, Any] | None = None, lost: bool = False
    ) -> int:
        locks = Locks(epoch=epoch)
        locks.now = time
        locks.hold(A, **{"delay": 7, "value": b"v", **(options or {})})
        for session in (C, B) if swap else (B, C):
            locks.wait(session)
        if lost:
            locks.expire(A)
        return locks.machine.locks.digest()

    hashes = [
        machine(),
        machine(epoch=6),
        machine(time=1001),
        machine(swap=True),
        machine(options={"delay": 8}),
        machine(options={"value": b"w"}),
        machine(options={"shared": True}),
        machine(lost=True),
        machine(lost=True, options={"delay": 8}),
    ]
    assert len(set(hashes)) == len(hashes)


def test_serving_touches_only_the_locks_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = Locks()
    for number in range(300):
        locks.hold(A, f"{number:03d}")
    for name in ("x", "y"):
        locks.hold(B, name, delay=10)
        locks.wait(C, name)
    served: list[str] = []
    original = LockTable.pump

    def pump(self: LockTable, lock: LockRecord, index: int, now: int) -> None:
        served.append(lock.name)
        original(self, lock, index, now)

    monkeypatch.setattr(LockTable, "pump", pump)
    locks.expire(B)
    assert served == ["x", "y"]
    locks.tick(1005)
    assert served == ["x", "y"]
    locks.tick(1010)
    assert served == ["x", "y"] * 2
    assert [locks.held_by(name) for name in ("x", "y")] == [[(C, 1)], [(C, 2)]]


def test_a_long_queue_is_served_to_its_end() -> None:
    locks = Locks(Limits(waiters=3000))
    holder = locks.hold(A)
    readers = [(session, locks.wait(session, shared=True)) for _ in range(1000) for session in (B, C)]
    locks.cancel(*readers.pop(1000))
    assert locks.waiting() == readers
    locks.release(A, holder)
    assert locks.held_by() == readers
    locks.expire(B)
    assert locks.held_by() == [reader for reader in readers if reader[0] == C]


# ---------------------------------------------------------------------------------------------------------------------
# Other threads.


def at_every_line(step: Callable[[], Any], also: Callable[[], None]) -> int:
    """Run `step`, and before each line of the table's code in it run `also`; return how many lines."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != lock_table.__file__:
            return None
        if event == "line":
            lines += 1
            also()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(before)
    return lines


def test_a_request_that_is_being_granted_is_never_missed_by_another_thread() -> None:
    locks = Locks()
    holder = locks.hold(A)
    request = locks.wait(B)
    seen: list[str] = []

    def look() -> None:
        waiting = locks.machine.locks.waiting(B, request)
        hold = locks.machine.locks.hold(B, request)
        assert waiting is not None or hold is not None, f"missed after {seen}"
        seen.append("waits" if hold is None else "holds")

    assert at_every_line(lambda: locks.release(A, holder), look) > 10
    assert (seen[0], seen[-1]) == ("waits", "holds")
    assert seen == sorted(seen, reverse=True), "it went back to waiting"


def test_a_request_is_never_missed_while_a_snapshot_takes_the_place_of_the_table() -> None:
    behind, ahead = Locks(), Locks()
    for locks in (behind, ahead):
        locks.hold(A)
        locks.wait(B)
    ahead.release(A, 1)
    chunks = list(ahead.machine.cut().chunks())

    def look() -> None:
        waiting, hold = behind.machine.locks.waiting(B, 1), behind.machine.locks.hold(B, 1)
        assert waiting is not None or hold is not None

    assert at_every_line(lambda: behind.machine.restore(chunks), look) > 10
    assert behind.held_by() == [(B, 1)]
