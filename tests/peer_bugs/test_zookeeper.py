"""Bugs and traps of ZooKeeper, Curator and kazoo that must not happen here: one test for each.

What must not live here: what else locks and sessions do (`tests/node`).
"""

from __future__ import annotations

import threading

import pytest

import coord
from coord.machine import commands, replies
from coord.testing import Group
from node.group import QUICK
from peer_bugs.lab import TTL, Bench, followers, must

# ---------------------------------------------------------------------------------------------------------------------
# ZooKeeper.


def test_a_client_learns_that_it_has_expired_only_when_it_is_connected_again(group: Group) -> None:
    lone = followers(group)[0]
    hold = must(lone.lock("x").acquire())
    group.partition([lone])
    group.run(TTL)
    assert not hold.held(), "by the clock, without a word from anybody"
    assert lone.session.state == "SUSPENDED"


def test_zookeeper_4508_it_expires_itself_later_than_the_server_does(group: Group) -> None:
    """At 4/3 of the timeout, counted from the last answer; here it is over before the group may end it."""
    lone, other = followers(group)
    hold = must(lone.lock("x", fenced=True).acquire())
    overlaps: list[float] = []
    group.partition([lone])
    machine = other._running_loop().replica.machine
    id = lone.session.id

    def look() -> bool:
        if not machine.has_session(id) and hold.held():
            overlaps.append(group.now)
        return not machine.has_session(id)

    group.wait_until(look, 60)
    assert overlaps == []
    assert not hold.held()


def test_connection_loss_may_have_created_a_node_that_nobody_finds_again(bench: Bench) -> None:
    """A repeated request is answered as the first one was, and takes no second place."""
    request = bench.next(1)
    again = commands.acquire(1, request, 0, "x", False, 1, 0, True, 0, False, b"")
    granted = bench.apply(again)
    assert granted[0] == replies.GRANTED
    assert bench.apply(again) == granted
    assert (bench.holders(), bench.waiting()) == ([1], [])


def test_zookeeper_5010_ephemeral_nodes_survive_on_followers_after_the_leaders_crash(group: Group) -> None:
    lone, other = followers(group)
    leader = group.leader()
    lone.config.put("here", 1, ephemeral=True)
    group.partition([lone])
    group.wait_until(lambda: not _has_session(leader, lone.session.id), 60)
    group.kill(leader)
    group.restart(leader.name)
    group.heal()
    group.wait_converged(60)
    assert ["here" in group[name].config for name in group.names] == [False] * 3
    assert other.config.get("here", linearizable=True) is None


def test_an_expired_client_still_sees_its_ephemeral_node_on_another_server(group: Group) -> None:
    lone = followers(group)[0]
    lone.config.put("here", 1, ephemeral=True)
    group.lose_lock_now(lone)
    assert [group[name].config.get("here", linearizable=True) for name in group.names] == [None] * 3


def test_a_watch_fires_once_and_misses_what_comes_before_the_next(group: Group) -> None:
    config = group.leader().config
    watch = config.watch("k", initial=False, conflate=False)
    for number in range(5):
        config["k"] = number
        del config["k"]
    seen = [(event.kind, event.value) for _, event in zip(range(10), watch, strict=False)]
    assert seen == [pair for number in range(5) for pair in (("put", number), ("delete", None))]


def test_the_sequence_counter_has_32_bits_and_wraps(bench: Bench) -> None:
    bench.machine.applied_index = (1 << 33) - 1
    first = bench.acquire(1)
    token = bench.token(1, first)
    bench.release(1, first, token)
    second = bench.acquire(1)
    assert 1 << 33 < token < bench.token(1, second) < 1 << 63


# ---------------------------------------------------------------------------------------------------------------------
# Curator.


@pytest.mark.parametrize("issue", [444, 498, 504, 620, 652, 653, 696])
def test_curator_leader_latch_has_two_leaders(issue: int) -> None:
    """Again and again, by callbacks that race over whose node is whose. Here who leads is one record in one state."""
    with Group(virtual=True, seed=issue) as group:
        elections = {name: group[name].election("e") for name in group.names}
        for election in elections.values():
            election.volunteer()
        twice: list[float] = []

        def look() -> None:
            leading = [name for name in group.names if elections[name].is_leader]
            if len(leading) > 1:
                twice.append(group.now)

        for round_number in range(6):
            group.wait_until(lambda: any(election.is_leader for election in elections.values()), 90)
            lone = next(name for name in group.names if elections[name].is_leader)
            if round_number % 2:
                group.partition([lone])
            else:
                group.lose_lock_now(lone)
            for _ in range(200):
                group.run(0.1)
                look()
            group.heal()
        assert twice == []


def test_ownership_is_not_cleared_unless_one_listens_to_the_connection(group: Group) -> None:
    lone = followers(group)[0]
    election, lock = lone.election("e"), lone.lock("x")
    election.volunteer()
    group.wait_until(lambda: election.is_leader, 10)
    hold = must(lock.acquire())
    group.lose_lock_now(lone)
    group.run(0.1)
    assert not hold.held()
    assert must(lock.acquire(timeout=60)).held(), "the handle is free for another acquire"


def test_not_leader_is_not_fired_on_close(group: Group) -> None:
    lone = followers(group)[0]
    election = lone.election("e")
    told: list[str] = []
    election.on_elected(lambda leadership: told.append("elected"))
    election.on_revoked(lambda leadership, reason: told.append("revoked"))
    election.volunteer()
    group.wait_until(lambda: told, 10)
    election.close()
    assert told == ["elected", "revoked"]


# ---------------------------------------------------------------------------------------------------------------------
# kazoo.


def test_2_is_acquired_stays_true_after_the_session_is_gone(group: Group) -> None:
    lone, other = followers(group)
    hold = must(lone.lock("x", fenced=True).acquire())
    group.partition([lone])
    newer = must(other.lock("x", fenced=True).acquire(timeout=60))
    assert (hold.held(), newer.held()) == (False, True)


def test_acquire_with_a_timeout_of_one_second_takes_longer(group: Group) -> None:
    """It began to count anew at each wake-up: 3.40 s."""
    lone, other = followers(group)
    must(other.lock("x").acquire())
    for count in range(5):
        # Others come and go in front of it.
        group.after(0.2 * count, lambda: other.lock("x", priority=5).acquire(timeout=0.1))
    began = group.now
    assert lone.lock("x").acquire(timeout=1) is None
    assert group.now - began == pytest.approx(1.0, abs=0.11)


def test_run_does_not_interrupt_its_function_on_loss(group: Group) -> None:
    lone = followers(group)[0]
    election = lone.election("e")
    seen: list[tuple[bool, bool]] = []

    def work(leadership: coord.Leadership) -> str:
        if not seen:
            group.lose_lock_now(lone)
            group.run(0.1)
        seen.append((leadership.held(), leadership.stopping.is_set()))
        leadership.check()
        return "done"

    assert election.run(work) == "done"
    assert seen == [(False, True), (True, False)], "it is told, and elected again after the loss"


def test_282_acquire_hangs_after_the_connection_was_lost(group: Group) -> None:
    lone = followers(group)[0]
    group.partition([lone])
    group.run(TTL)
    began = group.now
    assert lone.lock("x").acquire(timeout=5) is None
    assert group.now - began <= 5.1
    group.heal()
    must(lone.lock("x").acquire(timeout=30))


def test_482_acquire_hangs_on_a_closed_client() -> None:
    node = coord.Node(options=QUICK, registry=None).start()
    first = must(node.lock("x").acquire())
    problems: list[BaseException] = []

    def wait() -> None:
        try:
            node.lock("x").acquire()
        except coord.CoordError as error:
            problems.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    machine = node._running_loop().replica.machine
    while not machine.locks.queue("x"):
        thread.join(0.01)
    node.stop()
    thread.join(20)
    assert [type(problem) for problem in problems] == [coord.ClosedError]
    with pytest.raises(coord.ClosedError):
        node.lock("x").acquire()
    assert first.lost.is_set()


def test_649_a_writer_and_a_reader_wait_for_each_other(bench: Bench) -> None:
    reader = bench.acquire(1, shared=True)
    writer = bench.acquire(2)
    late = bench.acquire(1, shared=True)
    bench.release(1, reader, bench.token(1, reader))
    assert bench.holders() == [2]
    bench.release(2, writer, bench.token(2, writer))
    assert bench.token(1, late) > 0


def test_pr_170_a_lock_is_taken_for_held_after_a_suspension_in_which_it_was_lost(group: Group) -> None:
    lone, other = followers(group)
    hold = must(lone.lock("x", fenced=True).acquire())
    group.partition([lone])
    newer = must(other.lock("x", fenced=True).acquire(timeout=60))
    newer.release()
    group.heal()
    group.run(10.0)
    assert (hold.held(), hold.lost.is_set()) == (False, True), "lost is lost, also when nobody has it now"


def test_enter_ignores_that_acquire_failed(group: Group) -> None:
    lone = followers(group)[0]
    group.after(3.0, lone.stop)
    must(group.leader().lock("x").acquire())
    entered = False
    with pytest.raises(coord.ClosedError), lone.lock("x"):
        entered = True
    assert not entered


def test_python_etcd_181_a_waiter_whose_session_ends_waits_for_ever(group: Group) -> None:
    lone, other = followers(group)
    hold = must(other.lock("x").acquire())
    group.after(1.0, group.lose_lock_now, lone)
    group.after(5.0, hold.release)
    began = group.now
    must(lone.lock("x").acquire(timeout=60))
    assert group.now - began < 8.0, "it stood in the queue again, in its next session"


def _has_session(node: coord.Node, session: int) -> bool:
    return node._running_loop().replica.machine.has_session(session)
