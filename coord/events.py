"""What a node reports about itself: plain numbers, and the last few things worth telling.

The loop thread writes, metrics and logs read. Reading takes no lock and never waits for the loop, so it also works
while the loop is stuck, which is when it is wanted. What must not live here: a metrics or logging library, a clock.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

from coord import wire
from coord.raft.roles import CANDIDATE, LEADER

#: How many notes are kept; older ones fall out.
NOTES_MAX = 64
#: Upper bounds in seconds, 0.5 ms to 8.2 s: as wide as a disk, a network or a starved thread may be slow.
BOUNDS = tuple(0.0005 * 2**k for k in range(15))


class Note(NamedTuple):
    """One thing worth telling: a change of role, a membership, a first refused frame."""

    #: Seconds, of the clock the loop goes by.
    at: float
    #: One word to filter by.
    kind: str
    text: str


class Durations:
    """How long something took, counted in buckets. One thread calls `add`; any thread reads."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        #: `buckets[i]` counts durations up to BOUNDS[i], above BOUNDS[i - 1]; the last one those above all bounds.
        self.buckets = [0] * (len(BOUNDS) + 1)
        #: Seconds.
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True, eq=False)
class Counters:
    """Everything a node counts, from its start. Numbers only rise."""

    #: Real elections stood for; pre-votes, which change nothing, are not counted.
    elections: int = 0
    #: Times a leader was learned of that was not the last one known.
    leader_changes: int = 0
    #: Times this member led and stopped leading.
    step_downs: int = 0
    frames_sent: int = 0
    #: Frames the transport would not take; a part of `frames_sent`.
    frames_unsent: int = 0
    frames_received: int = 0
    #: Received frames not believed, by reason. Every reason of `coord.wire` is there from the start.
    frames_dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(wire.REASONS, 0))
    #: Entries proposed by this member's callers that a leader took; and that were refused, with no effect.
    proposals_accepted: int = 0
    proposals_refused: int = 0
    entries_applied: int = 0
    #: Writes handed to the log, and their bytes.
    persists: int = 0
    bytes_written: int = 0
    snapshots_taken: int = 0
    snapshots_installed: int = 0
    snapshots_failed: int = 0
    #: Times the disk was found too full for the log to go on.
    disk_full: int = 0
    #: Times round the loop, and the longest it was ever late, in seconds.
    turns: int = 0
    loop_lag_max: float = 0.0
    #: How late the loop was at each of its timers: a busy host, or one that keeps the interpreter to itself.
    loop_lag: Durations = field(default_factory=Durations)
    #: From handing a write to the log until it is on disk.
    fsync: Durations = field(default_factory=Durations)
    #: From proposing a batch until it is committed, on the leader.
    commit: Durations = field(default_factory=Durations)
    #: Newest last. Replaced, never changed in place: whoever reads it holds a fixed tuple.
    recent: tuple[Note, ...] = ()
    _led: bool = False
    _last_leader: str | None = None

    def note(self, at: float, kind: str, text: str) -> None:
        """Remember one thing worth telling."""
        self.recent = (*self.recent[1 - NOTES_MAX :], Note(at, kind, text))

    def dropped(self, reason: str) -> bool:
        """Count a frame not believed; True for the first of its reason, which is the one to log."""
        count = self.frames_dropped.get(reason, 0) + 1
        self.frames_dropped[reason] = count
        return count == 1

    def late(self, seconds: float) -> None:
        """The loop was so late at a timer."""
        self.loop_lag.add(seconds)
        self.loop_lag_max = max(self.loop_lag_max, seconds)

    def role_changed(self, at: float, role: str, term: int, leader: str | None, reason: str) -> None:
        """Role, term or leader changed to these, for that reason."""
        leads = role == LEADER
        self.elections += role == CANDIDATE
        self.step_downs += self._led and not leads
        self.leader_changes += leader is not None and leader != self._last_leader
        self._led = leads
        self._last_leader = leader or self._last_leader
        self.note(at, "role", f"{role} in term {term}, leader {leader or 'unknown'}: {reason}")
