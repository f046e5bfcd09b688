"""What must hold, looked at after every step, from outside and with knowledge no member has.

Promises are held against what is on disk at the moment a message leaves; rules against each change of a member; and all
members together against one history: who led which term, which batch was appended where, what was committed. Each check
looks only at what changed. What must not live here: whether the group makes progress (`world`).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from coord.raft.batch import COMMANDS, Batch
from coord.raft.core import Core
from coord.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    Message,
    Persist,
    Propose,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotOffer,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from coord.raft.progress import REPLICATE
from coord.raft.roles import CANDIDATE, LEADER
from simulation.state import Gap, State

if TYPE_CHECKING:
    from simulation.member import Member
    from simulation.world import World


#: So many of a member's streams a leader must know apart; a later one may push out the oldest.
_STREAMS_REMEMBERED = 4
_FROM_LEADERS = (Append, Heartbeat, SnapshotOffer)


class Violation(AssertionError):
    """The group broke a promise."""


class Seen:
    """A member as it was when last looked at."""

    __slots__ = ("applied", "commit", "last", "role", "term", "vote")

    def __init__(self, member: Member) -> None:
        core = member.core
        self.term, self.vote, self.role = core.term, core.vote, core.role
        self.commit, self.applied, self.last = core.commit, core.applied, core.log.last_index


#: A member's log's end, term and vote before a step, and as a leader what it thought of the sender.
Before = tuple[int, int, int, str, tuple[int, int]]


class Checks:
    def __init__(self, world: World) -> None:
        self._world = world
        #: Who led each term (election safety).
        self.leaders: dict[int, str] = {}
        #: (term, voter) to whom the vote went, the candidate's own included.
        self._votes: dict[tuple[int, str], str] = {}
        #: (term, candidate) to all who said they would vote for it.
        self._would_vote: dict[tuple[int, str], set[str]] = {}
        #: (term, candidate) to where its log ended when it asked: (last term, last index).
        self._claims: dict[tuple[int, str], tuple[int, int]] = {}
        #: (first index, term) to (the batch's bytes, term of the entry before it, its time).
        self._appended: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        #: What is committed, and in which term that became known.
        self._golden: list[Batch] = []
        self._golden_firsts: list[int] = []
        self._committed_in: list[int] = []
        #: The one true state, and its digest at the end of each batch.
        self._truth = State()
        self._digests: dict[int, bytes] = {0: self._truth.digest}
        self._seen: dict[str, Seen] = {}
        #: When each member, by its clock, last followed somebody, or might have before it started.
        self._followed: dict[str, float] = {}
        #: Which term's leader each member last followed, and when, in the world's time.
        self._loyal: dict[str, tuple[int, float]] = {}
        #: (term, sender): of its newest streams of proposals, how many entries the leader has taken.
        self._taken: dict[tuple[int, str], dict[int, int]] = {}
        #: How often what is rare has happened.
        self.happened: dict[str, int] = {}

    @property
    def committed(self) -> int:
        """The highest commit index anywhere, ever."""
        return self._truth.index

    @property
    def digest(self) -> bytes:
        return self._truth.digest

    def fail(self, what: str) -> None:
        raise Violation(f"at {self._world.timeline.now:.4f}: {what}")

    def note(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    def _require(self, holds: bool, what: str, member: Member) -> None:
        if not holds:
            self.fail(f"{what}\n  {self._world.describe(member)}")

    # -----------------------------------------------------------------------------------------------------------------
    # A start.

    def started(self, member: Member) -> None:
        core = member.core
        self._require(core.role not in (LEADER, CANDIDATE), "a member leads or stands from the start (trap 6)", member)
        if not member.damage:
            self._require(core.commit <= self.committed, "starts with more committed than ever was (trap 43)", member)
            self._agrees(member, core.commit)
        if core.vote:
            self.note("started with a vote")
        self._seen[member.name] = Seen(member)
        # One that knew no term has answered nobody.
        self._followed[member.name] = member.local() if core.term else float("-inf")

    # -----------------------------------------------------------------------------------------------------------------
    # Promises: what a message says is on the sender's disk.

    def on_send(self, member: Member, to: str, message: Message) -> None:
        kind = type(message)
        view = member.disk.view
        if kind is VoteRequest or kind is VoteResponse:
            self._on_vote_message(member, to, message)
        elif kind is AppendResponse and message.success:  # type: ignore[union-attr]
            self._on_acknowledgement(member, to, message.index, message.term)  # type: ignore[union-attr]
        # A pre-vote speaks of another term; a wish or a snapshot's bytes promise nothing.
        harmless = kind is Propose or kind is SnapshotChunk or getattr(message, "pre", False)
        self._require(
            harmless or message.term <= view.hard_state.term,
            f"P3: says term {message.term}, its disk knows {view.hard_state.term}",
            member,
        )

    def _on_vote_message(self, member: Member, to: str, message: Message) -> None:
        view = member.disk.view
        if isinstance(message, VoteRequest):
            if message.pre:
                return
            voter, candidate = member.name, member.name
            self._claims[message.term, candidate] = message.last_term, message.last_index
            if not message.transfer:
                willing = self._would_vote.get((message.term, candidate), set()) | {candidate}
                self._require(
                    2 * len(willing) > self._world.knobs.members,
                    f"stands in term {message.term}, only {sorted(willing)} said they would vote for it",
                    member,
                )
        else:
            assert isinstance(message, VoteResponse)
            if not message.granted:
                return
            if message.pre:
                self._would_vote.setdefault((message.term, to), set()).add(member.name)
                return
            voter, candidate = member.name, to
        self._require(not member.damage, "P1: a damaged member votes", member)
        before = self._votes.setdefault((message.term, voter), candidate)
        self._require(
            before == candidate,
            f"P1: {voter} voted for {before} in term {message.term}, now {candidate}",
            member,
        )
        kept = view.hard_state
        self._require(
            kept.term > message.term or (kept.term == message.term and kept.vote == candidate),
            f"P1: {voter} votes for {candidate} in term {message.term}, its disk says {kept}",
            member,
        )

    def _on_acknowledgement(self, member: Member, to: str, index: int, term: int) -> None:
        """P2: on disk, and the same as the leader's."""
        view = member.disk.view
        on_disk = view.term_at(index)
        self._require(
            on_disk is not None or index < view.base or index <= self._snapshot_of(member),
            f"P2: acknowledges {index}, its disk ends at {view.last}",
            member,
        )
        leader = self._world.living(to)
        if leader is None or leader.core.role != LEADER or leader.core.term != term:
            return
        log = leader.core.log
        self._require(index <= log.last_index, f"P2: acknowledges {index}, {to}'s log ends at {log.last_index}", member)
        theirs = log.term_at(index)
        self._require(
            on_disk is None or theirs is None or on_disk == theirs or index <= self._snapshot_of(member),
            f"P2: acknowledges {index}, has it in term {on_disk}, {to} in term {theirs}",
            member,
        )

    def _snapshot_of(self, member: Member) -> int:
        snapshot = member.core.snapshot
        return snapshot.index if snapshot is not None else 0

    # -----------------------------------------------------------------------------------------------------------------
    # What is written.

    def on_persist(self, member: Member, persist: Persist) -> None:
        core, log = member.core, member.core.log
        if persist.truncate_from is not None:
            self.note("truncated")
            self._require(core.role != LEADER, "I2: a leader takes back what it appended", member)
            index = persist.truncate_from
            held = member.disk.view.term_at(index)
            if held is not None and index <= self.committed and not member.damage:
                self._require(
                    held != self._golden_at(index).term or index <= member.disk.view.base,
                    f"R4: takes back entry {index} of term {held}, which is committed",
                    member,
                )
        for batch in persist.batches:
            before = log.term_at(batch.first - 1)
            known = self._appended.setdefault((batch.first, batch.term), (batch.data, before))
            self._require(
                known[0] == batch.data and (before is None or known[1] is None or before == known[1]),
                f"I3: two different batches are {batch!r}, or what stands before them differs",
                member,
            )
            if batch.first - 1 > log.base:
                earlier = log.batch_at(batch.first - 1)
                self._require(earlier.time <= batch.time, f"time falls from {earlier!r} to {batch!r}", member)

    # -----------------------------------------------------------------------------------------------------------------
    # Steps.

    def before_step(self, member: Member, sender: str, message: Message) -> Before:
        core = member.core
        return core.log.last_term, core.log.last_index, core.term, core.vote, self._opinion(core, sender)

    def _opinion(self, core: Core, sender: str) -> tuple[int, int]:
        progress = core.progress.get(sender)
        return (progress.match, progress.acked_round) if progress is not None else (0, 0)

    def after_step(self, member: Member, sender: str, message: Message, before: Before) -> None:
        core = member.core
        last_term, last_index, term, vote, opinion = before
        if type(message) is VoteRequest and core.vote == sender and (core.term, core.vote) != (term, vote):
            self._require(
                (message.last_term, message.last_index) >= (last_term, last_index),
                f"votes for {sender}, whose log ends at {message.last_index}/{message.last_term}",
                member,
            )
            if not message.transfer:
                self._no_promise_broken(member)
        elif type(message) is Propose and core.role == LEADER and message.term == core.term:
            self._took(member, sender, message, last_index)
        elif message.term < term and type(message) is not VoteRequest:
            self._require(
                (core.log.last_index, core.term, self._opinion(core, sender)) == (last_index, term, opinion),
                f"R4: {type(message).__name__} of term {message.term} from {sender} changes it",
                member,
            )
        elif core.vote == member.name and vote != member.name and type(message) is not TimeoutNow:
            self._no_promise_broken(member)
        if type(message) in _FROM_LEADERS and core.leader == sender and core.term == message.term:
            self._followed[member.name] = member.local()
            self._loyal[member.name] = core.term, self._world.timeline.now
        self.after_input(member)

    def _no_promise_broken(self, member: Member) -> None:
        """Trap 32: a lease is a promise of every follower to elect nobody else for the shortest timeout."""
        settings = member.core.settings
        if settings.lease_reads:
            silence = member.local() - self._followed[member.name]
            self._require(silence >= settings.election_timeout[0], f"votes {silence:.3f} after it followed", member)

    def _took(self, member: Member, sender: str, message: Propose, last_index: int) -> None:
        """A leader takes a member's entries in order, without a gap, and none twice within a stream it remembers."""
        core = member.core
        streams = self._taken.setdefault((core.term, sender), {})
        taken = streams.get(message.stream, 0)
        count = core.log.last_index - last_index
        appended = [
            payload for batch in core.log.between(last_index + 1, core.log.last_index) for payload in batch.payloads()
        ]
        expected = [entry[4:] for entry in message.entries[taken - message.number :]] if message.number <= taken else []
        self._require(
            appended == expected[:count],
            f"took other entries of {sender}'s stream {message.stream:x} than those from {taken} on",
            member,
        )
        streams[message.stream] = taken + count
        if len(streams) > _STREAMS_REMEMBERED:
            del streams[next(iter(streams))]

    def after_input(self, member: Member) -> None:
        core, seen = member.core, self._seen[member.name]
        if core.term != seen.term:
            self._require(core.term > seen.term, f"I6: term falls from {seen.term}", member)
        elif core.vote != seen.vote:
            self._require(not seen.vote, f"trap 3: vote {seen.vote!r} becomes {core.vote!r} in its term", member)
        if core.role == LEADER and (seen.role != LEADER or core.term != seen.term):
            self._elected(member)
        if core.commit != seen.commit:
            self._require(core.commit > seen.commit, f"I6: commit falls from {seen.commit}", member)
            self._committed(member)
        self._seen[member.name] = Seen(member)

    def after_turn(self, member: Member) -> None:
        core, log, view = member.core, member.core.log, member.disk.view
        seen = self._seen[member.name]
        self._require(core.applied >= seen.applied, f"I6: applied falls from {seen.applied}", member)
        order = core.applied, core.handed, core.commit, log.last_index
        self._require(
            list(order) == sorted(order) and member.state.index == core.applied,
            f"I6: applied {member.state.index}, handed, commit, last out of order: {order}",
            member,
        )
        if log.persisted > log.base and not member.damage:
            term = log.term_at(log.persisted)
            self._require(
                term is not None and (view.holds(log.persisted, term) or log.persisted <= self._snapshot_of(member)),
                f"thinks {log.persisted}/{term} is durable, its disk ends at {view.last}",
                member,
            )
        if core.role == LEADER:
            for name, progress in core.progress.items():
                self._require(
                    progress.match < progress.next <= log.last_index + 1
                    and (progress.state == REPLICATE or not progress.inflight)
                    and not (progress.state == REPLICATE and progress.paused)
                    and progress.acked_round <= core.rounds.newest,
                    f"its view of {name} is impossible: {progress.state} {progress.match} {progress.next}",
                    member,
                )
        elif core.leader is not None:
            leader = self._world.living(core.leader)
            if leader is not None and leader.core.role == LEADER and leader.core.term == core.term:
                theirs, ours = leader.core.log.term_at(core.verified), log.term_at(core.verified)
                self._require(
                    core.verified <= leader.core.log.last_index and (theirs == ours or None in (theirs, ours)),
                    f"R3: takes {core.verified} for shared: {ours} here, {theirs} at its leader",
                    member,
                )

    def _elected(self, member: Member) -> None:
        core = member.core
        self.note("elected")
        before = self.leaders.setdefault(core.term, member.name)
        self._require(before == member.name, f"I1: {before} led term {core.term}", member)
        kept = member.disk.view.hard_state
        self._require((kept.term, kept.vote) == (core.term, member.name), f"R1: its own vote: {kept}", member)
        votes = {voter for (term, voter), who in self._votes.items() if term == core.term and who == member.name}
        votes.add(member.name)
        self._require(
            2 * len(votes) > self._world.knobs.members, f"R1: elected by {sorted(votes)} in term {core.term}", member
        )
        # I4. Not "all committed so far": votes may be late, and an older leader may commit meanwhile. What was
        # committed in an older term is here.
        index = self._golden_before(core.term)
        if index > core.log.base:
            self._require(
                core.log.term_at(index) == self._golden_at(index).term,
                f"I4: elected without entry {index} of term {self._golden_at(index).term}, committed before",
                member,
            )

    # -----------------------------------------------------------------------------------------------------------------
    # What is committed.

    def _committed(self, member: Member) -> None:
        core = member.core
        if core.role == LEADER:
            self._rule_of_commit(member)
            self._extend(member)
        else:
            self._require(core.commit <= self.committed, f"R3: commits {core.commit}, its leader has not", member)
        self._agrees(member, core.commit)

    def _rule_of_commit(self, member: Member) -> None:
        core = member.core
        term = core.log.term_at(core.commit)
        self._require(term == core.term, f"R2: commits {core.commit} of term {term} (trap 1)", member)
        assert term is not None
        holders = [name for name, disk, damaged in self._world.disks() if damaged or disk.view.holds(core.commit, term)]
        self._require(
            2 * len(holders) > self._world.knobs.members,
            f"R2: commits {core.commit}, which only {holders} hold on disk",
            member,
        )

    def _extend(self, member: Member) -> None:
        core = member.core
        self._agrees(member, min(core.commit, self.committed))
        for batch in core.log.between(self.committed + 1, core.commit):
            self._golden.append(batch)
            self._golden_firsts.append(batch.first)
            self._committed_in.append(core.term)
            try:
                self._truth.apply(batch)
            except Gap as gap:
                self.fail(f"a member's proposals were committed with a gap: {gap}")
            self._digests[batch.last] = self._truth.digest
            if batch.kind == COMMANDS:
                self.note("batch committed")

    def _agrees(self, member: Member, index: int) -> None:
        log = member.core.log
        if index > log.base:
            self._require(
                log.term_at(index) == self._golden_at(index).term,
                f"I5: has {index} of term {log.term_at(index)} for committed, it is of {self._golden_at(index).term}",
                member,
            )

    def applied(self, member: Member, batch: Batch) -> None:
        """I5, I7: everybody goes through the same states."""
        self._require(
            self._digests.get(batch.last) == member.state.digest, f"I7: another state after {batch!r}", member
        )

    def installed(self, member: Member, meta: SnapshotMeta) -> None:
        self.note("snapshot installed")
        self._require(
            self._digests.get(meta.index) == member.state.digest and member.state.index == meta.index,
            f"I8: snapshot {meta.index} is of another state",
            member,
        )
        self._require(
            self._golden_at(meta.index).term == meta.term, f"I8: snapshot {meta.index} of {meta.term}", member
        )

    def _golden_at(self, index: int) -> Batch:
        return self._golden[bisect_right(self._golden_firsts, index) - 1]

    def _golden_before(self, term: int) -> int:
        """The last index committed in a term older than `term`."""
        position = len(self._golden)
        while position and self._committed_in[position - 1] >= term:
            position -= 1
        return self._golden[position - 1].last if position else 0

    # -----------------------------------------------------------------------------------------------------------------
    # Reads.

    def read_answered(self, member: Member, number: int, index: int) -> None:
        core = member.core
        self._require(number in member.floors, f"read {number} answered, which nobody waits for", member)
        floor, invoked = member.floors[number]
        self._require(index >= floor, f"R5: read at {index}, {floor} was committed before it was asked for", member)
        leads, leases = core.role == LEADER, core.settings.lease_reads
        # A follower may have left that leader within this very turn: then any leader will do.
        terms = [core.term] if leads else sorted({term for term, _ in self._loyal.values()})
        confirmed = any(self._majority_followed(term, invoked) for term in terms)
        if leads and leases and not confirmed:
            # By its lease: a majority has promised not to elect anybody yet. Each counts by its own clock.
            patience = core.settings.election_timeout[0] / max(self._world.knobs.rates)
            confirmed = self._majority_followed(core.term, self._world.timeline.now - patience)
            self.note("read answered within a lease")
        if leads or not leases:
            self._require(confirmed, f"read {number} answered, and no majority followed its leader since", member)
        self.note("read answered by its leader" if leads else "read answered to a follower")

    def _majority_followed(self, term: int, since: float) -> bool:
        """Whatever answers were on their way before `since` prove nothing (trap 31)."""
        following = {name for name, (followed, at) in self._loyal.items() if followed == term and at >= since}
        return 2 * len(following | {self.leaders[term]}) > self._world.knobs.members
