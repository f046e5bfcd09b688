"""The replicated state as bytes, and back.

Layout: the magic, a format version byte, then frames: length 4 (little endian) | msgpack array of rows. The rows are::

    header       applied index, time, limits, limits index, config revision, epoch, state hash, and how many there
                 are of
    sessions     id, owner, instance, ttl, opened, low water          by id
    replies      session, sequence, reply                             by session and sequence
    ended        session, index                                       by index
    records      key, value, revision, created, version, session, expires at      by key
    locks        name, permits                                        by name
    delays       lock, slot, not before, not before for shared requests, owner that was lost      by lock and slot
    holds        lock, session, request, shared, slot, token, delay, value, granted at, granted
                 by lock, then as they were granted
    waiting      lock, session, request, shared, priority, delay, value, asked at, asked
                 by lock, then as they will be granted

The order is fixed and the history of changes is left out, so members that cut at one index make equal bytes, whatever
each went through. Reading believes nothing: it checks every field and then the state hash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from coord.machine import commands, limits
from coord.machine.cluster_clock import TIME_MAX
from coord.machine.config_store import ConfigStore
from coord.machine.digests import record_digest, state_digest
from coord.machine.lock_table import EPOCH_SHIFT, Delay, Hold, LockTable, Waiting
from coord.machine.records import Row
from coord.machine.replies import is_reply
from coord.machine.sessions import ENDED_MAX, Session, SessionTable

MAGIC = b"coord state"
FORMAT_VERSION = 2
#: Bytes in a chunk, about: small enough that encoding one does not hold up the host's other threads.
CHUNK_BYTES = 256 << 10
#: No longer frame is believed: a chunk, and a row that did not quite fit, with the largest value in it.
_FRAME_BYTES_MAX = CHUNK_BYTES + (1 << 20) + (16 << 10)

_LENGTH = struct.Struct("<I")
_Row = tuple[Any, ...]


class DamagedState(ValueError):
    """These bytes are not a whole, undamaged snapshot of the replicated state; the text says why."""


@dataclass(slots=True)
class State:
    """The whole replicated state, as a restore builds it."""

    index: int
    time: int
    limits: limits.Limits
    limits_index: int
    sessions: SessionTable
    store: ConfigStore
    locks: LockTable

    def digest(self) -> int:
        """The 64-bit hash of all of it."""
        row = (
            self.index,
            self.time,
            self.limits.row(),
            self.limits_index,
            self.store.revision,
            self.sessions.digest(),
            self.store.digest(),
            self.locks.epoch,
            self.locks.digest(),
        )
        return state_digest(row)


class Cut:
    """The state as it was at one index. Later commands do not change it; any one thread may encode it."""

    __slots__ = ("_ended", "_header", "_keys", "_locks", "_rows", "_sessions", "index", "state_hash", "time")

    def __init__(self, state: State) -> None:
        self.index = state.index
        self.time = state.time
        self.state_hash = state.digest()
        revision, self._rows = state.store.view()
        self._keys = state.store.candidates()
        live = state.sessions.live
        self._sessions = [(session.row(), session.replies.copy()) for _, session in sorted(live.items())]
        self._ended = list(state.sessions.ended.items())
        self._locks = state.locks.copy()
        counts = (
            len(self._sessions),
            sum(len(replies) for _, replies in self._sessions),
            len(self._ended),
            len(self._rows),
            len(self._locks.locks),
            len(self._locks.delays),
            len(self._locks.holds),
            sum(map(len, self._locks.queues)),
        )
        self._header = (
            self.index,
            self.time,
            state.limits.row(),
            state.limits_index,
            revision,
            state.locks.epoch,
            self.state_hash,
            *counts,
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the snapshot's bytes, in pieces of about CHUNK_BYTES. May be called more than once."""
        yield MAGIC + bytes([FORMAT_VERSION])
        packer = msgpack.Packer()
        packed: list[bytes] = []
        size = 0
        for row in self._all_rows():
            packed.append(packer.pack(row))
            size += len(packed[-1])
            if size >= CHUNK_BYTES:
                yield _frame(packer.pack_array_header(len(packed)), packed)
                packed, size = [], 0
        if packed:
            yield _frame(packer.pack_array_header(len(packed)), packed)

    def _all_rows(self) -> Iterator[_Row]:
        yield self._header
        for row, _ in self._sessions:
            yield row
        for row, replies in self._sessions:
            for sequence, reply in sorted(replies.items()):
                yield row[0], sequence, reply
        yield from self._ended
        for key in self._keys:
            record = self._rows.get(key)
            if record is not None:
                yield key, *record[:6]
        yield from self._locks.rows()


def read_state(chunks: Iterable[bytes]) -> State:
    """Read what `Cut.chunks` made, cut anywhere; DamagedState for anything else. Long, for a large state, but it
    touches nothing else: any thread may do it."""
    rows = _rows_of(_Source(chunks))
    header = next(rows, None)
    _check(type(header) is tuple and len(header) == 15, "header")
    assert header is not None
    index, time, limits_row, limits_index, revision, epoch, state_hash, *counts = header
    _check(_is_number(index, 0) and _is_number(time, 0, TIME_MAX), "index or time")
    _check(_is_number(limits_index, 0, index) and _is_number(revision, 0, index), "limits index or revision")
    _check(_is_number(epoch, 0, commands.EPOCH_MAX), "epoch")
    _check(_is_number(state_hash, 0, commands.UNSIGNED_MAX) and all(_is_number(n, 0) for n in counts), "header")
    try:
        in_force = limits.read_limits(limits_row)
    except ValueError as error:
        raise DamagedState(f"bad limits: {error}") from error
    sessions = _read_sessions(rows, index, *counts[:3])
    records = _read_records(rows, revision, sessions.live, counts[3])
    locks = _read_locks(rows, index, time, epoch, sessions.live, counts[4:])
    if next(rows, None) is not None:
        raise DamagedState("it goes on after its end")
    state = State(index, time, in_force, limits_index, sessions, ConfigStore(revision, records), locks)
    if state.digest() != state_hash:
        raise DamagedState(f"its contents hash to {state.digest():#x}, its header says {state_hash:#x}")
    return state


def _frame(array_header: bytes, packed: list[bytes]) -> bytes:
    body = array_header + b"".join(packed)
    return _LENGTH.pack(len(body)) + body


class _Source:
    """Takes exact lengths from pieces of any length."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise DamagedState("it ends too early")
            self._buffer += chunk
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def at_end(self) -> bool:
        while not self._buffer:
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._buffer += chunk
        return False


def _rows_of(source: _Source) -> Iterator[Any]:
    """Yield each row of each frame."""
    head = source.take(len(MAGIC) + 1)
    if head[:-1] != MAGIC:
        raise DamagedState("it does not begin as one")
    if head[-1] != FORMAT_VERSION:
        raise DamagedState(f"format version {head[-1]}; this release reads {FORMAT_VERSION}")
    while not source.at_end():
        (length,) = _LENGTH.unpack(source.take(_LENGTH.size))
        if length > _FRAME_BYTES_MAX:
            raise DamagedState(f"a frame claims {length} bytes")
        frame = source.take(length)
        try:
            rows = msgpack.unpackb(frame, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise DamagedState(f"a frame is not msgpack: {error}") from error
        _check(type(rows) is tuple and len(rows) > 0, "frame")
        yield from rows


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise DamagedState(f"bad {what}")


def _is_number(field: object, low: int, high: int = commands.SIGNED_MAX) -> bool:
    return type(field) is int and low <= field <= high


def _take(rows: Iterator[Any], count: int, length: int, what: str) -> Iterator[_Row]:
    """Yield the next `count` rows, each a tuple of `length` fields."""
    for _ in range(count):
        row = next(rows, None)
        if type(row) is not tuple or len(row) != length:
            raise DamagedState(f"bad {what}, or none")
        yield row


def _read_sessions(rows: Iterator[Any], index: int, live: int, replies: int, ended: int) -> SessionTable:
    table = SessionTable()
    previous = 0
    for row in _take(rows, live, 6, "session"):
        id, owner, instance, ttl, opened, low_water = row
        _check(_is_number(id, previous + 1, commands.UNSIGNED_MAX), "session id")
        _check(commands.is_text(owner, commands.OWNER_BYTES_MAX) and owner not in table.owners, "session owner")
        _check(_is_number(instance, 0, commands.UNSIGNED_MAX) and _is_number(ttl, 1), "session")
        _check(_is_number(opened, 1, index) and _is_number(low_water, 0), "session")
        table.add(Session(id, owner, instance, ttl, opened, low_water))
        previous = id
    place = (0, 0)
    for id, sequence, reply in _take(rows, replies, 3, "reply"):
        _check(_is_number(id, 1, commands.UNSIGNED_MAX) and id in table.live and _is_number(sequence, 1), "reply")
        session = table.live[id]
        _check(place < (id, sequence) and session.low_water < sequence, "order of replies")
        _check(is_reply(reply) and len(session.replies) < commands.WINDOW, "reply")
        session.remember(sequence, reply)
        place = (id, sequence)
    _check(ended <= ENDED_MAX, "number of ended sessions")
    previous = 0
    for id, end in _take(rows, ended, 2, "ended session"):
        _check(
            _is_number(id, 1, commands.UNSIGNED_MAX) and id not in table.live and id not in table.ended, "ended session"
        )
        _check(_is_number(end, previous + 1, index), "ended session")
        table.remember_ended(id, end)
        previous = end
    return table


def _read_records(rows: Iterator[Any], newest: int, sessions: dict[int, Session], count: int) -> dict[str, Row]:
    records: dict[str, Row] = {}
    previous = ""
    for key, value, revision, created, version, session, expires_at in _take(rows, count, 7, "record"):
        _check(
            commands.is_text(key, commands.KEY_BYTES_MAX) and previous < key and type(value) is bytes, "key or value"
        )
        _check(_is_number(revision, 1, newest) and _is_number(created, 1, revision), "revision")
        _check(_is_number(version, 1, revision) and _is_number(expires_at, 0, TIME_MAX), "version or expiry")
        _check(_is_number(session, 0, commands.UNSIGNED_MAX), "session of a record")
        if session:
            _check(session in sessions, "session of a record")
            sessions[session].keys.add(key)
        digest = record_digest(key.encode(), value, revision, created, version, session, expires_at)
        records[key] = (value, revision, created, version, session, expires_at, digest)
        previous = key
    return records


@dataclass(slots=True)
class _Lock:
    """A lock, while its parts are read."""

    permits: int
    delays: dict[int, Delay]
    holders: list[Hold]
    queue: list[Waiting]


def _read_locks(
    rows: Iterator[Any], index: int, time: int, epoch: int, sessions: dict[int, Session], counts: list[int]
) -> LockTable:
    locks: dict[str, _Lock] = {}
    previous = ""
    for name, permits in _take(rows, counts[0], 2, "lock"):
        _check(commands.is_text(name, commands.LOCK_NAME_BYTES_MAX) and previous < name, "name of a lock")
        _check(_is_number(permits, 1, commands.PERMITS_MAX), "permits of a lock")
        locks[name] = _Lock(permits, {}, [], [])
        previous = name
    _read_delays(rows, counts[1], locks, time)
    _read_holds(rows, counts[2], locks, sessions, (index, time, epoch))
    _read_waiting(rows, counts[3], locks, sessions, (index, time))
    table = LockTable(epoch)
    for name, lock in locks.items():
        _check(bool(lock.delays or lock.holders or lock.queue), "lock that nobody needs")
        table.restore(name, lock.permits, lock.delays, lock.holders, lock.queue)
    return table


def _read_delays(rows: Iterator[Any], count: int, locks: dict[str, _Lock], time: int) -> None:
    place = ("", 0)
    for name, slot, not_before, not_before_shared, owner in _take(rows, count, 5, "delay"):
        lock = _find_lock(locks, name, place[0])
        _check(_is_number(slot, 0, lock.permits - 1), "slot of a delay")
        _check(place < (name, slot), "order of delays")
        _check(_is_number(not_before, 1, TIME_MAX) and _is_number(not_before_shared, 0, not_before), "delay")
        _check(not_before_shared == not_before or not_before_shared <= time, "delay")
        _check(owner == "" or commands.is_text(owner, commands.OWNER_BYTES_MAX), "owner of a delay")
        lock.delays[slot] = (not_before, not_before_shared, owner)
        place = (name, slot)


def _find_lock(locks: dict[str, _Lock], name: object, previous: str) -> _Lock:
    """The lock that a row is of, which must not be before that of the row before."""
    _check(type(name) is str and name in locks and previous <= name, "lock of a request or delay")
    assert isinstance(name, str)
    return locks[name]


def _read_request(session: object, request: object, name: str, sessions: dict[int, Session]) -> Session:
    """Note a request with its session, and return that."""
    _check(_is_number(session, 1, commands.UNSIGNED_MAX) and session in sessions, "session of a request")
    assert isinstance(session, int)
    found = sessions[session]
    _check(_is_number(request, 1) and request not in found.requests, "number of a request")
    assert isinstance(request, int)
    found.requests[request] = name
    return found


def _read_holds(
    rows: Iterator[Any], count: int, locks: dict[str, _Lock], sessions: dict[int, Session], now: tuple[int, int, int]
) -> None:
    index, time, epoch = now
    taken: dict[tuple[str, int], Hold] = {}
    previous = ""
    for row in _take(rows, count, 10, "hold"):
        name, id, request, shared, slot, token, delay, value, granted_at, granted = row
        lock = _find_lock(locks, name, previous)
        session = _read_request(id, request, name, sessions)
        _check(type(shared) is bool and (not shared or lock.permits == 1), "mode of a hold")
        _check(_is_number(slot, 0, lock.permits - 1), "slot of a hold")
        _check(_is_number(token, 1 << EPOCH_SHIFT, (epoch << EPOCH_SHIFT) + index), "token")
        _check(_is_number(delay, 0, commands.LOCK_DELAY_MAX) and commands.is_lock_value(value), "hold")
        _check(_is_number(granted_at, 0, time) and _is_number(granted, 1, index), "grant of a hold")
        hold = Hold(name, id, request, session.owner, shared, slot, token, delay, value, granted_at, granted)
        other = taken.setdefault((name, slot), hold)
        _check(other is hold or (shared and other.shared and token == other.token), "hold of a slot that is taken")
        lock.holders.append(hold)
        previous = name


def _read_waiting(
    rows: Iterator[Any], count: int, locks: dict[str, _Lock], sessions: dict[int, Session], now: tuple[int, int]
) -> None:
    index, time = now
    previous = ""
    for row in _take(rows, count, 9, "waiting request"):
        name, id, request, shared, priority, delay, value, asked_at, asked = row
        lock = _find_lock(locks, name, previous)
        session = _read_request(id, request, name, sessions)
        _check(type(shared) is bool and (not shared or lock.permits == 1), "mode of a request")
        _check(_is_number(priority, -commands.PRIORITY_MAX, commands.PRIORITY_MAX), "priority of a request")
        _check(_is_number(delay, 0, commands.LOCK_DELAY_MAX) and commands.is_lock_value(value), "waiting request")
        _check(_is_number(asked_at, 0, time) and _is_number(asked, 1, index), "age of a request")
        lock.queue.append(Waiting(name, id, request, session.owner, shared, priority, delay, value, asked_at, asked))
        previous = name
