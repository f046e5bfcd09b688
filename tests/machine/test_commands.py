"""Commands made, read and refused: any bytes at all may be in the log."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.machine import commands, replies
from coord.machine.commands import (
    ABSENT,
    ANY,
    COMMAND_BYTES_MAX,
    EPOCH_MAX,
    LOCK_DELAY_MAX,
    SIGNED_MAX,
    UNSIGNED_MAX,
    WINDOW,
    BadCommand,
)
from coord.machine.limits import Limits
from coord.machine.machine import Machine

GOOD: list[bytes] = [
    commands.open_session(UNSIGNED_MAX, "owner", 0, SIGNED_MAX, UNSIGNED_MAX),
    commands.open_session(1, "owner", 0, SIGNED_MAX, 0, True),
    commands.expire_session(1, 0),
    commands.tick(),
    commands.set_limits(Limits(), 0),
    commands.set_epoch(1),
    commands.set_epoch(EPOCH_MAX),
    commands.close_session(7, WINDOW, 0),
    commands.put(7, 5, 4, "k" * 512, b"", True, SIGNED_MAX, SIGNED_MAX),
    commands.put(7, SIGNED_MAX, SIGNED_MAX - 1, "é" * 256, b"v" * 100),
    commands.delete(7, 6, 0, "k", ABSENT),
    commands.transaction(7, 8, 0, [], []),
    commands.transaction(
        7,
        9,
        0,
        [commands.compare_revision("a", 1)],
        [commands.put_operation("a", b"1"), commands.delete_operation("b")],
    ),
    commands.transaction(
        7,
        10,
        0,
        [commands.compare_hold("é" * 127, UNSIGNED_MAX, SIGNED_MAX, SIGNED_MAX)],
        [commands.delete_operation("b")],
    ),
    commands.acquire(7, 11, 10, "l"),
    commands.acquire(7, 12, 0, "é" * 127, True, 1, -1000, False, LOCK_DELAY_MAX, True, bytes(4096)),
    commands.acquire(7, 13, 0, "l" * 255, False, 1000, 1000, True, 0, False, b""),
    commands.release(7, 14, 0, "l", 11, 1),
    commands.release(7, 15, 0, "l" * 255, SIGNED_MAX, SIGNED_MAX, "é" * 127),
    commands.cancel(7, 16, 0, "l", 11),
    commands.set_value(7, 17, 0, "l", 11, 1, bytes(4096)),
    commands.downgrade(7, 18, 0, "l", 11, 1),
]


@pytest.mark.parametrize("payload", GOOD)
def test_what_is_made_is_read(payload: bytes) -> None:
    command = commands.decode(payload)
    assert msgpack.packb(command) == payload


HEAD = [commands.PUT, 7, 5, 4]
#: Right as it is; the tests put one wrong field into each.
ACQUIRE = [commands.ACQUIRE, 7, 5, 4, "l", False, 1, 0, True, 0, False, b""]
RELEASE = [commands.RELEASE, 7, 5, 4, "l", 1, 1, ""]
CANCEL = [commands.CANCEL, 7, 5, 4, "l", 1]
SET_VALUE = [commands.SET_VALUE, 7, 5, 4, "l", 1, 1, b""]
DOWNGRADE = [commands.DOWNGRADE, 7, 5, 4, "l", 1, 1]
COMPARE_HOLD = [commands.COMPARE_HOLD, "l", 7, 1, 1]


def changed(command: list[Any], place: int, *fields: Any) -> list[Any]:
    """`command` with other fields from `place` on."""
    return [*command[:place], *fields, *command[place + len(fields) :]]


#: What is wrong with the name of a lock, of any kind.
BAD_NAMES: list[Any] = ["", "l" * 256, "é" * 128, b"l", None, 5, ["l"]]
BAD_NUMBERS: list[Any] = [0, -1, SIGNED_MAX + 1, True, 1.0, None, "1", [1]]
BAD_LOCK_COMMANDS: list[list[Any]] = [
    *(changed(command, 4, name) for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE) for name in BAD_NAMES),
    *(changed(command, 5, number) for command in (RELEASE, CANCEL, SET_VALUE, DOWNGRADE) for number in BAD_NUMBERS),
    *(changed(command, 6, number) for command in (RELEASE, SET_VALUE, DOWNGRADE) for number in BAD_NUMBERS),
    *(command[:-1] for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE)),
    *([*command, 1] for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE)),
    *(changed(command, 1, 0) for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE)),
    *(changed(command, 2, WINDOW + 5) for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE)),
    *(changed(ACQUIRE, place, flag) for place in (5, 8, 10) for flag in (0, 1, None, "", b"")),
    *(changed(ACQUIRE, 6, permits) for permits in (0, -1, 1001, 1.0, True, None)),
    changed(ACQUIRE, 5, True, 2),
    *(changed(ACQUIRE, 7, priority) for priority in (-1001, 1001, 0.0, False, None)),
    *(changed(ACQUIRE, 9, delay) for delay in (-1, LOCK_DELAY_MAX + 1, 0.0, False, None)),
    *(changed(ACQUIRE, 11, value) for value in ("", None, bytes(4097), 0)),
    *(changed(SET_VALUE, 7, value) for value in ("", None, bytes(4097), 0)),
    *(changed(RELEASE, 7, successor) for successor in (b"", None, "o" * 256, "é" * 128, 0)),
    *([commands.SET_EPOCH, epoch] for epoch in (0, -1, EPOCH_MAX + 1, True, 1.0, None, "1")),
    [commands.SET_EPOCH],
    [commands.SET_EPOCH, 1, 1],
    *(
        [commands.TRANSACTION, 7, 5, 4, [compare], []]
        for compare in (
            *(changed(COMPARE_HOLD, 1, name) for name in BAD_NAMES),
            *(changed(COMPARE_HOLD, 2, session) for session in (0, -1, True, 1.0, None, "7")),
            *(changed(COMPARE_HOLD, place, number) for place in (3, 4) for number in BAD_NUMBERS),
            *(changed(COMPARE_HOLD, 0, kind) for kind in (0, 1, 3, True, None, [2])),
            COMPARE_HOLD[:-1],
            [*COMPARE_HOLD, 1],
            COMPARE_HOLD[:2],
            {},
        )
    ),
]

BAD: list[Any] = [
    None,
    5,
    {},
    [],
    ["put"],
    [True, 7, "a", 1, 10, True],
    [1.0],
    [0],
    [-1],
    [UNSIGNED_MAX],
    [35, 7, 5, 4],
    [48, 7, 5, 4],
    [53, 7, 5, 4, "l", 1, 1],
    [79, 7, 5, 4],
    [commands.TICK, 1],
    [commands.EXPIRE_SESSION, 0, 1],
    [commands.EXPIRE_SESSION, 1, True],
    [commands.EXPIRE_SESSION, 1],
    [commands.OPEN_SESSION, 0, "a", 1, 10, True, False],
    [commands.OPEN_SESSION, 7, "", 1, 10, True, False],
    [commands.OPEN_SESSION, 7, "é" * 128, 1, 10, True, False],
    [commands.OPEN_SESSION, 7, b"a", 1, 10, True, False],
    [commands.OPEN_SESSION, 7, "a", -1, 10, True, False],
    [commands.OPEN_SESSION, 7, "a", 1, 0, True, False],
    [commands.OPEN_SESSION, 7, "a", 1, 10, -1, False],
    [commands.OPEN_SESSION, 7, "a", 1, 10, True, 1],
    [commands.OPEN_SESSION, 7, "a", 1, 10, True, None],
    [commands.OPEN_SESSION, 7, "a", 1, 10, True],
    [commands.OPEN_SESSION, 7, "a", 1, 10, True, False, False],
    [commands.SET_LIMITS, 0, []],
    [commands.SET_LIMITS, 0, [1, 1, 1, 1, 1]],
    [commands.SET_LIMITS, 0, [1, 1, 1, 1, 1, 1, "1"]],
    [commands.SET_LIMITS, 0, [1, 1, 1, 1, 1, 0, 1]],
    [commands.SET_LIMITS, 0, [1, 1, 1, 1, 1, 1, 100_001]],
    [commands.SET_LIMITS, 0, [1 << 21, 1, 1, 1, 1, 1, 1]],
    [commands.SET_LIMITS, -1, list(Limits().row())],
    [commands.CLOSE_SESSION, 7, 0, 0],
    [commands.CLOSE_SESSION, 7, 5, 5],
    [commands.CLOSE_SESSION, 7, WINDOW + 1, 0],
    [commands.CLOSE_SESSION, 7, 5, -1],
    [commands.CLOSE_SESSION, True, 5, 4],
    [commands.CLOSE_SESSION, 7, SIGNED_MAX + 1, SIGNED_MAX],
    [*HEAD, "", b"", False, 0, ANY],
    [*HEAD, "k" * 513, b"", False, 0, ANY],
    [*HEAD, "é" * 257, b"", False, 0, ANY],
    [*HEAD, b"k", b"", False, 0, ANY],
    [*HEAD, "k", "v", False, 0, ANY],
    [*HEAD, "k", b"", 0, 0, ANY],
    [*HEAD, "k", b"", False, -1, ANY],
    [*HEAD, "k", b"", False, 1 << 63, ANY],
    [*HEAD, "k", b"", False, 0.0, ANY],
    [*HEAD, "k", b"", False, 0, -2],
    [*HEAD, "k", b"", False, 0, None],
    [*HEAD, "k", b"", False, 0],
    [commands.DELETE, 7, 5, 4, "k"],
    [commands.DELETE, 7, 5, 4, "", ANY],
    [commands.DELETE, 7, 5, 4, "k", True],
    [commands.TRANSACTION, 7, 5, 4, [], {}],
    [commands.TRANSACTION, 7, 5, 4, None, []],
    [commands.TRANSACTION, 7, 5, 4, [[2, "hold", 1]], []],
    [commands.TRANSACTION, 7, 5, 4, [[1, "k", -1]], []],
    [commands.TRANSACTION, 7, 5, 4, [[True, "k", 1]], []],
    [commands.TRANSACTION, 7, 5, 4, [[1, "k"]], []],
    [commands.TRANSACTION, 7, 5, 4, [5], []],
    [commands.TRANSACTION, 7, 5, 4, [[1, "k", 1]] * 129, []],
    [commands.TRANSACTION, 7, 5, 4, [], [[33, str(n)] for n in range(129)]],
    [commands.TRANSACTION, 7, 5, 4, [], [[33, "k"], [32, "k", b"", False, 0]]],
    [commands.TRANSACTION, 7, 5, 4, [], [[33, "k", 1]]],
    [commands.TRANSACTION, 7, 5, 4, [], [[32, "k", b"", False]]],
    [commands.TRANSACTION, 7, 5, 4, [], [[34, "k"]]],
    [commands.TRANSACTION, 7, 5, 4, [], [[]]],
    [commands.TRANSACTION, 7, 5, 4, [], ["ab"]],
    [commands.TRANSACTION, 7, 5, 4, [], [[[33], "k"]]],
]


def test_what_the_bad_lock_commands_are_made_of_is_good() -> None:
    for command in (ACQUIRE, RELEASE, CANCEL, SET_VALUE, DOWNGRADE):
        assert commands.decode(msgpack.packb(command))
    assert commands.decode(msgpack.packb([commands.TRANSACTION, 7, 5, 4, [COMPARE_HOLD], []]))


@pytest.mark.parametrize("command", BAD_LOCK_COMMANDS, ids=lambda command: repr(command)[:60])
def test_a_lock_command_with_one_thing_wrong_is_refused_and_answered(command: Any) -> None:
    with pytest.raises(BadCommand):
        commands.decode(msgpack.packb(command))
    machine = Machine()
    machine.apply(1, 1, 1, commands.open_session(7, "owner", 1, 10))
    machine.apply(2, 1, 1, commands.set_epoch(1))
    before = machine.locks.digest(), machine.store.digest(), machine.epoch
    outcome = machine.apply(3, 1, 1, msgpack.packb(command))
    if command[0] == commands.SET_EPOCH:
        assert outcome is None
    else:
        assert outcome is None or outcome[2][0] == replies.BAD_COMMAND
        assert (outcome is None) == (command[1] == 0), "who waits is told, if the command says who"
    assert (machine.locks.digest(), machine.store.digest(), machine.epoch) == before
    assert machine.take_lock_events() == []


@pytest.mark.parametrize("command", BAD, ids=lambda command: repr(command)[:60])
def test_what_is_no_command_is_refused(command: Any) -> None:
    with pytest.raises(BadCommand):
        commands.decode(msgpack.packb(command))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81" * 100_000,
        GOOD[2] + b"\x00",
        b"\x91\xd6\xff\x00\x00\x00\x01",
        b"\x91\xc7\x0c\xff" + b"\xff" * 12,
        b"\x91\xa1\xff",
        b"\x91\xa3\xed\xa0\x80",
        b"\x81\x90\x01",
        b"\x91\x81\xc4\x00\x01",
        b"\x90" * 10,
    ],
)
def test_hostile_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(BadCommand):
        commands.decode(payload)


def test_a_command_as_long_as_can_be_is_read_and_one_longer_is_not() -> None:
    frame = len(commands.put(7, 5, 4, "k", bytes(70_000))) - 70_000
    assert commands.decode(commands.put(7, 5, 4, "k", bytes(COMMAND_BYTES_MAX - frame)))
    with pytest.raises(BadCommand, match="more than any command has"):
        commands.decode(commands.put(7, 5, 4, "k", bytes(COMMAND_BYTES_MAX - frame + 1)))


def test_the_largest_transaction_within_the_largest_limits_is_short_enough() -> None:
    share = (2 << 20) // commands.OPERATIONS_MAX
    compares = [commands.compare_revision("k" * 512, SIGNED_MAX)] * 96
    operations = [commands.put_operation(f"{n:04d}" * 128, bytes(share - 512), True, SIGNED_MAX) for n in range(128)]
    assert commands.decode(commands.transaction(UNSIGNED_MAX, SIGNED_MAX, SIGNED_MAX - 1, compares, operations))


def test_a_refused_command_still_tells_who_waits() -> None:
    machine = Machine()
    bad = msgpack.packb([commands.PUT, 7, 5, 4, "", b"", False, 0, ANY])
    assert machine.apply(1, 1, 1, bad) == (7, 5, (replies.BAD_COMMAND, "bad key"))
    bad = msgpack.packb([commands.OPEN_SESSION, 7, "", 1, 10, True, False])
    assert machine.apply(2, 1, 1, bad) == (7, 0, (replies.BAD_COMMAND, "bad owner"))
    assert machine.apply(3, 1, 1, msgpack.packb([commands.PUT, 7, -5, 4])) is None
    assert machine.apply(4, 1, 1, msgpack.packb([commands.PUT])) is None


def mutants(rng: random.Random) -> bytes:
    """Near a valid command, or nothing like one."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(60))
    data = bytearray(rng.choice(GOOD))
    for _ in range(rng.randrange(1, 4)):
        kind = rng.random()
        place = rng.randrange(len(data) or 1)
        if kind < 0.5 and data:
            data[place] = rng.choice([rng.randrange(256), 0x90, 0xC0, 0xC3, 0xCF, 0xDD, 0xDF, 0xC9])
        elif kind < 0.7:
            del data[place:]
        elif kind < 0.9:
            data[place:place] = rng.randbytes(rng.randrange(4))
        else:
            data += rng.choice(GOOD)
    return bytes(data)


def everything(machine: Machine) -> tuple[Any, ...]:
    locks = machine.locks
    return (
        machine.store.revision,
        machine.store.digest(),
        dict(machine.sessions),
        machine.limits,
        locks.digest(),
        locks.epoch,
    )


def test_applying_any_bytes_never_raises_and_what_is_refused_changes_nothing() -> None:
    rng = random.Random(5)
    machine = Machine()
    machine.apply(1, 1, 1, commands.open_session(7, "owner", 1, 10))
    machine.apply(2, 1, 1, commands.set_epoch(1))
    index = 2
    refused = 0
    for _ in range(30_000):
        payload = mutants(rng)
        index += 1
        try:
            commands.decode(payload)
        except BadCommand:
            refused += 1
            before = everything(machine)
            outcome = machine.apply(index, 1, 1, payload)
            assert outcome is None or outcome[2][0] == replies.BAD_COMMAND
            assert before == everything(machine)
        else:
            machine.apply(index, 1, 1, payload)
            machine.take_changes()
            machine.take_session_events()
            machine.take_lock_events()
    assert 20_000 < refused < 30_000
    assert machine.applied_index == index


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), UNSIGNED_MAX) | st.text("ab") | st.binary(),
        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text("ab"), inner, max_size=3),
    ),
    st.sampled_from([*range(7), 16, 17, 32, 33, 34, *range(47, 54)]),
)
def test_any_msgpack_behind_any_operation_number_is_answered(fields: Any, operation: int) -> None:
    machine = Machine()
    command = [operation, *(fields if isinstance(fields, list) else [7, 1, 0, fields])]
    outcome = machine.apply(1, 1, 1, msgpack.packb(command))
    assert outcome is None or outcome[2][0] in (replies.OK, replies.BAD_COMMAND, replies.SESSION_ENDED)


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (5, TypeError, "a config key is a str, not int"),
        (b"k", TypeError, "not bytes"),
        ("", ValueError, "0 bytes"),
        ("k" * 513, ValueError, "513 bytes"),
        ("é" * 257, ValueError, "514 bytes"),
        ("a\ud800", ValueError, "lone surrogate at 1"),
    ],
)
def test_a_bad_key_is_refused_in_the_callers_thread(key: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        commands.check_key(key)


@pytest.mark.parametrize("key", ["k", "k" * 512, "é" * 256, "\0", "a/b c"])
def test_a_good_key_is_taken(key: str) -> None:
    commands.check_key(key)
    assert commands.decode(commands.delete(7, 1, 0, key))[4] == key


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [-1, 1 << 50, 1.5, True, None])
def test_a_limit_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"limit {name} is"):
        Limits(**{name: value})
