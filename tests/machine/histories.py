"""Random histories of commands, for the tests: what a group of careless and broken members might commit.

What must not live here: what the commands do. A reference that follows is asked for what luck would seldom hit: who
lives, what is held with which token, when something falls due.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from coord.machine import commands
from coord.machine.limits import Limits
from machine.reference import Reference

Made = tuple[bytes, tuple[Any, ...]]

KEYS = ["a", "b", "c/1", "c/2", "c/3", "d", "é", "\U0001f40d/x", "k" * 40]
OWNERS = ["a", "b", "client"]
#: Locks, with the permits most ask for.
LOCKS = {"l": 1, "m": 1, "é/\U0001f512": 1, "pair": 2, "three": 3}
SMALL = Limits(value_bytes=64, transaction_bytes=120, state_bytes=1400, keys=4, sessions=2, lock_requests=5, waiters=2)
WIDE = Limits(
    value_bytes=1 << 20,
    transaction_bytes=2 << 20,
    state_bytes=1 << 30,
    keys=1000,
    sessions=100,
    lock_requests=1000,
    waiters=100,
)
#: Everything is granted at once or never.
NO_QUEUE = replace(WIDE, lock_requests=4, waiters=0)
LIMIT_NAMES = ("value_bytes", "transaction_bytes", "state_bytes", "keys", "sessions", "lock_requests", "waiters")


def limits_as_dict(limits: Limits) -> dict[str, int]:
    return dict(zip(LIMIT_NAMES, limits.row(), strict=True))


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

    def __init__(self, rng: random.Random, limits: Limits = WIDE, locks: float = 1.0) -> None:
        """`locks`: how much more often locks are the subject than they would be."""
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
        self.epoch = 0
        #: Requests for locks made so far: (session, name, request).
        self.requests: list[tuple[int, str, int]] = []
        #: Made, and on their way for longer than what was made after them.
        self.late: list[Made] = []
        #: (session, name, request, token): what was once held.
        self.former: list[tuple[int, str, int, int]] = []
        self.reference = Reference(limits_as_dict(limits))
        keys = {self.put: 12, self.delete: 5, self.transaction: 8}
        requests = {self.acquire: 16, self.release: 6, self.cancel: 4, self.downgrade: 2, self.set_value: 2}
        rest = {self.end: 3, self.tick: 3, self.limits: 0.5, self.duplicate: 5, self.overdue: 2, self.garbage: 2}
        self.weights: dict[Any, float] = {**keys, **rest, self.raise_epoch: 0.5}
        self.weights |= {maker: weight * locks for maker, weight in requests.items()}

    def entries(self, count: int) -> Iterator[Entry]:
        for _ in range(count):
            yield self.entry()

    def entry(self) -> Entry:
        rng = self.rng
        self.index += 1
        self.time += rng.choice([0, 0, 0, 10, 10, -10, 40, 1] if rng.random() < 0.98 else [1000, -300])
        due = self.reference.next_due()
        if due is not None and due - 100 < self.time < due + 10 and rng.random() < 0.2:
            self.time = due
        self.term += rng.random() < 0.05
        weights = {self.open: 2 if len(self.reference.sessions) > 1 else 9, **self.weights}
        payload, logical = rng.choices([*weights], [*weights.values()])[0]()
        if logical is not None:
            self.old.append((payload, logical))
        self.revisions.append(self.index)
        self.reference.apply(self.index, self.term, max(self.time, 0), logical)
        return Entry(self.index, self.term, max(self.time, 0), payload, logical)

    def open(self) -> Made:
        rng = self.rng
        session = rng.choice(self.sessions) if self.sessions and rng.random() < 0.3 else rng.getrandbits(64) or 1
        if session not in self.sessions:
            self.sessions.append(session)
        owner = rng.choice(OWNERS)
        live = [number for number, found in self.reference.sessions.items() if found["owner"] == owner]
        replaces = live[0] if live and rng.random() < 0.8 else rng.choice([0, 0, *self.sessions])
        fields = (session, owner, rng.choice([1, 1, 1, 2]), 10, replaces, rng.random() < 0.4)
        return commands.open_session(*fields), ("open", *fields)

    def end(self) -> Made:
        session = self.session()
        if self.rng.random() < 0.5:
            sender = self.sender(session)
            return commands.close_session(*sender), ("close", *sender)
        term = self.term - self.rng.choice([0, 0, 1])
        return commands.expire_session(session, term), ("expire", session, term)

    def tick(self) -> Made:
        return commands.tick(), ("tick",)

    def limits(self) -> Made:
        replaces = self.rng.choice([0, self.limits_index])
        limits = self.rng.choice([SMALL, WIDE, NO_QUEUE])
        if replaces == self.limits_index:
            self.limits_index = self.index
        return commands.set_limits(limits, replaces), ("limits", replaces, limits_as_dict(limits))

    def put(self) -> Made:
        sender = self.sender(self.session())
        key, value, ephemeral, ttl = self.put_fields()
        expected = self.expected()
        payload = commands.put(*sender, key, value, ephemeral, ttl, expected)
        compares = [] if expected == commands.ANY else [(key, expected)]
        return payload, ("write", *sender, compares, [("put", key, value, ephemeral, ttl)], False)

    def delete(self) -> Made:
        sender = self.sender(self.session())
        key = self.rng.choice(KEYS)
        expected = self.expected()
        payload = commands.delete(*sender, key, expected)
        compares = [] if expected == commands.ANY else [(key, expected)]
        return payload, ("write", *sender, compares, [("delete", key)], False)

    def transaction(self) -> Made:
        rng = self.rng
        sender = self.sender(self.session())
        compares: list[tuple[Any, ...]] = [
            (rng.choice(KEYS), rng.choice([0, 0, rng.choice(self.revisions)])) for _ in range(rng.choice([0, 0, 1, 2]))
        ]
        if rng.random() < 0.4:
            session, name, request, token = self.hold()
            compares.insert(rng.randrange(len(compares) + 1), ("hold", name, session, request, token))
        operations: list[tuple[Any, ...]] = []
        for key in rng.sample(KEYS, rng.choice([0, 1, 2, 4])):
            put = ("put", key, *self.put_fields()[1:])
            operations.append(put if rng.random() < 0.7 else ("delete", key))
        payload = commands.transaction(
            *sender,
            [
                commands.compare_revision(*compare) if len(compare) == 2 else commands.compare_hold(*compare[1:])
                for compare in compares
            ],
            [
                commands.put_operation(*op[1:]) if op[0] == "put" else commands.delete_operation(op[1])
                for op in operations
            ],
        )
        return payload, ("write", *sender, compares, operations, True)

    # -- locks

    def raise_epoch(self) -> Made:
        self.epoch = max(1, self.epoch + self.rng.choice([-1, 0, 1, 1, 7]))
        return commands.set_epoch(self.epoch), ("epoch", self.epoch)

    def acquire(self) -> Made:
        """Sometimes put aside to come later; then another command takes its place."""
        rng = self.rng
        sender = self.sender(self.session())
        name = rng.choice(["l", "l", "l", *LOCKS])
        permits = LOCKS[name] if rng.random() < 0.95 else rng.randint(1, 3)
        shared = permits == 1 and rng.random() < 0.65
        delay = rng.choice([0, 30, 100, 200, 400, commands.LOCK_DELAY_MAX if rng.random() < 0.05 else 60])
        fields: tuple[Any, ...] = (
            *(name, shared, permits, rng.choice([0, 0, 0, 0, 1, 5, -5])),
            *(rng.random() < 0.75, delay, rng.random() < 0.35, rng.randbytes(rng.randrange(3))),
        )
        self.requests.append((sender[0], name, sender[1]))
        made = commands.acquire(*sender, *fields), ("acquire", *sender, *fields)
        if rng.random() < 0.1:
            self.late.append(made)
            return self.cancel() if rng.random() < 0.5 else self.release()
        return made

    def overdue(self) -> tuple[bytes, tuple[Any, ...] | None]:
        """One that was put aside."""
        return self.late.pop(self.rng.randrange(len(self.late))) if self.late else self.acquire()

    def release(self) -> Made:
        session, name, request, token = self.hold()
        sender = self.sender(session if self.rng.random() < 0.9 else self.session())
        successor = self.rng.choice(["", "", "", *OWNERS, "nobody"])
        made = commands.release(*sender, name, request, token, successor)
        return made, ("release", *sender, name, request, token, successor)

    def cancel(self) -> Made:
        """Of one that waits, holds, has ended, is on its way, or will never be."""
        rng = self.rng
        if self.requests and rng.random() < 0.8:
            session, name, request = rng.choice(self.requests[-12:])
        else:
            session, name = self.session(), rng.choice([*LOCKS])
            request = max(1, self.sequences.get(session, 0) + rng.randint(-3, 4))
        if rng.random() < 0.1:
            name = rng.choice([*LOCKS])
        sender = self.sender(session)
        return commands.cancel(*sender, name, request), ("cancel", *sender, name, request)

    def set_value(self) -> Made:
        session, name, request, token = self.hold()
        sender = self.sender(session)
        value = self.rng.randbytes(self.rng.randrange(4))
        made = commands.set_value(*sender, name, request, token, value)
        return made, ("set_value", *sender, name, request, token, value)

    def downgrade(self) -> Made:
        session, name, request, token = self.hold()
        sender = self.sender(session)
        return commands.downgrade(*sender, name, request, token), ("downgrade", *sender, name, request, token)

    def hold(self) -> tuple[int, str, int, int]:
        """(session, name, request, token) of a hold that is; often of one that was, or never was."""
        rng = self.rng
        holds = [
            (hold["session"], name, hold["request"], hold["token"])
            for name, lock in self.reference.locks.locks.items()
            for hold in lock["holders"]
        ]
        self.former += [hold for hold in holds if hold not in self.former[-30:]]
        if holds and rng.random() < 0.7:
            session, name, request, token = rng.choice(holds)
        elif self.former and rng.random() < 0.5:
            session, name, request, token = rng.choice(self.former[-30:])
        else:
            session, name, request = self.session(), rng.choice([*LOCKS]), rng.randint(1, 20)
            token = self.epoch << 39 | rng.randint(1, self.index)
        if rng.random() < 0.1:
            what = rng.randrange(3)
            name = rng.choice([*LOCKS]) if what == 0 else name
            request += what == 1
            token = max(1, token + rng.choice([-1, 1, 1 << 39])) if what == 2 else token
        return session, name, request, token

    # -- anything

    def duplicate(self) -> tuple[bytes, tuple[Any, ...] | None]:
        if not self.old:
            return self.garbage()
        return self.rng.choice(self.old[-20:] if self.rng.random() < 0.7 else self.old)

    def garbage(self) -> tuple[bytes, None]:
        rng = self.rng
        return bytes([0xC1]) + rng.randbytes(rng.randrange(20)), None

    def session(self) -> int:
        """One that lives, as a rule; sometimes one that is over or never was."""
        rng = self.rng
        if self.reference.sessions and rng.random() < 0.85:
            return rng.choice([*self.reference.sessions])
        if not self.sessions or rng.random() < 0.1:
            return rng.getrandbits(64) or 1
        return rng.choice(self.sessions[-3:])

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
