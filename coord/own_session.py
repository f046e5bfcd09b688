"""This member's own session: it is opened through the log, kept alive outside of it, and begun anew when it is over.

A renewal is acknowledged by the leader, which has to be confirmed by a quorum first; so it is one message each way,
once in a while, and nothing in the log. All of it on the loop's thread. What must not live here: how long a lease lasts
(`coord.lease`), who ends whose session (`coord.duties`), what was held in it (`coord.requests`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from coord.errors import ClosedError, CoordError, OutcomeUnknown
from coord.lease import EXPIRED, LAPSED, SUSPENDED, Lease
from coord.machine import commands, replies, sessions
from coord.raft.batch import encode_entry
from coord.raft.messages import Keepalive, KeepaliveResponse
from coord.raft.roles import LEADER

if TYPE_CHECKING:
    from coord.replica import Replica

_NANOSECONDS = 1_000_000_000
#: Renewals on their way that are remembered.
_SENT_MAX = 32

_LOST = (
    "this member fell far behind and its session ended meanwhile, so whether the write happened is not known; "
    "read before repeating it"
)
#: Why a lease is over, by what happened to its session.
_REASONS = {
    sessions.EXPIRED: "expired",
    sessions.SUPERSEDED: "superseded",
    sessions.CLOSED: "closed",
    sessions.ENDED: "expired",
}


class OwnSession:
    """Invariant: `lease.session` is the session that proposals are numbered in."""

    def __init__(self, replica: Replica, rng: random.Random, *, alone: bool) -> None:
        """`alone`: no older process of this member can be alive, so what it held need not be waited out."""
        self._replica = replica
        self._options = replica.options
        self._rng = rng
        self._instance = rng.getrandbits(63) | 1
        self._alone = alone
        self.lease = Lease(replica.numbering.session, replica.options)
        self.is_open = False
        #: This member stops: its session is being closed, and no other opened.
        self.leaving = False
        self._closing = False
        #: When the open of the present session was first given to a leader.
        self._asked_at: float | None = None
        #: The session of this member that the open is to replace, as far as is known here.
        self._replaces = 0
        #: When an open that was refused for want of room is to be tried again.
        self._ask_again_at = float("inf")
        self._number = 0
        self._sent: dict[int, float] = {}
        self._renew_at = float("-inf")
        #: Renewed only until then: the host is to say that it lives. Any thread writes it.
        self.beat_by = float("inf")
        self._told = SUSPENDED
        #: Called as fn(lease, state) when the state has changed.
        self.watchers: list[Callable[[Lease, str], None]] = []

    # -- opening

    def opening(self) -> list[bytes]:
        """What must go to a leader before everything else."""
        if self.is_open or self.leaving:
            return []
        if self._asked_at is None:
            self._asked_at = self._replica.now
        self._replaces = self._replica.machine.session_of(self._replica.identity.name) or self._replaces
        ttl = int(self._options.session_ttl * _NANOSECONDS)
        name = self._replica.identity.name
        opening = commands.open_session(self.lease.session, name, self._instance, ttl, self._replaces, self._alone)
        return [encode_entry(opening)]

    def opened(self, reply: replies.Reply) -> None:
        """The answer to its open."""
        status, replica = reply[0], self._replica
        if status == replies.OWNER_IN_USE:
            # This member has another session than was known here.
            self._replaces = reply[1]
            replica.restart_outbox()
        elif status == replies.QUOTA:
            self._ask_again_at = replica.now + self._options.keepalive
        elif status in (replies.SESSION_ENDED, replies.SESSION_ID_IN_USE):
            if status == replies.SESSION_ENDED:
                # It was opened, and ended, in what a snapshot made us skip; and so may be what we sent in it.
                self.lose_sent()
            self.renew(sessions.ENDED)

    def applied(self) -> None:
        """After each step of the replicated state: it may have been opened, or ended, or both at once."""
        machine, session = self._replica.machine, self.lease.session
        ended = [event for id, event in machine.take_session_events() if id == session and event != sessions.OPENED]
        is_open = machine.has_session(session)
        if ended or (self.is_open and not is_open):
            self.renew(ended[-1] if ended else sessions.ENDED)
        elif is_open and not self.is_open:
            # An older session of this name would from now on be one of this process.
            self._alone = False
            assert self._asked_at is not None, "a session that nobody asked for"
            self.lease.begin(self._asked_at, self._replica.now)
            self._renew_at = self._replica.now
            self.is_open = True

    # -- keeping alive

    def every_turn(self) -> None:
        now = self._replica.now
        if now >= self._ask_again_at:
            self._ask_again_at = float("inf")
            self._replica.restart_outbox()
        if self._renews and now >= self._renew_at and now < self.beat_by:
            self._renew(now)

    @property
    def _renews(self) -> bool:
        return self.is_open and not self.leaving and self.lease.ended in ("", LAPSED)

    def leader_changed(self) -> None:
        """What was sent to the old one is lost; the new one counts from its own beginning."""
        self._renew_at = self._replica.now

    def _renew(self, now: float) -> None:
        replica = self._replica
        leader, session = replica.core.leader, self.lease.session
        if leader is None:
            return
        self._renew_at = now + self._options.keepalive
        self._number += 1
        self._sent[self._number] = now
        if len(self._sent) > _SENT_MAX:
            del self._sent[next(iter(self._sent))]
        if replica.core.role == LEADER:
            # By the same rule as everybody's: this member may lead no longer, and not know it.
            replica.renew(session, partial(self._answered, session, self._number))
        else:
            replica._send(leader, Keepalive(replica.core.term, session, self._number))

    def on_response(self, sender: str, message: KeepaliveResponse) -> None:
        core = self._replica.core
        asked = message.session == self.lease.session and message.number in self._sent
        if asked and (sender, message.term) == (core.leader, core.term) and core.role != LEADER:
            core.clock_base = max(core.clock_base, message.time)
        self._answered(message.session, message.number, message.alive)

    def _answered(self, session: int, number: int, alive: bool) -> None:
        lease = self.lease
        sent_at = self._sent.pop(number, None)
        if session != lease.session or not self._renews or sent_at is None:
            return
        if alive:
            if lease.ended:
                self.lease = Lease(session, self._options)
                self.lease.begin(sent_at, self._replica.now)
            self.lease.confirm(sent_at)
        else:
            # The log will say so too, and what follows from it follows then.
            lease.ended = "expired"

    # -- its end

    def give_up_if_lapsed(self) -> None:
        """It was not heard of for the whole grace, so all that was held in it is lost. The session itself may yet be
        heard of, and writes may wait for that: the group alone ends it. If it does not, it goes on with a new lease."""
        lease = self.lease
        if self.is_open and not lease.ended and lease.lapsed(self._replica.now):
            lease.ended = LAPSED
            self._tell(lease, EXPIRED)

    def renew(self, event: str) -> None:
        """The group ended it. Nothing sent in it can happen any more: whatever is unanswered was not done, or it would
        have been seen applied. So it may go again, in a new one."""
        replica, lease = self._replica, self.lease
        lease.ended = lease.ended or _REASONS.get(event, event)
        self.is_open = False
        self._asked_at = None
        self._sent.clear()
        self.lease = Lease(self._rng.getrandbits(64) or 1, self._options)
        self._tell(lease, EXPIRED)
        replica.requests.session_over(lease)
        if self.leaving:
            closed = ClosedError(f"member {replica.identity.name!r} was stopped first; the write had no effect")
            for proposal in replica.numbering.unanswered():
                replica.numbering.end(proposal.sequence)
                replica.defer(proposal.done, closed)
            return
        replica.numbering.renew(self.lease.session)
        replica.restart_outbox()

    def jumped(self) -> None:
        """A snapshot skipped entries that may have answered our proposals. The session's own table tells: it remembers
        the reply to whatever it has done and we have not taken."""
        replica, session = self._replica, self.lease.session
        for proposal in replica.numbering.unanswered():
            reply = replica.machine.remembered_reply(session, proposal.sequence)
            if reply is not None:
                replica.settle(proposal.sequence, reply)
        if not replica.machine.has_session(session):
            if self.is_open:
                self.lose_sent()
            elif not self.leaving:
                # Never opened, or opened and ended in what was skipped: asking again tells, and does no harm.
                replica.restart_outbox()

    def lose_sent(self) -> None:
        """What was sent in the session that is over may have happened, and its replies went with the session."""
        replica = self._replica
        for proposal in replica.numbering.unanswered():
            if proposal.sent:
                replica.numbering.end(proposal.sequence)
                replica.defer(proposal.done, OutcomeUnknown(_LOST, leader=replica.core.leader))

    def close(self) -> bool:
        """End it rather than leave that to its ttl, and open no other. True while that is under way: give the member a
        turn, and call this again."""
        replica = self._replica
        if not self.leaving:
            self.leaving = True
            # Before it is asked for: others may be granted what was held here before this member hears of it.
            self.lease.ended = self.lease.ended or "closed"
            self._tell(self.lease, EXPIRED)
        if not self.is_open:
            return False
        if replica.core.leader is None:
            return True
        if not self._closing:
            # False while the session's window is used up; answers make room.
            self._closing = replica.submit(commands.close_session, (), lambda reply: None)
        return True

    def stop(self, error: CoordError) -> None:
        """The member stops for good: whatever is held is held no longer."""
        self.lease.ended = self.lease.ended or "stopped"
        self._tell(self.lease, EXPIRED)
        self._replica.requests.end(error)

    # -- whoever watches

    def tell(self) -> None:
        """Tell them, if the state has changed."""
        self._tell(self.lease, self.lease.state(self._replica.now))

    def _tell(self, lease: Lease, state: str) -> None:
        if state != self._told:
            self._told = state
            self._replica.requests.lease_state(state)
            for watcher in list(self.watchers):
                watcher(lease, state)

    def deadline(self) -> float:
        """When `every_turn` or `tell` has something to do again."""
        now = self._replica.now
        due = min(self.lease.changes_at(now), self._ask_again_at)
        if self._renews and self._replica.core.leader is not None and now < self.beat_by:
            due = min(due, self._renew_at)
        return due
