"""Drives one member: a core, its disk and its state, turn by turn, in the order in which the product's driver works.

A turn may be cut short anywhere: a crash strikes between any two commands, and then nothing after it has happened.
What must not live here: what other members and the network do (`world`), and what is right or wrong (`checks`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coord.proposals import Outbox
from coord.raft.batch import Batch, encode_entry
from coord.raft.core import Core, Start
from coord.raft.messages import (
    Apply,
    Command,
    Halt,
    InstallSnapshot,
    MembershipChange,
    Message,
    Persist,
    ProposalsTaken,
    Propose,
    ReadFailed,
    ReadOk,
    Refused,
    RoleChange,
    Send,
    SendSnapshot,
    SnapshotChunk,
    SnapshotMeta,
    StoreSnapshot,
)
from coord.raft.roles import LEADER
from simulation.chance import stream
from simulation.disk import ModelDisk, content_hash
from simulation.state import State, entry_payload, restored

if TYPE_CHECKING:
    from simulation.world import World


class Crash(Exception):
    """The process ends here."""


class Member:
    """One process. It ends with a crash; `World` makes the next from the same disk."""

    def __init__(self, world: World, name: str, position: int, disk: ModelDisk, life: int, *, damage: str) -> None:
        self.world = world
        self.name = name
        self.position = position
        self.disk = disk
        self.life = life
        self.damage = damage
        self.dead = False
        #: Until when the process is stopped (a pause), and its disk does not answer.
        self.paused_until = 0.0
        #: Crash after so many more commands; below 0: not planned.
        self.fuse = -1

        self.inbox: deque[tuple[str, int, Message]] = deque()
        self.gone: list[str] = []
        self.reads: list[int] = []
        #: Read number to how much was committed when it was invoked, and when that was.
        self.floors: dict[int, tuple[int, float]] = {}
        self.answers: list[tuple[int, int]] = []
        self._read_number = 0
        self._read_again_at = 0.0

        seed, rates = world.seed, world.knobs.rates
        self._rate = rates[position]
        self._offset = stream(seed, "clock", name).uniform(0, 1000)
        rng = stream(seed, "core", name, life)
        #: Of this process only: what it has not seen applied when it crashes is nobody's business any more.
        self.session = position << 16 | life
        self._number = 0
        #: Proposed and not yet seen applied, oldest first.
        self.pending: dict[int, bytes] = {}
        self._outbox = Outbox(lambda: rng.getrandbits(64), 4 * world.knobs.settings.heartbeat, 1 << 20)
        self._outbox_term = -1

        recovered = disk.recover()
        snapshot = recovered.snapshot
        self.state = State()
        if snapshot is not None:
            self.state = restored(disk.read_snapshot(snapshot.index, 0, snapshot.size))
        self._last_cut = self.state.index
        self._cutting = False
        self._pulled = bytearray()
        start = Start(
            snapshot.membership if snapshot else world.membership,
            snapshot.membership_index if snapshot else 0,
            recovered.hard_state,
            snapshot,
            recovered.batches,
            recovered.commit,
            damage,
        )
        settings = replace(world.knobs.settings, priority=world.knobs.priorities[position])
        incarnation = world.identities[name].incarnation
        self.core = Core(name, incarnation, settings, rng, start, self.local())
        self.core.found(self.local())
        world.checks.started(self)

    # -----------------------------------------------------------------------------------------------------------------
    # Its own clock.

    def local(self) -> float:
        return self._offset + self.world.timeline.now * self._rate

    def due(self) -> float:
        """In the world's time: when it must be given a turn at the latest."""
        deadline = self.core.deadline()
        if self.core.leader is not None:
            # Without a leader nothing can be sent again, however overdue it is.
            deadline = min(deadline, self._outbox.deadline())
            if self.reads:
                deadline = min(deadline, self._read_again_at)
        # A little late rather than a little early: rounding must not have it look again and again.
        return (deadline - self._offset) / self._rate + 1e-6

    # -----------------------------------------------------------------------------------------------------------------
    # What its callers want.

    def propose(self, count: int) -> None:
        for _ in range(count):
            self._number += 1
            payload = entry_payload(self.session, self._number, self.world.knobs.entry_bytes)
            self.pending[self._number] = encode_entry(payload)
            self._outbox.add(self.pending[self._number])

    def read(self) -> None:
        self._read_number += 1
        self.floors[self._read_number] = self.world.checks.committed, self.world.timeline.now
        self.reads.append(self._read_number)

    @property
    def unanswered_reads(self) -> int:
        return len(self.floors)

    # -----------------------------------------------------------------------------------------------------------------
    # One turn.

    def turn(self) -> None:
        core, checks = self.core, self.world.checks
        now = self.local()
        while self.inbox:
            sender, incarnation, message = self.inbox.popleft()
            before = checks.before_step(self, sender, message)
            core.step(now, sender, incarnation, message)
            checks.after_step(self, sender, message, before)
        for peer in self.gone:
            core.peer_gone(now, peer)
            checks.after_input(self)
        self.gone = []
        if now >= core.deadline():
            core.tick(now)
            checks.after_input(self)
        told = 0
        while True:
            if self.disk.durable > told:
                told = self.disk.durable
                core.persisted(now, told)
                checks.after_input(self)
            self._flush(now)
            commands = core.take()
            checks.after_input(self)
            if not commands:
                break
            for command in commands:
                self._burn()
                if self.world.trace is not None:
                    self.world.say_command(self, command)
                _PERFORM[type(command)](self, command)
            self._burn()
            if self.disk.queue and not self.world.knobs.sync_time and not self.world.stalled(self):
                self.disk.sync(self.disk.queue[-1].seq)
        checks.after_turn(self)

    def _burn(self) -> None:
        if self.fuse == 0:
            raise Crash
        self.fuse -= self.fuse > 0

    def _flush(self, now: float) -> None:
        """Give the core what callers want, if there is a leader to want it from."""
        core = self.core
        if core.leader is None:
            return
        if self._outbox_term != core.term:
            self._restart_outbox()
        if core.role == LEADER:
            if self._outbox and core.accepting:
                self._outbox.local(lambda entries: core.propose(now, entries))
        else:
            found = self._outbox.remote(now)
            if found is not None:
                self._send(core.leader, Propose(core.term, *found))
        if self.reads and now >= self._read_again_at:
            for number in self.reads:
                core.read(now, number)
            self.reads = []

    def _restart_outbox(self) -> None:
        self._outbox_term = self.core.term
        self._outbox.restart(list(self.pending.values()), [])

    def _send(self, to: str, message: Message) -> None:
        self.world.checks.on_send(self, to, message)
        self.world.network.send(self.name, to, message)

    # -----------------------------------------------------------------------------------------------------------------
    # The core's commands.

    def _on_send(self, command: Send) -> None:
        self._send(command.to, command.message)

    def _on_persist(self, command: Persist) -> None:
        self.world.checks.on_persist(self, command)
        self.disk.ask(command)
        self.world.plan_sync(self, command.seq)

    def _on_apply(self, command: Apply) -> None:
        for batch in command.batches:
            self.state.apply(batch)
            self.world.checks.applied(self, batch)
            if batch.last // self.world.knobs.snapshot_entries > self._last_cut // self.world.knobs.snapshot_entries:
                self._cut(batch)
        self._settle()
        self.core.applied_to(command.batches[-1].last)

    def _settle(self) -> None:
        """Answer callers whose entries the state has seen, and reads it is new enough for."""
        done = self.state.applied.get(self.session, 0)
        while self.pending and next(iter(self.pending)) <= done:
            del self.pending[next(iter(self.pending))]
        waiting = []
        for number, index in self.answers:
            if index > self.state.index:
                waiting.append((number, index))
            elif number in self.floors:
                del self.floors[number]
        self.answers = waiting

    def _on_read_ok(self, command: ReadOk) -> None:
        for number in command.ids:
            self.world.checks.read_answered(self, number, command.index)
            self.answers.append((number, command.index))
        self._settle()

    def _on_read_failed(self, command: ReadFailed) -> None:
        self.reads += command.ids
        self._read_again_at = self.local() + self.core.settings.heartbeat

    def _on_taken(self, command: ProposalsTaken) -> None:
        if not self._outbox.taken(command.stream, command.expected):
            self._restart_outbox()

    def _on_role(self, command: RoleChange) -> None:
        self.world.role_changed(self, command)

    def _on_halt(self, command: Halt) -> None:
        self.world.checks.fail(f"{self.name} halted: {command.reason}")

    def _on_refused(self, command: Refused) -> None:
        self.world.checks.fail(f"{command.by} refused {self.name}: {command.reason}")

    def _nothing(self, command: Command) -> None:
        pass

    # -----------------------------------------------------------------------------------------------------------------
    # Snapshots.

    def _cut(self, batch: Batch) -> None:
        """At the first batch past each multiple of `snapshot_entries`, so at the same indexes everywhere."""
        self._last_cut = batch.last
        if self._cutting:
            return
        self._cutting = True
        content = self.state.encode()
        membership_index, membership = self.core.history.at(batch.last)
        meta = SnapshotMeta(
            batch.last,
            batch.term,
            batch.time,
            membership,
            membership_index,
            len(content),
            content_hash(content),
            int.from_bytes(self.state.digest[:8], "little"),
        )
        self.world.background(self, self._cut_done, meta, content)

    def _cut_done(self, meta: SnapshotMeta, content: bytes) -> None:
        self._cutting = False
        self.disk.save_snapshot(meta, content)
        self.core.snapshot_taken(meta)
        self.disk.compact(meta.index)

    def _on_send_snapshot(self, command: SendSnapshot) -> None:
        size = self.world.knobs.snapshot_chunk_bytes
        data = self.disk.read_snapshot(command.index, command.offset, size)
        if data and self.core.role == LEADER:
            self._send(command.to, SnapshotChunk(self.core.term, command.index, command.offset, data))

    def _on_store_snapshot(self, command: StoreSnapshot) -> None:
        meta = command.meta
        if command.offset == 0:
            self._pulled = bytearray()
        assert len(self._pulled) == command.offset, f"bytes from {command.offset}, held {len(self._pulled)}"
        self._pulled += command.data
        if len(self._pulled) < meta.size:
            self.core.snapshot_progress(self.local(), meta.index, len(self._pulled))
        else:
            self.world.background(self, self._pull_done, meta, bytes(self._pulled))

    def _pull_done(self, meta: SnapshotMeta, content: bytes) -> None:
        if content_hash(content) != meta.sha256:
            self.core.snapshot_failed(self.local(), meta.index)
            return
        self.disk.save_snapshot(meta, content)
        self.core.snapshot_stored(self.local(), meta)
        self.world.checks.after_input(self)

    def _on_install(self, command: InstallSnapshot) -> None:
        meta = command.meta
        self.state = restored(self.disk.read_snapshot(meta.index, 0, meta.size))
        self._last_cut = max(self._last_cut, meta.index)
        self.disk.compact(meta.index)
        self.world.checks.installed(self, meta)
        self._settle()


_PERFORM: dict[type[Command], Callable[[Member, Any], None]] = {
    Send: Member._on_send,
    Persist: Member._on_persist,
    Apply: Member._on_apply,
    ReadOk: Member._on_read_ok,
    ReadFailed: Member._on_read_failed,
    RoleChange: Member._on_role,
    MembershipChange: Member._nothing,
    SendSnapshot: Member._on_send_snapshot,
    StoreSnapshot: Member._on_store_snapshot,
    InstallSnapshot: Member._on_install,
    ProposalsTaken: Member._on_taken,
    Refused: Member._on_refused,
    Halt: Member._on_halt,
}
