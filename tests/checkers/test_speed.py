"""How fast the checkers are: printed, never asserted. That they find what is wrong in so much, is."""

from __future__ import annotations

import time

import pytest

from checkers.generate import Group, Run, Shape, last_found
from coord.testing.anomalies import STALE_READ
from coord.testing.history import Found, Operation
from coord.testing.linearizability import LINEARIZABLE, VIOLATION, check_config
from coord.testing.revisions import check_revisions

KINDS = ("put", "get", "compare_and_set")


def say(capsys: pytest.CaptureFixture[str], what: str, seconds: float) -> None:
    with capsys.disabled():
        print(f"\n{what}: {seconds:.3f} s")


def generated(count: int, clients: int, silent: float = 0.0) -> Run:
    shape = Shape(count, clients, keys=1, kinds=KINDS, unknown=0, failed=0, silent=silent)
    return Group("speed", shape).run()


def spoil(run: Run) -> None:
    """A read at three quarters of it goes back by a hundred writes."""
    gets = [op for op in run.operations if op.kind == "get" and isinstance(op.found, Found) and op.outcome == "ok"]
    get = gets[len(gets) * 3 // 4]
    assert isinstance(get.found, Found)
    before = [op.number for op in run.operations if op.returned < get.invoked]
    puts = sorted(run.points[number][1] for number in before if number in run.points)
    found = last_found(run, "k0", puts[-100])
    assert found is not None
    get.found, get.at = Found(found.value, found.revision if get.found.revision else 0), 0


@pytest.mark.parametrize("silent", [0.0, 1.0], ids=["revisions", "values"])
def test_the_search_on_a_thousand_operations(silent: float, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("put", "get") if silent else KINDS
    run = Group("speed", Shape(1000, 5, keys=1, kinds=shape, unknown=0, failed=0, silent=silent)).run()
    started = time.perf_counter()
    judgement = check_config(run.operations)
    say(capsys, f"search, 1000 operations, 5 clients, {judgement.steps} steps", time.perf_counter() - started)
    assert judgement.verdict == LINEARIZABLE, str(judgement)
    spoil(run)
    started = time.perf_counter()
    judgement = check_config(run.operations)
    say(capsys, f"  broken, and {len(judgement.window)} shown", time.perf_counter() - started)
    assert judgement.verdict == VIOLATION, str(judgement)


def test_the_revisions_of_a_hundred_thousand_operations(capsys: pytest.CaptureFixture[str]) -> None:
    operations: list[Operation] = []
    writes: list[Operation] = []
    # Fifty clients in turn, each operation beside the others' last: what the group does is simple, to be made quickly.
    for number in range(100_000):
        client, at = f"c{number % 50}", number / 50
        operation = Operation(number, client, client, "put", at, returned=at + 0.9, outcome="ok")
        if number % 2:
            operation.puts, operation.revision = {"k": number}, number + 2
            writes.append(operation)
        elif writes:
            operation.kind, operation.key = "get", "k"
            operation.found = Found(writes[-1].puts["k"], writes[-1].revision)
        else:
            operation.kind, operation.key, operation.found = "get", "k", None
        operations.append(operation)
    started = time.perf_counter()
    report = check_revisions(operations)
    say(capsys, "revisions, 100 000 operations, 50 clients, 1 key", time.perf_counter() - started)
    assert report.ok, str(report)
    assert report.checked == 100_000
    spoiled = operations[80_000]
    spoiled.found = Found(writes[39_900].puts["k"], writes[39_900].revision)
    started = time.perf_counter()
    report = check_revisions(operations)
    say(capsys, "  broken", time.perf_counter() - started)
    assert report.names == {STALE_READ}, str(report)
