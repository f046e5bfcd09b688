"""`coordinator.election(...)`: a candidate, as its user sees it, and functions that only a leader runs.

An election is an exclusive lock. Here are the callers' threads, which say what they want and wait for it; what follows
from it, and from whatever else happens, is decided on the loop's thread.

What must not live here: how a term of office begins and ends (`coord.candidate`), what a user holds of an election
(`coord.leadership`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from coord.candidate import CLOSED, FOR_EVER, RESIGNED, Candidate, ElectedHook, RevokedHook, Term, registering
from coord.errors import AlreadyHeld, ClosedError, ConfigurationError, CoordError, LeadershipLost, LockTimeout, NotHeld
from coord.leadership import Leader, Leadership, Observation, encode, sight
from coord.lock import ELECTION, check_delay, check_name, check_number, patience
from coord.logs import Log
from coord.loop import fresh
from coord.machine.commands import LOCK_NAME_BYTES_MAX, OWNER_BYTES_MAX

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.loop import Loop

_log = Log("coord.election")

T = TypeVar("T")

_PRIORITY_MAX = 1000


class Election(Candidate):
    """A candidate for one election. Two in one process exclude each other. Usable by any thread.

    Hooks, each of them a decorator too, run one after the other on a thread of their own: those for `on_elected`, and
    when the term has ended those for `on_revoked`, each exactly once for each term. A hook may work for the whole term,
    as long as it stops soon after `leadership.stopping` is set. One that raises ends the term: another candidate may
    lead then, and this one stands again after `session_ttl` seconds.

    A term whose lock was lost ends at once, whatever its work does; if that still runs `stop_timeout` seconds later,
    `on_stuck` says what happens. A term that is resigned keeps its lock until its work has stopped, however long that
    takes, and loses it only with the session; so nobody else leads meanwhile.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        *,
        value: Any = None,
        priority: int = 0,
        stop_timeout: float = 20.0,
        on_stuck: Literal["log", "abort"] | Callable[[Leadership], object] = "log",
        lock_delay: float | None = None,
    ) -> None:
        """See `Coordinator.election`."""
        check_name(name, "election", LOCK_NAME_BYTES_MAX - len(ELECTION))
        check_number("priority", priority, -_PRIORITY_MAX, _PRIORITY_MAX)
        check_delay(lock_delay)
        _check_stopping(stop_timeout, on_stuck)
        super().__init__(
            coordinator,
            name,
            value=encode(value),
            priority=priority,
            stop_timeout=float(stop_timeout),
            on_stuck=on_stuck,
            lock_delay=lock_delay,
        )
        #: A thread is in `run` or `lead`.
        self._occupied = False

    # ----------------------------------------------------------------------------------------------------------------
    # Hooks.

    def on_elected(self, fn: ElectedHook) -> ElectedHook:
        """Have `fn(leadership)` called for each term from the next on. Returns `fn`."""
        self._elected_hooks.append(fn)
        return fn

    def on_revoked(self, fn: RevokedHook) -> RevokedHook:
        """Have `fn(leadership, reason)` called at the end of each term, once its `on_elected` hooks have returned.
        Returns `fn`.

        Reasons: "resigned", "closed"; "failed": a hook raised; "suspended": the lease ran out; or one of those of
        `Hold.on_lost`.
        """
        self._revoked_hooks.append(fn)
        return fn

    def on_jeopardy(self, fn: ElectedHook) -> ElectedHook:
        """Have `fn(leadership)` called, on another thread than the other hooks, when the group has acknowledged no
        renewal for long: nobody else leads for `leadership.remaining()` seconds yet. Returns `fn`."""
        self._jeopardy_hooks.append(fn)
        return fn

    # ----------------------------------------------------------------------------------------------------------------
    # Standing for election.

    def volunteer(self) -> None:
        """Stand for election, until `resign` or `close`; once the coordinator is started, if it is not. Harmless to
        repeat. Does not block; ClosedError after `close`."""
        if self._coordinator._loop is not None:
            self._coordinator._running_loop().check()
        with self._condition:
            self._check_open()
            self._volunteered = True
            if self._wanted:
                return
            self._want()
        self._coordinator._when_started(self._attach)

    def resign(self, to: str | None = None) -> bool:
        """Stop leading and standing, until `volunteer` is called. `to`: the member whose candidate is to be the next
        leader, if one waits.

        Blocks until the work has stopped and the lock is released; True then. False after `stop_timeout` seconds: the
        work goes on, and keeps the lock until it stops, or the session ends. Called by that work itself, it returns
        False at once, and the rest follows when that returns.
        """
        if to is not None:
            check_name(to, "member", OWNER_BYTES_MAX)
        return self._give_up(RESIGNED, to or "", self._stop_timeout)

    def close(self) -> bool:
        """Resign for ever; as `resign`. Idempotent. `run` returns, unless its function runs; then when that has."""
        self._closed = True
        return self._give_up(CLOSED, "", self._stop_timeout)

    def run(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Stand for election, and call `fn(leadership, *args, **kwargs)` in this thread when elected. When the
        leadership was lost meanwhile, whatever `fn` returned or raised, stand again.

        Returns what `fn` returned, or None when the election is closed or resigned by another thread while it waits;
        raises what `fn` raised, or why the member has stopped. Either way it has resigned then. `fn` should return soon
        after `leadership.stopping` is set. Blocks for as long as all that takes.
        """
        loop = self._occupy()
        try:
            while (term := self._await_term(loop, FOR_EVER)) is not None:
                again, result = self._serve(loop, term, fn, args, kwargs)
                if not again:
                    return result
            return None
        finally:
            self._vacate(loop)

    @contextmanager
    def lead(self, timeout: float | None = -1) -> Iterator[Leadership]:
        """`with election.lead() as leadership`: enters when elected, resigns at the end.

        timeout: seconds to wait; -1: for ever; None: `default_timeout`; LockTimeout after them. At the end,
        LeadershipLost if it was lost, unless another exception is on its way.
        """
        seconds = patience(timeout, self._coordinator.default_timeout)
        loop = self._occupy()
        try:
            term = self._await_term(loop, seconds)
            if term is None:
                raise self._not_elected(seconds)
            lost: CoordError | None = None
            try:
                yield term.leadership
            except Exception:
                self._finish_body(loop, term)
                raise
            else:
                if not term.leadership.held():
                    lost = term.leadership._why_not_held()
                self._finish_body(loop, term)
            finally:
                self._leave_body(loop, term)
            if lost is not None:
                raise lost
        finally:
            self._vacate(loop)

    # ----------------------------------------------------------------------------------------------------------------
    # Who leads.

    @property
    def is_leader(self) -> bool:
        """Whether this candidate leads now, by the clock. False from `resign` on, in a forked child, before the
        coordinator's start and after its end. Never blocks."""
        return self._leadership() is not None

    def leader(self) -> Leader | None:
        """Who leads, as far as this member knows; None: nobody. May block for a turn of the background thread;
        Unavailable when that hangs."""
        loop = self._coordinator._running_loop()
        sighting = loop.call(partial(sight, loop.replica, ELECTION + self.name), self._coordinator.default_timeout)
        return None if sighting is None else sighting.read()

    def observe(self, callback: Callable[[Leader | None], object] | None = None) -> Observation:
        """News of who leads, nobody included: first how it is, then each change. An iterator; or, with a callback, that
        is called on the thread for callbacks. `close()` ends it. Nobody need stand for election here."""
        loop = self._coordinator._running_loop()
        loop.check()
        return Observation(loop, ELECTION + self.name, callback)

    def __repr__(self) -> str:
        state = (
            "leads" if self.is_leader else "closed" if self._closed else "stands" if self._wanted else "does not stand"
        )
        return f"<coord.Election {self.name!r} of {self._coordinator.name!r}, {state}>"

    # ----------------------------------------------------------------------------------------------------------------
    # In callers' threads.

    def _leadership(self) -> Leadership | None:
        """That of now."""
        term = self._term
        if term is None or not term.elected or term.leadership.stopping.is_set() or not term.leadership.held():
            return None
        return term.leadership

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"election {self.name!r}: this candidate was closed; make another")

    def _occupy(self) -> Loop:
        loop = self._coordinator._running_loop()
        loop.check()
        with self._condition:
            self._check_open()
            if self._occupied:
                raise AlreadyHeld(f"election {self.name!r}: this candidate is in run() or lead() already; make another")
            self._occupied = True
            self._want()
        self._attach(loop)
        return loop

    def _vacate(self, loop: Loop) -> None:
        """`run` or `lead` ends, however: nothing is left behind."""
        with self._condition:
            self._occupied = False
            term = self._term
        if term is not None:
            self._leave_body(loop, term)
        self._renounce_all(RESIGNED, "")

    def _await_term(self, loop: Loop, seconds: float) -> Term | None:
        """The term this thread is to serve in; None when there is none in time, or ever. Raises why the member has
        stopped."""

        def known() -> bool:
            term = self._term
            elected = term is not None and term.elected and not term.ending and not term.leadership.stopping.is_set()
            return elected or not self._wanted or self._error is not None

        with self._condition:
            if not self._wait_for(loop, known, seconds):
                return None
            if self._error is not None and self._wanted:
                raise fresh(self._error)
            term = self._term
            if not self._wanted or term is None:
                return None
            term.tasks += 1
            term.body = threading.get_ident()
            self._working.append(term.body)
            return term

    def _not_elected(self, seconds: float) -> CoordError:
        if not self._wanted:
            return LockTimeout(f"election {self.name!r}: resigned or closed before it was won")
        why = f"; it was refused: {self._refusal}" if self._refusal is not None else ""
        return LockTimeout(f"election {self.name!r} was not won within {seconds:g} s{why}")

    def _serve(
        self, loop: Loop, term: Term, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bool, T | None]:
        """Call it in office. Whether to stand again, or what it returned."""
        try:
            try:
                result = fn(term.leadership, *args, **kwargs)
            except Exception as error:
                if not isinstance(error, LeadershipLost) and not self._ended_meanwhile(term):
                    self._finish_body(loop, term)
                    raise
                _log.warning("%s: leader of %r stopped: %r", loop.name, self.name, error)
                self._renounce_now(loop, term)
                return True, None
            if self._ended_meanwhile(term):
                self._renounce_now(loop, term)
                return True, None
            self._finish_body(loop, term)
            return False, result
        finally:
            self._leave_body(loop, term)

    def _ended_meanwhile(self, term: Term) -> bool:
        """Whether what `run` called has ended because the term did, and not the other way round."""
        return not term.leadership.held() or (bool(term.ending) and self._wanted)

    def _renounce_now(self, loop: Loop, term: Term) -> None:
        """Not to be served in again, even before the loop's thread has seen to that."""
        term.leadership.stopping.set()
        loop.post(partial(self._renounce, term))

    def _finish_body(self, loop: Loop, term: Term) -> None:
        """It has done its work: resign, and see the lock released."""
        self._leave_body(loop, term)
        self._give_up(RESIGNED, "", self._stop_timeout)

    def _leave_body(self, loop: Loop, term: Term) -> None:
        """Once it was left, harmless to repeat."""
        with self._condition:
            if not term.body:
                return
            self._working.remove(term.body)
            term.body = 0
        loop.post(partial(self._task_done, term))

    def _begin_close(self) -> Term | None:
        self._closed = True
        return self._renounce_all(CLOSED, "")[1]

    def _has_stopped(self, term: Term | None, patience: float) -> bool:
        """Wait until the work has: what is released then is on its way."""
        loop = self._loop
        if term is None or loop is None or not term.elected:
            return True
        if threading.get_ident() in self._working or loop.replica.failure is not None:
            # This very thread is to stop; or the lock is gone with the member, so that nothing depends on it.
            return term.finished
        if self._wait_for(loop, lambda: term.finished, max(0.0, patience)):
            return True
        self._say_stuck(f"goes on {patience:g} s after it was to stop, so the lock is kept", loop.name)
        return False


def _check_stopping(stop_timeout: object, on_stuck: object) -> None:
    if not isinstance(stop_timeout, int | float) or isinstance(stop_timeout, bool) or not 0 <= stop_timeout <= 86_400:
        raise ConfigurationError(f"stop_timeout={stop_timeout!r}: expected seconds from 0 to 86400")
    if on_stuck not in ("log", "abort") and not callable(on_stuck):
        raise ConfigurationError(f'on_stuck={on_stuck!r}: expected "log", "abort" or a function')


# ---------------------------------------------------------------------------------------------------------------------
# Of a coordinator.


def leader_only(
    coordinator: Coordinator, name: str, *, otherwise: str = "skip"
) -> Callable[[Callable[..., T]], Callable[..., T | None]]:
    """See `Coordinator.leader_only`. A parameter named `leadership` is given the `Leadership`."""
    if otherwise not in ("skip", "raise"):
        raise ConfigurationError(f'otherwise={otherwise!r}: expected "skip" or "raise"')
    own = Election(coordinator, name)

    def find() -> Leadership | None:
        with registering:
            known = coordinator._elections.get(name)
            handles = list(known or ())
        if known is None:
            own.volunteer()
        return next((found for handle in handles if (found := handle._leadership()) is not None), None)

    def decorate(fn: Callable[..., T]) -> Callable[..., T | None]:
        _check_plain(fn)
        wants_leadership = "leadership" in signature(fn).parameters

        @wraps(fn)
        def call(*arguments: Any, **keywords: Any) -> T | None:
            leadership = find()
            if leadership is not None:
                if wants_leadership:
                    keywords["leadership"] = leadership
                return fn(*arguments, **keywords)
            if coordinator._loop is not None:
                coordinator._running_loop().check()
            if otherwise == "raise":
                raise NotHeld(f"{coordinator.name!r} does not lead {name!r}, so {fn.__qualname__} was not called")
            return None

        return call

    return decorate


def _check_plain(fn: Callable[..., Any]) -> None:
    if not callable(fn):
        raise TypeError(f"{fn!r} is no function; write @coordinator.leader_only(name) above one")
    if iscoroutinefunction(fn) or isgeneratorfunction(fn) or isasyncgenfunction(fn):
        raise TypeError(
            f"{fn.__qualname__} is a coroutine or generator function: calling it only makes one, and its body would "
            "run whoever leads by then. Ask `election.is_leader` inside of it"
        )


def on_leader(coordinator: Coordinator, fn: Callable[..., T]) -> Callable[..., T]:
    """See `Coordinator.on_leader`. All functions of a coordinator share one candidate, and are called in order."""
    with registering:
        handles = [handle for handle in coordinator._elections.get(ON_LEADER, ()) if isinstance(handle, _Shared)]
    election = handles[0] if handles else _Shared(coordinator, ON_LEADER)
    election.on_elected(fn)
    election.volunteer()
    return fn


#: The election that `on_leader` stands for.
ON_LEADER = "leader"


class _Shared(Election):
    """That of `on_leader`."""


def close_all(coordinator: Coordinator, timeout: float) -> bool:
    """Close every candidate: what leads stops, and is released on the way. Blocks until all work has stopped, or for
    `timeout` seconds; False then, or when it is such work that calls this."""
    with registering:
        elections = [election for handles in coordinator._elections.values() for election in handles]
    loop = coordinator._running_loop()
    deadline = loop.clock() + timeout
    closing = [(election, election._begin_close()) for election in elections]
    stopped = True
    for election, term in closing:
        stopped &= election._has_stopped(term, deadline - loop.clock())
    return stopped
