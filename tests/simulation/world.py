"""A whole group in one process and in virtual time: chaos first, then peace, in which it must recover.

Everything depends on the seed alone, so a failure comes back by its number, as a story one can read.
What must not live here: which troubles there are (`faults`), what must always hold (`promises`, `rules`, `replies`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from coord.errors import ClosedError, ConfigurationError, CoordError, StorageError
from coord.machine import commands
from coord.raft.batch import Batch
from coord.raft.core import Core
from coord.raft.describe import describe_core, describe_log, describe_progress
from coord.raft.messages import AnyMessage, Command, InstallSnapshot, KeepaliveResponse, RoleChange
from coord.raft.roles import LEADER
from coord.testing.chance import stream
from coord.testing.disk import SimDisk
from coord.testing.network import Link
from coord.testing.process import Process, Watcher
from coord.testing.simulation import Simulation
from simulation.atlas import Atlas
from simulation.clients import Clients
from simulation.faults import Faults
from simulation.knobs import Knobs, draw, spare_of
from simulation.leases import Leases
from simulation.lock_clients import LockClients
from simulation.lock_rules import LockRules
from simulation.promises import Promises
from simulation.replies import Replies
from simulation.rules import Rules
from simulation.truth import Truth

#: How long a group may take to recover, in longest election timeouts.
RECOVERY_TIMEOUTS = 10
#: Bytes of uncommitted entries a leader may have, for it never to be short of room.
_ROOMY = 1 << 20
#: A leader that reaches no quorum steps down within so many longest election timeouts, by its own clock.
_PATIENCE_TIMEOUTS = 1.5
_LOOK_EVERY = 0.1
#: A world that is busier than this never ends.
_EVENTS_MAX = 300_000


#: A kind of trouble, and which of its kind.
Blow = tuple[str, int]


class Stuck(AssertionError):
    """The group did not recover though nothing was wrong any more."""


class _Oracles(Watcher):
    """Everything members do, told to everybody who judges it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def started(self, process: Process) -> None:
        self._world.rules.started(process)
        self._world.leases.started(process)

    def before_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        self._world.rules.before_step(process, sender, message)

    def after_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        self._world.rules.after_step(process, sender, message)

    def before_command(self, process: Process, command: Command) -> None:
        self._world.rules.before_command(process, command)
        if type(command) is RoleChange and command.role == LEADER:
            self._world.faults.new_leader(process)

    def sending(self, process: Process, to: str, message: AnyMessage) -> None:
        if type(message) is KeepaliveResponse:
            self._world.rules.acknowledges(process, message)
            self._world.acknowledgement_leaves = True
        self._world.promises.sending(process, to, message)

    def applied(self, process: Process, batch: Batch) -> None:
        self._world.rules.applied(process, batch)

    def installed(self, process: Process, command: InstallSnapshot) -> None:
        self._world.installed[process.name] = command.meta.index
        self._world.rules.installed(process, command)

    def settling(self, process: Process, sequence: int, reply: Any) -> None:
        self._world.replies.settling(process, sequence, reply)

    def after_turn(self, process: Process) -> None:
        if process.failure is None:
            self._world.rules.after_turn(process)
            self._world.leases.after_turn(process)


class World(Simulation):
    def __init__(
        self,
        seed: int,
        knobs: Knobs | None = None,
        trace: Callable[[str], None] | None = None,
        *,
        kept: frozenset[Blow] | None = None,
    ) -> None:
        """`kept`: the only blows that fall; None: all."""
        #: Blows in the order in which they fell.
        self.blows: list[Blow] = []
        self.kept = kept
        self.knobs = knobs if knobs is not None else draw(seed)
        names = "abcde"[: self.knobs.members]
        if not self.knobs.rates:
            self.knobs.rates = (1.0,) * len(names)
        super().__init__(
            seed,
            names,
            {name: self.knobs.options_of(position) for position, name in enumerate(names)},
            conditions=self.knobs.conditions,
            hardware=self.knobs.hardware,
            rates=dict(zip(names, self.knobs.rates, strict=True)),
            notice=self.knobs.notice,
            watcher=_Oracles(self),
            trace=trace,
        )
        self.calm = False
        self.atlas = Atlas(self.names, spare_of(self.knobs))
        self.truth = Truth(self)
        self.replies = Replies(self, self.truth)
        self.rules = Rules(self, self.truth)
        self.promises = Promises(self, self.truth)
        self.lock_rules = LockRules(self, self.truth)
        self.leases = Leases(self, self.truth)
        self.clients = Clients(self)
        self.lock_clients = LockClients(self)
        #: Members nobody starts again.
        self.stay_dead: set[str] = set()
        #: The newest snapshot each member has taken in from another.
        self.installed: dict[str, int] = {}
        #: Members whose disk was made to fail since their start.
        self.failing: set[str] = set()
        #: When the clock of each member last jumped.
        self.jumped_at: dict[str, float] = {}
        #: The frame that comes next acknowledges a renewal.
        self.acknowledgement_leaves = False
        if self.knobs.acknowledgements_late:
            self._acknowledgements = stream(seed, "acknowledgements")
            self._send_at_once, self.network.send = self.network.send, self._send_perhaps_later  # type: ignore[method-assign]
        #: When each member that leads was last with a quorum, for check-quorum's sake.
        self._cut_off_since: dict[str, float] = {}
        self._starting = stream(seed, "starting")
        self.faults = Faults(self)
        for name in self.names:
            self.revive(name)
        self.clients.begin()
        self.lock_clients.begin()

    # -----------------------------------------------------------------------------------------------------------------
    # The two phases.

    def run(self) -> None:
        """Chaos, then recovery. Raises Violation or Stuck."""
        while self.timeline.now < self.knobs.chaos:
            self._advance(min(self.timeline.now + _LOOK_EVERY, self.knobs.chaos))
        self._make_peace()
        longest = self.options[self.names[0]].election_timeout[1]
        recovery = RECOVERY_TIMEOUTS * longest / min(self.knobs.rates) + self.network.slowest
        recovered_by = self.timeline.now + recovery + self._work_left() + self._locks_left()
        while self._unfinished():
            if self.timeline.now > recovered_by:
                raise Stuck(f"at {self.timeline.now:.4f}: " + "; ".join(self._unfinished()) + self._describe_all())
            self._advance(self.timeline.now + _LOOK_EVERY)
        self._check_end()

    def _work_left(self) -> float:
        """How long a healthy group may be busy with what lies undone, when it moves one entry at a time."""
        knobs, processes = self.knobs, self.processes.values()
        uncommitted = sum(p.replica.core.log.last_index - p.replica.core.commit for p in processes)
        behind = len(self.names) * self.truth.committed - sum(p.replica.machine.applied_index for p in self.alive())
        waiting = sum(p.replica.unanswered for p in processes)
        hardware, conditions = knobs.hardware, knobs.conditions
        turn = hardware.turn_delay + hardware.timer_delay
        one = 2 * (2 * hardware.sync_time + 3 * conditions.delay + turn) + 0.02
        # What a leader has no room for is sent again only after a while; with tight limits that is every entry.
        again: float = 4 * knobs.options.get("heartbeat", 0.15) / min(knobs.rates)
        tight: bool = knobs.options.get("max_uncommitted_bytes", _ROOMY) < _ROOMY
        return one * (uncommitted + behind + waiting) + again * waiting * tight

    def _locks_left(self) -> float:
        """How long what dead members held may be in the way: until their sessions are over, and then its delay."""
        knobs, ttl = self.knobs, self.options[self.names[0]].session_ttl
        return (ttl + knobs.lock_delay + 1.0) / min(knobs.rates) if knobs.lock_clients else 0.0

    def _advance(self, until: float) -> None:
        if not self.timeline.run(until, _EVENTS_MAX):
            raise Stuck(
                f"{self.timeline.count} events by {self.timeline.now:.4f}: they never end{self._describe_all()}"
            )
        self._look_for_usurpers()

    def _make_peace(self) -> None:
        self.calm = self.network.calm = True
        self.say("peace", "")
        self.heal()
        rng = stream(self.seed, "survivors")
        whole = [name for name in self.names if not self.atlas.harm(name)]
        self.stay_dead |= set(rng.sample(whole, self.knobs.stay_dead))
        # What has failed by now may not have been noticed yet.
        self.failing = {process.name for process in self.alive() if process.storage.failure is not None}
        for name in self.names:
            self.unstall(name)
            self.disks[name].capacity = None
            self.disks[name].clear_failures()
            process = self.living(name)
            if process is not None:
                process.fuse = -1
                self.resume(name)
            if name in self.stay_dead:
                self.kill(name)
            else:
                self.revive(name)
        self.clients.make_peace()
        self.lock_clients.make_peace()

    def healthy(self) -> list[Process]:
        """Those of whom it is expected that they serve."""
        return [process for process in self.alive() if not self.atlas.is_wiped(process.name)]

    def _unfinished(self) -> list[str]:
        """What is still to come, in words."""
        missing = []
        healthy = self.healthy()
        if not any(process.replica.core.leads_surely for process in healthy):
            missing.append("nobody leads")
        for process in healthy:
            replica = process.replica
            if replica.unanswered:
                missing.append(f"{process.name} waits for {replica.unanswered} proposals")
            if len(replica._reads):
                missing.append(f"{process.name} waits for {len(replica._reads)} reads")
            if replica.machine.applied_index != self.truth.committed:
                missing.append(f"{process.name} has applied {replica.machine.applied_index} of {self.truth.committed}")
            missing += self.leases.unfinished(process)
        if not missing:
            missing += [*self.clients.unfinished(), *self.lock_clients.unfinished(), *self.lock_rules.unfinished()]
            missing += [left for process in healthy for left in self.leases.left_behind(process)]
        for name in self.names:
            # Harmed ones may run on; all others must.
            if self.living(name) is None and name not in self.stay_dead and not self.atlas.harm(name):
                missing.append(f"{name} does not run")
        return missing

    def _check_end(self) -> None:
        self.replies.check_end()
        self.clients.check_end()
        self.leases.check_end()
        for process in self.healthy():
            found = process.replica.machine.state_hash
            self.truth.require(found == self.truth.machine.state_hash, "I7: another state at the end", process)

    def _look_for_usurpers(self) -> None:
        """Check-quorum: who leads and reaches no majority gives up in time (trap 8)."""
        now, patience = self.timeline.now, _PATIENCE_TIMEOUTS * self.options[self.names[0]].election_timeout[1]
        for process in self.alive():
            name = process.name
            reached = [other for other in self.names if other != name and self.network.both_ways(name, other)]
            cut_off = not self.truth.is_majority(1 + len(reached))
            if process.replica.core.role != LEADER or not cut_off or process.paused_until > now:
                self._cut_off_since.pop(name, None)
                continue
            since = self._cut_off_since.setdefault(name, now)
            if (now - since) * min(self.knobs.rates) > patience + self.network.slowest + self.hardware.timer_delay:
                self.truth.require(False, "leads since long without a quorum", process)

    # -----------------------------------------------------------------------------------------------------------------
    # Members' lives.

    def all_know(self, name: str) -> bool:
        """Has every other member on its disk which data directory is that member's? Until then a lost one cannot be
        told from a new one."""
        for other in self.names:
            process = self.processes.get(other)
            if other == name:
                continue
            if process is None:
                return False
            core = process.replica.core
            index, membership = core.history.latest_index, core.membership
            if not membership.members[name].incarnation or index > min(core.log.persisted, core.commit):
                return False
        return True

    def process(self, name: str) -> Process:
        """The newest process of that name, dead or alive."""
        return self.processes[name]

    def revive(self, name: str) -> None:
        """Start it, unless it lives or is out for good."""
        if self.living(name) is not None or name in self.stay_dead:
            return
        fuse = -1
        if not self.calm and self._starting.random() < self.knobs.crash_at_start:
            fuse = self._starting.randrange(40)
        harm = self.atlas.harm(name)
        error = self.start(name, fuse=fuse)
        if error is None:
            self._check_recovery(name, harm)
        elif harm:
            self._out(name, f"refuses to start on a harmed disk: {error}")
        elif isinstance(error, StorageError | ConfigurationError) and self._disk_fails(name):
            self.truth.note("could not start on a failing disk")
            self.timeline.after(self._starting.uniform(0.1, 1), self.revive, name)
        else:
            self.truth.fail(f"{name} cannot start: {error!r}")

    def _disk_fails(self, name: str) -> bool:
        return name in self.failing or self.disks[name].capacity is not None

    def start(self, name: str, *, fuse: int = -1) -> CoordError | None:
        error = super().start(name, fuse=fuse)
        if error is None and self.living(name) is None:
            self.truth.note("crashed while starting")
            self._later(name)
        return error

    def _check_recovery(self, name: str, harm: str) -> None:
        """It found what its disk had kept; or it says that the disk is damaged, which only a harmed one may be."""
        process = self.living(name)
        if process is None:
            return
        recovered = process.storage.recovered
        assert recovered is not None
        for note in recovered.notes:
            self.truth.note("torn tail cut" if "torn" in note else "snapshot set aside")
        if recovered.damage:
            self.truth.require(bool(harm), f"calls its disk damaged: {recovered.damage}", process)
            self.truth.note("damage found")
            return
        problem = self.disks[name].compare(recovered)
        if problem:
            self.truth.require(False, f"lost what its disk had kept ({harm or 'unharmed'}): {problem}", process)

    def _out(self, name: str, why: str) -> None:
        self.say(name, why)
        self.truth.note("out for good")
        self.stay_dead.add(name)

    def buried(self, process: Process, *, power: bool) -> None:
        super().buried(process, power=power)
        name = process.name
        self.clients.died(process)
        self.leases.died(process)
        self.lock_clients.died(process)
        self.failing.discard(name)
        if self.disks[name].lying:
            # It would be believed, and nobody could know better: such a machine is replaced.
            self._out(name, "its disk lies, and no later record says so")
        elif not self.calm or name not in self.stay_dead:
            self._later(name)

    def _later(self, name: str) -> None:
        self.timeline.after(self._crash_chance.uniform(0.05, 3) if not self.calm else 0.1, self.revive, name)

    def stopped(self, process: Process) -> None:
        failure, name = process.failure, process.name
        if process.leaving_until is not None and isinstance(failure, ClosedError):
            self.truth.note("stopped by its user")
            super().stopped(process)
            return
        harm, failing = self.atlas.harm(name), self._disk_fails(name)
        expected = isinstance(failure, StorageError) and (harm or failing)
        self.truth.require(bool(expected), f"has stopped itself: {failure!r}", process)
        self.truth.note("stopped by its disk")
        if harm and not failing:
            self.stay_dead.add(name)
            self.truth.note("out for good")
        super().stopped(process)

    def light(self, name: str, fuse: int, down: float) -> None:
        """Crash it after `fuse` more commands and file operations, and start it again `down` seconds later."""
        process = self.living(name)
        if self.calm or process is None:
            return
        self.say(name, f"will crash after {fuse} more steps, for {down:.2f} seconds")
        if fuse:
            process.fuse = fuse
        else:
            self.kill(name)
        self.timeline.after(down, self.revive, name)

    def replace_disk(self, name: str) -> None:
        """Everything on it is gone."""
        self.disks[name] = SimDisk()

    def transfer(self, process: Process, to: str | None) -> bool:
        """Whether it began."""
        if process.paused_until > self.timeline.now:
            return False
        process.replica.now = process.local()
        problem = process.replica.transfer(to)
        self.say(process.name, f"is to hand over to {to or 'anybody'}: {problem or 'begun'}")
        if not problem:
            self.truth.note("transfer begun")
        self.want_turn(process, self.timeline.now)
        return not problem

    def jump(self, name: str, seconds: float) -> None:
        self.jumped_at[name] = self.timeline.now
        super().jump(name, seconds)

    def _send_perhaps_later(self, source: str, target: str, frame: bytes) -> None:
        """As the network does; but acknowledgements of renewals are held up, for longer than a lease lasts, or less."""
        leaves, self.acknowledgement_leaves = self.acknowledgement_leaves, False
        chance, part = self._acknowledgements.random(), self._acknowledgements.random()
        if leaves and not self.calm and chance < self.knobs.acknowledgements_late:
            seconds = 1.5 * part * self.options[source].session_ttl
            self.timeline.after(seconds, self._send_at_once, source, target, frame)
        else:
            self._send_at_once(source, target, frame)

    def cut(self, links: Iterable[Link]) -> None:
        if not self.calm:
            super().cut(links)

    def heal(self) -> None:
        if not self.network.whole:
            super().heal()
            # What was held may bring round trips of old.
            self._cut_off_since.clear()

    def write(self, process: Process, count: int) -> None:
        """Plain writes that nobody in particular waits for."""
        for _ in range(count):
            self.writes += 1
            key = f"w{self.writes % 3}"
            process.propose(commands.put, (key, b"%d" % self.writes), lambda reply: None)

    writes = 0

    # -----------------------------------------------------------------------------------------------------------------
    # The story.

    def describe(self, process: Process) -> str:
        core: Core = process.replica.core
        lines = [describe_core(core), f"log {describe_log(core.log)}"]
        if core.role == LEADER:
            lines += [f"{name}: {describe_progress(progress)}" for name, progress in core.progress.items()]
        if core.pull is not None:
            lines.append(f"pulls {core.pull.meta.index}, {core.pull.held} bytes of {core.pull.meta.size}")
        harm = self.atlas.harm(process.name)
        if harm:
            lines.append(f"disk: {harm}")
        return "\n    ".join(lines)

    def _describe_all(self) -> str:
        return "".join(f"\n  {'dead: ' * process.dead}{self.describe(process)}" for process in self.processes.values())
