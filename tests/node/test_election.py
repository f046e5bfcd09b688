"""Elections as their users see them: standing, leading, resigning, and who leads. Mostly in virtual time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coord
from coord.election import Election
from coord.leadership import Leader, Leadership
from coord.testing import Group
from node.group import until

#: The default; `coord.testing` runs with defaults in virtual time.
TTL = coord.Options().session_ttl


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True) as made:
        yield made


def stand(group: Group, *names: str, **options: Any) -> list[Election]:
    """A candidate in each of these members, the first of them elected."""
    elections = [group[name].election("job", **options) for name in names]
    for election in elections:
        election.volunteer()
        group.wait_until(lambda: elections[0].is_leader, what="the first candidate to lead")
    return elections


def queue_length(group: Group, member: str = "a") -> int:
    return len(group[member]._running_loop().replica.machine.locks.queue("election:job"))


# -- the handle


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "election name"),
        ({"name": "n" * 247}, "election name"),
        ({"name": "j", "priority": 1001}, "priority"),
        ({"name": "j", "priority": True}, "priority"),
        ({"name": "j", "lock_delay": 61}, "lock_delay"),
        ({"name": "j", "stop_timeout": -1}, "stop_timeout"),
        ({"name": "j", "stop_timeout": float("nan")}, "stop_timeout"),
        ({"name": "j", "on_stuck": "panic"}, "on_stuck"),
        ({"name": "j", "value": "v" * 4096}, "value"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(coord.ConfigurationError, match=named):
        coord.Node(registry=None).election(**arguments)


def test_a_name_is_a_str_and_may_be_long() -> None:
    node = coord.Node(registry=None)
    with pytest.raises(TypeError):
        node.election(b"job")  # type: ignore[arg-type]
    assert node.election("n" * 246).name == "n" * 246
    with pytest.raises(ValueError, match="set"):
        node.election("job", value={1, 2})


def test_a_candidate_may_be_made_and_volunteer_before_the_start() -> None:
    node = coord.Node(registry=None)
    election, idle = node.election("job"), node.election("other")
    election.volunteer()
    assert not election.is_leader
    with pytest.raises(coord.ClosedError):
        election.leader()
    with pytest.raises(coord.ClosedError):
        election.run(print)
    with node:
        until(lambda: election.is_leader, "leadership without another call")
        assert not idle.is_leader
    assert not election.is_leader
    with pytest.raises(coord.ClosedError):
        idle.volunteer()


def test_after_close_there_is_no_way_back(group: Group) -> None:
    election = group["a"].election("job")
    assert election.close()
    assert election.close()
    for call in (election.volunteer, lambda: election.run(print), lambda: election.lead().__enter__()):
        with pytest.raises(coord.ClosedError):
            call()


# -- lead


def test_lead_enters_when_elected_and_resigns_at_the_end(group: Group) -> None:
    election = group["a"].election("job")
    with election.lead() as leadership:
        assert election.is_leader
        assert leadership.held()
        assert leadership.name == "job"
        assert 0 < leadership.remaining() < TTL
        assert group["b"].check_sequencer(leadership.sequencer)
        first = leadership.token
    assert not election.is_leader
    assert leadership.lost.is_set()
    assert election.leader() is None
    with pytest.raises(coord.LeadershipLost):
        _ = leadership.token
    with group["b"].election("job").lead() as other:
        assert other.token > first


def test_lead_is_over_in_time_and_leaves_nothing_behind(group: Group) -> None:
    stand(group, "a")
    began = group.now
    with pytest.raises(coord.LockTimeout, match="job"), group["b"].election("job").lead(timeout=2):
        pytest.fail("two leaders")
    assert 2 <= group.now - began < 3
    group.run(1.0)
    assert queue_length(group) == 0


def test_lead_raises_if_it_was_lost_unless_something_else_is_on_its_way(group: Group) -> None:
    election = group["a"].election("job")

    def lead(then: Callable[[], object]) -> None:
        with election.lead() as leadership:
            group.lose_lock_now("a")
            group.run(0.1)
            assert leadership.lost.is_set()
            assert not election.is_leader
            then()

    with pytest.raises(coord.LeadershipLost, match="expired"):
        lead(lambda: None)
    with pytest.raises(ZeroDivisionError):
        lead(lambda: 1 / 0)


def test_two_candidates_of_one_process_exclude_each_other(group: Group) -> None:
    one, other = stand(group, "a", "a")
    group.run(2.0)
    assert one.is_leader
    assert not other.is_leader
    one.resign()
    group.wait_until(lambda: other.is_leader)
    assert not one.is_leader


def test_one_candidate_serves_one_thread(group: Group) -> None:
    election = group["a"].election("job")
    with election.lead():
        with pytest.raises(coord.AlreadyHeld):
            election.run(print)
        with pytest.raises(coord.AlreadyHeld), election.lead():
            pytest.fail("entered twice")
        assert election.is_leader


def test_a_leadership_is_no_lock_but_can_be_released(group: Group) -> None:
    election = group["a"].election("job")
    election.volunteer()
    seen: list[Leadership] = []
    election.on_elected(seen.append)
    group.wait_until(lambda: seen)
    with pytest.raises(TypeError):
        seen[0].downgrade()
    with pytest.raises(coord.ConfigurationError):
        group["a"].lock("election:job")
    seen[0].release()
    assert not election.is_leader
    assert election.leader() is None
    with pytest.raises(coord.NotHeld):
        seen[0].release()


# -- run


def test_run_returns_what_the_function_did_or_raises_it(group: Group) -> None:
    election = group["a"].election("job")
    assert election.run(lambda leadership, x, y=0: (leadership.held(), x, y), 1, y=2) == (True, 1, 2)
    assert election.leader() is None
    with pytest.raises(ZeroDivisionError):
        election.run(lambda leadership: 1 / 0)
    assert election.leader() is None
    assert group["b"].election("job").run(lambda leadership: "next") == "next"


def test_run_stands_again_after_each_loss(group: Group) -> None:
    election = group["a"].election("job", lock_delay=0)
    tokens: list[int] = []

    def work(leadership: Leadership) -> str:
        tokens.append(leadership.token)
        if len(tokens) == 4:
            return "done"
        group.lose_lock_now("a")
        group.run(0.1)
        assert not leadership.held()
        if len(tokens) == 1:
            leadership.check()
        if len(tokens) == 2:
            raise ValueError("of no interest any more")
        return "lost"

    assert election.run(work) == "done"
    assert tokens == sorted(set(tokens))


def test_run_stands_again_when_the_leadership_is_too_short_for_the_function(group: Group) -> None:
    election, terms = group["a"].election("job"), []

    def work(leadership: Leadership) -> int:
        terms.append(leadership.token)
        if len(terms) == 1:
            leadership.check(min_remaining=1000.0)
        return len(terms)

    assert election.run(work) == 2
    assert terms[1] > terms[0]


def test_run_returns_none_when_closed_or_resigned_while_it_waits(group: Group) -> None:
    stand(group, "a")
    for end in (Election.resign, Election.close):
        election = group["b"].election("job")
        group.after(5.0, end, election)
        assert election.run(lambda leadership: "led") is None
        group.run(1.0)
        assert queue_length(group) == 0


def test_run_raises_why_its_member_has_stopped(group: Group) -> None:
    stand(group, "a")
    group.after(5.0, group.kill, "b")
    with pytest.raises(coord.ClosedError, match="killed"):
        group["b"].election("job").run(lambda leadership: None)


def test_close_by_another_thread_ends_a_run_in_real_time(alone: coord.Node) -> None:
    election, started = alone.election("job"), threading.Event()
    results: list[object] = []

    def work(leadership: Leadership) -> str:
        started.set()
        assert leadership.stopping.wait(20), "never told to stop"
        assert leadership.held(), "released before the work had stopped"
        return "stopped"

    thread = threading.Thread(target=lambda: results.append(election.run(work)))
    thread.start()
    assert started.wait(20)
    assert election.close()
    thread.join(20)
    assert results == ["stopped"]
    assert alone.election("job").leader() is None


# -- resign, priority


def test_resign_and_volunteer_again(group: Group) -> None:
    a, b = stand(group, "a", "b")
    group.run(1.0)
    assert a.resign()
    assert not a.is_leader
    group.wait_until(lambda: b.is_leader)
    a.volunteer()
    a.volunteer()
    group.run(1.0)
    assert queue_length(group) == 1
    assert b.resign()
    group.wait_until(lambda: a.is_leader)


def test_resign_can_name_a_successor(group: Group) -> None:
    a, b, c = stand(group, "a", "b", "c")
    group.wait_until(lambda: queue_length(group) == 2)
    assert a.resign(to="c")
    group.wait_until(lambda: c.is_leader)
    assert not b.is_leader
    assert c.resign(to="nobody")
    group.wait_until(lambda: b.is_leader)
    with pytest.raises(TypeError):
        b.resign(to=3)  # type: ignore[arg-type]


def test_a_higher_priority_is_elected_first_and_deposes_nobody(group: Group) -> None:
    a, b = stand(group, "a", "b")
    group.wait_until(lambda: queue_length(group) == 1)
    c = group["c"].election("job", priority=5)
    c.volunteer()
    group.wait_until(lambda: queue_length(group) == 2)
    group.run(5.0)
    assert a.is_leader
    a.resign()
    group.wait_until(lambda: c.is_leader)
    assert not b.is_leader


# -- what befalls a leader


@pytest.mark.parametrize(
    ("options", "least", "most"), [({}, 2 * TTL - 1, 2 * TTL + 5), ({"lock_delay": 0}, 0.0, TTL + 5)]
)
def test_when_a_leader_dies_another_is_elected(
    group: Group, options: dict[str, Any], least: float, most: float
) -> None:
    leader = next(name for name in group.names if name != group.leader().name)
    other = next(name for name in group.names if name != leader)
    dying, heir = stand(group, leader, other, **options)
    group.run(1.0)
    died = group.now
    group.kill(leader)
    assert not dying.is_leader
    group.wait_until(lambda: heir.is_leader, timeout=60)
    assert least <= group.now - died <= most


def test_a_leader_cut_off_stops_before_another_begins(group: Group) -> None:
    a, b = stand(group, "a", "b", lock_delay=0)
    leaderships = []
    a.on_revoked(lambda leadership, reason: leaderships.append(reason))
    group.wait_until(lambda: queue_length(group) == 1)
    group.partition(["a"])

    def two_lead() -> bool:
        return a.is_leader and b.is_leader

    group.wait_until(lambda: two_lead() or b.is_leader, timeout=60)
    assert not a.is_leader
    assert leaderships == ["suspended"]
    assert group["a"].election("job").leader() == a.leader(), "its own copy is old"
    group.heal()
    group.run(15.0)
    assert b.is_leader
    assert not a.is_leader
    b.resign()
    group.wait_until(lambda: a.is_leader, what="the one that was cut off to stand again by itself")


def test_a_paused_leader_knows_by_the_clock(group: Group) -> None:
    a, b = stand(group, "a", "b", lock_delay=0)
    group.wait_until(lambda: queue_length(group) == 1)
    group.pause("a")
    group.wait_until(lambda: b.is_leader, timeout=60)
    assert not a.is_leader, "its thread stands still, but the clock does not"
    group.resume("a")
    group.run(15.0)
    assert b.is_leader
    assert not a.is_leader


def test_a_leadership_whose_lease_ran_out_does_not_come_back_with_the_session(group: Group) -> None:
    election = group["a"].election("job")
    seen: list[tuple[str, int]] = []
    election.on_elected(lambda leadership: seen.append(("elected", leadership.token)))
    election.on_revoked(lambda leadership, reason: seen.append((reason, leadership._request.token)))
    election.volunteer()
    group.wait_until(lambda: election.is_leader)
    session = group["a"].session.id
    group.partition(["a"], ["b"], ["c"])
    group.run(TTL + 5)
    assert not election.is_leader
    group.heal()
    group.wait_until(lambda: election.is_leader)
    assert group["a"].session.id == session, "nobody could end it without a quorum"
    group.run(1.0)
    (_, first), (_, also_first), (_, second) = seen
    assert [what for what, _ in seen] == ["elected", "suspended", "elected"]
    assert first == also_first < second


FORK = """
import os, coord
node = coord.Node(registry=None)
node.start()
election = node.election("job")
with election.lead() as leadership:
    child = os.fork()
    if child == 0:
        status = 0 if not election.is_leader and not leadership.held() else 1
        for call in (election.volunteer, election.resign, election.close, election.leader, leadership.release):
            try:
                call()
            except coord.ForkedError:
                continue
            status = 2
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert election.is_leader
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_lead() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- who leads


def test_what_a_leader_publishes_is_seen_by_all(group: Group) -> None:
    (election,) = stand(group, "a", value={"at": "10.0.0.1"})
    for name in group.names:
        leader = group.wait_until(group[name].election("job").leader)
        assert (leader.name, leader.value) == ("a", {"at": "10.0.0.1"})
        assert leader.token > 0
        assert 0 <= leader.since <= group.now
    election.resign()
    with election.lead() as leadership:
        leadership.update_value([1, None])
        assert leadership.value == [1, None]
        leadership.value.append("mine")
        assert leadership.value == [1, None]
        group.wait_until(lambda: (found := group["c"].election("job").leader()) and found.value == [1, None])
        with pytest.raises(coord.QuotaExceeded):
            leadership.update_value("v" * 4096)
        with pytest.raises(ValueError, match="tuple"):
            leadership.update_value((1, 2))
    with pytest.raises(coord.LeadershipLost):
        leadership.update_value("late")


def test_an_observation_tells_of_every_leader_and_of_nobody(group: Group) -> None:
    with group["c"].election("job").observe() as observation:
        assert next(observation) is None
        a, b = stand(group, "a", "b")
        found = next(observation)
        assert found is not None
        assert found.name == "a"
        group.wait_until(lambda: queue_length(group) == 1)
        group.lose_lock_now("a")
        assert next(observation) is None, "the lock-delay lasts, and nobody leads"
        found = next(observation)
        assert found is not None
        assert found.name == "b"
        a.close()
        b.close()
        assert next(observation) is None
    with pytest.raises(StopIteration):
        next(observation)


def test_who_observes_slowly_gets_the_newest(group: Group) -> None:
    election = group["a"].election("job")
    observation = group["b"].election("job").observe()
    group.run(0.1)
    for number in range(5):
        with election.lead() as leadership:
            leadership.update_value(number)
            group.run(0.1)
            last = leadership.token
    with election.lead() as leadership:
        leadership.update_value("newest")
        group.run(0.1)
        found = next(observation)
        assert found is not None
        assert found.value == "newest"
        assert found.token == leadership.token > last
        observation.close()


def test_a_callback_observes_and_may_raise(group: Group) -> None:
    seen: list[Leader | None] = []

    def look(leader: Leader | None) -> None:
        seen.append(leader)
        if leader is None:
            raise ValueError("logged")

    observation = group["b"].election("job").observe(look)
    with pytest.raises(TypeError):
        next(observation)
    (election,) = stand(group, "a")
    group.wait_until(lambda: len(seen) == 2)
    other = group["c"].election("job")
    other.volunteer()
    group.wait_until(lambda: queue_length(group, "b") == 1)
    other.close()
    group.wait_until(lambda: queue_length(group, "b") == 0)
    assert len(seen) == 2, "who waits is no news"
    election.resign()
    group.wait_until(lambda: len(seen) == 3)
    assert [leader and leader.name for leader in seen] == [None, "a", None]
    observation.close()
    election.volunteer()
    group.run(2.0)
    assert election.is_leader
    assert len(seen) == 3


def test_an_observation_ends_with_its_member_and_not_only_by_close(group: Group) -> None:
    observation = group["b"].election("job").observe()
    assert next(observation) is None
    group.after(3.0, group.kill, "b")
    with pytest.raises(coord.ClosedError, match="killed"):
        next(observation)


def test_an_observation_nobody_reads_any_more_is_let_go_of(group: Group) -> None:
    election = group["a"].election("job")
    watchers = group["a"]._running_loop().replica.own.watchers
    for _ in election.observe():
        break
    group.run(0.1)
    with election.lead():
        group.run(0.1)
    assert watchers == []


def test_an_observation_learns_from_a_snapshot_too() -> None:
    """A member that was cut off, and that gets none of the entries in between."""
    with Group(virtual=True, options=coord.Options(snapshot_entries=20)) as group:
        leader = group.leader()
        other, away = (name for name in group.names if name != leader.name)
        observation = group[away].election("job").observe()
        assert next(observation) is None
        replica = group[away]._running_loop().replica
        group.partition([away])
        election = group[other].election("job")
        election.volunteer()
        for number in range(100):
            leader.config["key"] = number
        group.wait_until(
            lambda: leader._running_loop().replica.core.log.first_index > replica.machine.applied_index + 1
        )
        group.heal()
        found = next(observation)
        assert found is not None
        assert found.name == other
        assert replica.core.log.base > 0, "it came by the log, so nothing was tried here"


# -- functions


def test_leader_only_runs_where_the_leader_is(group: Group) -> None:
    ran: list[str] = []

    def on(name: str) -> Callable[[str], str | None]:
        @group[name].leader_only("job")
        def job(what: str) -> str:
            ran.append(name)
            return what

        return job

    jobs = {name: on(name) for name in group.names}
    assert [jobs[name]("x") for name in group.names] == [None, None, None], "nobody was a candidate yet"
    group.run(1.0)
    assert sorted((jobs[name]("x") for name in group.names), key=bool) == [None, None, "x"]
    assert len(ran) == 1
    leader = group["a"].election("job").leader()
    assert leader is not None
    assert ran == [leader.name]


def test_leader_only_goes_by_any_candidate_of_the_process_and_can_raise(group: Group) -> None:
    job = group["a"].leader_only("job", otherwise="raise")(lambda: "ran")
    with group["a"].election("job").lead():
        assert job() == "ran"
    election = group["a"].election("job")
    election.volunteer()
    group.run(0.1)
    assert job() == "ran"
    election.resign()
    with pytest.raises(coord.NotHeld, match="job"):
        job()
    group.run(2.0)
    with pytest.raises(coord.NotHeld):
        job()
    assert election.leader() is None, "who resigned shall not be made to stand by calling a function"


def test_leader_only_gives_the_leadership_to_who_asks_for_it(group: Group) -> None:
    @group["a"].leader_only("job")
    def job(what: str, *, leadership: Leadership | None = None) -> tuple[str, int]:
        assert leadership is not None
        return what, leadership.token

    with group["a"].election("job").lead() as leadership:
        assert job("x") == ("x", leadership.token)


def test_leader_only_is_for_plain_functions(group: Group) -> None:
    async def coroutine() -> None:
        """Never awaited."""

    def generator() -> Iterator[int]:
        yield 1

    for fn in (coroutine, generator, "text"):
        with pytest.raises(TypeError):
            group["a"].leader_only("job")(fn)  # type: ignore[arg-type]
    with pytest.raises(coord.ConfigurationError):
        group["a"].leader_only("job", otherwise="wait")  # type: ignore[arg-type]

    @group["a"].leader_only("job")
    def named() -> None:
        """Keeps its name."""

    assert (named.__name__, named.__doc__) == ("named", "Keeps its name.")
    group["a"].stop()
    with pytest.raises(coord.ClosedError):
        named()


def test_functions_on_leader_share_a_candidate(group: Group) -> None:
    ran: list[str] = []
    for name in ("a", "b"):
        for what in ("one", "two"):

            @group[name].on_leader
            def note(leadership: Leadership, name: str = name, what: str = what) -> None:
                ran.append(name + what)

            assert callable(note)
    group.run(1.0)
    assert ran in (["aone", "atwo"], ["bone", "btwo"])
