"""What a leader owes its group by the clock: the limits, the end of keys and sessions that outlived their ttl.

All of it goes through the log, so a leader that is none any more does no harm. Renewals of sessions do not: the leader
keeps them in memory, and acknowledges one only when

- a quorum has followed it since the renewal arrived, or with `lease_reads` has promised to elect nobody yet, so every
  later leader begins to count after it was sent;
- it has applied an entry of its own term, so no end of the session is in its log unseen;
- no end of it is on its way that this leader itself proposed.

Leave out any of the three, and two may hold one lock (`session_model` shows how). What must not live here: Raft's own
timers (`coord.raft`), or what these commands do when they are applied (`coord.machine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from coord.machine import commands
from coord.machine.limits import Limits
from coord.machine.machine import Machine
from coord.options import Options
from coord.raft.batch import encode_entry
from coord.raft.core import Core
from coord.reads import Confirmation, Read

_NANOSECONDS = 1_000_000_000


class Duties:
    """One leader's; every term of office begins with new ones, so every ttl is counted anew."""

    def __init__(
        self, core: Core, machine: Machine, options: Options, confirm: Callable[[Sequence[Read]], None], epoch: int
    ) -> None:
        """`confirm` asks whether this member still leads, once for all who ask; `epoch` is the group's, if it has none
        yet."""
        self._core = core
        self._machine = machine
        self._confirm = confirm
        self._term = core.term
        self._heartbeat = options.heartbeat
        self._limits = Limits(
            value_bytes=options.max_value_bytes,
            transaction_bytes=options.max_transaction_bytes,
            state_bytes=options.max_state_bytes,
            keys=options.max_keys,
            sessions=options.max_sessions,
            lock_requests=options.max_lock_requests,
            waiters=options.max_waiters,
        )
        self._limits_proposed = False
        self._epoch = epoch
        #: Index of the newest tick proposed; the next waits until it is applied.
        self._tick = 0
        #: When each session is due to end, unless it is renewed.
        self._due: dict[int, float] = {}
        #: Sessions that are due, while it is confirmed that this member leads.
        self._doubted: set[int] = set()
        #: Sessions whose end is proposed. It is never taken back, so it lasts as long as this term.
        self._expiring: set[int] = set()
        self._look_at = core.now

    def every_turn(self) -> None:
        core, machine = self._core, self._machine
        if not core.leads_surely or not core.accepting:
            return
        if machine.limits != self._limits and not self._limits_proposed:
            self._limits_proposed = bool(self._propose(commands.set_limits(self._limits, machine.limits_index)))
        if machine.epoch == 0 and self._epoch and self._propose(commands.set_epoch(self._epoch)):
            self._epoch = 0
        due = self._tick_due()
        if due is not None and due <= core.cluster_time():
            self._tick = self._propose(commands.tick())

    def deadline(self) -> float:
        """When `every_turn` has something to do again."""
        due = self._tick_due()
        if due is None or not self._core.accepting or not self._core.leads_surely:
            # Nothing could be done about it; what changes that brings a turn of its own.
            return float("inf")
        return self._core.now + max(0.0, (due - self._core.cluster_time()) / _NANOSECONDS)

    # -- sessions

    def renew(self, session: int, answer: Callable[[bool], None]) -> None:
        """Its owner lives. `answer` is told, perhaps never: True it is renewed, False it is over."""
        received_at = self._core.now
        self._confirm([Confirmation(partial(self._renewed, session, received_at, answer))])

    def _renewed(self, session: int, received_at: float, answer: Callable[[bool], None], error: Any) -> None:
        if error is not None or not self._in_office() or session in self._expiring:
            return
        found = self._machine.sessions.get(session)
        if found is not None:
            due = received_at + found.ttl / _NANOSECONDS
            self._due[session] = max(due, self._due.get(session, due))
        answer(found is not None)

    def expire_sessions(self) -> None:
        """Once a heartbeat: end the sessions that were not renewed for their whole ttl. Guarded by the term: an old
        leader's entry does nothing."""
        core, sessions = self._core, self._machine.sessions
        late, self._look_at = core.now - self._look_at, core.now + self._heartbeat
        if not core.leads_surely:
            return
        if late > self._heartbeat:
            # This leader stood still, and is to blame for the renewals it has not read yet.
            self._due = {session: due + late for session, due in self._due.items()}
        if len(self._due) > 2 * len(sessions) + 64:
            self._due = {session: due for session, due in self._due.items() if session in sessions}
            self._expiring &= sessions.keys()
        for session, found in sessions.items():
            due = self._due.get(session)
            if due is None:
                self._due[session] = core.now + found.ttl / _NANOSECONDS
            elif core.now > due and session not in self._expiring and session not in self._doubted:
                self._doubted.add(session)
                self._confirm([Confirmation(partial(self._expire, session))])

    def _expire(self, session: int, error: Any) -> None:
        core = self._core
        self._doubted.discard(session)
        # It may have been renewed meanwhile.
        if error is not None or not self._in_office() or not core.accepting or core.now <= self._due.get(session, 0.0):
            return
        if session in self._machine.sessions and self._propose(commands.expire_session(session, core.term)):
            self._expiring.add(session)

    def _in_office(self) -> bool:
        """Still in the term of office that asked; a question may have been passed on to another leader meanwhile."""
        return self._core.leads_surely and self._core.term == self._term

    def _tick_due(self) -> int | None:
        """Cluster time at which the next tick is wanted; None: not yet known, or one is on its way."""
        return self._machine.next_due() if self._machine.applied_index >= self._tick else None

    def _propose(self, command: bytes) -> int:
        return self._core.propose(self._core.now, [encode_entry(command)])
