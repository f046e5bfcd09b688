"""The search and the checks by revision, compared with trying every order, on thousands of small random histories.

`COORD_CHECKER_HISTORIES=10000` compares so many of each kind.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from checkers.brute_force import is_possible
from checkers.generate import Group, Run, Shape, perturb
from coord.testing.history import CONFLICT, DELETE, GET, OK, UNSAID, WRITES, Operation
from coord.testing.linearizability import LINEARIZABLE, UNDECIDED, check, check_config
from coord.testing.models import ConfigKeys, Register
from coord.testing.revisions import check_revisions

HISTORIES = int(os.environ.get("COORD_CHECKER_HISTORIES", "600"))
#: Each asks for one kind of trouble.
SHAPES = {
    "revisions": Shape(8, clients=3, keys=1, kinds=("put", "get", "get", "compare_and_set", "delete"), unknown=0),
    "unknown": Shape(7, clients=4, keys=1, kinds=("put", "get", "get", "compare_and_set", "delete"), unknown=0.4),
    "values": Shape(8, clients=4, keys=1, kinds=("put", "get", "get", "delete"), silent=1, unknown=0.2),
    "some revisions": Shape(
        7, clients=4, keys=1, kinds=("put", "get", "compare_and_set", "delete"), silent=0.5, unknown=0.2
    ),
    "transactions": Shape(7, clients=3, keys=2, kinds=("transaction", "put", "get", "get"), unknown=0.2),
}
#: Where the search does not follow every consequence of a revision: what it refuses is impossible, not the reverse.
ONE_WAY = {"transactions"}


def small(seed: str, shape: Shape) -> Run:
    """Close together, so that much may have happened in any order; and mostly not as it should be."""
    rng = random.Random(seed)
    run = Group(seed, shape).run()
    run.operations = [op for op in run.operations if op.kind != "look"]
    if rng.random() < 0.9:
        perturb(run, rng)
    return run


def text(operations: list[Operation]) -> str:
    return "\n".join(map(str, operations))


@pytest.mark.parametrize("name", SHAPES)
def test_the_search_agrees_with_trying_every_order(name: str) -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(HISTORIES):
        operations = small(f"{name} {seed}", SHAPES[name]).operations
        possible, judgement = is_possible(operations), check_config(operations)
        verdicts[possible] += 1
        assert judgement.verdict != UNDECIDED, "too hard, at this size?"
        found = judgement.verdict == LINEARIZABLE
        if name not in ONE_WAY:
            assert found == possible, f"seed {seed}: possible is {possible}: {judgement}\n{text(operations)}"
        else:
            assert found >= possible, f"seed {seed}: possible, and it was said: {judgement}\n{text(operations)}"
        if not found:
            assert not is_possible(judgement.window), f"seed {seed}: no proof: {judgement}\n{text(operations)}"
    print(f"\n{name}: {dict(verdicts)}")
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"


def test_the_register_agrees_with_the_map_without_revisions() -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(HISTORIES):
        operations = small(f"register {seed}", SHAPES["values"]).operations
        possible, judgement = is_possible(operations), check(operations, Register())
        verdicts[possible] += 1
        assert judgement.ok == possible, f"seed {seed}: possible is {possible}: {judgement}\n{text(operations)}"
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"


@pytest.mark.parametrize("keys", [1, 2])
def test_the_checks_by_revision_agree_where_all_revisions_are_known(keys: int) -> None:
    """Over all keys at once: there is one log. Of versions, which only one of them knows, it says nothing."""
    shape = Shape(8, clients=4, keys=keys, kinds=("put", "get", "get", "compare_and_set", "delete", "transaction"))
    shape.unknown = 0
    verdicts: Counter[bool] = Counter()
    for seed in range(HISTORIES):
        operations = [op for op in small(f"{keys} keys {seed}", shape).operations if op.outcome != "unknown"]
        for operation in operations:
            operation.at = 0
        possible = is_possible(operations)
        report = check_revisions(operations)
        wrong = report.names - {"wrong version"}
        verdicts[possible] += 1
        assert (not wrong) == possible, f"seed {seed}: possible is {possible}: {report}\n{text(operations)}"
        judgement = check(operations, ConfigKeys([f"k{number}" for number in range(keys)]))
        assert judgement.ok == possible, f"seed {seed}: possible is {possible}: {judgement}\n{text(operations)}"
    print(f"\n{keys} keys by revision: {dict(verdicts)}")
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"


def test_the_checks_by_revision_never_refuse_what_is_possible() -> None:
    verdicts: Counter[bool] = Counter()
    shape = SHAPES["unknown"]
    for seed in range(HISTORIES):
        operations = small(f"one way {seed}", shape).operations
        for operation in operations:
            operation.at = 0
            if operation.kind == DELETE and seed % 2:
                operation.revision = 0
        possible = is_possible(operations)
        report = check_revisions(operations)
        verdicts[report.ok] += 1
        wrong = report.names - {"wrong version"}
        assert not (possible and wrong), f"seed {seed}: possible, and it was said: {report}\n{text(operations)}"
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"


def test_a_conflict_that_says_nothing_is_compared_too() -> None:
    verdicts: Counter[bool] = Counter()
    shape = Shape(7, clients=4, keys=1, kinds=("put", "get", "compare_and_set"), unknown=0.3)
    for seed in range(HISTORIES):
        operations = small(f"silent conflicts {seed}", shape).operations
        for operation in [op for op in operations if op.outcome == CONFLICT][:1]:
            operation.found = UNSAID
        possible, judgement = is_possible(operations), check_config(operations)
        verdicts[possible] += 1
        assert judgement.ok == possible, f"seed {seed}: possible is {possible}: {judgement}\n{text(operations)}"
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"


def test_small_histories_are_not_trivial() -> None:
    runs = [small(f"unknown {seed}", SHAPES["unknown"]).operations for seed in range(200)]
    beside = sum(
        one.invoked < other.invoked < one.returned for run in runs for one in run for other in run if one is not other
    )
    reads = sum(op.kind == GET and op.outcome == OK for run in runs for op in run)
    unknown = sum(op.kind in WRITES and op.outcome == "unknown" for run in runs for op in run)
    assert beside > 1000
    assert reads > 200
    assert unknown > 100
