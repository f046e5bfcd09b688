"""The end of the stream of `Persist`s: where the log ends, and the hard state.

Whoever keeps a stream follows it with one of these: to check the caller before anything is written, and to know what
the next segment has to say first. What must not live here: files, or the judging of bytes read back (`replay`).
"""

from __future__ import annotations

from coord.raft.messages import HardState, Persist


class StreamEnd:
    """Its assertions are programmer errors: written down, they would read as corruption at the next start."""

    def __init__(self) -> None:
        self.seq = 0
        self.last_index = 0
        self.hard_state = HardState()
        #: The highest commit index seen.
        self.commit = 0
        # (index before the run, term) of each run of one term. Invariant: indexes and terms rise.
        self._runs: list[tuple[int, int]] = [(0, 0)]

    @property
    def position(self) -> tuple[int, int]:
        """Index and term of the last entry."""
        return self.last_index, self._runs[-1][1]

    def reset(self, position: tuple[int, int]) -> None:
        self.last_index = position[0]
        self._runs = [position]

    def extend(self, first: int, last: int, term: int) -> None:
        run_term = self._runs[-1][1]
        assert first == self.last_index + 1, f"entry {first} after {self.last_index}"
        assert term >= run_term, f"entry {first} of term {term} after term {run_term}"
        if term != run_term:
            self._runs.append((first - 1, term))
        self.last_index = last

    def truncate(self, index: int) -> None:
        assert self._runs[0][0] < index <= self.last_index + 1, f"drop from {index}, the log ends at {self.last_index}"
        self.last_index = index - 1
        while len(self._runs) > 1 and self._runs[-1][0] >= self.last_index:
            self._runs.pop()

    def compact(self, index: int) -> None:
        """Nothing at or below `index` will be truncated any more."""
        while len(self._runs) > 1 and self._runs[1][0] <= index:
            del self._runs[0]

    def follow(self, persist: Persist) -> None:
        assert persist.seq > self.seq, f"Persist {persist.seq} after {self.seq}"
        self.seq = persist.seq
        if persist.commit > self.commit:
            self.commit = persist.commit
        if persist.reset is not None:
            self.reset((persist.reset.index, persist.reset.term))
        if persist.truncate_from is not None:
            self.truncate(persist.truncate_from)
        for batch in persist.batches:
            self.extend(batch.first, batch.last, batch.term)
        after = persist.hard_state
        if after is not None:
            before = self.hard_state
            # Trap 3: a vote is never taken back within its term.
            kept = after.term > before.term or (after.term == before.term and before.vote in ("", after.vote))
            assert kept, f"{after} after {before}"
            self.hard_state = after
