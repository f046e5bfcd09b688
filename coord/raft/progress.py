"""The leader's view of one follower: what it holds, what to send next, what is on its way.

What must not live here: building messages (`coord.raft.replication`), or counting quorums (`coord.raft.quorum`).
"""

from __future__ import annotations

from collections import deque

#: One append at a time, looking for the place where the logs agree.
PROBE = "probe"
#: They agree: appends are sent ahead of their answers, within the window.
REPLICATE = "replicate"
#: The follower's log ends before ours begins: it is pulling a snapshot.
SNAPSHOT = "snapshot"


class Progress:
    """Invariants: match < next; in PROBE at most one append is unanswered; in SNAPSHOT none is sent."""

    __slots__ = (
        "acked_round",
        "contact",
        "disk_slow",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "offered_at",
        "paused",
        "probe_round",
        "sent_commit",
        "sent_round",
        "snapshot_index",
        "state",
    )

    def __init__(self, next_index: int, now: float) -> None:
        self.state = PROBE
        #: Highest index known durable on the follower, in this leader's log. Only rises within a term.
        self.match = 0
        self.next = next_index
        #: PROBE: an append is unanswered. A heartbeat's answer frees it, lest its loss wedge us (trap 20).
        self.paused = False
        #: The newest round when the last probe left. PROBE: the answer to a later one overtaking the probe's means that
        #: one of the two was lost. REPLICATE: a refusal with an older one is about an earlier attempt.
        self.probe_round = 0
        #: REPLICATE: (last index, bytes, newest round when it left) of each unanswered append, oldest first.
        self.inflight: deque[tuple[int, int, int]] = deque()
        self.inflight_bytes = 0
        #: Commit index last sent.
        self.sent_commit = 0
        #: Newest confirmation round sent, and newest answered.
        self.sent_round = 0
        self.acked_round = 0
        #: When the newest answered round was sent: the follower surely followed us then. At first: elected now.
        self.contact = now
        self.disk_slow = False
        #: SNAPSHOT: which one, and when it was last offered or pulled from.
        self.snapshot_index = 0
        self.offered_at = 0.0

    def may_send(self, max_messages: int, max_bytes: int) -> bool:
        if self.state == PROBE:
            return not self.paused
        return self.state == REPLICATE and len(self.inflight) < max_messages and self.inflight_bytes < max_bytes

    def sent(self, last_index: int, size: int, newest_round: int) -> None:
        """An append up to `last_index` left."""
        if self.state == PROBE:
            self.paused = True
            self.probe_round = newest_round
        else:
            self.next = last_index + 1
            self.inflight.append((last_index, size, newest_round))
            self.inflight_bytes += size

    def acked(self, index: int) -> bool:
        """The follower holds everything up to `index`; True when that is news."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        return news

    def lost_since(self, round_number: int, verified: int) -> bool:
        """The answer to a round says the follower's log reaches `verified`. An append sent before that round and not
        seen by then is lost; so is what it once acknowledged and no longer knows (trap 20)."""
        if verified < self.match:
            return True
        return bool(self.inflight) and self.inflight[0][2] < round_number and verified < self.inflight[0][0]

    def become_probe(self, next_index: int) -> None:
        self.state = PROBE
        self.paused = False
        self._forget_inflight()
        self.next = max(next_index, self.match + 1)

    def become_replicate(self) -> None:
        self.state = REPLICATE
        self.paused = False
        self._forget_inflight()
        self.next = self.match + 1

    def become_snapshot(self, index: int, now: float) -> None:
        self.state = SNAPSHOT
        self._forget_inflight()
        self.snapshot_index = index
        self.offered_at = now

    def _forget_inflight(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0
