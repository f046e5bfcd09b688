"""The known mistakes of other systems, by number: each test fails in a core that makes its mistake.

Traps that concern the disk, the wire or the replicated state are tested beside those; the table at the end says where
each one is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster import Cluster, Disk, Member, batch, incarnation_of, log_of, message, messages, roles

from coord.raft.batch import MEMBERSHIP, NOOP, Batch, encode_entry, make_batch
from coord.raft.membership import MemberRecord, Membership, membership_of
from coord.raft.messages import (
    Append,
    AppendResponse,
    Apply,
    Halt,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    Propose,
    ProposeResponse,
    ReadRequest,
    ReadResponse,
    Refused,
    Send,
    SnapshotChunk,
    SnapshotOffer,
    SnapshotPull,
    StoreSnapshot,
    TimeoutNow,
    TransferRefused,
    Unknown,
    VoteRequest,
    VoteResponse,
)
from coord.raft.quorum import held_by_quorum
from coord.raft.roles import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings

LEASES = Settings(lease_reads=True)


def with_log(*terms: int, term: int | None = None, members: str = "abc", settings: Settings | None = None) -> Member:
    """Member "a" with one entry of each of these terms on its disk."""
    hard_state = HardState(max([*terms, 0]) if term is None else term)
    return Member("a", members, settings, disk=Disk(hard_state=hard_state, batches=log_of(*terms)))


def a_membership(*learners: str, members: str = "abc", group_number: int = 7) -> Membership:
    return Membership(
        {name: MemberRecord(f"ipc://{name}", incarnation_of(name), name not in learners) for name in members},
        group_number,
    )


def membership_batch(term: int, index: int, membership: Membership) -> Batch:
    return make_batch(MEMBERSHIP, term, index, 0, [encode_entry(membership.encode())], 1)


def acknowledge(leader: Member, *peers: str) -> None:
    """These followers hold the whole log, and answer the newest round."""
    core = leader.core
    for peer in peers:
        leader.receive(peer, AppendResponse(core.term, True, core.log.last_index, core.rounds.newest))


# ---------------------------------------------------------------------------------------------------------------------
# Election and term.


def test_trap_01_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    # Figure 8: "a" spreads its old entry 2/2 to a majority of five, but "e", with 2/3, can still be elected by them.
    leader = with_log(1, 2, term=3, members="abcde")
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
    member = with_log(1, term=5)
    answer = message(member.receive("b", VoteRequest(3, 0, 0, pre=True)), VoteResponse)
    assert answer == VoteResponse(5, False, pre=True)


@pytest.mark.parametrize("old", [Append(3, 1, 1, 1, 1), Heartbeat(3, 1, 1)])
def test_trap_09_a_leader_of_an_older_term_is_told_the_term(old: Append | Heartbeat) -> None:
    member = with_log(1, term=5)
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
    assert (member.core.role, member.core.leader, member.core.granted) == (PRE_CANDIDATE, None, {"a"})
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
    member = with_log(1, 1, term=4)
    assert message(member.receive("b", VoteRequest(9, 2, 1, pre=True)), VoteResponse) == VoteResponse(9, True, pre=True)
    assert message(member.receive("b", VoteRequest(9, 1, 1, pre=True)), VoteResponse) == VoteResponse(
        4, False, pre=True
    )
    assert (member.core.term, member.core.vote) == (4, "")
    asker = with_log(1, 1, term=8)
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
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, a_membership("a"))]))
    assert member.core.voters == ("b", "c")
    assert member.time_out() == []
    member.wait(5.0)
    assert message(member.receive("c", VoteRequest(2, 1, 1, pre=True)), VoteResponse).granted
    assert message(member.receive("c", VoteRequest(2, 1, 1)), VoteResponse).granted


# ---------------------------------------------------------------------------------------------------------------------
# Replication.


def test_trap_13_an_append_that_arrives_late_truncates_nothing() -> None:
    member = Member("a", "abc")
    run = [batch(1, index, str(index)) for index in range(1, 6)]
    member.receive("b", Append(1, 0, 0, 0, 1, run))
    for late in (Append(1, 0, 0, 0, 1, run[:2]), Append(1, 2, 1, 0, 1), Append(1, 0, 0, 5, 1)):
        member.receive("b", late)
        assert member.core.log.last_index == 5
    assert member.disk.batches == run


def test_trap_14_an_acknowledgement_covers_what_the_message_proved_and_no_more() -> None:
    member = with_log(1, 1, 1)
    assert message(member.receive("b", Append(2, 1, 1, 3, 1)), AppendResponse).index == 1
    # Nor is anything beyond that committed: entries 2 and 3 may be other leaders'.
    assert member.core.commit == 1
    assert message(member.receive("b", Append(2, 1, 1, 3, 1, [batch(1, 2, "2")])), AppendResponse).index == 2
    assert member.core.commit == 2


def test_trap_15_a_conflicting_tail_goes_before_the_new_entries_come() -> None:
    member = with_log(1, 1, 1, 1)
    member.hold_disk = True
    member.receive("b", Append(2, 1, 1, 0, 1, [batch(2, 2, "new")]))
    assert (member.core.log.last_index, member.core.log.last_term) == (2, 2)
    (persist,) = member.disk.unsynced
    assert (persist.truncate_from, [one.term for one in persist.batches]) == (2, [2])
    member.sync()
    assert [one.term for one in member.disk.batches] == [1, 2]


def test_trap_16_an_answer_from_an_older_term_counts_for_nothing() -> None:
    leader = Member("a", "abc").lead()
    index = leader.propose("x")
    leader.wait(10.0)
    leader.stand()
    assert (leader.core.role, leader.core.term) == (LEADER, 2)
    for stale in (AppendResponse(1, True, index, 9), AppendResponse(1, False, index, 9), HeartbeatResponse(1, 9, 9)):
        leader.receive("b", stale)
    assert leader.core.progress["b"].match == 0
    assert leader.core.progress["b"].acked_round == 0
    leader.receive("b", AppendResponse(2, True, index + 1, 1), incarnation=999)
    assert leader.core.progress["b"].match == 0


def test_trap_16_an_acknowledgement_waiting_for_the_disk_dies_with_its_term() -> None:
    member = Member("a", "abc")
    member.hold_disk = True
    member.receive("b", Append(1, 0, 0, 0, 1, [batch(1, 1, "x")]))
    member.receive("c", Append(2, 0, 0, 0, 1, [batch(2, 1, "y")]))
    answers = messages(member.sync(), AppendResponse)
    assert [(answer.term, answer.index) for answer in answers] == [(2, 1)]


def test_trap_17_a_heartbeat_commits_nothing_the_follower_was_not_seen_to_hold() -> None:
    # A member that lost its disk, or whose log is another's, believes none of it.
    for member in (Member("b", "abc"), with_log(1, 1, 1)):
        member.receive("c", Heartbeat(3, 3, 1))
        assert (member.core.commit, member.applied) == (0, [])
    member = with_log(1, 1, 1)
    member.receive("c", Append(3, 2, 1, 0, 1))
    member.receive("c", Heartbeat(3, 3, 2))
    assert member.core.commit == 2


@pytest.mark.parametrize(
    ("matches", "committed"), [("7 9 0 0 0", 0), ("7 9 8 0 0", 7), ("4 9", 4), ("9 4 2 2", 2), ("9 4 3 2", 3), ("5", 5)]
)
def test_trap_18_a_quorum_is_a_majority(matches: str, committed: int) -> None:
    values = {str(place): int(match) for place, match in enumerate(matches.split())}
    assert held_by_quorum(tuple(values), lambda name: values[name]) == committed


def test_trap_19_a_long_diverging_tail_is_skipped_term_by_term() -> None:
    cluster = Cluster("a", "b", "c")
    shared = [1] * 10
    logs = {"a": [*shared, *[3] * 300], "b": [*shared, *[2] * 400], "c": [*shared, *[3] * 300]}
    for name, terms in logs.items():
        cluster.members[name] = Member(name, "abc", disk=Disk(hard_state=HardState(3), batches=log_of(*terms)))
    refusals = 0

    def count(sender: str, send: Send, arrives: bool) -> None:
        nonlocal refusals
        refusals += isinstance(send.message, AppendResponse) and not send.message.success

    cluster.on_message = count
    cluster.elect("a")
    cluster.run(1.0)
    assert cluster["b"].disk.batches == cluster["a"].disk.batches
    assert refusals <= 2


def test_trap_20_a_lost_probe_is_sent_again() -> None:
    leader = Member("a", "abc")
    leader.stand()
    assert leader.core.progress["b"].paused
    leader.outbox.clear()
    sent = leader.wait(leader.core.settings.heartbeat)
    assert messages(sent, Append) == []
    sent = leader.receive("b", HeartbeatResponse(1, leader.core.rounds.newest, 0))
    assert message(sent, Append).prev_index == 0


def test_trap_20_a_window_full_of_lost_appends_is_sent_again() -> None:
    cluster = Cluster("a", "b", "c", settings=Settings(max_inflight_messages=2))
    leader = cluster.elect("a")
    cluster.run(0.2)
    cluster.partition("b")
    for text in "uvwxyz":
        leader.propose(text)
        cluster.settle()
    assert len(leader.core.progress["b"].inflight) == 2
    cluster.heal()
    cluster.run(0.5)
    assert cluster["b"].disk.batches == leader.disk.batches
    assert cluster["b"].applied == leader.applied


@pytest.mark.parametrize("members", ["ab", "abc"])
def test_trap_20_a_lost_acknowledgement_is_asked_for_again(members: str) -> None:
    cluster = Cluster(*members, settings=Settings(max_inflight_messages=1))
    leader = cluster.elect("a")
    cluster.run(0.2)
    cluster.cut = {("b", "a")}
    index = leader.propose("x")
    cluster.settle()
    assert cluster["b"].core.log.last_index == index
    cluster.heal()
    cluster.run(0.5)
    assert leader.core.commit == index
    assert leader.core.progress["b"].match == index
    last = leader.propose("y")
    cluster.settle()
    assert cluster["b"].core.log.last_index == last


def test_trap_20_a_slow_disk_is_not_asked_again_and_again() -> None:
    leader = Member("a", "abc").lead()
    index = leader.propose("x")
    leader.outbox.clear()
    for read_id in range(50):
        leader.wait(0.001)
        leader.read(read_id)
        leader.receive("b", HeartbeatResponse(1, leader.core.rounds.newest, index))
    assert messages(leader.outbox, Append) == []
    leader.wait(0.2)
    for _ in range(3):
        leader.receive("b", HeartbeatResponse(1, leader.core.rounds.newest, index))
    assert message(leader.outbox, Append) == Append(1, index, 1, 1, leader.core.rounds.newest)


def test_trap_21_the_disk_answers_in_order_and_an_old_answer_proves_nothing_new() -> None:
    leader = Member("a", "abc").lead()
    leader.hold_disk = True
    for text in "xyz":
        leader.propose(text)
    first, second, third = [persist.seq for persist in leader.disk.unsynced]
    leader.core.persisted(leader.now, second)
    assert leader.core.log.persisted == 3
    leader.core.persisted(leader.now, first)
    assert leader.core.log.persisted == 3
    leader.core.persisted(leader.now, third)
    assert leader.core.log.persisted == 4


def test_trap_21_a_sync_begun_before_a_truncation_proves_nothing_about_what_came_after() -> None:
    member = Member("a", "abc")
    member.hold_disk = True
    member.receive("b", Append(1, 0, 0, 0, 1, [batch(1, 1, "x"), batch(1, 2, "y")]))
    member.receive("c", Append(2, 0, 0, 0, 1, [batch(2, 1, "z"), batch(2, 2, "z")]))
    assert messages(member.sync(1), AppendResponse) == []
    assert member.core.log.persisted == 0
    assert message(member.sync(1), AppendResponse) == AppendResponse(2, True, 2, 1)
    assert member.core.log.persisted == 2


# ---------------------------------------------------------------------------------------------------------------------
# Membership.


def test_trap_22_a_membership_is_not_changed_on_top_of_an_uncommitted_one() -> None:
    unsure = make_batch(
        MEMBERSHIP, 1, 1, 0, [encode_entry(membership_of({n: f"ipc://{n}" for n in "abc"}).encode())], 1
    )
    leader = Member("a", "abc", disk=Disk(hard_state=HardState(1), batches=[unsure]))
    leader.stand()
    assert leader.core.role == LEADER
    # What it has learned of the members must wait, although it would like to write it down.
    assert [one.kind for one in leader.core.log.between(1, leader.core.log.last_index)] == [MEMBERSHIP, NOOP]
    leader.receive("b", AppendResponse(2, True, 1, 1))
    assert leader.core.log.last_index == 2
    leader.receive("b", AppendResponse(2, True, 2, 1))
    assert leader.core.log.batch_at(3).kind == MEMBERSHIP


def test_trap_23_a_membership_is_in_force_when_it_is_appended() -> None:
    member = Member("a", "abc")
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, a_membership("c"))]))
    assert member.core.commit == 0
    assert member.core.voters == ("a", "b")
    (change,) = member.all(MembershipChange)
    assert (change.index, change.committed) == (1, False)
    member.receive("b", Heartbeat(1, 1, 1))
    assert [(change.index, change.committed) for change in member.all(MembershipChange)] == [(1, False), (1, True)]


def test_trap_24_a_restart_goes_by_the_newest_membership_in_the_log() -> None:
    member = Member("a", "abc")
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, a_membership("c"))]))
    again = Member("a", "abc", disk=member.disk)
    assert (again.core.commit, again.core.voters) == (0, ("a", "b"))


def test_trap_24_truncation_takes_a_membership_back() -> None:
    member = Member("a", "abc")
    first, second = membership_batch(1, 1, a_membership()), membership_batch(1, 2, a_membership("c"))
    member.receive("b", Append(1, 0, 0, 0, 1, [first, second]))
    assert member.core.voters == ("a", "b")
    member.receive("c", Append(2, 1, 1, 0, 1, [batch(2, 2, "x")]))
    assert member.core.voters == ("a", "b", "c")
    assert member.core.history.latest_index == 1


def test_trap_25_a_snapshot_carries_the_membership_as_of_its_index() -> None:
    member = Member("a", "abc")
    run = [membership_batch(1, 1, a_membership()), batch(1, 2, "x"), membership_batch(1, 3, a_membership("c"))]
    member.receive("b", Append(1, 0, 0, 2, 1, run))
    assert member.core.voters == ("a", "b")
    meta = member.snapshot()
    assert (meta.index, meta.membership_index, meta.membership.voters) == (2, 1, ("a", "b", "c"))
    # And a restart from it still finds the newer one in the log.
    assert Member("a", "abc", disk=member.disk).core.voters == ("a", "b")


def test_trap_25_an_installed_snapshot_ends_the_memberships_of_the_log_it_replaces() -> None:
    leader = Member("b", "abc", disk=Disk(hard_state=HardState(1))).lead()
    leader.propose("x")
    acknowledge(leader, "a", "c")
    meta = leader.snapshot()
    run = [batch(1, 1, "old"), membership_batch(1, 2, a_membership("c"))]
    member = Member("a", "abc", disk=Disk(hard_state=HardState(1), batches=run))
    assert member.core.voters == ("a", "b")
    pull_all(member, leader, meta.index)
    assert (member.core.history.latest_index, member.core.voters) == (1, ("a", "b", "c"))
    assert member.core.membership == meta.membership


# ---------------------------------------------------------------------------------------------------------------------
# Reads, leases, transfer.


def test_trap_30_a_read_waits_for_the_first_commit_of_the_term() -> None:
    leader = with_log(1, 1, term=1)
    leader.stand()
    leader.read(1)
    leader.wait(leader.core.settings.heartbeat)
    leader.receive("b", HeartbeatResponse(2, leader.core.rounds.newest, 0))
    assert leader.reads == {}
    leader.receive("b", AppendResponse(2, True, 3, leader.core.rounds.newest))
    leader.receive("b", HeartbeatResponse(2, leader.core.rounds.newest, 3))
    assert leader.reads == {1: 3}


def test_trap_30_a_lease_waits_for_the_first_commit_of_the_term() -> None:
    leader = with_log(1, 1, term=1, settings=LEASES)
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
    acknowledge(leader, "b", "c")
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
    acknowledge(leader, "b", "c")
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
    acknowledge(leader, "b", "c")
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


# ---------------------------------------------------------------------------------------------------------------------
# Storage, as far as the core decides it.


def test_trap_36_alone_nothing_commits_before_the_own_disk_has_it() -> None:
    lone = Member("a", "a")
    lone.time_out()
    lone.hold_disk = True
    committed = lone.core.commit
    index = lone.propose("x")
    assert (lone.core.commit, lone.applied) == (committed, [])
    lone.propose("y")
    lone.sync(1)
    assert (lone.core.commit, lone.applied) == (index, [(index, "x")])
    lone.sync()
    assert lone.core.commit == index + 1


def test_trap_36_a_quorum_of_others_need_not_wait_for_the_leaders_disk() -> None:
    leader = Member("a", "abc").lead()
    leader.hold_disk = True
    index = leader.propose("x")
    leader.receive("b", AppendResponse(1, True, index, 1))
    assert leader.core.commit == index - 1
    leader.receive("c", AppendResponse(1, True, index, 1))
    assert leader.core.commit == index


def test_trap_43_a_commit_index_beyond_the_log_is_cut_to_it() -> None:
    disk = Disk(hard_state=HardState(1), batches=[batch(1, 1, "u", "v"), batch(1, 3, "w", "x")])
    for recorded, believed in [(9, 4), (4, 4), (3, 2), (2, 2), (1, 0)]:
        start = disk.start(membership_of({name: f"ipc://{name}" for name in "abc"}))
        start.commit = recorded
        disk.commit = recorded
        member = Member("a", "abc", disk=disk)
        assert member.core.commit == believed
        member.work()
        assert len(member.applied) == believed


def test_trap_45_a_leader_whose_disk_stands_still_hands_over() -> None:
    leader = Member("a", "abc").lead()
    leader.hold_disk = True
    index = leader.propose("x")
    acknowledge(leader, "b", "c")
    sent = []
    while leader.now < 20 and not messages(sent, TimeoutNow):
        sent = leader.wait(leader.core.settings.heartbeat)
        for peer in "bc":
            leader.receive(peer, HeartbeatResponse(1, leader.core.rounds.newest, index))
    assert message(sent, TimeoutNow) == TimeoutNow(1, index)


def test_trap_45_a_leader_whose_disk_stands_still_leaves_if_nobody_takes_over() -> None:
    leader = Member("a", "abc").lead()
    leader.hold_disk = True
    leader.propose("x")
    for _ in range(40):
        leader.wait(leader.core.settings.heartbeat)
        if leader.core.role != LEADER:
            break
        leader.receive("b", HeartbeatResponse(1, leader.core.rounds.newest, 1, disk_slow=True))
    assert leader.core.role == FOLLOWER
    assert "stalled" in leader.all(type(leader.done[-1]))[-1].reason


def test_trap_45_a_follower_whose_disk_stands_still_says_so_and_does_not_stand() -> None:
    follower = Member("a", "abc")
    follower.hold_disk = True
    follower.receive("b", Append(1, 0, 0, 0, 1, [batch(1, 1, "x")]))
    follower.wait(1.6)
    follower.sync(1)
    follower.receive("b", Append(1, 1, 1, 0, 2, [batch(1, 2, "y")]))
    follower.now += 1.6
    assert message(follower.receive("b", Heartbeat(1, 0, 3)), HeartbeatResponse).disk_slow
    assert follower.time_out() == []
    assert follower.core.role == FOLLOWER
    leader = Member("b", "abc").lead()
    for peer, slow in (("a", True), ("c", False)):
        leader.receive(peer, HeartbeatResponse(1, 1, 1, disk_slow=slow))
    assert leader.core.transfer_leadership(leader.now) == ""
    assert leader.core.transfer_state is not None
    assert leader.core.transfer_state.target == "c"


# ---------------------------------------------------------------------------------------------------------------------
# Identity.


def test_trap_46_a_member_that_lost_its_disk_neither_votes_nor_acknowledges() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.run(0.5)
    assert leader.core.membership.members["b"].incarnation == incarnation_of("b")
    before = leader.core.progress["b"].match
    leader.propose("y")
    sent = leader.receive("b", AppendResponse(1, True, leader.core.log.last_index, 1), incarnation=999)
    assert leader.core.progress["b"].match == before
    refusal = message(sent, Unknown)
    assert "incarnation" in refusal.reason

    asker = Member("c", "abc", disk=cluster["c"].disk)
    asker.time_out()
    asker.receive("b", VoteResponse(2, True, pre=True), incarnation=999)
    assert asker.core.role == PRE_CANDIDATE
    voter = Member("c", "abc", disk=cluster["c"].disk)
    assert messages(voter.receive("b", VoteRequest(9, 99, 9), incarnation=999), VoteResponse) == []
    assert voter.core.term == 1

    wiped = Member("b", "abc", incarnation=999)
    wiped.receive("a", refusal)
    assert wiped.all(Refused) == [Refused("a", refusal.reason)]


def test_trap_46_the_first_leader_writes_down_who_the_members_are() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.run(0.5)
    for member in cluster.members.values():
        assert {name: record.incarnation for name, record in member.core.membership.members.items()} == {
            name: incarnation_of(name) for name in "abc"
        }
        assert member.core.membership_committed == member.core.history.latest_index


def test_trap_46_a_member_that_may_have_forgotten_its_vote_never_votes_or_stands() -> None:
    member = Member("a", "abc", damage="entry 3 is corrupt")
    assert not message(member.receive("b", VoteRequest(1, 9, 1)), VoteResponse).granted
    assert not message(member.receive("b", VoteRequest(2, 9, 1, pre=True)), VoteResponse).granted
    assert member.time_out() == []
    member.receive("b", Append(3, 0, 0, 0, 1, [batch(3, 1, "x")]))
    assert message(member.receive("b", TimeoutNow(3, 1)), TransferRefused).term == 3
    assert set(roles(member)) <= {FOLLOWER}


def test_trap_50_a_group_is_founded_once() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.elect("a")
    cluster.run(0.5)
    number = cluster["a"].core.membership.group_number
    assert number != 0
    for name in "bca":
        cluster.run(5.0)
        cluster.elect(name)
        cluster.crash(name)
        cluster.restart(name)
    cluster.run(5.0)
    assert {member.core.membership.group_number for member in cluster.members.values()} == {number}
    # An empty member makes no entry of its own, and the others do not elect it.
    empty = Member("b", "abc", incarnation=999)
    asked = messages(empty.time_out(), VoteRequest)
    assert empty.core.log.last_index == 0
    assert messages(cluster["c"].receive("b", *asked, incarnation=999), VoteResponse) == []


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots and proposals.


def pull_all(member: Member, leader: Member, index: int) -> None:
    """Offer `leader`'s snapshot to `member` and carry its pieces over."""
    assert leader.core.snapshot is not None
    assert leader.core.snapshot.index == index
    leader.core.progress[member.name].become_snapshot(index, leader.now)
    sent = member.receive(leader.name, SnapshotOffer(leader.core.term, 1, leader.core.snapshot))
    while pulls := messages(sent, SnapshotPull):
        chunks = [chunk for pull in pulls for chunk in messages(leader.receive(member.name, pull), SnapshotChunk)]
        sent = member.receive(leader.name, *chunks)


def snapshot_pair(count: int = 6) -> tuple[Member, Member]:
    """A leader "b" with a snapshot of several pieces, and an empty follower "a"."""
    leader = Member("b", "abc").lead()
    for number in range(count):
        leader.propose(f"{number}")
    acknowledge(leader, "a", "c")
    leader.snapshot()
    return leader, Member("a", "abc")


def test_trap_53_a_piece_that_comes_twice_is_stored_once() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    offer = SnapshotOffer(1, 1, leader.core.snapshot)
    pull = message(follower.receive("b", offer), SnapshotPull)
    chunk = message(leader.receive("a", pull), SnapshotChunk)
    follower.receive("b", chunk, chunk)
    follower.receive("b", chunk)
    follower.receive("b", offer)
    assert [(piece.offset, len(piece.data)) for piece in follower.all(StoreSnapshot)] == [(0, 8)]


def test_trap_53_a_lost_piece_is_asked_for_again_from_where_one_stands() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    first = message(follower.receive("b", SnapshotOffer(1, 1, leader.core.snapshot)), SnapshotPull)
    second = message(follower.receive("b", message(leader.receive("a", first), SnapshotChunk)), SnapshotPull)
    assert second.offset == 8
    follower.receive("b", Heartbeat(1, 0, 2))
    assert follower.core.deadline() <= follower.now + 0.3
    assert message(follower.wait(0.3), SnapshotPull) == second
    # And a leader whose offer was lost makes it again.
    leader.core.progress["a"].become_snapshot(leader.core.snapshot.index, leader.now)
    assert message(leader.wait(0.4), SnapshotOffer, to="a").meta == leader.core.snapshot


def test_trap_53_a_pull_without_a_leader_wakes_nobody() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    follower.receive("b", SnapshotOffer(1, 1, leader.core.snapshot))
    follower.wait(0.1)
    follower.core.peer_gone(follower.now, "b")
    follower.time_out()
    follower.wait(1.0)
    assert follower.core.pull is not None
    assert follower.core.deadline() > follower.now


def test_trap_53_a_piece_being_stored_wakes_nobody() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    core = follower.core
    pull = message(follower.receive("b", SnapshotOffer(1, 1, leader.core.snapshot)), SnapshotPull)
    core.step(follower.now, "b", incarnation_of("b"), message(leader.receive("a", pull), SnapshotChunk))
    core.take()
    core.tick(follower.now + 1.0)
    assert core.deadline() > follower.now + 1.0
    assert core.take() == []
    # A piece that could not be kept ends the pull; the leader will offer again.
    core.snapshot_failed(follower.now + 1.0, leader.core.snapshot.index)
    assert core.pull is None


def test_trap_53_an_older_snapshot_is_not_installed() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    meta = leader.core.snapshot
    follower.receive("b", Append(1, 0, 0, meta.index, 1, list(leader.disk.batches)))
    assert follower.core.commit == meta.index
    answer = message(follower.receive("b", SnapshotOffer(1, 1, meta)), AppendResponse)
    assert (answer.success, answer.index) == (True, meta.index)
    follower.core.snapshot_stored(follower.now, meta)
    follower.work()
    assert (follower.core.commit, follower.core.snapshot) == (meta.index, None)
    assert follower.applied == leader.applied


def test_trap_53_a_log_that_catches_up_ends_the_pull() -> None:
    leader, follower = snapshot_pair()
    assert leader.core.snapshot is not None
    follower.receive("b", SnapshotOffer(1, 1, leader.core.snapshot))
    assert follower.core.pull is not None
    follower.receive("c", Append(2, 0, 0, 99, 1, [*leader.disk.batches, batch(2, 8)]))
    assert follower.core.pull is None
    # Nothing keeps it from standing any more.
    assert messages(follower.time_out(), VoteRequest) != []


def test_trap_53_a_snapshot_under_way_holds_up_nobody_else() -> None:
    cluster = Cluster("a", "b", "c", settings=Settings(max_append_bytes=200))
    leader = cluster.elect("a")
    cluster.partition("c")
    for round_number in range(6):
        for text in "uvw":
            leader.propose(f"{text}{round_number}")
            cluster.settle()
        leader.snapshot()
    assert leader.core.log.base > 1
    cluster.heal()

    def lose_the_pieces(sender: str, send: Send, arrives: bool) -> None:
        if isinstance(send.message, SnapshotPull):
            cluster.cut.add(("a", "c"))

    cluster.on_message = lose_the_pieces
    cluster.run(0.4)
    assert leader.core.progress["c"].state == "snapshot"
    index = leader.propose("x")
    cluster.settle()
    assert leader.core.commit == index
    cluster.on_message = lambda sender, send, arrives: None
    cluster.heal()
    cluster.run(2.0)
    assert cluster["c"].applied == leader.applied
    assert leader.core.progress["c"].state == "replicate"


def test_trap_53_a_snapshot_older_than_the_newest_is_enough_if_the_log_goes_on_from_it() -> None:
    leader, _ = snapshot_pair()
    leader.propose("more")
    acknowledge(leader, "c")
    first = leader.core.snapshot
    second = leader.snapshot()
    assert first is not None
    assert leader.core.log.base == first.index < second.index
    leader.core.progress["a"].match = 0
    leader.core.progress["a"].become_snapshot(second.index, leader.now)
    sent = leader.receive("a", AppendResponse(1, True, first.index, 0))
    assert message(sent, Append, to="a").prev_index == first.index


def test_trap_54_a_refused_proposal_has_no_effect() -> None:
    follower = Member("a", "abc")
    assert follower.propose("x") == 0
    leader = Member("a", "abc", Settings(max_uncommitted_bytes=100)).lead()
    taken = leader.propose("x" * 200)
    assert leader.propose("y") == 0
    assert leader.core.log.last_index == taken
    acknowledge(leader, "b")
    assert leader.propose("y") == taken + 1


def test_trap_54_the_fate_of_a_lost_proposal_is_told_by_what_commits_in_its_place() -> None:
    cluster = Cluster("a", "b", "c")
    leader = cluster.elect("a")
    cluster.run(0.2)
    cluster.partition("a")
    index, term = leader.propose("lost"), leader.core.term
    cluster.run(5.0)
    cluster.leader().propose("kept")
    cluster.settle()
    cluster.heal()
    cluster.run(2.0)
    applied = [one for apply in leader.all(Apply) for one in apply.batches if one.first <= index <= one.last]
    assert [one.term > term for one in applied] == [True]
    assert "lost" not in [payload for _, payload in leader.applied]


def test_trap_54_forwarded_proposals_are_taken_in_order_and_once() -> None:
    leader = Member("a", "abc").lead()
    entries = [encode_entry(text.encode()) for text in "uvwx"]

    def put(number: int, count: int, stream: int = 1) -> ProposeResponse:
        return message(
            leader.receive("b", Propose(1, stream, number, entries[number : number + count])), ProposeResponse
        )

    assert put(2, 1).expected == 0
    assert put(0, 2).expected == 2
    assert put(0, 2).expected == 2
    assert put(1, 2).expected == 3
    assert put(0, 4) == ProposeResponse(1, 1, 4, True)
    assert [list(one.payloads()) for one in leader.core.log.between(2, 5)] == [[b"u", b"v"], [b"w"], [b"x"]]
    # A member that started anew counts anew.
    assert put(0, 1, stream=2).expected == 1
    assert leader.core.log.last_index == 6
    assert message(Member("a", "abc").receive("b", Propose(0, 1, 0, entries)), ProposeResponse).expected == 0


# ---------------------------------------------------------------------------------------------------------------------
# Found in this core, and not in the list.


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
    acknowledge(member, "b", "c")
    acknowledge(member, "b", "c")
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


# ---------------------------------------------------------------------------------------------------------------------
# Where each trap is tested.

TESTS = Path(__file__).resolve().parents[1]
RAFT, STORAGE, MACHINE, WIRE = "raft", "storage", "machine", "test_wire.py"
LATER = {
    **dict.fromkeys((26, 27, 28, 29, 47), "the voters of a group do not change yet"),
    55: "there are no locks yet",
}

WHERE = {
    **dict.fromkeys((*range(1, 26), *range(30, 37), 43, 45, 46, 50, 53, 54), RAFT),
    **dict.fromkeys((37, 38, 39, 40, 41, 42, 44, 49), STORAGE),
    48: WIRE,
    **dict.fromkeys((51, 52), MACHINE),
}


def test_every_trap_has_a_place() -> None:
    assert sorted([*WHERE, *LATER]) == list(range(1, 56))


@pytest.mark.parametrize("number", sorted(LATER))
def test_what_waits_is_not_tested_yet(number: int) -> None:
    pattern = re.compile(rf"^ *def test_trap_{number:02}_", re.MULTILINE)
    assert not any(pattern.search(source.read_text()) for source in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("number", sorted(WHERE))
def test_the_tests_of_a_trap_are_where_the_table_says(number: int) -> None:
    place = TESTS / WHERE[number]
    sources = [place] if place.suffix else sorted(place.glob("*.py"))
    pattern = re.compile(rf"^ *def test_trap_{number:02}_", re.MULTILINE)
    assert any(pattern.search(source.read_text()) for source in sources)
