"""What hooks may rely on, whatever befalls the leader: exactly one revoked for each elected, in order, never two terms
at once, and nobody else before the work has stopped."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coord
from coord.election import Election
from coord.leadership import Leadership
from coord.testing import Group
from coord.testing.group import QUICK
from node.group import until

TTL = coord.Options().session_ttl


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True) as made:
        yield made


@pytest.fixture
def real() -> Iterator[Group]:
    """With threads."""
    with Group() as made:
        yield made


class Diary:
    """What the hooks of one candidate were called with."""

    def __init__(self, election: Election) -> None:
        self.lines: list[tuple[str, int]] = []
        self.inside = 0
        self._lock = threading.Lock()
        election.on_elected(self.elected)
        election.on_revoked(self.revoked)

    def elected(self, leadership: Leadership) -> None:
        with self._lock:
            self.lines.append(("elected", leadership._request.token))

    def revoked(self, leadership: Leadership, reason: str) -> None:
        with self._lock:
            self.lines.append((reason, leadership._request.token))
            assert leadership.stopping.is_set()

    def wait(self, count: int) -> None:
        """In real time."""
        until(lambda: len(self.lines) >= count, f"{count} calls of hooks")

    def check(self) -> list[str]:
        """The reasons, if all is in order: pairs of the same token, which grows from pair to pair."""
        elected, revoked = self.lines[::2], self.lines[1::2]
        assert all(what == "elected" for what, _ in elected), self.lines
        assert all(what != "elected" for what, _ in revoked), self.lines
        tokens = [token for _, token in elected]
        assert [token for _, token in revoked] == tokens[: len(revoked)], self.lines
        assert tokens == sorted(set(tokens)), self.lines
        return [reason for reason, _ in revoked]


# -- the contract


def test_hooks_come_in_order_and_say_why(group: Group) -> None:
    election = group["a"].election("job", lock_delay=0)
    diary = Diary(election)
    assert election.on_elected(diary.elected) == diary.elected, "usable as a decorator"
    election._elected_hooks.pop()
    election.volunteer()
    group.wait_until(lambda: len(diary.lines) == 1)
    election.resign()
    election.volunteer()
    group.wait_until(lambda: len(diary.lines) == 3)
    group.lose_lock_now("a")
    group.wait_until(lambda: len(diary.lines) == 5)
    election.close()
    assert diary.check() == ["resigned", "expired", "closed"]


def test_none_is_called_for_who_was_never_elected(group: Group) -> None:
    leading, waiting = group["a"].election("job"), group["b"].election("job")
    diary = Diary(waiting)
    leading.volunteer()
    group.wait_until(lambda: leading.is_leader)
    waiting.volunteer()
    group.run(5.0)
    group.lose_lock_now("b")
    group.run(5.0)
    waiting.close()
    group.run(1.0)
    assert diary.lines == []


def test_none_is_called_for_a_term_that_is_over_before_its_first_hook(group: Group) -> None:
    election = group["a"].election("job")
    diary = Diary(election)
    for _ in range(5):
        # The leadership is given to this thread first, and the hook's has not begun.
        assert election.run(lambda leadership: leadership.held())
    assert diary.lines == []
    assert election.run(lambda leadership: group.run(0.1)) is None
    assert diary.check() == ["resigned"]


@pytest.mark.parametrize("seed", range(6))
def test_exactly_one_revoked_for_each_elected_whatever_happens(seed: int) -> None:
    """Sessions lost, leaders cut off, paused, killed and restarted, resigning: and never do two of them lead."""
    chance = random.Random(seed)
    with Group(virtual=True, seed=seed) as group:
        candidates: list[tuple[Election, Diary]] = []

        def join(name: str) -> None:
            election = group[name].election("job", lock_delay=0, priority=chance.randrange(3))
            candidates.append((election, Diary(election)))
            election.volunteer()

        def watch(seconds: float) -> None:
            assert not group._world.wait(lambda: sum(election.is_leader for election, _ in candidates) > 1, seconds)

        for name in (*group.names, "a"):
            join(name)
        for _ in range(40):
            leading = [election for election, _ in candidates if election.is_leader]
            name = leading[0]._coordinator.name if leading and chance.random() < 0.7 else chance.choice(group.names)
            befall(group, chance.choice(["lose", "lose", "cut", "pause", "kill", "resign"]), name, leading, watch, join)
            watch(chance.uniform(0, 3.0))
        for election, _ in candidates:
            election.close()
        group.run(TTL)
        terms = [diary.check() for _, diary in candidates]
        assert sum(map(len, terms)) >= 10, terms
        assert all(len(diary.lines) % 2 == 0 for _, diary in candidates), "a term without an end"


def befall(
    group: Group,
    what: str,
    name: str,
    leading: list[Election],
    watch: Callable[[float], None],
    join: Callable[[str], None],
) -> None:
    if what == "lose":
        group.lose_lock_now(name)
    elif what == "cut":
        group.partition([name])
        watch(1.5 * TTL)
        group.heal()
    elif what == "pause":
        group.pause(name)
        watch(1.5 * TTL)
        group.resume(name)
    elif what == "kill":
        group.kill(name)
        watch(0.1)
        group.restart(name)
        join(name)
    elif leading:
        leading[0].resign()
        watch(1.0)
        leading[0].volunteer()


def test_many_losses_in_real_time(real: Group) -> None:
    election = real["a"].election("job", lock_delay=0)
    diary = Diary(election)
    election.volunteer()
    for number in range(20):
        diary.wait(2 * number + 1)
        real.lose_lock_now("a")
    diary.wait(41)
    assert election.close()
    assert diary.check() == [*["expired"] * 20, "closed"]


# -- a hook that raises


def test_a_hook_that_raises_has_resigned_and_stands_again_later(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    election, other = group["a"].election("job"), group["b"].election("job")
    diary, after = Diary(election), []

    @election.on_elected
    def fail(leadership: Leadership) -> None:
        after.append(group.now)
        if len(after) == 1:
            raise ZeroDivisionError("the first time")

    election.on_elected(lambda leadership: after.append(-1.0))
    election.volunteer()
    group.wait_until(lambda: len(diary.lines) == 2)
    assert diary.check() == ["failed"]
    assert election.failures == 1
    assert len(after) == 1, "the hooks behind it are not called"
    other.volunteer()
    group.wait_until(lambda: other.is_leader, timeout=1.0, what="another one, at once: it was released, not lost")
    other.close()
    group.wait_until(lambda: election.is_leader)
    assert group.now - after[0] >= TTL
    group.run(1.0)
    assert after[2] == -1.0
    coord.logs.flush(5.0)
    assert "ZeroDivisionError: the first time" in caplog.text


def test_a_revoked_hook_that_raises_keeps_nobody_from_anything(group: Group) -> None:
    election, called = group["a"].election("job"), []

    @election.on_revoked
    def fail(leadership: Leadership, reason: str) -> None:
        raise SystemExit(1)

    election.on_revoked(lambda leadership, reason: called.append(reason))
    election.volunteer()
    group.wait_until(lambda: election.is_leader)
    assert election.resign()
    assert called == ["resigned"]
    assert election.failures == 1
    with group["b"].election("job").lead(timeout=1.0):
        assert not election.is_leader


# -- work that goes on


def test_no_term_begins_before_the_work_of_the_last_has_stopped(group: Group) -> None:
    """In virtual time, a hook that works for the whole term."""
    election = group["a"].election("job", lock_delay=0)
    diary, stopped = Diary(election), []

    @election.on_elected
    def work(leadership: Leadership) -> None:
        assert leadership.stopping.wait(300.0)
        group.run(5.0)
        stopped.append(leadership._request.token)

    election.volunteer()
    group.after(3.0, group.lose_lock_now, "a")
    group.run(3.5)
    # The wait above let all that happen within the hook.
    assert len(stopped) == 1
    assert diary.lines[:1] == [("elected", stopped[0])]
    group.after(1.0, election.close)
    group.run(10.0)
    assert diary.check()[0] == "expired"
    tokens = [token for what, token in diary.lines if what == "elected"]
    assert stopped == tokens


class Blocked:
    """A hook that works on, whatever it is told, until it may end. In real time."""

    def __init__(self, election: Election) -> None:
        self.leadership: Leadership | None = None
        self.may_end = threading.Event()
        self.began = threading.Event()
        self.ended = threading.Event()
        election.on_elected(self.work)

    def work(self, leadership: Leadership) -> None:
        self.leadership = leadership
        self.began.set()
        assert self.may_end.wait(60)
        self.ended.set()


def test_resign_waits_for_the_work_and_releases_after_it(real: Group) -> None:
    election, other = real["a"].election("job", stop_timeout=0.2), real["b"].election("job")
    blocked, diary = Blocked(election), Diary(election)
    election.volunteer()
    assert blocked.began.wait(20)
    other.volunteer()
    assert election.resign() is False, "the work goes on"
    assert blocked.leadership is not None
    assert not election.is_leader, "from the call on"
    assert blocked.leadership.stopping.is_set()
    # Longer than the session would last unheard: it goes on being renewed.
    assert not real._world.wait(lambda: other.is_leader, 2 * QUICK.session_ttl)
    assert blocked.leadership.held()
    assert not blocked.leadership.lost.is_set()
    blocked.may_end.set()
    until(lambda: other.is_leader, "the next one, once the work had stopped")
    until(lambda: len(diary.lines) == 2, "the hook")
    assert diary.check() == ["resigned"]
    assert blocked.leadership.lost.is_set()


def test_work_that_outlives_its_leadership_is_reported(real: Group, caplog: pytest.LogCaptureFixture) -> None:
    stuck: list[Leadership] = []
    election = real["a"].election("job", stop_timeout=0.1, on_stuck=stuck.append, lock_delay=0)
    blocked, diary = Blocked(election), Diary(election)
    election.volunteer()
    assert blocked.began.wait(20)
    real.lose_lock_now("a")
    until(lambda: stuck, "on_stuck")
    assert stuck == [blocked.leadership]
    assert stuck[0].lost.is_set()
    # It stands for no other term meanwhile, and others may.
    with real["b"].election("job").lead(timeout=20):
        assert not election.is_leader
        assert real.running[0]._running_loop().replica.machine.locks.queue("election:job") == []
        blocked.may_end.set()
        until(lambda: len(diary.lines) == 2, "the hook")
    until(lambda: election.is_leader, "another term")
    election.close()
    coord.logs.flush(5.0)
    reports = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(reports) == 1, reports
    assert "assert self.may_end.wait(60)" in reports[0], "it does not say where the work is"


def test_work_that_outlives_its_member_is_reported(real: Group) -> None:
    """When all that could do something later has ended."""
    stuck: list[Leadership] = []
    election = real["a"].election("job", stop_timeout=0.1, on_stuck=stuck.append)
    blocked, diary = Blocked(election), Diary(election)
    election.volunteer()
    assert blocked.began.wait(20)
    real.kill("a")
    until(lambda: stuck, "on_stuck")
    blocked.may_end.set()
    until(lambda: len(diary.lines) == 2, "the hook")
    assert diary.check() == ["stopped"]


ABORT = """
from coord.testing import Group
import threading
with Group(members=1) as group:
    election = group["a"].election("job", stop_timeout=0.1, on_stuck="abort")
    began = threading.Event()
    @election.on_elected
    def work(leadership):
        began.set()
        threading.Event().wait()
    election.volunteer()
    assert began.wait(20)
    group.lose_lock_now("a")
    threading.Event().wait(20)
"""


def test_a_process_can_be_aborted_that_does_not_stop_leading() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", ABORT], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 70, done.stderr
    assert "threading.Event().wait()" in done.stderr or "in work" in done.stderr


# -- called by the work itself


@pytest.mark.parametrize("end", [Election.resign, Election.close])
def test_a_hook_may_resign_and_does_not_wait_for_itself(real: Group, end: Any) -> None:
    election = real["a"].election("job")
    diary, answers = Diary(election), []
    election.on_elected(lambda leadership: answers.append(end(election)))
    election.volunteer()
    until(lambda: len(diary.lines) == 2, "the end of the term")
    assert answers == [False]
    assert diary.check() == ["resigned" if end is Election.resign else "closed"]
    with real["b"].election("job").lead(timeout=20):
        assert not election.is_leader


def test_a_hook_may_stop_its_node(real: Group) -> None:
    election, stopped = real["a"].election("job"), threading.Event()
    diary = Diary(election)

    @election.on_elected
    def stop(leadership: Leadership) -> None:
        real["a"].stop()
        stopped.set()

    election.volunteer()
    assert stopped.wait(20), "it waits for itself"
    until(lambda: len(diary.lines) == 2, "the hook")


def test_the_function_that_run_called_may_resign(group: Group) -> None:
    election = group["a"].election("job")
    assert election.run(lambda leadership: (election.resign(), leadership.held(), leadership.stopping.is_set())) == (
        False,
        True,
        True,
    )
    assert election.leader() is None


# -- stopping the node


def test_stop_has_the_work_stopped_before_the_next_one_begins(real: Group) -> None:
    one, other = real["a"].election("job"), real["b"].election("job")
    events: list[str] = []
    began = threading.Event()

    @one.on_elected
    def work(leadership: Leadership) -> None:
        began.set()
        assert leadership.stopping.wait(60)
        events.append("stopped" if leadership.held() else "too late")

    one.on_revoked(lambda leadership, reason: events.append(reason))
    other.on_elected(lambda leadership: events.append("the next one"))
    one.volunteer()
    assert began.wait(20)
    other.volunteer()
    real["a"].stop()
    assert not one.is_leader
    until(lambda: len(events) == 3, "the next one")
    assert events == ["stopped", "closed", "the next one"]


def test_stop_leaves_the_lock_to_lapse_if_the_work_goes_on(real: Group) -> None:
    one, other = real["a"].election("job", lock_delay=0), real["b"].election("job")
    blocked = Blocked(one)
    one.volunteer()
    assert blocked.began.wait(20)
    other.volunteer()
    began = real.now
    real["a"].stop(timeout=0.2)
    assert not blocked.ended.is_set()
    until(lambda: other.is_leader, "the next one")
    assert real.now - began > QUICK.session_ttl / 2, "it was released, though its work went on"
    blocked.may_end.set()
    assert blocked.ended.wait(20)


# -- jeopardy


def test_jeopardy_is_told_once_each_time_while_the_work_runs(group: Group) -> None:
    election = group["a"].election("job")
    told: list[tuple[float, bool]] = []
    election.on_jeopardy(lambda leadership: told.append((leadership.remaining(), leadership.held())))
    diary = Diary(election)
    election.volunteer()
    group.wait_until(lambda: election.is_leader)
    for count in (1, 2):
        group.partition(["a"])
        group.run(0.7 * TTL)
        assert len(told) == count
        assert election.is_leader
        group.heal()
        group.run(2.0)
    assert len(told) == 2
    assert all(0 < remaining < TTL / 2 and held for remaining, held in told)
    group.partition(["a"])
    group.run(TTL)
    assert len(told) == 3
    assert diary.check() == ["suspended"]


def test_jeopardy_is_told_while_a_hook_works(real: Group) -> None:
    election = real["a"].election("job")
    told = threading.Event()
    election.on_jeopardy(lambda leadership: told.set())
    blocked = Blocked(election)
    election.volunteer()
    assert blocked.began.wait(20)
    real.partition(["a"])
    assert told.wait(20), "the hooks' thread was busy"
    blocked.may_end.set()


# -- threads


def test_there_is_no_thread_before_the_first_hook_and_none_after_the_last(real: Group) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "election" in thread.name]

    plain = real["a"].election("job")
    with plain.lead():
        assert threads() == []
    election = real["a"].election("job")
    Diary(election)
    other = real["b"].election("job")
    Diary(other)
    election.volunteer()
    until(lambda: election.is_leader, "the first")
    other.volunteer()
    until(lambda: real["a"]._running_loop().replica.machine.locks.queue("election:job"), "the candidate")
    assert len(threads()) == 1, threads()
    election.close()
    until(lambda: other.is_leader, "the next")
    other.close()
    until(lambda: threads() == [], "the threads' end")
    assert real["a"]._elections.keys() == {"job"}
    assert real["a"]._elections["job"] == []
