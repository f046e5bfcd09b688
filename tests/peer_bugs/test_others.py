"""Bugs and traps of Consul, Kubernetes, Hazelcast and PySyncObj that must not happen here: one test for each.

What must not live here: what else locks and elections do (`tests/node`).
"""

from __future__ import annotations

import threading
import time

import pytest

import coord
from coord.machine import commands, replies
from coord.testing import Group
from peer_bugs.lab import SECOND, TTL, Bench, followers, must, settle

# ---------------------------------------------------------------------------------------------------------------------
# Consul.


@pytest.mark.parametrize("issue", [1843, 9788, 18271])
def test_the_holder_does_not_notice_for_minutes(issue: int) -> None:
    with Group(virtual=True, seed=issue) as group:
        settle(group)
        lone = followers(group)[0]
        hold = must(lone.lock("x").acquire())
        began = group.now
        group.partition([lone])
        group.wait_until(lambda: not hold.held(), 60)
        assert group.now - began <= TTL


def test_4902_the_handle_says_it_holds_after_the_loss(group: Group) -> None:
    lone = followers(group)[0]
    lock = lone.lock("x", fenced=True)
    must(lock.acquire())
    group.lose_lock_now(lone)
    group.run(0.1)
    with pytest.raises(coord.NotHeld):
        lock.release()
    assert must(lock.acquire(timeout=30)).held()


@pytest.mark.parametrize("issue", [912, 5437])
def test_an_election_ends_all_sessions(issue: int) -> None:
    """The first renewal that failed was taken for the end."""
    with Group(virtual=True, seed=issue) as group:
        settle(group)
        lone = followers(group)[0]
        hold = must(lone.lock("x").acquire())
        for _ in range(3):
            leader = group.leader()
            if leader is lone:
                leader.cluster.transfer_leadership()
            else:
                group.kill(leader)
                group.run(8.0)
                group.restart(leader.name)
            group.run(8.0)
            assert hold.held()


def test_4508_a_crash_costs_twice_the_ttl_and_the_delay_and_a_retry(group: Group) -> None:
    lone, other = followers(group)
    must(lone.lock("x", lock_delay=5.0).acquire())
    began = group.now
    group.kill(lone)
    must(other.lock("x").acquire(timeout=120))
    assert group.now - began <= TTL + 5.0 + 2.0


def test_a_clean_end_of_a_session_is_followed_by_the_delay(bench: Bench) -> None:
    bench.acquire(1, delay=60 * SECOND)
    waiting = bench.acquire(2)
    bench.apply(commands.close_session(1, bench.next(1), 0))
    assert bench.token(2, waiting) > 0


def test_430_the_old_holder_is_locked_out_too(bench: Bench) -> None:
    """It may ask to reclaim what it lost; with another token, so that what it did before is told apart."""
    first = bench.acquire(1, delay=60 * SECOND)
    token = bench.token(1, first)
    waiting = bench.acquire(2)
    bench.open(3, "a")
    reclaimed = bench.acquire(3, reclaim=True)
    assert bench.token(3, reclaimed) > token
    assert bench.token(2, waiting) == 0


def test_the_delay_is_forgotten_by_the_next_leader(group: Group) -> None:
    lone, other = followers(group)
    must(lone.lock("x", lock_delay=30.0).acquire())
    group.kill(lone)
    group.wait_until(lambda: group.leader().lock("x").describe().delay > 0, 60, "the delay")
    began = group.now
    group.leader().cluster.transfer_leadership(other.name)
    must(other.lock("x").acquire(timeout=120))
    assert 28.0 <= group.now - began <= 34.0


def test_a_watch_goes_back(group: Group) -> None:
    """An index could fall; here revisions rise, whichever member is asked."""
    revisions = [group[name].config.put("k", name) for name in [*group.names, *group.names]]
    assert revisions == sorted(set(revisions))


# ---------------------------------------------------------------------------------------------------------------------
# Kubernetes.


def test_23731_nobody_is_told_that_it_leads_no_more(group: Group) -> None:
    lone = followers(group)[0]
    election = lone.election("e")
    told: list[str] = []
    election.on_elected(lambda leadership: told.append("elected"))
    election.on_revoked(lambda leadership, reason: told.append(f"revoked: {reason}"))
    election.volunteer()
    group.wait_until(lambda: told, 10)
    group.partition([lone])
    group.run(TTL)
    assert len(told) == 2, told
    assert told[0] == "elected"
    assert told[1].startswith("revoked")


def test_on_stopped_leading_is_called_though_it_never_led(group: Group) -> None:
    lone, other = followers(group)
    first, second = other.election("e"), lone.election("e")
    first.volunteer()
    group.wait_until(lambda: first.is_leader, 10)
    told: list[str] = []
    second.on_revoked(lambda leadership, reason: told.append(reason))
    second.volunteer()
    group.run(1.0)
    second.close()
    assert told == []


@pytest.mark.parametrize("issue", [44887, 125761])
def test_wall_clocks_that_jump_make_two_leaders(issue: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Group(virtual=True, seed=issue) as group:
        elections = {name: group[name].election("e") for name in group.names}
        for election in elections.values():
            election.volunteer()
        group.wait_until(lambda: any(election.is_leader for election in elections.values()), 60)
        leading = [name for name in group.names if elections[name].is_leader]
        for jump in (86_400.0, -86_400.0):
            now = time.time() + jump
            monkeypatch.setattr(time, "time", lambda now=now: now)
            group.run(30.0)
            assert [name for name in group.names if elections[name].is_leader] == leading


def test_65090_a_request_hangs_without_a_timeout(group: Group) -> None:
    """Its leader takes it and never answers."""
    leader, lone = group.leader(), followers(group)[0]
    group.cut(leader, lone)
    began = group.now
    assert lone.lock("x").acquire(timeout=1) is None
    assert group.now - began <= 1.1


@pytest.mark.parametrize("issue", [728, 139991])
def test_release_on_cancel_frees_the_lease_while_the_work_runs(issue: int) -> None:
    with Group(virtual=True, seed=issue) as group:
        settle(group)
        lone, other = followers(group)
        election, successor = lone.election("e"), other.election("e")
        order: list[str] = []
        election.on_elected(lambda leadership: order.append("elected"))

        def stop_work(leadership: coord.Leadership, reason: str) -> None:
            group.run(5.0)
            order.append("work has stopped")

        election.on_revoked(stop_work)
        successor.on_elected(lambda leadership: order.append("successor"))
        election.volunteer()
        group.wait_until(lambda: order, 10)
        successor.volunteer()
        group.run(1.0)
        election.resign()
        group.wait_until(lambda: successor.is_leader, 20)
        group.run(0.1)
        assert order == ["elected", "work has stopped", "successor"]


def test_is_leader_ignores_time(group: Group) -> None:
    lone = followers(group)[0]
    election = lone.election("e")
    election.volunteer()
    group.wait_until(lambda: election.is_leader, 10)
    group.pause(lone)
    group.run(TTL)
    assert not election.is_leader, "nothing has run in it since, but the clock has"


def test_fresh_candidates_wait_for_a_whole_lease(group: Group) -> None:
    lone, other = followers(group)
    first, second = lone.election("e"), other.election("e")
    first.volunteer()
    group.wait_until(lambda: first.is_leader, 10)
    began = group.now
    first.resign()
    second.volunteer()
    group.wait_until(lambda: second.is_leader, 10)
    assert group.now - began < 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Hazelcast, PySyncObj.


def test_jepsen_3_8_3_both_sides_of_a_partition_grant_the_lock(group: Group) -> None:
    lone, other = followers(group)
    group.partition([lone])
    assert lone.lock("x").acquire(timeout=5) is None
    must(other.lock("x").acquire(timeout=5))


def test_pr_17697_a_request_that_raises_leaves_something_behind(group: Group) -> None:
    lone = followers(group)[0]
    must(group.leader().lock("x", permits=3).acquire())
    before = len(lone._running_loop().replica.requests)
    with pytest.raises(coord.ConfigurationError, match=r"permits=2.*permits=3"):
        lone.lock("x", permits=2).acquire()
    assert len(lone._running_loop().replica.requests) == before == 0
    assert len(lone.lock("x", permits=3).describe().waiting) == 0


def test_898_two_threads_that_ask_first_make_two_sessions() -> None:
    node = coord.Node(registry=None)
    with node:
        holds: list[coord.Hold | None] = []
        threads = [
            threading.Thread(target=lambda number=number: holds.append(node.lock(f"lock {number}").acquire()))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len({must(hold)._request.session for hold in holds}) == 1


def test_a_members_fast_clock_frees_everybodys_locks() -> None:
    """PySyncObj puts the caller's wall clock into its commands. Here no member's clock is in anything."""
    bench = Bench()
    bench.open(1, "a")
    bench.open(2, "b")
    held = bench.acquire(1, delay=10 * SECOND)
    token = bench.token(1, held)
    waiting = bench.acquire(2)
    # A leader with a clock far ahead: time alone ends no hold.
    bench.time = 10**6 * SECOND
    bench.apply(commands.tick())
    assert (bench.token(1, held), bench.token(2, waiting)) == (token, 0)


def test_108_two_hold_a_lock_while_the_group_starts() -> None:
    with Group(virtual=True, seed=108) as group:
        locks = [group[name].lock("x") for name in group.names]
        holds = [lock.acquire(timeout=5) for lock in locks]
        assert len([hold for hold in holds if hold is not None]) == 1


def test_is_acquired_reads_an_old_replica(group: Group) -> None:
    """What a holder believes is not read from a copy, but counted from what a quorum has confirmed."""
    lone, other = followers(group)
    hold = must(lone.lock("x", fenced=True).acquire())
    group.partition([lone])
    must(other.lock("x", fenced=True).acquire(timeout=60))
    copy = lone._running_loop().replica.machine.locks
    assert copy.hold(hold._request.session, hold._request.id) is not None, "its copy still says so"
    assert not hold.held()


def test_hazelcast_a_crash_holds_locks_for_five_minutes(group: Group) -> None:
    lone, other = followers(group)
    must(lone.lock("x", fenced=True).acquire())
    began = group.now
    group.kill(lone)
    must(other.lock("x").acquire(timeout=60))
    assert group.now - began <= TTL + 2.0


def test_a_thread_may_release_what_another_acquired() -> None:
    """Ownership by thread breaks pools; the handle is the owner."""
    with coord.Node(registry=None) as node:
        lock = node.lock("x")
        must(lock.acquire())
        thread = threading.Thread(target=lock.release)
        thread.start()
        thread.join(20)
        assert must(node.lock("x").acquire(timeout=5)).held()


def test_a_request_that_is_not_answered_is_repeated_and_done_twice(bench: Bench) -> None:
    request = bench.acquire(1)
    token = bench.token(1, request)
    assert bench.release(1, request, token)[0] == replies.OK
    assert bench.release(1, request, token) == (replies.NOT_HELD,)
