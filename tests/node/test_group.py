"""The config map of a group of three: what each member sees, and what callers are told when members are cut off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import coord
from coord.clock import clock
from node.group import Group, LabNode, converged, until


def test_every_member_reads_its_own_writes_at_once(three: Group) -> None:
    three.leader()
    for turn in range(10):
        for name, node in three.nodes.items():
            revision = node.config.put(name, turn)
            assert node.config[name] == turn
            assert node.config.revision >= revision
    converged(*three.nodes.values())


def test_local_reads_are_monotonic(three: Group, leader: LabNode) -> None:
    reader = three.followers()[0].config
    stop, went_back = threading.Event(), []

    def read() -> None:
        newest = revision = -1
        while not stop.is_set():
            value, now = reader.get("k", 0), reader.revision
            if value < newest or now < revision:
                went_back.append((newest, value, revision, now))
            newest, revision = value, now

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(200):
        leader.config["k"] = number
    stop.set()
    thread.join()
    assert went_back == []


def test_a_linearizable_read_sees_what_others_completed(three: Group) -> None:
    three.leader()
    nodes = list(three.nodes.values())
    for number in range(30):
        nodes[number % 3].config["k"] = number
        assert nodes[(number + 1) % 3].config.get("k", linearizable=True) == number
        entry = nodes[(number + 2) % 3].config.entry("k", linearizable=True)
        assert entry is not None and entry.value == number


def test_min_revision_waits_for_another_members_write(three: Group, leader: LabNode) -> None:
    reader = three.followers()[0].config
    for number in range(20):
        revision = leader.config.put("k", number)
        assert reader.get("k", min_revision=revision) == number


def test_update_from_every_member_loses_nothing(three: Group) -> None:
    three.leader()

    def work(node: coord.Node) -> None:
        for _ in range(15):
            node.config.update("count", lambda count: count + 1, default=0)

    threads = [threading.Thread(target=work, args=(node,)) for node in three.nodes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leader_value(three, "count") == 45


def leader_value(group: Group, key: str) -> Any:
    return group.leader().config.get(key, linearizable=True)


def test_pop_finds_what_another_member_just_wrote(three: Group, leader: LabNode) -> None:
    follower = three.followers()[0]
    for number in range(10):
        leader.config["k"] = number
        assert follower.config.pop("k") == number


def test_ephemeral_keys_belong_to_one_member(three: Group) -> None:
    three.leader()
    a, b = three.nodes["a"].config, three.nodes["b"].config
    a.put("owned", 1, ephemeral=True)
    entry = b.entry("owned", linearizable=True)
    assert entry is not None and entry.session == three.nodes["a"].session_id
    with pytest.raises(coord.Conflict, match="another live session"):
        b["owned"] = 2
    t = b.transaction()
    t.put("fine", 1)
    t.put("owned", 2)
    with pytest.raises(coord.Conflict, match="another live session"):
        t.commit()
    started = clock()
    with pytest.raises(coord.Conflict, match="another live session"):
        b.update("owned", lambda value: value + 1)
    assert clock() - started < 10.0, "there is nothing to wait for"
    assert b.setdefault("owned", 5) == 1
    assert "fine" not in b
    assert b.delete("owned") is True
    b["owned"] = 3
    assert a.get("owned", linearizable=True) == 3


def test_ephemeral_keys_go_when_their_member_stops(three: Group) -> None:
    other = three.followers()[0]
    stopped = three.followers()[1]
    stopped.config.put("owned", 1, ephemeral=True)
    stopped.config["plain"] = 1
    with other.config.watch("owned") as watch:
        assert next(watch).kind == "put"
        three.stop(stopped.name)
        # At once, not by its ttl: it said goodbye.
        assert other.config.get("owned", linearizable=True) is None
        assert next(watch).kind == "delete"
    assert other.config["plain"] == 1
    sessions = other._running_loop().replica.machine.session_ttls().values()
    assert sorted(owner for owner, _ in sessions) == sorted(three.nodes), "and it opened no other session"


def test_a_member_cut_off_for_longer_than_its_ttl_writes_again_exactly_once(three: Group) -> None:
    other, cut = three.followers()
    cut.config.put("owned", 1, ephemeral=True)
    cut.config["count"] = 0
    session = cut.session_id
    cut.cut_off()
    # On its way while its session ends: of each of these, none or exactly one effect.
    waiting = cut.config.put_async("waiting", 1)
    until(lambda: other.config.get("owned") is None, "the end of the session")
    assert cut.config["owned"] == 1, "a local read does not know"
    cut.reconnect()
    assert cut.config.update("count", lambda count: count + 1) == 1
    assert waiting.exception(20) is None
    assert cut.config.get("owned", linearizable=True) is None
    assert cut.session_id not in (0, session)
    for number in range(2, 30):
        cut.config.update("count", lambda count: count + 1)
        assert leader_value(three, "count") == number
    entry = other.config.entry("waiting", linearizable=True)
    assert entry is not None and entry.version == 1
    converged(*three.nodes.values())


def test_a_member_whose_session_came_and_went_unseen_writes_again(three: Group, leader: LabNode) -> None:
    """Its session is opened by an entry it has not seen, and ended by another, and it gets both at once."""
    other, cut = three.followers()
    until(lambda: cut.session_id, "a session")
    first = cut.session_id
    # It can speak, so its new session is opened; it hears nothing, so it does not learn of that.
    loop = cut._running_loop()
    replica = loop.replica
    cut.network.deaf = True

    def begin_anew() -> int:
        replica.own.renew("expired")
        return replica.numbering.session

    session: int = loop.call(begin_anew, 20.0)
    assert session != first
    machine = leader._running_loop().replica.machine
    if until(lambda: machine.has_session(session) or cut.status().leader is None, "the open"):
        cut.network.mute = True
    until(lambda: not machine.has_session(session), "the end of the session")
    for number in range(5):
        other.config["k"] = number
    cut.reconnect()
    cut.config["k"] = "from the one that was cut off"
    assert other.config.get("k", linearizable=True) == "from the one that was cut off"


def test_without_a_quorum_reads_are_local_and_writes_say_unavailable(three: Group) -> None:
    lone = three.followers()[0]
    lone.config["k"] = 1
    three.stop(*[name for name in three.nodes if name != lone.name])
    until(lambda: lone.status().leader is None, "it to miss its leader")
    assert lone.config["k"] == 1
    assert dict(lone.config.items()) == lone.config.snapshot() == {"k": 1}
    assert lone.status().quorum_ok is False
    cases: list[Callable[[], Any]] = [
        lambda: lone.config.put("k", 2, timeout=0.2),
        lambda: lone.config.delete("k", timeout=0.2),
        lambda: lone.config.compare_and_set("k", 2, revision=coord.ABSENT, timeout=0.2),
        lambda: lone.config.get("k", linearizable=True, timeout=0.2),
        lambda: lone.config.update("k", lambda value: value + 1, timeout=0.2),
        lambda: lone.config.transaction(timeout=0.2).commit(),
    ]
    for call in cases:
        started = clock()
        with pytest.raises(coord.Unavailable, match="nothing heard from") as caught:
            call()
        assert 0.15 < clock() - started < 10.0
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.leader is None
    error = lone.config.put_async("k", 3, timeout=0.2).exception(20)
    assert isinstance(error, coord.Unavailable)
    until(lambda: lone.config.age() > 0.3, "age")
    with pytest.raises(coord.TooStale):
        lone.config.get("k", max_age=0.2)
    assert lone.config.get("k", max_age=1e6) == 1


def test_unavailable_had_no_effect(make_group: Callable[..., Group]) -> None:
    """What was called unavailable never happens, not even when the member finds its group again."""
    group = make_group(durable=True)
    group.start("a", "b")
    group.leader()
    a = group.nodes["a"]
    a.config["k"] = 0
    group.stop("b")
    until(lambda: a.status().leader is None, "a to miss its majority")
    for number in range(1, 6):
        with pytest.raises(coord.Unavailable):
            a.config.put("k", number, timeout=0.05)
    futures = [a.config.put_async("k", number, timeout=0.05) for number in range(6, 9)]
    assert [type(future.exception(20)) for future in futures] == [coord.Unavailable] * 3
    group.start("b", "c")
    group.leader()
    a.config["after"] = 1
    entry = group.nodes["c"].config.entry("k", linearizable=True)
    assert entry is not None and (entry.value, entry.version) == (0, 1)


def test_outcome_unknown_that_did_happen(three: Group, leader: LabNode) -> None:
    """The leader's followers have the write, but the leader does not hear so."""
    followers = three.followers()
    leader.config["k"] = 0
    leader.network.deaf = True
    with pytest.raises(coord.OutcomeUnknown) as caught:
        leader.config.put("k", 1, timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    entry = until(lambda: has_version(followers[0], 2), "the write")
    assert entry.value == 1
    leader.reconnect()
    three.leader()
    again = leader.config.entry("k", linearizable=True)
    assert again is not None and (again.value, again.version) == (1, 2)


def has_version(node: coord.Node, version: int) -> coord.Entry | None:
    entry = node.config.entry("k")
    return entry if entry is not None and entry.version >= version else None


def test_outcome_unknown_that_did_not_happen(three: Group, leader: LabNode) -> None:
    """The leader has the write alone, and another leader overwrites it. The caller gave up, so it is not sent again."""
    followers = three.followers()
    leader.config["k"] = 0
    leader.cut_off()
    with pytest.raises(coord.OutcomeUnknown):
        leader.config.put("k", 1, timeout=0.1)
    three.leader(among=[node.name for node in followers])
    followers[0].config["other"] = 1
    leader.reconnect()
    leader.config["last"] = 1
    entry = leader.config.entry("k", linearizable=True)
    assert entry is not None and (entry.value, entry.version) == (0, 1)
    converged(*three.nodes.values())


def test_a_write_survives_a_change_of_leader_under_way(three: Group, leader: LabNode) -> None:
    """It was given to a leader that is cut off; its caller waits, and it happens exactly once under the next."""
    followers = three.followers()
    leader.config["k"] = 0
    leader.cut_off()
    waiting = [leader.config.put_async("k", number) for number in range(1, 4)]
    theirs = followers[0].config.put_async("theirs", 1)
    three.leader(among=[node.name for node in followers])
    assert theirs.exception(20) is None
    leader.reconnect()
    revisions = [future.result(20) for future in waiting]
    assert revisions == sorted(revisions), "in the order of the calls"
    entry = leader.config.entry("k", linearizable=True)
    assert entry is not None and (entry.value, entry.version) == (3, 4)


def test_writes_are_exactly_once_and_in_order_while_leadership_moves(three: Group) -> None:
    """Every member appends to a list of its own, while the leadership is handed round."""
    three.leader()
    stop, counts, failed = threading.Event(), dict.fromkeys(three.nodes, 0), []

    def work(name: str, config: coord.ConfigMap) -> None:
        try:
            while not stop.is_set():
                futures = [config.put_async(name, counts[name] + number + 1) for number in range(5)]
                revisions = [future.result(20) for future in futures]
                assert revisions == sorted(set(revisions))
                counts[name] += 5
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name, node.config)) for name, node in three.nodes.items()]
    for thread in threads:
        thread.start()
    moved = 0
    while moved < 5 and not failed:
        node = three.leader()
        try:
            node.cluster.transfer_leadership(timeout=5.0)
            moved += 1
        except coord.Unavailable:
            continue
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    for name, count in counts.items():
        entry = three.leader().config.entry(name, linearizable=True)
        assert entry is not None and (entry.value, entry.version) == (count, count), "each once"
    converged(*three.nodes.values())


def test_one_deadline_for_all_a_call_does(three: Group, leader: LabNode) -> None:
    reader = three.followers()[0]
    started = clock()
    with pytest.raises(coord.Unavailable, match="had not arrived"):
        reader.config.get("k", linearizable=True, min_revision=10**9, timeout=0.3)
    assert 0.25 < clock() - started < 5.0


def test_status_and_members_agree(three: Group, leader: LabNode) -> None:
    follower = three.followers()[0]
    leader.config["k"] = 1
    follower.config.get("k", linearizable=True)
    converged(*three.nodes.values())
    mine, theirs = leader.status(), follower.status()
    assert (mine.role, theirs.role) == ("leader", "follower")
    assert mine.leader == theirs.leader == leader.name == follower.cluster.leader()
    assert mine.cluster_id == theirs.cluster_id and len(mine.cluster_id) == 32
    assert [member.name for member in leader.cluster.members()] == ["a", "b", "c"]
    until(lambda: all(m.match_index == leader.status().last_index for m in leader.status().members), "replication")
    assert all(member.alive and member.voter for member in leader.status().members)
    assert (mine.name, mine.group, mine.quorum_ok) == (leader.name, "coord", True)


def test_leadership_is_transferred_where_one_wants_it(three: Group, leader: LabNode) -> None:
    target = three.followers()[1]
    leader.cluster.transfer_leadership(to=target.name)
    assert three.leader() is target
    with pytest.raises(coord.Unavailable, match="not handed over"):
        leader.cluster.transfer_leadership()
    with pytest.raises(coord.Unavailable, match="not handed over"):
        target.cluster.transfer_leadership(to="nobody")
    assert three.leader() is target
