"""How a service tests its own use of coord: copy this next to your code, and run pytest.

Above, the code under test, which would live in modules of its own. Below, what must be true of it when things go wrong.
`python test_with_coord.py` runs the tests, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import coord

if TYPE_CHECKING:
    from coord.testing import Group

# What is tested: a nightly report that some worker makes, once; a list of workers; a limit read for every request.


def make_report(node: coord.Node, day: str, report: Callable[[], None]) -> bool:
    """Make the report of `day`, unless some worker has begun to. False: not this one's, or nobody could tell."""
    try:
        node.config.compare_and_set(f"reports/{day}", node.name, revision=coord.ABSENT)
    except (coord.Conflict, coord.Unavailable):
        return False
    except coord.OutcomeUnknown:
        # It may have been written, or may yet be: leave it to whoever reads the key.
        return False
    report()
    return True


def sign_on(node: coord.Node) -> None:
    """The key goes when this worker's session ends."""
    node.config.put(f"workers/{node.name}", True, ephemeral=True)


def workers(node: coord.Node) -> list[str]:
    return [key.removeprefix("workers/") for key in node.config.keys("workers/")]


def limit(node: coord.Node) -> int:
    """The newest if it can be had soon, else the last this process has seen: an old limit is better than none."""
    try:
        found: int = node.config.get("limit", 100, linearizable=True, timeout=2.0)
    except coord.Unavailable:
        found = node.config.get("limit", 100)
    return found


# The tests. In real time: three nodes with threads of their own.


def test_a_report_is_made_once_though_leaders_die(coord_group: Group) -> None:
    made: list[str] = []
    for day in ("monday", "tuesday"):
        for name in coord_group.names:
            make_report(coord_group[name], day, lambda day=day: made.append(day))  # type: ignore[misc]
        leader = coord_group.leader()
        coord_group.kill(leader)
        coord_group.restart(leader)
    assert made == ["monday", "tuesday"]


def test_a_worker_that_lost_its_session_is_missed(coord_group: Group) -> None:
    for name in coord_group.names:
        sign_on(coord_group[name])
    coord_group.lose_lock_now("b")
    assert workers(coord_group.leader()) == ["a", "c"]
    sign_on(coord_group["b"])
    coord_group.wait_until(lambda: workers(coord_group["a"]) == ["a", "b", "c"])


# In virtual time: a call that waits takes no time, and the seed decides everything.


def test_without_a_majority_no_report_is_made(coord_virtual_group: Group) -> None:
    group = coord_virtual_group
    worker = group.leader()
    group.partition(["a"], ["b"], ["c"])
    made: list[str] = []
    assert not make_report(worker, "monday", lambda: made.append("monday"))
    assert group.now > coord.Options().default_timeout
    assert made == []


@pytest.mark.coord(members=5, seed=3)
def test_an_old_limit_is_better_than_none(coord_virtual_group: Group) -> None:
    group = coord_virtual_group
    group["a"].config["limit"] = 200
    group.wait_converged()
    group.partition(["e"])
    group["a"].config["limit"] = 300
    assert limit(group["a"]) == 300
    assert limit(group["e"]) == 200
    group.after(1.0, group.heal)
    assert limit(group["e"]) == 300, "it waited for the network, which came back in time"


if __name__ == "__main__":
    # In a process of its own: pytest wants to be there before what it tests.
    options = ["-q", "-p", "coord.testing.plugin", "-p", "no:cacheprovider"]
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *options, __file__]))
