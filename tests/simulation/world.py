"""A whole group in one process and in virtual time: chaos first, then peace, in which it must recover.

Everything depends on the seed alone, so a failure comes back by its number, as a story one can read.
What must not live here: which troubles there are (`faults`), what must always hold (`checks`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from coord.raft.core import Core
from coord.raft.describe import describe_command, describe_core, describe_log, describe_message, describe_progress
from coord.raft.membership import membership_of
from coord.raft.messages import Command, Message, RoleChange
from coord.raft.roles import LEADER
from coord.wire import Identity, fingerprint
from simulation.chance import stream
from simulation.checks import Checks
from simulation.disk import LogDisk, ModelDisk
from simulation.faults import Faults
from simulation.knobs import NEVER, Knobs, draw
from simulation.member import Crash, Member
from simulation.network import Network
from simulation.timeline import Timeline

#: How long a group may take to recover, in longest election timeouts.
RECOVERY_TIMEOUTS = 10
#: A leader that reaches no quorum steps down within so many longest election timeouts, by its own clock.
_PATIENCE_TIMEOUTS = 1.5
_LOOK_EVERY = 0.1
#: What callers may want of one member at once.
_WAITING_MAX = 30
#: A world that is busier than this never ends.
_EVENTS_MAX = 200_000


class Stuck(AssertionError):
    """The group did not recover though nothing was wrong any more."""


class World:
    def __init__(self, seed: int, knobs: Knobs | None = None, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.knobs = knobs if knobs is not None else draw(seed)
        self.trace = trace
        self.names = "abcde"[: self.knobs.members]
        self.timeline = Timeline()
        self.calm = False
        if not self.knobs.rates:
            self.knobs.rates = (1.0,) * len(self.names)
        if not self.knobs.priorities:
            self.knobs.priorities = (0,) * len(self.names)
        group = fingerprint("simulation", self.names)
        self.identities = {name: Identity(name, 1000 + ord(name), group) for name in self.names}
        self.membership = membership_of({name: f"ipc://{name}" for name in self.names})
        self.network = Network(seed, self.knobs, self.timeline, self.identities, self._arrived)
        self.checks = Checks(self)
        self.crashes = 0
        self._disks = {name: self._new_disk(name) for name in self.names}
        self._lives = dict.fromkeys(self.names, 0)
        self._damage = dict.fromkeys(self.names, "")
        self._stalled_until = dict.fromkeys(self.names, 0.0)
        #: Members nobody starts again.
        self.stay_dead: set[str] = set()
        #: When each member, leading or not, was last with a quorum, for check-quorum's sake.
        self._turns: dict[str, float] = {}
        self._cut_off_since: dict[str, float] = {}
        self._disk_chances = {name: stream(seed, "sync", name) for name in self.names}
        self._turn_chances = {name: stream(seed, "turn", name) for name in self.names}
        self._crash_chance = stream(seed, "crash leaves")
        self._members: dict[str, Member] = {}
        for name in self.names:
            self._start(name)
        self.faults = Faults(self)
        self._work = stream(seed, "work")
        self._propose_later()
        self._read_later()

    def _new_disk(self, name: str) -> ModelDisk:
        if not self.knobs.real_disk:
            return ModelDisk()
        mint = stream(self.seed, "mint", name)
        return LogDisk(name, lambda: mint.getrandbits(64) | 1)

    # -----------------------------------------------------------------------------------------------------------------
    # The two phases.

    def run(self) -> None:
        """Chaos, then recovery. Raises Violation or Stuck."""
        while self.timeline.now < self.knobs.chaos:
            self._advance(min(self.timeline.now + _LOOK_EVERY, self.knobs.chaos))
        self._make_peace()
        recovery = RECOVERY_TIMEOUTS * self.knobs.settings.election_timeout[1] / min(self.knobs.rates)
        recovered_by = self.timeline.now + self.knobs.late_by + recovery + self._work_left()
        while self._unfinished():
            if self.timeline.now > recovered_by:
                raise Stuck(f"at {self.timeline.now:.4f}: " + "; ".join(self._unfinished()) + self._describe_all())
            self._advance(self.timeline.now + _LOOK_EVERY)

    def _work_left(self) -> float:
        """How long a healthy group may be busy with what lies undone, when it moves one entry at a time."""
        knobs = self.knobs
        uncommitted = sum(member.core.log.last_index - member.core.commit for member in self._members.values())
        behind = len(self.names) * self.checks.committed - sum(member.state.index for member in self.alive())
        waiting = sum(len(member.pending) for member in self._members.values())
        one = 2 * (2 * knobs.sync_time + 3 * knobs.delay + knobs.turn_delay) + 0.02
        return one * (uncommitted + behind + waiting)

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
        whole = [name for name in self.names if not self._damage[name]]
        self.stay_dead = set(rng.sample(whole, self.knobs.stay_dead))
        for name in self.names:
            self._stalled_until[name] = self.timeline.now
            member = self._members[name]
            member.fuse = -1
            member.paused_until = self.timeline.now
            if name in self.stay_dead:
                self.kill(name)
            elif member.dead:
                self._start(name)
            else:
                self.plan_sync(member, 0)
                self._want_turn(member, self.timeline.now)
        for member in self.alive():
            if not member.damage:
                member.propose(1)
                member.read()

    def _unfinished(self) -> list[str]:
        """What is still to come, in words."""
        missing = []
        healthy = [member for member in self.alive() if not member.damage]
        if not any(member.core.leads_surely for member in healthy):
            missing.append("nobody leads")
        for member in healthy:
            if member.pending:
                missing.append(f"{member.name} waits for {len(member.pending)} proposals")
            if member.unanswered_reads:
                missing.append(f"{member.name} waits for {member.unanswered_reads} reads")
            if member.state.index != self.checks.committed:
                missing.append(f"{member.name} has applied {member.state.index} of {self.checks.committed}")
        return missing

    def _look_for_usurpers(self) -> None:
        """Check-quorum: who leads and reaches no majority gives up in time (trap 8)."""
        now, patience = self.timeline.now, _PATIENCE_TIMEOUTS * self.knobs.settings.election_timeout[1]
        for member in self.alive():
            reached = [name for name in self.names if name != member.name and self.network.both_ways(member.name, name)]
            cut_off = 2 * (1 + len(reached)) <= len(self.names)
            if member.core.role != LEADER or not cut_off or member.paused_until > now:
                self._cut_off_since.pop(member.name, None)
                continue
            since = self._cut_off_since.setdefault(member.name, now)
            if (now - since) * min(self.knobs.rates) > patience + self.network.slowest:
                self.checks.fail(f"{member.name} leads since long without a quorum\n  {self.describe(member)}")

    # -----------------------------------------------------------------------------------------------------------------
    # Members and their turns.

    def alive(self) -> list[Member]:
        return [member for member in self._members.values() if not member.dead]

    def member(self, name: str) -> Member:
        """The newest process of that name, dead or alive."""
        return self._members[name]

    def living(self, name: str) -> Member | None:
        member = self._members.get(name)
        return member if member is not None and not member.dead else None

    def disks(self) -> Iterator[tuple[str, ModelDisk, bool]]:
        """(name, disk, whether it was damaged)."""
        for name, disk in self._disks.items():
            yield name, disk, bool(self._damage[name])

    def _start(self, name: str) -> None:
        self._lives[name] += 1
        self.say(name, f"starts for the {self._lives[name]}. time")
        position = self.names.index(name)
        member = Member(self, name, position, self._disks[name], self._lives[name], damage=self._damage[name])
        self._members[name] = member
        self._turns.pop(name, None)
        self._want_turn(member, self.timeline.now)

    def _arrived(self, target: str, sender: str, incarnation: int, message: Message) -> None:
        member = self._members[target]
        if self.trace is not None:
            fate = " (nobody there)" if member.dead else ""
            self.say(target, f"<- {sender} {describe_message(message)}{fate}")
        if not member.dead:
            member.inbox.append((sender, incarnation, message))
            delay = self.knobs.turn_delay
            self._want_turn(member, self.timeline.now + (delay * self._turn_chances[target].random() if delay else 0))

    def _want_turn(self, member: Member, at: float) -> None:
        """Give `member` a turn at that time, or as soon as it is awake."""
        at = max(at, member.paused_until, self.timeline.now)
        planned = self._turns.get(member.name)
        if planned is None or at < planned:
            self._turns[member.name] = at
            self.timeline.at(at, self._take_turn, member, at)

    def _take_turn(self, member: Member, at: float) -> None:
        if member.dead or self._turns.get(member.name) != at:
            return
        del self._turns[member.name]
        if member.paused_until > self.timeline.now:
            self._want_turn(member, member.paused_until)
            return
        try:
            member.turn()
        except Crash:
            self.kill(member.name)
            return
        self._want_turn(member, member.due())

    def background(self, member: Member, work: Callable[..., None], *arguments: Any) -> None:
        """Done later by another thread of the process, if it lives that long."""
        delay = self.knobs.snapshot_time * self._disk_chances[member.name].random()
        self.timeline.after(delay, self._background_done, member, work, arguments)

    def _background_done(self, member: Member, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if member.paused_until > self.timeline.now:
            self.timeline.at(member.paused_until, self._background_done, member, work, arguments)
        elif not member.dead:
            work(*arguments)
            self._want_turn(member, self.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # Disks.

    def stalled(self, member: Member) -> bool:
        return self._stalled_until[member.name] > self.timeline.now

    def plan_sync(self, member: Member, seq: int) -> None:
        """The disk will have made it durable by then; one sync may cover several Persists."""
        time = self.knobs.sync_time
        if time or self.stalled(member) or not seq:
            at = self.timeline.now + time * (1 + self._disk_chances[member.name].random())
            self.timeline.at(max(at, self._stalled_until[member.name]), self._sync, member, seq)

    def _sync(self, member: Member, seq: int) -> None:
        if member.dead:
            return
        if self.stalled(member):
            self.timeline.at(self._stalled_until[member.name], self._sync, member, seq)
            return
        if member.disk.queue and (not seq or member.disk.queue[0].seq <= seq):
            member.disk.sync(seq or member.disk.queue[-1].seq)
            self._want_turn(member, self.timeline.now)

    # -----------------------------------------------------------------------------------------------------------------
    # Troubles.

    def light(self, name: str, fuse: int, down: float) -> None:
        """Crash it after `fuse` more commands, and start it again `down` seconds later."""
        member = self._members[name]
        if self.calm or member.dead:
            return
        self.say(name, f"will crash after {fuse} more commands, for {down:.2f} seconds")
        if fuse:
            member.fuse = fuse
        else:
            self.kill(name)
        self.timeline.after(down, self.revive, name)

    def kill(self, name: str) -> None:
        """The process ends, and with it the machine: what was not synced may be lost."""
        member = self._members[name]
        if member.dead:
            return
        self.say(name, "CRASHES")
        self.crashes += 1
        member.dead = True
        member.disk.crash(self._crash_chance)
        for other in self.alive():
            if self.network.both_ways(name, other.name) and self._crash_chance.random() < self.knobs.notice:
                self.timeline.after(self._crash_chance.uniform(0.005, 0.05), self._noticed, other.name, name)
        if not self.calm:
            self.timeline.after(self._crash_chance.uniform(0.05, 3), self.revive, name)

    def revive(self, name: str) -> None:
        if self._members[name].dead and name not in self.stay_dead:
            self._start(name)

    def _noticed(self, name: str, peer: str) -> None:
        if self._members[peer].dead:
            self.tell_gone(name, peer)

    def tell_gone(self, name: str, peer: str) -> None:
        member = self.living(name)
        if member is not None:
            self.say(name, f"is told that the process of {peer} is gone")
            member.gone.append(peer)
            self._want_turn(member, self.timeline.now)

    def pause(self, name: str, duration: float) -> None:
        member = self._members[name]
        if not self.calm and not member.dead:
            self.say(name, f"stands still for {duration:.2f} seconds")
            member.paused_until = max(member.paused_until, self.timeline.now + duration)

    def stall(self, name: str, duration: float) -> None:
        if not self.calm:
            self.say(name, f"waits for its disk for {duration:.2f} seconds")
            self._stalled_until[name] = max(self._stalled_until[name], self.timeline.now + duration)

    def transfer(self, member: Member, to: str | None) -> bool:
        """Whether it began."""
        if member.paused_until > self.timeline.now:
            return False
        problem = member.core.transfer_leadership(member.local(), to)
        self.say(member.name, f"is to hand over to {to or 'anybody'}: {problem or 'begun'}")
        if not problem:
            self.checks.note("transfer begun")
        self._want_turn(member, self.timeline.now)
        return not problem

    def damage(self, name: str, rng: random.Random) -> None:
        """It stops, its disk forgets, and it starts again knowing that it did."""
        self.kill(name)
        self.say(name, "its disk has forgotten some of what it knew")
        self._damage[name] = "what it knew may be gone"
        self._disks[name].damage(rng)
        self.checks.note("damaged")

    def forget(self, name: str) -> None:
        """Its disk has lost all it had."""
        self._disks[name].wipe()

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        if not self.calm:
            self.network.cut(pairs)

    def heal(self) -> None:
        if not self.network.whole:
            self.say("heal", "every link works again")
            self.network.heal()
            # What was held may bring round trips of old.
            self._cut_off_since.clear()

    # -----------------------------------------------------------------------------------------------------------------
    # Work.

    def _propose_later(self) -> None:
        if self.knobs.proposals_every < NEVER:
            self.timeline.after(self._work.expovariate(1 / self.knobs.proposals_every), self._propose)

    def _propose(self) -> None:
        name, count = self._work.choice(self.names), self._work.randint(1, self.knobs.entries)
        member = self.living(name)
        if self.calm:
            return
        if member is not None and not member.damage and len(member.pending) < _WAITING_MAX:
            member.propose(count)
            self._want_turn(member, self.timeline.now)
        self._propose_later()

    def _read_later(self) -> None:
        if self.knobs.reads_every < NEVER:
            self.timeline.after(self._work.expovariate(1 / self.knobs.reads_every), self._read)

    def _read(self) -> None:
        """At anybody, and at all who believe that they lead."""
        name = self._work.choice(self.names)
        if self.calm:
            return
        for member in self.alive():
            # A process that stands still asks nothing; it would look like a read long ago.
            asked = member.name == name or member.core.role == LEADER
            if asked and member.paused_until <= self.timeline.now and len(member.floors) < _WAITING_MAX:
                member.read()
                self._want_turn(member, self.timeline.now)
        self._read_later()

    def role_changed(self, member: Member, change: RoleChange) -> None:
        if change.role == LEADER:
            self.faults.new_leader(member)

    # -----------------------------------------------------------------------------------------------------------------
    # The story.

    def say(self, who: str, what: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.timeline.now:9.4f} {who:<5} {what}")

    def say_command(self, member: Member, command: Command) -> None:
        self.say(member.name, f"   {describe_command(command)}")

    def describe(self, member: Member) -> str:
        core: Core = member.core
        lines = [describe_core(core), f"log {describe_log(core.log)}"]
        if core.role == LEADER:
            lines += [f"{name}: {describe_progress(progress)}" for name, progress in core.progress.items()]
        if core.pull is not None:
            lines.append(f"pulls {core.pull.meta.index}, {core.pull.held} bytes of {core.pull.meta.size}")
        return "\n    ".join(lines)

    def _describe_all(self) -> str:
        return "".join(f"\n  {'dead: ' * member.dead}{self.describe(member)}" for member in self._members.values())
