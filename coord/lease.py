"""A session's lease as its owner sees it: until when it may rely on what it holds, whatever the rest of the group does.

The owner counts from the *sending* of the last renewal that was acknowledged, the leader from its *receipt*, and a new
leader begins anew; so whatever is slow or lost on the way, the owner stops first (etcd's client counts from the reply,
and overlaps by as much as that was late). The clock is the caller's, and is compared in the caller's thread: after a
pause a lease is over at once, before anything else has run. No rule of time covers a virtual machine that was stopped
and does not know; only fencing tokens do.

What must not live here: sending renewals (`coord.own_session`), ending sessions (`coord.duties`, `coord.machine`).
"""

from __future__ import annotations

from coord.options import Options

#: States of a session. VALID: all is well. JEOPARDY: no renewal was acknowledged for long; nobody else can be granted
#: anything yet, so wind up. SUSPENDED: the lease is over, and it is not known whether the session is. EXPIRED: it is.
VALID, JEOPARDY, SUSPENDED, EXPIRED = "VALID", "JEOPARDY", "SUSPENDED", "EXPIRED"

#: Why a lease is over though its session may not be: its owner gave it up.
LAPSED = "lapsed"


class Lease:
    """Of one session. The loop's thread writes, any thread reads."""

    __slots__ = ("_grace", "_heard_at", "_jeopardy", "_length", "confirmed_at", "ended", "late", "session")

    def __init__(self, session: int, options: Options) -> None:
        self.session = session
        #: When the last acknowledged renewal was sent; before that, when the session was asked for.
        self.confirmed_at = float("-inf")
        #: The same, but it counts from when the session was found open: to be given up it must have been silent since.
        self._heard_at = float("inf")
        #: Why it is over for good; "" while it is not.
        self.ended = ""
        #: The owner's thread ran late, so that what it believes may be old: in jeopardy until the next acknowledgement.
        self.late = False
        self._length = options.lease
        self._jeopardy = options.jeopardy
        self._grace = options.session_grace

    def begin(self, asked_at: float, now: float) -> None:
        """The session was found open; it was first asked for at `asked_at`."""
        self.confirmed_at = asked_at
        self._heard_at = now

    def confirm(self, sent_at: float) -> None:
        """A renewal sent at `sent_at` was acknowledged."""
        self.confirmed_at = max(self.confirmed_at, sent_at)
        self._heard_at = max(self._heard_at, sent_at)
        self.late = False

    def remaining(self, now: float) -> float:
        """Seconds for which nobody else can be granted what this session holds; 0 when that cannot be said."""
        return 0.0 if self.ended else max(0.0, self.confirmed_at + self._length - now)

    def stands(self, now: float) -> bool:
        return not self.ended and now < self.confirmed_at + self._length

    def lapsed(self, now: float) -> bool:
        """So long unheard that its owner may give it up."""
        return now >= self._heard_at + self._length + self._grace

    def state(self, now: float) -> str:
        if self.ended:
            return EXPIRED
        age = now - self.confirmed_at
        if age < self._jeopardy:
            return JEOPARDY if self.late else VALID
        return JEOPARDY if age < self._length else SUSPENDED

    def changes_at(self, now: float) -> float:
        """When there will be something to do about it, if nothing is heard: another state, or giving it up."""
        if self.ended:
            return float("inf")
        times = (
            self.confirmed_at + self._jeopardy,
            self.confirmed_at + self._length,
            self._heard_at + self._length + self._grace,
        )
        return min((at for at in times if at > now), default=float("inf"))
