"""What every handle on a group shares: the ways a caller's thread asks for something and waits, and what answers mean.

What must not live here: how a member runs (`coord.node`, `coord.loop`), what one kind of handle offers
(`coord.config_map`, `coord.cluster`).
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coord.errors import (
    ClosedError,
    CoordError,
    ForkedError,
    IdentityError,
    OutcomeUnknown,
    QueueFull,
    Unavailable,
)
from coord.loop import Loop, fresh
from coord.proposals import EXPIRED, WITHDRAWN, Maker
from coord.reads import Read

if TYPE_CHECKING:
    from collections.abc import Callable

    from coord.cluster import Cluster
    from coord.config_map import ConfigMap


@dataclass(slots=True, frozen=True)
class Member:
    """One member of the group, as the asked member sees it."""

    name: str
    address: str
    voter: bool
    #: Heard from within an election timeout. A follower only knows this of its leader and of itself.
    alive: bool
    #: Highest log index known to be on its disk; only the leader knows, elsewhere 0.
    match_index: int
    #: Log entries it has still to get; only the leader knows, elsewhere 0.
    lag: int
    #: Seconds since it was last heard from; infinite when never.
    last_contact: float
    #: Random number of its data directory, 0 until known.
    incarnation: int


@dataclass(slots=True, frozen=True)
class Status:
    """What a member knows about itself and its group at one moment."""

    name: str
    group: str
    #: 32 hexadecimal digits; the second half is zero until the group has had its first leader.
    cluster_id: str
    #: "leader", "follower", "candidate", "learner" or "client".
    role: str
    term: int
    #: The leader's name, or None while none is known.
    leader: str | None
    commit_index: int
    applied_index: int
    last_index: int
    first_index: int
    #: 16 hexadecimal digits. Equal on all members at equal `applied_index`.
    state_hash: str
    members: tuple[Member, ...]
    #: A leader is known and, on the leader, a quorum follows it.
    quorum_ok: bool
    #: Seconds by which the background thread was last late.
    loop_lag: float
    #: When it started, seconds since 1970.
    started_at: float


class Coordinator:
    """A handle on a group: `config`, `cluster`, `status()`. Made by `coord.Node`. Safe for use by any thread.

    Not to be used after a fork: the child has no background thread, so every call raises `ForkedError` there.
    """

    name: str
    config: ConfigMap
    cluster: Cluster
    default_timeout: float

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop: Loop | None = None

    def status(self) -> Status:
        """What this member knows now. May block for a turn of the background thread; Unavailable when that hangs."""
        raise AssertionError("a coordinator says how")

    def _running_loop(self) -> Loop:
        """The loop, or the reason there is none to ask."""
        if os.getpid() != self._pid:
            raise ForkedError(
                f"{self.name!r} was made in process {self._pid} and is used in its forked child {os.getpid()}, which "
                "has no background thread; nothing was sent. Make and start a coordinator in the child, after the fork"
            )
        if self._loop is None:
            raise ClosedError(f"{self.name!r} is not started; call start(), or use it in a with statement")
        return self._loop

    def _deadline(self, loop: Loop, timeout: float | None) -> float:
        seconds = self.default_timeout if timeout is None else timeout
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
            raise ValueError(f"timeout={timeout!r}: expected seconds, 0 or more, or None for {self.default_timeout:g}")
        return loop.clock() + seconds

    def _propose(self, maker: Maker, arguments: tuple[Any, ...], timeout: float | None) -> Any:
        """Have a command done; returns the machine's reply. Unavailable: it certainly never happens. OutcomeUnknown: it
        was sent, and no answer came in time."""
        loop = self._running_loop()
        deadline = self._deadline(loop, timeout)
        waiter = loop.waiter()
        proposal = loop.propose(maker, arguments, waiter.done, deadline - loop.clock())
        if proposal is None:
            raise QueueFull(_QUEUE_FULL.format(loop.replica.unanswered))
        try:
            answered = waiter.wait(deadline - loop.clock())
        except BaseException:
            # KeyboardInterrupt, or an exception some library throws into threads: leave nothing waiting behind.
            loop.give_up(proposal)
            raise
        if not answered:
            unsent = loop.give_up(proposal)
            # An answer may have come in this very moment.
            if waiter.answer is None:
                raise self._no_answer(loop, unsent, timeout)
        if isinstance(waiter.answer, CoordError):
            raise fresh(waiter.answer)
        return waiter.answer

    def _propose_async(
        self, maker: Maker, arguments: tuple[Any, ...], timeout: float | None, convert: Callable[[Any], Any]
    ) -> Future[Any]:
        """`_propose` without the wait. `convert` turns the reply into the result, or raises, on the loop's thread."""
        loop = self._running_loop()
        deadline = self._deadline(loop, timeout)
        future = loop.answer()
        future.set_running_or_notify_cancel()

        def done(reply: Any) -> None:
            try:
                if reply is EXPIRED or reply is WITHDRAWN:
                    raise self._no_answer(loop, reply is WITHDRAWN, timeout)
                if isinstance(reply, CoordError):
                    raise fresh(reply)
                result = convert(reply)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if loop.propose(maker, arguments, done, deadline - loop.clock(), deadline) is None:
            raise QueueFull(_QUEUE_FULL.format(loop.replica.unanswered))
        return future

    def _confirm_reads(self, timeout: float | None) -> None:
        """Wait until the local state is as new as the group's was when this was called."""
        loop = self._running_loop()
        deadline = self._deadline(loop, timeout)
        waiter = loop.waiter()
        read = Read(waiter.done)
        loop.read(read)
        try:
            answered = waiter.wait(deadline - loop.clock())
        except BaseException:
            read.abandoned = True
            raise
        if not answered:
            read.abandoned = True
            raise self._no_answer(loop, True, timeout)
        if waiter.answer is not None:
            raise fresh(waiter.answer)

    def _no_answer(self, loop: Loop, unsent: bool, timeout: float | None) -> CoordError:
        """Why a call has no answer, as an exception."""
        replica = loop.replica
        seconds = self.default_timeout if timeout is None else timeout
        leader = replica.core.leader
        if unsent and replica.refusal and leader is None:
            return IdentityError(f"{self.name!r} is refused by its group: {replica.refusal}")
        if leader is None:
            why = f"member {self.name!r} knows no leader; {_absent(loop)}"
        elif leader == self.name:
            why = f"{self.name!r} leads, but no majority of its group has answered"
        else:
            why = f"leader {leader!r} has not answered"
        if unsent:
            return Unavailable(
                f"no answer within {seconds:g} s: {why}; it had no effect, and may be repeated", leader=leader
            )
        return OutcomeUnknown(
            f"no answer within {seconds:g} s: {why}; it may have happened or may not, so read before repeating it",
            leader=leader,
        )


def _absent(loop: Loop) -> str:
    """Whom a member without a leader has not heard from."""
    silent = loop.replica.silent_members()
    return f"nothing heard from {', '.join(silent)}" if silent else "an election is under way"


_QUEUE_FULL = "{} requests of this process are waiting already, so this one was refused and had no effect; slow down"
