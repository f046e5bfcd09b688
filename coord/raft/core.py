"""Raft as a value: inputs change it, `take()` says what to do. No socket, thread, clock, disk or chance of its own.

Every input gets the time (seconds, any origin, never falling) and returns at once. After one or several inputs the
driver calls `take()` and performs the commands it returns, in order. What is written or sent is decided there, once per
turn, so that all that arrived in a turn shares one disk write and one message to each member.

This file holds the state, the dispatch, the role changes and the outlet. The rules live beside it, as functions of the
core, one file for each idea: `election`, `replication`, `transfer`, `snapshot`; the arithmetic in `quorum`, `progress`,
`log`, `read_index`, `membership`.

Section numbers are those of the Raft paper; "trap N" are the known mistakes of other systems that tests here carry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coord.raft import election, replication, snapshot, transfer
from coord.raft.batch import COMMANDS, MEMBERSHIP, NOOP, Batch, encode_entry, make_batch
from coord.raft.log import Log
from coord.raft.membership import ANY, Membership, MembershipHistory, membership_in
from coord.raft.messages import (
    Append,
    AppendResponse,
    Apply,
    Command,
    Halt,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    Message,
    Persist,
    Propose,
    ProposeResponse,
    ReadFailed,
    ReadRequest,
    ReadResponse,
    Refused,
    RoleChange,
    Send,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotOffer,
    SnapshotPull,
    TimeoutNow,
    TransferRefused,
    Unknown,
    VoteRequest,
    VoteResponse,
)
from coord.raft.progress import Progress
from coord.raft.quorum import held_by_quorum
from coord.raft.read_index import ForwardedReads, PendingReads, Rounds
from coord.raft.roles import ALLOWED, CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings

if TYPE_CHECKING:
    import random

    from coord.raft.snapshot import Pull
    from coord.raft.transfer import Transfer

#: In the log's clock, nanoseconds.
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class Start:
    """What a member knows when it starts: from its disk, or the defaults on a fresh one."""

    #: As of the snapshot, or what the group starts with.
    membership: Membership
    membership_index: int = 0
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    batches: Sequence[Batch] = ()
    #: A commit index once known, at most the last index (trap 43).
    commit: int = 0
    #: Why this member may have forgotten a promise; it then never votes and acknowledges nothing. "" when it has not.
    damage: str = ""


class Core:
    """One member's Raft state.

    Invariants, checked on the way: term never falls; vote changes only from none within a term (trap 3); commit never
    falls and never passes last_index; handed <= commit; applied <= handed.
    """

    def __init__(
        self, name: str, incarnation: int, settings: Settings, rng: random.Random, start: Start, now: float
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.settings = settings
        self.rng = rng
        self.now = now
        self.damage = start.damage

        self.term = start.hard_state.term
        self.vote = start.hard_state.vote
        self.role = FOLLOWER
        self.leader: str | None = None

        #: The newest durable one, and the one before it while that is kept too.
        self.snapshot = start.snapshot
        self.older_snapshot: SnapshotMeta | None = None
        self.log = _log_of(start)
        index = start.snapshot.index if start.snapshot else 0
        self.commit = max(index, self.log.newest_not_above(start.commit, self.log.last_term)[0])
        #: Given to the driver to apply, and known to be applied.
        self.handed = index
        self.applied = index
        self.history = MembershipHistory(start.membership_index, start.membership)
        for batch in self.log.between(self.log.first_index, self.log.last_index):
            if batch.kind == MEMBERSHIP and batch.first > start.membership_index:
                # In force from the log alone, committed or not (trap 24).
                self.history.append(batch.first, membership_in(batch))
        #: Index of the newest membership known committed; the bootstrap one needs no commit.
        self.membership_committed = start.membership_index

        #: Members' incarnations as heard, until the log pins them (trap 46).
        self.seen: dict[str, int] = {}
        #: Members whose process is known to be gone, until heard from again.
        self.gone: set[str] = set()

        self.granted: set[str] = set()
        self.refused: set[str] = set()
        #: Rounds of an election still to be hurried.
        self.haste = 0
        #: Priority vetoes made since there last was a leader; bounded, so that preference never costs a leader.
        self.vetoes = 0

        self.progress: dict[str, Progress] = {}
        self.rounds = Rounds()
        self.reads = PendingReads()
        self.forwarded = ForwardedReads(rng.getrandbits(62))
        #: Of each member's streams of `Propose`s in this term, the entry number expected next.
        self.proposed: dict[str, dict[int, int]] = {}
        #: Index of this leader's first entry; reads and membership changes wait for its commit.
        self.term_start = 0
        #: Leader: cluster time runs from here. Others: the latest they heard of, lest elections make it stand still.
        self.clock_base = 0
        self._clock_start = 0.0
        self.transfer_state: Transfer | None = None
        #: Why the last handing over failed; "" while none has.
        self.transfer_failure = ""
        #: When the state was last known to include all its leader had committed.
        self.fresh_at = float("-inf")
        #: This leader has reacted to its disk standing still.
        self.stall_handled = False
        #: Follower: the log agrees with this term's leader up to here; and the newest round answered.
        self.verified = 0
        self.answered_round = 0
        #: No lease before this moment, nor before this index has committed (trap 32).
        self.lease_not_before = 0.0
        self.lease_after_index = 0
        self.pull: Pull | None = None

        #: When the leader was last heard. With lease reads a fresh start counts as having heard it: the promise it may
        #: have made was only in memory.
        self.leader_contact = now if settings.lease_reads else float("-inf")
        self.heartbeat_due = float("inf")
        self.election_due = now
        self.lone = self.voters == (name,)
        if not self.lone:
            election.reset_timer(self)

        # The outlet.
        self._out: list[Command] = []
        self._seq = 0
        #: Persists not yet durable: (persist, when made, log epoch, last index), oldest first.
        self._in_flight: deque[tuple[Persist, float, int, int]] = deque()
        self._saved = start.hard_state
        self._reset: SnapshotMeta | None = None
        self._truncate: int | None = None
        self._appended: list[Batch] = []
        self._riding: list[Send] = []
        self._told: tuple[str, int, str | None] = (FOLLOWER, self.term, None)
        self._reason = "started"
        self.halted = ""

    # ----------------------------------------------------------------------------------------------------------------
    # What others may look at.

    @property
    def membership(self) -> Membership:
        """The membership in force: the newest in the log, committed or not (dissertation 4.1)."""
        return self.history.latest

    @property
    def voters(self) -> tuple[str, ...]:
        return self.history.latest.voters

    @property
    def others(self) -> list[str]:
        return [name for name in self.membership.members if name != self.name]

    @property
    def accepting(self) -> bool:
        """Would `propose` take entries now?"""
        return (
            self.role == LEADER
            and self.transfer_state is None
            and not self.halted
            and self.log.bytes_after(self.commit) < self.settings.max_uncommitted_bytes
        )

    @property
    def leads_surely(self) -> bool:
        """Leader, with an entry of its own term committed: what it has committed is all there is."""
        return self.role == LEADER and self.commit >= self.term_start

    def quorum_contact(self) -> float:
        """The latest time at which a quorum, this leader included, surely followed it."""
        progress = self.progress
        return held_by_quorum(self.voters, lambda name: self.now if name == self.name else progress[name].contact)

    def lease_until(self) -> float:
        """Until when no other leader can be elected; in the past when there is no lease (traps 32, 33)."""
        if not (self.settings.lease_reads and self.leads_surely) or self.transfer_state is not None:
            return float("-inf")
        if self.now < self.lease_not_before or self.commit < self.lease_after_index:
            return float("-inf")
        return self.quorum_contact() + self.settings.election_timeout[0] * (1 - 2 * self.settings.clock_drift)

    def cluster_time(self) -> int:
        """Leader: what it would stamp into an entry now, nanoseconds. It runs while there is a leader and stands still
        between two (LogCabin's cluster clock)."""
        running = int((self.now - self._clock_start) * _NANOSECONDS)
        return max(self.clock_base + running, self.log.last_time)

    def disk_stalled(self) -> bool:
        """Has the oldest unanswered Persist waited longer than allowed? (trap 45)"""
        return bool(self._in_flight) and self.now - self._in_flight[0][1] > self.settings.disk_stall_timeout

    def deadline(self) -> float:
        """When `tick` is next needed."""
        deadlines = [self.heartbeat_due if self.role == LEADER else self.election_due]
        if self.transfer_state is not None:
            deadlines.append(self.transfer_state.deadline)
        if self.pull is not None and self.leader is not None and not self.pull.storing:
            deadlines.append(self.pull.retry_at)
        deadlines.append(self.forwarded.retry_at(self.read_retry))
        return min(deadlines)

    @property
    def read_retry(self) -> float:
        return 2 * self.settings.heartbeat

    # ----------------------------------------------------------------------------------------------------------------
    # Inputs.

    def tick(self, now: float) -> None:
        """Time has passed. Call at `deadline()`, and after whatever has already arrived was given to `step`, lest a
        busy host's pause look like a silent peer."""
        self.now = now
        if self.halted:
            return
        if self.role == LEADER:
            replication.tick_leader(self)
            transfer.tick(self)
        elif now >= self.election_due:
            election.timed_out(self)
        snapshot.tick(self)

    def step(self, now: float, sender: str, incarnation: int, message: Message) -> None:
        """A message arrived. Its frame's cluster was checked; who sent it is checked here."""
        self.now = now
        if self.halted or not self._known(sender, incarnation, message):
            return
        self.gone.discard(sender)
        handle = _HANDLERS.get(type(message))
        assert handle is not None, f"no handler for {message!r}"
        handle(self, sender, message)

    def propose(self, now: float, entries: Sequence[bytes]) -> int:
        """Append entries (each through `encode_entry`) to the leader's log; the first one's index, or 0: refused, with
        no effect at all (not the leader, handing over, or too much uncommitted)."""
        self.now = now
        if not entries or not self.accepting:
            return 0
        first = self.log.last_index + 1
        start, size, limit = 0, 0, self.settings.max_batch_bytes
        for position, entry in enumerate(entries):
            if size + len(entry) > limit and position > start:
                self.append_entries(COMMANDS, entries[start:position])
                start, size = position, 0
            size += len(entry)
        self.append_entries(COMMANDS, entries[start:])
        return first

    def read(self, now: float, read_id: int) -> None:
        """Ask for an index that makes a read begun now linearizable: ReadOk or ReadFailed will name `read_id`."""
        self.now = now
        if self.halted:
            self._out.append(ReadFailed([read_id]))
        elif self.role == LEADER:
            replication.add_read(self, read_id)
        else:
            self.forwarded.add(read_id)

    def transfer_leadership(self, now: float, to: str | None = None) -> str:
        """Hand leadership to `to`, or to the best follower. "" when begun, else why not. It has worked when this
        member is no longer leader; it has failed when `transfer_state` is None and it still is."""
        self.now = now
        return transfer.begin(self, to) if not self.halted else f"stopped: {self.halted}"

    def persisted(self, now: float, seq: int) -> None:
        """Every Persist up to `seq` is on disk."""
        self.now = now
        if self.halted:
            return
        while self._in_flight and self._in_flight[0][0].seq <= seq:
            persist, _, epoch, last_index = self._in_flight.popleft()
            if epoch == self.log.epoch:
                self.log.persisted = max(self.log.persisted, min(last_index, self.log.last_index))
            # An acknowledgement from an older term may speak of entries truncated since; it is of no use to anybody.
            self._out += [
                send
                for send in persist.responses
                if not isinstance(send.message, AppendResponse) or send.message.term == self.term
            ]
            state = persist.hard_state
            if state is not None and self.role == CANDIDATE and (state.term, state.vote) == (self.term, self.name):
                # Its own vote counts once it can no longer be forgotten (trap 2).
                election.count_vote(self, self.name, True)
        if self.role == LEADER:
            replication.advance_commit(self)

    def applied_to(self, index: int) -> None:
        """The driver has applied everything up to `index`."""
        assert self.applied <= index <= self.handed, f"applied {index}, handed {self.handed}"
        self.applied = index

    def found(self, now: float) -> None:
        """A fresh member of what may be a fresh group: do not wait a whole election timeout for the first leader."""
        self.now = now
        if self.term == 0 and not self.lone:
            election.found(self)

    def peer_gone(self, now: float, peer: str) -> None:
        """The transport has proof that `peer`'s process ended. If it led, an election need not wait."""
        self.now = now
        self.gone.add(peer)
        election.leader_gone(self, peer)

    def snapshot_taken(self, meta: SnapshotMeta) -> None:
        """A snapshot of the applied state at `meta.index` is durable. Entries before the one before it may go."""
        previous = self.snapshot.index if self.snapshot else 0
        if meta.index <= previous:
            return
        assert meta.index <= self.applied, f"snapshot at {meta.index}, applied {self.applied}"
        self.snapshot, self.older_snapshot = meta, self.snapshot
        self.log.compact(previous)
        self.history.compact(previous)

    def snapshot_progress(self, now: float, index: int, held: int) -> None:
        """`held` bytes of the snapshot being pulled are kept."""
        self.now = now
        snapshot.progressed(self, index, held)

    def snapshot_stored(self, now: float, meta: SnapshotMeta) -> None:
        """The pulled snapshot is complete, checked and durable."""
        self.now = now
        snapshot.install(self, meta)

    def snapshot_unreadable(self, now: float, name: str, index: int) -> None:
        """Leader: no byte of the snapshot `index`, which `name` is pulling, can be read. It is to pull another."""
        self.now = now
        snapshot.unreadable(self, name, index)

    def snapshot_failed(self, now: float, index: int, *, doubted: bool = False) -> None:
        """The pulled snapshot could not be kept; `doubted`: it was not what was offered. A later offer starts anew."""
        self.now = now
        snapshot.failed(self, index, doubted=doubted)

    # ----------------------------------------------------------------------------------------------------------------
    # The outlet.

    def take(self) -> list[Command]:
        """What to do now, in this order. Sends come before the Persist: what they say is true without it, and a slow
        disk must not hold them up (dissertation 10.2.1)."""
        if self.halted:
            out, self._out = self._out, []
            return out
        if self.role == LEADER:
            replication.replicate_all(self)
        elif self.leader is not None:
            replication.forward_reads(self)
        else:
            dropped = self.forwarded.drop()
            if dropped:
                self._out.append(ReadFailed(dropped))
        self._report_role()
        self._persist()
        self._hand_over()
        out, self._out = self._out, []
        return out

    def send(self, to: str, message: Message) -> None:
        """Send what is true already, unless a promise this member made to itself (its term, its vote) is not yet on
        disk: no message may say more than a restart would remember."""
        if self._hard_state_in_doubt():
            self.send_when_durable(to, message)
        elif not self.halted and self._may_say(message):
            self._out.append(Send(to, message))

    def send_when_durable(self, to: str, message: Message) -> None:
        """Send once everything this core has so far asked to persist is on disk."""
        if self._may_say(message):
            self._riding.append(Send(to, message))

    def _may_say(self, message: Message) -> bool:
        """What a damaged member forgot may be a newer term: its word must not let an older leader commit, confirm reads
        or go on."""
        return not self.damage or not isinstance(message, AppendResponse | HeartbeatResponse)

    def command(self, command: Command) -> None:
        self._out.append(command)

    def halt(self, reason: str) -> None:
        """Going on would be unsafe. Nothing more is sent, said or promised."""
        if not self.halted:
            self.halted = reason
            self._riding = []
            self._out.append(Halt(reason))

    def _hard_state_in_doubt(self) -> bool:
        return self._saved != HardState(self.term, self.vote) or any(
            persist.hard_state is not None for persist, _, _, _ in self._in_flight
        )

    def _persist(self) -> None:
        state = HardState(self.term, self.vote)
        changed = state if state != self._saved else None
        if changed is None and self._reset is None and self._truncate is None and not self._appended:
            if self._riding and self._in_flight:
                self._in_flight[-1][0].responses += self._riding
            else:
                self._out += self._riding
            self._riding = []
            return
        self._seq += 1
        persist = Persist(self._seq, changed, self._reset, self._truncate, self._appended, self.commit, self._riding)
        self._in_flight.append((persist, self.now, self.log.epoch, self.log.last_index))
        self._saved = state
        self._reset, self._truncate, self._appended, self._riding = None, None, [], []
        self._out.append(persist)

    def _hand_over(self) -> None:
        """Give the driver what became committed, and say what became certain with it."""
        if self.handed < self.commit:
            self._out.append(Apply(self.log.between(self.handed + 1, self.commit)))
            self.handed = self.commit
        index, membership = self.history.at(self.commit)
        if index > self.membership_committed:
            self.membership_committed = index
            self._out.append(MembershipChange(membership, index, True))

    def _report_role(self) -> None:
        state = (self.role, self.term, self.leader)
        if state != self._told:
            self._told = state
            self._out.append(RoleChange(*state, self._reason))

    # ----------------------------------------------------------------------------------------------------------------
    # Role changes and the log, for the rules.

    def set_term(self, term: int) -> None:
        """A newer term: no vote in it yet (trap 3: only here is a vote cleared)."""
        assert term > self.term, f"term {term} after {self.term}"
        self.term = term
        self.vote = ""
        self.verified = 0
        self.answered_round = 0

    def set_vote(self, name: str) -> None:
        assert self.vote in ("", name), f"second vote in term {self.term}: {self.vote} then {name}"
        self.vote = name

    def become_follower(self, term: int, leader: str | None, reason: str) -> None:
        """Follow `leader`, or nobody yet, in `term`."""
        if term > self.term:
            self.set_term(term)
        was_leader = self.role == LEADER
        self._change_role(FOLLOWER, leader, reason)
        if was_leader:
            self._drop_reads()
            self.progress = {}
            self.transfer_state = None
            self.heartbeat_due = float("inf")
            election.reset_timer(self)

    def become_pre_candidate(self, reason: str) -> None:
        """Ask whether an election could be won, changing nothing (dissertation 9.6)."""
        self._change_role(PRE_CANDIDATE, None, reason)
        self.granted, self.refused = {self.name}, set()

    def become_candidate(self, reason: str) -> None:
        self.set_term(self.term + 1)
        self._change_role(CANDIDATE, None, reason)
        self.granted, self.refused = set(), set()
        self.set_vote(self.name)

    def become_leader(self) -> None:
        """Lead this term. Its first entry is what lets older ones commit (5.4.2), and tells what this member knows."""
        self._change_role(LEADER, self.name, "won the election")
        self.vetoes = 0
        self.rounds = Rounds()
        self.rounds.begin(self.now)
        self.reads = PendingReads()
        for read_id in self.forwarded.drop():
            self.reads.add(read_id, parked=True)
        self.proposed = {}
        self.transfer_state, self.transfer_failure, self.stall_handled = None, "", False
        self.lease_not_before = self.now
        self.progress = {name: Progress(self.log.last_index + 1, self.now) for name in self.others}
        self.clock_base, self._clock_start = max(self.clock_base, self.log.last_time), self.now
        self.heartbeat_due = self.now + self.settings.heartbeat
        self.term_start = self.log.last_index + 1
        known = replication.membership_to_pin(self)
        if known is not None:
            self.append_membership(known)
        else:
            self.append_entries(NOOP, [encode_entry(b"")])

    def append_entries(self, kind: int, entries: Sequence[bytes]) -> None:
        """Leader: one more batch at the end of the log."""
        assert self.role == LEADER
        first = self.log.last_index + 1
        self.append(make_batch(kind, self.term, first, self.cluster_time(), entries, len(entries)))

    def append_membership(self, membership: Membership) -> None:
        self.append_entries(MEMBERSHIP, [encode_entry(membership.encode())])

    def append(self, batch: Batch) -> None:
        """Extend the log, and remember to persist it."""
        self.log.append(batch)
        self._appended.append(batch)
        if batch.kind == MEMBERSHIP:
            self.history.append(batch.first, membership_in(batch))
            self.command(MembershipChange(self.membership, batch.first, False))

    def truncate_from(self, index: int) -> None:
        """Drop a tail that conflicts with the leader's (5.3). What is committed never conflicts."""
        assert index > self.commit, f"truncation at {index}, committed {self.commit}"
        unasked = self._appended[0].first if self._appended else self.log.last_index + 1
        self.log.truncate_from(index)
        while self._appended and self._appended[-1].first >= index:
            self._appended.pop()
        if index < unasked:
            # The disk is told to drop only what it was asked to keep; the rest just came and went within the turn.
            self._truncate = index
        if self.history.truncate_from(index):
            self.command(MembershipChange(self.membership, self.history.latest_index, False))

    def reset_log(self, meta: SnapshotMeta) -> None:
        """A snapshot takes the place of the whole log."""
        self.log.reset(meta.index, meta.term, meta.time)
        self.verified = 0
        self.history.reset(meta.membership_index, meta.membership)
        self.membership_committed = meta.membership_index
        self._reset, self._truncate, self._appended = meta, None, []
        self.command(MembershipChange(meta.membership, meta.membership_index, True))

    def _change_role(self, role: str, leader: str | None, reason: str) -> None:
        assert role in ALLOWED[self.role], f"{self.role} to {role}"
        if (role, leader) != (self.role, self.leader) or self._told[1] != self.term:
            self._reason = reason
        self.role, self.leader = role, leader

    def _drop_reads(self) -> None:
        failed = []
        for reader in self.reads.drop():
            if isinstance(reader, int):
                failed.append(reader)
        if failed:
            self.command(ReadFailed(failed))

    def _known(self, sender: str, incarnation: int, message: Message) -> bool:
        """Is this the member of that name? A stranger, or a disk that forgot its promises, is told and ignored."""
        if sender == self.name or incarnation == ANY:
            # Nobody but us may speak for us: counted as ours, an answer would vote before our disk has (trap 2).
            return False
        record = self.membership.members.get(sender)
        if record is None:
            reason = f"{self.name} knows no member {sender!r}; members are {', '.join(self.membership.members)}"
        else:
            expected = record.incarnation or self.seen.setdefault(sender, incarnation)
            if expected == incarnation:
                return True
            reason = (
                f"{self.name} knows {sender!r} as incarnation {expected:016x}, not {incarnation:016x}: its data "
                "directory was replaced, so it may have forgotten votes and entries; replace the member"
            )
        if not isinstance(message, Unknown):
            self.send(sender, Unknown(self.term, reason))
        return False


def _log_of(start: Start) -> Log:
    """The log as recovered. It may reach back before the snapshot; without batches it begins at the snapshot."""
    snapshot = start.snapshot
    if not start.batches:
        return Log(snapshot.index, snapshot.term, snapshot.time) if snapshot else Log(0, 0, 0)
    base = start.batches[0].first - 1
    if snapshot is not None and base == snapshot.index:
        return Log(base, snapshot.term, snapshot.time, start.batches)
    return Log(base, 0 if base == 0 else None, 0, start.batches)


def _on_unknown(core: Core, sender: str, message: Unknown) -> None:
    core.command(Refused(sender, message.reason))


_Handler = Callable[[Core, str, Any], None]

_HANDLERS: dict[type, _Handler] = {
    VoteRequest: election.on_vote_request,
    VoteResponse: election.on_vote_response,
    Append: replication.on_append,
    AppendResponse: replication.on_append_response,
    Heartbeat: replication.on_heartbeat,
    HeartbeatResponse: replication.on_heartbeat_response,
    ReadRequest: replication.on_read_request,
    ReadResponse: replication.on_read_response,
    Propose: replication.on_propose,
    ProposeResponse: replication.on_propose_response,
    TimeoutNow: transfer.on_timeout_now,
    TransferRefused: transfer.on_transfer_refused,
    SnapshotOffer: snapshot.on_offer,
    SnapshotPull: snapshot.on_pull,
    SnapshotChunk: snapshot.on_chunk,
    Unknown: _on_unknown,
}
