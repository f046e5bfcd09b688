"""Section 5 of the Raft paper, one test for each sentence that can be put to a member."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster import Cluster, Disk, Member, batch, log_of, message, messages, roles
from coord.raft.batch import Batch
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

FIVE = "abcde"


def with_log(*terms: int, term: int | None = None, name: str = "a", members: str = "abc") -> Member:
    """A member that starts with one entry of each of these terms, in its last term or a newer one."""
    hard_state = HardState(max([*terms, 0]) if term is None else term)
    return Member(name, members, disk=Disk(hard_state=hard_state, batches=log_of(*terms)))


def candidate(members: str = "abc") -> Member:
    member = Member("a", members)
    member.time_out()
    for peer in member.core.others:
        member.receive(peer, VoteResponse(1, True, pre=True))
    assert member.core.role == CANDIDATE
    return member


# 5.1


def _newer_term(start: Callable[[], Member]) -> None:
    member = start()
    member.receive("b", Append(7, 0, 0, 0, 1))
    assert (member.core.term, member.core.role, member.core.leader) == (7, FOLLOWER, "b")
    assert member.disk.hard_state == HardState(7, "")


def test_a_follower_takes_on_a_newer_term() -> None:
    """5.1"""
    _newer_term(lambda: Member("a", "abc"))


def test_a_candidate_takes_on_a_newer_term_and_follows() -> None:
    """5.1"""
    _newer_term(candidate)


def test_a_leader_takes_on_a_newer_term_and_follows() -> None:
    """5.1"""
    _newer_term(lambda: Member("a", "abc").lead())


def test_a_request_of_an_older_term_is_refused() -> None:
    """5.1"""
    member = with_log(1, term=3)
    answer = message(member.receive("b", Append(2, 1, 1, 1, 1, [batch(2, 2, "x")])), AppendResponse)
    assert not answer.success
    assert answer.term == 3
    assert not message(member.receive("b", VoteRequest(2, 9, 2)), VoteResponse).granted
    assert message(member.receive("b", Heartbeat(2, 1, 1)), HeartbeatResponse).term == 3
    assert (member.core.log.last_index, member.core.leader, member.core.commit) == (1, None, 0)


# 5.2


def test_a_member_starts_as_a_follower() -> None:
    """5.2"""
    assert Member("a", "abc").core.role == FOLLOWER
    assert with_log(1, 2).core.role == FOLLOWER


def test_a_leader_speaks_to_all_at_every_heartbeat() -> None:
    """5.2"""
    leader = Member("a", "abc").lead()
    for _ in range(3):
        sent = leader.wait(leader.core.settings.heartbeat)
        assert [(send.to, type(send.message)) for send in sent] == [("b", Heartbeat), ("c", Heartbeat)]
        for peer in "bc":
            leader.receive(peer, HeartbeatResponse(1, leader.core.rounds.newest, leader.core.log.last_index))


def test_a_follower_that_hears_nothing_stands_for_the_next_term() -> None:
    """5.2 (asking first whether it could win: dissertation 9.6)"""
    member = Member("a", "abc")
    asked = messages(member.time_out(), VoteRequest)
    assert [(request.term, request.pre) for request in asked] == [(1, True), (1, True)]
    assert member.core.term == 0
    asked = messages(member.receive("b", VoteResponse(1, True, pre=True)), VoteRequest)
    assert [(request.term, request.pre) for request in asked] == [(1, False), (1, False)]
    assert (member.core.role, member.disk.hard_state) == (CANDIDATE, HardState(1, "a"))


def test_a_candidate_without_a_result_stands_again_in_a_newer_term() -> None:
    """5.2"""
    member = candidate()
    member.time_out()
    member.receive("b", VoteResponse(2, True, pre=True))
    assert (member.core.role, member.core.term) == (CANDIDATE, 2)


@pytest.mark.parametrize(
    ("members", "votes", "role"),
    [
        ("a", "", LEADER),
        ("abc", "bc", LEADER),
        ("abc", "b", LEADER),
        (FIVE, "bcde", LEADER),
        (FIVE, "bcd", LEADER),
        (FIVE, "bc", LEADER),
        ("abc", "BC", FOLLOWER),
        (FIVE, "BCDE", FOLLOWER),
        (FIVE, "bCDE", FOLLOWER),
        ("abc", "", CANDIDATE),
        (FIVE, "bCD", CANDIDATE),
        (FIVE, "b", CANDIDATE),
        (FIVE, "bbb", CANDIDATE),
        ("abcd", "b", CANDIDATE),
        ("abcd", "bc", LEADER),
    ],
)
def test_a_majority_of_votes_makes_a_leader(members: str, votes: str, role: str) -> None:
    """5.2. Small letters grant, capitals refuse."""
    member = Member("a", members)
    member.time_out()
    for peer in member.core.others:
        if member.core.role == PRE_CANDIDATE:
            member.receive(peer, VoteResponse(1, True, pre=True))
    for vote in votes:
        member.receive(vote.lower(), VoteResponse(1, vote.islower()))
    assert (member.core.role, member.core.term) == (role, 1)


@pytest.mark.parametrize(
    ("voted", "asker", "granted"),
    [("", "b", True), ("", "c", True), ("b", "b", True), ("c", "c", True), ("b", "c", False), ("c", "b", False)],
)
def test_a_member_votes_once_in_a_term(voted: str, asker: str, granted: bool) -> None:
    """5.2"""
    member = Member("a", "abc", disk=Disk(hard_state=HardState(1, voted)))
    assert message(member.receive(asker, VoteRequest(1, 0, 0)), VoteResponse) == VoteResponse(1, granted)
    assert member.disk.hard_state == HardState(1, voted or asker)


@pytest.mark.parametrize("term", [1, 2])
def test_a_candidate_follows_a_leader_of_its_own_term_or_a_newer_one(term: int) -> None:
    """5.2"""
    member = candidate()
    member.receive("b", Append(term, 0, 0, 0, 1))
    assert (member.core.role, member.core.leader, member.core.term) == (FOLLOWER, "b", term)


def _timeouts(restart: Callable[[Member], object]) -> list[float]:
    low, high = Member("a", "abc").core.settings.election_timeout
    found = []
    for seed in range(200):
        member = Member("a", "abc", seed=seed)
        restart(member)
        found.append(member.core.election_due - member.now)
    assert all(low <= timeout <= high for timeout in found)
    return found


def test_a_follower_draws_its_election_timeout_at_random() -> None:
    """5.2"""
    drawn = _timeouts(lambda member: member.receive("b", Heartbeat(1, 0, 1)))
    assert len({round(timeout, 1) for timeout in drawn}) > 10


def test_a_candidate_draws_its_election_timeout_at_random() -> None:
    """5.2"""

    def stand(member: Member) -> None:
        member.time_out()
        member.receive("b", VoteResponse(1, True, pre=True))
        assert member.core.role == CANDIDATE

    assert len({round(timeout, 1) for timeout in _timeouts(stand)}) > 10


def _clashes(seeds: int, prepare: Callable[[Member], object]) -> int:
    """In how many of so many groups of five the two first timeouts come within a heartbeat third of each other."""
    clashes = 0
    for seed in range(seeds):
        members = [Member(name, FIVE, seed=seed) for name in FIVE]
        for member in members:
            prepare(member)
        first, second = sorted(member.core.election_due - member.now for member in members)[:2]
        clashes += second - first < 0.05
    return clashes


def test_followers_seldom_time_out_together() -> None:
    """5.2"""
    assert _clashes(300, lambda member: None) < 90


def test_candidates_seldom_time_out_together() -> None:
    """5.2"""
    assert _clashes(300, lambda member: member.time_out()) < 90


# 5.3


def test_a_leader_appends_a_proposal_and_sends_it_to_all_at_once() -> None:
    """5.3"""
    leader = Member("a", "abc").lead()
    assert leader.propose("x") == 2
    sent = [(send.to, send.message) for send in leader.outbox]
    append = Append(1, 1, 1, 1, 1, [leader.core.log.batch_at(2)])
    assert sent == [("b", append), ("c", append)]
    assert list(leader.disk.batches[-1].payloads()) == [b"x"]


def test_what_a_majority_holds_is_committed_applied_and_made_known() -> None:
    """5.3"""
    leader = Member("a", "abc").lead()
    leader.propose("x")
    sent = leader.receive("b", AppendResponse(1, True, 2, 1))
    assert leader.core.commit == 2
    assert leader.applied == [(2, "x")]
    assert message(sent, Heartbeat, to="b").commit == 2


@pytest.mark.parametrize(
    ("members", "holders", "committed"),
    [
        ("a", "", True),
        ("abc", "", False),
        ("abc", "b", True),
        ("abc", "bc", True),
        (FIVE, "", False),
        (FIVE, "b", False),
        (FIVE, "bc", True),
        (FIVE, "bcd", True),
        (FIVE, "bcde", True),
        ("abcd", "b", False),
        ("abcd", "bc", True),
    ],
)
def test_an_entry_commits_when_a_majority_holds_it(members: str, holders: str, committed: bool) -> None:
    """5.3"""
    leader = Member("a", members).lead()
    index = leader.propose("x")
    for peer in holders:
        leader.receive(peer, AppendResponse(1, True, index, 1))
    assert (leader.core.commit == index) == committed


@pytest.mark.parametrize("terms", [(), (2,), (1, 2), (1,)])
def test_a_commit_covers_all_that_went_before_whoever_made_it(terms: tuple[int, ...]) -> None:
    """5.3"""
    leader = with_log(*terms, term=2).lead()
    index = leader.propose("x")
    leader.receive("b", AppendResponse(3, True, index, 1))
    old = [(position, str(position)) for position in range(1, len(terms) + 1)]
    assert leader.applied == [*old, (len(terms) + 2, "x")]


@pytest.mark.parametrize(
    ("commit", "applied"), [(1, ["u"]), (2, ["u", "v"]), (3, ["u", "v", "w"]), (9, ["u", "v", "w"])]
)
def test_a_follower_applies_in_order_what_it_learns_is_committed(commit: int, applied: list[str]) -> None:
    """5.3"""
    follower = Member("a", "abc")
    follower.receive("b", Append(1, 0, 0, commit, 1, [batch(1, 1, "u"), batch(1, 2, "v"), batch(1, 3, "w")]))
    assert [payload for _, payload in follower.applied] == applied


@pytest.mark.parametrize(
    ("index", "term", "answer"),
    [
        (0, 0, AppendResponse(2, True, 0, 5)),
        (1, 1, AppendResponse(2, True, 1, 5)),
        (2, 2, AppendResponse(2, True, 2, 5)),
        (1, 2, AppendResponse(2, False, 1, 5, 1, 1)),
        (2, 1, AppendResponse(2, False, 2, 5, 1, 1)),
        (3, 2, AppendResponse(2, False, 3, 5, 2, 2)),
    ],
)
def test_a_follower_refuses_what_does_not_follow_on_from_its_log(index: int, term: int, answer: AppendResponse) -> None:
    """5.3"""
    follower = with_log(1, 2)
    assert message(follower.receive("b", Append(2, index, term, 0, 5)), AppendResponse) == answer


@pytest.mark.parametrize(
    ("previous", "entries", "log", "written"),
    [
        ((2, 2), [batch(3, 3, "n")], [1, 2, 3], [3]),
        ((1, 1), [batch(3, 2, "n"), batch(4, 3, "n")], [1, 3, 4], [2, 3]),
        ((0, 0), [log_of(1)[0]], [1, 2], []),
        ((0, 0), [batch(3, 1, "n")], [3], [1]),
    ],
)
def test_a_follower_gives_up_what_conflicts_and_appends_what_is_new(
    previous: tuple[int, int], entries: list[Batch], log: list[int], written: list[int]
) -> None:
    """5.3"""
    follower = with_log(1, 2)
    follower.receive("b", Append(4, *previous, 0, 1, entries))
    for kept in (
        [one.term for one in follower.disk.batches],
        [follower.core.log.term_at(i + 1) for i in range(len(log))],
    ):
        assert kept == log
    assert [one.first for one in follower.disk.batches if b"n" in one.payloads()] == written


#: Figure 7: the leader of term 8 has the first log; each of the others is possible then.
FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize(
    "terms",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
    ids=list("abcdef"),
)
def test_a_leader_makes_every_followers_log_its_own(terms: list[int]) -> None:
    """5.3, figure 7"""
    cluster = Cluster("a", "b", "c")
    # The third member has the leader's log, and so can elect it.
    logs = {"a": FIGURE_7, "b": terms, "c": FIGURE_7}
    for name, log in logs.items():
        disk = Disk(hard_state=HardState(7), batches=log_of(*log), commit=2 if name == "a" else 0)
        cluster.members[name] = Member(name, "abc", disk=disk)
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.run(1.0)
    assert [one.term for one in leader.disk.batches][:11] == [*FIGURE_7, 8]
    for member in cluster.members.values():
        assert member.disk.batches == leader.disk.batches
        assert member.core.commit == leader.core.commit == leader.core.log.last_index
        assert member.applied == leader.applied


# 5.4


@pytest.mark.parametrize(("terms", "last"), [((1,), (1, 1)), ((1, 2), (2, 2)), ((), (0, 0))])
def test_a_vote_request_tells_where_the_candidates_log_ends(terms: tuple[int, ...], last: tuple[int, int]) -> None:
    """5.4.1"""
    member = with_log(*terms)
    member.time_out()
    sent = messages(member.receive("b", VoteResponse(member.core.term + 1, True, pre=True)), VoteRequest)
    assert [(request.term, request.last_index, request.last_term) for request in sent] == [
        (member.core.term, *last)
    ] * 2


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize(
    ("mine", "theirs", "granted"),
    [
        ((1,), (1, 1), True),
        ((1,), (2, 1), True),
        ((1, 1), (1, 1), False),
        ((1,), (1, 2), True),
        ((1, 1), (1, 2), True),
        ((2,), (1, 1), False),
        ((2,), (2, 1), False),
        ((1, 2), (1, 1), False),
    ],
)
def test_a_member_refuses_a_candidate_whose_log_is_behind_its_own(
    mine: tuple[int, ...], theirs: tuple[int, int], granted: bool, pre: bool
) -> None:
    """5.4.1"""
    member = with_log(*mine)
    assert message(member.receive("b", VoteRequest(3, *theirs, pre=pre)), VoteResponse).granted == granted


@pytest.mark.parametrize(("holds", "commit"), [(1, 0), (2, 0), (3, 3)])
def test_only_entries_of_its_own_term_commit_by_counting(holds: int, commit: int) -> None:
    """5.4.2"""
    leader = with_log(1, 2)
    leader.stand()
    assert (leader.core.role, leader.core.term, leader.core.log.last_index) == (LEADER, 3, 3)
    leader.receive("b", AppendResponse(3, True, holds, 1))
    assert leader.core.commit == commit
    assert roles(leader) == [PRE_CANDIDATE, CANDIDATE, LEADER]
