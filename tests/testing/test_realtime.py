"""A group in real time: threads, and nothing else of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest

import coord
from coord.clock import clock
from coord.testing import QUICK, Group


@pytest.fixture
def group() -> Iterator[Group]:
    with Group() as group:
        yield group


def coord_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("coord")]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_port_no_file_and_no_thread_is_left(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    with Group() as group:
        group["a"].config["k"] = 1
        group["b"].config.watch(callback=lambda event: None)
        assert set(os.listdir("/proc/self/fd")) == before
        assert len(coord_threads()) >= 3
        group.kill("a")
        group.pause("b")
    assert coord_threads() == []
    assert list(tmp_path.iterdir()) == []


def test_calls_from_many_threads_while_leaders_die(group: Group) -> None:
    def count(name: str) -> int:
        done = 0
        for _ in range(20):
            # The node of a member that was killed is over; the next one is asked.
            try:
                group[name].config.update("n", lambda value: value + 1, default=0)
            except (coord.ClosedError, coord.OutcomeUnknown):
                continue
            done += 1
        return done

    with ThreadPoolExecutor(3) as pool:
        futures: list[Future[int]] = [pool.submit(count, name) for name in group.names]
        for _ in range(2):
            leader = group.leader()
            group.kill(leader)
            group.restart(leader)
        counted = sum(future.result(60) for future in futures)
    group.wait_converged()
    assert counted <= group["a"].config["n"] <= 60


def test_a_call_that_waits_hears_that_its_node_was_killed(group: Group) -> None:
    leader = group.leader()
    for name in group.names:
        if name != leader.name:
            group.pause(name)
    began = clock()
    with ThreadPoolExecutor(2) as pool:
        write: Future[None] = pool.submit(leader.config.__setitem__, "k", 1)
        read: Future[Any] = pool.submit(leader.config.get, "k", linearizable=True)
        group.wait_until(lambda: leader._running_loop().replica.unanswered, what="the write")
        group.kill(leader)
        with pytest.raises(coord.CoordError, match="killed"):
            write.result(30)
        with pytest.raises(coord.CoordError, match=r"killed|no answer"):
            read.result(30)
    assert clock() - began < QUICK.default_timeout


def test_futures_of_a_killed_node_are_answered(group: Group) -> None:
    follower = group.followers()[0]
    futures = [follower.config.put_async("k", number) for number in range(500)]
    group.kill(follower)
    done = wait(futures, 30)
    assert not done.not_done, f"{len(done.not_done)} futures were forgotten"
    with pytest.raises(coord.ClosedError):
        follower.config.put_async("k", 1)


def test_a_disk_with_a_sync_thread_and_snapshots() -> None:
    options = replace(QUICK, fsync="thread", snapshot_entries=10)
    with Group(options=options) as group:
        for number in range(100):
            group["a"].config[f"k{number % 5}"] = number
        group.wait_converged()
        for name in group.names:
            group.kill(name)
        for name in group.names:
            group.restart(name)
        assert group["b"].config.get("k4", linearizable=True) == 99


def test_a_paused_thread_stands_still(group: Group) -> None:
    follower = group.followers()[0]
    group.pause(follower)
    turns = follower._running_loop().replica.counters.turns
    group.leader().config["k"] = 1
    assert follower._running_loop().replica.counters.turns == turns
    with pytest.raises(coord.Unavailable):
        follower.config.get("k", linearizable=True, timeout=0.05)
    group.resume(follower)
    group.wait_until(lambda: follower.config.get("k") == 1)


def test_closing_returns_soon_with_everybody_cut_off_and_calls_waiting() -> None:
    with Group() as group:
        nodes = [group[name] for name in group.names]
        group.leader()
        group.partition(*group.names)
        futures = [node.config.put_async("k", 1) for node in nodes]
        began = clock()
    assert clock() - began < 5
    for future in futures:
        with pytest.raises(coord.CoordError):
            future.result(10)
    assert coord_threads() == []


def test_twenty_groups_in_a_row() -> None:
    """A fixture may make one for each test."""
    for _ in range(20):
        with Group() as group:
            group["a"].config["k"] = 1
    assert coord_threads() == []
