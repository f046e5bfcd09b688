"""Traps 30 to 35: reads, leases, leadership handed over. Each test fails in a core that makes the mistake."""

from __future__ import annotations

import pytest

from cluster import (
    Disk,
    Member,
    batch,
    message,
    messages,
    started,
)
from coord.raft.messages import (
    Append,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    TransferRefused,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import FOLLOWER, LEADER
from coord.raft.settings import Settings

LEASES = Settings(lease_reads=True)


def test_trap_30_a_read_waits_for_the_first_commit_of_the_term() -> None:
    leader = started(1, 1, term=1)
    leader.stand()
    leader.read(1)
    leader.wait(leader.core.settings.heartbeat)
    leader.receive("b", HeartbeatResponse(2, leader.core.rounds.newest, 0))
    assert leader.reads == {}
    leader.receive("b", AppendResponse(2, True, 3, leader.core.rounds.newest))
    leader.receive("b", HeartbeatResponse(2, leader.core.rounds.newest, 3))
    assert leader.reads == {1: 3}


def test_trap_30_a_lease_waits_for_the_first_commit_of_the_term() -> None:
    leader = started(1, 1, term=1, settings=LEASES)
    leader.stand()
    leader.read(1)
    assert leader.core.lease_until() < leader.now
    assert leader.reads == {}


def test_trap_31_only_an_answer_to_a_later_round_confirms_a_read() -> None:
    leader = Member("a", "abc").lead()
    before = leader.core.rounds.newest
    leader.read(1)
    for old in (HeartbeatResponse(1, before, 1), AppendResponse(1, True, 1, before), HeartbeatResponse(1, 99, 1)):
        leader.receive("b", old)
        assert leader.reads == {}
    leader.receive("b", HeartbeatResponse(1, before + 1, 1))
    assert leader.reads == {1: 1}
    # The same answer, repeated, confirms nothing that was asked after.
    leader.read(2)
    leader.receive("b", HeartbeatResponse(1, before + 1, 1))
    assert leader.reads == {1: 1}
    assert leader.core.rounds.newest == before + 2


def test_trap_31_a_round_of_an_older_term_confirms_nothing() -> None:
    leader = Member("a", "abc").lead()
    leader.wait(10.0)
    leader.stand()
    leader.acknowledged_by("b", "c")
    leader.read(1)
    newest = leader.core.rounds.newest
    leader.receive("b", HeartbeatResponse(1, newest, 1))
    assert leader.reads == {}
    leader.receive("b", HeartbeatResponse(2, newest, 1))
    assert leader.reads == {1: 2}


def with_lease() -> Member:
    """A leader of three with leases on, whose followers have answered just now."""
    leader = Member("a", "abc", LEASES).lead()
    answer_heartbeat(leader)
    assert leader.core.lease_until() > leader.now
    return leader


def answer_heartbeat(leader: Member) -> None:
    leader.wait(leader.core.heartbeat_due - leader.now)
    for peer in leader.core.others:
        leader.receive(peer, HeartbeatResponse(leader.core.term, leader.core.rounds.newest, leader.core.log.last_index))


def test_trap_32_a_lease_ends_before_leadership_is_handed_over() -> None:
    leader = with_lease()
    leader.core.transfer_leadership(leader.now, "b")
    assert leader.core.lease_until() < leader.now
    leader.read(1)
    assert leader.reads == {}


def test_trap_32_after_a_failed_transfer_the_lease_waits_for_a_new_entry_to_commit() -> None:
    leader = with_lease()
    leader.core.transfer_leadership(leader.now, "b")
    (told,) = messages(leader.work(), TimeoutNow)
    leader.receive("b", TransferRefused(1, "no"))
    assert leader.core.transfer_state is None
    for _ in range(40):
        answer_heartbeat(leader)
    # Nobody holds the new entry: whoever gets the message late can still be elected by the others.
    assert leader.core.commit < leader.core.log.last_index
    assert leader.core.lease_until() < leader.now
    leader.acknowledged_by("b", "c")
    answer_heartbeat(leader)
    assert leader.core.lease_until() > leader.now
    # And the late message is void for whoever holds it.
    target = Member("b", "abc", LEASES, disk=Disk(hard_state=HardState(1), batches=list(leader.disk.batches)))
    target.receive("a", Heartbeat(1, 0, 1))
    assert message(target.receive("a", told), TransferRefused).term == 1
    assert target.core.role == FOLLOWER


def test_trap_32_after_a_failed_transfer_the_lease_waits_an_election_timeout() -> None:
    leader = with_lease()
    leader.core.transfer_leadership(leader.now, "b")
    leader.work()
    leader.receive("b", TransferRefused(1, "no"))
    leader.acknowledged_by("b", "c")
    answer_heartbeat(leader)
    assert leader.core.commit == leader.core.log.last_index
    assert leader.core.lease_until() < leader.now


def test_trap_33_a_lease_counts_from_when_the_round_was_sent() -> None:
    leader = with_lease()
    sent_at = leader.core.heartbeat_due
    leader.wait(sent_at - leader.now)
    newest = leader.core.rounds.newest
    leader.wait(0.1)
    for peer in "bc":
        leader.receive(peer, HeartbeatResponse(1, newest, 1))
    promised = leader.core.settings.election_timeout[0]
    assert sent_at < leader.core.lease_until() < sent_at + promised
    # Shorter than the promise by what two clocks may drift apart.
    assert leader.core.lease_until() <= sent_at + promised * (1 - leader.core.settings.clock_drift)


def test_trap_33_a_lease_needs_a_quorum() -> None:
    leader = Member("a", "abcde", LEASES).lead()
    leader.wait(leader.core.heartbeat_due - leader.now + 1.0)
    newest = leader.core.rounds.newest
    leader.receive("b", HeartbeatResponse(1, newest, 1))
    until = leader.core.lease_until()
    leader.receive("c", HeartbeatResponse(1, newest, 1))
    assert leader.core.lease_until() > until


@pytest.mark.parametrize("term", [1, 2, 5])
def test_trap_33_who_promised_a_lease_grants_no_vote_in_it(term: int) -> None:
    voter = Member("a", "abc", LEASES)
    voter.wait(5.0)
    voter.receive("b", Heartbeat(1, 0, 1))
    # It learns of term 2 (an answer to a pre-vote of its own, long under way); "b" may still hold its lease.
    voter.receive("c", VoteResponse(2, False, pre=True))
    assert (voter.core.term, voter.core.leader) == (2, None)
    voter.wait(1.4)
    assert not message(voter.receive("c", VoteRequest(term, 9, term)), VoteResponse).granted
    assert not message(voter.receive("c", VoteRequest(term, 9, term, pre=True)), VoteResponse).granted
    voter.wait(0.1)
    assert message(voter.receive("c", VoteRequest(max(term, 2), 9, 2)), VoteResponse).granted


def test_trap_33_a_promise_made_before_a_restart_is_kept() -> None:
    voter = Member("a", "abc", LEASES, now=100.0)
    assert not message(voter.receive("c", VoteRequest(1, 0, 0)), VoteResponse).granted
    assert voter.core.deadline() >= 100.0 + LEASES.election_timeout[0]
    voter.wait(LEASES.election_timeout[0])
    assert message(voter.receive("c", VoteRequest(1, 0, 0)), VoteResponse).granted


def test_trap_33_even_proof_that_the_leader_is_gone_waits_its_lease_out() -> None:
    voter = Member("a", "abc", LEASES)
    voter.receive("b", Heartbeat(1, 0, 1))
    voter.wait(0.2)
    voter.core.peer_gone(voter.now, "b")
    assert voter.core.leader is None
    assert voter.core.election_due >= LEASES.election_timeout[0]
    assert not message(voter.receive("c", VoteRequest(2, 9, 9)), VoteResponse).granted


def test_trap_34_a_lease_is_checked_when_it_is_used() -> None:
    leader = with_lease()
    leader.read(1)
    assert leader.reads == {1: 1}
    # The process stood still; no timer has told it so yet.
    leader.now += 1.6
    leader.read(2)
    assert leader.reads == {1: 1}


def test_trap_35_a_transfer_waits_until_the_target_holds_all_and_takes_no_more_entries() -> None:
    leader = Member("a", "abc").lead()
    index = leader.propose("x")
    assert leader.core.transfer_leadership(leader.now, "b") == ""
    assert messages(leader.work(), TimeoutNow) == []
    assert leader.propose("y") == 0
    assert leader.core.log.last_index == index
    sent = leader.receive("b", AppendResponse(1, True, index, 1))
    assert message(sent, TimeoutNow) == TimeoutNow(1, index)
    # Heartbeats repeat it rather than cancel it.
    assert message(leader.wait(leader.core.settings.heartbeat), TimeoutNow) == TimeoutNow(1, index)


def test_trap_35_the_leader_itself_appends_nothing_while_handing_over() -> None:
    leader = Member("a", "abc")
    leader.time_out()
    leader.receive("b", VoteResponse(1, True, pre=True))
    leader.receive("b", VoteResponse(1, True))
    leader.receive("b", AppendResponse(1, True, 1, 1))
    index = leader.propose("x")
    leader.receive("c", AppendResponse(1, False, 0, 1))
    leader.core.transfer_leadership(leader.now, "b")
    # The commit of "x" would be the moment to write down who "c" is.
    leader.receive("b", AppendResponse(1, True, index, 1))
    assert leader.core.log.last_index == index


def test_trap_35_the_target_campaigns_at_once_and_stickiness_yields() -> None:
    target = Member("b", "abc")
    target.receive("a", Append(1, 0, 0, 1, 1, [batch(1, 1, "x")]))
    asked = messages(target.receive("a", TimeoutNow(1, 1)), VoteRequest)
    assert asked == [VoteRequest(2, 1, 1, pre=False, transfer=True)] * 2
    voter = Member("c", "abc")
    voter.receive("a", Append(1, 0, 0, 1, 1, [batch(1, 1, "x")]))
    assert message(voter.receive("b", asked[0]), VoteResponse).granted


def test_trap_35_a_target_that_cannot_says_so_and_the_leader_leads_on() -> None:
    target = Member("b", "abc", Settings(priority=-1))
    target.receive("a", Append(1, 0, 0, 1, 1, [batch(1, 1, "x")]))
    assert message(target.receive("a", TimeoutNow(1, 1)), TransferRefused).term == 1
    assert message(target.receive("a", TimeoutNow(1, 2)), TransferRefused).term == 1
    assert target.core.role == FOLLOWER

    leader = Member("a", "abc").lead()
    leader.core.transfer_leadership(leader.now, "b")
    leader.receive("b", TransferRefused(1, "may not campaign now"))
    assert leader.core.transfer_state is None
    assert "may not campaign now" in leader.core.transfer_failure
    assert leader.propose("y") > 0


def test_trap_35_a_transfer_that_takes_too_long_is_given_up() -> None:
    leader = Member("a", "abc").lead()
    leader.core.transfer_leadership(leader.now, "b")
    leader.work()
    leader.wait(1.0)
    assert leader.propose("y") == 0
    leader.wait(0.6)
    assert leader.core.role == LEADER
    assert leader.propose("y") > 0
