"""Histories of a correct group pass every check; spoiled in a known way they fail, and the anomaly is named."""

from __future__ import annotations

import pytest

from checkers.generate import SPOILERS, Group, Shape, Spoiler, spoiled
from coord.testing.linearizability import LINEARIZABLE, VIOLATION, check, check_config
from coord.testing.models import ConfigKeys
from coord.testing.revisions import check_revisions

#: Kinds of groups: calm, crowded, of unknown outcomes, with answers that say little.
SHAPES = (
    Shape(),
    Shape(unknown=0, failed=0),
    Shape(operations=120, clients=8, keys=2, takes=2),
    Shape(operations=60, unknown=0.15, failed=0.1),
    Shape(operations=80, silent=0.5),
    Shape(operations=60, clients=3, keys=1, kinds=("put", "get", "delete", "compare_and_set"), silent=0.3, unknown=0.1),
)
GOOD_SEEDS, BAD_SEEDS = 20, 4


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("seed", range(GOOD_SEEDS))
def test_good_histories_pass(seed: int, shape: Shape) -> None:
    run = Group(seed, shape).run()
    for changes in (None, run.changes):
        report = check_revisions(run.operations, changes)
        assert report.ok, f"with{'' if changes else 'out'} the log: {report}"
        assert report.checked == shape.operations
    judgement = check_config(run.operations)
    assert judgement.verdict == LINEARIZABLE, str(judgement)


@pytest.mark.parametrize("spoiler", SPOILERS, ids=lambda spoiler: spoiler.spoil.__name__)
@pytest.mark.parametrize("seed", range(BAD_SEEDS))
def test_bad_histories_fail_by_name(seed: int, spoiler: Spoiler) -> None:
    run = spoiled(seed, spoiler, Shape(operations=100, unknown=0.05))
    assert run is not None, "no occasion to spoil it"
    report = check_revisions(run.operations, run.changes)
    assert spoiler.anomaly in report.names, f"{spoiler.anomaly} was to be found, and it was said: {report}"


@pytest.mark.parametrize("spoiler", [one for one in SPOILERS if not one.log], ids=lambda one: one.spoil.__name__)
@pytest.mark.parametrize("seed", range(BAD_SEEDS))
def test_bad_histories_fail_without_the_log(seed: int, spoiler: Spoiler) -> None:
    run = spoiled(seed, spoiler, Shape(operations=100, unknown=0))
    assert run is not None, "no occasion to spoil it"
    report = check_revisions(run.operations)
    assert spoiler.anomaly in report.names, f"{spoiler.anomaly} was to be found, and it was said: {report}"
    if spoiler.search:
        judgement = check_config(run.operations)
        assert judgement.verdict == VIOLATION, f"{spoiler.anomaly} is there, and it was said: {judgement}"
        again = check(judgement.window, ConfigKeys(judgement.partition))
        assert again.verdict == VIOLATION, f"what is shown is no proof of it: {judgement}"
        assert len(judgement.window) < len(run.operations), "nothing was left out of what is shown"
