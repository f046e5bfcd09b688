"""How far a search goes: the bounds, and where it begins.

What must not live here: the search itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from coord.raft.batch import COMMANDS, NOOP
from coord.raft.settings import Settings
from exhaustive.frozen import NAMES, FrozenDisk, FrozenLog

#: How pre-votes are treated; see `Scope.pre_votes`.
REAL, FREE, INSTANT = "real", "free", "instant"
#: How slow the disks are; see `Scope.disk_answers`.
SLOW = "slow"


@dataclass(frozen=True)
class Scope:
    """Bounds. What they do not name is unbounded: each message may be lost, or arrive any number of times, in any order
    and at any moment; each timer may run out at any moment; the disk answers whenever it likes."""

    #: Nobody stands for a newer term than this.
    terms: int = 2
    #: Nobody proposes when the log is this long. A leader's first entry comes on top.
    entries: int = 1
    #: All members' together.
    crashes: int = 0
    #: Of one leader: the first comes with the election, each heartbeat and read begins another. When there were so
    #: many, it sends no more heartbeats, and questions for a read to it are lost.
    rounds: int = 1
    reads: int = 0
    #: REAL: asked and answered like anything else. FREE: whoever asks may be told yes at any moment, whatever the
    #: others think. That allows more than can happen, and costs less: a pre-vote changes nothing at the voter. INSTANT:
    #: likewise, and within the very turn it was asked for, so nobody stays a pre-candidate.
    pre_votes: str = FREE
    #: SLOW: the disk answers whenever it likes, and a crash loses any of what was asked of it since, from the end.
    #: INSTANT: it answers within the turn, or else the process ends there, and what this turn asked for is lost.
    disk_answers: str = SLOW
    #: May a voter also refuse because it hears a leader? It is as if the request were lost, so this finds little.
    stickiness: bool = False
    #: One batch in each append, so that more can come between two.
    small_appends: bool = False
    #: Two messages may also arrive within one turn.
    joined: bool = False
    #: Do messages of an older term than their receiver has on disk still arrive? If not, many fewer states remain, of
    #: which none is impossible: such messages are then always lost.
    old_messages: bool = True
    #: For comparison: answers that can do nothing any more are kept all the same.
    dead_letters: bool = False
    #: Is only the harm looked for (two leaders in a term, entries lost, stale reads), and not the broken promises that
    #: lead to it (a vote told before it is durable)? Stories then take longer, and are about what users would see.
    harm_only: bool = False
    #: What is on the disks at first; fresh ones if not given.
    disks: tuple[FrozenDisk, ...] = (FrozenDisk((0, ""), (), 0),) * len(NAMES)
    #: What happens first, so that the search begins deeper: "a stands", "a beats", "a proposes", "a syncs" (all that
    #: waits is on disk), "a > b" (b hears all that a has said to it since it last did).
    opening: tuple[str, ...] = ()

    def settings(self) -> Settings:
        """Disks never count as stalled: that only makes leaders step down, which they may at any time."""
        return Settings(disk_stall_timeout=float("inf"), max_append_bytes=1 if self.small_appends else 1 << 20)

    def describe(self) -> str:
        parts = [f"{self.terms} terms", f"{self.entries} entries", f"{self.crashes} crashes", f"{self.rounds} rounds"]
        parts.append(f"{self.reads} reads")
        parts.append(f"pre-votes {self.pre_votes}, disks {self.disk_answers}")
        parts += [name for name in ("stickiness", "small_appends", "joined", "harm_only") if getattr(self, name)]
        if not self.old_messages:
            parts.append("old messages are lost")
        if len(set(self.disks)) > 1:
            parts.append("begins with " + " ".join(f"{d.hard_state}{[b[1] for b in d.log]}" for d in self.disks))
        if self.opening:
            parts.append("after " + "; ".join(self.opening))
        return ", ".join(parts)


def disk_of(term: int, vote: str, *terms: int) -> FrozenDisk:
    """A disk with this term and vote, and an entry of each of `terms`."""
    log: FrozenLog = tuple((COMMANDS if term else NOOP, term, index, 1) for index, term in enumerate(terms, start=1))
    return FrozenDisk((term, vote), log, 0)
