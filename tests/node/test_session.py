"""The session of a coordinator, as its user sees it: its states, what ends it, and what it takes with it.

In virtual time where only time matters. What must not live here: the arithmetic of a lease (`test_lease`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coord
from coord import logs
from coord.testing import Group
from node.group import QUICK, until

OPTIONS = coord.Options()
VALID, JEOPARDY, SUSPENDED, EXPIRED = "VALID", "JEOPARDY", "SUSPENDED", "EXPIRED"


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=11) as group:
        yield group


def followers(group: Group) -> list[coord.Node]:
    leader = group.leader()
    return [group[name] for name in group.names if group[name] is not leader]


def settled(group: Group) -> None:
    """Every session is open and has been renewed once."""
    group.wait_until(lambda: all(group[name].session.state == VALID for name in group.names), what="sessions")
    group.run(2.0)


def states_of(node: coord.Node) -> list[str]:
    seen: list[str] = []
    node.session.on_change(seen.append)
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# States.


def test_a_session_that_is_renewed_stays_valid_and_writes_nothing_to_the_log(group: Group) -> None:
    settled(group)
    before = {name: (group[name].session.id, group[name].status().last_index) for name in group.names}
    group.run(300.0)
    after = {name: (group[name].session.id, group[name].status().last_index) for name in group.names}
    assert after == before
    for name in group.names:
        # Renewed every second, and counted from the sending.
        assert 8.4 < group[name].session.remaining() <= OPTIONS.lease


def test_cut_off_it_goes_through_all_states_and_comes_back_anew(group: Group) -> None:
    """ZooKeeper's clients learn that they have expired only once they are connected again."""
    settled(group)
    lone = followers(group)[0]
    seen, began, id = states_of(lone), group.now, lone.session.id
    group.partition([lone])
    group.wait_until(lambda: lone.session.state == JEOPARDY, 20)
    assert 4.9 <= group.now - began <= 6.1, "jeopardy comes 0.6 ttl after the last renewal was sent"
    assert lone.session.remaining() == pytest.approx(OPTIONS.lease - OPTIONS.jeopardy, abs=0.1)
    group.wait_until(lambda: lone.session.state == SUSPENDED, 20)
    assert 8.4 <= group.now - began <= OPTIONS.lease + 0.1
    assert lone.session.remaining() == 0.0
    group.run(10.0)
    assert lone.session.state == SUSPENDED, "nobody can say yet that it is over"
    group.heal()
    group.wait_until(lambda: lone.session.id != id and lone.session.state == VALID, 30)
    group.run(0.1)
    assert seen == [JEOPARDY, SUSPENDED, EXPIRED, SUSPENDED, VALID]


def test_without_a_quorum_nobody_can_be_ended_so_all_come_back(group: Group) -> None:
    """Chubby's grace period: an outage of the group itself need not cost a single lock."""
    settled(group)
    ids = {name: group[name].session.id for name in group.names}
    hold = group["a"].lock("x").acquire()
    assert hold is not None
    token = hold.token
    group.partition(*group.names)
    group.run(30.0)
    assert [group[name].session.state for name in group.names] == [SUSPENDED] * 3
    assert not hold.held()
    with pytest.raises(coord.LockLost, match="lease has run out"):
        hold.token  # noqa: B018
    group.heal()
    group.wait_until(lambda: all(group[name].session.state == VALID for name in group.names), 30)
    assert {name: group[name].session.id for name in group.names} == ids
    assert (hold.held(), hold.token, hold.lost.is_set()) == (True, token, False)


def test_after_the_grace_it_is_over_whatever_the_group_says_later(group: Group) -> None:
    settled(group)
    hold = group["a"].lock("x").acquire()
    assert hold is not None
    seen = states_of(group["a"])
    group.partition(*group.names)
    group.run(OPTIONS.lease + OPTIONS.session_grace + 1.0)
    assert (group["a"].session.state, hold.held(), hold.lost.is_set()) == (EXPIRED, False, True)
    group.heal()
    group.wait_until(lambda: group["a"].session.state == VALID, 60)
    assert (hold.held(), hold.lost.is_set()) == (False, True), "lost is lost"
    assert seen[:3] == [JEOPARDY, SUSPENDED, EXPIRED]
    # What was given up is given back: nothing is left behind in the group.
    again = group["b"].lock("x").acquire(timeout=30)
    assert again is not None
    assert again.token > hold._request.token


def test_a_write_that_waits_outlives_the_grace(group: Group) -> None:
    settled(group)
    leader = group.leader()
    group.partition(*group.names)
    group.after(120.0, group.heal)
    assert leader.config.put("k", "late", timeout=600) > 0
    assert group["b"].config.get("k", linearizable=True) == "late"


def test_a_change_of_leader_costs_no_jeopardy(group: Group) -> None:
    settled(group)
    seen = {name: states_of(group[name]) for name in group.names}
    leader = group.leader()
    group.kill(leader)
    alive = [name for name in group.names if name != leader.name]
    group.run(60.0)
    assert all(not seen[name] for name in alive), seen
    assert all(group[name].session.state == VALID for name in alive)


def test_a_member_that_stood_still_is_in_jeopardy_until_it_is_answered(group: Group) -> None:
    settled(group)
    lone = followers(group)[0]
    seen = states_of(lone)
    group.pause(lone)
    group.run(4.0)
    group.resume(lone)
    group.wait_until(lambda: lone.session.state == VALID and len(seen) >= 2, 20)
    assert seen == [JEOPARDY, VALID]


def test_after_a_pause_of_the_process_it_is_over_at_once(group: Group) -> None:
    """SIGSTOP: what was believed before is judged by the clock, before anything else has run."""
    settled(group)
    lone = followers(group)[0]
    hold = lone.lock("x").acquire()
    assert hold is not None
    assert hold.held()
    group.pause(lone)
    group.run(30.0)
    assert not hold.held()
    assert lone.session.state == SUSPENDED
    group.resume(lone)
    group.wait_until(hold.lost.is_set, 20, "word of the loss")


# ---------------------------------------------------------------------------------------------------------------------
# What ends it.


def test_the_leaders_own_session_follows_the_same_rule(group: Group) -> None:
    """It may lead no longer and not know it, so it never renews its own session by itself."""
    settled(group)
    leader = group.leader()
    hold = leader.lock("x").acquire()
    assert hold is not None
    group.partition([leader])
    group.run(OPTIONS.lease + 0.1)
    assert not hold.held()
    other = next(group[name] for name in group.names if group[name] is not leader)
    next_hold = other.lock("x", fenced=True).acquire(timeout=60)
    assert next_hold is not None
    assert next_hold.token > hold._request.token


def test_closing_ends_it_at_once(group: Group) -> None:
    settled(group)
    lone, other = followers(group)
    hold = lone.lock("x").acquire()
    lone.config.put("here", 1, ephemeral=True)
    assert hold is not None
    began = group.now
    lone.stop()
    assert (hold.held(), hold.lost.is_set()) == (False, True)
    assert other.lock("x").acquire(timeout=5) is not None
    assert "here" not in other.config
    assert group.now - began < 2.0, "a clean end needs no delay"


def test_a_restarted_process_takes_over_at_once(group: Group) -> None:
    """Its data directory is locked, so its predecessor is certainly dead: no ttl, and no delay, is waited for."""
    settled(group)
    lone, other = followers(group)
    hold = lone.lock("x").acquire()
    lone.config.put("here", 1, ephemeral=True)
    assert hold is not None
    token = hold.token
    group.kill(lone)
    began = group.now
    again = group.restart(lone.name)
    next_hold = other.lock("x").acquire(timeout=8)
    assert next_hold is not None
    assert next_hold.token > token
    assert group.now - began < 8.0
    assert "here" not in again.config or again.config.get("here", linearizable=True) is None, "deleted, never adopted"


def test_every_member_has_one_session_however_many_ask_first(group: Group) -> None:
    """Hazelcast's client made two, when two threads asked at the same time."""
    settled(group)
    sessions = group.leader()._running_loop().replica.machine.sessions
    assert sorted(session.owner for session in sessions.values()) == list(group.names)


# ---------------------------------------------------------------------------------------------------------------------
# The host's own life.


def test_a_host_that_has_begun_to_beat_must_go_on(group: Group) -> None:
    """etcd's lease is kept alive by a background thread long after the code that needed it hangs (etcd #17470)."""
    settled(group)
    lone, other = followers(group)
    hold = lone.lock("x").acquire()
    assert hold is not None
    lone.session.beat(5.0)
    for _ in range(10):
        group.run(4.0)
        lone.session.beat()
    assert hold.held()
    began = group.now
    next_hold = other.lock("x").acquire(timeout=60)
    assert next_hold is not None
    assert not hold.held()
    # It was renewed for 5 s more, expired a ttl later, and then there was the lock-delay of a ttl.
    assert 24.0 <= group.now - began <= 28.0


def test_a_beat_in_time_saves_it_and_infinity_ends_the_duty(group: Group) -> None:
    settled(group)
    lone = followers(group)[0]
    lone.session.beat(1.0)
    group.wait_until(lambda: lone.session.state == JEOPARDY, 20)
    lone.session.beat()
    group.wait_until(lambda: lone.session.state == VALID, 5)
    lone.session.beat(float("inf"))
    group.run(100.0)
    assert lone.session.state == VALID


@pytest.mark.parametrize("within", [0, -1.0, "1", True and "yes", float("nan")])
def test_a_beat_that_makes_no_sense_is_refused(group: Group, within: Any) -> None:
    with pytest.raises(ValueError, match="within="):
        group["a"].session.beat(within)


def test_a_health_check_that_fails_raises_or_hangs_costs_the_session() -> None:
    lets_go, hangs = threading.Event(), threading.Event()

    def well() -> bool:
        return True

    def ill() -> bool:
        return False

    def raises() -> bool:
        raise RuntimeError("out of order")

    def hanging() -> bool:
        hangs.set()
        return lets_go.wait(60)

    options = coord.Options(heartbeat=0.02, election_timeout=(0.1, 0.2), session_ttl=0.4)
    checks: list[Callable[[], bool]] = [ill, raises, hanging]
    for check in checks:
        with coord.Node(options=options, registry=None, healthcheck=check) as node:
            id = node.session.id
            until(lambda node=node, id=id: node.session.id != id, "the end of the session")  # type: ignore[misc]
    assert hangs.is_set()
    lets_go.set()
    with coord.Node(options=options, registry=None, healthcheck=well) as node:
        seen = states_of(node)
        ends = threading.Event()
        ends.wait(3 * options.session_ttl)
        assert EXPIRED not in seen


# ---------------------------------------------------------------------------------------------------------------------
# Watching it.


def test_a_callback_that_raises_is_called_again(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    settled(group)
    lone = followers(group)[0]
    seen: list[str] = []

    @lone.session.on_change
    def note(state: str) -> None:
        seen.append(state)
        raise RuntimeError("not today")

    group.partition([lone])
    group.run(20.0)
    assert seen[:2] == [JEOPARDY, SUSPENDED]
    logs.flush(5.0)
    assert "not today" in caplog.text


def test_a_callback_may_be_left_before_the_start() -> None:
    node = coord.Node(options=QUICK, registry=None)
    seen: list[str] = []
    node.session.on_change(seen.append)
    node.session._coordinator._when_started(lambda loop: None)
    with pytest.raises(coord.ClosedError):
        node.session.id  # noqa: B018
    with node:
        hold = node.lock("x").acquire()
        assert hold is not None
        assert "VALID" in repr(node.session)
    until(lambda: EXPIRED in seen, "word of the end")
