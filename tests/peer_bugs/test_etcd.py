"""Bugs of etcd's leases, locks and elections, and of its watches, that must not happen here: one test for each.

Numbers are those of etcd's issues. What must not live here: what else locks do (`tests/node`, `tests/machine`).
"""

from __future__ import annotations

import pytest

import coord
from coord.duties import Duties
from coord.machine import commands, replies
from coord.testing import Group
from peer_bugs.lab import SECOND, TTL, Bench, acquire, followers, must, settle


def test_jepsen_3_4_3_a_lock_that_is_lost_lets_its_old_holder_write(group: Group) -> None:
    """Locks did not exclude, and nothing else did. Here the group itself refuses the write of a holder that is one no
    more, and so does every resource that compares tokens."""
    paused, other = followers(group)
    hold = must(paused.lock("x", fenced=True).acquire())
    guard = coord.FenceGuard()
    guard.check("x", hold.token)
    stale, compare = hold.token, hold._compare()
    group.pause(paused)
    newer = must(other.lock("x", fenced=True).acquire(timeout=60))
    guard.check("x", newer.token)
    assert newer.token > stale
    assert not guard.accept("x", stale)
    group.resume(paused)
    # As if it had checked just before it was stopped, and goes on now.
    transaction = paused.config.transaction()
    transaction._compares.append(compare)
    transaction.put("protected", "by the old holder")
    with pytest.raises(coord.LockLost, match="nothing was changed"):
        transaction.commit()
    assert "protected" not in other.config


def test_11456_a_lock_is_granted_to_one_whose_lease_died_in_the_queue(bench: Bench) -> None:
    held = bench.acquire(1)
    waiting = bench.acquire(2)
    bench.expire(2)
    assert bench.release(1, held, bench.token(1, held))[0] == replies.OK
    assert bench.holders() == []
    assert bench.token(2, waiting) == 0


def test_9921_a_session_that_ends_while_it_waits_leaves_its_place_in_the_queue(bench: Bench) -> None:
    bench.open(3, "c")
    bench.acquire(1)
    bench.acquire(2)
    bench.acquire(3)
    bench.expire(2)
    assert bench.waiting() == [3]
    bench.expire(1)
    assert (bench.holders(), bench.waiting()) == ([3], [])


def test_16221_a_shared_lock_is_granted_to_a_dead_session(bench: Bench) -> None:
    held = bench.acquire(1)
    bench.acquire(2, shared=True)
    bench.expire(2)
    bench.release(1, held, bench.token(1, held))
    assert bench.holders() == []


def test_22082_a_late_unlock_releases_the_newer_hold_of_the_same_session(bench: Bench) -> None:
    first = bench.acquire(1)
    old = bench.token(1, first)
    sequence = bench.next(1)
    late = commands.release(1, sequence, 0, "x", first, old, "")
    bench.apply(late)
    second = bench.acquire(1)
    token = bench.token(1, second)
    bench.apply(late)
    assert bench.token(1, second) == token, "a repeated release is answered from memory"
    assert bench.release(1, first, token) == (replies.NOT_HELD,), "another request's token"
    assert bench.release(1, second, old) == (replies.NOT_HELD,), "another hold's token"
    assert bench.token(1, second) == token


def test_22123_a_release_without_an_answer_is_forgotten(group: Group) -> None:
    """What was not acknowledged goes on in the background until it is."""
    lone, other = followers(group)
    lock = lone.lock("x")
    must(lock.acquire())
    group.partition([lone])
    group.after(5.0, group.heal)
    lone.default_timeout = 1.0
    with pytest.raises(coord.OutcomeUnknown, match="goes on in the background"):
        lock.release()
    began = group.now
    must(other.lock("x").acquire(timeout=30))
    assert group.now - began < TTL, "it was released, not waited out"


def test_21128_a_request_that_fails_stays_in_the_queue(group: Group) -> None:
    lone, other = followers(group)
    hold = must(other.lock("x").acquire())
    assert lone.lock("x").acquire(timeout=1) is None
    group.partition([lone])
    assert lone.lock("x").acquire(timeout=1) is None
    group.heal()
    group.run(5.0)
    assert other.lock("x").describe().waiting == ()
    hold.release()
    assert other.lock("x").describe().holders == ()


def test_6127_nobody_tells_the_holder_that_its_lock_is_lost(group: Group) -> None:
    lone = followers(group)[0]
    hold = must(lone.lock("x").acquire())
    told: list[str] = []
    hold.on_lost(told.append)
    group.lose_lock_now(lone)
    group.wait_until(hold.lost.is_set, 10)
    group.run(0.1)
    assert (told, hold.held()) == (["expired"], False)


def test_15247_a_leader_that_was_deposed_ends_sessions(bench: Bench) -> None:
    """Its proposal may be committed by its successor: then it says which term it is of, and does nothing."""
    bench.acquire(1)
    bench.term = 7
    bench.apply(commands.expire_session(1, 6))
    assert bench.machine.has_session(1)
    bench.apply(commands.expire_session(1, 7))
    assert not bench.machine.has_session(1)


def test_12528_a_leader_that_stood_still_takes_that_for_silence_of_others(group: Group) -> None:
    """The time for which it stood still counts for nobody."""
    leader = group.leader()
    ids = {node.name: node.session.id for node in followers(group)}
    group.pause(leader)
    group.run(25.0)
    group.resume(leader)
    group.run(5.0)
    assert {node.name: group[node.name].session.id for node in map(group.__getitem__, ids)} == ids


def test_15247_a_leader_that_was_deposed_acknowledges_renewals() -> None:
    """Without a quorum that followed it since, it acknowledges nothing; so nothing it told outlives its successor."""
    with Group(virtual=True, members=5, seed=5) as group:
        settle(group)
        leader, follower = group.leader(), followers(group)[0]
        group.partition([leader, follower])
        # Both still believe in each other: renewals arrive, but no majority confirms them.
        confirmed = follower._running_loop().replica.lease.confirmed_at
        group.run(3.0)
        assert follower._running_loop().replica.lease.confirmed_at - confirmed <= 1.0
        group.run(TTL)
        assert [node.session.remaining() for node in (leader, follower)] == [0.0, 0.0]


def test_pr_20616_a_renewal_is_acknowledged_though_the_lease_is_revoked(group: Group) -> None:
    """From the proposal of an end to its being applied a renewal is neither acknowledged nor refused."""
    leader, lone = group.leader(), followers(group)[0]
    replica = leader._running_loop().replica
    duties = replica._duties
    assert isinstance(duties, Duties)
    answers: list[bool] = []
    duties._expiring.add(lone.session.id)
    group.run(0.0)
    leader._running_loop().call(lambda: duties.renew(lone.session.id, answers.append), 5.0)
    group.run(1.0)
    assert answers == []
    duties._expiring.clear()
    leader._running_loop().call(lambda: duties.renew(lone.session.id, answers.append), 5.0)
    group.run(1.0)
    assert answers == [True]


def test_2660_leases_are_lost_while_there_is_no_leader(group: Group) -> None:
    holds = {name: must(group[name].lock(f"lock of {name}").acquire()) for name in group.names}
    group.partition(*group.names)
    group.run(30.0)
    group.heal()
    group.wait_until(lambda: all(hold.held() for hold in holds.values()), 20, "all holds to stand again")


def test_9888_keys_with_a_ttl_live_for_ever_when_elections_are_frequent(group: Group) -> None:
    """Their time is the group's, which no election restarts."""
    group.leader().config.put("k", 1, ttl=20.0)
    began = group.now
    while "k" in group.leader().config and group.now - began < 120:
        leader = group.leader()
        leader.cluster.transfer_leadership()
        group.run(2.0)
    assert 20.0 <= group.now - began < 60.0


def test_lease_go_the_lease_counts_from_the_answer(group: Group) -> None:
    """`recvKeepAlive` counts from the receipt, and so overlaps by as much as that was late."""
    lone = followers(group)[0]
    group.delay = 0.4
    group.run(20.0)
    # What is acknowledged now was sent a round trip, and one with a quorum, ago.
    assert lone.session.remaining() <= coord.Options().lease - 4 * 0.4
    assert lone.session.state == "VALID"


def test_17470_a_lease_is_kept_alive_for_code_that_hangs(group: Group) -> None:
    lone, other = followers(group)
    hold = must(lone.lock("x", fenced=True).acquire())
    lone.session.beat(3.0)
    must(other.lock("x").acquire(timeout=30))
    assert not hold.held()


def test_tombstone_an_acquire_that_arrives_after_its_cancelling_is_granted(bench: Bench) -> None:
    request = bench.next(1)
    bench.cancel(1, request)
    assert bench.apply(acquire(1, request)) == (replies.CANCELLED,)
    assert (bench.holders(), bench.waiting()) == ([], [])


def test_cancelling_one_that_was_in_the_way_wakes_nobody(bench: Bench) -> None:
    bench.open(3, "c")
    bench.acquire(1, shared=True)
    blocked = bench.acquire(2)
    bench.acquire(3, shared=True)
    assert bench.holders() == [1]
    bench.cancel(2, blocked)
    assert bench.holders() == [1, 3]


def test_18163_observe_names_the_wrong_leader_and_never_none(group: Group) -> None:
    lone, other = followers(group)
    elections = [lone.election("e"), other.election("e")]
    seen: list[str | None] = []
    with group.leader().election("e").observe(lambda leader: seen.append(None if leader is None else leader.name)):
        for election in elections:
            election.volunteer()
        group.wait_until(lambda: lone.name in seen or other.name in seen, 10)
        group.run(1.0)
        for election in elections:
            election.resign()
            group.run(1.0)
    assert seen[0] is None, "first what is there"
    assert seen[-1] is None, "at last nobody leads"
    assert {lone.name, other.name} <= set(seen)


def test_campaign_a_candidate_whose_session_died_in_the_queue_takes_itself_for_the_leader(group: Group) -> None:
    lone, other = followers(group)
    first, second = other.election("e"), lone.election("e")
    first.volunteer()
    group.wait_until(lambda: first.is_leader, 10)
    second.volunteer()
    group.run(1.0)
    group.partition([lone])
    group.run(TTL + 5.0)
    first.resign()
    group.run(1.0)
    assert not second.is_leader
    leader = group.leader().election("e").leader()
    assert leader is None, "its place in the queue ended with its session"
    group.heal()
    group.wait_until(lambda: second.is_leader, 30, "the candidate to stand again")


def test_22123_a_resignation_without_an_answer_is_forgotten(group: Group) -> None:
    lone, other = followers(group)
    election, successor = lone.election("e"), other.election("e")
    election.volunteer()
    group.wait_until(lambda: election.is_leader, 10)
    successor.volunteer()
    group.partition([lone])
    group.after(3.0, group.heal)
    lone.default_timeout = 1.0
    election.resign()
    assert not election.is_leader
    group.wait_until(lambda: successor.is_leader, 8, "the successor, without waiting for a ttl")


def test_the_delay_of_a_lost_lock_survives_snapshots_and_leaders(bench: Bench) -> None:
    held = bench.acquire(1, delay=10 * SECOND)
    assert bench.token(1, held)
    bench.expire(1)
    chunks = list(bench.machine.cut().chunks())
    other = Bench()
    other.machine.restore(chunks)
    other.term, other.time, other._sequences = 9, 5 * SECOND, {2: 50}
    request = other.acquire(2)
    assert other.token(2, request) == 0
    other.time = 10 * SECOND
    other.apply(commands.tick())
    assert other.token(2, request) > 0
