"""What every handle on a group shares: the ways a caller's thread asks for something and waits, and what answers mean.

What must not live here: how a member runs (`coord.node`, `coord.loop`), what one kind of handle offers
(`coord.config_map`, `coord.cluster`).
"""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from coord import election as elections
from coord import lock as locks
from coord.election import Election
from coord.errors import (
    ClosedError,
    CoordError,
    ForkedError,
    IdentityError,
    OutcomeUnknown,
    QueueFull,
    Unavailable,
)
from coord.lock import Lock
from coord.loop import Loop, fresh
from coord.proposals import EXPIRED, WITHDRAWN, Maker
from coord.reads import Read
from coord.recipes import Barrier, Counter, DoubleBarrier, Party

if TYPE_CHECKING:
    from collections.abc import Callable

    from coord.cluster import Cluster
    from coord.config_map import ConfigMap
    from coord.session import Session


T = TypeVar("T")


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
    """A handle on a group: `config`, `lock()`, `election()`, `session`, `cluster`, `status()` and what is built on
    them. Made by `coord.Node`. Safe for use by any thread.

    Not to be used after a fork: the child has no background thread, so every call raises `ForkedError` there.
    """

    name: str
    config: ConfigMap
    cluster: Cluster
    session: Session
    default_timeout: float

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop: Loop | None = None
        #: What to do once there is a loop.
        self._waiting_for_start: list[Callable[[Loop], None]] = []
        #: Handles that stand for election, or lead, by the election's name.
        self._elections: dict[str, list[Election]] = {}
        #: What `coord.recipes` shares between the handles of one coordinator: parties by name, numbers of seats.
        self._memberships: dict[str, Any] = {}
        self._seats = itertools.count(1)
        #: Names of the locks whose `with` blocks each thread is in.
        self._inside = threading.local()

    def status(self) -> Status:
        """What this member knows now. May block for a turn of the background thread; Unavailable when that hangs."""
        raise AssertionError("a coordinator says how")

    # -- locks and elections

    def lock(
        self,
        name: str,
        *,
        shared: bool = False,
        permits: int = 1,
        priority: int = 0,
        lock_delay: float | None = None,
        fenced: bool = False,
        reclaim: bool = False,
    ) -> Lock:
        """A handle on the lock `name`; nothing is asked of the group before `acquire`. A handle holds once at a time;
        two handles exclude each other, also within a process.

        shared: with other shared holders, and no exclusive one.
        permits: how many may hold at a time, each a numbered slot with tokens of its own; the same for all who use it.
        priority: higher ones are granted first; -1000 to 1000.
        lock_delay: seconds for which nobody is granted a lock whose holder was lost rather than released it; 0 to 60.
            None: as long as a session lasts unheard, or 0 if `fenced`.
        fenced: every resource the lock protects compares tokens, so there is no need for a delay.
        reclaim: this member, by its name, need not wait for the delay that it has itself caused.

        ConfigurationError for a name or number that cannot be.
        """
        return Lock(
            self,
            name,
            shared=shared,
            permits=permits,
            priority=priority,
            lock_delay=lock_delay,
            fenced=fenced,
            reclaim=reclaim,
        )

    def locked(
        self,
        name: str,
        *,
        timeout: float | None = -1,
        on_busy: Literal["wait", "skip", "raise"] = "wait",
        shared: bool = False,
        permits: int = 1,
        priority: int = 0,
        lock_delay: float | None = None,
        fenced: bool = False,
        reclaim: bool = False,
    ) -> Callable[[Callable[..., T]], Callable[..., T | None]]:
        """Decorator: each call of the function holds the lock. A parameter named `hold` is given the `Hold`.

        on_busy: "wait" up to `timeout` seconds (-1: for ever), then LockTimeout; "skip" the call, which returns None;
            "raise" LockTimeout at once. The others as for `lock`. LockLost when the lock was lost during the call.
        """
        return locks.locked(
            self,
            name,
            timeout=timeout,
            on_busy=on_busy,
            shared=shared,
            permits=permits,
            priority=priority,
            lock_delay=lock_delay,
            fenced=fenced,
            reclaim=reclaim,
        )

    def check_sequencer(self, text: str, *, linearizable: bool = True, timeout: float | None = None) -> bool:
        """Tell whether the hold that `text`, a `Hold.sequencer`, speaks of stands. ValueError if it is none.

        `linearizable`: as of now, asking a quorum; else by the local copy: False is certain, True may be old. Either
        way it is about this moment; what must not be late is for the resource to refuse, by the token.
        """
        return locks.check_sequencer(self, text, linearizable=linearizable, timeout=timeout)

    def election(
        self,
        name: str,
        *,
        value: Any = None,
        priority: int = 0,
        stop_timeout: float = 20.0,
        on_stuck: Literal["log", "abort"] | Callable[..., object] = "log",
        lock_delay: float | None = None,
    ) -> Election:
        """A candidate for the election `name`; it does not stand before `volunteer`, `run` or `lead`.

        value: published while it leads, see `Election.leader`; anything the config map can hold, up to 4096 bytes.
        priority: higher ones are elected first; nobody is deposed for one.
        stop_timeout: seconds the work of a leader has to stop in, once it leads no more.
        on_stuck: what to do when it has not: "log" an error, "abort" the process, or a function to call.
        lock_delay: as for `lock`.
        """
        return Election(
            self,
            name,
            value=value,
            priority=priority,
            stop_timeout=stop_timeout,
            on_stuck=on_stuck,
            lock_delay=lock_delay,
        )

    def leader_only(
        self, name: str, *, otherwise: Literal["skip", "raise"] = "skip"
    ) -> Callable[[Callable[..., T]], Callable[..., T | None]]:
        """Decorator: the function runs only in the process that leads the election `name`; in all others a call returns
        None, or raises NotHeld. Its first call stands for election, unless the process does already. A parameter named
        `leadership` is given the `Leadership`."""
        return elections.leader_only(self, name, otherwise=otherwise)

    def on_leader(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Decorator: stand for the election "leader", and call `fn(leadership)` whenever elected."""
        return elections.on_leader(self, fn)

    # -- recipes

    def party(self, name: str, value: Any = None) -> Party:
        """Who is here: see `coord.recipes.Party`."""
        return Party(self, name, value)

    def barrier(self, name: str) -> Barrier:
        """Wait until somebody lets all go on: see `coord.recipes.Barrier`."""
        return Barrier(self, name)

    def double_barrier(self, name: str, count: int) -> DoubleBarrier:
        """Begin together and end together: see `coord.recipes.DoubleBarrier`."""
        return DoubleBarrier(self, name, count)

    def counter(self, name: str, default: int = 0) -> Counter:
        """A number that all may add to: see `coord.recipes.Counter`."""
        return Counter(self, name, default)

    # -- within

    def _when_started(self, act: Callable[[Loop], None]) -> None:
        """Do it now, or else once the coordinator is started."""
        if self._loop is None:
            self._waiting_for_start.append(act)
        else:
            act(self._running_loop())

    def _begin(self, loop: Loop) -> None:
        waiting, self._waiting_for_start = self._waiting_for_start, []
        for act in waiting:
            act(loop)

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
