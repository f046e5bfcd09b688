"""A hold: what `acquire` gives, and a leadership is one too. Whether it stands, and how it ends.

It is good while its session's lease stands by the clock, which is compared in the asking thread: nothing has to be
told, or run, for it to end.

What must not live here: how it is acquired (`coord.lock`), how its end goes on its way (`coord.requests`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coord.errors import (
    AlreadyHeld,
    ConfigurationError,
    CoordError,
    ForkedError,
    LockLost,
    NotHeld,
    OutcomeUnknown,
)
from coord.logs import Log
from coord.loop import fresh
from coord.machine import commands, replies
from coord.requests import OVER, Request

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.lease import Lease
    from coord.loop import Loop

_log = Log("coord.lock")

#: What has become of a hold; "" while it is one, or is still asked for.
RELEASED, LOST, GIVEN_UP = "released", "lost", "given up"

#: Why a hold was lost, by the reason that callbacks are told.
_WHY = {
    "expired": "its session expired: the group had not heard of this process for too long",
    "superseded": "another process has started under this member's name, and took over its session",
    "closed": "its member was stopped",
    "stopped": "its member has stopped",
    "lapsed": "the group has not answered for the whole grace, and its session was given up",
    "gone": "the group holds it for this process no more",
    "suspended": "its lease ran out, because the group acknowledged no renewal",
}


class Hold:
    """What `acquire` gives: a lock that is held. Usable by any thread; in a `with` statement it releases at the end.

    It ends by itself when its session's lease does, and `held()` says so at once, whatever else hangs. That protects
    nothing that a thread is already in the middle of: give `token` along with what you write, and let the resource
    refuse a smaller one than it has seen.
    """

    #: What is raised once it is lost, and what it calls itself.
    _lost_error: type[CoordError] = LockLost
    _kind = "lock"

    def __init__(
        self, coordinator: Coordinator, loop: Loop, notify: Callable[[Request], None], name: str, **arguments: Any
    ) -> None:
        """Asked for by nobody yet. The rest as for `Request`."""
        self._coordinator = coordinator
        self._loop = loop
        self._pid = os.getpid()
        self._request = Request(name, notify=notify, lost=self._was_lost, **arguments)
        #: Guards the end of it, which comes once.
        self._mutex = threading.Lock()
        self._ended = ""
        self._reason = ""
        #: A `with` block of it has ended.
        self._left = False
        self._callbacks: list[Callable[[str], object]] = []
        #: Set when it ended by anything but its release.
        self.lost: threading.Event = loop.event()

    @property
    def name(self) -> str:
        return self._request.name

    @property
    def shared(self) -> bool:
        return self._request.shared

    @property
    def slot(self) -> int:
        """Which of the lock's permits, from 0."""
        return self._request.slot

    @property
    def token(self) -> int:
        """The fencing token: greater than that of whoever held it exclusively before, for ever, and at most 2**63 - 1.
        Shared holders who hold together have the same. LockLost when it is not held."""
        self.check()
        return self._request.token

    @property
    def sequencer(self) -> str:
        """This hold as a text for others, who can have it checked: `Coordinator.check_sequencer`. LockLost when it is
        not held."""
        token, request, identity = self.token, self._request, self._loop.replica.identity
        mode = "s" if request.shared else "x"
        cluster = f"{identity.fingerprint:016x}{identity.group_number:016x}"
        return f"v1:{cluster}:{mode}:{token}:{request.session:x}:{request.id}:{request.name}"

    def held(self) -> bool:
        """Whether it is held now, by the clock. Never blocks."""
        lease = self._request.lease
        return not self._ended and lease is not None and lease.stands(self._loop.clock()) and os.getpid() == self._pid

    def remaining(self) -> float:
        """Seconds for which it is held even if nothing is heard of the group; 0 when it is not."""
        return self._lease().remaining(self._loop.clock()) if self.held() else 0.0

    def check(self, min_remaining: float = 0.0) -> None:
        """LockLost unless it is held, and for `min_remaining` seconds more at least. Never blocks."""
        if not self.held():
            raise self._why_not_held()
        if self.remaining() < min_remaining:
            raise self._lost_error(
                f"{self._kind} {self.name!r} is sure for {self.remaining():.2f} s only, not for min_remaining="
                f"{min_remaining:g}: the group acknowledges no renewals; do not begin what takes longer"
            )

    def on_lost(self, fn: Callable[[str], object]) -> Callable[[str], object]:
        """Have `fn(reason)` called once it is lost, at once if it is already; never if it is released first.

        On the thread for callbacks; what it raises is logged. Returns `fn`. Reasons: "expired", "superseded", "lapsed",
        "closed", "stopped", "gone"; a leadership also "suspended".
        """
        with self._mutex:
            if self._ended != LOST:
                self._callbacks.append(fn)
                return fn
        self._call(fn)
        return fn

    def release(self) -> None:
        """Let others have it. Blocks until the group knows, for `default_timeout` at most.

        From the call on it is not held here, and goes on being released in the background whatever this raises: NotHeld
        if it was released or lost before; OutcomeUnknown if no answer came in time.
        """
        self._check_process()
        waiter = self._loop.waiter()
        release = partial(self._loop.replica.requests.release, self._request)
        try:
            with self._mutex:
                if self._ended:
                    raise NotHeld(f"{self._kind} {self.name!r} cannot be released: {self._what_became_of_it()}")
                stood = self._lease().stands(self._loop.clock())
                self._ended = RELEASED
            self._loop.post(partial(release, waiter.done))
            waiter.wait(self._coordinator.default_timeout)
        except NotHeld:
            raise
        except BaseException:
            # KeyboardInterrupt. It may not have come to be posted; twice does no harm.
            with self._mutex:
                self._ended = self._ended or RELEASED
            self._loop.post(partial(release, _nobody))
            raise
        answer = waiter.answer
        if answer is None:
            raise OutcomeUnknown(
                f"nobody has acknowledged within {self._coordinator.default_timeout:g} s that {self._kind} "
                f"{self.name!r} is released; that goes on in the background, and ends with the session at the latest"
            )
        if isinstance(answer, CoordError):
            raise fresh(answer)
        if answer[0] == replies.NOT_HELD and not stood:
            raise NotHeld(f"{self._kind} {self.name!r} was lost before it was released: its lease had run out")

    def downgrade(self) -> int:
        """From exclusive to shared, with nobody in between; returns the new token. Other shared requests may then be
        granted. Blocks for `default_timeout` at most; OutcomeUnknown if no answer came, NotHeld if it is not held.
        """
        self._check_process()
        if self._request.permits != 1:
            raise ConfigurationError(
                f"lock {self.name!r} has permits={self._request.permits}; only one with 1 is shared"
            )
        if self._ended:
            raise NotHeld(f"{self._kind} {self.name!r} cannot be downgraded: {self._what_became_of_it()}")
        if self.shared:
            raise AlreadyHeld(f"{self._kind} {self.name!r} is held shared already; nothing was changed")
        answer = self._ask("downgrade", self._loop.replica.requests.downgrade)
        if answer is None:
            raise OutcomeUnknown(f"no answer came in time whether lock {self.name!r} is shared now; it is held still")
        if answer[0] != replies.GRANTED:
            raise NotHeld(f"{self._kind} {self.name!r} was lost before it was downgraded")
        token: int = answer[1]
        return token

    def __enter__(self) -> Hold:
        self._enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit(self, error)

    def __repr__(self) -> str:
        mode = "shared" if self.shared else "exclusive"
        state = f"token {self._request.token}" if self.held() else self._ended or "not held"
        return f"<coord.{type(self).__name__} {self.name!r}, {mode}, {state}>"

    # -- within

    def _compare(self) -> commands.Command:
        """For a transaction that is to happen only while this is held. LockLost when it is not even now."""
        request = self._request
        return commands.compare_hold(request.name, request.session, request.id, self.token)

    def _enter(self, by: object) -> None:
        """A `with` block begins, of a handle or of this itself."""
        self._check_process()
        if not self.held():
            error = self._why_not_held()
            self._give_up()
            raise error
        inside = blocks_inside(self._coordinator)
        # A block may be left by another thread; what was lost within one is asked for at its end still.
        inside[:] = [*(entry for entry in inside if not entry[1]._left), (by, self)]

    def _exit(self, by: object, error: BaseException | None) -> None:
        """It ends: release. LockLost if it was lost, unless there is an `error` already."""
        held = False
        try:
            self._left = True
            held = self.held()
            inside = blocks_inside(self._coordinator)
            if (by, self) in inside:
                inside.remove((by, self))
            if self._ended == LOST:
                raise self._why_not_held()
            if not self._ended:
                self.release()
        except CoordError as problem:
            if error is not None:
                _log.warning("%s %r: %s", self._kind, self.name, problem)
                return
            if held or not isinstance(problem, NotHeld | OutcomeUnknown):
                raise
            raise self._lost_error(
                f"{self._kind} {self.name!r} was not held any more at the end of its block: {problem}"
            ) from problem
        except BaseException:
            # KeyboardInterrupt, before the release was begun.
            self._give_up()
            raise

    def _ask(self, what: str, begin: Callable[[Request, Callable[[Any], None]], None]) -> Any:
        """Have the loop's thread `begin` something with it, and wait for the reply; None when there is none in time."""
        waiter = self._loop.waiter()
        self._loop.post(partial(begin, self._request, waiter.done))
        if not waiter.wait(self._coordinator.default_timeout):
            _log.info("%s: no answer in time to the %s of %s %r", self._loop.name, what, self._kind, self.name)
        if isinstance(waiter.answer, CoordError):
            raise fresh(waiter.answer)
        return waiter.answer

    def _give_up(self) -> None:
        """It is of no use to anybody: see to it that nothing is left of it."""
        with self._mutex:
            self._ended = self._ended or GIVEN_UP
            self._left = True
        if self._request.state != OVER:
            self._loop.post(partial(self._loop.replica.requests.abandon, self._request))

    def _was_lost(self, request: Request, reason: str) -> None:
        """On the loop's thread."""
        with self._mutex:
            if self._ended:
                return
            self._ended, self._reason = LOST, reason
            callbacks, self._callbacks = self._callbacks, []
        say = _log.info if reason in ("closed", "stopped") else _log.warning
        say("%s: lost %s %r: %s", self._loop.name, self._kind, self.name, _WHY.get(reason, reason))
        self.lost.set()
        for fn in callbacks:
            self._call(fn)

    def _call(self, fn: Callable[[str], object]) -> None:
        self._loop.dispatcher.run(partial(_tell, fn, self._kind, self.name, self._reason))

    def _lease(self) -> Lease:
        lease = self._request.lease
        assert lease is not None, "not granted"
        return lease

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"{self._kind} {self.name!r} is held by process {self._pid}, not by its forked child {os.getpid()}; "
                "nothing was sent. Make and start a coordinator in the child, after the fork"
            )

    def _why_not_held(self) -> CoordError:
        if os.getpid() != self._pid:
            return self._lost_error(
                f"{self._kind} {self.name!r} is held by process {self._pid}, not by its forked child {os.getpid()}"
            )
        return self._lost_error(f"{self._kind} {self.name!r} is not held: {self._what_became_of_it()}")

    def _what_became_of_it(self) -> str:
        if self._ended == LOST:
            return f"it was lost, {_WHY.get(self._reason, self._reason)}. Somebody else may hold it"
        if self._ended == RELEASED:
            return "it was released before"
        if self._ended == GIVEN_UP or self._request.lease is None:
            return "it was never granted, or given up"
        return "its lease has run out, because the group has acknowledged no renewal. Somebody else may hold it"


def blocks_inside(coordinator: Coordinator) -> list[tuple[object, Hold]]:
    """The `with` blocks this thread is in: whose, and what was entered with."""
    local = coordinator._inside
    if not hasattr(local, "blocks"):
        local.blocks = []
    blocks: list[tuple[object, Hold]] = local.blocks
    return blocks


def _tell(fn: Callable[[str], object], kind: str, name: str, reason: str) -> None:
    try:
        fn(reason)
    except Exception:
        _log.exception("the callback for the loss of %s %r raised", kind, name)


def _nobody(reply: object) -> None:
    """Waits for it."""
