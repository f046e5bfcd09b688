"""Promises of the core that no trap is named after."""

from __future__ import annotations

from cluster import (
    Cluster,
    Member,
    incarnation_of,
    message,
    messages,
    started,
)
from coord.raft.batch import encode_entry
from coord.raft.messages import (
    Halt,
    Heartbeat,
    Propose,
    ProposeResponse,
    ReadRequest,
    ReadResponse,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import LEADER


def test_two_leaders_of_one_term_stop_whoever_hears_both() -> None:
    leader = Member("a", "abc").lead()
    assert leader.receive("b", Heartbeat(1, 0, 1)) == []
    follower = Member("c", "abc")
    follower.receive("a", Heartbeat(1, 0, 1))
    assert follower.receive("b", Heartbeat(1, 0, 1)) == []
    for member in (leader, follower):
        assert [type(command) for command in member.done[-1:]] == [Halt]


def test_after_a_halt_nothing_is_sent_written_or_promised() -> None:
    leader = Member("a", "abc").lead()
    leader.outbox.clear()
    # All of it in the turn that ends with the halt.
    leader.core.propose(leader.now, [encode_entry(b"x")])
    leader.core.read(leader.now, 1)
    leader.core.halt("a reason")
    assert leader.work() == []
    assert (leader.halted, leader.disk.batches[-1].last) == (True, 1)
    assert leader.propose("y") == 0
    assert "a reason" in leader.core.transfer_leadership(leader.now, "b")
    assert leader.wait(10.0) == leader.receive("b", VoteRequest(9, 99, 9)) == []
    assert leader.core.term == 1
    leader.read(2)
    assert leader.reads == {2: None}


def test_a_promise_waiting_for_the_disk_dies_with_a_halt() -> None:
    voter = Member("a", "abc")
    voter.hold_disk = True
    voter.receive("b", VoteRequest(1, 0, 0))
    voter.core.halt("a reason")
    voter.work()
    assert voter.sync() == []


def test_reads_asked_just_before_winning_are_answered() -> None:
    member = Member("a", "abc")
    member.time_out()
    member.receive("b", VoteResponse(1, True, pre=True))
    # All in one turn of the driver.
    member.core.read(member.now, 7)
    member.core.step(member.now, "b", incarnation_of("b"), VoteResponse(1, True))
    member.work()
    assert member.core.role == LEADER
    member.acknowledged_by("b", "c")
    member.acknowledged_by("b", "c")
    assert list(member.reads) == [7]
    assert member.core.deadline() > member.now


def test_a_followers_reads_are_answered_by_the_leader() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.run(0.2)
    leader.propose("x")
    cluster.settle()
    cluster["b"].read(1)
    cluster.settle()
    assert cluster["b"].reads == {1: leader.core.commit}
    # Who does not lead refuses at once, so that the asker need not wait.
    answer = cluster["c"].receive("b", ReadRequest(1, 5))
    assert message(answer, ReadResponse) == ReadResponse(1, 5, 0)


def test_a_fresh_group_need_not_wait_an_election_timeout_for_its_first_leader() -> None:
    fresh = Member("a", "abc")
    fresh.core.found(fresh.now)
    assert fresh.core.deadline() < fresh.core.settings.election_timeout[0]
    assert all(request.pre for request in messages(fresh.time_out(), VoteRequest))
    # Who has been in a group may have promised its leader something.
    used = started(1)
    used.core.found(used.now)
    assert used.core.deadline() >= used.core.settings.election_timeout[0]


def test_an_answer_to_a_life_before_serves_no_read_asked_since() -> None:
    first = Member("b", "abc")
    first.receive("a", Heartbeat(1, 0, 1))
    late = message(first.read(1), ReadRequest)
    again = Member("b", "abc", disk=first.disk, seed=2)
    again.receive("a", Heartbeat(1, 0, 2))
    asked = message(again.read(1), ReadRequest)
    again.receive("a", ReadResponse(1, late.number, 4))
    assert again.reads == {}
    again.receive("a", ReadResponse(1, asked.number, 6))
    assert again.reads == {1: 6}


def test_with_slow_answers_the_hurry_after_a_leaders_death_ends() -> None:
    member = Member("b", "abc")
    member.receive("a", Heartbeat(1, 0, 1))
    member.core.peer_gone(member.now, "a")
    waits = []
    for _ in range(12):
        before = member.now
        member.time_out()
        waits.append(member.now - before)
    low, _ = member.core.settings.election_timeout
    assert all(wait < low for wait in waits[:4])
    assert all(wait >= low for wait in waits[-4:])


def test_a_late_message_of_an_older_stream_does_not_make_the_leader_forget_the_newest() -> None:
    leader = Member("a", "abc").lead()
    entries = [encode_entry(b"x"), encode_entry(b"y")]
    leader.receive("b", Propose(1, 7, 0, entries[:1]))
    leader.receive("b", Propose(1, 8, 0, entries))
    assert message(leader.receive("b", Propose(1, 7, 0, entries[:1])), ProposeResponse).expected == 1
    last = leader.core.log.last_index
    assert message(leader.receive("b", Propose(1, 8, 1, entries[1:])), ProposeResponse).expected == 2
    assert leader.core.log.last_index == last
    for stream in range(100, 200):
        leader.receive("b", Propose(1, stream, 0, []))
    assert len(leader.core.proposed["b"]) < 10
