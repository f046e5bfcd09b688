"""A small vocabulary for telling stories about Raft: members, what they say, what their disks hold.

`Member` is one core with a disk one can hold back; `Cluster` carries messages between members, in order and at once,
except across a cut. Time moves only when told. Everything is deterministic.

What must not live here: random faults and the checks after every step (`tests/simulation`).
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from coord.raft.batch import COMMANDS, MEMBERSHIP, NOOP, Batch, encode_entry, make_batch
from coord.raft.core import Core, Start
from coord.raft.membership import MemberRecord, Membership, membership_of
from coord.raft.messages import (
    AppendResponse,
    Apply,
    Command,
    Halt,
    HardState,
    InstallSnapshot,
    Message,
    Persist,
    ReadFailed,
    ReadOk,
    RoleChange,
    Send,
    SendSnapshot,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotOffer,
    SnapshotPull,
    StoreSnapshot,
    VoteResponse,
)
from coord.raft.roles import LEADER
from coord.raft.settings import Settings

M = TypeVar("M")
C = TypeVar("C")


def incarnation_of(name: str) -> int:
    """Every member's incarnation, for as long as it keeps its disk."""
    return int.from_bytes(name.encode(), "big")


def batch(term: int, first: int, *payloads: str, kind: int = COMMANDS, time: int = 0) -> Batch:
    """A batch with these payloads; without any, a no-op."""
    if not payloads:
        return make_batch(NOOP, term, first, time, [encode_entry(b"")], 1)
    entries = [encode_entry(payload.encode()) for payload in payloads]
    return make_batch(kind, term, first, time, entries, len(entries))


def membership_with(*learners: str) -> Membership:
    """A membership of "a", "b" and "c", all of them known; the learners do not vote."""
    return Membership({n: MemberRecord(f"ipc://{n}", incarnation_of(n), n not in learners) for n in "abc"}, 7)


def membership_batch(term: int, index: int, membership: Membership) -> Batch:
    return make_batch(MEMBERSHIP, term, index, 0, [encode_entry(membership.encode())], 1)


def log_of(*terms: int) -> list[Batch]:
    """A log with one entry of each of these terms, each in a batch of its own."""
    return [batch(term, index, f"{index}") for index, term in enumerate(terms, start=1)]


@dataclass
class Disk:
    """What a member has on disk, and what it has only asked for."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    batches: list[Batch] = field(default_factory=list)
    commit: int = 0
    #: Snapshots kept, by index.
    files: dict[int, bytes] = field(default_factory=dict)
    unsynced: deque[Persist] = field(default_factory=deque)

    def sync(self, count: int | None = None) -> int:
        """Make the oldest `count` unsynced writes durable, or all; the last one's number, 0 for none."""
        seq = 0
        for _ in range(len(self.unsynced) if count is None else count):
            persist = self.unsynced.popleft()
            self._perform(persist)
            seq = persist.seq
        return seq

    def _perform(self, persist: Persist) -> None:
        if persist.reset is not None:
            self.snapshot, self.batches = persist.reset, []
        if persist.truncate_from is not None:
            self.batches = [kept for kept in self.batches if kept.first < persist.truncate_from]
        self.batches += persist.batches
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        self.commit = persist.commit

    def start(self, membership: Membership) -> Start:
        """What recovery finds: batches the snapshot covers are left out."""
        covered = self.snapshot.index if self.snapshot else 0
        batches = [kept for kept in self.batches if kept.last > covered]
        last = batches[-1].last if batches else covered
        commit = max(covered, min(self.commit, last))
        if self.snapshot is None:
            return Start(membership, 0, self.hard_state, None, batches, commit)
        meta = self.snapshot
        return Start(meta.membership, meta.membership_index, self.hard_state, meta, batches, commit)


class Member:
    """One core, driven by hand. Its disk answers at once unless `hold_disk` is set."""

    #: Bytes of a snapshot sent at a time.
    chunk_bytes = 8

    def __init__(
        self,
        name: str,
        members: Iterable[str],
        settings: Settings | None = None,
        *,
        disk: Disk | None = None,
        incarnation: int | None = None,
        damage: str = "",
        now: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.name = name
        self.now = now
        self.disk = disk or Disk()
        self.hold_disk = False
        self.incarnation = incarnation_of(name) if incarnation is None else incarnation
        membership = membership_of({member: f"ipc://{member}" for member in members})
        start = self.disk.start(membership)
        start.damage = damage
        rng = random.Random(f"{seed} {name}")
        self.core = Core(name, self.incarnation, settings or Settings(), rng, start, now)
        #: Messages on their way out, not yet collected.
        self.outbox: list[Send] = []
        #: Every command but Send and Persist, since the start.
        self.done: list[Command] = []
        #: (index, payload) of each command applied.
        self.applied: list[tuple[int, str]] = []
        if self.disk.snapshot is not None:
            self.applied = self._restored(self.disk.snapshot.index)
        self._pulled = b""
        #: Reads answered: by id, the index, or None for a failure.
        self.reads: dict[int, int | None] = {}
        #: Called with each command but Send, before it is performed.
        self.on_command: Callable[[str, Command], None] = lambda name, command: None

    # Inputs. Each returns the messages that follow from it.

    def receive(self, sender: str, *messages: Message, incarnation: int | None = None) -> list[Send]:
        """All of these arrive in one turn."""
        for message in messages:
            self.core.step(self.now, sender, incarnation or incarnation_of(sender), message)
        return self.work()

    def wait(self, seconds: float) -> list[Send]:
        """Let time pass, then tick."""
        self.now += seconds
        self.core.tick(self.now)
        return self.work()

    def time_out(self) -> list[Send]:
        """Let the election timeout pass."""
        self.now = max(self.now, self.core.election_due)
        self.core.tick(self.now)
        return self.work()

    def stand(self) -> None:
        """Campaign; everybody else grants whatever is asked."""
        core = self.core
        self.time_out()
        for pre in (True, False):
            for peer in core.others:
                if core.role != LEADER:
                    self.receive(peer, VoteResponse(core.term + pre, True, pre))

    def lead(self) -> Member:
        """Win an election, after which everybody else takes all there is in the log."""
        core = self.core
        self.stand()
        self.acknowledged_by(*core.others)
        self.outbox.clear()
        assert core.role == LEADER, f"{self.name} is {core.role}"
        assert core.commit == core.log.last_index
        return self

    def acknowledged_by(self, *peers: str) -> None:
        """These followers hold this leader's whole log, and answer its newest round."""
        for peer in peers:
            core = self.core
            self.receive(peer, AppendResponse(core.term, True, core.log.last_index, core.rounds.newest))

    def propose(self, *payloads: str) -> int:
        """The first one's index, or 0 when refused."""
        index = self.core.propose(self.now, [encode_entry(payload.encode()) for payload in payloads])
        self.work()
        return index

    def read(self, read_id: int) -> list[Send]:
        self.core.read(self.now, read_id)
        return self.work()

    def sync(self, count: int | None = None) -> list[Send]:
        """The disk answers for what it held back."""
        seq = self.disk.sync(count)
        if seq:
            self.core.persisted(self.now, seq)
        return self.work()

    def snapshot(self) -> SnapshotMeta:
        """Cut a snapshot of what is applied."""
        core = self.core
        index = core.applied
        last = core.log.batch_at(index)
        content = json.dumps(self.applied).encode()
        membership_index, membership = core.history.at(index)
        meta = SnapshotMeta(index, last.term, last.time, membership, membership_index, len(content), b"", 0)
        self._keep(meta, content)
        core.snapshot_taken(meta)
        return meta

    def work(self) -> list[Send]:
        """Perform what the core asks for, until it asks for nothing more; the messages it sent."""
        sent: list[Send] = []
        while commands := self.core.take():
            for command in commands:
                if isinstance(command, Send):
                    sent.append(command)
                else:
                    self._perform(command, sent)
            if not self.hold_disk and self.disk.unsynced:
                self.core.persisted(self.now, self.disk.sync())
        self.outbox += sent
        return sent

    def all(self, kind: type[C]) -> list[C]:
        """Every command of this kind since the start."""
        return [command for command in self.done if isinstance(command, kind)]

    @property
    def halted(self) -> bool:
        return bool(self.all(Halt))

    def _perform(self, command: Command, sent: list[Send]) -> None:
        self.on_command(self.name, command)
        if isinstance(command, Persist):
            self.disk.unsynced.append(command)
            return
        self.done.append(command)
        if isinstance(command, Apply):
            self._apply(command.batches)
        elif isinstance(command, ReadOk):
            self.reads.update(dict.fromkeys(command.ids, command.index))
        elif isinstance(command, ReadFailed):
            self.reads.update(dict.fromkeys(command.ids))
        elif isinstance(command, SendSnapshot):
            data = self.disk.files[command.index][command.offset : command.offset + self.chunk_bytes]
            sent.append(Send(command.to, SnapshotChunk(self.core.term, command.index, command.offset, data)))
        elif isinstance(command, StoreSnapshot):
            self._store(command)
        elif isinstance(command, InstallSnapshot):
            self.applied = self._restored(command.meta.index)

    def _apply(self, batches: list[Batch]) -> None:
        for one in batches:
            if one.kind == COMMANDS:
                self.applied += [(one.first + i, payload.decode()) for i, payload in enumerate(one.payloads())]
        self.core.applied_to(batches[-1].last)

    def _store(self, command: StoreSnapshot) -> None:
        meta = command.meta
        self._pulled = self._pulled[: command.offset] + command.data
        if len(self._pulled) < meta.size:
            self.core.snapshot_progress(self.now, meta.index, len(self._pulled))
        else:
            self._keep(meta, self._pulled)
            self.core.snapshot_stored(self.now, meta)

    def _restored(self, index: int) -> list[tuple[int, str]]:
        return [(index, payload) for index, payload in json.loads(self.disk.files[index])]

    def _keep(self, meta: SnapshotMeta, content: bytes) -> None:
        self.disk.files[meta.index] = content
        self.disk.snapshot = meta


def messages(sends: Iterable[Send], kind: type[M], to: str | None = None) -> list[M]:
    """The messages of one kind among `sends`, to one member or to all."""
    return [send.message for send in sends if isinstance(send.message, kind) and to in (None, send.to)]


def message(sends: Iterable[Send], kind: type[M], to: str | None = None) -> M:
    """The only message of this kind among `sends`."""
    (found,) = messages(sends, kind, to)
    return found


class Cluster:
    """Members that hear each other, in order and at once, unless cut off."""

    def __init__(self, *names: str, settings: Settings | None = None, seed: int = 1) -> None:
        self.names = names
        self.settings = settings or Settings()
        self.seed = seed
        self.now = 0.0
        #: Called with each command but Send, before it is performed.
        self.on_command: Callable[[str, Command], None] = lambda name, command: None
        self.members = {name: self._start(name, Disk()) for name in names}
        #: (sender, message to whom) on their way, oldest first.
        self.network: deque[tuple[str, Send]] = deque()
        #: Pairs (from, to) that cannot be passed.
        self.cut: set[tuple[str, str]] = set()
        self.down: set[str] = set()
        #: Called with each message before it is delivered or lost.
        self.on_message: Callable[[str, Send, bool], None] = lambda sender, send, arrives: None

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    # Faults.

    def partition(self, *names: str) -> None:
        """Cut these off from all others, both ways; among themselves they still hear each other."""
        for inside in names:
            for outside in set(self.names) - set(names):
                self.cut |= {(inside, outside), (outside, inside)}

    def deafen(self, name: str) -> None:
        """Nothing reaches `name`; what it says still arrives."""
        self.cut |= {(other, name) for other in self.names if other != name}

    def heal(self) -> None:
        self.cut.clear()

    def crash(self, name: str) -> None:
        """The process ends; what was not yet synced is lost."""
        self.members[name].disk.unsynced.clear()
        self.down.add(name)
        self.network = deque((sender, send) for sender, send in self.network if name not in (sender, send.to))

    def restart(self, name: str, disk: Disk | None = None) -> None:
        """The process begins again, with what its disk holds or with another disk."""
        self.down.discard(name)
        self.members[name] = self._start(name, disk or self.members[name].disk)

    # Time and messages.

    def collect(self) -> None:
        """Put what members have said on the network."""
        for name, member in self.members.items():
            if name not in self.down:
                member.now = self.now
                member.work()
                self.network.extend((name, send) for send in member.outbox)
            member.outbox.clear()

    def deliver(self) -> bool:
        """Deliver the oldest message; False when there is none."""
        self.collect()
        if not self.network:
            return False
        sender, send = self.network.popleft()
        arrives = (sender, send.to) not in self.cut and send.to in self.members and send.to not in self.down
        self.on_message(sender, send, arrives)
        if arrives:
            self.members[send.to].receive(sender, send.message, incarnation=self.members[sender].incarnation)
        return True

    def settle(self) -> None:
        """Deliver until nobody has anything to say."""
        for _ in range(100_000):
            if not self.deliver():
                return
        raise AssertionError("the members never stop talking")

    def run(self, seconds: float) -> None:
        """Let this much time pass, with everything that falls due in it."""
        end = self.now + seconds
        self.settle()
        while True:
            due = min((m.core.deadline() for name, m in self.members.items() if name not in self.down), default=end)
            if due > end:
                break
            self.now = max(self.now, due)
            for name, member in self.members.items():
                if name not in self.down and member.core.deadline() <= self.now:
                    member.now = self.now
                    member.core.tick(self.now)
            self.settle()
        self.now = end
        self.settle()

    # What one asks about.

    def leader(self) -> Member:
        """The member that leads the newest term."""
        leading = [member for name, member in self.members.items() if name not in self.down and _leads(member)]
        assert leading, f"nobody leads: {[member.core.role for member in self.members.values()]}"
        return max(leading, key=lambda member: member.core.term)

    def elect(self, name: str) -> Member:
        """Have `name` campaign now, and let everybody answer."""
        member = self.members[name]
        self.now = member.now = max(self.now, member.core.election_due)
        for other in self.members.values():
            other.now = self.now
        member.core.tick(self.now)
        self.settle()
        assert self.leader() is member, f"{name} lost"
        return member

    def _start(self, name: str, disk: Disk) -> Member:
        member = Member(name, self.names, self.settings, disk=disk, now=self.now, seed=self.seed)
        member.on_command = lambda name, command: self.on_command(name, command)
        return member


def _leads(member: Member) -> bool:
    return member.core.role == LEADER and not member.core.halted


def started(*terms: int, term: int | None = None, members: str = "abc", settings: Settings | None = None) -> Member:
    """Member "a" with one entry of each of these terms on its disk, in the last one's term or a newer one."""
    hard_state = HardState(max([*terms, 0]) if term is None else term)
    return Member("a", members, settings, disk=Disk(hard_state=hard_state, batches=log_of(*terms)))


def pull_all(member: Member, leader: Member) -> None:
    """Offer `leader`'s snapshot to `member`, and carry its pieces over."""
    meta = leader.core.snapshot
    assert meta is not None
    leader.core.progress[member.name].become_snapshot(meta.index, leader.now)
    sent = member.receive(leader.name, SnapshotOffer(leader.core.term, 1, meta))
    while pulls := messages(sent, SnapshotPull):
        chunks = [chunk for pull in pulls for chunk in messages(leader.receive(member.name, pull), SnapshotChunk)]
        sent = member.receive(leader.name, *chunks)


def voters(member: Member) -> str:
    return "".join(member.core.voters)


def roles(member: Member) -> list[str]:
    """The roles a member went through, in order."""
    return [change.role for change in member.all(RoleChange)]
