"""The log in memory: whole batches after a base, and how far they are durable here.

What must not live here: disks (`coord.storage`), commit rules (`coord.raft.replication`), what entries mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from coord.raft.batch import Batch


class Log:
    """Batches with indexes base+1 to last_index, consecutive, of terms that never fall.

    Invariant: persisted <= last_index.
    """

    def __init__(self, base: int, base_term: int | None, base_time: int, batches: Sequence[Batch] = ()) -> None:
        #: Index before the first batch kept. `base_term` is None where it is not known: nothing can be matched there.
        self.base = base
        self.base_term = base_term
        self.base_time = base_time
        self._batches: list[Batch] = []
        #: First index of each batch, for bisection.
        self._firsts: list[int] = []
        self.bytes = 0
        for batch in batches:
            self.append(batch)
        #: Known durable on this member's disk, by this log's present content.
        self.persisted = self.last_index
        #: Raised by each truncation and reset: a sync begun before one proves nothing about what came after.
        self.epoch = 0

    @property
    def first_index(self) -> int:
        return self.base + 1

    @property
    def last_index(self) -> int:
        return self._batches[-1].last if self._batches else self.base

    @property
    def last_term(self) -> int:
        return self._batches[-1].term if self._batches else self.base_term or 0

    @property
    def last_time(self) -> int:
        """Cluster time of the newest entry, nanoseconds."""
        return self._batches[-1].time if self._batches else self.base_time

    def term_at(self, index: int) -> int | None:
        """Term of the entry at `index`; None where the log does not (or no longer) say."""
        if index == self.base:
            return self.base_term
        if not self.base < index <= self.last_index:
            return None
        return self._batches[self._position(index)].term

    def batch_at(self, index: int) -> Batch:
        """The batch that holds `index`."""
        assert self.base < index <= self.last_index, f"index {index} outside {self.first_index}-{self.last_index}"
        return self._batches[self._position(index)]

    def ends_batch(self, index: int) -> bool:
        """Is `index` where a batch ends, or the base?"""
        return index == self.base or (self.base < index <= self.last_index and self.batch_at(index).last == index)

    def append(self, batch: Batch) -> None:
        assert batch.first == self.last_index + 1, f"{batch!r} after {self.last_index}"
        assert batch.term >= self.last_term, f"{batch!r} after term {self.last_term}"
        self._batches.append(batch)
        self._firsts.append(batch.first)
        self.bytes += len(batch.data)

    def truncate_from(self, index: int) -> None:
        """Drop `index` and everything after it; `index` begins a batch."""
        position = self._position(index)
        assert self._firsts[position] == index, f"truncation inside {self._batches[position]!r} at {index}"
        self.bytes -= sum(len(batch.data) for batch in self._batches[position:])
        del self._batches[position:], self._firsts[position:]
        self.persisted = min(self.persisted, index - 1)
        self.epoch += 1

    def between(self, low: int, high: int) -> list[Batch]:
        """The batches from the one that begins at `low` to the one that ends at `high`."""
        if low > high:
            return []
        found = self._batches[self._position(low) : self._position(high) + 1]
        assert found[0].first == low and found[-1].last == high, f"{low}-{high} cuts {found[0]!r} or {found[-1]!r}"
        return found

    def from_index(self, index: int, max_bytes: int) -> list[Batch]:
        """The batches from the one that begins at `index`, at least one, together at most `max_bytes`."""
        position = self._position(index)
        assert self._firsts[position] == index, f"{index} is inside {self._batches[position]!r}"
        end, size = position, 0
        for batch in self._batches[position:]:
            size += len(batch.data)
            if end > position and size > max_bytes:
                break
            end += 1
        return self._batches[position:end]

    def bytes_after(self, index: int) -> int:
        """Encoded size of all batches that begin after `index`."""
        position = bisect_right(self._firsts, index)
        return sum(len(batch.data) for batch in self._batches[position:])

    def newest_not_above(self, index: int, term: int) -> tuple[int, int]:
        """The largest index up to `index` whose term is at most `term`, and that term; the base when there is none.

        This is how both sides skip a whole diverging tail in one step (Raft 5.3, trap 19). Only ends of batches
        count: logs that share an entry share its whole batch.
        """
        index = min(index, self.last_index)
        while index > self.base:
            batch = self._batches[self._position(index)]
            if batch.term <= term and batch.last == index:
                return index, batch.term
            index = batch.first - 1
        return self.base, self.base_term or 0

    def compact(self, index: int) -> None:
        """Forget batches that end at or before `index`."""
        count = bisect_right(self._firsts, index)
        if count and self._batches[count - 1].last > index:
            count -= 1
        if count == 0:
            return
        last = self._batches[count - 1]
        self.base, self.base_term, self.base_time = last.last, last.term, last.time
        self.bytes -= sum(len(batch.data) for batch in self._batches[:count])
        del self._batches[:count], self._firsts[:count]

    def reset(self, base: int, base_term: int, base_time: int) -> None:
        """Forget everything: a snapshot at `base` takes its place."""
        self.base, self.base_term, self.base_time = base, base_term, base_time
        self._batches, self._firsts, self.bytes = [], [], 0
        self.persisted = base
        self.epoch += 1

    def _position(self, index: int) -> int:
        return bisect_right(self._firsts, index) - 1
