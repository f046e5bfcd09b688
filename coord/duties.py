"""What a leader owes its group by the clock: the limits, the end of keys and sessions that outlived their ttl.

All of it goes through the log, so a leader that is none any more does no harm. What must not live here: Raft's own
timers (`coord.raft`), or what these commands do when they are applied (`coord.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping

from coord.machine import commands
from coord.machine.limits import Limits
from coord.machine.machine import Machine
from coord.options import Options
from coord.raft.batch import encode_entry
from coord.raft.core import Core

_NANOSECONDS = 1_000_000_000


class Duties:
    """One leader's; every term of office begins with new ones."""

    def __init__(self, core: Core, machine: Machine, options: Options) -> None:
        self._core = core
        self._machine = machine
        self._since = core.now
        self._limits = Limits(
            value_bytes=options.max_value_bytes,
            transaction_bytes=options.max_transaction_bytes,
            state_bytes=options.max_state_bytes,
            keys=options.max_keys,
            sessions=options.max_sessions,
        )
        self._limits_proposed = False
        #: Index of the newest tick proposed; the next waits until it is applied.
        self._tick = 0
        self._expiring: set[int] = set()

    def every_turn(self) -> None:
        core, machine = self._core, self._machine
        if not core.leads_surely or not core.accepting:
            return
        if machine.limits != self._limits and not self._limits_proposed:
            self._limits_proposed = bool(self._propose(commands.set_limits(self._limits, machine.limits_index)))
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

    def expire_sessions(self, heard: Mapping[str, float]) -> None:
        """End the sessions of members not heard from for a whole ttl, counted anew by every leader. Guarded by the
        term: an old leader's entry does nothing."""
        core = self._core
        if not core.leads_surely or not core.accepting:
            return
        for session, (owner, ttl) in self._machine.session_ttls().items():
            last = max(self._since, heard.get(owner, 0.0))
            if owner == core.name or core.now - last <= ttl / _NANOSECONDS or session in self._expiring:
                continue
            if self._propose(commands.expire_session(session, core.term)):
                self._expiring.add(session)

    def _tick_due(self) -> int | None:
        """Cluster time at which the next tick is wanted; None: not yet known, or one is on its way."""
        return self._machine.next_due() if self._machine.applied_index >= self._tick else None

    def _propose(self, command: bytes) -> int:
        return self._core.propose(self._core.now, [encode_entry(command)])
