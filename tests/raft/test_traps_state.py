"""Traps 36 to 54, as far as they are the core's: its disk, its identity, snapshots and proposals."""

from __future__ import annotations

from cluster import (
    Cluster,
    Disk,
    Member,
    batch,
    incarnation_of,
    message,
    messages,
    roles,
)
from coord.raft.batch import encode_entry
from coord.raft.membership import membership_of
from coord.raft.messages import (
    Append,
    AppendResponse,
    Apply,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Propose,
    ProposeResponse,
    Refused,
    RoleChange,
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
from coord.raft.roles import FOLLOWER, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings

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
    leader.acknowledged_by("b", "c")
    sent: list[Send] = []
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
    assert "stalled" in leader.all(RoleChange)[-1].reason


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


def snapshot_pair(count: int = 6) -> tuple[Member, Member]:
    """A leader "b" with a snapshot of several pieces, and an empty follower "a"."""
    leader = Member("b", "abc").lead()
    for number in range(count):
        leader.propose(f"{number}")
    leader.acknowledged_by("a", "c")
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
    leader.acknowledged_by("c")
    first = leader.core.snapshot
    second = leader.snapshot()
    assert first is not None
    assert leader.core.log.base == first.index < second.index
    leader.core.progress["a"].match = 0
    leader.core.progress["a"].become_snapshot(second.index, leader.now)
    sent = leader.receive("a", AppendResponse(1, True, first.index, 0))
    assert message(sent, Append, to="a").prev_index == first.index


def test_trap_53_a_slow_pull_goes_on_while_its_snapshot_is_kept() -> None:
    leader, _ = snapshot_pair()
    first = leader.core.snapshot
    assert first is not None
    leader.core.progress["a"].become_snapshot(first.index, leader.now)
    leader.propose("more")
    leader.acknowledged_by("c")
    second = leader.snapshot()
    # Asked for a piece, or offering again after a silence, the leader stays with what is being pulled.
    piece = leader.receive("a", SnapshotPull(1, first.index, 0))
    assert message(piece, SnapshotChunk, to="a").index == first.index
    offers = messages(leader.wait(1.0), SnapshotOffer, to="a")
    assert {offer.meta.index for offer in offers} == {first.index}
    # Once it is no longer kept, there is only the newer one to offer.
    leader.propose("still more")
    leader.acknowledged_by("c")
    leader.snapshot()
    offered = leader.receive("a", SnapshotPull(1, first.index, 0))
    assert message(offered, SnapshotOffer, to="a").meta.index > second.index


def test_trap_54_a_refused_proposal_has_no_effect() -> None:
    follower = Member("a", "abc")
    assert follower.propose("x") == 0
    leader = Member("a", "abc", Settings(max_uncommitted_bytes=100)).lead()
    taken = leader.propose("x" * 200)
    assert leader.propose("y") == 0
    assert leader.core.log.last_index == taken
    leader.acknowledged_by("b")
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
