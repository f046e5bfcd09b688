"""Hundreds of worlds, each with its own troubles: nothing promised is broken in any, and each recovers.

``COORD_SIMULATION_SEED`` and ``COORD_SIMULATION_COUNT`` choose other seeds, and more of them. A failure names the one
command that tells its story.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from simulation.knobs import draw
from simulation.run import Totals, run_seed, trace_hash

_COUNT = 300
#: Of these, so many are not the same in each run.
_FRESH = 40
#: What must have happened somewhere, or the worlds are too quiet to prove anything.
_RARE = {
    "damaged",
    "elected",
    "read answered by its leader",
    "read answered to a follower",
    "read answered within a lease",
    "snapshot installed",
    "started with a vote",
    "transfer begun",
    "truncated",
}
#: These between them have the real log, the real codec, leases, snapshots and five members.
_ALIKE = range(8)


def chosen_seeds() -> list[int]:
    base = os.environ.get("COORD_SIMULATION_SEED")
    count = int(os.environ.get("COORD_SIMULATION_COUNT", _COUNT))
    if base is not None:
        return list(range(int(base), int(base) + count))
    fresh = random.SystemRandom().randrange(1 << 32)
    return [*range(1, count - _FRESH + 1), *range(fresh, fresh + _FRESH)]


def test_every_world_keeps_its_promises_and_recovers(capsys: pytest.CaptureFixture[str]) -> None:
    totals, began = Totals(), time.perf_counter()
    seeds = chosen_seeds()
    for seed in seeds:
        run_seed(seed, totals)
    with capsys.disabled():
        print(f"\nseeds {seeds[0]} to {seeds[-1]}: {totals.describe(time.perf_counter() - began)}")
    missing = _RARE - totals.happened.keys() if len(seeds) >= _COUNT else set()
    assert not missing, f"never happened: {sorted(missing)}"


@pytest.mark.parametrize("seed", range(300))
def test_troubles_leave_a_majority_that_can_promise_something(seed: int) -> None:
    knobs = draw(seed)
    unable = sum(priority < 0 for priority in knobs.priorities) + knobs.damaged + knobs.stay_dead
    assert 2 * unable < knobs.members


def test_the_same_seed_tells_the_same_story_in_every_process() -> None:
    drawn = [draw(seed) for seed in _ALIKE]
    assert any(knobs.real_disk for knobs in drawn) and any(knobs.wire for knobs in drawn)
    assert any(knobs.settings.lease_reads for knobs in drawn) and any(knobs.members == 5 for knobs in drawn)
    here = [trace_hash(seed) for seed in _ALIKE]
    asked = f"from simulation.run import trace_hash; print(*map(trace_hash, range({len(_ALIKE)})))"
    for hash_seed in ("0", "1", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.run(
            [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True, timeout=100
        )
        assert told.stdout.split() == here, f"with PYTHONHASHSEED={hash_seed}"
