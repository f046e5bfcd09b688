"""One member without a thread, a socket or a clock: the core, the replicated state and the disk, driven turn by turn.

`turn` takes what arrived and the time, and does everything that follows from it, in one fixed order. The background
thread (`coord.loop`) calls it with real frames and a real clock; a simulation calls it with its own. So every ordering
bug there may be is in code that both run.

What must not live here: waiting, threads, sockets, reading a clock; Raft's rules (`coord.raft`); what a command means
(`coord.machine`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from coord import astray
from coord.duties import Duties
from coord.errors import CoordError, IdentityError, OutcomeUnknown, StorageError
from coord.events import Counters
from coord.lease import Lease
from coord.logs import Log
from coord.machine import commands
from coord.machine.machine import Machine
from coord.machine.replies import SESSION_ENDED
from coord.options import Options
from coord.own_session import OwnSession
from coord.proposals import EXPIRED, WITHDRAWN, Maker, Numbering, Outbox, Proposal
from coord.raft.batch import COMMANDS, Batch, encode_entry
from coord.raft.core import Core, Start
from coord.raft.membership import ANY, membership_of
from coord.raft.messages import (
    AnyMessage,
    Apply,
    Command,
    Halt,
    InstallSnapshot,
    Keepalive,
    KeepaliveResponse,
    MembershipChange,
    Message,
    Persist,
    ProposalsTaken,
    Propose,
    ReadFailed,
    ReadOk,
    Refused,
    RenewSnapshot,
    RoleChange,
    Send,
    SendSnapshot,
    SnapshotChunk,
    SnapshotMeta,
    StoreSnapshot,
    Unknown,
)
from coord.raft.quorum import majority
from coord.raft.roles import LEADER
from coord.raft.settings import Settings
from coord.reads import REFUSED, Confirmation, Read, Reads
from coord.requests import Requests
from coord.snapshots import Background, Snapshots
from coord.storage.base import Storage
from coord.transports.base import GONE, PeerEvent
from coord.watch import Watches
from coord.wire import BadFrame, Identity, decode, encode

_raft_log, _net_log, _wal_log = Log("coord.raft"), Log("coord.net"), Log("coord.wal")

#: A turn that comes later than that after it was due: what this member believes about its session may be old.
_LATE_HEARTBEATS = 5

#: No failure: it goes on reading and following, gives up leading, and once there is room goes on by itself.
_NO_ROOM = "the disk is too full for the log to go on; this member acknowledges nothing until there is room"


class Replica:
    def __init__(
        self,
        identity: Identity,
        addresses: Mapping[str, str],
        options: Options,
        storage: Storage,
        *,
        send: Callable[[str, bytes], bool],
        set_peers: Callable[[Mapping[str, str]], None],
        keep_group_number: Callable[[int], None],
        background: Background,
        rng: random.Random,
        now: float,
        epoch: int,
        alone: bool,
    ) -> None:
        """Recover from `storage`. Raises StorageError when it cannot be read. `epoch`: the group's, should this member
        found it. `alone`: an older process of this member is certainly dead."""
        self.identity = identity
        self.options = options
        self.counters = Counters()
        self.watches = Watches()
        self.now = now
        #: Why this member stopped for good, or None.
        self.failure: CoordError | None = None
        #: What others say against this member: it cannot take part until that is resolved.
        self.refusal = ""
        #: What each last said, so that it is logged once, however often they repeat it.
        self._refused_by: dict[str, str] = {}
        self._addresses = addresses
        self.storage = storage
        self._send_frame = send
        self._set_peers = set_peers
        self._keep_group_number = keep_group_number

        recovered = storage.recover()
        for note in recovered.notes:
            _wal_log.warning("%s: %s", identity.name, note)
        membership = membership_of(addresses)
        snapshot = recovered.snapshot
        self.machine = Machine(history_revisions=options.history_revisions, history_bytes=options.history_bytes)
        self._reports_compared = 0
        self.snapshots = Snapshots(
            identity.name, options, storage, self.machine, self.counters, background, self._report_hash
        )
        if snapshot is not None:
            self.snapshots.restore(snapshot)
            # What a new process starts with is no change: told to a watch that begins now, it would come a second time.
            self.machine.take_changes()
            self.machine.take_session_events()
        self.core = Core(
            identity.name,
            identity.incarnation,
            Settings.of(options),
            rng,
            Start(
                snapshot.membership if snapshot else membership,
                snapshot.membership_index if snapshot else 0,
                recovered.hard_state,
                snapshot,
                recovered.batches,
                recovered.commit,
                recovered.damage,
            ),
            now,
        )
        self.core.found(now)
        self.snapshots.attach(self.core)
        self._durable = 0

        self.numbering = Numbering(rng.getrandbits(64) or 1)
        self.own = OwnSession(self, rng, alone=alone)
        self.requests = Requests(self)
        self.outbox = Outbox(lambda: rng.getrandbits(64), 4 * options.heartbeat, options.max_batch_bytes)
        self._outbox_term = 0
        self._housekeeping_due = now
        self._disk_full = False
        self._reads = Reads()
        self._heard: dict[str, float] = {}
        self._epoch = epoch
        self._duties: Duties | None = None
        #: When the next turn is due, and whether something was proposed by who was answered in this one.
        self._due = now
        self._submitted = False
        #: (done, reply): given out at the end of the turn, once the next batch is on its way.
        self._answers: list[tuple[Callable[[Any], None], Any]] = []
        self._connect()

    # ----------------------------------------------------------------------------------------------------------------
    # Inputs, on the loop's thread.

    def turn(
        self,
        now: float,
        frames: Sequence[bytes] = (),
        events: Sequence[PeerEvent] = (),
        proposals: Sequence[Proposal] = (),
        reads: Sequence[Read] = (),
    ) -> float:
        """Do all that follows from what arrived by `now`. Returns when the next turn is due at the latest."""
        # Also when nothing arrived for the core: what falls due by cluster time depends on its clock.
        self.now = self.core.now = now
        self.counters.turns += 1
        if now > self._due + _LATE_HEARTBEATS * self.options.heartbeat:
            self.own.lease.late = True
        self.enqueue(proposals)  # before giving up, which cancels: first in, first out
        self.own.give_up_if_lapsed()
        self.own.tell()  # before what was waiting can renew it: what has been over is told of
        for frame in frames:
            self._receive(frame)
        for event in events:
            if event.kind == GONE:
                self.core.peer_gone(now, event.peer)
        self._reads.add(reads)
        if now >= self.core.deadline():
            self.core.tick(now)
        if now >= self._housekeeping_due:
            self._housekeep()
        if self._duties is not None:
            self._duties.every_turn()
        self.own.every_turn()
        self._work()
        self.own.tell()
        self._submitted = False
        self._answer()
        while self._submitted and self.failure is None:
            # Whoever was answered wants more, and shall not wait for the next turn.
            self._submitted = False
            self._work()
            self._answer()
        self._due = self._deadline()
        return self._due

    def transfer(self, to: str | None) -> str:
        """Begin to hand leadership over; "" or why not. The next `turn` acts on it."""
        return self.core.transfer_leadership(self.now, to)

    def enqueue(self, proposals: Sequence[Proposal]) -> None:
        """Take what callers began; before anything they asked for later."""
        for proposal in proposals:
            if proposal.session != self.numbering.session:
                self.numbering.encode_again(proposal)
            self.outbox.add(proposal)

    def submit(self, maker: Maker, arguments: tuple[Any, ...], done: Callable[[Any], None]) -> bool:
        """Put a command on its way, on the loop's thread. False: there is no room now. It never expires."""
        if self.failure is not None:
            return False
        proposal = self.numbering.begin(
            maker,
            arguments,
            done,
            most=1 << 30,
            max_bytes=self.options.max_batch_bytes,
            patience=0.0,
            expires_at=float("inf"),
        )
        if proposal is not None:
            self.outbox.add(proposal)
            self._submitted = True
        return proposal is not None

    def defer(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call it at the end of this turn."""
        self._answers.append((lambda _: function(*arguments), None))

    def restart_outbox(self) -> None:
        """Another leader, or another session: all that is unanswered goes again."""
        self._outbox_term = self.core.term
        self.outbox.restart(self.own.opening(), self.numbering.unanswered())

    def renew(self, session: int, answer: Callable[[bool], None]) -> None:
        """If this member leads: the owner of `session` lives."""
        if self._duties is not None:
            self._duties.renew(session, answer)

    @property
    def lease(self) -> Lease:
        """The present session's."""
        return self.own.lease

    def close_session(self) -> bool:
        """End this member's session rather than leave that to its ttl, and open no other. True while that is under way:
        give it a `turn`, and call this again."""
        return self.own.close()

    @property
    def session_open(self) -> bool:
        return self.own.is_open

    @property
    def unanswered(self) -> int:
        return len(self.numbering)

    def handed_over(self) -> str | None:
        """How the transfer ended: "" it worked, else why not; None while it is under way."""
        core = self.core
        if core.role != LEADER:
            return "" if core.leader is not None else None
        return None if core.transfer_state is not None else core.transfer_failure or "it was given up"

    def age(self, now: float) -> float:
        """Seconds since the local state was last known to be the group's newest. From any thread."""
        core = self.core
        try:
            known = core.quorum_contact() if core.leads_surely else core.fresh_at
        except KeyError:
            # It stopped leading between the two.
            known = core.fresh_at
        return max(0.0, now - known)

    def quorum_ok(self) -> bool:
        """As far as this member knows: there is a leader, and if it is this one, a majority follows it."""
        core = self.core
        if core.role == LEADER:
            return core.leads_surely and self.now - core.quorum_contact() <= self.options.election_timeout[1]
        return core.leader is not None

    def may_decide(self) -> bool:
        """Can the group still decide anything, as far as this member knows: it runs, and a majority is not gone."""
        voters, gone = self.core.voters, self.core.gone
        return self.failure is None and sum(name not in gone for name in voters) >= majority(len(voters))

    def silence(self, name: str) -> float:
        """Seconds since member `name` was last heard from; infinite when never."""
        return self.now - self._heard.get(name, float("-inf"))

    def silent_members(self) -> list[str]:
        """Members not heard from within an election timeout."""
        patience = self.options.election_timeout[1]
        return [name for name in self.core.others if self.silence(name) > patience]

    def fail(self, error: CoordError) -> None:
        """Something broke: stop for good."""
        if self.failure is None:
            _raft_log.error("%s: stopped: %s", self.identity.name, error)
            self.end(error)

    def end(self, error: CoordError) -> None:
        """No more turns. Whoever waits is told `error`, or that the outcome of what was sent is not known."""
        if self.failure is not None:
            return
        self.failure = error
        self.core.halt(str(error))
        for proposal in self.numbering.unanswered():
            self.numbering.end(proposal.sequence)
            unknown = OutcomeUnknown(f"on its way when this happened: {error}; read before repeating it")
            self._answers.append((proposal.done, unknown if proposal.sent else error))
        self._answers += [(read.done, error) for read in self._reads.drop()]
        self.own.stop(error)
        self.watches.end(error)
        self._answer()

    # ----------------------------------------------------------------------------------------------------------------
    # One turn.

    def _work(self) -> None:
        """Until nothing more follows. Each pass performs one batch of commands and looks what the disk has done."""
        while self.failure is None:
            durable = self.storage.durable()
            if durable != self._durable:
                self._durable = durable
                self.core.persisted(self.now, durable)
            if self.storage.failure is not None:
                self.fail(StorageError(f"the disk failed, and this member has stopped itself: {self.storage.failure}"))
                return
            self._flush()
            batch = self.core.take()
            if not batch:
                return
            persists = False
            for command in batch:
                persists |= type(command) is Persist
                self._perform(command)
            if persists:
                self.storage.sync()

    def _perform(self, command: Command) -> None:
        """One of the core's commands. A simulation watches here, and lets the process die before any of them."""
        _PERFORM[type(command)](self, command)

    def _flush(self) -> None:
        """Give the core what callers want, if there is a leader to want it from."""
        core = self.core
        if core.leader is None:
            return
        if self._outbox_term != core.term:
            self.restart_outbox()
        if core.role == LEADER:
            if self.outbox and core.accepting:
                self.outbox.local(lambda entries: core.propose(self.now, entries))
        else:
            found = self.outbox.remote(self.now)
            if found is not None:
                self._send(core.leader, Propose(core.term, *found))
        number = self._reads.ask(self.now)
        if number is not None:
            core.read(self.now, number)

    def _answer(self) -> None:
        """Wake callers last: each one woken may take the interpreter from this thread."""
        answers, self._answers = self._answers, []
        for done, reply in answers:
            done(reply)

    def _deadline(self) -> float:
        deadline = self.core.deadline()
        if self.core.role == LEADER or len(self.numbering):
            deadline = min(deadline, self._housekeeping_due)
        if self.core.leader is not None:
            # Without a leader nothing can be sent again, however overdue it is: waiting for that would be no waiting.
            deadline = min(deadline, self.outbox.deadline(), self._reads.due())
        if self._duties is not None:
            deadline = min(deadline, self._duties.deadline())
        return min(deadline, self.own.deadline())

    def _receive(self, frame: bytes) -> None:
        self.counters.frames_received += 1
        try:
            envelope = decode(frame, self.identity)
        except BadFrame as error:
            if self.counters.dropped(error.reason):
                _net_log.warning("%s: dropped a frame: %s (first of its kind)", self.identity.name, error)
            return
        self._step(envelope.sender, envelope.message)

    def _step(self, sender: Identity, message: AnyMessage) -> None:
        if isinstance(message, Keepalive):
            if message.term == self.core.term:
                self.renew(message.session, partial(self._renewed, sender.name, message))
        elif isinstance(message, KeepaliveResponse):
            self.own.on_response(sender.name, message)
        else:
            self._step_core(sender, message)

    def _renewed(self, owner: str, message: Keepalive, alive: bool) -> None:
        self._send(
            owner, KeepaliveResponse(self.core.term, message.session, message.number, self.core.cluster_time(), alive)
        )

    def _step_core(self, sender: Identity, message: Message) -> None:
        if sender.name in self.core.membership.members:
            self._heard[sender.name] = self.now
        self.core.step(self.now, sender.name, sender.incarnation, message)

    def _send(self, to: str, message: AnyMessage) -> None:
        self.counters.frames_sent += 1
        # A member that lost its disk must not take us for its leader: we believe nothing it says (trap 46). So all it
        # hears is that.
        member = self.core.membership.members.get(to)
        meant = ANY if member is None or type(message) is Unknown else member.incarnation
        if not self._send_frame(to, encode(self.identity, to, message, recipient_incarnation=meant)):
            self.counters.frames_unsent += 1

    # ----------------------------------------------------------------------------------------------------------------
    # The core's commands.

    def _on_send(self, command: Send) -> None:
        self._send(command.to, command.message)

    def _on_persist(self, command: Persist) -> None:
        self.counters.persists += 1
        self.storage.write(command)

    def _on_apply(self, command: Apply) -> None:
        for batch in command.batches:
            self._apply(batch)
        self.core.applied_to(command.batches[-1].last)
        self._publish()

    def _on_read_ok(self, command: ReadOk) -> None:
        self._reads.answered(command.ids, command.index)
        self._release_reads()

    def _on_read_failed(self, command: ReadFailed) -> None:
        for read in self._reads.refused(command.ids, self.now + self.options.heartbeat):
            read.done(REFUSED)

    def _on_role(self, command: RoleChange) -> None:
        self.counters.role_changed(self.now, command.role, command.term, command.leader, command.reason)
        _raft_log.info(
            "%s: %s in term %d, leader %s: %s",
            self.identity.name,
            command.role,
            command.term,
            command.leader or "unknown",
            command.reason,
        )
        self._duties = None
        if command.role == LEADER:
            self._duties = Duties(self.core, self.machine, self.options, self._reads.add, self._epoch)
        if command.leader is not None:
            self.refusal = ""
            self.own.leader_changed()

    def _on_membership(self, command: MembershipChange) -> None:
        self._connect()
        number = command.membership.group_number
        if command.committed and number and number != self.identity.group_number:
            self.identity = self.identity._replace(group_number=number)
            try:
                self._keep_group_number(number)
            except OSError as error:
                self.fail(StorageError(f"the member's identity could not be written: {error}"))

    def _on_send_snapshot(self, command: SendSnapshot) -> None:
        data = self.snapshots.read(command.index, command.offset)
        if data:
            self._send(command.to, SnapshotChunk(self.core.term, command.index, command.offset, data))
        else:
            self.core.snapshot_unreadable(self.now, command.to, command.index)

    def _on_renew_snapshot(self, command: RenewSnapshot) -> None:
        self.snapshots.renew()

    def _on_store_snapshot(self, command: StoreSnapshot) -> None:
        self.snapshots.store(command)

    def _on_install(self, command: InstallSnapshot) -> None:
        meta = command.meta
        if meta.index <= self.machine.applied_index:
            return
        before = self.machine.store.revision
        try:
            self.snapshots.restore(meta)
        except StorageError as error:
            self.fail(error)
            return
        self.watches.jumped(before, meta.index)
        self.own.jumped()
        self._publish()
        self.requests.jumped()

    def _on_taken(self, command: ProposalsTaken) -> None:
        if not self.outbox.taken(command.stream, command.expected):
            self.restart_outbox()

    def _on_refused(self, command: Refused) -> None:
        # One that follows a leader is not meant, but somebody else who goes by its name.
        if self.core.leader is not None:
            return
        self.refusal = command.reason
        if self._refused_by.get(command.by) != command.reason:
            self._refused_by[command.by] = command.reason
            _raft_log.warning("%s: refused by %s: %s", self.identity.name, command.by, command.reason)

    def _on_halt(self, command: Halt) -> None:
        self.fail(IdentityError(f"this member has stopped itself, going on would be unsafe: {command.reason}"))

    # ----------------------------------------------------------------------------------------------------------------
    # The replicated state.

    def _apply(self, batch: Batch) -> None:
        machine, session = self.machine, self.numbering.session
        if batch.kind != COMMANDS:
            machine.skip(batch.last, batch.time)
        else:
            index, term, time = batch.first, batch.term, batch.time
            for payload in batch.payloads():
                outcome = machine.apply(index, term, time, payload)
                if outcome is not None and outcome[0] == session:
                    self.settle(outcome[1], outcome[2])
                index += 1
            self.counters.entries_applied += batch.count
        self.snapshots.applied(batch)

    def settle(self, sequence: int, reply: Any) -> None:
        if sequence == 0:
            self.own.opened(reply)
            return
        if reply[0] == SESSION_ENDED:
            return  # no answer for the caller: it had no effect, and goes again in the next session
        proposal = self.numbering.end(sequence)
        if proposal is not None:
            self._answers.append((proposal.done, reply))

    def _publish(self) -> None:
        """After each step of the state: tell watches, and see to our session and to reads that waited for it."""
        changes = self.machine.take_changes()
        if changes:
            self.watches.publish(changes)
        self.own.applied()
        self.requests.publish(self.machine.take_lock_events())
        self._release_reads()
        if self._reports_compared != self.machine.hash_report_count:
            self._reports_compared = self.machine.hash_report_count
            self._compare_hashes()

    def _report_hash(self, meta: SnapshotMeta) -> None:
        """Each member tells the others its state hash at the indexes where all cut snapshots (trap 52)."""
        if len(self.core.voters) > 1:
            self.outbox.add(encode_entry(commands.report_hash(self.identity.name, meta.index, meta.state_hash)))

    def _compare_hashes(self) -> None:
        """The odd one out stops itself: what it would answer, and pass on in snapshots, is not what was written."""
        problem = astray.difference(self.identity.name, self.core.voters, self.machine.hash_reports)
        if problem:
            self.fail(StorageError(f"this member has gone astray and stopped itself: {problem}; replace the member"))

    def _release_reads(self) -> None:
        for read in self._reads.applied(self.machine.applied_index):
            if isinstance(read, Confirmation):
                read.done(None)
            else:
                self._answers.append((read.done, None))

    # ----------------------------------------------------------------------------------------------------------------
    # Once in a while.

    def _housekeep(self) -> None:
        """Once a heartbeat: what costs too much for every turn."""
        self._housekeeping_due = self.now + self.options.heartbeat
        if self.storage.full != self._disk_full:
            self._disk_full = self.storage.full
            self.counters.disk_full += self._disk_full
            _wal_log.warning("%s: %s", self.identity.name, _NO_ROOM if self._disk_full else "there is room again")
        for proposal in self.numbering.unanswered():
            if self.now >= proposal.expires_at:
                answer = WITHDRAWN if proposal.give_up() else EXPIRED
                self.numbering.end(proposal.sequence)
                self._answers.append((proposal.done, answer))
        if self.core.leader is None:
            self.outbox.prune()
            self._reads.prune()
        elif self._duties is not None:
            self._duties.expire_sessions()
        self.requests.housekeep()

    def _connect(self) -> None:
        """Addresses given at start win over those in the log: who edits them wants them used."""
        members = self.core.membership.members
        self._set_peers(
            {
                name: self._addresses.get(name) or member.address
                for name, member in members.items()
                if name != self.identity.name
            }
        )


_PERFORM: dict[type[Command], Callable[[Replica, Any], None]] = {
    Send: Replica._on_send,
    Persist: Replica._on_persist,
    Apply: Replica._on_apply,
    ReadOk: Replica._on_read_ok,
    ReadFailed: Replica._on_read_failed,
    RoleChange: Replica._on_role,
    MembershipChange: Replica._on_membership,
    SendSnapshot: Replica._on_send_snapshot,
    RenewSnapshot: Replica._on_renew_snapshot,
    StoreSnapshot: Replica._on_store_snapshot,
    InstallSnapshot: Replica._on_install,
    ProposalsTaken: Replica._on_taken,
    Refused: Replica._on_refused,
    Halt: Replica._on_halt,
}
