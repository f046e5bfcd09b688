"""Sessions: who may write, which replies they may still ask for again, and which sessions are over.

When a session ends is not decided here, but by the leader's clock and a committed command. What else ends with it (its
ephemeral keys, its locks) is `coord.machine.machine`'s to remove.
"""

from __future__ import annotations

from collections.abc import Iterable

from coord.machine.commands import Command
from coord.machine.digests import MASK, ended_digest, session_digest
from coord.machine.replies import CONFLICT, Reply, remembered_value_bytes

#: How many ended sessions are remembered, so that a late duplicate of an open cannot bring one back to life, and a
#: late duplicate of a write not be done twice through it (trap 51).
ENDED_MAX = 10_000
#: How many bytes of config values the remembered replies of one session may hold.
REPLY_VALUE_BYTES_MAX = 1 << 20

#: What happened to a session, for the driver. ENDED: one of the other three, but this member did not see which.
OPENED, CLOSED, EXPIRED, SUPERSEDED, ENDED = "opened", "closed", "expired", "superseded", "ended"


class Session:
    """A live session.

    Invariant: every remembered reply has a sequence above `low_water`, and none is more than `commands.WINDOW` below
    the highest, so there are at most that many.
    """

    __slots__ = (
        "digest",
        "id",
        "instance",
        "keys",
        "low_water",
        "opened",
        "owner",
        "replies",
        "reply_value_bytes",
        "requests",
        "ttl",
    )

    def __init__(self, id: int, owner: str, instance: int, ttl: int, opened: int, low_water: int = 0) -> None:
        self.id = id
        #: Name of the member or client. At most one live session each.
        self.owner = owner
        self.instance = instance
        #: Nanoseconds.
        self.ttl = ttl
        #: Log index of the entry that opened it.
        self.opened = opened
        #: The session has taken every reply up to this sequence.
        self.low_water = low_water
        self.replies: dict[int, Reply] = {}
        self.reply_value_bytes = 0
        #: Its ephemeral config keys. Only ever read in sorted order.
        self.keys: set[str] = set()
        #: Its requests that wait for or hold a lock: sequence of the request, name of the lock. Nothing may depend on
        #: their order.
        self.requests: dict[int, str] = {}
        #: Its share of the table's digest when that was last asked for.
        self.digest = 0

    def acknowledge(self, low_water: int) -> None:
        """Forget the replies up to `low_water`, which is higher than the one before."""
        replies = self.replies
        passed: Iterable[int] = range(self.low_water + 1, low_water + 1)
        if low_water - self.low_water > len(replies):
            passed = [number for number in replies if number <= low_water]
        for number in passed:
            reply = replies.pop(number, None)
            if reply is not None and reply[0] == CONFLICT:
                self.reply_value_bytes -= remembered_value_bytes(reply)
        self.low_water = low_water

    def remember(self, sequence: int, reply: Reply) -> None:
        """Keep the reply for duplicates."""
        self.replies[sequence] = reply
        if reply[0] == CONFLICT:
            self.reply_value_bytes += remembered_value_bytes(reply)

    def row(self) -> Command:
        """Its attributes, as snapshots carry them."""
        return (self.id, self.owner, self.instance, self.ttl, self.opened, self.low_water)

    def compute_digest(self) -> int:
        """Its digest as it is now."""
        return session_digest((*self.row(), sorted(self.replies.items())))


class SessionTable:
    """Every live session, and the newest ENDED_MAX ended ones."""

    __slots__ = ("_events", "_sum", "_touched", "ended", "live", "owners")

    def __init__(self) -> None:
        self.live: dict[int, Session] = {}
        #: The live session of each owner.
        self.owners: dict[str, int] = {}
        #: Ended session: log index of its end, oldest first. An entry ends at most one session.
        self.ended: dict[int, int] = {}
        #: Digest of all of this, except that of `_touched` the sessions' old digests are in it.
        self._sum = 0
        self._touched: dict[int, Session] = {}
        self._events: list[tuple[int, str]] = []

    def add(self, session: Session) -> None:
        """Make `session` a live one."""
        self.live[session.id] = session
        self.owners[session.owner] = session.id
        self._touched[session.id] = session
        self._events.append((session.id, OPENED))

    def end(self, session: Session, index: int, event: str) -> None:
        """Make `session` an ended one, by the entry at `index`."""
        del self.live[session.id]
        del self.owners[session.owner]
        self._touched.pop(session.id, None)
        self._sum -= session.digest
        self._events.append((session.id, event))
        self.remember_ended(session.id, index)
        if len(self.ended) > ENDED_MAX:
            oldest = next(iter(self.ended))
            self._sum -= ended_digest(oldest, self.ended.pop(oldest))

    def remember_ended(self, session: int, index: int) -> None:
        """Note that `session` ended at `index`, later than all noted before."""
        self.ended[session] = index
        self._sum += ended_digest(session, index)

    def touch(self, session: Session) -> None:
        """Note that a live session changed."""
        self._touched[session.id] = session

    def digest(self) -> int:
        """Digest of the table. Sessions change with every write, so theirs are only made when this is asked for."""
        for session in self._touched.values():
            before, session.digest = session.digest, session.compute_digest()
            self._sum += session.digest - before
        self._touched.clear()
        self._sum &= MASK
        return self._sum

    def follow(self, older: SessionTable) -> None:
        """Take the place of `older`: report what it had still to report, and then the difference."""
        ended = [(id, ENDED) for id in sorted(older.live.keys() - self.live.keys())]
        opened = [(id, OPENED) for id in sorted(self.live.keys() - older.live.keys())]
        self._events = [*older.take_events(), *ended, *opened]

    def take_events(self) -> list[tuple[int, str]]:
        """Return (session, what happened to it) since the last call, in order."""
        events, self._events = self._events, []
        return events
