"""A whole group in one thread and in virtual time: members' processes, their disks and clocks, and the network between.

Everything depends on the seed alone. What must not live here: what goes wrong and when, what must hold, and what users
want of the group: whoever runs the simulation decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coord.errors import CoordError
from coord.options import Options
from coord.raft.describe import describe_command, describe_message
from coord.raft.messages import Command
from coord.testing.chance import stream
from coord.testing.disk import SimDisk
from coord.testing.network import Conditions, Link, Network
from coord.testing.process import Crash, Process, Watcher
from coord.testing.timeline import Timeline
from coord.wire import HEADER_BYTES, BadFrame, Identity, decode, fingerprint

#: How long an idle disk waits before it writes down that the last records are on it.
_IDLE_SECONDS = 0.05
#: How long it waits on a full disk before it tries again.
_RETRY_SECONDS = 0.2
#: How long it takes the others' transports to have proof that a process is gone.
_NOTICE_SECONDS = (0.005, 0.05)


@dataclass(slots=True)
class Hardware:
    """What members run on. Times in seconds."""

    #: A sync takes this long, up to twice; 0: done within the turn, as with `fsync="inline"`.
    sync_time: float = 0.0
    #: How long writing a snapshot takes, up to.
    snapshot_time: float = 0.0
    #: How long a member leaves what arrived lying, up to, so that a turn takes several at once.
    turn_delay: float = 0.0
    #: How late a member wakes at its own timers, up to.
    timer_delay: float = 0.0
    segment_bytes: int = 4096


class Clock:
    """A member's own: it runs a little fast or slow, and may be told to jump ahead."""

    def __init__(self, rate: float, offset: float) -> None:
        self.rate = rate
        self.offset = offset

    def at(self, now: float) -> float:
        return self.offset + now * self.rate


class Simulation:
    """A group of `names`. Nothing runs before `start`; time passes in `run` and `step` only."""

    def __init__(
        self,
        seed: int,
        names: Sequence[str],
        options: Mapping[str, Options],
        *,
        conditions: Conditions | None = None,
        hardware: Hardware | None = None,
        rates: Mapping[str, float] | None = None,
        notice: float = 1.0,
        watcher: Watcher | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`notice`: how likely the death of a process is noticed at once by those connected to it."""
        self.seed = seed
        self.names = tuple(names)
        self.options = options
        self.hardware = hardware if hardware is not None else Hardware()
        self.watcher = watcher if watcher is not None else Watcher()
        self.trace = trace
        self.group = "simulation"
        #: Of the group, once it is founded.
        self.epoch = 1_000_000
        self.addresses = {name: f"ipc://{name}" for name in self.names}
        self.fingerprint = fingerprint(self.group, self.names)
        self.timeline = Timeline()
        conditions = conditions if conditions is not None else Conditions()
        self.network = Network(seed, conditions, self.timeline, self._arrived)
        self.disks = {name: SimDisk() for name in self.names}
        self.clocks = {
            name: Clock((rates or {}).get(name, 1.0), stream(seed, "clock", name).uniform(0, 1000))
            for name in self.names
        }
        #: The newest process of each name, dead or alive.
        self.processes: dict[str, Process] = {}
        self.lives = dict.fromkeys(self.names, 0)
        self.crashes = 0
        self._notice = notice
        self._stalled_until = dict.fromkeys(self.names, 0.0)
        #: When the next turn of each is planned.
        self._turns: dict[str, float] = {}
        self._disk_chances = {name: stream(seed, "sync", name) for name in self.names}
        self._turn_chances = {name: stream(seed, "turn", name) for name in self.names}
        self._crash_chance = stream(seed, "crash leaves")

    # -----------------------------------------------------------------------------------------------------------------
    # Time.

    def local_time(self, name: str) -> float:
        return self.clocks[name].at(self.timeline.now)

    def time_of(self, name: str, local: float) -> float:
        """When `name`'s clock shows `local`: a little late rather than a little early, lest rounding have it look
        again and again."""
        clock = self.clocks[name]
        return (local - clock.offset) / clock.rate + 1e-6

    def run_until(self, condition: Callable[[], object], deadline: float) -> bool:
        """Let one thing happen after the other until it holds; False when it does not by `deadline`."""
        while not condition():
            if not self.timeline.step(deadline):
                return bool(condition())
        return True

    def jump(self, name: str, seconds: float) -> None:
        """Its clock jumps ahead, as after a suspend nobody noticed."""
        self.say(name, f"its clock jumps {seconds:.2f} seconds ahead")
        self.clocks[name].offset += seconds
        process = self.living(name)
        if process is not None:
            self.want_turn(process, self.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # Members.

    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.dead]

    def living(self, name: str) -> Process | None:
        process = self.processes.get(name)
        return process if process is not None and not process.dead else None

    def start(self, name: str, *, fuse: int = -1) -> CoordError | None:
        """Start a process on the disk of `name`; what it raised, if it could not start. See `Process.fuse`."""
        assert self.living(name) is None, f"{name} lives"
        self.lives[name] += 1
        self.say(name, f"starts for the {self.lives[name]}. time")
        self._turns.pop(name, None)
        try:
            process = Process(self, name, self.lives[name], fuse)
        except CoordError as error:
            self.say(name, f"cannot start: {error}")
            self.disks[name].restart()
            return error
        except Crash:
            self.say(name, "crashes while it starts")
            self.crashes += 1
            self.disks[name] = self.disks[name].lose(self._crash_chance, power=True)
            return None
        self.processes[name] = process
        self.watcher.started(process)
        self.want_turn(process, self.timeline.now)
        return None

    def kill(self, name: str, *, power: bool | None = None) -> None:
        """The process ends without a word; with `power` its machine too, and what was not synced may be lost. None:
        one or the other."""
        process = self.living(name)
        if process is None:
            return
        if power is None:
            power = self._crash_chance.random() < 0.7
        self.say(name, "its machine loses power" if power else "is killed")
        self.crashes += 1
        self.buried(process, power=power)

    def buried(self, process: Process, *, power: bool) -> None:
        """A process has ended."""
        name = process.name
        process.dead = True
        self._turns.pop(name, None)
        self.disks[name] = self.disks[name].lose(self._crash_chance, power=power)
        for other in self.alive():
            noticed = self._crash_chance.random() < self._notice
            when = self._crash_chance.uniform(*_NOTICE_SECONDS)
            if noticed and self.network.both_ways(name, other.name):
                self.timeline.after(when, self._noticed, other.name, name)

    def _noticed(self, name: str, peer: str) -> None:
        if self.living(peer) is None:
            self.tell_gone(name, peer)

    def tell_gone(self, name: str, peer: str) -> None:
        """`name` has proof that the process of `peer` is gone, true or not."""
        process = self.living(name)
        if process is not None:
            self.say(name, f"is told that the process of {peer} is gone")
            process.told_gone(peer)
            self.want_turn(process, self.timeline.now)

    def pause(self, name: str, seconds: float) -> None:
        process = self.living(name)
        if process is not None:
            self.say(name, f"stands still for {seconds:.2f} seconds")
            process.paused_until = max(process.paused_until, self.timeline.now + seconds)

    def resume(self, name: str) -> None:
        process = self.living(name)
        if process is not None:
            process.paused_until = self.timeline.now
            self.want_turn(process, self.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # Turns.

    def _arrived(self, target: str, source: str, frame: bytes) -> None:
        process = self.living(target)
        if self.trace is not None:
            self._say_frame(target, source, frame, nobody=process is None)
        if process is not None:
            process.receive(frame)
            delay = self.hardware.turn_delay
            self.want_turn(process, self.timeline.now + (delay * self._turn_chances[target].random() if delay else 0))

    def want_turn(self, process: Process, at: float) -> None:
        """Give `process` a turn at that time, or as soon as it is awake."""
        at = max(at, process.paused_until, self.timeline.now)
        planned = self._turns.get(process.name)
        if not process.dead and (planned is None or at < planned):
            self._turns[process.name] = at
            self.timeline.at(at, self._take_turn, process, at)

    def _take_turn(self, process: Process, at: float) -> None:
        if process.dead or self._turns.get(process.name) != at:
            return
        del self._turns[process.name]
        if process.paused_until > self.timeline.now:
            self.want_turn(process, process.paused_until)
            return
        for task in process.parked:
            self.timeline.at(self.timeline.now, self._background, process, task)
        process.parked.clear()
        try:
            process.turn()
        except Crash:
            self.kill(process.name)
            return
        if process.failure is not None:
            self.stopped(process)
            return
        late = self.hardware.timer_delay
        self.want_turn(process, process.due() + (late * self._turn_chances[process.name].random() if late else 0))

    def stopped(self, process: Process) -> None:
        """It has stopped itself; its machine lives."""
        self.say(process.name, f"has stopped itself: {process.failure}")
        self.buried(process, power=False)

    def background(self, process: Process, task: Callable[[], Callable[[], None]]) -> None:
        """Done later by another thread of the process, if it lives that long."""
        delay = self.hardware.snapshot_time * self._disk_chances[process.name].random()
        self.timeline.after(delay, self._background, process, task)

    def _background(self, process: Process, task: Callable[[], Callable[[], None]]) -> None:
        if process.dead:
            return
        if process.paused_until > self.timeline.now:
            process.parked.append(task)
            return
        try:
            process.calls.append(task())
        except Crash:
            self.kill(process.name)
            return
        self.want_turn(process, self.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # Disks.

    def stall(self, name: str, seconds: float) -> None:
        self.say(name, f"waits for its disk for {seconds:.2f} seconds")
        self._stalled_until[name] = max(self._stalled_until[name], self.timeline.now + seconds)

    def unstall(self, name: str) -> None:
        self._stalled_until[name] = self.timeline.now

    def plan_sync(self, process: Process) -> None:
        """The disk will have done it by then; one sync may cover several writes."""
        time = self.hardware.sync_time * (1 + self._disk_chances[process.name].random())
        self.timeline.at(max(self.timeline.now + time, self._stalled_until[process.name]), self._sync, process)

    def _sync(self, process: Process) -> None:
        name = process.name
        if process.dead:
            return
        if self._stalled_until[name] > self.timeline.now:
            self.timeline.at(self._stalled_until[name], self._sync, process)
            return
        try:
            process.storage.work()
        except Crash:
            self.kill(name)
            return
        if process.storage.full:
            self.timeline.after(_RETRY_SECONDS, self._sync, process)
        else:
            self.timeline.after(_IDLE_SECONDS, self._idle, process, process.storage.durable())

    def _idle(self, process: Process, durable: int) -> None:
        if not process.dead and process.storage.durable() == durable:
            try:
                process.storage.idle()
            except Crash:
                self.kill(process.name)

    # -----------------------------------------------------------------------------------------------------------------
    # Links.

    def cut(self, links: Iterable[Link]) -> None:
        self.network.cut(links)

    def heal(self) -> None:
        if not self.network.whole:
            self.say("heal", "every link works again")
            self.network.heal()

    # -----------------------------------------------------------------------------------------------------------------
    # The story.

    def say(self, who: str, what: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.timeline.now:9.4f} {who:<5} {what}")

    def say_command(self, process: Process, command: Command) -> None:
        self.say(process.name, f"   {describe_command(command)}")

    def _say_frame(self, target: str, source: str, frame: bytes, *, nobody: bool) -> None:
        """Whoever it is for: what does not decode as this reader sees it is shown as bytes."""
        reader = Identity(target, _recipient_incarnation(frame), self.fingerprint)
        try:
            told = describe_message(decode(frame, reader).message)
        except BadFrame as error:
            told = f"{len(frame)} bytes ({error})"
        self.say(target, f"<- {source} {told}{' (nobody there)' if nobody else ''}")


def _recipient_incarnation(frame: bytes) -> int:
    """As the frame has it, so that a trace can show what the real recipient may refuse."""
    return int.from_bytes(frame[HEADER_BYTES - 16 : HEADER_BYTES - 8], "little")
