"""The recent changes of the config map, so that a watch can resume where it stopped.

History is not part of the replicated state: it is not in snapshots or in the state hash, no reply depends on it, and a
member that installed a snapshot has less of it than one that applied every entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from coord.machine.records import CHANGE_OVERHEAD_BYTES, Write

#: How many changed revisions are kept, and how many bytes they may take in memory, if nothing else is said.
REVISIONS_MAX = 10_000
BYTES_MAX = 16 << 20


class History:
    """What changed at each revision above `compacted`, in order.

    Invariant: every change with a revision above `compacted` is here, and nothing else. So a watch that has seen
    everything up to `compacted` itself still resumes without a gap, a delete at just that revision included.
    """

    __slots__ = ("_bytes", "_bytes_max", "_entries", "_revisions_max", "compacted")

    def __init__(self, revisions_max: int = REVISIONS_MAX, bytes_max: int = BYTES_MAX, compacted: int = 0) -> None:
        self.compacted = compacted
        self._revisions_max = revisions_max
        self._bytes_max = bytes_max
        self._entries: deque[tuple[int, Sequence[Write], int]] = deque()
        self._bytes = 0

    def append(self, revision: int, writes: Sequence[Write]) -> None:
        """Remember what `revision` changed, and forget what there is no longer room for."""
        size = CHANGE_OVERHEAD_BYTES * len(writes)
        for key, before, after in writes:
            size += len(key)
            if before is not None:
                size += len(before[0])
            if after is not None:
                size += len(after[0])
        entries = self._entries
        entries.append((revision, writes, size))
        self._bytes += size
        while len(entries) > self._revisions_max or self._bytes > self._bytes_max:
            self.compacted, _, dropped = entries.popleft()
            self._bytes -= dropped

    def begin_anew(self, compacted: int) -> None:
        """Forget everything up to `compacted`, which is all there is."""
        self.compacted = compacted
        self._entries.clear()
        self._bytes = 0

    def since(self, revision: int) -> list[tuple[int, Sequence[Write]]] | None:
        """Return what changed above `revision`, oldest first; None if some of it is forgotten."""
        if revision < self.compacted:
            return None
        found: list[tuple[int, Sequence[Write]]] = []
        for entry in reversed(self._entries):
            if entry[0] <= revision:
                break
            found.append((entry[0], entry[1]))
        found.reverse()
        return found
