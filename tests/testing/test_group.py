"""`coord.testing.Group`: what it does to its members, in real and in virtual time alike, and what it says to misuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coord
from coord.testing import QUICK, Group


@pytest.fixture(params=[False, True], ids=["real", "virtual"])
def virtual(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def make(virtual: bool) -> Iterator[Callable[..., Group]]:
    """Makes started groups; they end with the test."""
    made: list[Group] = []

    def start(*arguments: Any, **settings: Any) -> Group:
        made.append(Group(*arguments, virtual=virtual, **{"options": QUICK, **settings}).start())
        return made[-1]

    yield start
    for group in made:
        group.close()


@pytest.fixture
def group(make: Callable[..., Group]) -> Group:
    return make()


def test_members_are_nodes_and_share_a_map(group: Group) -> None:
    assert group.names == ("a", "b", "c")
    assert all(isinstance(group[name], coord.Node) and group[name].name == name for name in group.names)
    revision = group["a"].config.put("k", {"n": [1]})
    assert group["b"].config.get("k", min_revision=revision) == {"n": [1]}
    assert group["c"].config.get("k", linearizable=True) == {"n": [1]}
    assert len(group.wait_converged()) == 16
    assert {node.status().state_hash for node in group.running} == {group.wait_converged()}


def test_the_leader_and_its_followers(group: Group) -> None:
    leader, followers = group.leader(), group.followers()
    assert leader.status().role == "leader"
    assert sorted([leader.name, *(node.name for node in followers)]) == ["a", "b", "c"]
    assert {node.cluster.leader() for node in group.running} == {leader.name}


@pytest.mark.parametrize(
    ("arguments", "names"), [({"members": 1}, "a"), ({"members": 5}, "abcde"), ({"names": "xyz"}, "")]
)
def test_other_members(make: Callable[..., Group], arguments: dict[str, Any], names: str) -> None:
    given = {key: tuple(value) if key == "names" else value for key, value in arguments.items()}
    group = make(**given)
    assert group.names == tuple(names or "xyz")
    assert group.leader().config.put("k", 1) > 0


def test_options_for_all_and_for_one(make: Callable[..., Group]) -> None:
    group = make(options={"b": coord.Options(priority=-1)})
    assert [group[name].options.priority for name in "abc"] == [0, -1, 0]
    assert make(options=coord.Options(heartbeat=0.02))["a"].options.heartbeat == 0.02


def test_a_killed_leader_is_replaced_at_once_and_its_disk_stays(group: Group, virtual: bool) -> None:
    old = group.leader()
    old.config["k"] = 1
    began = group.now
    group.kill(old)
    new = group.leader()
    assert new.name != old.name
    if virtual:
        # In real time a busy machine may take any time.
        assert group.now - began < QUICK.election_timeout[0], "the others had no proof that it is gone"
    with pytest.raises(coord.ClosedError, match="was killed by the test"):
        old.config["k"]
    new.config["k"] = 2
    back = group.restart(old)
    assert back is group[old.name] is not old
    group.wait_converged()
    assert back.config["k"] == 2


def test_everybody_killed_and_started_again_knows_what_was_written(group: Group) -> None:
    group["b"].config["k"] = "kept"
    # 0 until the group has pinned it.
    incarnation = group.wait_until(lambda: group["a"].cluster.members()[0].incarnation)
    for name in group.names:
        group.kill(name)
    assert group.running == []
    for name in group.names:
        group.restart(name)
    assert group["c"].config.get("k", linearizable=True) == "kept"
    assert group.leader().cluster.members()[0].incarnation == incarnation


def test_a_session_outlives_a_kill_and_ends_after_its_ttl(group: Group) -> None:
    worker, *others = group.followers()
    worker.config.put("workers/1", True, ephemeral=True)
    group.kill(worker)
    assert group.leader().config.get("workers/1", linearizable=True), "a killed process cannot have said goodbye"
    began = group.now
    group.wait_until(lambda: "workers/1" not in others[0].config)
    assert group.now - began > QUICK.session_ttl / 2


def test_a_stopped_member_says_goodbye(group: Group, virtual: bool) -> None:
    worker, other = group.followers()
    worker.config.put("workers/1", True, ephemeral=True)
    began = group.now
    worker.stop()
    group.wait_until(lambda: "workers/1" not in other.config)
    if virtual:
        assert group.now - began < QUICK.session_ttl / 2
    assert group.restart(worker).config.put("k", 1) > 0


def test_a_leader_cut_off_writes_nothing_and_another_takes_over(group: Group) -> None:
    old = group.leader()
    group.partition([old])
    with pytest.raises((coord.OutcomeUnknown, coord.Unavailable)):
        old.config.put("k", "lost?", timeout=0.2)
    new = group.leader()
    assert new.name != old.name
    new.config["k"] = "written"
    assert old.config.get("k") is None, "it is cut off"
    with pytest.raises(coord.Unavailable):
        old.config.get("k", linearizable=True, timeout=0.2)
    group.heal()
    group.wait_converged()
    assert old.config["k"] == "written"


def test_sides_with_names_nodes_and_the_rest(make: Callable[..., Group]) -> None:
    group = make(members=5)
    group.leader()
    group.partition("a", [group["b"]])
    assert group.leader().name in "cde", "two alone, three together"
    group.partition(["a", "b", "c"])
    assert group.leader().name in "abc", "d and e are the rest, and too few"


def test_a_cut_in_one_direction(group: Group) -> None:
    """A leader that is not heard is replaced, though it hears everybody."""
    old = group.leader()
    for other in group.followers():
        group.cut(old, other)
    group.wait_until(lambda: any(node.status().role == "leader" for node in group.running if node is not old))
    group.heal()
    group.wait_converged()


def test_a_paused_leader_is_replaced_and_follows_when_it_goes_on(group: Group) -> None:
    old = group.leader()
    old.config["k"] = 1
    group.pause(old)
    new = group.leader()
    assert new.name != old.name
    new.config["k"] = 2
    assert old.config["k"] == 1, "local reads go on, and it stands still"
    with pytest.raises(coord.CoordError):
        old.config.put("k", 3, timeout=0.05)
    group.resume(old)
    group.wait_converged()
    assert old.config["k"] == 2
    assert old.cluster.leader() == group.leader().name


def test_a_paused_member_can_be_killed(group: Group) -> None:
    worker = group.followers()[0]
    worker.config["k"] = 1
    group.pause(worker)
    group.kill(worker)
    with pytest.raises(coord.ClosedError):
        worker.config["k"]
    group.restart(worker)
    group.wait_converged()


@pytest.mark.parametrize("leads", [True, False])
def test_a_lost_session_takes_what_it_holds(group: Group, leads: bool) -> None:
    worker = group.leader() if leads else group.followers()[0]
    worker.config.put("workers/1", True, ephemeral=True)
    worker.config["stays"] = 1
    group.lose_lock_now(worker)
    assert ["workers/1" in node.config for node in group.running] == [False, False, False]
    assert all("stays" in node.config for node in group.running)
    worker.config.put("workers/1", True, ephemeral=True)
    group.lose_lock_now(worker)
    assert "workers/1" not in worker.config, "the next session can be ended as well"


def test_a_session_lost_behind_a_cut_is_known_to_all_but_its_holder(group: Group) -> None:
    worker = group.followers()[0]
    worker.config.put("workers/1", True, ephemeral=True)
    group.partition([worker])
    group.lose_lock_now(worker)
    assert ["workers/1" in node.config for node in group.running if node is not worker] == [False, False]
    assert "workers/1" in worker.config
    group.heal()
    group.wait_until(lambda: "workers/1" not in worker.config)


def test_a_session_of_a_killed_member_can_be_lost_once(group: Group) -> None:
    worker = group.followers()[0]
    worker.config.put("workers/1", True, ephemeral=True)
    group.kill(worker)
    group.lose_lock_now(worker)
    assert "workers/1" not in group.leader().config
    with pytest.raises(RuntimeError, match="has no session"):
        group.lose_lock_now(worker)


def test_a_slow_and_lossy_network(make: Callable[..., Group]) -> None:
    group = make(loss=0.1, delay=0.004, seed=5)
    for number in range(10):
        group[group.names[number % 3]].config["k"] = number
    assert (group.loss, group.delay) == (0.1, 0.004)
    group.loss = group.delay = 0.0
    group.wait_converged()
    assert group["a"].config["k"] == 9
    group.loss = 1.0
    with pytest.raises(coord.CoordError):
        group["a"].config.put("k", 10, timeout=0.1)


def test_many_writes_and_snapshots(make: Callable[..., Group]) -> None:
    """The disk serves the member's thread and the one that takes snapshots; a member that was away gets one."""
    group = make(options=coord.Options(heartbeat=0.05, election_timeout=(0.3, 0.6), snapshot_entries=20))
    late = group.followers()[0]
    group.kill(late)
    leader = group.leader()
    for number in range(200):
        leader.config[f"k{number % 7}"] = number
    assert leader.status().first_index > 20
    back = group.restart(late)
    group.wait_converged()
    assert back.config["k3"] == 199
    for name in group.names:
        group.kill(name)
    for name in group.names:
        group.restart(name)
    assert group["a"].config.get("k3", linearizable=True) == 199


def test_waiting_for_what_does_not_come_tells_how_things_stand(group: Group) -> None:
    group.leader()
    group.kill("a")
    group.pause("b")
    group.cut("c", "b")
    with pytest.raises(TimeoutError) as caught:
        group.leader(timeout=0.2)
    text = str(caught.value)
    assert "a leader did not come within 0.2 s" in text
    assert "a: it was killed" in text
    assert "b: paused" in text
    assert "cut: c -> b" in text
    with pytest.raises(TimeoutError, match="an equal state"):
        group.wait_converged(timeout=0.1)
    with pytest.raises(TimeoutError, match="pigs that fly"):
        group.wait_until(lambda: False, 0.05, "pigs that fly")


def test_wait_until_returns_what_was_found(group: Group) -> None:
    group["a"].config["k"] = 5
    assert group.wait_until(lambda: group["b"].config.get("k")) == 5


def misuses() -> list[tuple[str, Callable[[Group], Any], type[Exception], str]]:
    stranger = coord.Node("zz")

    def killed_twice(group: Group) -> None:
        group.kill("a")
        group.kill("a")

    def pause_killed(group: Group) -> None:
        group.kill("a")
        group.pause("a")

    def paused_twice(group: Group) -> None:
        group.pause("a")
        group.pause("a")

    def closed(group: Group) -> None:
        group.close()
        group.kill("a")

    def pause_stopped(group: Group) -> None:
        group["a"].stop()
        group.pause("a")

    return [
        ("index", lambda group: group["zz"], KeyError, "no member 'zz' in this group; its members are a, b, c"),
        ("kill unknown", lambda group: group.kill("zz"), KeyError, "no member 'zz'"),
        ("kill stranger", lambda group: group.kill(stranger), KeyError, "no member 'zz'"),
        ("kill twice", killed_twice, RuntimeError, r"'a' cannot be killed, .*it was killed; restart\('a'\) first"),
        ("restart running", lambda group: group.restart("a"), RuntimeError, "'a' runs"),
        ("pause killed", pause_killed, RuntimeError, "'a' cannot be paused"),
        ("pause stopped", pause_stopped, RuntimeError, "'a' cannot be paused, .* stopped"),
        ("pause twice", paused_twice, RuntimeError, "'a' is paused already"),
        ("resume", lambda group: group.resume("a"), RuntimeError, "'a' is not paused"),
        ("cut self", lambda group: group.cut("a", "a"), ValueError, "name two members"),
        ("cut unknown", lambda group: group.cut("a", "zz"), KeyError, "no member 'zz'"),
        ("partition twice", lambda group: group.partition("a", ["a", "b"]), ValueError, "'a' is named twice"),
        ("partition none", lambda group: group.partition(), ValueError, "one side"),
        ("partition all", lambda group: group.partition("abc"), KeyError, "no member 'abc'"),
        ("loss", lambda group: setattr(group, "loss", 1.5), ValueError, "loss=1.5"),
        ("delay", lambda group: setattr(group, "delay", -1), ValueError, "delay=-1"),
        ("start", lambda group: group.start(), RuntimeError, "started already"),
        ("closed", closed, RuntimeError, "closed; make another"),
    ]


@pytest.mark.parametrize(("misuse", "kind", "text"), [row[1:] for row in misuses()], ids=[row[0] for row in misuses()])
def test_misuse_is_told(group: Group, misuse: Callable[[Group], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        misuse(group)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"members": 4}, "members=4: expected an odd number"),
        ({"members": 0}, "members=0"),
        ({"names": "abc"}, "expected several"),
        ({"names": ["a", "a", "b"]}, "different names"),
        ({"names": ["a", "b", "c"], "members": 5}, "give one of the two"),
        ({"options": {"q": QUICK}}, "'q', which is no member"),
        ({"loss": 2}, "loss=2"),
        ({"delay": float("nan")}, "delay=nan"),
        ({"trace": print, "virtual": False}, "only with virtual=True"),
    ],
)
def test_what_cannot_be_made_is_told(virtual: bool, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Group(**{"virtual": virtual, **arguments})


def test_before_the_start(virtual: bool) -> None:
    group = Group(virtual=virtual)
    with pytest.raises(RuntimeError, match="not started"):
        group["a"]
    group.close()
    with pytest.raises(RuntimeError, match="closed"):
        group.start()


def test_closing_ends_everything_whatever_happened_before(virtual: bool) -> None:
    with Group(virtual=virtual, options=QUICK) as group:
        nodes = [group[name] for name in group.names]
        group.leader()
        group.pause("a")
        group.kill("b")
        group.partition(["a"], ["b"], ["c"])
    for node in nodes:
        with pytest.raises(coord.ClosedError):
            node.config.get("k")
    group.close()
    assert "closed" in group.describe()
    with pytest.raises(coord.ClosedError, match="the group of member 'c' was closed"):
        nodes[2].config.get("k")
