"""What these tests share: a machine fed by hand, and a group in virtual time.

What must not live here: the tests.
"""

from __future__ import annotations

from typing import Any

import coord
from coord.machine import commands
from coord.machine.machine import Machine
from coord.testing import Group

SECOND = 1_000_000_000
TTL = coord.Options().session_ttl


class Bench:
    """One machine, and a clock that the test moves: what every member of a group would do."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.time = 0
        self.term = 1
        self._sequences: dict[int, int] = {}
        self.apply(commands.set_epoch(1))

    def apply(self, payload: bytes, term: int | None = None) -> Any:
        outcome = self.machine.apply(
            self.machine.applied_index + 1, self.term if term is None else term, self.time, payload
        )
        return outcome[2] if outcome is not None else None

    def next(self, session: int) -> int:
        self._sequences[session] = number = self._sequences.get(session, 0) + 1
        return number

    def open(self, session: int, owner: str, *, gone: bool = False) -> Any:
        older = self.machine.session_of(owner)
        return self.apply(commands.open_session(session, owner, session, 10 * SECOND, older, gone))

    def expire(self, session: int, term: int | None = None) -> None:
        self.apply(commands.expire_session(session, self.term if term is None else term))

    def acquire(self, session: int, name: str = "x", *, shared: bool = False, delay: int = 0, **more: Any) -> int:
        """Returns the number of the request."""
        request = self.next(session)
        self.apply(acquire(session, request, name, shared=shared, delay=delay, **more))
        return request

    def token(self, session: int, request: int) -> int:
        """0: it does not hold."""
        hold = self.machine.locks.hold(session, request)
        return 0 if hold is None else hold.token

    def release(self, session: int, request: int, token: int, name: str = "x") -> Any:
        return self.apply(commands.release(session, self.next(session), 0, name, request, token, ""))

    def cancel(self, session: int, request: int, name: str = "x") -> Any:
        return self.apply(commands.cancel(session, self.next(session), 0, name, request))

    def holders(self, name: str = "x") -> list[int]:
        return [hold.session for hold in self.machine.locks.holders(name)]

    def waiting(self, name: str = "x") -> list[int]:
        return [waiting.session for waiting in self.machine.locks.queue(name)]


def acquire(
    session: int,
    request: int,
    name: str = "x",
    *,
    shared: bool = False,
    permits: int = 1,
    priority: int = 0,
    wait: bool = True,
    delay: int = 0,
    reclaim: bool = False,
    value: bytes = b"",
) -> bytes:
    return commands.acquire(session, request, 0, name, shared, permits, priority, wait, delay, reclaim, value)


def followers(group: Group) -> list[coord.Node]:
    leader = group.leader()
    return [group[name] for name in group.names if group[name] is not leader]


def settle(group: Group) -> None:
    """Every session is open and has been renewed."""
    group.wait_until(lambda: all(group[name].session.state == "VALID" for name in group.names), what="sessions")
    group.run(2.0)


def must(hold: coord.Hold | None) -> coord.Hold:
    assert hold is not None, "the lock was not granted"
    return hold
