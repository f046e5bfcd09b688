"""Quorums in every small group, against subsets tried one after the other.

`tests/raft/test_quorum` draws larger groups at random; here nothing small is left out, and what is asked about times
(a leader's contact with its majority) is asked here too.
"""

from __future__ import annotations

import math
from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coord.raft.quorum import LOST, PENDING, WON, held_by_quorum, majority, vote_result

PROPERTIES = settings.get_profile("properties")
NAMES = "abcde"


def quorums(voters: str) -> list[tuple[str, ...]]:
    """Every set of voters that is more than half of them."""
    return [
        chosen
        for size in range(len(voters) + 1)
        for chosen in combinations(voters, size)
        if len(chosen) > len(voters) - len(chosen)
    ]


@pytest.mark.parametrize("count", range(1, 6))
def test_what_any_quorum_holds(count: int) -> None:
    """Every group of up to five, every assignment of four values: the best that the worst of a quorum has."""
    voters = NAMES[:count]
    sets = quorums(voters)
    assert min(map(len, sets)) == majority(count)
    for values in product(range(4), repeat=count):
        held = dict(zip(voters, values, strict=True))
        expected = max(min(held[name] for name in chosen) for chosen in sets)
        assert held_by_quorum(voters, held.__getitem__) == expected, held


@pytest.mark.parametrize("count", range(1, 6))
def test_every_ballot(count: int) -> None:
    """Each voter granted, refused, both or neither: won when some quorum granted, lost when none still can."""
    voters = NAMES[:count]
    sets = quorums(voters)
    seen = set()
    for ballot in product(range(4), repeat=count):
        granted = {name for name, vote in zip(voters, ballot, strict=True) if vote & 1}
        refused = {name for name, vote in zip(voters, ballot, strict=True) if vote & 2}
        expected = PENDING
        if any(granted.issuperset(chosen) for chosen in sets):
            expected = WON
        elif all(refused.intersection(chosen) for chosen in sets):
            expected = LOST
        seen.add(expected)
        assert vote_result(voters, granted, refused) == expected, (granted, refused)
    assert seen == ({WON, LOST, PENDING}), "a kind of result never came up"


@pytest.mark.parametrize("count", range(1, 6))
def test_two_candidates_never_both_win(count: int) -> None:
    """One vote each: whoever voted for one has refused the other."""
    voters = NAMES[:count]
    for ballot in product("xy-", repeat=count):
        votes = {who: {name for name, vote in zip(voters, ballot, strict=True) if vote == who} for who in "xy"}
        results = [vote_result(voters, votes["x"], votes["y"]), vote_result(voters, votes["y"], votes["x"])]
        assert results.count(WON) <= 1, ballot
        assert (WON in results) <= (LOST in results), ballot


times = st.floats(allow_nan=False) | st.sampled_from([-math.inf, math.inf, 0.0, -0.0])


@PROPERTIES
@given(values=st.lists(times, min_size=1, max_size=5))
def test_times_are_ordered_like_indexes(values: list[float]) -> None:
    """A member never heard of is minus infinity away; nobody's order of asking matters."""
    held = dict(zip(NAMES, values, strict=False))
    voters = "".join(held)
    expected = max(min(held[name] for name in chosen) for chosen in quorums(voters))
    for order in permutations(voters):
        assert held_by_quorum(order, held.__getitem__) == expected, order
