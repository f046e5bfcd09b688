"""What the commands of the lock table mean, and what each is answered with.

`apply` is called for a command that is neither a duplicate nor stale, in a live session. What must not live here: how
locks are kept and served (`coord.machine.lock_table`); what else ends with a session (`coord.machine.machine`).
"""

from __future__ import annotations

from collections.abc import Callable

from coord.machine import commands, replies
from coord.machine.commands import Command
from coord.machine.limits import Limits
from coord.machine.lock_table import EPOCH_SHIFT, Hold, LockTable, Waiting
from coord.machine.replies import Reply
from coord.machine.sessions import Session


def apply(table: LockTable, session: Session, limits: Limits, index: int, now: int, command: Command) -> Reply:
    """Apply a lock's command of `session`, from the entry at `index`, at cluster time `now`; return the reply."""
    if command[0] == commands.ACQUIRE:
        return _acquire(table, session, limits, index, now, command)
    return _OF_A_REQUEST[command[0]](table, session, index, now, command)


def _acquire(table: LockTable, session: Session, limits: Limits, index: int, now: int, command: Command) -> Reply:
    _, id, request, _, name, shared, permits, priority, wait, delay, reclaim, value = command
    lock = table.record(name)
    slot, reclaimed = -1, False
    if lock is None:
        slot = 0 if table.epoch else -1
    elif lock.permits != permits:
        return replies.PERMITS_DIFFER, lock.permits
    elif table.epoch:
        if reclaim:
            slot = lock.reclaimable_slot(session.owner, now)
            reclaimed = slot >= 0
        if slot < 0 and not lock.queue:
            slot = lock.free_slot(shared, now)
    if slot < 0:
        if not wait:
            return replies.DENIED, "" if lock is None or not lock.holders else lock.first_holder().owner
        if (0 if lock is None else len(lock.queue)) >= limits.waiters:
            return replies.QUEUE_FULL, limits.waiters
    if table.request_count() >= limits.lock_requests:
        return replies.QUOTA, "lock_requests", limits.lock_requests
    if lock is None:
        lock = table.make(name, permits)
    asked: Waiting = tuple.__new__(
        Waiting, (name, id, request, session.owner, shared, priority, delay, value, now, index)
    )
    session.requests[request] = name
    if slot >= 0:
        if reclaimed:
            table.lift_delay(lock, slot)
        hold: Hold | None = table.grant(lock, asked, slot, index, now)
        if lock.queue:
            # Those who share were perhaps kept out by the delay only.
            table.pump(lock, index, now)
    else:
        table.enqueue(lock, asked)
        table.pump(lock, index, now)
        hold = table.hold(id, request)
    return replies.WAITING_REPLY if hold is None else (replies.GRANTED, hold.token, hold.slot)


def _release(table: LockTable, session: Session, index: int, now: int, command: Command) -> Reply:
    _, id, _, _, name, request, token, successor = command
    if not table.stands(name, id, request, token):
        return replies.NOT_HELD_REPLY
    _remove(table, session, index, now, name, request, successor)
    return replies.OK, index, 1


def _cancel(table: LockTable, session: Session, index: int, now: int, command: Command) -> Reply:
    _, _, _, _, name, request = command
    found = session.requests.get(request) == name
    if found:
        _remove(table, session, index, now, name, request, "")
    low_water = session.low_water
    if low_water < request <= low_water + commands.WINDOW and request not in session.replies:
        # It is still to come. No command from beyond the window can, and replies from there would have no bound.
        session.remember(request, replies.CANCELLED_REPLY)
    return replies.OK, index, int(found)


def _remove(table: LockTable, session: Session, index: int, now: int, name: str, request: int, successor: str) -> None:
    """Make an end of a request that holds or waits for `name`, and serve the lock."""
    lock = table.record(name)
    assert lock is not None, f"session {session.id} has a request for {name!r}, which is no lock"
    hold, waiting = table.hold(session.id, request), table.waiting(session.id, request)
    if hold is not None:
        table.remove_hold(lock, hold)
    elif waiting is not None:
        table.remove_waiting(lock, waiting)
    del session.requests[request]
    if successor:
        table.move_to_head(lock, successor)
    table.pump(lock, index, now)


def _set_value(table: LockTable, session: Session, index: int, now: int, command: Command) -> Reply:
    _, id, _, _, name, request, token, value = command
    lock, hold = table.record(name), table.hold(id, request)
    if lock is None or hold is None or not table.stands(name, id, request, token):
        return replies.NOT_HELD_REPLY
    table.replace_hold(lock, hold._replace(value=value))
    return replies.OK, index, 1


def _downgrade(table: LockTable, session: Session, index: int, now: int, command: Command) -> Reply:
    """It is held from now on as if it had just been granted, to those who share; so it has a new token. But since when
    it is held does not change."""
    _, id, _, _, name, request, token = command
    lock, hold = table.record(name), table.hold(id, request)
    if lock is None or hold is None or not table.stands(name, id, request, token):
        return replies.NOT_HELD_REPLY
    if hold.shared or lock.permits != 1:
        return replies.NOT_HELD_REPLY
    shared = hold._replace(shared=True, token=(table.epoch << EPOCH_SHIFT) + index)
    table.replace_hold(lock, shared)
    table.pump(lock, index, now)
    return replies.GRANTED, shared.token, shared.slot


_OF_A_REQUEST: dict[int, Callable[[LockTable, Session, int, int, Command], Reply]] = {
    commands.RELEASE: _release,
    commands.CANCEL: _cancel,
    commands.SET_VALUE: _set_value,
    commands.DOWNGRADE: _downgrade,
}
