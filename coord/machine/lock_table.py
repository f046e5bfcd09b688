"""The locks: who holds what, who waits, and what stays closed for a while because its holder was lost.

One thread writes: the one that applies. `hold` and `waiting` are for all threads. A lock is granted here, in the entry
that makes it free, to the head of its queue; nobody polls, and nobody is woken who is not granted.

What must not live here: what a command is answered with (`coord.machine.lock_commands`), and sessions, but for their
numbers and owners' names. When a request is removed, whoever has it removed strikes it from `Session.requests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from coord.machine.cluster_clock import TIME_MAX
from coord.machine.digests import MASK, lock_digest
from coord.machine.expiry import Expiry

#: A token is the epoch, and below it this many bits for the index of an entry: less than 2**63 together.
EPOCH_SHIFT = 39

#: What happened to a request. GONE: it held or waited, and does neither any more. CHANGED: the value or mode of a hold.
GRANTED, GONE, CHANGED = "granted", "gone", "changed"

#: (session, request): the session, and the sequence of the command that asked.
RequestId = tuple[int, int]
#: (not before, not before for shared requests, owner whose loss caused it, "" if there were several); cluster time,
#: nanoseconds.
Delay = tuple[int, int, str]


class Hold(NamedTuple):
    """A granted request."""

    #: Of the lock.
    name: str
    session: int
    #: Sequence of the command that asked.
    request: int
    #: Of the session.
    owner: str
    #: Whether others may share it.
    shared: bool
    #: Which of the permits it has, from 0.
    slot: int
    #: Greater than that of every hold before it that excluded it. Those who share a hold share its token.
    token: int
    #: How long its slot stays closed if the session is lost, nanoseconds.
    delay: int
    #: What the holder wants others to see.
    value: bytes
    #: Cluster time, nanoseconds.
    granted_at: int
    #: Index of the entry that granted it.
    granted: int


class Waiting(NamedTuple):
    """A request in the queue."""

    #: Of the lock.
    name: str
    session: int
    #: Sequence of the command that asked.
    request: int
    #: Of the session.
    owner: str
    #: Whether others may share it.
    shared: bool
    priority: int
    #: How long its slot is to stay closed if the session is lost while it holds, nanoseconds.
    delay: int
    #: What it wants others to see.
    value: bytes
    #: Cluster time, nanoseconds.
    asked_at: int
    #: Index of the entry that asked.
    asked: int


class LockEvent(NamedTuple):
    """What happened to a request, for the driver."""

    #: GRANTED, GONE or CHANGED.
    kind: str
    #: Of the lock.
    name: str
    session: int
    request: int


class LockRecord:
    """One lock.

    Invariant: it has a holder, a waiter or a delay, or it is not in the table. One slot has one holder, but for slot 0
    of a lock with one permit, which any number may share; all of those have one token. A delay's first time is not
    before its second, and the two are equal unless the second has passed: what has the slot under delay for all is not
    held. So all that can fall due in a lock is a first time.
    """

    __slots__ = ("delays", "digest", "holders", "name", "permits", "queue", "taken")

    def __init__(self, name: str, permits: int) -> None:
        self.name = name
        self.permits = permits
        #: In the order in which they were granted.
        self.holders: dict[RequestId, Hold] = {}
        #: Bit n: slot n has a holder.
        self.taken = 0
        #: By priority, then in order of arrival; but somebody's successor is in front of all who were there.
        self.queue: list[Waiting] = []
        #: By slot.
        self.delays: dict[int, Delay] = {}
        #: Its share of the table's digest when that was last asked for.
        self.digest = 0

    def free_slot(self, shared: bool, now: int) -> int:
        """The lowest slot that an exclusive or a shared request can have at `now`; -1: none."""
        taken = self.taken
        if shared and taken and self.first_holder().shared:
            taken = 0
        for slot, (not_before, not_before_shared, _) in self.delays.items():
            if (not_before_shared if shared else not_before) > now:
                taken |= 1 << slot
        free = ~taken & ((1 << self.permits) - 1)
        return (free & -free).bit_length() - 1

    def reclaimable_slot(self, owner: str, now: int) -> int:
        """The lowest slot that is closed for the loss of `owner`, and held by nobody; -1: none."""
        fitting = (
            slot
            for slot, (not_before, _, lost) in self.delays.items()
            if lost == owner and not_before > now and not self.taken >> slot & 1
        )
        return min(fitting, default=-1)

    def first_holder(self) -> Hold:
        """The one that has held it longest; there must be one."""
        return next(iter(self.holders.values()))

    def compute_digest(self) -> int:
        """Its digest as it is now. The owners of live sessions are in those of the sessions."""
        holders, queue = map(_hold_row, self.holders.values()), map(_waiting_row, self.queue)
        return lock_digest((self.name, self.permits, sorted(self.delays.items()), [*holders], [*queue]))


class TableCopy(NamedTuple):
    """The parts of a table as they were, in no order, but for the holds of one lock and the requests in one queue."""

    #: (name, permits)
    locks: list[tuple[str, int]]
    #: (name, slot, not before, not before for shared requests, owner whose loss caused it)
    delays: list[tuple[str, int, int, int, str]]
    holds: list[Hold]
    #: Those that are not empty.
    queues: list[list[Waiting]]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield it in a fixed order, as snapshots carry it."""
        by_name = itemgetter(0)
        yield from sorted(self.locks)
        yield from sorted(self.delays)
        yield from map(_hold_row, sorted(self.holds, key=by_name))
        for queue in sorted(self.queues, key=lambda queue: queue[0].name):
            yield from map(_waiting_row, queue)


class LockTable:
    """Every lock.

    Invariant: the head of a queue cannot be granted, unless there is no epoch yet, or its delay has passed and there
    was no tick since. `_holds` and `_waits` have just the requests that the records have; `_holds` those of one lock in
    the order in which they were granted.
    """

    __slots__ = ("_events", "_expiry", "_holds", "_locks", "_sum", "_touched", "_waits", "epoch")

    def __init__(self, epoch: int = 0) -> None:
        #: In front of every token. Nothing is granted while it is 0.
        self.epoch = epoch
        self._locks: dict[str, LockRecord] = {}
        self._holds: dict[RequestId, Hold] = {}
        self._waits: dict[RequestId, Waiting] = {}
        #: When the next delay of each lock that has any passes.
        self._expiry = Expiry()
        #: Digest of all locks, except that of `_touched` the old digests are in it.
        self._sum = 0
        self._touched: dict[str, LockRecord] = {}
        self._events: list[tuple[str, str, int, int]] = []

    # -- any thread

    def hold(self, session: int, request: int) -> Hold | None:
        """Return what this request holds, or None."""
        return self._holds.get((session, request))

    def waiting(self, session: int, request: int) -> Waiting | None:
        """Return this request if it is in a queue, or None. Who looks for it here first and then with `hold` does not
        miss it when it is granted in between."""
        return self._waits.get((session, request))

    def stands(self, name: str, session: int, request: int, token: int) -> bool:
        """Tell whether this request holds the lock `name` with just this token."""
        hold = self._holds.get((session, request))
        return hold is not None and hold.token == token and hold.name == name

    # -- the thread that applies: questions

    def holders(self, name: str) -> list[Hold]:
        """Return who holds `name`, the longest first."""
        lock = self._locks.get(name)
        return [] if lock is None else list(lock.holders.values())

    def queue(self, name: str) -> list[Waiting]:
        """Return who waits for `name`, the next first."""
        lock = self._locks.get(name)
        return [] if lock is None else list(lock.queue)

    def permits(self, name: str) -> int:
        """How many may hold `name` at a time; 0: nobody has asked for it."""
        lock = self._locks.get(name)
        return 0 if lock is None else lock.permits

    def delayed(self, name: str) -> dict[int, Delay]:
        """Return the slots of `name` under delay: (not before, not before for shared requests, owner that was lost). A
        delay that has passed is there until the next tick."""
        lock = self._locks.get(name)
        return {} if lock is None else dict(sorted(lock.delays.items()))

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all locks that somebody holds or waits for, or that are under delay, sorted."""
        return sorted(name for name in self._locks if name.startswith(prefix))

    def request_count(self) -> int:
        """How many hold and wait, in all locks."""
        return len(self._holds) + len(self._waits)

    def record(self, name: str) -> LockRecord | None:
        """The lock `name`. Only this table may change it."""
        return self._locks.get(name)

    def next_due(self) -> int | None:
        """The earliest cluster time at which a delay passes, or None."""
        return self._expiry.next()

    def digest(self) -> int:
        """Digest of the table. The digests of locks are only made when this is asked for, as those of sessions."""
        for lock in self._touched.values():
            before, lock.digest = lock.digest, lock.compute_digest()
            self._sum += lock.digest - before
        self._touched.clear()
        self._sum &= MASK
        return self._sum

    def copy(self) -> TableCopy:
        """Copy all of it, about 150 ns for each lock."""
        locks = self._locks.values()
        return TableCopy(
            [(lock.name, lock.permits) for lock in locks],
            [(lock.name, slot, *delay) for lock in locks if lock.delays for slot, delay in lock.delays.items()],
            list(self._holds.values()),
            [lock.queue.copy() for lock in locks if lock.queue],
        )

    def take_events(self) -> list[LockEvent]:
        """Return what happened to requests since the last call, in order."""
        events, self._events = self._events, []
        return [tuple.__new__(LockEvent, event) for event in events]

    # -- the thread that applies: changes

    def make(self, name: str, permits: int) -> LockRecord:
        """Add a lock; somebody must come to hold it or wait for it in the same entry."""
        lock = self._locks[name] = LockRecord(name, permits)
        return lock

    def enqueue(self, lock: LockRecord, waiting: Waiting) -> None:
        """Put a request behind all of its priority."""
        queue, priority = lock.queue, waiting.priority
        place = len(queue)
        while place and queue[place - 1].priority < priority:
            place -= 1
        queue.insert(place, waiting)
        self._waits[waiting.session, waiting.request] = waiting
        self._touched[lock.name] = lock

    def grant(self, lock: LockRecord, asked: Waiting, slot: int, index: int, now: int) -> Hold:
        """Give `slot`, which must be free for it, to a request that is not in the queue, or about to leave it."""
        _, session, request, owner, shared, _, delay, value, _, _ = asked
        name = lock.name
        # Those who share have one token: with one of its own, a reader would fence those who read already.
        joins = shared and lock.holders
        token = lock.first_holder().token if joins else (self.epoch << EPOCH_SHIFT) + index
        hold: Hold = tuple.__new__(Hold, (name, session, request, owner, shared, slot, token, delay, value, now, index))
        id = (session, request)
        self._holds[id] = lock.holders[id] = hold
        lock.taken |= 1 << slot
        self._touched[name] = lock
        self._events.append((GRANTED, name, session, request))
        return hold

    def pump(self, lock: LockRecord, index: int, now: int) -> None:
        """Grant the head of the queue while it can be granted; strike a lock that nobody needs any more. Owed after
        everything that removes a request or a delay."""
        queue = lock.queue
        if queue and self.epoch:
            granted = 0
            for head in queue:
                slot = lock.free_slot(head.shared, now)
                if slot < 0:
                    break
                self.grant(lock, head, slot, index, now)
                # After it holds, so that other threads never find it nowhere.
                del self._waits[head.session, head.request]
                granted += 1
            del queue[:granted]
        if not (lock.holders or queue or lock.delays):
            del self._locks[lock.name]
            self._touched.pop(lock.name, None)
            self._sum -= lock.digest

    def pump_all(self, index: int, now: int) -> None:
        """Serve every lock, in order of name."""
        for name in sorted(self._locks):
            self.pump(self._locks[name], index, now)

    def remove_hold(self, lock: LockRecord, hold: Hold) -> None:
        """Make an end of a hold. `pump` is owed."""
        id = (hold.session, hold.request)
        del self._holds[id]
        del lock.holders[id]
        if lock.permits > 1 or not lock.holders:
            lock.taken &= ~(1 << hold.slot)
        self._touched[lock.name] = lock
        self._events.append((GONE, lock.name, hold.session, hold.request))

    def remove_waiting(self, lock: LockRecord, waiting: Waiting) -> None:
        """Take a request out of the queue. `pump` is owed: it may have been in the way of the next."""
        place = next(place for place, other in enumerate(lock.queue) if other is waiting)
        del lock.queue[place]
        self._forget_waiting(lock, waiting)

    def _forget_waiting(self, lock: LockRecord, waiting: Waiting) -> None:
        del self._waits[waiting.session, waiting.request]
        self._touched[lock.name] = lock
        self._events.append((GONE, lock.name, waiting.session, waiting.request))

    def replace_hold(self, lock: LockRecord, hold: Hold) -> None:
        """Change the value, or the mode and token, of the hold of this request."""
        id = (hold.session, hold.request)
        self._holds[id] = lock.holders[id] = hold
        self._touched[lock.name] = lock
        self._events.append((CHANGED, lock.name, hold.session, hold.request))

    def move_to_head(self, lock: LockRecord, owner: str) -> None:
        """Put the first request of `owner` in front of the queue, if there is one."""
        for place, waiting in enumerate(lock.queue):
            if waiting.owner == owner:
                lock.queue.insert(0, lock.queue.pop(place))
                self._touched[lock.name] = lock
                return

    def lift_delay(self, lock: LockRecord, slot: int) -> None:
        """Open a slot under delay. `pump` is owed."""
        del lock.delays[slot]
        self._delays_changed(lock)

    def end_session(
        self, session: int, requests: Iterable[tuple[int, str]], delayed: bool, index: int, now: int
    ) -> None:
        """Make an end of all `requests`, (request, lock) of one session, waiters first; then serve their locks, in
        order of name. `delayed`: its process may still be at work, so what it held stays closed as long as it asked."""
        held: dict[str, list[int]] = {}
        for request, name in sorted(requests):
            held.setdefault(name, []).append(request)
        locks = [(self._locks[name], held[name]) for name in sorted(held)]
        for lock, numbers in locks:
            self._drop_waiters(lock, session, numbers)
        for lock, numbers in locks:
            for request in numbers:
                hold = lock.holders.get((session, request))
                if hold is not None:
                    self.remove_hold(lock, hold)
                    if delayed and hold.delay:
                        self._close(lock, hold, now)
        for lock, _ in locks:
            self.pump(lock, index, now)

    def _drop_waiters(self, lock: LockRecord, session: int, requests: list[int]) -> None:
        """Take the waiters among the `requests` of a session out of the queue, all in one go."""
        gone = [waiting for request in requests if (waiting := self._waits.get((session, request))) is not None]
        if gone:
            lock.queue = [waiting for waiting in lock.queue if waiting.session != session]
            for waiting in gone:
                self._forget_waiting(lock, waiting)

    def _close(self, lock: LockRecord, hold: Hold, now: int) -> None:
        """Put the slot of a lost hold under delay."""
        until = min(now + hold.delay, TIME_MAX)
        not_before, not_before_shared, lost = lock.delays.get(hold.slot, (0, 0, ""))
        # Whoever reclaims skips the whole delay, so it must be its own: several who shared may have been lost.
        owner = hold.owner if not_before <= now or lost == hold.owner else ""
        if not hold.shared:
            not_before_shared = max(not_before_shared, until)
        lock.delays[hold.slot] = (max(not_before, until), not_before_shared, owner)
        self._delays_changed(lock)

    def _delays_changed(self, lock: LockRecord) -> None:
        self._expiry.set(lock.name, min((delay[0] for delay in lock.delays.values()), default=0))
        self._touched[lock.name] = lock

    def tick(self, index: int, now: int, most: int) -> None:
        """Forget the delays that have passed and serve their locks, of up to `most` locks."""
        for name in self._expiry.take_due(now, most):
            lock = self._locks[name]
            lock.delays = {slot: delay for slot, delay in lock.delays.items() if delay[0] > now}
            self._delays_changed(lock)
            self.pump(lock, index, now)

    # -- snapshots

    def restore(
        self, name: str, permits: int, delays: dict[int, Delay], holders: Iterable[Hold], queue: list[Waiting]
    ) -> None:
        """Add a lock as it was; all of it must have been checked."""
        lock = self.make(name, permits)
        lock.queue, lock.delays = queue, delays
        for hold in holders:
            id = (hold.session, hold.request)
            self._holds[id] = lock.holders[id] = hold
            lock.taken |= 1 << hold.slot
        for waiting in queue:
            self._waits[waiting.session, waiting.request] = waiting
        self._delays_changed(lock)

    def become(self, other: LockTable) -> None:
        """Hold what `other` holds, which must not be used any more. The differences are events."""
        self._events.extend(self._differences(other))
        self._locks, self._expiry, self._sum, self._touched = other._locks, other._expiry, other._sum, other._touched
        self.epoch = other.epoch
        self._holds = other._holds
        self._waits = other._waits

    def _differences(self, newer: LockTable) -> Iterator[tuple[str, str, int, int]]:
        """What happened on the way to `newer`, by kind, lock and request; steps in between are not known."""
        gone = [item for items in (self._waits, self._holds) for item in items.items()]
        lost = [(item.name, *id) for id, item in gone if id not in newer._holds and id not in newer._waits]
        granted = [(hold.name, *id) for id, hold in newer._holds.items() if id not in self._holds]
        changed = [(hold.name, *id) for id, hold in newer._holds.items() if self._holds.get(id, hold) != hold]
        for kind, found in ((GONE, lost), (GRANTED, granted), (CHANGED, changed)):
            for name, session, request in sorted(found):
                yield kind, name, session, request


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    """Without the owner, who is the session's."""
    return hold[:3] + hold[4:]


def _waiting_row(waiting: Waiting) -> tuple[Any, ...]:
    """Without the owner, who is the session's."""
    return waiting[:3] + waiting[4:]
