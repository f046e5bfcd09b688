"""Stories of members and those who use them: sessions, keys, leadership handed on, strangers.

As in `stories`: nothing else goes wrong in them; each raises when the oracles do, or when the group does not recover.
What must not live here: stories of disks (`stories_of_disks`).
"""

from __future__ import annotations

from typing import Any

from coord.errors import OutcomeUnknown
from coord.machine import commands
from coord.raft.messages import HeartbeatResponse
from coord.raft.roles import LEADER
from coord.testing.chance import stream
from coord.testing.network import between
from coord.wire import encode
from simulation.stories import leader_of, let_pass, quiet, until
from simulation.world import World


def frames_go_astray(seed: int) -> None:
    """Sockets reconnect to whoever answers at an address, so frames reach members they are not for (trap 48). While
    several stand for election at once, somebody else's vote looks like one's own."""
    knobs = quiet(kill_new_leader=1.0, crash_every=0.7, partition_every=1.5, notice=1.0)
    knobs.chaos, knobs.clients = 8.0, 2
    world, chance = World(seed, knobs), stream(seed, "astray")
    deliver = world.network._deliver

    def astray(target: str, source: str, frame: bytes) -> None:
        deliver(target, source, frame)
        other = chance.choice(world.names)
        if other not in (target, source) and not world.calm:
            deliver(other, source, frame)

    world.network._deliver = astray
    world.run()


def a_stranger_at_a_members_address(seed: int) -> None:
    """Before a member was ever heard, somebody of another group that goes by the same names answers at its address. It
    must not be taken for that member, or the true one would be refused for ever (traps 47, 48)."""
    world, elsewhere = World(seed, quiet()), World(seed + 1, quiet())
    world.stay_dead.add("c")
    world.kill("c")
    leader = leader_of(world)
    leader_of(elsewhere)
    let_pass(world, 1.0)
    let_pass(elsewhere, 1.0)
    stranger = elsewhere.process("c").replica.identity
    assert stranger.group_number and leader.replica.identity.group_number
    for name in ("a", "b"):
        world.network.send("c", name, encode(stranger, name, HeartbeatResponse(0, 0, 0)))
    let_pass(world, 0.1)
    world.write(leader, 1)
    let_pass(world, 0.5)
    world.stay_dead.discard("c")
    world.revive("c")
    late = world.process("c")
    until(world, lambda: late.replica.machine.applied_index == world.truth.committed, "the true member takes part")


def a_delete_of_nothing(seed: int) -> None:
    """What changes nothing makes no revision: who compares revisions would see a change that never was."""
    world = World(seed, quiet())
    leader, replies = leader_of(world), list[Any]()
    world.write(leader, 1)
    let_pass(world, 1.0)
    before = leader.replica.machine.store.revision
    leader.propose(commands.delete, ("nothing",), replies.append)
    let_pass(world, 1.0)
    after = {process.replica.machine.store.revision for process in world.alive()}
    assert replies and after == {before}, f"revision {before} became {after}: {replies}"


def waits_for_its_first_commit(seed: int) -> None:
    """A key falls due under a new leader that has not yet committed anything, and so may not act on it: it waits, and
    does not look again and again."""
    world = World(seed, quiet())
    leader = leader_of(world)
    leader.propose(commands.put, ("t", b"x", False, 10**9), lambda reply: None)
    let_pass(world, 0.2)
    world.stay_dead.add(leader.name)
    world.kill(leader.name)
    until(world, lambda: any(other.replica.core.role == LEADER for other in world.alive()), "another leads")
    world.network.cut(between(world.names, world.names))
    before = world.timeline.count
    let_pass(world, 2.5)
    assert world.timeline.count - before < 1000, f"{world.timeline.count - before} events, all for nothing"


def hands_over_to_nobody(seed: int) -> None:
    """The member that is to take over is not there, and does not come back. The leader leads on (trap 35)."""
    world, replies = World(seed, quiet()), list[Any]()
    leader = leader_of(world)
    target = next(name for name in world.names if name != leader.name)
    world.stay_dead.add(target)
    world.kill(target)
    world.write(leader, 1)
    let_pass(world, 0.1)
    assert world.transfer(leader, target)
    leader.propose(commands.put, ("k", b"x"), replies.append)
    let_pass(world, 10.0)
    assert replies, "ten seconds later the leader still takes no writes"


def a_session_lost_in_a_snapshot(seed: int) -> None:
    """A write is done, and its caller's member is cut off before it hears of it, until its session has ended and only a
    snapshot is left of both. The caller must not be told anything certain, and the write not be done again."""
    knobs, replies = quiet(), list[Any]()
    knobs.options |= {"snapshot_entries": 5, "session_ttl": 6.0}
    world = World(seed, knobs)
    leader = leader_of(world)
    let_pass(world, 1.0)
    process = next(other for other in world.alive() if other is not leader)
    log = leader.replica.core.log
    before = log.last_index
    process.propose(commands.put, ("once", b"x"), replies.append)
    until(world, lambda: log.last_index > before, "the leader has it")
    world.network.cut(between([process.name], [name for name in world.names if name != process.name]))
    for _ in range(10):
        let_pass(world, 1.0)
        world.write(leader, 6)
    world.network.heal()
    until(world, lambda: process.replica.machine.applied_index == world.truth.committed, "it has caught up")
    let_pass(world, 3.0)
    done = [change.revision for change in world.truth.changes if change.key == "once"]
    assert len(done) == 1, f"done {len(done)} times, at {done}"
    assert [type(reply) for reply in replies] == [OutcomeUnknown], f"its caller is told {replies}"


def a_session_ends_while_its_member_is_away(seed: int) -> None:
    """Its leader stays, so nothing but the end of the session itself makes the member open another."""
    knobs, replies = quiet(), list[Any]()
    knobs.options["session_ttl"] = 6.0
    world = World(seed, knobs)
    leader = leader_of(world)
    world.write(leader, 1)
    let_pass(world, 1.0)
    process = next(other for other in world.alive() if other is not leader)
    session = process.replica.numbering.session
    world.network.cut(between([process.name], [name for name in world.names if name != process.name]))
    until(world, lambda: session not in leader.replica.machine.sessions, "the session ends")
    world.network.heal()
    process.propose(commands.put, ("k", b"x"), replies.append)
    let_pass(world, 5.0)
    assert replies, "a write is never answered"


MEMBER_STORIES = [
    frames_go_astray,
    a_stranger_at_a_members_address,
    a_delete_of_nothing,
    waits_for_its_first_commit,
    hands_over_to_nobody,
    a_session_lost_in_a_snapshot,
    a_session_ends_while_its_member_is_away,
]
