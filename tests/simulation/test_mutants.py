"""The simulation catches every mistake that is put back in; one that catches nothing proves nothing."""

from __future__ import annotations

import pytest

from coord.raft import replication
from simulation.mutants import MUTANTS, Mutant, applied

#: Within so many seeds.
_SEEDS = 100


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        for seed in range(1, _SEEDS + 1):
            try:
                mutant.try_seed(seed)
            except AssertionError:
                # A violation, a group that is stuck, or an invariant stated in the code itself; not a slip of the pen.
                return
    raise AssertionError(f"not caught within {_SEEDS} seeds: {mutant.name}")


def test_a_mistake_is_gone_when_it_was_looked_at() -> None:
    before = replication.on_append
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name.startswith("trap 14"))
    with applied(mutant):
        assert replication.on_append is not before
    assert replication.on_append is before


def test_stories_and_worlds_without_a_mistake_raise_nothing() -> None:
    """Else a mutant would be caught whatever it does."""
    for way in {(mutant.world, mutant.story): mutant for mutant in MUTANTS}.values():
        for seed in range(1, 9):
            way.try_seed(seed)
