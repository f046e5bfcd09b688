"""How long writes stop when the leader goes, with default options: measured and printed, asserted only to end.

A writer in another member writes every 5 ms; the gap is the longest time between two acknowledgements. COORD_ROUNDS=20
takes the leader away twenty times in each way.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from processes.harness import PATIENCE, Group, MemberProcess

ROUNDS = int(os.environ.get("COORD_ROUNDS", "3"))
EVERY_SECONDS = 0.005
#: Before and after the leader goes.
STEADY_WRITES = 60


def kill(leader: MemberProcess) -> None:
    leader.kill()


def pause(leader: MemberProcess) -> None:
    leader.pause()


def stop(leader: MemberProcess) -> None:
    leader.call("stop")


def wait_written(member: MemberProcess, key: str, more: int) -> None:
    """Until the paced writer has got so much further."""
    deadline = time.monotonic() + PATIENCE
    found = member.call("entry", key=key)
    goal = (found[0] if found else 0) + more
    while found is None or found[0] < goal:
        assert time.monotonic() < deadline, f"writes do not go on:\n{member.tail()}"
        time.sleep(0.02)
        found = member.call("entry", key=key)


def longest_gap(paced: dict[str, Any], since: float) -> float:
    assert paced["errors"] == []
    times: list[float] = paced["acknowledged"]
    return max(later - earlier for earlier, later in pairwise(times) if later > since)


def take_away(group: Group, way: Callable[[MemberProcess], None], key: str) -> float:
    """Take the leader away under load, and bring it back. The gap, in seconds."""
    leader = group.leader()
    writer = next(member for member in group.alive if member is not leader)
    paced: Future[Any] = writer.ask("pace", key=key, every=EVERY_SECONDS)
    wait_written(writer, key, STEADY_WRITES)
    since = time.monotonic()
    way(leader)
    wait_written(writer, key, STEADY_WRITES)
    writer.call("rest")
    gap = longest_gap(paced.result(PATIENCE), since)
    if way is pause:
        leader.resume()
    else:
        leader.close()
        leader.start()
    return gap


@pytest.mark.parametrize("way", [kill, pause, stop])
def test_writes_go_on_without_the_leader(tmp_path: Path, way: Callable[[MemberProcess], None]) -> None:
    with Group(tmp_path) as group:
        gaps = [take_away(group, way, f"paced/{number}") for number in range(ROUNDS)]
        # The one that was away has caught up, and nobody disagrees.
        assert len({status["state_hash"] for status in group.settled()}) == 1
    milliseconds = sorted(1000 * gap for gap in gaps)
    print(
        f"{way.__name__} of the leader, {ROUNDS} times: writes stop for {statistics.median(milliseconds):.1f} ms, "
        f"{milliseconds[-1]:.1f} ms at worst"
    )
