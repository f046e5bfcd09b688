"""Leases: whoever believes that it holds something does hold it, by the one true log, at that very moment.

A belief is what a caller would be told by `Hold.held`: it was told that its request is granted, it has not given that
back, it was not told that it is lost, and the lease of its session stands by its own clock; whether its process runs or
stands still. What must not live here: what the log itself may say of locks (`lock_rules`); who asks for what
(`lock_clients`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from coord.lease import EXPIRED, JEOPARDY, LAPSED, SUSPENDED, VALID, Lease
from coord.machine import replies
from coord.requests import GRANTED, Request
from coord.testing.process import Process
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.world import World

#: What watchers of one session may be told after what. VALID to SUSPENDED is for processes that stood still.
_AFTER = {
    VALID: {JEOPARDY, SUSPENDED, EXPIRED},
    JEOPARDY: {VALID, SUSPENDED, EXPIRED},
    SUSPENDED: {VALID, JEOPARDY, EXPIRED},
    EXPIRED: set[str](),
}
#: How an `Asked` ended for its caller.
RELEASED, LOST, GIVEN_UP = "released", "lost", "given up"
_ROUNDING = 1e-5


class Asked:
    """One request, as whoever asked knows it; with the calls a user makes, each carried out in the process's next turn,
    as by `Loop.post`."""

    def __init__(
        self,
        leases: Leases,
        process: Process,
        name: str,
        told: Callable[[Asked], None] = lambda asked: None,
        lost: Callable[[Asked, str], None] = lambda asked, reason: None,
        **arguments: Any,
    ) -> None:
        """`told` once the outcome is known; `lost` when what was granted is lost. The rest is as for `Request`."""
        self.process = process
        self.request = Request(name, notify=self._was_told, lost=self._was_lost, **arguments)
        #: As told; "" before.
        self.outcome = ""
        #: How it ended for its caller: "" while it may rely on it.
        self.ended = ""
        #: The reply to its release.
        self.reply: Any = None
        #: The loop has taken its end upon itself, so there is nothing to be told any more.
        self._leaves = False
        self._leases = leases
        self._told = told
        self._lost = lost

    def __str__(self) -> str:
        request = self.request
        return f"{request.name} for {self.process.name} ({request.session:x}, {request.id}), token {request.token}"

    def believes(self) -> bool:
        """As `Hold.held`."""
        lease = self.request.lease
        return self.outcome == GRANTED and not self.ended and lease is not None and lease.stands(self.process.local())

    # -- what a user does, in any thread

    def ask(self) -> None:
        self._post(lambda: self.process.replica.requests.ask(self.request))

    def give_up(self) -> bool:
        """The caller's time is up. False: it was told meanwhile."""
        if not self.request.give_up():
            return False
        self.abandon()
        return True

    def abandon(self) -> None:
        """Whatever it has come to: nobody wants it."""
        self._end(GIVEN_UP)

        def abandon() -> None:
            self._leaves = True
            self.process.replica.requests.abandon(self.request)

        self._post(abandon)

    def release(self, done: Callable[[Any], None] = lambda reply: None, successor: str = "") -> None:
        self._end(RELEASED)

        def answered(reply: Any) -> None:
            self._leases.released(self, reply)
            self.reply = reply
            done(reply)

        def release() -> None:
            self._leaves = True
            self.process.replica.requests.release(self.request, answered, successor)

        self._post(release)

    def downgrade(self, done: Callable[[Any], None] = lambda reply: None) -> None:
        self._post(lambda: self.process.replica.requests.downgrade(self.request, done))

    def set_value(self, value: bytes, done: Callable[[Any], None] = lambda reply: None) -> None:
        self._post(lambda: self.process.replica.requests.set_value(self.request, value, done))

    def _post(self, call: Callable[[], None]) -> None:
        if not self.process.dead:
            self.process.calls.append(call)
            self.process.wake()

    # -- what it is told, on the loop's thread

    def _was_told(self, request: Request) -> None:
        leases = self._leases
        leases.require(not self.outcome, f"L6: is told of {self} a second time", self)
        leases.require(self.ended != GIVEN_UP, f"L6: is told of {self}, which was given up", self)
        self.outcome = request.outcome
        if self.outcome == GRANTED:
            leases.granted(self)
        self._told(self)

    def _was_lost(self, request: Request, reason: str) -> None:
        leases = self._leases
        leases.require(self.outcome == GRANTED, f"L6: loses {self}, which it was never told it has", self)
        leases.require(self.ended != LOST, f"L6: loses {self} a second time", self)
        leases.require(not self._leaves, f"L6: loses {self}, which is being released or was given up", self)
        lease = request.lease
        leases.require(
            lease is None or bool(lease.ended) or not leases.holds(self), f"L6: loses {self}, and still has it", self
        )
        if not self.ended:
            self._end(LOST)
            self._lost(self, reason)

    def _end(self, how: str) -> None:
        self.ended = self.ended or how
        self._leases.believers.pop(self, None)


class Leases:
    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        #: All that callers rely on, if their lease stands.
        self.believers: dict[Asked, None] = {}
        #: What each process was last told of which lease.
        self._states: dict[Process, tuple[Lease, str]] = {}
        #: Of each process: which session's lease was confirmed, and by a renewal sent when.
        self._confirmed: dict[str, tuple[int, float]] = {}
        drift = max(abs(rate - 1) for rate in world.knobs.rates)
        #: Whether clocks run as evenly as sessions need it.
        self._even = drift <= min(options.clock_drift for options in world.options.values()) + 1e-9

    def require(self, holds: bool, what: str, asked: Asked) -> None:
        self._truth.require(holds, what, asked.process)

    def holds(self, asked: Asked) -> bool:
        """By the one true log."""
        request = asked.request
        hold = self._truth.machine.locks.hold(request.session, request.id)
        return hold is not None and hold.name == request.name and hold.token == request.token

    def _trusted(self, term: int) -> bool:
        """Whether rules of time hold, as counted by who led `term`: a clock that jumps unseen voids them."""
        leader = self._truth.leaders.get(term, "")
        options = self._world.options[self._world.names[0]]
        return self._even and self._world.timeline.now - self._world.jumped_at.get(leader, float("-inf")) > (
            2 * options.session_ttl / min(self._world.knobs.rates)
        )

    # -----------------------------------------------------------------------------------------------------------------
    # What the log says.

    def session_ended(self, session: int, how: str, term: int) -> None:
        """Its end is committed: its owner, also one that stands still, must not take it for valid any more."""
        if not self._trusted(term):
            return
        for process in self._world.alive():
            lease = process.replica.own.lease
            if lease.session == session and lease.stands(process.local()):
                self._truth.require(
                    False,
                    f"S4: its session is {how}, and its lease stands for {lease.remaining(process.local()):.3f} more",
                    process,
                )

    def hold_gone(self, session: int, request: int, term: int, *, by_session: bool) -> None:
        """A hold is over: whoever had it must not believe any more that it has."""
        if by_session and not self._trusted(term):
            return
        for asked in self.believers:
            if (asked.request.session, asked.request.id) == (session, request):
                self.require(not asked.believes(), f"L3: believes that it has {asked}, which is gone", asked)

    # -----------------------------------------------------------------------------------------------------------------
    # What members say.

    def granted(self, asked: Asked) -> None:
        """It is told that it holds: so it does, and so do all who believe that they hold the same lock."""
        request, lease = asked.request, asked.request.lease
        self._truth.note("lock granted")
        self.require(lease is not None and lease.session == request.session, f"L3: {asked} has another's lease", asked)
        self.require(asked.believes(), f"L3: is told it has {asked}, and its lease does not stand", asked)
        self._is_true(asked)
        self.believers[asked] = None
        for other in self.believers:
            if other.request.name == request.name and other is not asked:
                self._is_true(other)

    def _is_true(self, asked: Asked) -> None:
        request, truth = asked.request, self._truth
        if not asked.believes():
            return
        hold = truth.machine.locks.hold(request.session, request.id)
        if hold is None:
            over = not truth.machine.has_session(request.session)
            # Who ended it, and by which clock, is not known here; `session_ended` knew.
            even = self._even and not self._world.jumped_at
            self.require(over and not even, f"L3: believes that it has {asked}; nobody else knows of it", asked)
            return
        # While its own downgrade is on its way back to it, the log is ahead.
        newer = hold.shared and not request.shared and hold.token > request.token
        self.require(
            hold.name == request.name and hold.slot == request.slot and (hold.token == request.token or newer),
            f"L3: believes that it has {asked}; it has {hold}",
            asked,
        )

    def released(self, asked: Asked, reply: Any) -> None:
        """A release was answered."""
        session = asked.request.session
        if isinstance(reply, Exception):
            return
        hold = self._truth.machine.locks.hold(session, asked.request.id)
        self.require(hold is None, f"L5: is told that {asked} is released: {reply}; and it has {hold}", asked)
        if reply[0] == replies.NOT_HELD:
            self.require(
                not self._truth.machine.has_session(session), f"L5: releases {asked}, and is told it has not", asked
            )

    # -----------------------------------------------------------------------------------------------------------------
    # Sessions, as told to whoever watches.

    def started(self, process: Process) -> None:
        process.replica.own.watchers.append(partial(self._state, process))

    def died(self, process: Process) -> None:
        self._states.pop(process, None)
        for asked in [asked for asked in self.believers if asked.process is process]:
            del self.believers[asked]

    def _state(self, process: Process, lease: Lease, state: str) -> None:
        truth, known = self._truth, self._states.get(process)
        self._states[process] = lease, state
        truth.note(f"session {state}")
        if known is None:
            return
        before, told = known
        if before is not lease:
            # A session that was given up may come back, with nothing it held; any other never does.
            truth.require(told == EXPIRED, f"S5: another session begins; the last was told to be {told}", process)
            truth.require(
                before.session != lease.session or before.ended == LAPSED,
                "S5: a session that is over is back",
                process,
            )
            return
        truth.require(state in _AFTER[told], f"S5: its session is told to be {state} after {told}", process)
        if (told, state) == (VALID, SUSPENDED):
            options = process.replica.options
            late = process.local() - process.due_local
            truth.require(
                late > options.lease - options.jeopardy - _ROUNDING,
                f"S5: its session is SUSPENDED without having been in JEOPARDY; it woke {late:.3f} late",
                process,
            )
            truth.note("session suspended at once")

    def after_turn(self, process: Process) -> None:
        """A lease that stands again brings beliefs back; by then they must be true."""
        replica = process.replica
        lease = replica.own.lease
        confirmed = lease.session, lease.confirmed_at
        if self._confirmed.get(process.name) == confirmed:
            return
        self._confirmed[process.name] = confirmed
        self._world.rules.lease_confirmed(process, lease.session, lease.confirmed_at)
        if not lease.stands(process.local()):
            return
        even = self._even and not self._world.jumped_at
        if even and not self._truth.machine.has_session(lease.session):
            self._truth.require(False, "S4: the lease of a session that is over stands", process)
        for asked in self.believers:
            if asked.process is process:
                self._is_true(asked)

    # -----------------------------------------------------------------------------------------------------------------
    # The end.

    def unfinished(self, process: Process) -> list[str]:
        replica, missing = process.replica, []
        state = replica.own.lease.state(process.local())
        if state != VALID or not replica.own.is_open:
            missing.append(f"{process.name}'s session is {state}, {'open' if replica.own.is_open else 'not open'}")
        return missing

    def left_behind(self, process: Process) -> list[str]:
        count = len(process.replica.requests)
        return [f"{process.name} has {count} requests for locks that are not over"] if count else []

    def check_end(self) -> None:
        for asked in self.believers:
            self.require(False, f"L6: {asked} was neither released nor lost", asked)
