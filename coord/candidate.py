"""A candidate in an election, as the loop's thread moves it on: from standing, through office, to the end of its work.

It is a state machine, driven by what becomes of its request for the election's lock; no thread is its own before its
first hook is called. A term of office ends for good when the lease does, even if the session comes back. Work is
stopped first, and then the lock is given back: as long as a hook runs, or the body of `run` or `lead`, nobody releases
it, and this candidate stands for no other term.

What must not live here: what callers do and wait for (`coord.election`), how locks are asked for (`coord.requests`).
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from coord import logs
from coord.errors import CoordError
from coord.leadership import SUSPENDED, Leadership
from coord.lease import JEOPARDY
from coord.lease import SUSPENDED as LEASE_SUSPENDED
from coord.lock import ELECTION, lock_delay
from coord.requests import GRANTED

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.election import Election
    from coord.lease import Lease
    from coord.loop import Dispatcher, Loop
    from coord.requests import Request

_log = logs.Log("coord.election")

ElectedHook = Callable[[Leadership], object]
RevokedHook = Callable[[Leadership, str], object]

#: Why a term ended, besides `SUSPENDED` and the reasons for which any hold is lost.
RESIGNED, CLOSED, FAILED = "resigned", "closed", "failed"

#: Of a process whose leader's work did not stop; EX_SOFTWARE.
_EXIT_STATUS = 70
#: How long a candidate that was refused, for a full queue say, waits before it stands again; in seconds.
_REFUSED_SECONDS = 1.0
#: How long `on_stuck="abort"` waits for what it says to reach the log.
_LAST_WORDS_SECONDS = 1.0
#: No wait is longer, but for this.
_WAIT_SECONDS_MAX, FOR_EVER = 1e6, float("inf")

#: Guards every coordinator's `_elections`.
registering = threading.Lock()


class Term:
    """From standing for election to the end of all that was done in office. Guarded by its election's condition."""

    def __init__(self) -> None:
        self.leadership: Leadership
        self.elected = False
        #: Why it ended, or is to end.
        self.ending = ""
        #: The lease is over, so somebody else may lead.
        self.over = False
        #: Hooks that run or are to, and the body of `run` or `lead`.
        self.tasks = 0
        #: The thread of that body, or 0.
        self.body = 0
        #: It ended before its first hook came to be called, so none is.
        self.skipped = False
        #: A hook raised.
        self.failed = False
        self.successor = ""
        #: All work has stopped, and the lock is given back, or is no longer ours.
        self.finished = False


class Candidate:
    """What an `Election` is besides what callers do with it; made as one only."""

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        *,
        value: bytes,
        priority: int,
        stop_timeout: float,
        on_stuck: Literal["log", "abort"] | Callable[[Leadership], object],
        lock_delay: float | None,
    ) -> None:
        self.name = name
        self.priority = priority
        #: Hooks that raised.
        self.failures = 0
        self._coordinator = coordinator
        self._value = value
        self._stop_timeout = stop_timeout
        self._on_stuck = on_stuck
        self._lock_delay = lock_delay
        self._elected_hooks: list[ElectedHook] = []
        self._revoked_hooks: list[RevokedHook] = []
        self._jeopardy_hooks: list[ElectedHook] = []
        self._loop: Loop | None = None
        #: Guards all below. The loop's thread takes the decisions; others say what they want, and wait.
        self._condition = threading.Condition()
        self._wanted = False
        self._closed = False
        #: It was volunteered for by name, so `leader_only` need not.
        self._volunteered = False
        self._term: Term | None = None
        #: Stands again only after a while.
        self._cooling = False
        #: Why the group last refused it, and why its member has stopped.
        self._refusal: CoordError | None = None
        self._error: CoordError | None = None
        #: The threads that run its work now.
        self._working: list[int] = []
        self._executors: dict[str, Dispatcher] = {}

    # ----------------------------------------------------------------------------------------------------------------
    # Common to all threads.

    def _want(self) -> None:
        self._wanted = True
        with registering:
            handles = self._coordinator._elections.setdefault(self.name, [])
            if self not in handles:
                handles.append(cast("Election", self))

    def _attach(self, loop: Loop) -> None:
        self._loop = loop
        loop.post(self._advance)

    def _wait_for(self, loop: Loop, condition: Callable[[], bool], seconds: float) -> bool:
        with self._condition:
            loop.wait_for(self._condition, condition, None if seconds == FOR_EVER else min(seconds, _WAIT_SECONDS_MAX))
            return condition()

    def _give_up(self, reason: str, successor: str, patience: float) -> bool:
        """Resign. Returns whether all has stopped, and the lock was released, within so many seconds."""
        loop, term = self._renounce_all(reason, successor)
        return loop is None or term is None or self._wait_out(loop, term, patience)

    def _renounce_all(self, reason: str, successor: str) -> tuple[Loop | None, Term | None]:
        """Resign, and wait for nothing."""
        if os.getpid() != self._coordinator._pid:
            # Raises: the candidate is the parent's.
            self._coordinator._running_loop()
        with self._condition:
            self._wanted = False
            term, loop = self._term, self._loop
            if term is not None and term.elected:
                # At once, so that nothing is begun any more.
                term.leadership.stopping.set()
            if loop is None:
                self._unregister()
            self._condition.notify_all()
        if loop is not None:
            loop.post(partial(self._withdraw, term, reason, successor))
        return loop, term

    def _wait_out(self, loop: Loop, term: Term, patience: float) -> bool:
        """Until nothing is left of the term; not if this very thread is what has to stop."""
        if threading.get_ident() in self._working:
            return False
        if self._wait_for(loop, lambda: self._term is not term, patience):
            return True
        if not term.finished:
            self._say_stuck(f"goes on {patience:g} s after it was to stop, so the lock is kept", loop.name)
        return False

    def _say_stuck(self, what: str, member: str) -> None:
        frames = sys._current_frames()
        stacks = ["".join(traceback.format_stack(frames[thread])) for thread in self._working if thread in frames]
        _log.error("%s: the work of leader %r %s; it is here:\n%s", member, self.name, what, "\n".join(stacks))

    # ----------------------------------------------------------------------------------------------------------------
    # On the loop's thread: standing.

    def _advance(self) -> None:
        """Do what follows from what is wanted."""
        with self._condition:
            if self._term is not None:
                return
            if not self._wanted:
                self._unregister()
            elif not self._cooling and self._error is None:
                self._term = self._stand()
            term = self._term
        if term is not None:
            self._the_loop.replica.requests.ask(term.leadership._request)

    def _stand(self) -> Term:
        term, loop = Term(), self._the_loop
        term.leadership = Leadership(
            self._coordinator,
            loop,
            self.name,
            partial(self._answered, term),
            partial(self._over, term),
            self._release,
            name=ELECTION + self.name,
            priority=self.priority,
            delay=lock_delay(self._lock_delay, False, loop),
            value=self._value,
        )
        return term

    def _release(self) -> None:
        """A leadership was released as if it were a lock."""
        self._give_up(RESIGNED, "", self._stop_timeout)

    def _answered(self, term: Term, request: Request) -> None:
        """Elected; or refused, and then nothing is held."""
        if request.outcome != GRANTED:
            self._refused(term, request.error)
            return
        with self._condition:
            if term is not self._term or not self._wanted:
                # Whoever resigned has not been here yet.
                withdrawn = True
            else:
                withdrawn, term.elected = False, True
            self._condition.notify_all()
        if withdrawn:
            self._abandon(term)
            return
        replica = self._the_loop.replica
        replica.own.watchers.append(self._lease_changed)
        _log.info("%s: elected leader of %r, token %d", self._the_loop.name, self.name, request.token)
        if self._elected_hooks:
            self._run_hooks(term, "", self._call_elected)
        if request.lease is not None:
            self._lease_changed(request.lease, request.lease.state(replica.now))

    def _refused(self, term: Term, error: CoordError | None) -> None:
        loop = self._the_loop
        with self._condition:
            if term is not self._term:
                return
            self._term, self._refusal = None, error
            if loop.replica.failure is not None:
                self._error = loop.replica.failure
            self._condition.notify_all()
        if self._error is None:
            _log.warning("%s: refused as a candidate for %r, and will try again: %s", loop.name, self.name, error)
            self._cool(_REFUSED_SECONDS)
        self._advance()

    def _withdraw(self, term: Term | None, reason: str, successor: str) -> None:
        """What was wanted until now is not any more."""
        if term is not None and term is self._term:
            if term.elected:
                if not term.ending:
                    term.successor = successor
                self._end_term(term, reason)
            elif not self._wanted:
                self._abandon(term)
        self._advance()

    def _abandon(self, term: Term) -> None:
        """A term that has not begun never will."""
        self._the_loop.replica.requests.abandon(term.leadership._request)
        term.leadership._retire()
        with self._condition:
            term.finished = True
            if self._term is term:
                self._term = None
            self._condition.notify_all()
        self._advance()

    def _cool(self, seconds: float) -> None:
        self._cooling = True
        self._the_loop.later(seconds, self._cooled)

    def _cooled(self) -> None:
        self._cooling = False
        self._advance()

    def _unregister(self) -> None:
        """It neither stands nor leads."""
        with registering:
            elections = self._coordinator._elections
            handles = elections.get(self.name, [])
            if self in handles:
                handles.remove(self)
            # An empty list says that the election was volunteered for once, and resigned.
            if not handles and not self._volunteered:
                elections.pop(self.name, None)
        executors, self._executors = self._executors, {}
        for executor in executors.values():
            executor.close()

    @property
    def _the_loop(self) -> Loop:
        assert self._loop is not None, "not started"
        return self._loop

    # ----------------------------------------------------------------------------------------------------------------
    # On the loop's thread: in office.

    def _lease_changed(self, lease: Lease, state: str) -> None:
        term = self._term
        if term is None or not term.elected or term.over or lease is not term.leadership._request.lease:
            return
        if state == LEASE_SUSPENDED:
            self._over(term, SUSPENDED)
        elif state == JEOPARDY and self._jeopardy_hooks and not term.ending:
            self._run_hooks(term, " in jeopardy", self._call_jeopardy)

    def _renounce(self, term: Term) -> None:
        """Its work has ended, for it was lost, or may have been."""
        if term is self._term:
            if term.leadership.held():
                self._end_term(term, FAILED)
            else:
                self._over(term, SUSPENDED)

    def _over(self, term: Term, reason: str) -> None:
        """Somebody else may lead from now on."""
        if term.over or term.finished:
            return
        term.over = True
        term.leadership._lapse()
        self._end_term(term, reason)
        if not term.finished:
            self._watch(term)

    def _end_term(self, term: Term, reason: str) -> None:
        """Have the work stop; `_finish` follows when it has."""
        with self._condition:
            if term.ending:
                return
            term.ending = reason
            term.leadership.stopping.set()
            self._condition.notify_all()
        if self._revoked_hooks:
            self._run_hooks(term, "", self._call_revoked)
        if not term.tasks:
            self._finish(term)

    def _task_done(self, term: Term) -> None:
        with self._condition:
            term.tasks -= 1
            stopped = not term.tasks and bool(term.ending)
        if stopped:
            self._finish(term)

    def _finish(self, term: Term) -> None:
        """All work has stopped: let others have the lock."""
        with self._condition:
            if term.finished:
                return
            term.finished = True
            self._condition.notify_all()
        leadership, requests = term.leadership, self._the_loop.replica.requests
        leadership._retire()
        if term.over:
            # If only the lease was lost, the session may have come back with it.
            requests.abandon(leadership._request)
            self._left(term)
        else:
            requests.release(leadership._request, lambda reply: self._left(term), term.successor)

    def _left(self, term: Term) -> None:
        """The term is history."""
        loop = self._the_loop
        watchers = loop.replica.own.watchers
        if self._lease_changed in watchers:
            watchers.remove(self._lease_changed)
        _log.info("%s: leads %r no more: %s", loop.name, self.name, term.ending)
        with self._condition:
            if self._term is not term:
                return
            self._term = None
            if loop.replica.failure is not None:
                self._error = loop.replica.failure
            self._condition.notify_all()
        if term.failed:
            self._cool(loop.replica.options.session_ttl)
        self._advance()

    # ----------------------------------------------------------------------------------------------------------------
    # Hooks, and what they do not stop.

    def _run_hooks(self, term: Term, order: str, call: Callable[[Term], None]) -> None:
        with self._condition:
            term.tasks += 1
            if order not in self._executors:
                self._executors[order] = self._the_loop.executor(f"election {self.name}{order}")
            executor = self._executors[order]
        executor.run(partial(self._work, term, call))

    def _work(self, term: Term, call: Callable[[Term], None]) -> None:
        """On the hooks' thread."""
        thread = threading.get_ident()
        with self._condition:
            self._working.append(thread)
        try:
            call(term)
        finally:
            with self._condition:
                self._working.remove(thread)
            self._the_loop.post(partial(self._task_done, term))

    def _call_elected(self, term: Term) -> None:
        with self._condition:
            term.skipped = bool(term.ending) or term.leadership.stopping.is_set()
        if not term.skipped and not self._call_all(self._elected_hooks, term.leadership):
            term.failed = True
            self._the_loop.post(partial(self._end_term, term, FAILED))

    def _call_revoked(self, term: Term) -> None:
        if not term.skipped:
            for hook in self._revoked_hooks:
                self._call_all([hook], term.leadership, term.ending)

    def _call_jeopardy(self, term: Term) -> None:
        if not term.ending:
            self._call_all(self._jeopardy_hooks, term.leadership)

    def _call_all(self, hooks: list[Any], *arguments: Any) -> bool:
        """False: one raised, and those behind it were not called."""
        for hook in hooks:
            try:
                hook(*arguments)
            except KeyboardInterrupt:
                raise
            except BaseException:
                self.failures += 1
                _log.exception("%s: a hook of election %r raised", self._the_loop.name, self.name)
                return False
        return True

    def _watch(self, term: Term) -> None:
        """See whether the work stops in time, now that somebody else may lead."""
        loop = self._the_loop
        if loop.replica.failure is None:
            loop.later(self._stop_timeout, partial(self._watch_apart, term, 0.0))
        elif self._working and threading.get_ident() not in self._working:
            # The member stops, and with it all that could do something later.
            self._watch_apart(term, self._stop_timeout)

    def _watch_apart(self, term: Term, patience: float) -> None:
        """On a thread for this alone: the hooks' may hang, and the loop's has better things to do."""
        if not term.finished:
            executor = self._the_loop.executor(f"election {self.name} stopping")
            executor.run(partial(self._watch_on, term, patience))
            executor.close()

    def _watch_on(self, term: Term, patience: float) -> None:
        if not self._wait_for(self._the_loop, lambda: term.finished, patience):
            self._check_stopped(term)

    def _check_stopped(self, term: Term) -> None:
        loop, on_stuck = self._the_loop, self._on_stuck
        self._say_stuck(f"goes on {self._stop_timeout:g} s after the leadership was lost", loop.name)
        if on_stuck == "abort":
            logs.flush(_LAST_WORDS_SECONDS)
            os._exit(_EXIT_STATUS)
        elif callable(on_stuck):
            loop.dispatcher.run(lambda: _call_stuck(on_stuck, term.leadership))


def _call_stuck(on_stuck: Callable[[Leadership], object], leadership: Leadership) -> None:
    try:
        on_stuck(leadership)
    except Exception:
        _log.exception("on_stuck of election %r raised", leadership.name)
