"""The simulation catches mistakes that are put back in; one that catches nothing proves nothing.

Here only the quickest; ``python -m tests.simulation.mutants`` hunts them all, and prints the table.
"""

from __future__ import annotations

import pytest

from coord.raft import replication
from simulation.mistakes import MUTANTS, QUICK, applied
from simulation.mutants import hunt

#: Within so many seeds.
_SEEDS = 100


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_caught(name: str) -> None:
    found = hunt(name, budget=_SEEDS)
    assert found.seeds, f"not caught within {_SEEDS} seeds: {name}"


def test_every_mistake_can_still_be_made() -> None:
    """The words it changes are still there."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 50
    for mutant in MUTANTS:
        with applied(mutant):
            pass


def test_a_mistake_is_gone_when_it_was_looked_at() -> None:
    before = replication.on_append.__code__
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name.startswith("trap 14"))
    with applied(mutant):
        assert replication.on_append.__code__ is not before
    assert replication.on_append.__code__ is before


def test_stories_and_worlds_without_a_mistake_raise_nothing() -> None:
    """Else a mutant would be caught whatever it does."""
    for way in {(mutant.world, mutant.story): mutant for mutant in MUTANTS}.values():
        for seed in range(1, 5):
            way.try_seed(seed)
