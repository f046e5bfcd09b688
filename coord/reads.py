"""This member's linearizable reads, from the wish to the moment its copy is new enough (Raft, section 8).

All that gather in one turn share one question to the core. What must not live here: how the question is answered
(`coord.raft.read_index`), threads and waiting (`coord.loop`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any


class Read:
    """A caller's wish: tell me when the local state is as new as the group's was when I asked."""

    __slots__ = ("abandoned", "done")

    def __init__(self, done: Callable[[Any], None]) -> None:
        #: Called once, on the loop's thread, with None or an exception.
        self.done = done
        self.abandoned = False


class Confirmation(Read):
    """This member's own wish, as a leader: does a quorum still follow me? Told at once, within the turn, and not asked
    again: what it is told when nobody knows is REFUSED."""

    __slots__ = ()


#: Told to a Confirmation.
REFUSED = object()


class Reads:
    """Each read is in one of three places: gathered, asked about, or known to need an index not yet applied."""

    def __init__(self) -> None:
        self._gathered: list[Read] = []
        self._asked: dict[int, list[Read]] = {}
        #: Indexes rise: later questions are answered with later indexes.
        self._ready: deque[tuple[int, list[Read]]] = deque()
        self._number = 0
        self._not_before = 0.0

    def __len__(self) -> int:
        """How many callers wait."""
        waiting = [self._gathered, *self._asked.values(), *(reads for _, reads in self._ready)]
        return sum(type(read) is not Confirmation for reads in waiting for read in reads)

    def add(self, reads: Sequence[Read]) -> None:
        self._gathered += reads

    def ask(self, now: float) -> int | None:
        """The number to ask the core under for all that gathered, or None: nothing gathered, or just refused."""
        if not self._gathered or now < self._not_before:
            return None
        self._number += 1
        self._asked[self._number] = [read for read in self._gathered if not read.abandoned]
        self._gathered = []
        return self._number

    def due(self) -> float:
        """When there is something to ask; infinite when there is not."""
        return self._not_before if self._gathered else float("inf")

    def answered(self, numbers: Sequence[int], index: int) -> None:
        """These questions: the state must include `index`."""
        for number in numbers:
            self._ready.append((index, self._asked.pop(number, [])))

    def refused(self, numbers: Sequence[int], again_at: float) -> list[Confirmation]:
        """These questions: nobody knows. They are asked again, not before `again_at`, but for those returned."""
        confirmations = []
        for number in numbers:
            for read in self._asked.pop(number, []):
                if isinstance(read, Confirmation):
                    confirmations.append(read)
                else:
                    self._gathered.append(read)
        self._not_before = again_at
        return confirmations

    def applied(self, index: int) -> list[Read]:
        """Take what the state at `index` serves."""
        taken: list[Read] = []
        while self._ready and self._ready[0][0] <= index:
            taken += self._ready.popleft()[1]
        return taken

    def prune(self) -> None:
        """Let go of what its callers gave up, while there is nobody to ask."""
        self._gathered = [read for read in self._gathered if not read.abandoned]

    def drop(self) -> list[Read]:
        """Take everything."""
        taken = [*self._gathered, *(read for asked in self._asked.values() for read in asked)]
        taken += [read for _, ready in self._ready for read in ready]
        self._gathered, self._asked = [], {}
        self._ready.clear()
        return taken
