"""Random histories of commands, for the tests: what a group of careless and broken members might commit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coord.machine import commands
from coord.machine.limits import Limits

KEYS = ["a", "b", "c/1", "c/2", "c/3", "d", "é", "\U0001f40d/x", "k" * 40]
OWNERS = ["a", "b", "client"]
SMALL = Limits(value_bytes=64, transaction_bytes=120, state_bytes=1400, keys=4, sessions=2)
WIDE = Limits(value_bytes=1 << 20, transaction_bytes=2 << 20, state_bytes=1 << 30, keys=1000, sessions=100)


def limits_as_dict(limits: Limits) -> dict[str, int]:
    names = ("value_bytes", "transaction_bytes", "state_bytes", "keys", "sessions")
    return dict(zip(names, limits.row(), strict=True))


@dataclass(slots=True, frozen=True)
class Entry:
    index: int
    term: int
    time: int
    payload: bytes
    #: As the reference takes it; None: no command.
    logical: tuple[Any, ...] | None


class Historian:
    """Makes entries that know little of the state: many are duplicates, stale, conflicting or garbage."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.index = 0
        self.term = 1
        self.time = 1000
        self.sessions: list[int] = []
        self.sequences: dict[int, int] = {}
        self.lows: dict[int, int] = {}
        self.old: list[tuple[bytes, tuple[Any, ...] | None]] = []
        self.revisions = [0]
        self.limits_index = 0

    def entries(self, count: int) -> Iterator[Entry]:
        for _ in range(count):
            yield self.entry()

    def entry(self) -> Entry:
        rng = self.rng
        self.index += 1
        self.time += rng.choice([0, 0, 1, 5, -3, 40])
        self.term += rng.random() < 0.05
        makers = [self.open, self.end, self.tick, self.limits, self.put, self.delete, self.transaction, self.duplicate]
        weights = [2 if len(self.sessions) > 3 else 6, 1, 3, 0.5, 12, 5, 8, 5]
        draw = rng.choices([*makers, self.garbage], [*weights, 2])[0]
        payload, logical = draw()
        if logical is not None:
            self.old.append((payload, logical))
        self.revisions.append(self.index)
        return Entry(self.index, self.term, max(self.time, 0), payload, logical)

    def open(self) -> tuple[bytes, tuple[Any, ...]]:
        rng = self.rng
        session = rng.choice(self.sessions) if self.sessions and rng.random() < 0.3 else rng.getrandbits(64) or 1
        if session not in self.sessions:
            self.sessions.append(session)
        fields = (session, rng.choice(OWNERS), rng.choice([1, 1, 1, 2]), 10, rng.random() < 0.8)
        return commands.open_session(*fields), ("open", *fields)

    def end(self) -> tuple[bytes, tuple[Any, ...]]:
        session = self.session()
        if self.rng.random() < 0.5:
            sender = self.sender(session)
            return commands.close_session(*sender), ("close", *sender)
        term = self.term - self.rng.choice([0, 0, 1])
        return commands.expire_session(session, term), ("expire", session, term)

    def tick(self) -> tuple[bytes, tuple[Any, ...]]:
        return commands.tick(), ("tick",)

    def limits(self) -> tuple[bytes, tuple[Any, ...]]:
        replaces = self.rng.choice([0, self.limits_index])
        limits = self.rng.choice([SMALL, WIDE])
        if replaces == self.limits_index:
            self.limits_index = self.index
        return commands.set_limits(limits, replaces), ("limits", replaces, limits_as_dict(limits))

    def put(self) -> tuple[bytes, tuple[Any, ...]]:
        sender = self.sender(self.session())
        key, value, ephemeral, ttl = self.put_fields()
        expected = self.expected()
        payload = commands.put(*sender, key, value, ephemeral, ttl, expected)
        compares = [] if expected == commands.ANY else [(key, expected)]
        return payload, ("write", *sender, compares, [("put", key, value, ephemeral, ttl)], False)

    def delete(self) -> tuple[bytes, tuple[Any, ...]]:
        sender = self.sender(self.session())
        key = self.rng.choice(KEYS)
        expected = self.expected()
        payload = commands.delete(*sender, key, expected)
        compares = [] if expected == commands.ANY else [(key, expected)]
        return payload, ("write", *sender, compares, [("delete", key)], False)

    def transaction(self) -> tuple[bytes, tuple[Any, ...]]:
        rng = self.rng
        sender = self.sender(self.session())
        compares = [
            (rng.choice(KEYS), rng.choice([0, 0, rng.choice(self.revisions)])) for _ in range(rng.choice([0, 0, 1, 2]))
        ]
        operations: list[tuple[Any, ...]] = []
        for key in rng.sample(KEYS, rng.choice([0, 1, 2, 4])):
            put = ("put", key, *self.put_fields()[1:])
            operations.append(put if rng.random() < 0.7 else ("delete", key))
        payload = commands.transaction(
            *sender,
            [commands.compare_revision(*compare) for compare in compares],
            [
                commands.put_operation(*op[1:]) if op[0] == "put" else commands.delete_operation(op[1])
                for op in operations
            ],
        )
        return payload, ("write", *sender, compares, operations, True)

    def duplicate(self) -> tuple[bytes, tuple[Any, ...] | None]:
        if not self.old:
            return self.garbage()
        return self.rng.choice(self.old[-20:] if self.rng.random() < 0.7 else self.old)

    def garbage(self) -> tuple[bytes, None]:
        rng = self.rng
        return bytes([0xC1]) + rng.randbytes(rng.randrange(20)), None

    def session(self) -> int:
        if not self.sessions or self.rng.random() < 0.03:
            return self.rng.getrandbits(64) or 1
        return self.rng.choice(self.sessions[-3:])

    def sender(self, session: int) -> tuple[int, int, int]:
        """The next sequence, or one out of order; a low water that may lag or jump."""
        rng = self.rng
        sequence = self.sequences.get(session, 0) + rng.choice([1, 1, 1, 1, 2, 3, -1])
        sequence = max(sequence, self.lows.get(session, 0) + 1)
        self.sequences[session] = max(self.sequences.get(session, 0), sequence)
        low = self.lows.get(session, 0)
        if rng.random() < 0.4:
            low = rng.randint(max(low, sequence - commands.WINDOW), sequence - 1)
            self.lows[session] = low
        return session, sequence, low

    def put_fields(self) -> tuple[str, bytes, bool, int]:
        rng = self.rng
        value = rng.randbytes(rng.choice([0, 1, 10, 64, 65]))
        return rng.choice(KEYS), value, rng.random() < 0.3, rng.choice([0, 0, 1, 20, 100])

    def expected(self) -> int:
        return self.rng.choice(
            [commands.ANY, commands.ANY, commands.ANY, commands.ABSENT, self.rng.choice(self.revisions)]
        )
