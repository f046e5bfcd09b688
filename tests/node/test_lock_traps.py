"""Traps around locks, leases and elections that somebody has fallen into here: a scenario for each.

What must not live here: what they do when all is well (`test_lock`, `test_election`, `test_session`).
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import coord
from coord.machine import replies
from coord.raft.messages import KeepaliveResponse
from coord.storage.directory import open_directory
from coord.testing import Group
from node.group import until


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=3) as group:
        settle(group)
        yield group


def settle(group: Group) -> None:
    group.wait_until(lambda: all(node.session.state == "VALID" for node in group.running), what="sessions")


def replica_of(node: coord.Node) -> Any:
    return node._running_loop().replica


def test_no_argument_of_a_user_stops_the_member() -> None:
    with coord.Node(registry=None) as node:
        election = node.election("e")
        election.volunteer()
        until(lambda: election.is_leader)
        for to in ("\ud800", "x" * 256, ""):
            with pytest.raises(coord.ConfigurationError, match="member name"):
                election.resign(to=to)
        assert election.is_leader
        assert node.config.put("k", 1) > 0


def test_a_callback_that_leaves_by_any_exception_leaves_the_others_be() -> None:
    """SystemExit, and asyncio.CancelledError, are no Exceptions; they ended the thread of all callbacks, in silence."""
    with coord.Node(registry=None) as node:

        def leave(future: Future[Any]) -> None:
            sys.exit(1)

        future = node.config.put_async("k", 0)
        future.add_done_callback(leave)
        future.result(20)
        seen: list[Any] = []
        with node.config.watch("k", initial=False, callback=lambda event: seen.append(event.value)):
            node.config["k"] = 1
            until(lambda: seen == [1], "a callback after one that exited")


def test_a_watch_whose_callback_exits_goes_on() -> None:
    with coord.Node(registry=None) as node:
        seen: list[Any] = []

        def leave(what: Any) -> None:
            seen.append(what)
            sys.exit(1)

        with node.config.watch("k", initial=False, callback=lambda event: leave(event.value)):
            for number in range(3):
                node.config["k"] = number
                until(lambda number=number: number in seen, "the next event")  # type: ignore[misc]
        seen.clear()
        election = node.election("e")
        with election.observe(lambda leader: leave(leader is not None)):
            until(lambda: seen == [False], "what is there")
            election.volunteer()
            until(lambda: seen == [False, True], "the change after a callback that exited")


def test_an_open_that_found_no_room_is_tried_again(group: Group) -> None:
    replica = replica_of(group.followers()[0])
    tried: list[float] = []
    replica.restart_outbox = lambda: tried.append(group.now)
    began = group.now
    replica.own.opened((replies.QUOTA, "sessions", 1))
    group.run(5.0)
    assert len(tried) == 1
    assert 0.9 <= tried[0] - began <= 1.5


def test_a_hook_that_is_cancelled_ends_its_term_as_any_that_raises() -> None:
    class Cancelled(BaseException):
        """As asyncio.CancelledError."""

    with coord.Node(registry=None) as node:
        election = node.election("e")
        revoked: list[str] = []
        election.on_revoked(lambda leadership, reason: revoked.append(reason))

        @election.on_elected
        def begin(leadership: coord.Leadership) -> None:
            raise Cancelled

        election.volunteer()
        until(lambda: revoked, "the end of its term")
        assert not election.is_leader


def test_only_what_was_asked_of_the_leader_moves_cluster_time(group: Group) -> None:
    """A time from nowhere would be stamped into entries by the next leader, and all others refuse those."""
    leader, lone = group.leader(), group.followers()[0]
    other = next(node for node in group.running if node not in (leader, lone))
    replica = replica_of(lone)
    term, session, far = replica.core.term, lone.session.id, (1 << 63) - 1
    before = replica.core.clock_base
    for sender, message in (
        (other.name, KeepaliveResponse(term, session, replica.own._number, far, True)),
        (leader.name, KeepaliveResponse(term, session, replica.own._number + 100, far, True)),
        (leader.name, KeepaliveResponse(term + 1, session, replica.own._number, far, True)),
        (leader.name, KeepaliveResponse(term, session ^ 1, replica.own._number, far, True)),
    ):
        replica.own._sent.setdefault(replica.own._number, replica.now)
        replica.own.on_response(sender, message)
        assert replica.core.clock_base == before, message


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cluster_time_never_runs_ahead_of_time(seed: int) -> None:
    """Members know the time of an idle group as of their last keepalive. One that knows it better than the leader it
    follows must forget that: its own term would begin with a jump, and end ttls and lock-delays early."""
    options = {
        name: coord.Options(session_ttl=300.0, priority=priority) for name, priority in {"a": 9, "b": 5, "c": 0}.items()
    }
    with Group(virtual=True, seed=seed, options=options) as group:
        settle(group)
        group.wait_until(lambda: group.leader() is group["a"], 60)
        group.run(12.0)
        # So that c's keepalives come at another time than b's.
        group.kill("c")
        group.run(5.0)
        group.restart("c")
        settle(group)
        core = replica_of(group["c"]).core
        before = core.clock_base
        group.wait_until(lambda: core.clock_base > before, 60, "a keepalive of c")
        group.kill("a")
        group.wait_until(lambda: replica_of(group["b"]).core.leads_surely, 60, "b to lead")
        began = group.now
        group["b"].config.put("k", 1, ttl=10.0)
        group["b"].cluster.transfer_leadership("c")
        group.wait_until(lambda: "k" not in group["c"].config, 60)
        assert group.now - began >= 10.0


def test_work_that_was_left_behind_is_not_taken_for_dead(tmp_path: Path) -> None:
    """The lock on its directory proves that a process is dead; not that a thread of this one is."""

    def make() -> coord.Node:
        return coord.Node("a", data_dir=tmp_path / "a", registry=None)

    make().start().stop()
    node = make().start()
    working, ends = threading.Event(), threading.Event()
    election = node.election("e", stop_timeout=0.2, lock_delay=60.0)

    @election.on_elected
    def work(leadership: coord.Leadership) -> None:
        working.set()
        ends.wait(60)

    election.volunteer()
    assert working.wait(20)
    node.stop(timeout=0.2)
    with make() as again:
        with pytest.raises(coord.LockTimeout), again.election("e").lead(timeout=1.0):
            pass
        assert 0 < _delay(again, "election:e") <= 60.0, "nothing says that the work may go on"
    ends.set()


def _delay(node: coord.Node, lock: str) -> float:
    """Seconds for which it stays closed."""
    replica = replica_of(node)
    delays = node._running_loop().call(lambda: replica.machine.locks.delayed(lock), 20.0)
    return max((not_before - replica.machine.time for not_before, _, _ in delays.values()), default=0) / 1e9


def test_a_directory_from_another_machine_proves_nothing(tmp_path: Path) -> None:
    def opened(boot: bytes) -> bool:
        directory = open_directory(str(tmp_path / "a"), group="g", name="a", fingerprint=1, mint=lambda: 7)
        try:
            return directory.note_boot(boot)
        finally:
            directory.close()

    starts = [b"one", b"one", b"other", b"one", b"", b""]
    assert [opened(boot) for boot in starts] == [False, True, False, False, False, False]


def test_a_leadership_that_was_over_for_a_moment_is_over(group: Group) -> None:
    """An acknowledgement that had waited through a pause brought the lease back before anybody saw that it had ended:
    the work had stopped, and nobody was told."""
    group.delay = 0.05
    lone = group.followers()[0]
    election = lone.election("e")
    revoked: list[str] = []
    election.on_revoked(lambda leadership, reason: revoked.append(reason))
    election.volunteer()
    group.wait_until(lambda: election.is_leader, 20)
    group.run(2.0)
    own = replica_of(lone).own
    number = own._number
    group.wait_until(lambda: own._number > number, what="a renewal that is on its way")
    group.pause(lone)
    group.wait_until(lambda: not election.is_leader, 60)
    group.run(0.2)
    group.resume(lone)
    group.wait_until(lambda: revoked, 10, "word that the term is over")
    assert revoked == ["suspended"]
    group.wait_until(lambda: election.is_leader, 60, "the next term")


@pytest.mark.parametrize(("members", "seed"), [(3, 3), (5, 3), (5, 4)])
def test_stop_uses_its_time_to_end_the_session(members: int, seed: int) -> None:
    """It gave that up the moment no leader was known, and others waited for a ttl and a delay."""
    with Group(members=members, virtual=True, seed=seed) as group:
        settle(group)
        leader = group.leader()
        lone, other = group.followers()[:2]
        assert lone.lock("x").acquire(timeout=5) is not None
        group.run(1.0)
        group.partition([leader])
        group.run(0.3)
        if members == 3:
            group.after(4.0, group.heal)
        lone.stop(timeout=10)
        group.heal()
        began = group.now
        assert other.lock("x").acquire(timeout=60) is not None
        assert group.now - began < 5.0


def test_an_observation_that_nobody_holds_costs_nothing() -> None:
    with coord.Node(registry=None) as node:
        election = node.election("e")
        for _ in range(100):
            assert next(election.observe()) is None
        gc.collect()
        until(lambda: not replica_of(node).requests._observers, "the last observation to end")


def test_acquire_with_no_time_asks_once() -> None:
    with coord.Node(registry=None) as node:
        hold = node.lock("x").acquire(timeout=0)
        assert hold is not None
        assert node.lock("x").acquire(timeout=0) is None
        assert node.lock("x").describe().waiting == ()


def test_a_leadership_is_resigned_once() -> None:
    with coord.Node(registry=None) as node, node.election("e").lead(timeout=20) as leadership:
        leadership.release()
        with pytest.raises(coord.NotHeld, match="under way"):
            leadership.release()
