"""The simulation catches mistakes that are put back in; one that catches nothing proves nothing.

Here only the quickest; ``python -m tests.simulation.mutants`` hunts them all, and prints the table.
"""

from __future__ import annotations

import pytest

from coord.raft import replication
from simulation.mistakes import MUTANTS, QUICK, applied
from simulation.mutants import BROKEN, MISSED, Hunt, hunt, oracle_of, summary
from simulation.truth import Violation
from simulation.world import Stuck

#: Within so many seeds.
_SEEDS = 200
#: How many mistakes there are at least: none may get lost.
_MISTAKES = 175


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_caught(name: str) -> None:
    found = hunt(name, budget=_SEEDS)
    assert found.seeds, f"not caught within {_SEEDS} seeds: {name}: {found.oracle} {found.said}"


def test_every_mistake_can_still_be_made() -> None:
    """The words it changes are still there."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= _MISTAKES
    assert set(QUICK) <= set(names)
    for mutant in MUTANTS:
        assert mutant.origin, f"where does this come from: {mutant.name}"
        with applied(mutant):
            pass


def test_a_mistake_is_gone_when_it_was_looked_at() -> None:
    before = replication.on_append.__code__
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "an acknowledgement names the end of the log")
    with applied(mutant):
        assert replication.on_append.__code__ is not before
    assert replication.on_append.__code__ is before


def test_stories_and_worlds_without_a_mistake_raise_nothing() -> None:
    """Else a mutant would be caught whatever it does."""
    for way in {(mutant.world, mutant.story): mutant for mutant in MUTANTS}.values():
        for seed in (1, 2):
            way.try_seed(seed)


def test_what_is_not_caught_is_missed_and_what_breaks_the_harness_is_not_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "a conflicting tail is kept"
    assert hunt(name, budget=0)[:3] == (name, 0, MISSED)

    def breaks(self: object, seed: int) -> None:
        raise KeyError("whoever looks stumbles")

    monkeypatch.setattr("simulation.mutation.Mutant.try_seed", breaks)
    found = hunt(name, start=7)
    assert found[:3] == (name, 0, BROKEN)
    assert "seed 7" in found.said and "whoever looks stumbles" in found.said
    told = "\n".join(summary({name: [found], "another": [Hunt("another", 3, "R2", "", 0.1)]}, 10))
    assert "1 of 2 caught" in told and f"Not caught: {name}" in told


@pytest.mark.parametrize(
    ("error", "oracle"),
    [
        (Stuck("at 3.1: nobody leads"), "liveness"),
        (Violation("at 3.1: a: R2: commits 3 of term 1"), "R2"),
        (Violation("at 3.1: a: lost what its disk had kept (rot): kept this"), "recovery"),
        (Violation("at 3.1: a: elected within the lease of b"), "rules"),
        (AssertionError("entry 3 after 1"), "stated invariant"),
    ],
)
def test_what_caught_it_is_named_by_its_kind(error: AssertionError, oracle: str) -> None:
    with pytest.raises(AssertionError) as caught:
        raise error
    assert oracle_of(caught.value) == oracle
