"""Quorum arithmetic: pure functions over names. Sorting a handful of numbers is fast enough to be obvious (trap 18).

`voters` is never empty. Joint quorums will be the minimum, or the conjunction, over both sets of voters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from typing import TypeVar

WON, LOST, PENDING = "won", "lost", "pending"

Ordered = TypeVar("Ordered", int, float)


def majority(count: int) -> int:
    """How many of `count` voters make a quorum."""
    return count // 2 + 1


def held_by_quorum(voters: Collection[str], value: Callable[[str], Ordered]) -> Ordered:
    """The largest v such that a majority of `voters` have a value of v or more."""
    ranked = sorted((value(name) for name in voters), reverse=True)
    return ranked[majority(len(ranked)) - 1]


def vote_result(voters: Collection[str], granted: Set[str], refused: Set[str]) -> str:
    """WON, LOST (a majority can no longer be had) or PENDING. Votes of others than `voters` do not count."""
    needed = majority(len(voters))
    if sum(name in granted for name in voters) >= needed:
        return WON
    if sum(name not in refused for name in voters) < needed:
        return LOST
    return PENDING
