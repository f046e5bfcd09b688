"""The tree of exceptions: everything `coord` raises on purpose.

Every message says what happened, what is known, and what to do next. What must not live here: anything but exceptions;
this module imports nothing of `coord`, so that every other module may import it.

A value of a wrong kind raises the `TypeError` or `ValueError` a plain `dict` or function would raise; programmer errors
inside `coord` are assertions. Neither is in this tree.
"""

from __future__ import annotations

from typing import Any


class CoordError(Exception):
    """The root: `except coord.CoordError` catches every operating error of this package."""


class Unavailable(CoordError, TimeoutError):
    """No answer came in time, and the request certainly had no effect.

    There is no leader, no quorum, or no way to reach it. Repeating the call is safe.
    """

    def __init__(self, *args: object, leader: str | None = None) -> None:
        super().__init__(*args)
        #: Name of the last leader heard of, or None.
        self.leader = leader


class OutcomeUnknown(CoordError, TimeoutError):
    """No answer came in time: the request may have happened, may happen yet, or may never happen.

    Read the state before repeating it, unless doing it twice does no harm.
    """

    def __init__(self, *args: object, leader: str | None = None) -> None:
        super().__init__(*args)
        #: Name of the last leader heard of, or None.
        self.leader = leader


class Conflict(CoordError):
    """A compare failed: the key is not at the revision asked for, and nothing was changed.

    Decide again from `entry`, then repeat; `ConfigMap.update` does that for you.
    """

    def __init__(self, *args: object, entry: Any = None) -> None:
        super().__init__(*args)
        #: The `coord.Entry` found in place of the expected one; None when the key is absent.
        self.entry = entry


class LockTimeout(CoordError, TimeoutError):
    """The lock was not granted in time, and the place in its queue was given up.

    Nothing is held. Try later, wait longer, or ask `lock.describe()` who holds it.
    """


class LockLost(CoordError):
    """The lock ended before it was released: its session expired, or this process could not prove that it lived.

    Somebody else may hold it now. Stop the protected work; what a resource accepted with an older fencing token it
    will refuse from now on, if it compares tokens.
    """


class LeadershipLost(CoordError):
    """The leadership ended before it was resigned: its session expired, or this process could not prove that it lived.

    Somebody else may lead now. Stop the leader's work, and volunteer again when ready.
    """


class StaleToken(CoordError):
    """The resource has accepted a newer fencing token than this one, and nothing was written.

    Somebody else holds the lock now. Stop the protected work; repeating the write is of no use.
    """

    def __init__(self, *args: object, resource: str = "", token: int = 0, newest: int = 0) -> None:
        super().__init__(*args)
        #: What was to be written.
        self.resource = resource
        #: The token that was refused.
        self.token = token
        #: The newest token known to have been accepted; more than `token`.
        self.newest = newest


class NotHeld(CoordError, RuntimeError):
    """A release, or a use, of what this handle does not hold. Nothing was changed; the caller has a bug."""


class AlreadyHeld(CoordError, RuntimeError):
    """This handle holds already, and locks are not re-entrant. Nothing was changed; use one handle per holder."""


class SessionExpired(CoordError):
    """The session of this handle is over: its locks, leaderships and ephemeral keys are gone, on every member.

    The coordinator opens a new session by itself; take what is needed again through it.
    """


class QuotaExceeded(CoordError):
    """The write would exceed a limit on the replicated state, so it was refused and had no effect.

    The message names the limit. Delete what is not needed, or raise the limit on every member alike.
    """


class QueueFull(CoordError):
    """Too much is waiting already: a bounded queue refused this, and it had no effect. Slow down, then repeat it."""


class Compacted(CoordError):
    """The history asked for is no longer kept. Read the present state, then watch from its revision."""

    def __init__(self, *args: object, revision: int = 0) -> None:
        super().__init__(*args)
        #: The oldest revision still kept; 0 when not known.
        self.revision = revision


class TooStale(CoordError):
    """The local copy is older than the read allows. Nothing was read; wait, allow more, or read linearizably."""


class ConfigurationError(CoordError, ValueError):
    """A setting was refused at construction or start; nothing runs. The message names the field and the fix."""


class IdentityError(CoordError):
    """This member is not who it claims to be: another cluster, a name in use, a wiped disk, a directory in use.

    It has not voted and will not. The message names both sides and the way back.
    """


class StorageError(CoordError, OSError):
    """The disk failed, or holds what cannot be right; the node has stopped itself and promises nothing more.

    Free or replace the disk, then start again: a member that lost its data has to rejoin as a new one.
    """


class AuthenticationError(CoordError):
    """A key is missing, malformed or not accepted. No connection was made; the message names the key's place."""


class ForkedError(CoordError, RuntimeError):
    """Used in a child after fork. The node lives in the parent; create one after the fork, or connect as a client."""


class ClosedError(CoordError, RuntimeError):
    """Used after stop. Nothing was sent; what was still waiting got its own answer. Start a new one."""


#: Every class above, root first: the public tree.
ERRORS: tuple[type[CoordError], ...] = (
    CoordError,
    Unavailable,
    OutcomeUnknown,
    Conflict,
    LockTimeout,
    LockLost,
    LeadershipLost,
    StaleToken,
    NotHeld,
    AlreadyHeld,
    SessionExpired,
    QuotaExceeded,
    QueueFull,
    Compacted,
    TooStale,
    ConfigurationError,
    IdentityError,
    StorageError,
    AuthenticationError,
    ForkedError,
    ClosedError,
)

# Users write coord.Conflict, so that is what tracebacks and pickles shall say.
for _error in ERRORS:
    _error.__module__ = "coord"
del _error
