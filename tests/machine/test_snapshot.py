"""Snapshots: whole or refused, equal on all members, and seen by watches as what changed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from coord.machine import commands
from coord.machine.limits import Limits
from coord.machine.machine import Machine
from coord.machine.sessions import ENDED, OPENED
from coord.machine.snapshot import CHUNK_BYTES, FORMAT_VERSION, MAGIC, Cut, DamagedState, read_state
from machine.histories import WIDE, Historian


def machine_with_a_past(seed: int = 3) -> Machine:
    """A random past, up to a moment with something in every table."""
    machine = Machine(WIDE)
    for entry in Historian(random.Random(seed)).entries(1000):
        machine.apply(entry.index, entry.term, entry.time, entry.payload)
        machine.take_lock_events()
        remembering = [session for session in machine.sessions.values() if len(session.replies) > 2]
        if entry.index > 150 and len(machine.store) > 3 and len(remembering) > 1 and machine.next_due() is not None:
            machine.take_changes()
            machine.take_session_events()
            return machine
    raise AssertionError("this seed never gets there")


def data_of(cut: Cut) -> bytes:
    return b"".join(cut.chunks())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def open_session(machine: Machine) -> None:
    machine.apply(machine.applied_index + 1, 1, 1, commands.open_session(7, "a", 1, 10))


def machine_with_locks() -> Machine:
    """Two locks: one held by two who share, under a delay, with a queue; and a semaphore with one slot under delay."""
    machine = Machine()

    def apply(payload: bytes) -> None:
        machine.apply(machine.applied_index + 1, 1, 100, payload)

    for session, owner in ((7, "a"), (8, "b"), (9, "c")):
        apply(commands.open_session(session, owner, 1, 10))
    apply(commands.set_epoch(3))
    apply(commands.acquire(9, 1, 0, "l", True, delay=50))
    apply(commands.acquire(8, 1, 0, "l", True, value=b"v"))
    apply(commands.acquire(7, 1, 0, "l", True, delay=4))
    apply(commands.acquire(7, 2, 0, "l", priority=-2, delay=5, value=b"w"))
    apply(commands.acquire(8, 2, 0, "l", True, priority=-3))
    apply(commands.acquire(9, 2, 0, "s", permits=3, delay=50))
    apply(commands.acquire(8, 3, 0, "s", permits=3))
    apply(commands.expire_session(9, 1))
    assert len(machine.locks.holders("l")) == len(machine.locks.queue("l")) == 2
    machine.take_session_events()
    return machine


def test_an_empty_machine_has_a_snapshot_too() -> None:
    machine = Machine()
    restored = Machine(WIDE)
    restored.restore(machine.cut().chunks())
    assert restored.state_hash == machine.state_hash
    assert restored.limits == Limits()
    assert restored.epoch == 0


def table_of(machine: Machine) -> dict[str, Any]:
    locks = machine.locks
    return {
        name: (locks.permits(name), locks.delayed(name), locks.holders(name), locks.queue(name))
        for name in locks.names()
    }


def test_locks_come_back_with_holders_waiters_delays_and_epoch() -> None:
    machine = machine_with_locks()
    restored = Machine()
    restored.restore(machine.cut().chunks())
    assert restored.epoch == 3
    assert restored.state_hash == machine.state_hash
    assert table_of(restored) == table_of(machine)
    assert list(table_of(machine)) == ["l", "s"]
    assert restored.next_due() == machine.next_due() == 150
    assert restored.locks.hold(8, 1) == machine.locks.hold(8, 1) is not None
    assert restored.locks.waiting(7, 2) == machine.locks.waiting(7, 2) is not None
    for session in (7, 8):
        assert restored.sessions[session].requests == machine.sessions[session].requests
    assert data_of(restored.cut()) == data_of(machine.cut())


def test_what_comes_after_a_snapshot_of_locks_is_the_same_with_and_without_it() -> None:
    machine = machine_with_locks()
    restored = Machine()
    restored.restore(machine.cut().chunks())
    token = machine.locks.holders("l")[0].token
    for time, payload in (
        (100, commands.release(7, 3, 0, "l", 1, token)),
        (100, commands.release(8, 4, 0, "l", 1, token)),
        (120, commands.open_session(10, "c", 1, 10)),
        (120, commands.acquire(10, 1, 0, "s", permits=3, reclaim=True)),
        (150, commands.tick()),
        (150, commands.expire_session(7, 1)),
        (160, commands.cancel(8, 5, 3, "s", 3)),
        (170, commands.tick()),
        (170, commands.close_session(8, 6, 3)),
        (170, commands.close_session(10, 2, 0)),
    ):
        before = machine.state_hash
        index = machine.applied_index + 1
        assert machine.apply(index, 1, time, payload) == restored.apply(index, 1, time, payload)
        assert restored.state_hash == machine.state_hash != before
        assert table_of(restored) == table_of(machine)
        assert data_of(restored.cut()) == data_of(machine.cut())
        assert restored.next_due() == machine.next_due()
    assert machine.locks.names() == []
    assert machine.locks.digest() == Machine().locks.digest() == 0


def test_the_difference_in_locks_is_told_as_events() -> None:
    machine = machine_with_locks()
    behind = Machine()
    behind.restore(machine.cut().chunks())
    granted = [(event.kind, event.name, event.session, event.request) for event in behind.take_lock_events()]
    assert granted == [("granted", "l", 7, 1), ("granted", "l", 8, 1), ("granted", "s", 8, 3)]
    token = machine.locks.holders("l")[0].token
    for payload in (
        commands.set_value(8, 4, 0, "l", 1, token, b"changed"),
        commands.cancel(8, 5, 0, "l", 2),
        commands.release(8, 6, 0, "s", 3, machine.locks.holders("s")[0].token),
        commands.acquire(8, 7, 0, "n"),
        commands.acquire(8, 8, 0, "n"),
    ):
        machine.apply(machine.applied_index + 1, 1, 100, payload)
    locks = behind.locks
    behind.restore(machine.cut().chunks())
    assert behind.locks is locks, "who reads the locks would read old ones for ever"
    told = [(event.kind, event.name, event.session, event.request) for event in behind.take_lock_events()]
    assert told == [("gone", "l", 8, 2), ("gone", "s", 8, 3), ("granted", "n", 8, 7), ("changed", "l", 8, 1)]
    assert behind.take_lock_events() == []


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_the_bytes_may_come_cut_anywhere(size: int) -> None:
    machine = machine_with_a_past()
    data = data_of(machine.cut())
    restored = Machine()
    restored.restore(pieces(data, size))
    assert restored.state_hash == machine.state_hash
    assert data_of(restored.cut()) == data


def test_a_large_state_comes_in_many_chunks_none_much_too_long() -> None:
    machine = Machine(WIDE)
    open_session(machine)
    for number in range(1, 400):
        payload = commands.put(7, number, number - 1, f"k{number}", bytes(number * 20))
        machine.apply(machine.applied_index + 1, 1, 1, payload)
    payload = commands.put(7, 400, 399, "large", bytes(1 << 20))
    machine.apply(machine.applied_index + 1, 1, 1, payload)
    cut = machine.cut()
    chunks = list(cut.chunks())
    assert len(chunks) > 6
    assert all(len(chunk) < CHUNK_BYTES + (1 << 20) + 1000 for chunk in chunks)
    assert list(cut.chunks()) == chunks
    restored = Machine()
    restored.restore(chunks)
    assert restored.state_hash == machine.state_hash


@pytest.mark.parametrize("make", [machine_with_a_past, machine_with_locks])
def test_every_truncation_is_noticed(make: Callable[[], Machine]) -> None:
    data = data_of(make().cut())
    for length in range(len(data)):
        with pytest.raises(DamagedState):
            read_state([data[:length]])


@pytest.mark.parametrize("make", [machine_with_a_past, machine_with_locks])
def test_every_changed_byte_is_noticed_and_leaves_the_old_state(make: Callable[[], Machine]) -> None:
    data = data_of(make().cut())
    machine = Machine()
    open_session(machine)
    machine.apply(2, 1, 1, commands.put(7, 1, 0, "k", b"v"))
    machine.apply(3, 1, 1, commands.set_epoch(1))
    machine.apply(4, 1, 1, commands.acquire(7, 2, 0, "l"))
    machine.take_changes()
    machine.take_session_events()
    machine.take_lock_events()
    before = machine.state_hash
    rng = random.Random(4)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        with pytest.raises(DamagedState):
            machine.restore(pieces(bytes(damaged), 500))
    assert machine.state_hash == before
    assert machine.take_changes() == []
    assert machine.take_session_events() == []
    assert machine.take_lock_events() == []
    assert machine.locks.hold(7, 2) is not None
    assert machine.changes_since(0) is not None


def framed(*rows: Any, magic: bytes = MAGIC, version: int = FORMAT_VERSION) -> bytes:
    body: bytes = msgpack.packb(rows)
    return magic + bytes([version]) + struct.pack("<I", len(body)) + body


def rows_of(machine: Machine) -> list[Any]:
    """The rows of a small snapshot: header, one session, one reply, one record."""
    data = data_of(machine.cut())
    rows: list[Any] = msgpack.unpackb(data[len(MAGIC) + 5 :])
    return rows


@pytest.fixture
def small() -> list[Any]:
    machine = Machine()
    open_session(machine)
    machine.apply(2, 1, 5, commands.put(7, 1, 0, "k", b"v", True, 10))
    rows = rows_of(machine)
    assert read_state([framed(*rows)]).digest() == machine.state_hash
    assert len(rows) == 4
    return rows


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (0, 0, -1),
        (0, 0, 1),
        (0, 1, 1 << 63),
        (0, 2, [1]),
        (0, 2, None),
        (0, 3, 5),
        (0, 4, 3),
        (0, 5, -1),
        (0, 5, 1),
        (0, 5, 1 << 24),
        (0, 5, "1"),
        (0, 6, 0),
        (0, 6, "hash"),
        (0, 7, 0),
        (0, 7, 2),
        (0, 7, 1 << 62),
        (0, 10, -1),
        (0, 11, 1),
        (0, 14, -1),
        (1, 0, 0),
        (1, 0, 8),
        (1, 1, ""),
        (1, 2, -1),
        (1, 3, 0),
        (1, 4, 3),
        (1, 5, 1),
        (1, 5, True),
        (2, 0, 8),
        (2, 0, {}),
        (2, 1, 0),
        (2, 2, []),
        (2, 2, [99]),
        (2, 2, [0, []]),
        (2, 2, [4]),
        (2, 2, [4, "k", [1, 2, 3, 4, 5, 6]]),
        (2, 2, [4, b"k", None]),
        (3, 0, ""),
        (3, 0, b"k"),
        (3, 1, "v"),
        (3, 2, 3),
        (3, 3, 0),
        (3, 4, 0),
        (3, 5, 9),
        (3, 5, 0),
        (3, 6, -1),
        (3, 6, 16),
    ],
)
def test_every_field_is_checked(small: list[Any], row: int, field: int, value: Any) -> None:
    small[row][field] = value
    with pytest.raises(DamagedState):
        read_state([framed(*small)])


#: Rows of the snapshot of `machine_with_locks`, found by what they are.
L, S = "l", "s"
LOCK_L, LOCK_S, DELAY_L, DELAY_S, HOLD_8, HOLD_7, HOLD_S, WAIT_7, WAIT_8 = range(-9, 0)
DAMAGE: list[tuple[int, int, Any]] = [
    (LOCK_L, 0, ""),
    (LOCK_L, 0, "t"),
    (LOCK_L, 0, "s"),
    (LOCK_L, 0, b"l"),
    (LOCK_L, 0, "k" * 256),
    (LOCK_L, 1, 0),
    (LOCK_L, 1, 2),
    (LOCK_L, 1, True),
    (LOCK_S, 1, 1001),
    (LOCK_S, 1, 1),
    (DELAY_L, 0, "other"),
    (DELAY_L, 0, "s"),
    (DELAY_L, 0, 5),
    (DELAY_L, 1, 1),
    (DELAY_L, 1, -1),
    (DELAY_L, 2, 0),
    (DELAY_L, 2, 1 << 63),
    (DELAY_L, 3, -1),
    (DELAY_L, 3, 149),
    (DELAY_L, 3, 151),
    (DELAY_L, 4, "x" * 256),
    (DELAY_L, 4, None),
    (DELAY_S, 0, "l"),
    (DELAY_S, 1, 3),
    (DELAY_S, 3, 149),
    (HOLD_8, 0, "s"),
    (HOLD_8, 0, "other"),
    (HOLD_8, 0, None),
    (HOLD_8, 1, 9),
    (HOLD_8, 1, "8"),
    (HOLD_8, 1, 7),
    (HOLD_8, 2, 0),
    (HOLD_8, 2, 3),
    (HOLD_8, 2, True),
    (HOLD_8, 3, False),
    (HOLD_8, 3, 1),
    (HOLD_8, 4, 1),
    (HOLD_8, 4, -1),
    (HOLD_8, 5, 1),
    (HOLD_8, 5, (1 << 39) - 1),
    (HOLD_8, 5, (3 << 39) + 13),
    (HOLD_8, 5, (3 << 39) + 6),
    (HOLD_8, 6, -1),
    (HOLD_8, 6, commands.LOCK_DELAY_MAX + 1),
    (HOLD_8, 7, "v"),
    (HOLD_8, 7, bytes(4097)),
    (HOLD_8, 8, -1),
    (HOLD_8, 8, 101),
    (HOLD_8, 9, 0),
    (HOLD_8, 9, 13),
    (HOLD_7, 3, False),
    (HOLD_7, 5, (3 << 39) + 7),
    (HOLD_S, 0, "l"),
    (HOLD_S, 2, 2),
    (HOLD_S, 3, True),
    (HOLD_S, 4, 3),
    (WAIT_7, 0, "t"),
    (WAIT_7, 0, "s"),
    (WAIT_7, 1, 9),
    (WAIT_7, 1, 0),
    (WAIT_7, 2, 1),
    (WAIT_7, 2, 0),
    (WAIT_7, 2, 1 << 63),
    (WAIT_7, 3, 0),
    (WAIT_7, 4, 1001),
    (WAIT_7, 4, -1001),
    (WAIT_7, 4, False),
    (WAIT_7, 5, -1),
    (WAIT_7, 5, 1.0),
    (WAIT_7, 6, None),
    (WAIT_7, 6, bytes(4097)),
    (WAIT_7, 7, 101),
    (WAIT_7, 7, -1),
    (WAIT_7, 8, 0),
    (WAIT_7, 8, 13),
    (WAIT_8, 2, 1),
    (WAIT_8, 2, 3),
]


@pytest.mark.parametrize(("row", "field", "value"), DAMAGE)
def test_every_field_of_a_lock_is_checked_before_the_hash(row: int, field: int, value: Any) -> None:
    rows = rows_of(machine_with_locks())
    rows[row][field] = value
    with pytest.raises(DamagedState) as caught:
        read_state([framed(*rows)])
    assert "hash" not in str(caught.value), "only the hash noticed"


def test_locks_and_delays_out_of_order_or_that_nobody_needs_are_refused() -> None:
    rows = rows_of(machine_with_locks())
    assert [rows[place][0] for place in range(-9, 0)] == [L, S, L, S, L, L, S, L, L]
    assert read_state([framed(*rows)]).locks.names() == [L, S]
    for one, other in ((LOCK_L, LOCK_S), (DELAY_L, DELAY_S), (HOLD_7, HOLD_S)):
        wrong = list(rows)
        wrong[one], wrong[other] = wrong[other], wrong[one]
        with pytest.raises(DamagedState, match="bad"):
            read_state([framed(*wrong)])
    # Who waits in another order is no damage by itself, but not what was hashed.
    wrong = list(rows)
    wrong[WAIT_7], wrong[WAIT_8] = wrong[WAIT_8], wrong[WAIT_7]
    with pytest.raises(DamagedState, match="its contents hash to"):
        read_state([framed(*wrong)])
    header = [*rows[0]]
    header[11] += 1
    unneeded = [header, *rows[1:LOCK_L], rows[LOCK_L], ["m", 1], *rows[LOCK_S:]]
    with pytest.raises(DamagedState, match="lock that nobody needs"):
        read_state([framed(*unneeded)])


def test_rows_too_many_too_few_or_of_the_wrong_shape(small: list[Any]) -> None:
    header, session, reply, record = small
    bad: list[list[Any]] = [
        [],
        [header],
        [header, session, reply],
        [header, session, record, reply],
        [*small, record],
        [header, session, reply, 5],
        [header, session, reply, [*record, 1]],
        [5, session, reply, record],
        [{}],
    ]
    for rows in bad:
        with pytest.raises(DamagedState):
            read_state([framed(*rows)])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "too early"),
        (b"x" * 100, "does not begin as one"),
        (framed([1], version=FORMAT_VERSION + 1), "format version 3; this release reads 2"),
        (MAGIC + bytes([FORMAT_VERSION]) + b"\xff\xff\xff\xff", "claims 4294967295 bytes"),
        (MAGIC + bytes([FORMAT_VERSION]) + b"\x01\x00\x00\x00\xc1", "not msgpack"),
        (MAGIC + bytes([FORMAT_VERSION]) + b"\x01\x00\x00\x00\x05", "bad frame"),
        (MAGIC + bytes([FORMAT_VERSION]), "bad header"),
    ],
)
def test_the_text_says_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(DamagedState, match=text):
        read_state([data])


def test_a_hash_that_does_not_fit_is_refused(small: list[Any]) -> None:
    small[3][1] = b"w"
    with pytest.raises(DamagedState, match="its contents hash to 0x"):
        read_state([framed(*small)])


def test_a_cut_does_not_change_with_the_machine() -> None:
    machine = machine_with_a_past()
    cut = machine.cut()
    data = data_of(machine.cut())
    for key in list(machine.store.view()[1]):
        session = max(machine.sessions)
        low = machine.sessions[session].low_water
        sequence = max([low, *machine.sessions[session].replies]) + 1
        payload = commands.delete(session, sequence, low, key)
        machine.apply(machine.applied_index + 1, 1, 1, payload)
        machine.apply(machine.applied_index + 1, 1, 1, commands.put(session, sequence + 1, low, f"new {key}", b""))
    for session in list(machine.sessions):
        machine.apply(machine.applied_index + 1, 1, 1, commands.expire_session(session, 1))
    assert data_of(cut) == data


def test_watches_are_told_the_difference_and_nobody_goes_back() -> None:
    def fed(changed: bool) -> Machine:
        machine = Machine()
        open_session(machine)
        writes: list[tuple[str, bytes | None]] = [("same", b"1"), ("gone", b"1"), ("changed", b"1"), ("again", b"1")]
        if changed:
            writes += [
                ("gone", None),
                ("changed", b"2"),
                ("again", None),
                ("again", b"1"),
                ("born", b"1"),
                ("brief", b""),
                ("brief", None),
            ]
        for sequence, (key, value) in enumerate(writes, 1):
            sender = (7, sequence, sequence - 1)
            payload = commands.delete(*sender, key) if value is None else commands.put(*sender, key, value)
            machine.apply(machine.applied_index + 1, 1, 1, payload)
        return machine

    newer = fed(True)
    newer.apply(newer.applied_index + 1, 1, 1, commands.open_session(8, "b", 1, 10))
    newer.apply(newer.applied_index + 1, 1, 1, commands.close_session(7, 50, 49))
    behind = fed(False)
    last_seen = behind.store.revision
    assert len(behind.take_changes()) == 4
    assert behind.take_session_events() == [(7, OPENED)]
    behind.restore(newer.cut().chunks())
    changes = behind.take_changes()
    assert [(c.kind, c.key, c.revision, c.resync) for c in changes] == [
        ("put", "changed", 7, True),
        ("put", "again", 9, True),
        ("put", "born", 10, True),
        ("delete", "gone", 12, True),
    ]
    assert all(change.revision > last_seen for change in changes)
    assert behind.store.revision == 12
    assert behind.take_session_events() == [(7, ENDED), (8, OPENED)]
    # What a watch had seen before is no longer known to be complete; from here on everything is.
    assert behind.changes_since(last_seen) is None
    assert behind.changes_since(12) == []
    # Changes not yet taken come before the difference.
    late = fed(False)
    late.restore(newer.cut().chunks())
    assert [c.resync for c in late.take_changes()] == [False] * 4 + [True] * 4


def test_an_older_state_is_refused() -> None:
    machine = machine_with_a_past()
    cut = machine.cut()
    machine.skip(machine.applied_index + 1, 0)
    before = machine.state_hash
    with pytest.raises(ValueError, match="is older than the state"):
        machine.restore(cut.chunks())
    assert machine.state_hash == before


def test_a_member_that_had_gone_astray_is_put_right_and_its_watches_do_not_go_back() -> None:
    right, astray = Machine(), Machine()
    for machine, value in ((right, b"right"), (astray, b"wrong")):
        open_session(machine)
        machine.apply(2, 1, 1, commands.put(7, 1, 0, "k", value))
    astray.apply(3, 1, 1, commands.put(7, 2, 0, "only here", b""))
    right.skip(3, 1)
    assert astray.state_hash != right.state_hash
    astray.take_changes()
    astray.restore(right.cut().chunks())
    changes = astray.take_changes()
    assert [(c.kind, c.key, c.revision) for c in changes] == [("put", "k", 3), ("delete", "only here", 3)]
    assert astray.state_hash == right.state_hash


def test_readers_keep_their_store_through_a_restore() -> None:
    machine = Machine()
    store = machine.store
    other = machine_with_a_past()
    machine.restore(other.cut().chunks())
    assert machine.store is store
    assert store.view() == other.store.view()
    assert store.range() == other.store.range()
    assert store.state_bytes == other.store.state_bytes
    assert len(store) == len(other.store)
