"""Traps 13 to 25: replication and membership. Each test fails in a core that makes the mistake."""

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
    pull_all,
    started,
    voters,
)
from coord.raft.batch import MEMBERSHIP, NOOP, encode_entry, make_batch
from coord.raft.membership import membership_of
from coord.raft.messages import (
    Append,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    Send,
)
from coord.raft.quorum import held_by_quorum
from coord.raft.roles import LEADER
from coord.raft.settings import Settings

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
    member = started(1, 1, 1)
    assert message(member.receive("b", Append(2, 1, 1, 3, 1)), AppendResponse).index == 1
    # Nor is anything beyond that committed: entries 2 and 3 may be other leaders'.
    assert member.core.commit == 1
    assert message(member.receive("b", Append(2, 1, 1, 3, 1, [batch(1, 2, "2")])), AppendResponse).index == 2
    assert member.core.commit == 2


def test_trap_15_a_conflicting_tail_goes_before_the_new_entries_come() -> None:
    member = started(1, 1, 1, 1)
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
    for member in (Member("b", "abc"), started(1, 1, 1)):
        member.receive("c", Heartbeat(3, 3, 1))
        assert (member.core.commit, member.applied) == (0, [])
    member = started(1, 1, 1)
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
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, membership_with("c"))]))
    assert member.core.commit == 0
    assert voters(member) == "ab"
    (change,) = member.all(MembershipChange)
    assert (change.index, change.committed) == (1, False)
    member.receive("b", Heartbeat(1, 1, 1))
    assert [(change.index, change.committed) for change in member.all(MembershipChange)] == [(1, False), (1, True)]


def test_trap_24_a_restart_goes_by_the_newest_membership_in_the_log() -> None:
    member = Member("a", "abc")
    member.receive("b", Append(1, 0, 0, 0, 1, [membership_batch(1, 1, membership_with("c"))]))
    again = Member("a", "abc", disk=member.disk)
    assert (again.core.commit, voters(again)) == (0, "ab")


def test_trap_24_truncation_takes_a_membership_back() -> None:
    member = Member("a", "abc")
    first, second = membership_batch(1, 1, membership_with()), membership_batch(1, 2, membership_with("c"))
    member.receive("b", Append(1, 0, 0, 0, 1, [first, second]))
    assert voters(member) == "ab"
    member.receive("c", Append(2, 1, 1, 0, 1, [batch(2, 2, "x")]))
    assert voters(member) == "abc"
    assert member.core.history.latest_index == 1


def test_trap_25_a_snapshot_carries_the_membership_as_of_its_index() -> None:
    member = Member("a", "abc")
    run = [membership_batch(1, 1, membership_with()), batch(1, 2, "x"), membership_batch(1, 3, membership_with("c"))]
    member.receive("b", Append(1, 0, 0, 2, 1, run))
    assert voters(member) == "ab"
    meta = member.snapshot()
    assert (meta.index, meta.membership_index, meta.membership.voters) == (2, 1, ("a", "b", "c"))
    # And a restart from it still finds the newer one in the log.
    assert Member("a", "abc", disk=member.disk).core.voters == ("a", "b")


def test_trap_25_an_installed_snapshot_ends_the_memberships_of_the_log_it_replaces() -> None:
    leader = Member("b", "abc", disk=Disk(hard_state=HardState(1))).lead()
    leader.propose("x")
    leader.acknowledged_by("a", "c")
    meta = leader.snapshot()
    run = [batch(1, 1, "old"), membership_batch(1, 2, membership_with("c"))]
    member = Member("a", "abc", disk=Disk(hard_state=HardState(1), batches=run))
    assert voters(member) == "ab"
    pull_all(member, leader)
    assert (member.core.history.latest_index, voters(member)) == (1, "abc")
    assert member.core.membership == meta.membership
