"""Linearizable reads without a log entry (dissertation 6.4), and what their rounds prove besides.

A *round* is a number the leader mints, rising within its term and never used twice (trap 31: a reused one lets an old
answer confirm a new read). Every append and heartbeat carries the newest; the answer repeats it. When a quorum has
answered round r, this member was still the leader when r was *sent*. Three things follow, each anchored at the send:
reads that arrived before r are confirmed; the quorum was reachable then (check-quorum); and, if lease reads are on, no
other leader can be elected until the shortest election timeout has passed (traps 32 to 34).

What must not live here: sending (`coord.raft.replication`), or waiting until the state includes an index (the driver).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

#: A local read's number, or (follower, its request number).
Reader = int | tuple[str, int]

#: Send times kept.
_ROUNDS_KEPT = 1024


class Rounds:
    """The leader's rounds of one term."""

    def __init__(self) -> None:
        self.newest = 0
        #: Some rounds, rising, and when each was sent.
        self._numbers: list[int] = []
        self._times: list[float] = []

    def begin(self, now: float) -> int:
        """Mint a round, to be sent to everybody now."""
        self.newest += 1
        self._numbers.append(self.newest)
        self._times.append(now)
        if len(self._numbers) > _ROUNDS_KEPT:
            # Thinned out, not cut short: however many rounds a busy leader begins before an answer comes, the answer
            # must still prove something, or check-quorum would end a healthy leader.
            del self._numbers[1::2], self._times[1::2]
        return self.newest

    def sent_at(self, number: int) -> float | None:
        """When round `number` was sent, or a little before; None for one never begun."""
        position = bisect_right(self._numbers, number)
        return self._times[position - 1] if position and number <= self.newest else None


class PendingReads:
    """Reads waiting for their round, oldest first.

    Invariant: the rounds in `_confirming` rise and so do the indexes.
    """

    def __init__(self) -> None:
        #: Arrived before the leader has committed in its term: their index cannot be known yet (trap 30).
        self._parked: list[Reader] = []
        #: Will ride on the next round.
        self._gathering: list[Reader] = []
        #: (round, index, readers).
        self._confirming: deque[tuple[int, int, list[Reader]]] = deque()

    def add(self, reader: Reader, *, parked: bool) -> None:
        (self._parked if parked else self._gathering).append(reader)

    def unpark(self) -> None:
        self._gathering += self._parked
        self._parked = []

    @property
    def gathering(self) -> bool:
        return bool(self._gathering)

    def ride(self, round_number: int, commit: int) -> None:
        """The gathered reads are confirmed when `round_number` is: they may see the state as of `commit`."""
        self._confirming.append((round_number, commit, self._gathering))
        self._gathering = []

    def confirmed(self, round_number: int) -> list[tuple[int, list[Reader]]]:
        """Take what a quorum's answer to `round_number` confirms: (index, readers)."""
        taken = []
        while self._confirming and self._confirming[0][0] <= round_number:
            _, index, readers = self._confirming.popleft()
            taken.append((index, readers))
        return taken

    def drop(self) -> list[Reader]:
        """Take everything unanswered: the leader stepped down."""
        readers = [*self._parked, *self._gathering]
        for _, _, confirming in self._confirming:
            readers += confirming
        self.__init__()  # type: ignore[misc]
        return readers


class ForwardedReads:
    """A follower's reads on their way to its leader, numbered so that a late answer serves all before it.

    Numbers start from a random one: an answer to this member's life before a restart, still on its way, must not pass
    for one to a question asked since (the same mistake as trap 31, at the other end).
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._gathering: list[int] = []
        self._asked: deque[tuple[int, list[int]]] = deque()
        self.asked_at = 0.0

    def add(self, read_id: int) -> None:
        self._gathering.append(read_id)

    def ask(self, now: float, retry_after: float) -> int | None:
        """The number to ask the leader for now, or None: nothing new, and no answer overdue."""
        if self._gathering:
            self.number += 1
            self._asked.append((self.number, self._gathering))
            self._gathering = []
        elif not self._asked or now < self.asked_at + retry_after:
            return None
        self.asked_at = now
        return self.number

    def retry_at(self, retry_after: float) -> float:
        return self.asked_at + retry_after if self._asked else float("inf")

    def answered(self, number: int) -> list[int]:
        """Take the reads that an answer to request `number` serves."""
        taken: list[int] = []
        while self._asked and self._asked[0][0] <= number <= self.number:
            taken += self._asked.popleft()[1]
        return taken

    def drop(self) -> list[int]:
        readers = [read_id for _, asked in self._asked for read_id in asked] + self._gathering
        self._asked.clear()
        self._gathering = []
        return readers
