"""Quorum arithmetic against a second opinion: an algorithm too dumb to be wrong (trap 18)."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.raft.quorum import LOST, PENDING, WON, held_by_quorum, majority, vote_result

NAMES = "abcdefg"

matches = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 20), min_size=1)


def some_majority(voters: tuple[str, ...], holders: set[str]) -> bool:
    """Is there a set of more than half of the voters, all of them holders? Tries them all."""
    return any(
        2 * size > len(voters) and set(chosen) <= holders
        for size in range(1, len(voters) + 1)
        for chosen in combinations(voters, size)
    )


def dumb_commit(voters: tuple[str, ...], held: dict[str, int]) -> int:
    """Try every index from the top down."""
    for index in range(max(held.values()), 0, -1):
        if some_majority(voters, {name for name in voters if held[name] >= index}):
            return index
    return 0


def dumb_vote(voters: tuple[str, ...], granted: set[str], refused: set[str]) -> str:
    if some_majority(voters, granted):
        return WON
    return PENDING if some_majority(voters, set(voters) - refused) else LOST


@pytest.mark.parametrize(("count", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_a_majority_is_more_than_half(count: int, quorum: int) -> None:
    assert majority(count) == quorum


@given(held=matches)
def test_two_opinions_on_what_a_quorum_holds(held: dict[str, int]) -> None:
    voters = tuple(held)
    assert held_by_quorum(voters, held.__getitem__) == dumb_commit(voters, held)


def test_two_opinions_on_many_random_groups() -> None:
    rng = random.Random(18)
    for _ in range(5000):
        voters = tuple(NAMES[: rng.randint(1, 7)])
        held = {name: rng.randint(0, 6) for name in voters}
        assert held_by_quorum(voters, held.__getitem__) == dumb_commit(voters, held), held
        granted, refused = ({name for name in NAMES if rng.random() < 0.4} for _ in range(2))
        assert vote_result(voters, granted, refused - granted) == dumb_vote(voters, granted, refused - granted)


@given(held=matches, raised=st.integers(0, 20))
def test_more_held_never_means_less_committed(held: dict[str, int], raised: int) -> None:
    voters = tuple(held)
    before = held_by_quorum(voters, held.__getitem__)
    name = voters[0]
    more = {**held, name: max(raised, held[name])}
    assert held_by_quorum(voters, more.__getitem__) >= before


@given(held=matches)
def test_any_two_quorums_that_hold_an_index_share_a_voter(held: dict[str, int]) -> None:
    voters = tuple(held)
    index = held_by_quorum(voters, held.__getitem__)
    holders = {name for name in voters if held[name] >= index}
    assert all(holders & set(quorum) for quorum in combinations(voters, majority(len(voters))))


@given(
    voters=st.lists(st.sampled_from(NAMES), unique=True, min_size=1).map(tuple),
    granted=st.frozensets(st.sampled_from(NAMES)),
    refused=st.frozensets(st.sampled_from(NAMES)),
)
def test_an_election_is_won_lost_or_open(
    voters: tuple[str, ...], granted: frozenset[str], refused: frozenset[str]
) -> None:
    refused -= granted
    result = vote_result(voters, granted, refused)
    assert result == dumb_vote(voters, set(granted), set(refused))
    # Strangers' votes change nothing.
    assert result == vote_result(voters, granted & set(voters), refused & set(voters))
    if result == PENDING:
        assert vote_result(voters, granted | (set(voters) - refused), refused) == WON
        assert vote_result(voters, granted, refused | (set(voters) - granted)) == LOST
