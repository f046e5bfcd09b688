"""Cluster time: the only time the replicated state knows.

It is what leaders stamped into the log, so it is equal on every member at an index, never falls, and stands still while
there is no leader. It is nobody's wall clock: only differences mean anything.
"""

from __future__ import annotations

#: Later stamps than this (292 years) are taken for this, so that every time fits a signed 64-bit integer.
TIME_MAX = (1 << 63) - 1


class ClusterClock:
    """Invariant: `now` never falls, whatever leaders stamp (one may have started behind its predecessor)."""

    __slots__ = ("now",)

    def __init__(self, now: int = 0) -> None:
        #: Nanoseconds.
        self.now = now

    def advance(self, stamp: int) -> None:
        """Take the stamp of the entry being applied."""
        if stamp > self.now:
            self.now = min(stamp, TIME_MAX)

    def after(self, duration: int) -> int:
        """The time `duration` nanoseconds from now."""
        return min(self.now + duration, TIME_MAX)
