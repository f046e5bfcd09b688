"""What chance finds too seldom, or found once: short stories told to a world in which nothing else goes wrong.

Seeds move when code does; stories stay. Each raises when the checks do, or when the group does not recover.
What must not live here: random troubles (`faults`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from coord.raft.batch import NOOP, Batch, encode_entry, make_batch
from coord.raft.core import Core, Start
from coord.raft.membership import membership_of
from coord.raft.messages import Append, Command, Persist
from coord.raft.roles import LEADER
from coord.raft.settings import Settings
from simulation.chance import stream
from simulation.disk import View
from simulation.knobs import NEVER, Knobs
from simulation.member import Member
from simulation.network import between
from simulation.world import World

NAMES = {name: f"ipc://{name}" for name in "abc"}
_EVENTS_MAX = 100_000


def quiet(lease_reads: bool = False, **knobs: float | bool) -> Knobs:
    settings = Settings(lease_reads=lease_reads)
    return Knobs(settings=settings, proposals_every=NEVER, chaos=0.0, **knobs)  # type: ignore[arg-type]


def follower(*, damage: str = "") -> Core:
    return Core("c", 3, Settings(), random.Random(1), Start(membership_of(NAMES), damage=damage), 0.0)


def batch(index: int, term: int) -> Batch:
    return make_batch(NOOP, term, index, 0, [encode_entry(b"")], 1)


def persists(commands: list[Command]) -> list[Persist]:
    return [command for command in commands if isinstance(command, Persist)]


def until(world: World, holds: Callable[[], object], what: str) -> None:
    """Let one thing happen after the other until it holds."""
    while not holds():
        if not world.timeline.step(60.0):
            raise AssertionError(f"it never came to this: {what}")


def let_pass(world: World, seconds: float) -> None:
    assert world.timeline.run(world.timeline.now + seconds, _EVENTS_MAX)


def leader_of(world: World, *, newer_than: int = 0) -> Member:
    """Wait until somebody leads a newer term and has committed in it."""

    def leading() -> list[Member]:
        return [member for member in world.alive() if member.core.leads_surely and member.core.term > newer_than]

    until(world, leading, f"somebody leads a term after {newer_than}")
    return leading()[0]


def come_and_gone(seed: int) -> None:
    """A leader's entries, and the next leader's, which replace some of them, are found in the inbox together. The disk
    was never asked to keep the first ones, so it must not be asked to drop them: it would take that for corruption."""
    core, view = follower(), View()
    core.step(1.0, "a", 1, Append(1, 0, 0, 0, 1, [batch(1, 1), batch(2, 1), batch(3, 1)]))
    core.step(1.0, "b", 2, Append(2, 1, 1, 0, 1, [batch(2, 2)]))
    (persist,) = persists(core.take())
    view.apply(persist)
    assert [(kept.first, kept.term) for kept in view.batches] == [(1, 1), (2, 2)]
    # What the disk was asked to keep, it must be told to drop, however late in the turn.
    core.step(1.1, "a", 1, Append(3, 2, 2, 0, 1, [batch(3, 3), batch(4, 3)]))
    core.step(1.1, "b", 2, Append(4, 3, 3, 0, 1, [batch(4, 4)]))
    core.step(1.1, "a", 1, Append(5, 1, 1, 0, 1, [batch(2, 5)]))
    (persist,) = persists(core.take())
    view.apply(persist)
    assert [(kept.first, kept.term) for kept in view.batches] == [(1, 1), (2, 5)]


def forgotten_term(seed: int) -> None:
    """The leader is cut off; the others elect another and commit; then one of them forgets all of that, and is alone
    with the older leader, who must not commit with its help."""
    world = World(seed, quiet())
    old = leader_of(world)
    others = [name for name in world.names if name != old.name]
    world.network.cut(between([old.name], others))
    new = leader_of(world, newer_than=old.core.term)
    (third,) = (name for name in others if name != new.name)
    new.propose(3)
    new.turn()
    let_pass(world, 0.05)
    world.damage(third, stream(seed, "forgets"))
    world.forget(third)
    world.revive(third)
    world.network.heal()
    world.network.cut(between([new.name], [old.name, third]))
    if old.core.role == LEADER:
        old.propose(3)
    let_pass(world, 5)


def longest_log_in_the_oldest_term(seed: int) -> None:
    """A leader that was cut off has the longest log and has not heard of the newer term, in which nothing was ever
    written; the only other one alive has, and cannot win. It must learn the term from that one's answers (trap 9)."""
    world = World(seed, quiet(sync_time=0.01))
    old = leader_of(world)
    others = [name for name in world.names if name != old.name]
    world.network.cut(between([old.name], others))
    old.propose(3)
    old.turn()

    def elected() -> bool:
        return any(world.member(name).core.role == LEADER for name in others)

    for _ in range(2):
        for name in others:
            world.stay_dead.discard(name)
            world.revive(name)
        until(world, elected, "another leads")
        for name in others:
            # Nothing of what the new leader wrote was kept, or arrived.
            world.member(name).disk.queue.clear()
            world.stay_dead.add(name)
            world.kill(name)
        let_pass(world, 0.1)
    until(world, lambda: old.core.role != LEADER, "the older leader gives up")
    world.network.heal()
    world.stay_dead.discard(others[0])
    world.revive(others[0])
    leader = leader_of(world, newer_than=old.core.term)
    assert leader is old


def late_word_to_take_over(seed: int) -> None:
    """The word to take over is late: when it arrives the leader has just given the handing over up. Nobody else has
    heard of that, so it still wins an election, and the leader must not take its lease for valid (trap 32)."""
    world = World(seed, quiet(lease_reads=True, hold=True))
    leader = leader_of(world)
    let_pass(world, 1.0)
    target, third = (name for name in world.names if name != leader.name)
    world.network.cut([(leader.name, target)])
    assert world.transfer(leader, target)
    transfer = leader.core.transfer_state
    assert transfer is not None and transfer.told
    let_pass(world, (transfer.deadline - leader.local()) - 0.02)
    world.network.cut([*between([leader.name], [third]), (target, leader.name)])
    world.network.mend([(leader.name, target)])
    other = leader_of(world, newer_than=leader.core.term)
    assert other.name == target and leader.core.role == LEADER
    until(world, lambda: leader.core.transfer_state is None, "the handing over is given up")
    leader.read()
    leader.turn()
    world.network.heal()
    let_pass(world, 5)
    assert not leader.unanswered_reads


STORIES = [come_and_gone, forgotten_term, longest_log_in_the_oldest_term, late_word_to_take_over]
