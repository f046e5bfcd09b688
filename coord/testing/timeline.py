"""Virtual time: what happens when, one after the other, and nothing in between.

What must not live here: what the events are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Timeline:
    """A heap of events. Two at the same time happen in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        #: Events that have happened.
        self.count = 0
        self._planned = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Plan `action(*arguments)`; never in the past."""
        self._planned += 1
        heapq.heappush(self._heap, (max(time, self.now), self._planned, action, arguments))

    def after(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, action, *arguments)

    def step(self, until: float) -> bool:
        """Let the next event happen, if it is due by `until`; False when there is none."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, action, arguments = heapq.heappop(self._heap)
        self.count += 1
        action(*arguments)
        return True

    def run(self, until: float, most: int) -> bool:
        """Everything due by `until`; False if that does not end within `most` events of the beginning of time."""
        while self.step(until):
            if self.count > most:
                return False
        return True
