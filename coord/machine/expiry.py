"""When what has a name falls due, config keys and delays of locks: a heap of times, cleaned as it is read."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class Expiry:
    """Which keys (or locks' delays) end at which cluster time.

    Invariant: every (time, key) of `_times` is in `_heap`, and the heap is never much more than twice as long.
    """

    __slots__ = ("_heap", "_times")

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def set(self, key: str, time: int) -> None:
        """`key` ends at `time`, and no longer when it was to; 0: never."""
        if time == 0:
            self._times.pop(key, None)
            return
        self._times[key] = time
        if len(self._heap) > 2 * len(self._times) + 64:
            # A key renewed often leaves its old times behind: without this they would pile up until they fall due.
            self._heap = [(due, name) for name, due in self._times.items()]
            heapify(self._heap)
        else:
            heappush(self._heap, (time, key))

    def next(self) -> int | None:
        """The earliest time at which a key ends, or None."""
        heap, times = self._heap, self._times
        while heap and times.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: int, most: int) -> list[str]:
        """Forget and return up to `most` keys whose time has come, the earliest first, then by name."""
        taken: list[str] = []
        while len(taken) < most:
            due = self.next()
            if due is None or due > now:
                break
            key = heappop(self._heap)[1]
            del self._times[key]
            taken.append(key)
        return taken
