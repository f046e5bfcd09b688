"""What this member's callers want appended, from the call to the reply: in order, exactly once, whoever leads.

A proposal is numbered within the session when it is made, and answered when the local replica applies it: whichever
copy of it commits first, under whichever leader. So it is sent again without fear whenever the leader changes, and a
reply needs no message of its own.

What must not live here: threads and waiting (`coord.loop`), the meaning of commands and replies (`coord.machine`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from coord.errors import QuotaExceeded
from coord.machine.commands import WINDOW
from coord.raft.batch import encode_entry

#: (session, sequence, low water, ...) -> the command's bytes: the makers of `coord.machine.commands`.
Maker = Callable[..., bytes]


#: Answers to a proposal whose time is up: it may have happened; it certainly has not and never will.
EXPIRED, WITHDRAWN = object(), object()


class Proposal:
    """One command on its way.

    `claim` decides a race that must have one winner: the loop takes the token before it sends, the caller takes it when
    it gives up. So a caller that gives up knows for certain whether anything was sent.
    """

    __slots__ = (
        "abandoned",
        "arguments",
        "claim",
        "done",
        "entry",
        "expires_at",
        "maker",
        "queued",
        "sent",
        "sequence",
        "session",
    )

    def __init__(
        self,
        sequence: int,
        maker: Maker,
        arguments: tuple[Any, ...],
        done: Callable[[Any], None],
        expires_at: float,
    ) -> None:
        self.sequence = sequence
        self.maker = maker
        self.arguments = arguments
        #: Called once, on the loop thread, with the machine's reply, an exception, or EXPIRED.
        self.done = done
        #: When the loop answers EXPIRED or WITHDRAWN if nothing else came; infinite when a caller keeps watch itself.
        self.expires_at = expires_at
        #: The session `entry` was encoded in.
        self.session = 0
        self.entry = b""
        self.claim = [True]
        #: The loop has seen it; it was given to some leader.
        self.queued = False
        self.sent = False
        self.abandoned = False

    def encode(self, session: int, low_water: int) -> None:
        self.session = session
        self.entry = encode_entry(self.maker(session, self.sequence, low_water, *self.arguments))

    def may_be_sent(self) -> bool:
        """From here on it may have happened; False: the caller gave up before that."""
        if self.abandoned:
            return False
        if not self.sent:
            try:
                self.claim.pop()
            except IndexError:
                return False
            self.sent = True
        return True

    def give_up(self) -> bool:
        """The caller stops waiting. True: it was never sent and never will be."""
        self.abandoned = True
        try:
            self.claim.pop()
        except IndexError:
            return False
        return True


class Numbering:
    """Session, sequence numbers and low water: the only part callers' threads touch.

    Invariant: every sequence above the low water and below `_next` is in `_open`, so that a low water never passes a
    command that may still be on its way.
    """

    def __init__(self, session: int) -> None:
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting_for_room = 0
        self.session = session
        self._next = 1
        self._open: dict[int, Proposal] = {}
        self._low_water = 0

    def begin(
        self,
        maker: Maker,
        arguments: tuple[Any, ...],
        done: Callable[[Any], None],
        *,
        most: int,
        max_bytes: int,
        patience: float,
        expires_at: float,
    ) -> Proposal | None:
        """A new proposal, encoded. When `most` are open, or the session's window is used up, it waits for room, at most
        `patience` seconds; then None. QuotaExceeded when it takes more than `max_bytes`."""
        with self._lock:
            if not self._has_room(most):
                self._waiting_for_room += 1
                try:
                    if not self._room.wait_for(lambda: self._has_room(most), patience):
                        return None
                finally:
                    self._waiting_for_room -= 1
            sequence = self._next
            self._next = sequence + 1
            proposal = Proposal(sequence, maker, arguments, done, expires_at)
            self._open[sequence] = proposal
            session, low_water = self.session, self._low_water
        try:
            proposal.encode(session, low_water)
            if len(proposal.entry) > max_bytes:
                raise QuotaExceeded(
                    f"the write takes {len(proposal.entry)} bytes, more than max_batch_bytes={max_bytes}; nothing was "
                    "sent; write less at once"
                )
        except BaseException:
            self.end(sequence)
            raise
        return proposal

    def end(self, sequence: int) -> Proposal | None:
        """The proposal is answered, or given up: nobody will ask for its reply again."""
        with self._lock:
            proposal = self._open.pop(sequence, None)
            self._advance()
            if self._waiting_for_room:
                self._room.notify_all()
            return proposal

    def renew(self, session: int) -> list[Proposal]:
        """The session ended: number on in a new one. Every open proposal the loop has seen is encoded anew."""
        with self._lock:
            self.session = session
            self._advance()
            queued = [proposal for proposal in self._open.values() if proposal.queued]
            for proposal in queued:
                proposal.encode(session, self._low_water)
            return queued

    def encode_again(self, proposal: Proposal) -> None:
        """It was encoded before the session was renewed, and reached the loop after."""
        with self._lock:
            proposal.encode(self.session, self._low_water)

    def unanswered(self) -> list[Proposal]:
        """What the loop has seen and nobody has answered, oldest first."""
        with self._lock:
            return [proposal for proposal in self._open.values() if proposal.queued]

    def __len__(self) -> int:
        return len(self._open)

    def _has_room(self, most: int) -> bool:
        return len(self._open) < most and self._next - self._low_water <= WINDOW

    def _advance(self) -> None:
        self._low_water = next(iter(self._open), self._next) - 1


class Outbox:
    """The loop's side: what is still to be given to a leader, and what the present leader has not yet taken.

    Entries to a remote leader are numbered from 0 in a stream, a random number drawn for each start over; the leader
    takes a stream's entries in order and without a gap, and says how many it has. What was lost is sent again from
    there. A leader that knows less than it once said has lost the thread: start over.
    """

    def __init__(self, mint_stream: Callable[[], int], retry_after: float, max_bytes: int) -> None:
        self._mint_stream = mint_stream
        self._retry_after = retry_after
        self._max_bytes = max_bytes
        #: Not yet sent to this term's leader, in order. The first may open the session and is no caller's.
        self._waiting: deque[Proposal | bytes] = deque()
        self._stream = mint_stream()
        #: Sent in this stream and not yet taken: `_taken` is the number of the first.
        self._sent: deque[bytes] = deque()
        self._taken = 0
        #: How many of `_sent` are on their way now.
        self._on_the_way = 0
        self._retry_at = float("inf")

    def __bool__(self) -> bool:
        return bool(self._waiting or self._sent)

    def add(self, proposal: Proposal | bytes) -> None:
        if isinstance(proposal, Proposal):
            proposal.queued = True
        self._waiting.append(proposal)

    def prune(self) -> None:
        """Let go of what its callers gave up, while there is no leader to take the rest."""
        self._waiting = deque(item for item in self._waiting if isinstance(item, bytes) or not item.abandoned)

    def restart(self, first: list[bytes], proposals: list[Proposal]) -> None:
        """Another term, or another session: `first`, then everything unanswered goes again, oldest first."""
        self._waiting = deque([*first, *proposals])
        self._stream = self._mint_stream()
        self._sent.clear()
        self._taken = self._on_the_way = 0
        self._retry_at = float("inf")

    def local(self, propose: Callable[[list[bytes]], int]) -> None:
        """This member leads: give everything to its own core. What it refuses stays, in order."""
        assert not self._sent
        entries = self._take(len(self._waiting))
        if entries and not propose(entries):
            self._waiting.extendleft(reversed(entries))

    def remote(self, now: float) -> tuple[int, int, list[bytes]] | None:
        """(stream, number of the first, entries) to send to the leader now, or None."""
        if now >= self._retry_at:
            self._on_the_way = 0
        self._sent.extend(self._take(WINDOW - len(self._sent)))
        fresh: list[bytes] = []
        size = 0
        for entry in islice(self._sent, self._on_the_way, None):
            size += len(entry)
            if fresh and size > self._max_bytes:
                break
            fresh.append(entry)
        if not fresh:
            return None
        number = self._taken + self._on_the_way
        self._on_the_way += len(fresh)
        self._retry_at = now + self._retry_after
        return self._stream, number, fresh

    def taken(self, stream: int, expected: int) -> bool:
        """The leader has everything of `stream` numbered below `expected`. False: it has lost the thread."""
        if stream != self._stream:
            return True
        if expected < self._taken:
            return False
        while self._sent and self._taken < expected:
            self._sent.popleft()
            self._taken += 1
            self._on_the_way = max(0, self._on_the_way - 1)
        if not self._sent:
            self._retry_at = float("inf")
        return True

    def deadline(self) -> float:
        return self._retry_at

    def _take(self, most: int) -> list[bytes]:
        """Up to `most` entries that nobody gave up; from here on they may have happened."""
        taken: list[bytes] = []
        waiting = self._waiting
        while waiting and len(taken) < most:
            item = waiting.popleft()
            if isinstance(item, bytes):
                taken.append(item)
            elif item.may_be_sent():
                taken.append(item.entry)
        return taken
