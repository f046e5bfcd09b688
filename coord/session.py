"""`coordinator.session`: the one session of a coordinator, as its user sees it.

Everything a coordinator holds (locks, leaderships, ephemeral keys) it holds in its session, and loses with it. The
session renews itself; a user need not do anything, but may watch it, and may make it depend on the host's being alive.

What must not live here: how a session is kept alive (`coord.own_session`), what a lease is (`coord.lease`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from coord import lease as leases
from coord.errors import CoordError
from coord.lease import Lease
from coord.logs import Log

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.loop import Loop

_log = Log("coord.session")


class Session:
    """States:

    - VALID: all is well.
    - JEOPARDY: the group has not acknowledged a renewal for long. What is held is held, and nobody else can be granted
      it for `remaining()` seconds: finish or stop what must not overlap.
    - SUSPENDED: that time is over. Nothing counts as held. The session may still come back, with all it held.
    - EXPIRED: it is over. What was held is lost, for ever. The coordinator opens another session by itself, which is
      SUSPENDED until the group has it, and then VALID.
    """

    VALID, JEOPARDY, SUSPENDED, EXPIRED = leases.VALID, leases.JEOPARDY, leases.SUSPENDED, leases.EXPIRED

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._beat_within = 0.0
        self._health: threading.Thread | None = None
        self._health_ends = threading.Event()

    @property
    def id(self) -> int:
        """A random number of 64 bits. Another one once the session was lost. Never blocks."""
        return self._lease().session

    @property
    def state(self) -> str:
        """One of the four, by the clock and in the caller's thread: right at once after a pause of this process. Never
        blocks."""
        loop = self._coordinator._running_loop()
        return self._lease().state(loop.clock())

    def remaining(self) -> float:
        """Seconds for which nobody else can be granted what this session holds; 0 when that cannot be said."""
        loop = self._coordinator._running_loop()
        return self._lease().remaining(loop.clock())

    def on_change(self, fn: Callable[[str], object]) -> Callable[[str], object]:
        """Have `fn(state)` called whenever the state changes, on the thread for callbacks, in order; what it raises is
        logged. May be used as a decorator, and before the coordinator is started. Returns `fn`."""

        def watch(loop: Loop) -> None:
            self._watch(lambda lease, state: loop.dispatcher.run(lambda: _call(fn, state)))

        self._coordinator._when_started(watch)
        return fn

    def beat(self, within: float | None = None) -> None:
        """Say that the host lives, and will say so again within so many seconds. From the first call on, the session is
        renewed only as long as it does: a host that hangs loses what it holds, as one that died would.

        `within`: None: as last time, or at first `session_ttl`. Infinite: never mind any more. Never blocks.
        """
        if within is not None and not (isinstance(within, int | float) and within > 0):
            raise ValueError(f"within={within!r}: expected seconds, more than 0, or None for as many as last time")
        loop = self._coordinator._running_loop()
        loop.check()
        replica = loop.replica
        self._beat_within = within or self._beat_within or replica.options.session_ttl
        missed = replica.own.beat_by <= loop.clock()
        replica.own.beat_by = loop.clock() + self._beat_within
        if missed:
            loop.post(_nothing)

    def __repr__(self) -> str:
        lease = self._lease()
        return f"<coord.Session {lease.session:016x} of {self._coordinator.name!r}, {self.state}>"

    # -- within

    def _lease(self) -> Lease:
        return self._coordinator._running_loop().replica.lease

    def _watch(self, watcher: Callable[[Lease, str], None]) -> None:
        """Call it on the loop's thread whenever the state has changed."""
        loop = self._coordinator._running_loop()
        loop.post(lambda: loop.replica.own.watchers.append(watcher))

    def _watch_health(self, healthcheck: Callable[[], object]) -> None:
        """Beat as long as `healthcheck()` returns something true, and in time."""
        options = self._coordinator._running_loop().replica.options
        self.beat(options.session_ttl)

        def work() -> None:
            before = ""
            while not self._health_ends.wait(options.keepalive):
                problem = _problem(healthcheck)
                if problem != before:
                    _log.warning(
                        "%s: %s",
                        self._coordinator.name,
                        f"its session is not renewed: {problem}" if problem else "healthy again",
                    )
                before = problem
                if not problem:
                    try:
                        self.beat(options.session_ttl)
                    except CoordError:
                        return

        self._health = threading.Thread(target=work, name=f"coord-health-{self._coordinator.name}", daemon=True)
        self._health.start()

    def _stop(self) -> None:
        self._health_ends.set()


def _call(fn: Callable[[str], object], state: str) -> None:
    try:
        fn(state)
    except Exception:
        _log.exception("a callback for the session's state %s raised; it will be called again for the next", state)


def _problem(healthcheck: Callable[[], object]) -> str:
    """Why the host is not healthy; "" when it is."""
    try:
        return "" if healthcheck() else "the health check says no"
    except Exception as error:
        return f"the health check raised {error!r}"


def _nothing() -> None:
    """A turn is enough: it sees that the beat came."""
