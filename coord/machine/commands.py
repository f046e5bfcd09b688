"""The commands: bytes made in the caller's thread, read back and checked on every member when they are applied.

A command is a msgpack array that starts with its operation number. From CLOSE_SESSION up, session, sequence and low
water follow, which make it exactly-once: a session numbers its commands, and says up to where it has taken the replies.

`decode` believes nothing: types, ranges and lengths are all checked here, so that what applies a command need not. No
check here depends on the state: the same bytes are a command always or never, on every member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from coord.machine.limits import Limits, read_limits

# Operation numbers are for ever: they are in logs. 48 to 79 belong to the lock table.
OPEN_SESSION, EXPIRE_SESSION, TICK, SET_LIMITS, REPORT_HASH, SET_EPOCH = 1, 2, 3, 4, 5, 6
CLOSE_SESSION = 16
PUT, DELETE, TRANSACTION = 32, 33, 34
ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE = 48, 49, 50, 51, 52

#: Kinds of compare in a transaction.
COMPARE_REVISION, COMPARE_HOLD = 1, 2

#: For `expected`: write whatever is there, and write only where nothing is.
ANY, ABSENT = -1, 0

#: The longest command, whatever the limits say. Room for the largest transaction and its frame.
COMMAND_BYTES_MAX = (2 << 20) + (128 << 10)
KEY_BYTES_MAX = 512
OWNER_BYTES_MAX = 255
OPERATIONS_MAX = 128
COMPARES_MAX = 128
LOCK_NAME_BYTES_MAX = 255
LOCK_VALUE_BYTES_MAX = 4096
#: How many may hold one semaphore.
PERMITS_MAX = 1000
#: Priorities of requests for a lock are from minus this to this.
PRIORITY_MAX = 1000
#: The longest a lock stays closed after its holder was lost, nanoseconds.
LOCK_DELAY_MAX = 60 * 1_000_000_000
#: An epoch has 24 bits.
EPOCH_MAX = (1 << 24) - 1
#: How far a sequence may be ahead of its low water. It bounds the replies a session can make the group remember, and
#: since it needs no state, a duplicate can never be refused on one side of it and done on the other (trap 51).
WINDOW = 1024
#: Sequences, revisions, low waters, lifetimes fit a signed 64-bit integer; session ids and instances an unsigned one.
SIGNED_MAX, UNSIGNED_MAX = (1 << 63) - 1, (1 << 64) - 1

#: (operation number, field, ...), checked.
Command = tuple[Any, ...]


class BadCommand(ValueError):
    """These bytes are no command; the text says why."""


# ---------------------------------------------------------------------------------------------------------------------
# Made by callers. Times are nanoseconds.


def open_session(session: int, owner: str, instance: int, ttl: int, replaces: int = 0, gone: bool = False) -> bytes:
    """Open `session`, a random number from 1 to 2**64 - 1, for the member or client named `owner`.

    `instance` tells apart processes of one owner. `replaces`: the session of the same owner that ends in that moment,
    with all it holds; 0: none. If the owner has another one, nothing happens: this command may be of a process that is
    long dead, and must not end what the next one has opened. `gone`: the process of the replaced one is known to be
    dead, so the locks it held are free without delay. Harmless to repeat.
    """
    return _pack((OPEN_SESSION, session, owner, instance, ttl, replaces, gone))


def expire_session(session: int, proposer_term: int) -> bytes:
    """End `session`, unless the entry this becomes is of another term: an old leader must not expire anybody."""
    return _pack((EXPIRE_SESSION, session, proposer_term))


def tick() -> bytes:
    """Do what has fallen due. Every command moves the clock; only this one acts on it."""
    return _pack((TICK,))


def set_limits(limits: Limits, replaces: int) -> bytes:
    """Set the limits, if those in force were set at index `replaces` (0: never); so a late duplicate does nothing."""
    return _pack((SET_LIMITS, replaces, limits.row()))


def report_hash(owner: str, index: int, state_hash: int) -> bytes:
    """Tell all members that the one named `owner` had this state hash at `index`. Changes nothing: see
    `Machine.hash_reports`."""
    return _pack((REPORT_HASH, owner, index, state_hash))


def set_epoch(epoch: int) -> bytes:
    """Raise the epoch, which is in front of every token, to `epoch`, 1 to EPOCH_MAX; nothing if it is that already, or
    more. No lock is granted before the first."""
    return _pack((SET_EPOCH, epoch))


def close_session(session: int, sequence: int, low_water: int) -> bytes:
    """End `session` and all it holds."""
    return _pack((CLOSE_SESSION, session, sequence, low_water))


def put(
    session: int,
    sequence: int,
    low_water: int,
    key: str,
    value: bytes,
    ephemeral: bool = False,
    ttl: int = 0,
    expected: int = ANY,
) -> bytes:
    """Set `key` to an encoded value. With `ephemeral` it goes when the session ends; with a `ttl` above 0, some time
    after that; with `expected`, nothing happens unless the key's revision is that (ABSENT: unless there is none)."""
    return _pack((PUT, session, sequence, low_water, key, value, ephemeral, ttl, expected))


def delete(session: int, sequence: int, low_water: int, key: str, expected: int = ANY) -> bytes:
    """Delete `key`, on condition of `expected` as in `put`."""
    return _pack((DELETE, session, sequence, low_water, key, expected))


def transaction(
    session: int, sequence: int, low_water: int, compares: Sequence[Command], operations: Sequence[Command]
) -> bytes:
    """If all `compares` hold do all `operations`, at one revision; else nothing. A key at most once in `operations`."""
    return _pack((TRANSACTION, session, sequence, low_water, compares, operations))


def compare_revision(key: str, revision: int) -> Command:
    """For `transaction`: `key` is at `revision`, or there is none if that is ABSENT."""
    return (COMPARE_REVISION, key, revision)


def compare_hold(name: str, session: int, request: int, token: int) -> Command:
    """For `transaction`: request `request` of `session`, anybody's, holds the lock `name` with just this token."""
    return (COMPARE_HOLD, name, session, request, token)


def put_operation(key: str, value: bytes, ephemeral: bool = False, ttl: int = 0) -> Command:
    """For `transaction`: as `put`."""
    return (PUT, key, value, ephemeral, ttl)


def delete_operation(key: str) -> Command:
    """For `transaction`: as `delete`."""
    return (DELETE, key)


def acquire(
    session: int,
    sequence: int,
    low_water: int,
    name: str,
    shared: bool = False,
    permits: int = 1,
    priority: int = 0,
    wait: bool = True,
    delay: int = 0,
    reclaim: bool = False,
    value: bytes = b"",
) -> bytes:
    """Ask for the lock `name`; `sequence` is the request's number from then on.

    Up to `permits` may hold it at a time, and all who ask must say the same; `shared` (with 1 permit) holds it together
    with others who share. Higher priorities are served first. Without `wait` it is granted at once or not at all. If
    the session is lost while it holds, the lock stays closed for `delay`; with `reclaim`, not to its own owner, who is
    served before all who wait. `value` is for others to see.
    """
    return _pack((ACQUIRE, session, sequence, low_water, name, shared, permits, priority, wait, delay, reclaim, value))


def release(
    session: int, sequence: int, low_water: int, name: str, request: int, token: int, successor: str = ""
) -> bytes:
    """Give up the hold that `request` of this session has on `name` with this token. The first waiter of the owner
    `successor` goes to the head of the queue before the next is served."""
    return _pack((RELEASE, session, sequence, low_water, name, request, token, successor))


def cancel(session: int, sequence: int, low_water: int, name: str, request: int) -> bytes:
    """Make an end of `request` of this session for `name`, whether it waits, holds, or is still to come."""
    return _pack((CANCEL, session, sequence, low_water, name, request))


def set_value(session: int, sequence: int, low_water: int, name: str, request: int, token: int, value: bytes) -> bytes:
    """Change what others see of the hold that `request` of this session has on `name` with this token."""
    return _pack((SET_VALUE, session, sequence, low_water, name, request, token, value))


def downgrade(session: int, sequence: int, low_water: int, name: str, request: int, token: int) -> bytes:
    """Share the hold that `request` of this session has on `name` alone with this token. The answer has a new one."""
    return _pack((DOWNGRADE, session, sequence, low_water, name, request, token))


def check_key(key: object) -> None:
    """Raise TypeError or ValueError, with the reason, for what cannot be a config key."""
    if not isinstance(key, str):
        raise TypeError(f"a config key is a str, not {type(key).__name__}")
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"config key has a lone surrogate at {error.start}; it cannot be stored as UTF-8") from error
    if not 0 < length <= KEY_BYTES_MAX:
        raise ValueError(f"config key of {length} bytes in UTF-8; it must have 1 to {KEY_BYTES_MAX}")


def _pack(command: Command) -> bytes:
    packed: bytes = msgpack.packb(command)
    return packed


# ---------------------------------------------------------------------------------------------------------------------
# Read by members.


def decode(payload: bytes) -> Command:
    """Return the command in `payload`, every field checked; BadCommand for all other bytes, nothing else."""
    command = _unpack(payload)
    check = _CHECKS.get(command[0])
    if check is None:
        raise BadCommand(f"no operation has the number {command[0]}")
    check(command)
    return command


def sender(payload: bytes) -> tuple[int, int] | None:
    """Who waits for the answer to a command that `decode` refused, as (session, sequence); None if it does not say."""
    try:
        command = _unpack(payload)
        if command[0] == OPEN_SESSION and len(command) > 1:
            _need(_is_session(command[1]), "session")
            return command[1], 0
        if command[0] >= CLOSE_SESSION and len(command) > 2:
            _need(_is_session(command[1]) and _is_number(command[2], 1), "session and sequence")
            return command[1], command[2]
    except BadCommand:
        pass
    return None


def _unpack(payload: bytes) -> Command:
    if len(payload) > COMMAND_BYTES_MAX:
        raise BadCommand(f"{len(payload)} bytes, more than any command has")
    try:
        # Tuples, because an empty one costs no memory: bytes cannot blow up into thousands of lists.
        command = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadCommand(f"not msgpack: {error}") from error
    if type(command) is not tuple or not command or type(command[0]) is not int:
        raise BadCommand("not an array that starts with an operation number")
    return command


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise BadCommand(f"bad {what}")


def _is_number(field: object, low: int, high: int = SIGNED_MAX) -> bool:
    return type(field) is int and low <= field <= high


def _is_session(field: object) -> bool:
    return type(field) is int and 1 <= field <= UNSIGNED_MAX


def is_text(field: object, most: int) -> bool:
    """Tell whether this, decoded by msgpack and so without lone surrogates, is a str of 1 to `most` bytes of UTF-8."""
    return type(field) is str and 0 < len(field) <= most and (field.isascii() or len(field.encode()) <= most)


def _check_sender(command: Command, length: int) -> None:
    if len(command) != length:
        raise BadCommand(f"{len(command)} fields instead of {length}")
    session, sequence, low_water = command[1], command[2], command[3]
    if not (
        type(session) is type(sequence) is type(low_water) is int
        and 0 < session <= UNSIGNED_MAX
        and 0 <= low_water < sequence <= SIGNED_MAX
        and sequence - low_water <= WINDOW
    ):
        raise BadCommand("bad session, sequence or low water")


def _check_put_fields(key: object, value: object, ephemeral: object, ttl: object) -> None:
    if not is_text(key, KEY_BYTES_MAX):
        raise BadCommand("bad key")
    if not (type(value) is bytes and type(ephemeral) is bool and type(ttl) is int and 0 <= ttl <= SIGNED_MAX):
        raise BadCommand("bad value, ephemeral flag or ttl")


def _check_open(command: Command) -> None:
    _need(len(command) == 7, "number of fields")
    _, session, owner, instance, ttl, replaces, gone = command
    _need(_is_session(session) and _is_number(instance, 0, UNSIGNED_MAX), "session or instance")
    _need(is_text(owner, OWNER_BYTES_MAX), "owner")
    _need(_is_number(ttl, 1) and _is_number(replaces, 0, UNSIGNED_MAX) and type(gone) is bool, "ttl, replaced or gone")


def _check_expire(command: Command) -> None:
    _need(len(command) == 3 and _is_session(command[1]) and _is_number(command[2], 0), "session or term")


def _check_tick(command: Command) -> None:
    _need(len(command) == 1, "number of fields")


def _check_limits(command: Command) -> None:
    _need(len(command) == 3 and _is_number(command[1], 0), "index")
    try:
        read_limits(command[2])
    except ValueError as error:
        raise BadCommand(str(error)) from error


def _check_report(command: Command) -> None:
    _need(len(command) == 4 and is_text(command[1], OWNER_BYTES_MAX), "owner")
    _need(_is_number(command[2], 1) and _is_number(command[3], 0, UNSIGNED_MAX), "index or state hash")


def _check_epoch(command: Command) -> None:
    _need(len(command) == 2 and _is_number(command[1], 1, EPOCH_MAX), "epoch")


def _check_close(command: Command) -> None:
    _check_sender(command, 4)


def _check_put(command: Command) -> None:
    _check_sender(command, 9)
    _, _, _, _, key, value, ephemeral, ttl, expected = command
    _check_put_fields(key, value, ephemeral, ttl)
    if type(expected) is not int or not ANY <= expected <= SIGNED_MAX:
        raise BadCommand("bad expected revision")


def _check_delete(command: Command) -> None:
    _check_sender(command, 6)
    _need(is_text(command[4], KEY_BYTES_MAX), "key")
    _need(_is_number(command[5], ANY), "expected revision")


def _check_transaction(command: Command) -> None:
    _check_sender(command, 6)
    compares, operations = command[4], command[5]
    _need(type(compares) is tuple and len(compares) <= COMPARES_MAX, "compares")
    _need(type(operations) is tuple and len(operations) <= OPERATIONS_MAX, "operations")
    for compare in compares:
        _check_compare(compare)
    keys = set()
    for operation in operations:
        _need(type(operation) is tuple and len(operation) >= 2 and type(operation[0]) is int, "operation")
        if operation[0] == PUT:
            _need(len(operation) == 5, "put")
            _check_put_fields(*operation[1:])
        else:
            _need(operation[0] == DELETE and len(operation) == 2 and is_text(operation[1], KEY_BYTES_MAX), "delete")
        keys.add(operation[1])
    _need(len(keys) == len(operations), "operations: one key twice")


def _check_compare(compare: object) -> None:
    if type(compare) is not tuple or len(compare) < 3 or type(compare[0]) is not int:
        raise BadCommand("bad compare")
    if compare[0] == COMPARE_REVISION:
        _need(len(compare) == 3 and is_text(compare[1], KEY_BYTES_MAX) and _is_number(compare[2], ABSENT), "compare")
    else:
        _need(compare[0] == COMPARE_HOLD and len(compare) == 5, "kind of compare")
        _need(is_text(compare[1], LOCK_NAME_BYTES_MAX) and _is_session(compare[2]), "lock or session of a hold")
        _need(_is_number(compare[3], 1) and _is_number(compare[4], 1), "request or token of a hold")


def _check_acquire(command: Command) -> None:
    _check_sender(command, 12)
    _, _, _, _, name, shared, permits, priority, wait, delay, reclaim, value = command
    if not is_text(name, LOCK_NAME_BYTES_MAX):
        raise BadCommand("bad lock name")
    if not (type(shared) is type(wait) is type(reclaim) is bool):
        raise BadCommand("bad flag of a lock request")
    if not (type(permits) is int and 1 <= permits <= (1 if shared else PERMITS_MAX)):
        raise BadCommand("bad permits")
    if not (type(priority) is type(delay) is int and -PRIORITY_MAX <= priority <= PRIORITY_MAX):
        raise BadCommand("bad priority or delay")
    if not (0 <= delay <= LOCK_DELAY_MAX and is_lock_value(value)):
        raise BadCommand("bad delay or lock value")


def is_lock_value(field: object) -> bool:
    """Tell whether this can be the value of a hold."""
    return type(field) is bytes and len(field) <= LOCK_VALUE_BYTES_MAX


def _check_hold(command: Command, length: int) -> None:
    """Its first fields say whose hold, of what, with which token."""
    _check_sender(command, length)
    _need(is_text(command[4], LOCK_NAME_BYTES_MAX), "lock name")
    _need(_is_number(command[5], 1) and _is_number(command[6], 1), "request or token")


def _check_release(command: Command) -> None:
    _check_hold(command, 8)
    successor = command[7]
    _need(type(successor) is str and (not successor or is_text(successor, OWNER_BYTES_MAX)), "successor")


def _check_cancel(command: Command) -> None:
    _check_sender(command, 6)
    _need(is_text(command[4], LOCK_NAME_BYTES_MAX) and _is_number(command[5], 1), "lock name or request")


def _check_set_value(command: Command) -> None:
    _check_hold(command, 8)
    _need(is_lock_value(command[7]), "lock value")


def _check_downgrade(command: Command) -> None:
    _check_hold(command, 7)


_CHECKS: dict[int, Callable[[Command], None]] = {
    OPEN_SESSION: _check_open,
    EXPIRE_SESSION: _check_expire,
    TICK: _check_tick,
    SET_LIMITS: _check_limits,
    REPORT_HASH: _check_report,
    SET_EPOCH: _check_epoch,
    CLOSE_SESSION: _check_close,
    PUT: _check_put,
    DELETE: _check_delete,
    TRANSACTION: _check_transaction,
    ACQUIRE: _check_acquire,
    RELEASE: _check_release,
    CANCEL: _check_cancel,
    SET_VALUE: _check_set_value,
    DOWNGRADE: _check_downgrade,
}
