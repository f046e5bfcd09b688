"""What chance finds too seldom, or found once: short stories told to a world in which nothing else goes wrong.

Seeds move when code does; stories stay. Each raises when the oracles do, or when the group does not recover.
What must not live here: random troubles (`faults`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from coord.config_map import _begin_watch
from coord.errors import Compacted, OutcomeUnknown
from coord.machine import commands
from coord.raft.batch import NOOP, Batch, encode_entry, make_batch
from coord.raft.core import Core, Start
from coord.raft.membership import membership_of
from coord.raft.messages import (
    Append,
    AppendResponse,
    Command,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Persist,
    Send,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import LEADER
from coord.raft.settings import Settings
from coord.testing.disk import View
from coord.testing.network import Conditions, between
from coord.testing.process import Process
from coord.testing.simulation import Hardware
from coord.watch import Watch
from coord.wire import encode
from simulation.knobs import Knobs
from simulation.rules import FlooredRead
from simulation.world import World

NAMES = {name: f"ipc://{name}" for name in "abc"}
_EVENTS_MAX = 100_000


def quiet(lease_reads: bool = False, *, hold: bool = False, sync_time: float = 0.0, **knobs: Any) -> Knobs:
    return Knobs(
        options={"lease_reads": lease_reads},
        clients=0,
        chaos=0.0,
        conditions=Conditions(hold=hold),
        hardware=Hardware(sync_time=sync_time, segment_bytes=16384),
        **knobs,
    )


def follower(*, damage: str = "") -> Core:
    return Core("c", 3, Settings(), random.Random(1), Start(membership_of(NAMES), damage=damage), 0.0)


def batch(index: int, term: int) -> Batch:
    return make_batch(NOOP, term, index, 0, [encode_entry(b"")], 1)


def persists(told: list[Command]) -> list[Persist]:
    return [command for command in told if isinstance(command, Persist)]


def until(world: World, holds: Callable[[], object], what: str) -> None:
    """Let one thing happen after the other until it holds."""
    if not world.run_until(holds, world.timeline.now + 60.0):
        raise AssertionError(f"it never came to this: {what}")


def let_pass(world: World, seconds: float) -> None:
    assert world.timeline.run(world.timeline.now + seconds, _EVENTS_MAX)


def leader_of(world: World, *, newer_than: int = 0) -> Process:
    """Wait until somebody leads a newer term and has committed in it."""

    def leading() -> list[Process]:
        cores = [(process, process.replica.core) for process in world.alive()]
        return [process for process, core in cores if core.leads_surely and core.term > newer_than]

    until(world, leading, f"somebody leads a term after {newer_than}")
    return leading()[0]


def read(world: World, process: Process) -> list[Any]:
    """Where the answer to a linearizable read that begins now will be."""
    answers: list[Any] = []

    def done(answer: Any) -> None:
        world.rules.answered(process, asked)
        answers.append(answer)

    asked = FlooredRead(done)
    asked.floor, asked.invoked = world.truth.committed, world.timeline.now
    process.read(asked)
    return answers


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


def a_damaged_member_promises_nothing(seed: int) -> None:
    """What it forgot may be a newer term, a vote, an entry. Its word would let an older leader commit, or confirm
    reads; its vote would elect one that lacks what was committed."""
    core = follower(damage="entry 3 is corrupt")
    core.step(1.0, "a", 1, Append(1, 0, 0, 0, 1, [batch(1, 1)]))
    core.step(1.0, "a", 1, Heartbeat(1, 0, 2))
    core.step(9.0, "b", 2, VoteRequest(5, 9, 4))
    told = core.take()
    for persist in persists(told):
        core.persisted(9.1, persist.seq)
    told += core.take()
    said = [command.message for command in told if isinstance(command, Send)]
    assert not [message for message in said if isinstance(message, AppendResponse | HeartbeatResponse)]
    assert [message.granted for message in said if isinstance(message, VoteResponse)] == [False]


def longest_log_in_the_oldest_term(seed: int) -> None:
    """A leader that was cut off has the longest log and has not heard of the newer term, in which nothing was ever
    written; the only other one alive has, and cannot win. It must learn the term from that one's answers (trap 9)."""
    world = World(seed, quiet(sync_time=0.01))
    old = leader_of(world)
    others = [name for name in world.names if name != old.name]
    world.network.cut(between([old.name], others))
    world.write(old, 3)

    def elected() -> bool:
        return any(process.replica.core.role == LEADER for process in world.alive() if process is not old)

    for _ in range(2):
        for name in others:
            world.stay_dead.discard(name)
            world.revive(name)
        until(world, elected, "another leads")
        world.stay_dead.update(others)
        for name in others:
            # Nothing of what the new leader wrote was kept, or arrived.
            world.kill(name, power=True)
        let_pass(world, 0.1)
    until(world, lambda: old.replica.core.role != LEADER, "the older leader gives up")
    world.network.heal()
    world.stay_dead.discard(others[0])
    world.revive(others[0])
    leader_of(world, newer_than=old.replica.core.term)
    let_pass(world, 5)


def late_word_to_take_over(seed: int) -> None:
    """The word to take over is late: when it arrives the leader has just given the handing over up. Nobody else has
    heard of that, so it still wins an election, and the leader must not take its lease for valid (trap 32)."""
    world = World(seed, quiet(lease_reads=True, hold=True))
    leader = leader_of(world)
    let_pass(world, 1.0)
    core = leader.replica.core
    target, third = (name for name in world.names if name != leader.name)
    world.network.cut([(leader.name, target)])
    assert world.transfer(leader, target)
    transfer = core.transfer_state
    assert transfer is not None and transfer.told
    let_pass(world, (transfer.deadline - leader.local()) - 0.02)
    world.network.cut([*between([leader.name], [third]), (target, leader.name)])
    world.network.mend([(leader.name, target)])
    other = leader_of(world, newer_than=core.term)
    assert other.name == target and core.role == LEADER
    until(world, lambda: core.transfer_state is None, "the handing over is given up")
    answers = read(world, leader)
    world.network.heal()
    let_pass(world, 5)
    assert answers == [None]


def rests_without_a_leader(seed: int) -> None:
    """A member with writes on their way to a leader that is gone must wait for the next, not look for it without pause:
    its thread would keep the host's interpreter busy for nothing."""
    world = World(seed, quiet())
    leader = leader_of(world)
    process = next(other for other in world.alive() if other is not leader)
    world.write(process, 3)
    let_pass(world, 0.0005)
    for name in world.names:
        if name != process.name:
            world.stay_dead.add(name)
            world.kill(name)
    let_pass(world, 10)
    before = world.timeline.count
    let_pass(world, 60)
    assert world.timeline.count - before < 1000, f"{world.timeline.count - before} events in a minute, all for nothing"


def falls_due_in_an_idle_group(seed: int) -> None:
    """A key's time to live ends while nothing else happens: one turn sees to it, not hundreds; and while a new leader
    may not yet act on it, none."""
    world = World(seed, quiet())
    leader = leader_of(world)
    for number in range(20):
        leader.propose(commands.put, (f"t{number}", b"x", False, 10**8 * (number + 1)), lambda reply: None)
    let_pass(world, 0.05)
    before = world.timeline.count
    let_pass(world, 3)
    assert len(world.truth.machine.store) == 0
    busy = world.timeline.count - before
    assert busy < 1500, f"{busy} events"
    leader.propose(commands.put, ("late", b"x", False, 2 * 10**8), lambda reply: None)
    let_pass(world, 0.05)
    world.network.cut(between(world.names, world.names))
    let_pass(world, 1)
    assert world.timeline.count - before < busy + 1000


def a_watch_after_a_restart(seed: int) -> None:
    """A member starts from a snapshot; a watch that begins before anything is applied is told what is there once."""
    knobs = quiet()
    knobs.options["snapshot_entries"] = 5
    world = World(seed, knobs)
    process = leader_of(world)
    world.write(process, 12)
    let_pass(world, 1)
    world.kill(process.name, power=False)
    world.revive(process.name)
    process = world.process(process.name)
    assert process.replica.machine.store.revision > 0
    watch = Watch("", conflate=False, timeout=None, decode=lambda change: change, notify=None, on_close=lambda w: None)
    _begin_watch(process.replica, watch, None, True)
    leader = leader_of(world)
    world.write(leader, 1)
    let_pass(world, 3)
    told = []
    while (change := watch.take()) is not None:
        told.append(change.revision)
    assert told == sorted(set(told)), f"revisions {told}"


def power_lost_after_a_lonely_mark(seed: int) -> None:
    """A mark, never synced, is the last record of a segment; the next segment is begun, and power is lost. What follows
    must not make the lost mark look like corruption."""
    world = World(seed, quiet(sync_time=0.001))
    leader = leader_of(world)
    world.write(leader, 3)
    let_pass(world, 1)
    # More than fits in what is left of the segment.
    world.write(leader, 300)
    let_pass(world, 0.5)
    for _ in range(3):
        for name in world.names:
            world.kill(name, power=True)
        until(world, lambda: len(world.alive()) == len(world.names), "all are back")
        leader = leader_of(world)
        let_pass(world, 1)
        world.write(leader, 300)
        let_pass(world, 0.004)


def late_word_when_the_lease_is_back(seed: int) -> None:
    """The word to take over is so late that the leader has its lease again. It names the end of a log that has grown
    since, so it means nothing any more (trap 32)."""
    world = World(seed, quiet(lease_reads=True))
    leader = leader_of(world)
    let_pass(world, 1.0)
    core = leader.replica.core
    target = next(name for name in world.names if name != leader.name)
    world.network.cut([(leader.name, target)])
    word = TimeoutNow(core.term, core.log.last_index)
    assert world.transfer(leader, target)
    until(world, lambda: core.transfer_state is None, "the handing over is given up")
    world.network.heal()
    follower = world.process(target).replica.core
    until(world, lambda: core.lease_until() > leader.local(), "the lease is back")
    until(world, lambda: follower.log.last_index == core.log.last_index, "the target has the whole log")
    world.network.send(leader.name, target, encode(leader.replica.identity, target, word))
    let_pass(world, 1.0)
    assert core.role == LEADER and not follower.term > core.term, "an old word to take over is obeyed"


def a_leader_whose_disk_hangs(seed: int) -> None:
    """Its heartbeats go on, so nobody else can end this: it must let another lead (trap 45)."""
    world = World(seed, quiet(sync_time=0.001))
    leader = leader_of(world)
    let_pass(world, 1.0)
    world.stall(leader.name, 100.0)
    world.write(leader, 3)
    assert leader_of(world, newer_than=leader.replica.core.term).name != leader.name


def a_question_gets_lost(seed: int) -> None:
    """A follower's question for a read never arrives, and nobody there wants to read anything else: it asks again."""
    world = World(seed, quiet())
    leader = leader_of(world)
    let_pass(world, 1.0)
    asker = next(process for process in world.alive() if process is not leader)
    world.network.cut([(asker.name, leader.name)])
    answers = read(world, asker)
    let_pass(world, 0.1)
    world.network.heal()
    let_pass(world, 3.0)
    assert answers == [None], "a read is never answered"


def the_membership_changes_one_step_at_a_time(seed: int) -> None:
    """A leader has heard of one member after the other. It writes down what it learned of the second only when what it
    learned of the first has committed (trap 22)."""
    core = Core("a", 7, Settings(), random.Random(seed), Start(membership_of(dict.fromkeys("abcde", ""))), 0.0)

    def durable() -> None:
        for persist in persists(core.take()):
            core.persisted(core.now, persist.seq)

    def hears(sender: str, message: Message) -> None:
        core.step(core.now, sender, 1 + ord(sender), message)

    core.tick(9.0)
    for pre in (True, False):
        for voter in "bc":
            hears(voter, VoteResponse(1, True, pre))
        durable()
    assert core.role == LEADER
    core.propose(9.0, [encode_entry(b"")])
    durable()
    for index, stranger in ((1, "d"), (2, "e")):
        hears(stranger, HeartbeatResponse(1, 1, 0))
        for sender in "bc":
            hears(sender, AppendResponse(1, True, index, 1))
        durable()
    assert core.commit == 2 and core.history.latest_index == 3, f"{core.history.latest_index}, committed {core.commit}"


def a_session_comes_and_goes_within_a_snapshot(seed: int) -> None:
    """What a member wrote first has reached the leader, with the opening of its session; it hears of none of it, falls
    silent until its session is over, and a snapshot takes it past all that. Its callers must be told, and it must be
    able to write again, though the leader stays the same."""
    knobs = quiet()
    knobs.options |= {"snapshot_entries": 10, "max_batch_bytes": 300, "session_ttl": 6.0}
    world = World(seed, knobs)
    leader = leader_of(world)
    let_pass(world, 1)
    behind = next(name for name in world.names if name != leader.name)
    others = [name for name in world.names if name != behind]
    world.stay_dead.add(behind)
    world.kill(behind, power=False)
    # Its older session would have to be replaced by name, and it is not going to hear of it.
    until(world, lambda: not world.truth.machine.session_of(behind), "its older session is over")
    world.stay_dead.discard(behind)
    world.network.cut([(name, behind) for name in others if name != leader.name])
    world.revive(behind)
    process = world.process(behind)
    until(world, lambda: process.replica.core.leader == leader.name, "it follows")
    # Asked to open its session, the leader does; the member hears nothing any more.
    world.network.cut([(leader.name, behind)])
    replies: list[Any] = []
    process.propose(commands.put, ("k", b"1"), replies.append)
    until(world, lambda: world.truth.machine.store.get("k"), "it is written")
    world.network.cut(between([behind], others))
    assert not process.replica.session_open and not replies
    for _ in range(40):
        world.write(leader, 3)
        let_pass(world, 0.25)
    assert not any(session.owner == behind for session in world.truth.machine.sessions.values())
    term = leader.replica.core.term
    world.network.heal()
    until(world, lambda: process.replica.counters.snapshots_installed, "it is taken past all that")
    until(world, lambda: replies, "its caller is told")
    process.propose(commands.put, ("k", b"2"), replies.append)
    until(world, lambda: len(replies) == 2, "it writes again")
    assert isinstance(replies[0], OutcomeUnknown) and replies[1][0] == 0
    assert leader.replica.core.term == term


def a_watch_ahead_of_its_member(seed: int) -> None:
    """Whoever watched elsewhere goes on at a member that is far behind. A snapshot takes that member past a delete of a
    key it never had, so it has nothing to tell of that; the watch must not go on as if nothing had been missed."""
    knobs = quiet()
    knobs.options |= {"snapshot_entries": 10, "max_batch_bytes": 300}
    world = World(seed, knobs)
    leader = leader_of(world)
    let_pass(world, 1)
    behind = next(name for name in world.names if name != leader.name)
    world.network.cut(between([behind], [name for name in world.names if name != behind]))
    leader.propose(commands.put, ("k", b"there"), lambda reply: None)
    let_pass(world, 0.5)
    known = leader.replica.machine.store.revision
    process = world.process(behind)
    assert process.replica.machine.store.revision < known
    watch = Watch("k", conflate=False, timeout=None, decode=lambda change: change, notify=None, on_close=lambda w: None)
    _begin_watch(process.replica, watch, known + 1, False)
    leader.propose(commands.delete, ("k",), lambda reply: None)
    for _ in range(20):
        world.write(leader, 3)
        let_pass(world, 0.2)
    world.network.heal()
    until(world, lambda: process.replica.counters.snapshots_installed, "it is taken past all that")
    let_pass(world, 1)
    told = []
    try:
        while (change := watch.take()) is not None:
            told.append(change)
    except Compacted:
        return
    raise AssertionError(f"told {told} and no more, while k is gone")


def refusals_do_not_multiply(seed: int) -> None:
    """Appends overtake each other on their way to a member that lags, so many are refused. An answer to something older
    must not begin the next attempt, or each refusal would cost another window of appends."""
    knobs = quiet()
    knobs.conditions.in_order, knobs.conditions.jitter, knobs.conditions.delay = False, 0.05, 0.005
    knobs.options |= {"max_batch_bytes": 300, "max_append_bytes": 300, "max_inflight_messages": 64}
    world = World(seed, knobs)
    leader = leader_of(world)
    let_pass(world, 1.0)
    name = next(name for name in world.names if name != leader.name)
    world.network.cut(between([name], [other for other in world.names if other != name]))
    for _ in range(100):
        world.write(leader, 3)
        let_pass(world, 0.01)
    let_pass(world, 1.0)
    world.network.heal()
    before, machine = world.network.sent, world.process(name).replica.machine
    until(world, lambda: machine.applied_index == world.truth.committed, "it has caught up")
    sent = world.network.sent - before
    assert sent < 2800, f"{sent} messages to bring a member up to date by about a hundred batches"


STORIES = [
    a_session_comes_and_goes_within_a_snapshot,
    a_watch_ahead_of_its_member,
    come_and_gone,
    a_damaged_member_promises_nothing,
    longest_log_in_the_oldest_term,
    late_word_to_take_over,
    rests_without_a_leader,
    falls_due_in_an_idle_group,
    a_watch_after_a_restart,
    power_lost_after_a_lonely_mark,
    late_word_when_the_lease_is_back,
    a_leader_whose_disk_hangs,
    a_question_gets_lost,
    the_membership_changes_one_step_at_a_time,
    refusals_do_not_multiply,
]
