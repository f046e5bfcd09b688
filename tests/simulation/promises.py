"""Promises: what a message says must be on its sender's disk at the moment it leaves (reliability, P1 to P4).

Held against the simulated disk, not against what the sender believes of it. What must not live here: what may change
inside a member (`rules`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.raft.messages import (
    AnyMessage,
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Keepalive,
    KeepaliveResponse,
    Message,
    Propose,
    ReadResponse,
    SnapshotChunk,
    SnapshotOffer,
    Unknown,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import LEADER
from coord.testing.process import Process
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.world import World

#: A wish, bytes, or word to a stranger: they promise nothing.
_HARMLESS = (Propose, Keepalive, SnapshotChunk, Unknown)
#: Only who leads says these.
_LEADERS_WORDS = (Append, Heartbeat, SnapshotOffer, KeepaliveResponse)


class Promises:
    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        #: (term, candidate) to all who said they would vote for it.
        self._would_vote: dict[tuple[int, str], set[str]] = {}
        #: The highest term each member has told anybody.
        self._told: dict[str, int] = {}

    def sending(self, process: Process, to: str, message: AnyMessage) -> None:
        if self._world.atlas.is_wiped(process.name):
            # Nobody may count its word; that nobody does, the rules of voting and leading see.
            return
        kind, view = type(message), self._world.disks[process.name].view
        if kind is VoteRequest or kind is VoteResponse:
            self._on_vote_message(process, to, message)  # type: ignore[arg-type]
        elif kind is AppendResponse and message.success:  # type: ignore[union-attr]
            self._on_acknowledgement(process, to, message.index, message.term)  # type: ignore[union-attr]
        elif kind is HeartbeatResponse and message.term == process.replica.core.term:
            self._on_verified(process, to, message.verified)  # type: ignore[union-attr]
        elif kind is ReadResponse and message.index:  # type: ignore[union-attr]
            self._truth.require(
                message.index <= self._truth.committed,  # type: ignore[union-attr]
                "P4: answers a read with what is not committed",
                process,
            )
        if kind in _LEADERS_WORDS:
            leader = self._truth.leaders.get(message.term)
            self._truth.require(
                leader == process.name, f"{kind.__name__} of term {message.term}, which {leader} leads", process
            )
        # A pre-vote speaks of another term.
        if kind in _HARMLESS or getattr(message, "pre", False):
            return
        self._truth.require(
            message.term <= view.hard_state.term,
            f"P3: says term {message.term}, its disk knows {view.hard_state.term}",
            process,
        )
        self._truth.require(
            message.term >= self._told.get(process.name, 0) or bool(self._world.atlas.harm(process.name)),
            f"P3: says term {message.term}, and said {self._told.get(process.name)} before",
            process,
        )
        self._told[process.name] = message.term

    def _on_vote_message(self, process: Process, to: str, message: Message) -> None:
        truth, name = self._truth, process.name
        if isinstance(message, VoteRequest):
            if message.pre:
                return
            candidate = name
            if not message.transfer:
                willing = self._would_vote.get((message.term, name), set()) | {name}
                truth.require(
                    truth.is_majority(len(willing)),
                    f"stands in term {message.term}, only {sorted(willing)} said they would vote for it",
                    process,
                )
        else:
            assert isinstance(message, VoteResponse)
            if not message.granted:
                return
            if message.pre:
                self._would_vote.setdefault((message.term, to), set()).add(name)
                return
            candidate = to
        before = truth.votes.setdefault((message.term, name), candidate)
        truth.require(
            before == candidate, f"P1: voted for {before} in term {message.term}, now for {candidate}", process
        )
        kept = self._world.disks[name].view.hard_state
        truth.require(
            kept.term > message.term or (kept.term == message.term and kept.vote == candidate),
            f"P1: votes for {candidate} in term {message.term}, its disk says {kept}",
            process,
        )

    def _on_acknowledgement(self, process: Process, to: str, index: int, term: int) -> None:
        """P2: on disk, and the same as the leader's."""
        truth, view = self._truth, self._world.disks[process.name].view
        on_disk = view.term_at(index)
        in_snapshot = index <= snapshot_of(process)
        truth.require(
            on_disk is not None or index < view.base or in_snapshot,
            f"P2: acknowledges {index}, its disk ends at {view.last}",
            process,
        )
        leader = self._world.living(to)
        if leader is None or leader.replica.core.role != LEADER or leader.replica.core.term != term:
            return
        log = leader.replica.core.log
        truth.require(
            index <= log.last_index, f"P2: acknowledges {index}, {to}'s log ends at {log.last_index}", process
        )
        theirs = log.term_at(index)
        truth.require(
            on_disk is None or theirs is None or on_disk == theirs or in_snapshot,
            f"P2: acknowledges {index}, has it in term {on_disk}, {to} in term {theirs}",
            process,
        )

    def _on_verified(self, process: Process, to: str, index: int) -> None:
        """A heartbeat is answered with how far the logs agree: no durability, but the truth."""
        leader = self._world.living(to)
        if (
            leader is None
            or leader.replica.core.role != LEADER
            or leader.replica.core.term != process.replica.core.term
        ):
            return
        theirs, ours = leader.replica.core.log.term_at(index), process.replica.core.log.term_at(index)
        self._truth.require(
            None in (theirs, ours) or theirs == ours, f"says it agrees with {to} up to {index}, and does not", process
        )


def snapshot_of(process: Process) -> int:
    snapshot = process.replica.core.snapshot
    return snapshot.index if snapshot is not None else 0
