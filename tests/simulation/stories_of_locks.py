"""Stories of locks, and of the sessions they are held in: what the rules of both are there for.

As in `stories`: nothing else goes wrong in them; each raises when the oracles do, or when the group does not recover.
What must not live here: random troubles (`faults`, `lock_clients`).
"""

from __future__ import annotations

from typing import Any

from coord.lease import LAPSED, SUSPENDED, VALID
from coord.machine import commands, replies
from coord.raft.batch import encode_entry
from coord.requests import GRANTED
from coord.testing.network import between
from coord.testing.process import Process
from simulation.knobs import Knobs
from simulation.leases import LOST, Asked
from simulation.stories import leader_of, let_pass, quiet, until
from simulation.world import World


def _knobs(**knobs: Any) -> Knobs:
    found = quiet(**knobs)
    found.options |= {"session_ttl": 6.0, "session_grace": 45.0}
    return found


def _ask(world: World, process: Process, **arguments: Any) -> Asked:
    asked = Asked(world.leases, process, "l", **arguments)
    asked.ask()
    return asked


def _holds(world: World, process: Process, **arguments: Any) -> Asked:
    """Let it ask, and wait until it has."""
    asked = _ask(world, process, **arguments)
    until(world, lambda: asked.outcome == GRANTED, f"{process.name} has the lock")
    return asked


def _cast(world: World) -> tuple[Process, list[Process]]:
    """Who leads, once everybody has a session; and the others."""
    leader = leader_of(world)
    until(world, lambda: all(process.replica.session_open for process in world.alive()), "all have sessions")
    let_pass(world, 1.0)
    return leader, [process for process in world.alive() if process is not leader]


def _cut_off(world: World, *some: Process) -> None:
    names = [process.name for process in some]
    world.network.cut(between(names, [name for name in world.names if name not in names]))


def _nothing_is_left(world: World, *asked: Asked) -> None:
    """Everybody gives back what it has; then there is no lock any more."""
    for one in asked:
        if one.believes():
            one.release()
    until(world, lambda: not world.lock_rules.unfinished(), "no lock is left")
    until(world, lambda: not any(len(process.replica.requests) for process in world.alive()), "no request is left")
    world.leases.check_end()


def _ends_in_the_log(process: Process, session: int) -> bool:
    """Is the end of that session in its log, committed or not?"""
    log = process.replica.core.log
    wanted = commands.expire_session(session, process.replica.core.term)
    batches = log.between(max(log.base, process.replica.core.commit - 3) + 1, log.last_index)
    return any(payload == wanted for batch in batches for payload in batch.payloads())


# ---------------------------------------------------------------------------------------------------------------------
# Renewals.


def an_old_leader_acknowledges_late(seed: int) -> None:
    """A leader is cut off together with a holder. The others soon have another leader, which counts the holder's time
    from then on; so the old one must not tell the holder that all is well, though it does not know better yet."""
    world = World(seed, _knobs(members=5))
    leader, others = _cast(world)
    holder, waiter = others[:2]
    held, waits = _holds(world, holder), _ask(world, waiter)
    let_pass(world, 0.5)
    _cut_off(world, leader, holder)
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    let_pass(world, 3.0)
    world.network.heal()
    until(world, lambda: held.ended == LOST, "who had it hears that it is lost")
    _nothing_is_left(world, held, waits)


def an_uncommitted_end_is_committed_by_the_next_leader(seed: int) -> None:
    """A leader ends the session of a member that is away; only one other member hears of that, and becomes the next
    leader. The term of that entry is its own, so it will count. The member is back, and wants its session renewed
    before the new leader has committed anything."""
    world = World(seed, _knobs(members=5, sync_time=0.05))
    leader, others = _cast(world)
    away, heir, *rest = others
    held, waits = _holds(world, away, delay=0), _ask(world, heir)
    session = held.request.session
    _cut_off(world, away)
    until(world, lambda: _ends_in_the_log(leader, session), "the leader ends its session")
    world.network.cut(between([leader.name], [process.name for process in rest]))
    let_pass(world, 0.01)
    assert world.truth.machine.has_session(session), "its end is committed too early for this story"
    world.stay_dead.add(leader.name)
    world.kill(leader.name)
    world.network.mend(between([away.name], [heir.name]))
    leader_of(world, newer_than=leader.replica.core.term)
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    world.network.heal()
    until(world, lambda: held.ended == LOST, "who had it hears that it is lost")
    _nothing_is_left(world, held, waits)


def a_renewal_comes_while_the_end_is_on_its_way(seed: int) -> None:
    """A member was away for too long; just when its end is proposed it is back, and asks for its session to be
    renewed. It is too late for that."""
    world = World(seed, _knobs(sync_time=0.2))
    leader, others = _cast(world)
    away, waiter = others
    held, waits = _holds(world, away), _ask(world, waiter)
    session = held.request.session
    _cut_off(world, away)
    until(world, lambda: _ends_in_the_log(leader, session), "the leader ends its session")
    world.network.heal()
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    until(world, lambda: held.ended == LOST, "who had it hears that it is lost")
    _nothing_is_left(world, held, waits)


def a_holder_stands_still(seed: int) -> None:
    """When it wakes it knows at once that it has nothing any more, before it has heard of anybody."""
    world = World(seed, _knobs())
    _, others = _cast(world)
    holder, waiter = others
    held, waits = _holds(world, holder), _ask(world, waiter)
    world.pause(holder.name, 30.0)
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    assert not held.believes() and not held.ended, "it was told while it stood still"
    until(world, lambda: held.ended, "it hears that the lock is lost")
    assert held.ended == LOST
    until(world, lambda: holder.replica.own.lease.state(holder.local()) == VALID, "it has another session")
    _nothing_is_left(world, held, waits)


def a_group_without_a_quorum_keeps_its_locks(seed: int) -> None:
    """Nobody can end a session then, so what is held is held again when the group is back, with the same token."""
    world = World(seed, _knobs())
    _, others = _cast(world)
    held = _holds(world, others[0])
    token, process = held.request.token, others[0]
    world.network.cut(between(world.names, world.names))
    until(world, lambda: process.replica.own.lease.state(process.local()) == SUSPENDED, "its session is suspended")
    assert not held.believes()
    let_pass(world, 20.0)
    world.network.heal()
    until(world, held.believes, "it has the lock again")
    assert held.request.token == token and not held.ended
    _nothing_is_left(world, held)


def a_lost_lock_is_reclaimed(seed: int) -> None:
    """Its delay keeps it from everybody but the member that lost it, which gets it back before those who wait."""
    world = World(seed, _knobs())
    _, (holder, waiter) = _cast(world)
    held, waits = _holds(world, holder, delay=30 * 10**9), _ask(world, waiter)
    token, session = held.request.token, held.request.session
    _cut_off(world, holder)
    until(world, lambda: not world.truth.machine.has_session(session), "its session is over")
    world.network.heal()
    until(world, lambda: held.ended == LOST, "who had it hears that it is lost")
    again = _holds(world, holder, reclaim=True)
    assert again.request.token > token and not waits.outcome, f"{again}, {waits}; it was {token}"
    again.release()
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    _nothing_is_left(world, waits)


# ---------------------------------------------------------------------------------------------------------------------
# Sessions that are given up, or closed.


def a_session_that_was_given_up_comes_back(seed: int) -> None:
    """Its owner has given up what it held in it, and heard nothing of the group for long; but the group never ended the
    session, for it had no quorum either. Then nobody holds the lock, and others must get it."""
    knobs = _knobs()
    knobs.options["session_grace"] = 1.0
    world = World(seed, knobs)
    _, others = _cast(world)
    holder, other = others
    held = _holds(world, holder)
    world.network.cut(between(world.names, world.names))
    until(world, lambda: held.ended == LOST, "it has given up")
    assert holder.replica.own.lease.ended == LAPSED
    world.network.heal()
    until(world, lambda: holder.replica.own.lease.state(holder.local()) == VALID, "its session is back")
    assert world.truth.machine.has_session(held.request.session), "the session was to stay the same"
    _nothing_is_left(world, held, _holds(world, other))


def granted_while_the_lease_was_over(seed: int) -> None:
    """A member that is heard by nobody hears that it is granted a lock. It cannot rely on that, and so is not told; it
    gives its lease up; and a new leader gives it another. Now it can, and must be told."""
    knobs = _knobs()
    knobs.options |= {"session_ttl": 20.0, "session_grace": 0.2}
    world = World(seed, knobs)
    leader, (holder, waiter) = _cast(world)
    held, waits = _holds(world, holder), _ask(world, waiter)
    let_pass(world, 1.0)
    world.network.cut([(waiter.name, name) for name in world.names if name != waiter.name])
    own = waiter.replica.own
    until(world, lambda: own.lease.state(waiter.local()) == SUSPENDED, "its lease is over")
    held.release()
    until(world, lambda: own.lease.ended == LAPSED, "it gives its lease up")
    assert not waits.outcome and world.truth.machine.has_session(own.lease.session)
    assert world.transfer(leader, holder.name)
    leader_of(world, newer_than=leader.replica.core.term)
    world.network.heal()
    until(world, lambda: waits.outcome == GRANTED, "it is told")
    _nothing_is_left(world, held, waits)


def a_member_that_gave_up_leaves(seed: int) -> None:
    """It has given its lease up, is heard again, and is stopped just then. The answer to its renewal must not make it
    believe in the session that it closes."""
    knobs = _knobs()
    knobs.options["session_grace"] = 0.0
    world = World(seed, knobs)
    _, (member, _) = _cast(world)
    own, session = member.replica.own, member.replica.own.lease.session
    world.network.cut(between(world.names, world.names))
    until(world, lambda: own.lease.ended == LAPSED, "it has given up")
    world.network.heal()
    until(world, lambda: member.replica.core.leader is not None, "it follows a leader")
    member.leave(30.0)
    until(world, lambda: not world.truth.machine.has_session(session), "its session is closed")
    let_pass(world, 1.0)


def a_member_that_leaves_holds_nothing(seed: int) -> None:
    """It closes its session, and hears nothing any more; the lock goes to the next at once. So what it holds ended with
    its asking to close."""
    world = World(seed, _knobs())
    _, (holder, waiter) = _cast(world)
    held, waits = _holds(world, holder), _ask(world, waiter)
    world.network.cut([(name, holder.name) for name in world.names if name != holder.name])
    holder.leave(30.0)
    until(world, lambda: waits.outcome == GRANTED, "the next is granted the lock")
    world.network.heal()
    _nothing_is_left(world, held, waits)


# ---------------------------------------------------------------------------------------------------------------------
# Requests.


def a_snapshot_skips_a_grant(seed: int) -> None:
    """A member waits for a lock, and is cut off for a while. A snapshot takes it past the entry that granted it."""
    knobs = _knobs()
    knobs.options |= {"snapshot_entries": 10, "max_batch_bytes": 300, "session_ttl": 20.0}
    world = World(seed, knobs)
    leader, (holder, waiter) = _cast(world)
    held, waits = _holds(world, holder), _ask(world, waiter)
    let_pass(world, 1.0)
    _cut_off(world, waiter)
    held.release()
    until(world, lambda: held.reply is not None, "it is released")
    for _ in range(20):
        world.write(leader, 3)
        let_pass(world, 0.2)
    world.network.heal()
    until(world, lambda: waiter.replica.counters.snapshots_installed, "it is taken past all that")
    until(world, lambda: waits.outcome == GRANTED, "it is told")
    _nothing_is_left(world, held, waits)


def a_cancel_overtakes_its_acquire(seed: int) -> None:
    """Whatever was given up is given up, also if it comes late."""
    world, told = World(seed, _knobs()), list[Any]()
    leader, _ = _cast(world)
    late = leader.replica.numbering._next + 1
    leader.propose(commands.cancel, ("l", late), told.append)
    leader.propose(commands.acquire, ("l", False, 1, 0, True, 0, False, b""), told.append)
    until(world, lambda: len(told) == 2, "both are answered")
    assert told[1] == (replies.CANCELLED,), f"the late one is answered {told[1]}"
    _nothing_is_left(world)


def given_up_while_the_answer_is_on_its_way(seed: int) -> None:
    """The caller's time is over when the grant is in the log already: it goes to the next, without waiting for the end
    of a session."""
    world = World(seed, _knobs(sync_time=0.05))
    _, (first, second) = _cast(world)
    asked = _ask(world, first)
    until(world, lambda: world.truth.machine.locks.holders("l"), "it is granted")
    assert not asked.outcome and asked.give_up(), "it was told already"
    held = _holds(world, second)
    assert world.truth.machine.has_session(asked.request.session)
    _nothing_is_left(world, held)


def a_dead_process_opens_its_session_late(seed: int) -> None:
    """What a member sent in its life before may arrive in this one: it must not end the session that was opened since,
    least of all as that of a process known to be dead."""
    world = World(seed, _knobs())
    leader, (lone, _) = _cast(world)
    held = _holds(world, lone)
    ttl = int(leader.replica.options.session_ttl * 1e9)
    late = encode_entry(commands.open_session(7, lone.name, 5, ttl, 0, True))
    leader.calls.append(lambda: leader.replica.outbox.add(late))
    leader.wake()
    index = world.truth.committed
    until(world, lambda: world.truth.committed > index, "it is committed")
    let_pass(world, 1.0)
    assert held.believes(), "the hold was lost"
    _nothing_is_left(world, held)


LOCK_STORIES = [
    a_dead_process_opens_its_session_late,
    an_old_leader_acknowledges_late,
    an_uncommitted_end_is_committed_by_the_next_leader,
    a_renewal_comes_while_the_end_is_on_its_way,
    a_holder_stands_still,
    a_group_without_a_quorum_keeps_its_locks,
    a_lost_lock_is_reclaimed,
    a_session_that_was_given_up_comes_back,
    granted_while_the_lease_was_over,
    a_member_that_gave_up_leaves,
    a_member_that_leaves_holds_nothing,
    a_snapshot_skips_a_grant,
    a_cancel_overtakes_its_acquire,
    given_up_while_the_answer_is_on_its_way,
]
