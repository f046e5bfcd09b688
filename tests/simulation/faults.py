"""What goes wrong during the chaos, and when. Every trouble has its own stream of chance.

Each blow is numbered and may be left out (`World.kept`), without moving any other: so a failure is made smaller.
What must not live here: troubles of single frames (`coord.testing.network`), or what a crash does to a disk.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from coord.raft.roles import LEADER
from coord.testing.chance import stream
from coord.testing.network import Link, between
from coord.testing.process import Process
from simulation.knobs import NEVER

if TYPE_CHECKING:
    from simulation.world import World

_DOWN_SECONDS = (0.05, 5.0)
_PAUSE_SECONDS = (0.1, 8.0)
_CUT_SECONDS = (0.3, 8.0)
_CLOG_SECONDS = (0.2, 4.0)
_FULL_SECONDS = (0.5, 4.0)
#: A leader in trouble soon after its election: within this time.
_SOON_SECONDS = 0.3
#: At most so many commands and file operations are still performed before a crash that was planned.
_FUSE = 40
#: How likely each kind of file operation is to fail next.
_FAILING = ("write", "sync", "sync", "create", "rename", "sync_directory", "unlink", "read")


class Faults:
    def __init__(self, world: World) -> None:
        self._world = world
        #: How often each kind of trouble struck.
        self.struck: dict[str, int] = {}
        knobs = world.knobs
        self._every(knobs.partition_every, "partition", self._partition)
        self._every(knobs.clog_every, "clog", self._clog)
        self._every(knobs.crash_every, "crash", self._crash)
        self._every(knobs.stop_every, "stop", self._stop)
        self._every(knobs.pause_every, "pause", self._pause)
        self._every(knobs.stall_every, "stall", self._stall)
        self._every(knobs.transfer_every, "transfer", self._transfer)
        self._every(knobs.jump_every, "jump", self._jump)
        self._every(knobs.disk_error_every, "disk error", self._disk_error)
        self._every(knobs.full_every, "full disk", self._full)
        self._every(knobs.rot_every, "rot", self._rot)
        self._every(knobs.misdirect_every, "misdirected write", self._misdirect)
        self._every(knobs.wipe_every, "wiped disk", self._wipe)
        if knobs.false_evidence:
            self._every(2.0, "evidence", self._false_evidence)
        self._soon = stream(world.seed, "new leader")

    def _every(self, mean: float, name: str, strike: Callable[[random.Random], None]) -> None:
        if mean < NEVER:
            rng = stream(self._world.seed, "fault", name)
            self._world.timeline.after(rng.expovariate(1 / mean), self._strike, rng, mean, name, strike, 0)

    def _strike(
        self, rng: random.Random, mean: float, name: str, strike: Callable[[random.Random], None], number: int
    ) -> None:
        if self._world.calm:
            return
        if self._allowed(name, number):
            # Its own draws, so that leaving one blow out changes no other.
            strike(stream(self._world.seed, "blow", name, number))
        self._world.timeline.after(rng.expovariate(1 / mean), self._strike, rng, mean, name, strike, number + 1)

    def _allowed(self, name: str, number: int) -> bool:
        kept = self._world.kept
        if kept is not None and (name, number) not in kept:
            return False
        self._world.blows.append((name, number))
        self.struck[name] = self.struck.get(name, 0) + 1
        return True

    def _victim(self, rng: random.Random) -> str:
        """Often the leader: that is where it hurts."""
        leads, anybody = rng.random() < 0.4, rng.choice(self._world.names)
        leaders = [process.name for process in self._world.alive() if process.replica.core.role == LEADER]
        return leaders[-1] if leads and leaders else anybody

    # -----------------------------------------------------------------------------------------------------------------
    # The network.

    def _partition(self, rng: random.Random) -> None:
        world = self._world
        names, victim = list(world.names), self._victim(rng)
        if len(names) == 1:
            return
        rng.shuffle(names)
        links = self._shape(rng, names, victim)
        if rng.random() < 0.5:
            world.heal()
        leader = world.living(victim)
        if leader is not None and leader.replica.core.role == LEADER:
            # What it still appends will be in nobody else's way but its own.
            world.write(leader, rng.randrange(1, 4))
            if rng.random() < world.knobs.false_evidence:
                for name in names:
                    world.tell_gone(name, victim)
        world.say("cut", ", ".join(f"{source} to {target}" for source, target in links))
        world.cut(links)
        world.timeline.after(rng.uniform(*_CUT_SECONDS), world.heal)

    def _shape(self, rng: random.Random, names: list[str], victim: str) -> list[Link]:
        shape, half = rng.randrange(8), rng.randrange(1, len(names))
        others = [name for name in names if name != victim]
        if shape == 0:
            # It keeps some friends, fewer than would make a majority.
            friends = others[: half % ((len(names) + 1) // 2)]
            return between([victim, *friends], [name for name in others if name not in friends])
        if shape == 1:
            return between(names[:half], names[half:])
        if shape == 2:
            # It can be heard and hears nobody; or the other way round.
            return [(one, victim) for one in others] if half % 2 else [(victim, one) for one in others]
        if shape == 3:
            # Everybody only reaches the victim.
            return between(others, others)
        if shape == 4:
            return between([victim], others[:1])
        if shape == 5:
            # A chain: each reaches its neighbours only.
            return [(one, other) for at, one in enumerate(names) for to, other in enumerate(names) if abs(at - to) > 1]
        if shape == 6:
            # A ring of majorities: each reaches its neighbours, and the ends are neighbours too.
            apart = len(names) // 2 + 1
            return [
                (one, other)
                for at, one in enumerate(names)
                for to, other in enumerate(names)
                if apart > (at - to) % len(names) > 1 and at != to
            ]
        return [pair for pair in between(names, names) if rng.random() < 0.3]

    def _clog(self, rng: random.Random) -> None:
        """Swizzled: some of a member's links, or all, let nothing through for a while, and then everything."""
        world, victim, seconds = self._world, self._victim(rng), rng.uniform(*_CLOG_SECONDS)
        others = [name for name in world.names if name != victim]
        links = [pair for pair in between([victim], others) if rng.random() < 0.7]
        world.say("clog", f"for {seconds:.2f} s: " + ", ".join(f"{source} to {target}" for source, target in links))
        world.network.clog(links, seconds)

    def _false_evidence(self, rng: random.Random) -> None:
        """Somebody is told that somebody died: long ago, and it is back; or it never did."""
        world = self._world
        teller, peer = rng.choice(world.names), self._victim(rng)
        if teller != peer and rng.random() < world.knobs.false_evidence:
            world.tell_gone(teller, peer)

    # -----------------------------------------------------------------------------------------------------------------
    # Processes and clocks.

    def _crash(self, rng: random.Random) -> None:
        victim, down, fuse = self._victim(rng), rng.uniform(*_DOWN_SECONDS), rng.randrange(_FUSE)
        if rng.random() < 0.1:
            # Everybody at once.
            for name in self._world.names:
                self._world.light(name, 0, down * down / _DOWN_SECONDS[1])
        self._world.light(victim, fuse if rng.random() < 0.7 else 0, down * down / _DOWN_SECONDS[1])

    def _stop(self, rng: random.Random) -> None:
        """As a user stops it, politely; it comes back."""
        process, patience = self._world.living(self._victim(rng)), rng.choice([0.0, 0.5, 5.0])
        if process is not None:
            self._world.say(process.name, f"is asked to stop within {patience:g} seconds")
            process.leave(patience)

    def _pause(self, rng: random.Random) -> None:
        self._world.pause(self._victim(rng), rng.uniform(*_PAUSE_SECONDS))

    def _jump(self, rng: random.Random) -> None:
        self._world.jump(self._victim(rng), rng.choice([0.1, 1.0, 5.0, 3600.0]) * rng.random())

    def _transfer(self, rng: random.Random) -> None:
        world = self._world
        target, deaf, when = rng.choice([*world.names, None]), rng.random(), rng.uniform(0, _SOON_SECONDS)
        heals = rng.uniform(*_CUT_SECONDS) / 4
        for process in world.alive():
            leads = process.replica.core.role == LEADER
            if leads and world.transfer(process, target) and deaf < world.knobs.deaf_on_transfer:
                others = [(name, process.name) for name in world.names if name != process.name]
                world.timeline.after(max(0.0, when - _SOON_SECONDS / 2), world.cut, others)
                world.timeline.after(when + heals, world.heal)

    # -----------------------------------------------------------------------------------------------------------------
    # Disks.

    def _stall(self, rng: random.Random) -> None:
        self._world.stall(self._victim(rng), rng.uniform(*_PAUSE_SECONDS))

    def _disk_error(self, rng: random.Random) -> None:
        world, victim = self._world, self._victim(rng)
        kind, nth = rng.choice(_FAILING), rng.randrange(1, 4)
        world.say(victim, f"its disk will fail at its {nth}. {kind}")
        world.disks[victim].fail(kind, nth, rng.choice([errno.EIO, errno.EIO, errno.ENOSPC]))
        world.failing.add(victim)

    def _full(self, rng: random.Random) -> None:
        world, victim = self._world, self._victim(rng)
        disk = world.disks[victim]
        if disk.capacity is None:
            world.say(victim, "its disk is full")
            disk.capacity = disk.used() + rng.randrange(4096)
            world.failing.add(victim)
            world.timeline.after(rng.uniform(*_FULL_SECONDS), self._make_room, victim)

    def _make_room(self, victim: str) -> None:
        self._world.say(victim, "there is room again on its disk")
        self._world.disks[victim].capacity = None

    def _rot(self, rng: random.Random) -> None:
        world, victim = self._world, self._victim(rng)
        if world.atlas.may_harm(victim):
            where = world.disks[victim].rot(rng)
            if where:
                world.say(victim, f"a bit rots in {where}")
                world.atlas.harmed(victim, "rot")
                world.truth.note("rot")

    def _misdirect(self, rng: random.Random) -> None:
        world, victim = self._world, self._victim(rng)
        if world.atlas.may_harm(victim) and world.living(victim) is not None:
            world.say(victim, "its next write goes elsewhere")
            world.atlas.harmed(victim, "a misdirected write")
            world.disks[victim].misdirect = rng
            world.truth.note("misdirected")

    def _wipe(self, rng: random.Random) -> None:
        """Everything is lost, and somebody starts it again under the same name; the others know better."""
        world, victim = self._world, self._victim(rng)
        if not world.atlas.may_harm(victim) or not world.all_know(victim) or victim in world.stay_dead:
            return
        world.kill(victim)
        world.say(victim, "loses its disk")
        world.atlas.harmed(victim, "wiped", wiped=True)
        world.replace_disk(victim)
        world.truth.note("wiped")

    # -----------------------------------------------------------------------------------------------------------------
    # Trouble that finds a new leader.

    def new_leader(self, process: Process) -> None:
        """Elections in quick succession, with entries of many terms left behind here and there."""
        rng, world = self._soon, self._world
        strikes, when, how, fuse = rng.random(), rng.uniform(0, _SOON_SECONDS), rng.random(), rng.randrange(_FUSE)
        term = process.replica.core.term
        if world.calm or strikes >= world.knobs.kill_new_leader or not self._allowed("new leader", term):
            return
        if how < 0.5:
            world.timeline.after(when, world.light, process.name, fuse, rng.uniform(*_DOWN_SECONDS))
            return
        others = [name for name in world.names if name != process.name]
        friends = rng.randrange(len(others) + 1)
        world.timeline.after(0.0, self._write_in_vain, process, friends + 1)
        world.timeline.after(when, world.cut, between([process.name], others[friends:]))
        world.timeline.after(when + rng.uniform(*_CUT_SECONDS), world.heal)

    def _write_in_vain(self, process: Process, count: int) -> None:
        if not process.dead and process.failure is None:
            self._world.write(process, count)
