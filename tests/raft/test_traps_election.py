"""Traps 1 to 12: elections and terms. Each test fails in a core that makes the mistake."""

from __future__ import annotations

import pytest

from cluster import (
    Cluster,
    Disk,
    Member,
    batch,
    log_of,
    membership_batch,
    membership_with,
    message,
    messages,
    started,
    voters,
)
from coord.raft.describe import describe_core
from coord.raft.messages import (
    Append,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings


def test_trap_01_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    # Figure 8: "a" spreads its old entry 2/2 to a majority of five, but "e", with 2/3, can still be elected by them.
    leader = started(1, 2, term=3, members="abcde")
    leader.stand()
    for peer in "bc":
        leader.receive(peer, AppendResponse(4, True, 2, 1))
    assert leader.core.commit == 0
    holder = Member("c", "abcde", disk=Disk(hard_state=HardState(4), batches=log_of(1, 2)))
    assert message(holder.receive("e", VoteRequest(5, 2, 3)), VoteResponse).granted
    for peer in "bc":
        leader.receive(peer, AppendResponse(4, True, 3, 1))
    assert leader.core.commit == 3


def test_trap_02_a_vote_is_not_told_before_it_is_on_disk() -> None:
    voter = Member("a", "abc")
    voter.hold_disk = True
    assert voter.receive("b", VoteRequest(1, 0, 0)) == []
    # Nor does anything else leave that a restart would not remember.
    assert voter.receive("b", VoteRequest(1, 0, 0)) == []
    answers = messages(voter.sync(), VoteResponse)
    assert answers == [VoteResponse(1, True), VoteResponse(1, True)]
    assert voter.disk.hard_state == HardState(1, "b")


def test_trap_02_a_candidates_own_vote_counts_once_it_is_on_disk() -> None:
    member = Member("a", "abc")
    member.hold_disk = True
    member.time_out()
    assert messages(member.receive("b", VoteResponse(1, True, pre=True)), VoteRequest) == []
    member.receive("b", VoteResponse(1, True))
    assert member.core.role == CANDIDATE
    assert member.sync() != []
    assert member.core.role == LEADER

    lone = Member("a", "a")
    lone.hold_disk = True
    lone.time_out()
    assert lone.core.role == CANDIDATE
    lone.sync()
    assert lone.core.role == LEADER


def test_trap_03_stepping_down_within_a_term_keeps_the_vote() -> None:
    member = Member("a", "abc")
    member.time_out()
    member.receive("b", VoteResponse(1, True, pre=True))
    member.receive("b", VoteResponse(1, False))
    member.receive("c", VoteResponse(1, False))
    assert (member.core.role, member.core.vote) == (FOLLOWER, "a")
    assert not message(member.receive("c", VoteRequest(1, 9, 1)), VoteResponse).granted

    leader = Member("a", "abc").lead()
    leader.wait(10.0)
    assert (leader.core.role, leader.core.vote) == (FOLLOWER, "a")
    assert not message(leader.receive("c", VoteRequest(1, 9, 1)), VoteResponse).granted
    assert leader.disk.hard_state == HardState(1, "a")


def test_trap_04_entries_and_votes_reach_the_disk_in_one_order() -> None:
    member = Member("a", "abc")
    member.hold_disk = True
    member.receive("b", Append(1, 0, 0, 0, 1, [batch(1, 1, "x")]))
    member.receive("c", VoteRequest(2, 9, 2, transfer=True))
    first, second = member.disk.unsynced
    assert (first.seq, [one.first for one in first.batches]) == (1, [1])
    assert (second.seq, second.hard_state) == (2, HardState(2, "c"))
    assert messages(member.sync(1), VoteResponse) == []
    assert message(member.sync(1), VoteResponse).granted


def test_trap_05_term_and_vote_are_one_record() -> None:
    member = Member("a", "abc")
    member.hold_disk = True
    member.receive("b", VoteRequest(5, 0, 0))
    (persist,) = member.disk.unsynced
    assert persist.hard_state == HardState(5, "b")


def test_trap_06_a_leader_that_restarts_is_a_follower() -> None:
    leader = Member("a", "abc").lead()
    again = Member("a", "abc", disk=leader.disk)
    assert (again.core.role, again.core.leader, again.core.vote) == (FOLLOWER, None, "a")
    assert again.wait(0.1) == []
    assert again.propose("x") == 0


def test_trap_07_a_member_that_was_cut_off_does_not_disturb_the_others() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.partition("c")
    cluster.run(30.0)
    assert cluster["c"].core.term == 1
    cluster.heal()
    cluster.run(5.0)
    assert [(member.core.term, member.core.leader) for member in cluster.members.values()] == [(1, "a")] * 3


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("term", [1, 2, 9])
def test_trap_08_a_voter_that_hears_a_leader_refuses_and_keeps_its_term(pre: bool, term: int) -> None:
    voter = Member("a", "abc")
    voter.receive("b", Heartbeat(1, 0, 1))
    voter.wait(1.0)
    assert message(voter.receive("c", VoteRequest(term, 9, term, pre=pre)), VoteResponse) == VoteResponse(1, False, pre)
    assert (voter.core.term, voter.core.leader, voter.core.vote) == (1, "b", "")
    # Nor does a preference for itself make it stand while there is a leader.
    assert voter.core.election_due > voter.now


def test_trap_08_a_leader_that_hears_nobody_steps_down() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.deafen("a")
    cluster.run(10.0)
    assert cluster["a"].core.role != LEADER
    assert cluster.leader().name in "bc"
    assert cluster.leader().core.term == 2


def test_trap_08_a_preference_does_not_disturb_a_leader() -> None:
    member = Member("a", "abc", Settings(priority=5))
    member.receive("b", Heartbeat(3, 0, 1))
    # "c" missed an election; it asks for the term that "b" leads.
    sent = member.receive("c", VoteRequest(3, 0, 0, pre=True))
    assert message(sent, VoteResponse) == VoteResponse(3, False, pre=True)
    assert member.core.election_due >= member.now + member.core.settings.election_timeout[0]
    assert member.core.vetoes == 0


def test_trap_09_a_pre_candidate_of_an_older_term_is_told_the_term() -> None:
    member = started(1, term=5)
    answer = message(member.receive("b", VoteRequest(3, 0, 0, pre=True)), VoteResponse)
    assert answer == VoteResponse(5, False, pre=True)


@pytest.mark.parametrize("old", [Append(3, 1, 1, 1, 1), Heartbeat(3, 1, 1)])
def test_trap_09_a_leader_of_an_older_term_is_told_the_term(old: Append | Heartbeat) -> None:
    member = started(1, term=5)
    (answer,) = member.receive("b", old)
    assert isinstance(answer.message, AppendResponse | HeartbeatResponse)
    assert answer.message.term == 5
    leader = Member("b", "abc", disk=Disk(hard_state=HardState(2))).lead()
    leader.receive("a", answer.message)
    assert (leader.core.role, leader.core.term) == (FOLLOWER, 5)


def test_trap_09_a_pre_candidate_forgets_its_leader_and_older_answers() -> None:
    member = Member("a", "abcde")
    member.time_out()
    member.receive("b", VoteResponse(1, True, pre=True))
    member.receive("c", Heartbeat(1, 0, 1))
    assert member.core.leader == "c"
    member.time_out()
    assert (member.core.role, member.core.granted) == (PRE_CANDIDATE, {"a"})
    assert describe_core(member.core).startswith("a pre-candidate term 1 commit")
    # Having given up on "c", it will help another to be elected.
    assert message(member.receive("d", VoteRequest(2, 0, 0, pre=True)), VoteResponse).granted


def test_trap_09_a_refused_pre_candidate_takes_on_the_newer_term() -> None:
    member = Member("a", "abc")
    member.time_out()
    member.receive("b", VoteResponse(7, False, pre=True))
    assert (member.core.role, member.core.term) == (FOLLOWER, 7)
    member.time_out()
    assert member.core.term == 7
    assert member.core.role == PRE_CANDIDATE


def test_trap_09_late_answers_to_a_pre_vote_are_no_votes() -> None:
    member = Member("a", "abcde")
    member.time_out()
    for peer in "bc":
        member.receive(peer, VoteResponse(1, True, pre=True))
    assert member.core.role == CANDIDATE
    for peer in "bcde":
        member.receive(peer, VoteResponse(1, True, pre=True))
        member.receive(peer, VoteResponse(2, True, pre=True))
    assert (member.core.role, member.core.term, member.core.granted) == (CANDIDATE, 1, {"a"})


def test_trap_10_a_granted_pre_vote_speaks_of_the_term_asked_for() -> None:
    member = started(1, 1, term=4)
    assert message(member.receive("b", VoteRequest(9, 2, 1, pre=True)), VoteResponse) == VoteResponse(9, True, pre=True)
    assert message(member.receive("b", VoteRequest(9, 1, 1, pre=True)), VoteResponse) == VoteResponse(
        4, False, pre=True
    )
    assert (member.core.term, member.core.vote) == (4, "")
    asker = started(1, 1, term=8)
    asker.time_out()
    asker.receive("b", VoteResponse(9, True, pre=True))
    assert (asker.core.role, asker.core.term) == (CANDIDATE, 9)


def test_trap_11_the_same_candidate_is_granted_again() -> None:
    member = Member("a", "abc")
    for _ in range(2):
        assert message(member.receive("b", VoteRequest(1, 0, 0)), VoteResponse).granted
    assert not message(member.receive("c", VoteRequest(1, 0, 0)), VoteResponse).granted
    again = Member("a", "abc", disk=member.disk)
    assert message(again.receive("b", VoteRequest(1, 0, 0)), VoteResponse).granted


def test_trap_12_a_learner_votes_when_asked_and_does_not_ask() -> None:
    member = Member("a", "abc")
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, membership_with("a"))]))
    assert voters(member) == "bc"
    assert member.time_out() == []
    member.wait(5.0)
    assert message(member.receive("c", VoteRequest(2, 1, 1, pre=True)), VoteResponse).granted
    assert message(member.receive("c", VoteRequest(2, 1, 1)), VoteResponse).granted
