"""One process of a simulated member: the product's own `Replica`, driven turn by turn on a clock of its own.

It may be cut short anywhere: a crash strikes before any of the core's commands and any file operation, and then nothing
after it has happened. What must not live here: what other members and the network do (`simulation`), and what is right
or wrong (whoever watches).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from coord.errors import ClosedError, CoordError
from coord.proposals import Maker, Proposal
from coord.raft.batch import Batch
from coord.raft.messages import (
    AnyMessage,
    Command,
    InstallSnapshot,
)
from coord.raft.roles import LEADER
from coord.reads import Read
from coord.replica import Replica
from coord.storage.directory import open_directory
from coord.testing.chance import stream
from coord.testing.disk import DATA, SimDisk, SimStorage
from coord.transports.base import GONE, PeerEvent
from coord.wire import Identity

if TYPE_CHECKING:
    from coord.testing.simulation import Simulation


#: While it stops, how long it waits at most for its next turn.
_LEAVING_SECONDS = 0.05


class Crash(BaseException):
    """The process ends here, in the middle of whatever it was doing."""


class Watcher:
    """Sees everything members do, at the moment they do it. This one does not mind."""

    def started(self, process: Process) -> None:
        """It has recovered."""

    def before_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        """It is about to take in a message."""

    def after_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        """It has."""

    def before_command(self, process: Process, command: Command) -> None:
        """It is about to perform one of its core's commands; all that came in was taken in."""

    def sending(self, process: Process, to: str, message: AnyMessage) -> None:
        """It sends this."""

    def applied(self, process: Process, batch: Batch) -> None:
        """Its state now includes `batch`."""

    def installed(self, process: Process, command: InstallSnapshot) -> None:
        """Its state is now that of a snapshot."""

    def settling(self, process: Process, sequence: int, reply: Any) -> None:
        """It has found the reply to a command of its own session."""

    def after_turn(self, process: Process) -> None:
        """A turn is over."""


class WatchedReplica(Replica):
    """The product's replica, and somebody looking over its shoulder."""

    process: Process

    def _step(self, sender: Identity, message: AnyMessage) -> None:
        process, watcher = self.process, self.process.watcher
        watcher.before_step(process, sender.name, message)
        super()._step(sender, message)
        watcher.after_step(process, sender.name, message)

    def _perform(self, command: Command) -> None:
        process = self.process
        process.burn()
        process.say_command(command)
        process.watcher.before_command(process, command)
        super()._perform(command)
        if type(command) is InstallSnapshot:
            process.watcher.installed(process, command)

    def _send(self, to: str, message: AnyMessage) -> None:
        self.process.watcher.sending(self.process, to, message)
        super()._send(to, message)

    def _apply(self, batch: Batch) -> None:
        super()._apply(batch)
        self.process.watcher.applied(self.process, batch)

    def settle(self, sequence: int, reply: Any) -> None:
        self.process.watcher.settling(self.process, sequence, reply)
        super().settle(sequence, reply)


class Process:
    """From one start to the crash, or to the moment it stops itself; `Simulation` makes the next from the same disk."""

    def __init__(self, simulation: Simulation, name: str, life: int, fuse: int = -1) -> None:
        """Recover. Raises what starting a node would: StorageError, IdentityError, ConfigurationError; or Crash."""
        self.simulation = simulation
        self.watcher = simulation.watcher
        self.name = name
        self.life = life
        self.dead = False
        #: Until when the process is stopped (SIGSTOP), in the simulation's time.
        self.paused_until = 0.0
        #: Crash after so many more commands and file operations; below 0: not planned.
        self.fuse = fuse
        self.inbox: deque[bytes] = deque()
        self.events: list[PeerEvent] = []
        self.reads: list[Read] = []
        self.proposals: list[Proposal] = []
        self.calls: deque[Callable[[], None]] = deque()
        #: Work of other threads that came to be done while the process was stopped.
        self.parked: list[Callable[[], Callable[[], None]]] = []
        #: Stops as a user stops it: session closed, leadership handed over. Until when, by its own clock.
        self.leaving_until: float | None = None
        self._handing_over = False
        #: When it wants its next turn, by its own clock.
        self.due_local = 0.0
        self.rng = stream(simulation.seed, "process", name, life)
        self.disk: SimDisk = simulation.disks[name]
        self.disk.before = self._file_operation
        self.storage = self._open()
        identity = Identity(
            name, self._directory.incarnation, simulation.fingerprint, self._directory.group_number, slot=0
        )
        # Before the constructor: it already talks to its process.
        self.replica = WatchedReplica.__new__(WatchedReplica)
        self.replica.process = self
        WatchedReplica.__init__(
            self.replica,
            identity,
            simulation.addresses,
            simulation.options[name],
            self.storage,
            send=self._send,
            set_peers=self._set_peers,
            keep_group_number=self._directory.set_group_number,
            background=self._background,
            rng=self.rng,
            now=self.local(),
            epoch=simulation.epoch,
            alone=True,
        )

    def _open(self) -> SimStorage:
        simulation, hardware = self.simulation, self.simulation.hardware
        mint_from = stream(simulation.seed, "mint", self.name, self.life)

        def mint() -> int:
            return mint_from.getrandbits(64) or 1

        self._directory = open_directory(
            DATA,
            group=simulation.group,
            name=self.name,
            fingerprint=simulation.fingerprint,
            mint=mint,
            files=self.disk,
        )
        storage = SimStorage(
            self._directory,
            self.disk,
            mint=mint,
            segment_bytes=hardware.segment_bytes,
            inline=not hardware.sync_time,
            ask=lambda: simulation.plan_sync(self),
        )
        storage.on_progress(lambda: simulation.want_turn(self, simulation.timeline.now))
        return storage

    # -----------------------------------------------------------------------------------------------------------------
    # Its own clock.

    def local(self) -> float:
        return self.simulation.local_time(self.name)

    def due(self) -> float:
        """In the simulation's time: when it must be given a turn at the latest."""
        return self.simulation.time_of(self.name, self.due_local)

    # -----------------------------------------------------------------------------------------------------------------
    # What its callers want. Each is taken up in the next turn.

    def propose(
        self, maker: Maker, arguments: tuple[Any, ...], done: Callable[[Any], None], expires_at: float = float("inf")
    ) -> Proposal | None:
        """As `Loop.propose`, without waiting for room; `expires_at` is by this process's clock."""
        options = self.replica.options
        proposal = self.replica.numbering.begin(
            maker,
            arguments,
            done,
            most=options.max_pending,
            max_bytes=options.max_batch_bytes,
            patience=0.0,
            expires_at=expires_at,
        )
        if proposal is not None:
            self.proposals.append(proposal)
            self.wake()
        return proposal

    def read(self, read: Read) -> None:
        """As `Loop.read`."""
        self.reads.append(read)
        self.wake()

    def wake(self) -> None:
        self.simulation.want_turn(self, self.simulation.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # What arrives.

    def receive(self, frame: bytes) -> None:
        self.inbox.append(frame)

    def told_gone(self, peer: str) -> None:
        self.events.append(PeerEvent(GONE, peer))

    # -----------------------------------------------------------------------------------------------------------------
    # One turn.

    def turn(self) -> None:
        """As `Loop._turn`. Raises Crash when the fuse has burned down."""
        if self.calls:
            self.replica.enqueue(self.proposals)
            self.proposals = []
        calls, self.calls = self.calls, deque()
        for call in calls:
            call()
        frames, self.inbox = list(self.inbox), deque()
        events, self.events = self.events, []
        proposals, self.proposals = self.proposals, []
        reads, self.reads = self.reads, []
        self.due_local = self.replica.turn(self.local(), frames, events, proposals, reads)
        self.watcher.after_turn(self)
        if self.leaving_until is not None and self.failure is None and self._has_left(self.leaving_until):
            self.replica.end(ClosedError(f"member {self.name!r} has been stopped"))
            self.storage.close()

    def leave(self, seconds: float) -> None:
        """As `Loop.stop`: wind up within `seconds`, then end."""
        self.leaving_until = self.local() + seconds
        self.wake()

    def _has_left(self, deadline: float) -> bool:
        """As `Loop._leave`, a step of it each turn; until it has, the next turn comes soon."""
        replica = self.replica
        waits = replica.may_decide() and self.local() < deadline
        if not self._handing_over:
            if replica.close_session() and waits:
                self.due_local = min(self.due_local, self.local() + _LEAVING_SECONDS)
                return False
            self._handing_over = replica.core.role == LEADER and not replica.transfer(None)
            if not self._handing_over:
                return True
        if waits and replica.handed_over() is None:
            self.due_local = min(self.due_local, self.local() + _LEAVING_SECONDS)
            return False
        return True

    @property
    def failure(self) -> CoordError | None:
        """Why it has stopped itself."""
        return self.replica.failure

    def burn(self) -> None:
        if self.fuse == 0:
            raise Crash
        self.fuse -= self.fuse > 0

    def say_command(self, command: Command) -> None:
        if self.simulation.trace is not None:
            self.simulation.say_command(self, command)

    def _file_operation(self, kind: str) -> None:
        if self.dead:
            raise Crash
        self.burn()

    def _send(self, to: str, frame: bytes) -> bool:
        self.simulation.network.send(self.name, to, frame)
        return True

    def _set_peers(self, addresses: Mapping[str, str]) -> None:
        """Who is who never changes in the network."""

    def _background(self, task: Callable[[], Callable[[], None]]) -> None:
        self.simulation.background(self, task)
