"""The table of roles: each change it allows happens, every other is a bug that is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster import Member, batch
from coord.raft.messages import Append, Heartbeat, RoleChange, TimeoutNow, VoteResponse
from coord.raft.roles import ALLOWED, CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE

ROLES = (FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER)


def in_role(role: str) -> Member:
    member = Member("a", "abc")
    if role in (PRE_CANDIDATE, CANDIDATE, LEADER):
        member.time_out()
    if role in (CANDIDATE, LEADER):
        member.receive("b", VoteResponse(1, True, pre=True))
    if role == LEADER:
        member.receive("b", VoteResponse(1, True))
    assert member.core.role == role
    return member


def hand_over(member: Member) -> None:
    member.receive("b", Append(1, 0, 0, 0, 1, [batch(1, 1, "x")]))
    member.receive("b", TimeoutNow(1, 1))


HAPPENS: dict[tuple[str, str], Callable[[Member], object]] = {
    (FOLLOWER, FOLLOWER): lambda member: member.receive("b", Heartbeat(1, 0, 1)),
    (FOLLOWER, PRE_CANDIDATE): lambda member: member.time_out(),
    (FOLLOWER, CANDIDATE): hand_over,
    (PRE_CANDIDATE, FOLLOWER): lambda member: member.receive("b", Heartbeat(1, 0, 1)),
    (PRE_CANDIDATE, PRE_CANDIDATE): lambda member: member.time_out(),
    (PRE_CANDIDATE, CANDIDATE): lambda member: member.receive("b", VoteResponse(1, True, pre=True)),
    (CANDIDATE, FOLLOWER): lambda member: member.receive("b", Heartbeat(1, 0, 1)),
    (CANDIDATE, PRE_CANDIDATE): lambda member: member.time_out(),
    (CANDIDATE, LEADER): lambda member: member.receive("b", VoteResponse(1, True)),
    (LEADER, FOLLOWER): lambda member: member.receive("b", Heartbeat(2, 0, 1)),
}


def test_every_allowed_change_has_a_way_to_happen() -> None:
    assert set(HAPPENS) == {(before, after) for before, afters in ALLOWED.items() for after in afters}


@pytest.mark.parametrize(("before", "after"), list(HAPPENS))
def test_an_allowed_change_happens_and_is_told(before: str, after: str) -> None:
    member = in_role(before)
    told = len(member.all(RoleChange))
    HAPPENS[before, after](member)
    assert member.core.role == after
    changes = member.all(RoleChange)[told:]
    if (before, after) != (PRE_CANDIDATE, PRE_CANDIDATE):
        assert [(change.role, change.term) for change in changes[-1:]] == [(after, member.core.term)]
        assert changes[-1].reason != ""


@pytest.mark.parametrize(
    ("before", "after"), [(before, after) for before in ROLES for after in ROLES if (before, after) not in HAPPENS]
)
def test_any_other_change_is_a_bug(before: str, after: str) -> None:
    core = in_role(before).core
    become: dict[str, Callable[[], None]] = {
        PRE_CANDIDATE: lambda: core.become_pre_candidate("a bug"),
        CANDIDATE: lambda: core.become_candidate("a bug"),
        LEADER: core.become_leader,
    }
    with pytest.raises(AssertionError, match=f"{before} to {after}"):
        become[after]()


def test_a_lone_member_leads_without_asking_anybody() -> None:
    member = Member("a", "a")
    assert member.core.deadline() <= member.now
    assert member.wait(0.0) == []
    assert (member.core.role, member.core.term) == (LEADER, 1)


def test_a_second_vote_and_an_older_term_are_bugs() -> None:
    core = in_role(CANDIDATE).core
    with pytest.raises(AssertionError, match="second vote"):
        core.set_vote("b")
    with pytest.raises(AssertionError, match="term"):
        core.set_term(1)
