"""Histories made by hand: the checkers say what is known of each, by name."""

from __future__ import annotations

import pytest

from checkers.hand_made import Case, cases
from coord.testing.linearizability import VIOLATION, check, check_config
from coord.testing.models import ConfigKeys
from coord.testing.revisions import check_revisions

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_revisions(case: Case) -> None:
    report = check_revisions(case.operations, case.changes, may_vanish=case.vanish.__contains__)
    if case.expect == "ok":
        assert report.ok, f"this is a good history, and it was said: {report}"
    else:
        assert report.names == {case.expect}, f"{case.expect} was to be found, and it was said: {report}"
    assert report.checked == len(case.operations), "it did not look at everything"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_search(case: Case) -> None:
    judgement = check_config(case.operations)
    assert judgement.verdict == case.search, f"{case.search} was to be found, and it was said: {judgement}"
    if judgement.verdict == VIOLATION:
        assert judgement.stuck in judgement.window, "the window does not show the operation in the way"
        again = check(judgement.window, ConfigKeys(judgement.partition))
        assert again.verdict == VIOLATION, f"what is shown is no proof of it: {judgement}"


def test_there_are_enough() -> None:
    bad = [case for case in CASES if case.expect != "ok"]
    assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
    assert len(CASES) >= 120
    assert len(bad) >= 75
