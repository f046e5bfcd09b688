"""What goes wrong during the chaos, and when. Every trouble has its own stream of chance.

What must not live here: troubles of single messages (`network`), or what a crash does to a disk (`disk`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from coord.raft.roles import LEADER
from simulation.chance import stream
from simulation.knobs import NEVER
from simulation.network import between

if TYPE_CHECKING:
    from simulation.member import Member
    from simulation.world import World

_DOWN_SECONDS = (0.05, 5.0)
_PAUSE_SECONDS = (0.1, 8.0)
_CUT_SECONDS = (0.3, 8.0)
#: A leader in trouble soon after its election: within this time.
_SOON_SECONDS = 0.3
#: At most so many commands are still performed before a crash that was planned.
_FUSE = 25


class Faults:
    def __init__(self, world: World) -> None:
        self._world = world
        knobs = world.knobs
        self._every(knobs.partition_every, "partition", self._partition)
        self._every(knobs.crash_every, "crash", self._crash)
        self._every(knobs.pause_every, "pause", self._pause)
        self._every(knobs.stall_every, "stall", self._stall)
        self._every(knobs.transfer_every, "transfer", self._transfer)
        if knobs.false_evidence:
            self._every(2.0, "evidence", self._false_evidence)
        if knobs.damaged:
            rng = stream(world.seed, "damage")
            world.timeline.at(rng.uniform(0.2, 0.9) * knobs.chaos, self._damage, rng)
        self._soon = stream(world.seed, "new leader")

    def _every(self, mean: float, name: str, strike: Callable[[random.Random], None]) -> None:
        if mean < NEVER:
            rng = stream(self._world.seed, "fault", name)
            self._world.timeline.after(rng.expovariate(1 / mean), self._strike, rng, mean, strike)

    def _strike(self, rng: random.Random, mean: float, strike: Callable[[random.Random], None]) -> None:
        if not self._world.calm:
            strike(rng)
            self._world.timeline.after(rng.expovariate(1 / mean), self._strike, rng, mean, strike)

    def _victim(self, rng: random.Random) -> str:
        """Often the leader: that is where it hurts."""
        leads, anybody = rng.random() < 0.4, rng.choice(self._world.names)
        leaders = [member.name for member in self._world.alive() if member.core.role == LEADER]
        return leaders[-1] if leads and leaders else anybody

    def _partition(self, rng: random.Random) -> None:
        world = self._world
        names, victim, shape = list(world.names), self._victim(rng), rng.randrange(6)
        if len(names) == 1:
            return
        rng.shuffle(names)
        others = [name for name in names if name != victim]
        half = rng.randrange(1, len(names))
        if shape == 0:
            # It keeps some friends, fewer than would make a majority.
            friends = others[: half % ((len(names) + 1) // 2)]
            pairs = between([victim, *friends], [name for name in others if name not in friends])
        elif shape == 1:
            pairs = between(names[:half], names[half:])
        elif shape == 2:
            # It can be heard and hears nobody; or the other way round.
            pairs = [(one, victim) for one in others] if half % 2 else [(victim, one) for one in others]
        elif shape == 3:
            # Everybody only reaches the victim.
            pairs = between(others, others)
        elif shape == 4:
            pairs = between([victim], others[:1])
        else:
            pairs = [pair for pair in between(names, names) if rng.random() < 0.3]
        if rng.random() < 0.5:
            world.heal()
        leader = world.living(victim)
        if leader is not None and leader.core.role == LEADER:
            # What it still appends will be in nobody else's way but its own.
            leader.propose(half)
            if rng.random() < world.knobs.false_evidence:
                for name in others:
                    world.tell_gone(name, victim)
        world.say("cut", ", ".join(f"{source} to {target}" for source, target in pairs))
        world.cut(pairs)
        world.timeline.after(rng.uniform(*_CUT_SECONDS), world.heal)

    def _crash(self, rng: random.Random) -> None:
        victim, down, fuse = self._victim(rng), rng.uniform(*_DOWN_SECONDS), rng.randrange(_FUSE)
        self._world.light(victim, fuse if rng.random() < 0.7 else 0, down * down / _DOWN_SECONDS[1])

    def _pause(self, rng: random.Random) -> None:
        self._world.pause(self._victim(rng), rng.uniform(*_PAUSE_SECONDS))

    def _stall(self, rng: random.Random) -> None:
        self._world.stall(self._victim(rng), rng.uniform(*_PAUSE_SECONDS))

    def _transfer(self, rng: random.Random) -> None:
        world = self._world
        target, deaf, when = rng.choice([*world.names, None]), rng.random(), rng.uniform(0, _SOON_SECONDS)
        heals = rng.uniform(*_CUT_SECONDS) / 4
        for member in world.alive():
            if member.core.role == LEADER and world.transfer(member, target) and deaf < world.knobs.deaf_on_transfer:
                others = [(name, member.name) for name in world.names if name != member.name]
                world.timeline.after(max(0.0, when - _SOON_SECONDS / 2), world.cut, others)
                world.timeline.after(when + heals, world.heal)

    def _false_evidence(self, rng: random.Random) -> None:
        """Somebody is told that somebody died: long ago, and it is back; or it never did."""
        world = self._world
        teller, peer = rng.choice(world.names), self._victim(rng)
        if teller != peer and rng.random() < world.knobs.false_evidence:
            world.tell_gone(teller, peer)

    def _damage(self, rng: random.Random) -> None:
        if not self._world.calm:
            self._world.damage(rng.choice(self._world.names), rng)

    def new_leader(self, member: Member) -> None:
        """Elections in quick succession, with entries of many terms left behind here and there."""
        rng, world = self._soon, self._world
        strikes, when, how, fuse = rng.random(), rng.uniform(0, _SOON_SECONDS), rng.random(), rng.randrange(_FUSE)
        if world.calm or strikes >= world.knobs.kill_new_leader:
            return
        if how < 0.5:
            world.timeline.after(when, world.light, member.name, fuse, rng.uniform(*_DOWN_SECONDS))
            return
        others = [name for name in world.names if name != member.name]
        friends = rng.randrange(len(others) + 1)
        member.propose(friends + 1)
        world.timeline.after(when, world.cut, between([member.name], others[friends:]))
        world.timeline.after(when + rng.uniform(*_CUT_SECONDS), world.heal)
