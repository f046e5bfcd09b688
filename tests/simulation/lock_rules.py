"""Locks by the one true log: what each entry may grant, to whom, in which order, with which token, and when.

A second opinion that shares no code with the table it judges, and looks only at what the table shows: before and after
each entry. What must not live here: what members believe (`leases`), what commands are answered with (`replies`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from coord.machine.lock_table import Hold
from coord.raft.batch import Batch
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.world import World

_OPEN, _TICK, _EPOCH, _TRANSACTION = 1, 3, 6, 34
_ACQUIRE, _RELEASE, _CANCEL, _SET_VALUE, _DOWNGRADE = 48, 49, 50, 51, 52
_OF_LOCKS = frozenset((_ACQUIRE, _RELEASE, _CANCEL, _SET_VALUE, _DOWNGRADE))
_COMPARE_HOLD = 2
_OK, _CONFLICT, _HOLD_GONE = 0, 4, 15
#: Answers to an acquire that leave nothing.
_REFUSED = frozenset((1, 2, 3, 6, 11, 13, 14, 16))

RequestId = tuple[int, int]
#: A waiter as it is compared: id, priority, index of the entry that asked, owner.
_Waiter = tuple[RequestId, int, int, str]


class Shadow:
    """One lock as it was after the last entry that touched it, and what it owes to the past."""

    def __init__(self) -> None:
        self.holds: dict[RequestId, Hold] = {}
        self.queue: list[_Waiter] = []
        self.permits = 0
        #: By slot: not before, not before for who shares, and whose loss it was; dropped by the tick that opens it.
        self.closed: dict[int, tuple[int, int, str]] = {}


class LockRules:
    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        self._locks: dict[str, Shadow] = {}
        #: By lock and slot: the highest token ever. Those of one lock with one permit are all of slot 0.
        self._tokens: dict[tuple[str, int], int] = {}
        #: All that were ever granted, and all that were cancelled.
        self._granted: set[RequestId] = set()
        self._cancelled: set[RequestId] = set()
        #: The token of the newest write that was made under each lock.
        self._fenced: dict[str, int] = {}
        truth.on_entry.append(self._on_entry)

    def _fail(self, what: str, index: int) -> NoReturn:
        self._truth.fail(f"{what}, by entry {index}")

    def _on_entry(self, index: int, batch: Batch, payload: bytes, outcome: Any) -> None:
        machine = self._truth.machine
        ended = [event for event in machine.take_session_events() if event[1] != "opened"]
        events = machine.take_lock_events()
        operation = payload[1] if len(payload) > 1 else 0
        for session, how in ended:
            self._truth.note(f"session over: {how}")
            self._world.leases.session_ended(session, how, batch.term)
        if operation == _TRANSACTION and self._granted:
            self._transaction(index, msgpack.unpackb(payload, use_list=False), outcome)
            return
        if operation not in _OF_LOCKS and operation not in (_TICK, _EPOCH) and not ended and not events:
            return
        command = msgpack.unpackb(payload, use_list=False)
        names = {event.name for event in events}
        if operation in _OF_LOCKS:
            names.add(command[4])
        elif operation in (_TICK, _EPOCH):
            names.update(self._locks)
        over = {session for session, _ in ended}
        for session, how in ended:
            self._close_slots(session, how, command)
        for name in sorted(names):
            self._changed(name, index, batch, command, outcome, over)

    # -----------------------------------------------------------------------------------------------------------------
    # One lock, before and after.

    def _changed(
        self, name: str, index: int, batch: Batch, command: tuple[Any, ...], outcome: Any, over: set[int]
    ) -> None:
        locks = self._truth.machine.locks
        before = self._locks.get(name) or Shadow()
        holds = {(hold.session, hold.request): hold for hold in locks.holders(name)}
        queue = [
            ((other.session, other.request), other.priority, other.asked, other.owner) for other in locks.queue(name)
        ]
        after = Shadow()
        after.holds, after.queue, after.permits, after.closed = holds, queue, locks.permits(name), before.closed
        if command[0] == _TICK:
            now = self._truth.machine.time
            after.closed = {slot: closed for slot, closed in before.closed.items() if max(closed[:2]) > now}
        if command[0] == _CANCEL and outcome[2][0] == _OK:
            self._cancelled.add((command[1], command[5]))
        ours = command[0] in _OF_LOCKS and command[4] == name
        for id in before.holds.keys() - holds.keys():
            self._removed(before.holds[id], index, batch, command, over)
        self._in_order(name, before, after, index, command if ours else (0,), outcome, over)
        for id, hold in holds.items():
            earlier = before.holds.get(id)
            if earlier is None:
                self._granted_now(before, after, hold, index, command)
            elif earlier != hold:
                self._altered(earlier, hold, index, command)
        self._fits(name, after, index)
        self._wakes(name, after, index)
        if holds or queue or after.closed:
            self._locks[name] = after
        else:
            self._locks.pop(name, None)
            if locks.permits(name):
                self._fail(f"L5: nobody holds {name}, waits for it or keeps it closed, and it is there", index)

    def _removed(self, hold: Hold, index: int, batch: Batch, command: tuple[Any, ...], over: set[int]) -> None:
        """Only its own release, with its token; its own cancelling; or the end of its session."""
        id = (hold.session, hold.request)
        released = command[0] == _RELEASE and (command[1], *command[4:7]) == (
            hold.session,
            hold.name,
            hold.request,
            hold.token,
        )
        cancelled = command[0] == _CANCEL and (command[1], command[5]) == id
        if not (released or cancelled or hold.session in over):
            self._fail(f"L1: {hold} is taken from its holder", index)
        self._world.leases.hold_gone(*id, batch.term, by_session=hold.session in over)

    def _granted_now(self, before: Shadow, after: Shadow, hold: Hold, index: int, command: tuple[Any, ...]) -> None:
        truth, id, key = self._truth, (hold.session, hold.request), (hold.name, hold.slot)
        machine = truth.machine
        if not machine.has_session(hold.session):
            self._fail(f"L5: {hold} is granted to a session that is over", index)
        if id in self._granted:
            self._fail(f"L5: {hold} is granted a second time", index)
        if id in self._cancelled:
            self._fail(f"L5: {hold} is granted, and was cancelled", index)
        self._granted.add(id)
        newest = self._tokens.get(key, 0)
        joined = [
            other for other, it in before.holds.items() if other in after.holds and it.shared and hold.shared
        ] or [other for other, it in after.holds.items() if it.shared and hold.shared and it is not hold]
        if joined and hold.token == after.holds[joined[0]].token and hold.token == newest:
            truth.note("lock shared")
        elif hold.token != machine.epoch * 2**39 + index or hold.token <= newest:
            self._fail(f"L2: {hold} has that token, {newest} was the newest, the epoch is {machine.epoch}", index)
        self._tokens[key] = max(newest, hold.token)
        self._not_too_early(after, hold, index, command)

    def _not_too_early(self, after: Shadow, hold: Hold, index: int, command: tuple[Any, ...]) -> None:
        """What its holder lost without a word stays closed for as long as that holder asked, but to that holder."""
        closed = after.closed.get(hold.slot)
        if closed is None:
            return
        now = self._truth.machine.time
        own = (command[0], *command[1:3]) == (_ACQUIRE, hold.session, hold.request)
        if own and command[10] and closed[2] == hold.owner and max(closed[:2]) > now:
            self._truth.note("lock reclaimed")
            after.closed = {slot: kept for slot, kept in after.closed.items() if slot != hold.slot}
            return
        until = closed[1] if hold.shared else max(closed[:2])
        if until > now:
            self._fail(f"L7: {hold} is granted {until - now} ns too early", index)

    def _altered(self, before: Hold, after: Hold, index: int, command: tuple[Any, ...]) -> None:
        """Its own value; or its own downgrade, which is a grant like any other."""
        own = command[0] in (_SET_VALUE, _DOWNGRADE) and command[1:2] + command[5:7] == (
            before.session,
            before.request,
            before.token,
        )
        if own and command[0] == _SET_VALUE and before._replace(value=command[7]) == after:
            return
        token = self._truth.machine.epoch * 2**39 + index
        if own and not before.shared and before._replace(shared=True, token=token) == after:
            self._truth.note("lock downgraded")
            self._tokens[after.name, after.slot] = token
            return
        self._fail(f"L1: {before} becomes {after}", index)

    # -----------------------------------------------------------------------------------------------------------------
    # The lock as a whole.

    def _fits(self, name: str, lock: Shadow, index: int) -> None:
        """Exclusive is alone, a slot has one holder, and those who share have one token."""
        holds = list(lock.holds.values())
        if lock.permits == 1:
            alone = len(holds) < 2 or (all(hold.shared for hold in holds) and len({hold.token for hold in holds}) == 1)
            fits = alone and all(hold.slot == 0 for hold in holds)
        else:
            slots = [hold.slot for hold in holds]
            fits = len(set(slots)) == len(slots) and all(0 <= slot < lock.permits for slot in slots)
        if not fits:
            self._fail(f"L1: {name} with {lock.permits} permits is held by {holds}", index)
        sessions = self._truth.machine.sessions
        for session, request in [*lock.holds, *(waiter[0] for waiter in lock.queue)]:
            if session not in sessions:
                self._fail(f"L5: {name} is held or waited for in session {session:x}, which is over", index)
            if (session, request) in self._cancelled:
                self._fail(f"L5: {name} is held or waited for by ({session:x}, {request}), which is cancelled", index)

    def _in_order(
        self,
        name: str,
        before: Shadow,
        after: Shadow,
        index: int,
        command: tuple[Any, ...],
        outcome: Any,
        over: set[int],
    ) -> None:
        """Granted is a front part of the queue, and the rest stays in order: by priority, then as they came; but the
        successor somebody named is first."""
        order = [waiter for waiter in before.queue if waiter[0][0] not in over]
        reply = outcome[2][0] if outcome is not None else _OK
        if command[0] == _ACQUIRE and reply not in _REFUSED:
            id = (command[1], command[2])
            hold = after.holds.get(id)
            closed = before.closed.get(hold.slot, (0, 0, "")) if hold is not None else (0, 0, "")
            reclaims = command[10] and max(closed[:2]) > self._truth.machine.time
            waits = [waiter for waiter in after.queue if waiter[0] == id]
            known = id in before.holds or any(waiter[0] == id for waiter in order) or id in self._granted
            if not known and not reclaims and (hold is not None or waits):
                ahead = [at for at, other in enumerate(order, 1) if other[1] >= command[7]]
                place = ahead[-1] if ahead else 0
                owner = hold.owner if hold is not None else waits[0][3]
                order.insert(place, (id, command[7], index, owner))
        elif command[0] == _CANCEL:
            order = [waiter for waiter in order if waiter[0] != (command[1], command[5])]
        elif command[0] == _RELEASE and reply == _OK and command[7]:
            first = next((waiter for waiter in order if waiter[3] == command[7]), None)
            if first is not None and (command[1], command[5]) in before.holds:
                self._truth.note("lock handed to a successor")
                order.remove(first)
                order.insert(0, first)
        granted = [waiter for waiter in order if waiter[0] in after.holds]
        if order[: len(granted)] != granted or order[len(granted) :] != after.queue:
            self._fail(f"L5: the queue of {name} was to be {order}; granted {granted}, left {after.queue}", index)

    def _wakes(self, name: str, lock: Shadow, index: int) -> None:
        """No lost wake-up: the first of the queue cannot be granted now, or a tick that is owed will."""
        machine = self._truth.machine
        now, holds = machine.time, list(lock.holds.values())
        due = [max(closed[:2]) for closed in lock.closed.values()]
        if due:
            wanted = machine.next_due()
            if wanted is None or wanted > min(due):
                self._fail(f"L5: {name} opens at {min(due)}, and the next tick is wanted at {wanted}", index)
        if not lock.queue or not machine.epoch or any(until <= now for until in due):
            return
        head = machine.locks.queue(name)[0]
        open_slots = []
        for slot in range(lock.permits):
            not_before, not_before_shared, _ = lock.closed.get(slot, (0, 0, ""))
            until = not_before_shared if head.shared else max(not_before, not_before_shared)
            taken = [hold for hold in holds if hold.slot == slot and not (hold.shared and head.shared)]
            if until <= now and not taken:
                open_slots.append(slot)
        if open_slots:
            self._fail(f"L5: {name}: slots {open_slots} are open, and {head} waits", index)

    def _close_slots(self, session: int, how: str, command: tuple[Any, ...]) -> None:
        """A session ended: what it held stays closed, unless it was closed in order or its process is known to be
        dead."""
        orderly = how == "closed" or (how == "superseded" and command[0] == _OPEN and command[6])
        now = self._truth.machine.time
        for lock in self._locks.values():
            for hold in lock.holds.values():
                if hold.session != session or orderly or not hold.delay:
                    continue
                self._truth.note("lock closed for a while")
                not_before, not_before_shared, _ = lock.closed.get(hold.slot, (0, 0, ""))
                until = now + hold.delay
                shared = not_before_shared if hold.shared else max(not_before_shared, until)
                lock.closed[hold.slot] = max(not_before, until), shared, hold.owner

    # -----------------------------------------------------------------------------------------------------------------
    # What is written under a lock.

    def _transaction(self, index: int, command: tuple[Any, ...], outcome: Any) -> None:
        """L4: done only while the hold it names is there; and so, tokens never fall."""
        if outcome is None or len(self._truth.replies.get(outcome[:2], ())) > 1:
            return
        reply = outcome[2][0]
        for kind, name, *rest in command[4]:
            if kind != _COMPARE_HOLD:
                continue
            session, request, token = rest
            lock = self._locks.get(name)
            hold = lock.holds.get((session, request)) if lock is not None else None
            stands = hold is not None and hold.token == token
            if reply == _HOLD_GONE and stands and outcome[2][1] == name:
                self._fail(f"L4: {hold} is said to be gone", index)
            if reply != _OK:
                continue
            if not stands:
                self._fail(f"L4: written under ({session:x}, {request}, {token}) of {name}, which is gone", index)
            if lock is not None and lock.permits == 1:
                if token < self._fenced.get(name, 0):
                    self._fail(f"L4: written under {token} of {name}, after {self._fenced[name]}", index)
                self._fenced[name] = token
                self._truth.note("written under a lock")

    def unfinished(self) -> list[str]:
        """Once nobody wants a lock, there is none."""
        locks = self._truth.machine.locks
        return [
            f"{name} is held by {locks.holders(name)}, waited for by {locks.queue(name)}, closed {locks.delayed(name)}"
            for name in locks.names()
        ]
