"""A group in virtual time: nothing takes long, the same seed tells the same story, and nothing waits for ever."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coord
from coord.clock import clock
from coord.testing import Group

DEFAULTS = coord.Options()


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=7) as group:
        yield group


def test_its_members_have_the_real_defaults(group: Group) -> None:
    assert group["a"].options == DEFAULTS


def test_a_timeout_takes_its_time_in_virtual_time_only(group: Group) -> None:
    leader = group.leader()
    group.partition([leader])
    began, virtual = clock(), group.now
    with pytest.raises(coord.OutcomeUnknown, match="within 600 s"):
        leader.config.put("k", 1, timeout=600)
    assert group.now - virtual == pytest.approx(600)
    with pytest.raises(coord.Unavailable, match="within 10 s"):
        leader.config.get("k", linearizable=True)
    assert clock() - began < 60


def test_exactly_the_timeout_passes(group: Group) -> None:
    leader = group.leader()
    group.partition(*group.names)
    for seconds in (0.0, 0.25, 10.0):
        began = group.now
        with pytest.raises(coord.CoordError):
            leader.config.put("k", 1, timeout=seconds)
        assert group.now - began == pytest.approx(seconds)


def test_run_lets_time_pass_and_ends_what_has_a_ttl(group: Group) -> None:
    group["a"].config.put("k", 1, ttl=60)
    group.run(55)
    assert group["a"].config["k"] == 1
    group.run(10)
    assert "k" not in group["a"].config
    assert 65 < group.now < 70
    with pytest.raises(ValueError, match="seconds=-1"):
        group.run(-1)


def test_what_is_planned_happens_in_the_middle_of_a_call(group: Group) -> None:
    leader = group.leader()
    group.delay = 1.0
    group.after(0.5, group.kill, leader)
    with pytest.raises(coord.OutcomeUnknown, match="was killed by the test"):
        leader.config["k"] = 1


def test_what_is_planned_and_goes_wrong_is_not_lost(group: Group) -> None:
    group.after(1.0, group.resume, "a")
    with pytest.raises(RuntimeError, match="'a' is not paused"):
        group.run(2.0)


def test_a_member_behind_a_cut_gets_its_answer_when_the_cut_heals(group: Group) -> None:
    follower = group.followers()[0]
    group.partition([follower])
    group.after(3.0, group.heal)
    began = group.now
    follower.config["k"] = 1
    assert 3.0 < group.now - began < DEFAULTS.default_timeout


def test_a_call_to_a_paused_member_waits_until_it_is_resumed(group: Group) -> None:
    follower = group.followers()[0]
    group.pause(follower)
    with pytest.raises(coord.Unavailable, match="is paused"):
        follower.status()
    group.after(2.0, group.resume, follower)
    began = group.now
    follower.config["k"] = 1
    assert 2.0 < group.now - began < 4.0
    assert follower.status().applied_index > 0


def test_a_paused_member_takes_no_turn(group: Group) -> None:
    follower = group.followers()[0]
    group.pause(follower)
    term = group.leader().status().term
    turns = follower._running_loop().replica.counters.turns
    group.run(60)
    assert follower._running_loop().replica.counters.turns == turns
    assert group.leader().status().term == term
    group.resume(follower)
    group.wait_converged()


def test_futures(group: Group) -> None:
    follower = group.followers()[0]
    futures = [follower.config.put_async("k", number) for number in range(2000)]
    revisions = [future.result() for future in futures]
    assert revisions == sorted(revisions)
    assert concurrent.futures.wait(futures).not_done == set(), "all are done, so nothing has to wait"
    assert follower.config["k"] == 1999
    deleted = follower.config.delete_async("k")
    assert deleted.exception() is None
    assert deleted.result() is True


def test_a_future_without_an_answer(group: Group) -> None:
    leader = group.leader()
    group.partition([leader])
    future = leader.config.put_async("k", 1, timeout=5)
    with pytest.raises((TimeoutError, concurrent.futures.TimeoutError)):
        future.result(timeout=1)
    with pytest.raises(coord.OutcomeUnknown):
        future.result()
    assert 5 <= group.now < 7
    future = leader.config.put_async("k", 1)
    group.kill(leader)
    with pytest.raises(coord.CoordError):
        future.result()


@pytest.mark.parametrize(
    "wait", [concurrent.futures.wait, lambda futures: list(concurrent.futures.as_completed(futures))]
)
def test_waiting_for_several_futures_as_with_threads_is_refused(group: Group, wait: Callable[[Any], Any]) -> None:
    future = group["a"].config.put_async("k", 1)
    with pytest.raises(RuntimeError, match="time is virtual"):
        wait([future])
    assert future.result() > 0


def test_callbacks_come_one_at_a_time_and_may_wait(group: Group) -> None:
    node = group["a"]
    told: list[str] = []
    inside: list[str] = []
    together: list[list[str]] = []

    def callback(event: coord.Event) -> None:
        inside.append(event.key)
        together.append(list(inside))
        if event.key.startswith("in/"):
            node.config[f"out/{event.key}"] = event.value
        told.append(event.key)
        inside.remove(event.key)

    watches = [node.config.watch(prefix, callback=callback) for prefix in ("in/1", "in/2", "out/")]
    futures = [group[name].config.put_async(key, 1) for name, key in (("b", "in/1"), ("c", "in/2"))]
    group.wait_until(lambda: len(told) == 4)
    assert all(future.done() for future in futures)
    assert sorted(told) == ["in/1", "in/2", "out/in/1", "out/in/2"]
    assert [len(keys) for keys in together] == [1, 1, 1, 1]
    for watch in watches:
        watch.close()
    done: list[int] = []
    node.config.put_async("k", 1).add_done_callback(lambda future: done.append(future.result()))
    assert done == []
    group.run(1)
    assert done == [node.config.revision]


def test_watches_with_and_without_a_timeout(group: Group) -> None:
    watch = group["a"].config.watch("k", timeout=30)
    group.after(20, group["b"].config.put, "k", 1)
    began = group.now
    assert [event.value for event in watch] == [1]
    assert group.now - began == pytest.approx(50, abs=1)
    watch = group["a"].config.watch("other")
    group.after(20, watch.close)
    assert list(watch) == []
    with pytest.raises(RuntimeError, match="without a timeout"):
        next(group["a"].config.watch("never"))


def test_updates_that_meet(group: Group) -> None:
    """One is in the middle of its function when the other writes."""
    calls = []

    def slow(value: int) -> int:
        calls.append(value)
        if len(calls) < 4:
            group["b"].config.update("n", lambda value: value + 1, default=0)
        return value + 10

    assert group["a"].config.update("n", slow, default=0) == 13
    assert calls == [0, 1, 2, 3]


def test_handing_over_and_stopping(group: Group) -> None:
    leader, (follower, _) = group.leader(), group.followers()
    leader.cluster.transfer_leadership(follower.name)
    assert group.leader() is follower
    began = group.now
    follower.stop()
    assert group.leader() is not follower
    assert group.now - began < DEFAULTS.election_timeout[0], "it did not hand over"
    with pytest.raises(coord.ClosedError, match="has been stopped"):
        follower.config["k"]
    group.restart(follower).config["k"] = 1


def test_a_stop_without_a_majority_returns(group: Group) -> None:
    leader = group.leader()
    group.partition(*group.names)
    began = group.now
    leader.stop(timeout=5)
    assert group.now - began < 8


def test_a_node_of_an_earlier_life_leaves_the_later_one_alone(group: Group) -> None:
    old = group.leader()
    # As a disk that failed would have it.
    old._running_loop().replica.fail(coord.StorageError("made up"))
    group.run(1)
    with pytest.raises(coord.StorageError, match="made up"):
        old.config["k"]
    assert "made up" in group.describe()
    new = group.restart(old)
    old.stop()
    new.config["k"] = 1
    group.wait_converged()


def test_a_group_of_one_and_one_of_seven() -> None:
    with Group(members=1, virtual=True) as group:
        group["a"].config.put("k", 1, ephemeral=True)
        group.lose_lock_now("a")
        assert "k" not in group["a"].config
        assert group["a"].config.age() >= 0
    with Group(members=7, virtual=True) as group:
        group["g"].config["k"] = 1
        group.wait_converged()


def test_other_threads_are_refused(group: Group) -> None:
    group["a"].config["k"] = 1
    told: list[str] = []

    def use(call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            told.append(str(error))

    calls: list[Callable[[], Any]] = [
        lambda: group["a"].config["k"],
        lambda: group["a"].config.put("k", 2),
        lambda: group["a"].status(),
        lambda: group["a"].stop(),
        lambda: group.run(1),
        lambda: group.leader(),
    ]
    for call in calls:
        thread = threading.Thread(target=use, args=(call,))
        thread.start()
        thread.join()
    assert len(told) == len(calls)
    assert all("another thread" in text for text in told)
    assert group["a"].config["k"] == 1


def test_no_thread_is_started(group: Group) -> None:
    group["a"].config.watch(callback=lambda event: None)
    group["a"].config["k"] = 1
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("coord")] == []


STORY = """
import coord, sys
from coord.testing import Group

lines = []
with Group(virtual=True, seed=int(sys.argv[1]), loss=0.05, trace=lines.append) as group:
    nodes = [group[name] for name in group.names]
    for node in nodes:
        node.config.watch(callback=lambda event: lines.append(f"told {event}"))
    for round in range(4):
        for node, other in zip(nodes, nodes[1:] + nodes[:1]):
            meets = [True]

            def add(value):
                # The first time, somebody else writes in between.
                while meets and meets.pop():
                    other.config.update("n", lambda value: value + 1, default=0)
                return value + 1

            node.config.update("n", add, default=0)
        leader = group.leader()
        if round % 2:
            group.kill(leader)
            nodes[group.names.index(leader.name)] = group.restart(leader)
        else:
            group.partition([leader])
            group.run(5)
            group.heal()
    lines.append(group.wait_converged())
    lines += [repr(node.status()) for node in nodes]
print("\\n".join(lines))
"""


def tell(seed: int, hash_seed: int) -> str:
    path = str(Path(coord.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", STORY, str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed), "PYTHONWARNINGS": "error"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_same_seed_tells_the_same_story_in_every_process() -> None:
    story = tell(1, 1)
    assert "told Event" in story
    assert len(story.splitlines()) > 1000
    assert tell(1, 2) == story
    assert tell(2, 1) != story


def test_what_is_only_for_virtual_time_says_so() -> None:
    with Group(members=1) as group:
        with pytest.raises(RuntimeError, match=r"run\(\) is for virtual time.*wait_until"):
            group.run(1)
        with pytest.raises(RuntimeError, match=r"after\(\) is for virtual time"):
            group.after(1, print)
