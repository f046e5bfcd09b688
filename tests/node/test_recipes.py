"""Party, Barrier, DoubleBarrier and Counter: what they promise, and what becomes of it when members die, are cut off,
lose their session, or get another leader.

In virtual time, and once more in real time, where threads meet. What must not live here: the config map's own promises
(`test_config_map`), what ends a session (`test_session`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import coord
from coord import logs
from coord.recipes import COUNT_MAX, NAME_BYTES_MAX, Barrier, Counter, DoubleBarrier, Party
from coord.testing import QUICK, Group
from node.group import PATIENCE, until

TTL = coord.Options().session_ttl
#: The sizes of names are in bytes: two of them for each of these.
LONGEST = "ä" * (NAME_BYTES_MAX // 2)


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=7) as group:
        yield group


@pytest.fixture
def real() -> Iterator[Group]:
    # However busy the machine is, nobody loses a session that was not told to.
    with Group(options=replace(QUICK, session_ttl=2 * PATIENCE, default_timeout=PATIENCE)) as group:
        group.leader()
        yield group


def followers(group: Group) -> list[coord.Node]:
    leader = group.leader()
    return [group[name] for name in group.names if group[name] is not leader]


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each returned; raises what one raised."""
    results: list[Any] = [None] * len(works)

    def run(number: int, work: Callable[[], Any]) -> None:
        try:
            results[number] = work()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a call has not returned"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def keys(node: coord.Node, prefix: str = "coord/") -> list[str]:
    return node.config.keys(prefix)


def has_grown(items: list[Any], size: int) -> bool:
    return len(items) >= size


def cut_off_and_fail(group: Group) -> None:
    group.partition(*group.names)
    raise ZeroDivisionError


# ---------------------------------------------------------------------------------------------------------------------
# Names and arguments.


@pytest.mark.parametrize("make", [Party, Barrier, Counter, lambda node, name: DoubleBarrier(node, name, 1)])
def test_a_name_that_cannot_be_is_refused(make: Callable[[coord.Node, Any], Any]) -> None:
    node = coord.Node(registry=None)
    for name in ("", LONGEST + "x", "\ud800"):
        with pytest.raises(coord.ConfigurationError, match="name"):
            make(node, name)
    with pytest.raises(TypeError, match="name"):
        make(node, 1)
    # Works before the start, and asks nothing.
    assert make(node, LONGEST).name == LONGEST


@pytest.mark.parametrize("count", [0, -1, COUNT_MAX + 1, 1.0, True, "2"])
def test_a_count_that_cannot_be_is_refused(count: Any) -> None:
    with pytest.raises(coord.ConfigurationError, match="count="):
        DoubleBarrier(coord.Node(registry=None), "x", count)


@pytest.mark.parametrize("default", [1 << 63, -(1 << 63) - 1, 1.0, True, None])
def test_a_default_that_cannot_be_is_refused(default: Any) -> None:
    with pytest.raises(coord.ConfigurationError, match="default="):
        Counter(coord.Node(registry=None), "x", default)


def test_the_longest_names_work(group: Group) -> None:
    node = group.leader()
    party = Party(node, LONGEST, "v")
    party.join()
    assert party.members() == {node.name: "v"}
    assert DoubleBarrier(node, LONGEST, 1).enter()
    assert Barrier(node, LONGEST).create()
    assert Counter(node, LONGEST).add(1) == 1


def test_one_name_is_not_taken_for_the_beginning_of_another(group: Group) -> None:
    """Names may have slashes in them."""
    a, b = group["a"], group["b"]
    Party(a, "x").join()
    Party(b, "x/y").join()
    assert list(Party(a, "x")) == ["a"]
    assert list(Party(b, "x/y")) == ["b"]
    Barrier(a, "x/y").create()
    assert Barrier(b, "x").wait()
    # Two are there in all, one in each: neither begins.
    one = Participant(a, "x/y", 2)
    one.comes()
    assert not DoubleBarrier(b, "x", 2).enter(timeout=4)
    assert one.waits


# ---------------------------------------------------------------------------------------------------------------------
# Party.


def test_members_come_and_go(group: Group) -> None:
    a, b, c = (Party(group[name], "workers", {"port": number}) for number, name in enumerate("abc"))
    assert (a.members(), len(a), list(a), "a" in a) == ({}, 0, [], False)
    c.join()
    a.join()
    assert (a.joined, b.joined) == (True, False)
    assert list(b.members(linearizable=True).items()) == [("a", {"port": 0}), ("c", {"port": 2})], "in order of names"
    assert (len(b), list(b), "a" in b, "b" in b) == (2, ["a", "c"], True, False)
    a.join()
    a.leave()
    assert (a.joined, list(a)) == (False, ["c"])
    a.leave()
    with b:
        assert "b" in b
    assert list(c.members(linearizable=True)) == ["c"]
    assert keys(group["c"]) == ["coord/party/workers/c"]


def test_a_member_that_stops_is_gone_at_once_and_one_that_dies_with_its_session(group: Group) -> None:
    lone, other = followers(group)
    watcher = Party(group.leader(), "p")
    Party(lone, "p").join()
    Party(other, "p").join()
    lone.stop()
    group.wait_until(lambda: other.name in watcher and len(watcher) == 1, 2, "the end of the one that stopped")
    group.restart(lone)
    group.kill(other)
    group.run(TTL / 2)
    assert list(watcher) == [other.name], "for all one knows, it may be back"
    group.wait_until(lambda: not list(watcher), 2 * TTL, "the end of the one that died")


def test_who_loses_the_session_joins_again_by_itself(group: Group) -> None:
    """kazoo's Party does not: the application has to notice, and to call join() again."""
    node, other = followers(group)
    party = Party(node, "p", 1)
    party.join()
    seen: list[dict[str, Any]] = []
    Party(other, "p").watch(seen.append)
    group.run(0.5)
    for _ in range(3):
        before, id = len(seen), node.session.id
        group.lose_lock_now(node)
        group.wait_until(partial(has_grown, seen, before + 2), 20, "its coming back")
        assert node.session.id != id
        assert seen[before:] == [{}, {node.name: 1}]
    assert party.joined


def test_a_member_that_was_cut_off_is_expired_and_joins_again(group: Group) -> None:
    node, other = followers(group)
    party, view = Party(node, "p", "v"), Party(other, "p")
    party.join()
    assert view.members(linearizable=True) == {node.name: "v"}
    group.partition([node])
    group.wait_until(lambda: not len(view), 3 * TTL, "the end of its session")
    assert len(party) == 1, "it cannot know"
    group.heal()
    group.wait_until(lambda: view.members() == {node.name: "v"}, 30, "its coming back")


def test_a_leader_that_is_cut_off_joins_again(group: Group) -> None:
    old = group.leader()
    others = followers(group)
    Party(old, "p").join()
    view = Party(others[0], "p")
    group.partition([old])
    group.wait_until(lambda: view._coordinator.cluster.leader() in (others[0].name, others[1].name), 20)
    group.wait_until(lambda: not len(view), 4 * TTL, "the end of its session")
    group.heal()
    group.wait_until(lambda: list(view) == [old.name], 30, "its coming back")


def test_a_change_of_leader_moves_nobody(group: Group) -> None:
    one, two = followers(group)
    Party(one, "p", 1).join()
    Party(two, "p", 2).join()
    expected = {one.name: 1, two.name: 2}
    group.wait_converged()
    seen: list[Any] = []
    Party(one, "p").watch(seen.append)
    group.kill(group.leader())
    group.run(3 * TTL)
    assert Party(two, "p").members(linearizable=True, timeout=30) == expected
    assert seen == [expected], "nobody left, and nobody came"


def test_who_has_left_does_not_come_again(group: Group) -> None:
    node, other = followers(group)
    party, view = Party(node, "p"), Party(other, "p")
    party.join()
    party.leave()
    group.wait_converged()
    seen: list[Any] = []
    view.watch(seen.append)
    group.lose_lock_now(node)
    group.run(3 * TTL)
    assert (seen, party.joined) == ([{}], False)


def test_who_leaves_while_the_session_is_lost_does_not_come_again(group: Group) -> None:
    """The moment at which joining again and leaving meet, whichever it is."""
    node, other = followers(group)
    for number in range(40):
        party, view = Party(node, f"p{number}"), Party(other, f"p{number}")
        party.join()
        group.after(0.0005 * number, group.lose_lock_now, node)
        group.run(0.005)
        party.leave()
        assert not len(party), "leave() has returned, so it is out"
        group.run(1.0)
        assert view.members(linearizable=True) == {}, f"came again, in try {number}"


def test_who_was_stopped_does_not_come_again(group: Group) -> None:
    node, other = followers(group)
    party, view = Party(node, "p"), Party(other, "p")
    with party:
        node.stop()
    party.leave()
    group.run(2 * TTL)
    assert view.members(linearizable=True) == {}
    with pytest.raises(coord.ClosedError):
        party.join()


def test_a_process_that_starts_again_has_to_join_again(group: Group) -> None:
    node, other = followers(group)
    Party(node, "p").join()
    view = Party(other, "p")
    group.kill(node)
    again = group.restart(node.name)
    group.wait_until(lambda: not len(view), 8, "the end of its predecessor")
    party = Party(again, "p", "new")
    party.join()
    assert view.members(linearizable=True) == {node.name: "new"}
    group.run(2 * TTL)
    assert list(view) == [node.name]


def test_what_a_predecessor_left_is_not_taken_for_ones_own(group: Group) -> None:
    """It goes in the moment in which the new session is opened, so to find it there is not to have joined."""
    node, _ = followers(group)
    Party(node, "p", "v").join()
    group.kill(node)
    again = group.restart(node.name)
    party = Party(again, "p", "v")
    group.wait_until(lambda: node.name in party, 10, "what the predecessor left")
    party.join()
    entry = again.config.entry(f"coord/party/p/{node.name}")
    assert entry is not None
    assert entry.session == again.session.id, "joined by the session of a dead process"


def test_who_is_kept_out_when_coming_again_tries_until_it_may(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    node, other = followers(group)
    party, key = Party(node, "p", "v"), f"coord/party/p/{node.name}"
    party.join()
    group.wait_converged()
    group.partition([node])
    group.wait_until(lambda: key not in other.config, 3 * TTL, "the end of its session")
    other.config.put(key, "squatter", ephemeral=True)
    group.heal()
    group.wait_until(lambda: node.session.state == "VALID", 30, "another session")
    group.run(10.0)
    assert (party.members(), party.joined) == ({node.name: "squatter"}, True)
    logs.flush(5.0)
    tries = [record for record in caplog.records if "cannot be changed now" in record.getMessage()]
    assert 2 <= len(tries) <= 13, "not once a second"
    with pytest.raises(coord.Conflict):
        party.join()
    other.config.delete(key)
    group.wait_until(lambda: party.members() == {node.name: "v"}, 3, "its coming back")


def test_handles_of_one_coordinator_are_one_member_until_the_last_leaves(group: Group) -> None:
    node = group.leader()
    one, two, three = (Party(node, "p", value) for value in ("one", "two", "three"))
    one.join()
    two.join()
    assert (one.members(), len(one)) == ({node.name: "two"}, 1), "the value of the one that joined last"
    three.leave()
    assert one.members() == {node.name: "two"}, "it had not joined, so it takes nobody out"
    two.leave()
    group.wait_until(lambda: one.members() == {node.name: "one"}, 5, "the value of the one that is left")
    one.join()
    one.leave()
    assert one.members() == {}


def test_what_could_not_join_in_time_is_withdrawn(group: Group) -> None:
    node, other = followers(group)
    party, view = Party(node, "p"), Party(other, "p")
    group.partition([node])
    began = group.now
    with pytest.raises(coord.OutcomeUnknown, match="withdrawn"):
        party.join(timeout=1.5)
    assert group.now - began == pytest.approx(1.5, abs=0.01)
    assert not party.joined
    seen: list[Any] = []
    view.watch(seen.append)
    group.heal()
    group.run(30.0)
    assert view.members(linearizable=True) == {}, "joined after all"
    assert seen[-1] == {}


def test_what_could_not_leave_in_time_leaves_later(group: Group) -> None:
    node, other = followers(group)
    party, view = Party(node, "p"), Party(other, "p")
    party.join()
    group.partition(*group.names)
    with pytest.raises(coord.OutcomeUnknown, match="as soon as"):
        party.leave(timeout=1.0)
    assert not party.joined
    group.heal()
    group.wait_until(lambda: view.members() == {}, 30, "its leaving")
    # A `with` does not hide what was raised inside of it.
    with pytest.raises(ZeroDivisionError), party:
        cut_off_and_fail(group)


def test_to_join_again_while_leaving_is_to_have_joined(group: Group) -> None:
    node, other = followers(group)
    party = Party(node, "p")
    party.join()
    group.partition(*group.names)
    with pytest.raises(coord.OutcomeUnknown):
        party.leave(timeout=0.5)
    group.after(3.0, group.heal)
    began = group.now
    party.join(timeout=60)
    assert group.now - began > 3.0, "it cannot have known that it is in"
    assert list(Party(other, "p").members(linearizable=True)) == [node.name]


def test_a_refused_value_is_told_and_nothing_is_left(group: Group) -> None:
    node = group.leader()
    with pytest.raises(coord.QuotaExceeded):
        Party(node, "p", "x" * (1 << 18)).join()
    small = Party(node, "p", 1)
    small.join()
    assert small.members() == {node.name: 1}
    with pytest.raises(ValueError, match="cannot be stored"):
        Party(node, "p", object())  # type: ignore[arg-type]


def test_what_is_no_members_key_is_no_member(group: Group) -> None:
    node = group.leader()
    node.config["coord/party/p/intruder"] = 1
    assert Party(node, "p").members() == {}


def test_a_watch_is_told_the_members_at_once_and_after_each_change(group: Group) -> None:
    node, other = followers(group)
    view = Party(group.leader(), "p")
    seen: list[dict[str, Any]] = []
    watch = view.watch(seen.append)
    group.run(0.1)
    assert seen == [{}], "the first state, also when nobody is there"
    one, two = Party(node, "p", 1), Party(other, "p", 2)
    one.join()
    group.run(0.1)
    two.join()
    group.run(0.1)
    one.leave()
    group.run(0.1)
    assert seen == [{}, {node.name: 1}, {node.name: 1, other.name: 2}, {other.name: 2}]
    late: list[dict[str, Any]] = []
    view.watch(late.append)
    group.run(0.1)
    assert late == [{other.name: 2}]
    watch.close()
    two.leave()
    group.run(0.1)
    assert (len(seen), late[-1]) == (4, {})


def test_changes_at_one_moment_are_told_as_one(group: Group) -> None:
    """All that a session held goes in one revision; that of two values is not to be told twice."""
    leader = group.leader()
    config, seen = leader.config, list[Any]()
    for name in "xyz":
        config.put(f"coord/party/p/{name}", name, ephemeral=True)
    group.wait_converged()
    Party(followers(group)[0], "p").watch(seen.append)
    group.run(0.1)
    assert seen == [{"x": "x", "y": "y", "z": "z"}]
    with config.transaction() as t:
        t.put("coord/party/p/x", 1, ephemeral=True)
        t.delete("coord/party/p/y")
        t.delete("coord/party/p/z")
    group.run(0.1)
    assert seen[1:] == [{"x": 1}]
    # 1 and True are equal to Python, and different values.
    config.put("coord/party/p/x", True, ephemeral=True)
    group.run(0.1)
    assert [type(state["x"]) for state in seen[1:]] == [int, bool]


def test_a_callback_that_raises_is_called_again(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    node = group.leader()
    seen: list[Any] = []

    def note(members: dict[str, Any]) -> None:
        seen.append(members)
        raise RuntimeError("not today")

    Party(node, "p").watch(note)
    Party(node, "p").join()
    group.run(0.1)
    assert seen == [{}, {node.name: None}]
    logs.flush(5.0)
    assert "not today" in caplog.text


def test_a_callback_may_join_and_leave(group: Group) -> None:
    """It runs on the thread for callbacks, which nothing here must depend on."""
    node = group.leader()
    inner, seen = Party(node, "inner"), list[bool]()

    def follow(members: dict[str, Any]) -> None:
        if members:
            inner.join()
        else:
            inner.leave()
        seen.append(node.name in inner)

    party = Party(node, "p")
    party.watch(follow)
    group.run(0.1)
    with party:
        group.wait_until(lambda: len(seen) == 2, 5, "the callback")
    group.wait_until(lambda: len(seen) == 3, 5, "the callback")
    assert seen == [False, True, False]


def test_a_party_that_was_left_costs_nothing(group: Group) -> None:
    node = group.leader()
    watches = node._running_loop().replica.watches
    before = len(watches)
    with Party(node, "p"):
        assert len(watches) == before + 1
    group.run(0.1)
    assert len(watches) == before


def test_parties_in_real_time(real: Group) -> None:
    parties = [Party(real[name], "p", name.upper()) for name in real.names]
    everybody = {name: name.upper() for name in real.names}
    states: list[list[dict[str, Any]]] = [[] for _ in parties]
    for party, seen in zip(parties, states, strict=True):
        party.watch(seen.append)
    in_threads(*[party.join for party in parties])
    assert parties[0].members(linearizable=True) == everybody
    for name in real.names:
        real.lose_lock_now(name)
    for party, seen in zip(parties, states, strict=True):
        until(lambda party=party: party.members() == everybody, "everybody back")  # type: ignore[misc]
        until(lambda seen=seen: seen and seen[-1] == everybody, "word of it")  # type: ignore[misc]
    in_threads(*[party.leave for party in parties])
    assert parties[0].members(linearizable=True) == {}
    until(lambda: all(seen[-1] == {} for seen in states), "word of it")


def test_joining_and_leaving_by_many_threads_ends_as_the_last_one_said(real: Group) -> None:
    node, view = real["a"], Party(real["b"], "p")
    handles = [Party(node, "p", number) for number in range(4)]

    def come_and_go(handle: Party) -> None:
        for _ in range(10):
            handle.join()
            assert node.name in handle, "a member that has joined is in"
            handle.leave()

    in_threads(*[partial(come_and_go, handle) for handle in handles])
    assert view.members(linearizable=True) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Barrier.


def test_a_barrier_holds_all_until_it_is_removed(group: Group) -> None:
    node, other = followers(group)
    barrier = Barrier(node, "go")
    assert barrier.wait(timeout=5), "there is none"
    assert barrier.create()
    assert not barrier.create(), "it was up already"
    began = group.now
    assert not Barrier(other, "go").wait(timeout=2)
    assert group.now - began == pytest.approx(2, abs=0.01)
    group.after(3, lambda: barrier.remove())
    began = group.now
    assert Barrier(other, "go").wait(timeout=60)
    assert group.now - began == pytest.approx(3.1, abs=0.11), "told, not asked for again and again"
    assert not barrier.remove()


def test_a_barrier_is_believed_to_be_up_before_ones_own_copy_says_so(group: Group) -> None:
    """What somebody was told by another way is older than the question, so the answer must know of it."""
    node, other = followers(group)
    assert other.config.get("x", linearizable=True) is None
    group.delay = 0.05
    for number in range(5):
        Barrier(node, f"go{number}").create()
        assert not Barrier(other, f"go{number}").wait(timeout=1.0), "gone through before it had heard of the barrier"


def test_a_barrier_outlives_its_maker_and_a_change_of_leader(group: Group) -> None:
    leader = group.leader()
    Barrier(leader, "go").create()
    one, two = followers(group)
    group.after(0.5, group.kill, leader)
    began, remove = group.now, Barrier(two, "go").remove
    group.after(3 * TTL, lambda: remove(timeout=20))
    assert Barrier(one, "go").wait(timeout=100)
    assert group.now - began > 3 * TTL - 0.001


def test_a_barrier_that_cannot_be_asked_for_lets_nobody_through(group: Group) -> None:
    node, other = followers(group)
    group.partition([node])
    began = group.now
    assert not Barrier(node, "go").wait(timeout=3), "without a quorum nobody can know"
    assert group.now - began == pytest.approx(3, abs=0.01)
    # Cut off while it waits: told once it is connected again.
    Barrier(other, "go").create(timeout=20)
    group.heal()
    group.wait_converged()
    began = group.now
    group.after(1.0, group.partition, [node])
    group.after(2.0, lambda: Barrier(other, "go").remove(timeout=20))
    group.after(8.0, group.heal)
    assert Barrier(node, "go").wait(timeout=100)
    assert group.now - began > 7.999, "it cannot have known"


def test_who_waits_at_a_barrier_when_stopped_is_told(group: Group) -> None:
    node, _ = followers(group)
    Barrier(node, "go").create()
    group.after(1.0, group.kill, node)
    with pytest.raises(coord.ClosedError):
        Barrier(node, "go").wait(timeout=100)


def test_many_wait_at_a_barrier_in_real_time(real: Group) -> None:
    Barrier(real["a"], "go").create()
    gone: list[str] = []

    def wait(name: str) -> None:
        assert Barrier(real[name], "go").wait(timeout=-1)
        gone.append(name)

    def remove() -> None:
        assert not Barrier(real["a"], "go").wait(timeout=0.3)
        assert gone == []
        assert Barrier(real["a"], "go").remove()

    in_threads(*[partial(wait, name) for name in 3 * real.names], remove)
    assert sorted(gone) == sorted(3 * real.names)


# ---------------------------------------------------------------------------------------------------------------------
# DoubleBarrier.


class Participant:
    """A handle, and what `enter` and `leave` do without the waiting: one thread cannot wait at several places."""

    def __init__(self, node: coord.Node, name: str = "d", count: int = 3) -> None:
        self.node = node
        self.barrier = DoubleBarrier(node, name, count)

    def comes(self) -> None:
        self.barrier._come(self.node._running_loop())

    def goes(self) -> None:
        self.barrier._go(self.node._running_loop())

    @property
    def waits(self) -> bool:
        return self.barrier._mode == "entering"

    @property
    def inside(self) -> bool:
        return self.barrier._mode == "inside"

    @property
    def ended(self) -> bool:
        return self.barrier._mode == "out" and not self.barrier._round


def all_come(group: Group, *participants: Participant) -> None:
    for one in participants:
        one.comes()
    group.wait_until(lambda: all(one.inside for one in participants), 30, "all to begin")


def all_go(group: Group, *participants: Participant) -> None:
    for one in participants:
        one.goes()
    group.wait_until(lambda: all(one.ended for one in participants), 30, "all to end")


def test_all_begin_together_and_end_together_again_and_again(group: Group) -> None:
    a, b, c = (Participant(group[name]) for name in group.names)
    for _ in range(3):
        a.comes()
        b.comes()
        group.run(5.0)
        assert (a.waits, b.waits) == (True, True), "one is missing"
        assert c.barrier.enter(timeout=10)
        group.wait_until(lambda: a.inside and b.inside, 1, "all to begin")
        b.goes()
        c.goes()
        group.run(5.0)
        assert (b.ended, c.ended) == (False, False), "one is inside"
        assert a.barrier.leave(timeout=10)
        group.wait_until(lambda: b.ended and c.ended, 1, "all to end")
    group.run(0.1)
    assert keys(group["a"]) == ["coord/double-barrier/d/gate"], "nobody's seat is left behind"


def test_enter_and_leave_wait(group: Group) -> None:
    a, b = (Participant(group[name], count=2) for name in "ab")
    began = group.now
    group.after(4.0, b.comes)
    assert a.barrier.enter(timeout=-1)
    assert group.now - began == pytest.approx(4.1, abs=0.11), "told, not asked for again and again"
    group.wait_until(lambda: b.inside, 1)
    assert not a.barrier.leave(timeout=1.0), "the other one is inside"
    group.run(1.0)
    assert (a.ended, b.inside) == (True, True), "it has left all the same"
    group.after(4.0, a.comes)
    assert b.barrier.leave(timeout=1.0)
    group.run(5.0)
    assert a.waits


def test_who_waits_in_vain_was_never_there(group: Group) -> None:
    a, b, c = (Participant(group[name]) for name in group.names)
    began = group.now
    assert not a.barrier.enter(timeout=2)
    assert group.now - began == pytest.approx(2, abs=0.1), "nothing but one more answer after the timeout"
    assert keys(group["a"]) == []
    b.comes()
    assert not c.barrier.enter(timeout=4), "two of three are there"
    assert b.waits


def test_misuse_is_told(group: Group) -> None:
    a = DoubleBarrier(group["a"], "d", 1)
    with pytest.raises(coord.NotHeld):
        a.leave()
    assert a.enter()
    with pytest.raises(coord.AlreadyHeld, match="inside"):
        a.enter()
    assert a.leave(), "still inside, after what was no use of it"
    with pytest.raises(coord.NotHeld):
        a.leave()
    two = Participant(group["a"], "two", 2)
    two.comes()
    group.run(1.0)
    with pytest.raises(coord.AlreadyHeld, match="entering"):
        two.barrier.enter()
    with pytest.raises(coord.ConfigurationError, match="count=2"):
        DoubleBarrier(group["b"], "two", 3).enter(timeout=3)
    group.run(1.0)
    assert (two.waits, two.barrier._refusal) == (True, None), "who came first is right"
    assert len(keys(group["a"], "coord/double-barrier/two")) == 1, "what was refused has left its seat"


@pytest.mark.parametrize("value", [None, 1, "gate", [1], [[1, 2]], [["a"]], [["a", [1]]], {"a": 1}])
def test_a_gate_that_somebody_has_set_by_hand_does_no_harm(group: Group, value: Any) -> None:
    a, b = (Participant(group[name], count=2) for name in "ab")
    group["c"].config["coord/double-barrier/d/gate"] = value
    group["c"].config["coord/double-barrier/d/seat"] = value
    all_come(group, a, b)
    all_go(group, a, b)


def test_who_dies_while_waiting_does_not_count(group: Group) -> None:
    leader, (one, two) = group.leader(), followers(group)
    alive, dying, late, spare = (Participant(node) for node in (leader, one, two, two))
    alive.comes()
    dying.comes()
    group.run(1.0)
    group.kill(one)
    group.run(3 * TTL)
    late.comes()
    group.run(TTL)
    assert (alive.waits, late.waits) == (True, True), "one of the three is dead"
    assert spare.barrier.enter(timeout=20)
    group.wait_until(lambda: alive.inside and late.inside, 1, "all to begin")


def test_who_dies_inside_has_left(group: Group) -> None:
    dead, _ = followers(group)
    all_three = [Participant(group[name]) for name in group.names]
    all_come(group, *all_three)
    one, two = (one for one in all_three if one.node is not dead)
    group.kill(dead)
    one.goes()
    began = group.now
    assert two.barrier.leave(timeout=100), "nobody is waited for who is dead"
    assert TTL / 2 < group.now - began < 2 * TTL, "but for that long it might have been alive"
    group.wait_until(lambda: one.ended, 1)
    # The next round, with another in its place.
    three = Participant(group.restart(dead))
    all_come(group, one, two, three)
    all_go(group, one, two, three)


def test_who_loses_the_session_while_waiting_comes_again(group: Group) -> None:
    node, other = followers(group)
    one = Participant(node, count=2)
    one.comes()
    group.run(1.0)
    for _ in range(3):
        group.lose_lock_now(node)
        group.run(1.0)
        assert one.waits
    assert DoubleBarrier(other, "d", 2).enter(timeout=20)
    group.wait_until(lambda: one.inside, 1, "the one that waits")


def test_who_loses_the_session_inside_neither_waits_again_nor_is_waited_for(group: Group) -> None:
    node, other = followers(group)
    lost, well = Participant(node, count=2), Participant(other, count=2)
    all_come(group, lost, well)
    group.lose_lock_now(node)
    group.run(3 * TTL)
    assert lost.inside
    assert len(keys(other, "coord/double-barrier/d/")) == 2, "the gate and one seat: not one of somebody who is inside"
    assert well.barrier.leave(timeout=5)
    assert lost.barrier.leave(timeout=5)
    all_come(group, lost, well)


def test_the_next_round_begins_when_the_last_of_this_one_has_left(group: Group) -> None:
    """ZooKeeper's recipe lets a late comer through: all it looks at is whether the gate is open."""
    node, other = followers(group)
    first = [Participant(node, count=2), Participant(other, count=2)]
    second = [Participant(node, count=2), Participant(other, count=2)]
    all_come(group, *first)
    for one in second:
        one.comes()
    group.run(5.0)
    assert all(one.waits for one in second), "nobody has left yet"
    assert not first[0].barrier.leave(timeout=2)
    group.run(5.0)
    assert all(one.waits for one in second), "one of the first round is inside"
    # The last one need not leave: it may die.
    group.lose_lock_now(other)
    group.wait_until(lambda: all(one.inside for one in second), 20, "the next round to begin")


def test_who_has_come_too_many_waits_for_the_next_round(group: Group) -> None:
    node, other = followers(group)
    five = [Participant(one, count=2) for one in (node, other, node, other, node)]
    for one in five:
        one.comes()
    for left in (3, 1):
        group.wait_until(lambda: sum(one.inside for one in five) == 2, 20, "two to begin")
        group.run(5.0)
        assert (sum(one.inside for one in five), sum(one.waits for one in five)) == (2, left)
        all_go(group, *[one for one in five if one.inside])
    group.run(20.0)
    assert [one.waits for one in five].count(True) == 1


def test_a_change_of_leader_while_they_come(group: Group) -> None:
    leader, (one, two) = group.leader(), followers(group)
    first, second = Participant(one, count=2), Participant(two, count=2)
    first.comes()
    group.run(0.5)
    group.kill(leader)
    assert second.barrier.enter(timeout=60)
    group.wait_until(lambda: first.inside, 1)
    all_go(group, first, second)


def test_who_is_cut_off_may_have_been_let_through_and_is_told_that_nobody_knows(group: Group) -> None:
    node, other = followers(group)
    lone, well = Participant(node, count=2), Participant(other, count=2)
    group.after(1.0, group.partition, [node])
    group.after(1.5, well.comes)
    began = group.now
    with pytest.raises(coord.OutcomeUnknown, match="not known"):
        lone.barrier.enter(timeout=3)
    limit = 3 + node.default_timeout
    assert group.now - began == pytest.approx(limit, abs=0.1)
    assert well.inside, "the session of the one that was cut off stood"
    assert not lone.inside
    assert well.barrier.leave(timeout=60), "to others it has left, at the latest with its session"
    group.heal()
    group.wait_until(lambda: lone.ended, 30, "its seat to be given up")
    group.wait_until(lambda: len(keys(other)) == 1, 30, "the others to see that")
    assert not well.barrier.enter(timeout=5), "nobody else is there"
    all_come(group, lone, well)


def test_the_deadline_and_the_last_one_to_come_meet(group: Group) -> None:
    """Either both are let through or neither: never does one begin who counts on somebody that has given up."""
    node, other = followers(group)
    ways = set()
    for number in range(80):
        one, two = (Participant(member, f"d{number}", 2) for member in (node, other))
        group.after(0.04 + 0.0002 * number, two.comes)
        result = one.barrier.enter(timeout=0.05)
        group.run(1.0)
        assert result == one.inside == two.inside, f"only one was let through, in try {number}"
        assert two.inside or two.waits
        seats = [key for key in keys(other, f"coord/double-barrier/d{number}/") if not key.endswith("/gate")]
        assert len(seats) == (2 if result else 1), f"who is inside has a seat, and nobody else: {seats}"
        ways.add(result)
    assert ways == {True, False}, "the moments tried were not the interesting ones"


@pytest.mark.parametrize("fault", ["partition", "kill", "lose"])
def test_whoever_ends_at_any_moment_the_others_agree(group: Group, fault: str) -> None:
    """Whoever lives is let through with all that live of a round, or with none."""
    ways = set()
    for number in range(25):
        leader, (lone, other) = group.leader(), followers(group)
        one, two, third = (Participant(node, f"d{number}", 3) for node in (leader, other, lone))
        one.comes()
        two.comes()
        group.run(0.5)
        third.comes()
        group.run(0.0004 * number)
        if fault == "partition":
            group.partition([lone])
        elif fault == "kill":
            group.kill(lone)
        else:
            group.lose_lock_now(lone)
            third.barrier._set_mode(lone._running_loop(), "leaving", unless=("inside", "out"))
        group.run(3 * TTL)
        assert (one.inside, one.waits) == (two.inside, two.waits), f"only one was let through, in try {number}"
        assert one.inside or one.waits
        ways.add(one.inside)
        group.heal()
        if fault == "kill":
            group.restart(lone)
        group.wait_converged()
        group.run(5.0)
    assert True in ways
    assert fault == "lose" or False in ways, "the moments tried were not the interesting ones"


def test_who_is_stopped_while_waiting_is_told(group: Group) -> None:
    node, other = followers(group)
    group.after(1.0, node.stop)
    with pytest.raises(coord.ClosedError):
        DoubleBarrier(node, "d", 2).enter(timeout=100)
    assert not DoubleBarrier(other, "d", 2).enter(timeout=3), "the one that was stopped is not counted"


def test_an_interrupted_call_leaves_nothing_behind(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    node, other = followers(group)
    loop = node._running_loop()
    wait_for = loop.wait_for

    def interrupted(condition: threading.Condition, predicate: Callable[[], bool], seconds: float | None) -> Any:
        wait_for(condition, lambda: False, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DoubleBarrier(node, "d", 2).enter(timeout=20)
    with pytest.raises(KeyboardInterrupt):
        Party(node, "p").join()
    monkeypatch.undo()
    group.run(1.0)
    assert keys(other) == [], "nobody is there any more"


def test_double_barriers_in_real_time(real: Group) -> None:
    """Nobody begins a round before all have come, and nobody ends it before all have left."""
    rounds, names = 5, 2 * real.names
    log: list[tuple[str, int]] = []

    def work(name: str) -> None:
        barrier = DoubleBarrier(real[name], "d", len(names))
        for number in range(rounds):
            log.append(("comes", number))
            assert barrier.enter(timeout=-1)
            log.append(("begins", number))
            assert barrier.leave(timeout=-1)
            log.append(("ends", number))

    in_threads(*[partial(work, name) for name in names])
    for number in range(rounds):
        places = {what: [place for place, entry in enumerate(log) if entry == (what, number)] for what, _ in log}
        assert len(places["comes"]) == len(places["begins"]) == len(places["ends"]) == len(names)
        assert max(places["comes"]) < min(places["begins"]), "begun before all had come"
        assert max(places["begins"]) < min(places["ends"]), "ended before all had left"


# ---------------------------------------------------------------------------------------------------------------------
# Counter.


def test_a_counter_counts(group: Group) -> None:
    node, other = followers(group)
    counter = Counter(node, "n", default=10)
    assert (counter.value, counter.get()) == (10, 10)
    assert "coord/counter/n" not in node.config, "nothing was added yet"
    assert counter.add() == 11
    assert counter.add(-20) == -9
    counter += 5
    counter -= 1
    assert (counter.value, Counter(other, "n").get()) == (-5, -5)
    assert isinstance(counter, Counter)


def test_a_counter_can_be_asked_for_what_ones_own_copy_does_not_know(group: Group) -> None:
    node, other = followers(group)
    assert Counter(other, "n").get() == 0
    group.delay = 0.05
    for number in range(1, 6):
        Counter(node, "n").add()
        assert Counter(other, "n").get() == number


def test_a_counter_has_64_bits_and_holds_whole_numbers_only(group: Group) -> None:
    node = group.leader()
    high, low = Counter(node, "high", (1 << 63) - 2), Counter(node, "low", 1 - (1 << 63))
    assert high.add(1) == (1 << 63) - 1
    assert low.add(-1) == -(1 << 63)
    for counter, step in ((high, 1), (low, -1)):
        before = counter.value
        with pytest.raises(OverflowError, match="64 bits"):
            counter.add(step)
        assert counter.get() == before
    for wrong in (1.0, "1", True, None):
        with pytest.raises(TypeError):
            high.add(wrong)  # type: ignore[arg-type]
    node.config["coord/counter/text"] = "ten"
    text = Counter(node, "text")
    with pytest.raises(TypeError, match="no number"):
        text.add()
    with pytest.raises(TypeError, match="no number"):
        text.get()
    with pytest.raises(TypeError, match="no number"):
        text.value  # noqa: B018


def test_a_change_of_leader_counts_nothing_twice(group: Group) -> None:
    """Whatever was sent again, and whatever answer was lost."""
    alive, _ = followers(group)
    counter, sums = Counter(alive, "n"), list[int]()
    group.loss = 0.05
    group.after(0.3, group.kill, group.leader())
    for _ in range(30):
        sums.append(counter.add(1, timeout=60))
    assert sums == list(range(1, 31))
    assert counter.get(timeout=60) == 30


def test_a_lost_session_counts_nothing_twice(group: Group) -> None:
    node, other = followers(group)
    counter = Counter(node, "n")
    for number in range(1, 21):
        group.after(0.0005 * number, group.lose_lock_now, node)
        assert counter.add(1, timeout=60) == number
        group.run(1.0)
    assert Counter(other, "n").get() == 20


def test_a_caller_without_an_answer_is_told_what_that_means(group: Group) -> None:
    """Unavailable: it was not counted. OutcomeUnknown: once, or not at all."""
    node, other = followers(group)
    counter, view = Counter(node, "n"), Counter(other, "n")
    counted, unknown, kinds = 0, 0, set()
    for number in range(30):
        group.after(0.0006 * number, group.partition, [node])
        try:
            counter.add(1, timeout=1.0)
            counted += 1
            kinds.add("counted")
        except coord.OutcomeUnknown:
            unknown += 1
            kinds.add("unknown")
        except coord.Unavailable:
            kinds.add("not counted")
        group.run(0.1)
        group.heal()
        group.wait_until(lambda: node.cluster.leader() is not None, 30)
        group.run(15.0)
        assert counted <= view.get(timeout=30) <= counted + unknown
    assert kinds == {"counted", "unknown", "not counted"}, "the moments tried were not the interesting ones"


def test_additions_of_many_at_once_are_all_counted(real: Group) -> None:
    each, names = 15, 2 * real.names

    def work(name: str) -> list[int]:
        counter = Counter(real[name], "n")
        return [counter.add(1, timeout=PATIENCE) for _ in range(each)]

    results = in_threads(*[partial(work, name) for name in names])
    sums = [result for of_one in results for result in of_one]
    assert sorted(sums) == list(range(1, each * len(names) + 1)), "each came to a number of its own"
    assert Counter(real["a"], "n").get() == each * len(names)
