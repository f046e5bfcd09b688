"""Crash at every file operation of a recorded workload, in every legal way, and recover (reliability 3.7)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from coord.storage.memory import MemoryDisk
from storage.crash_runner import CrashRunner


@pytest.mark.parametrize("segment_bytes", [600, 2500])
def test_every_crash_point_recovers(segment_bytes: int) -> None:
    runner = CrashRunner(segment_bytes)
    runner.run()
    assert runner.operations > 140
    assert runner.checked > 2000


class RandomCrashes(CrashRunner):
    """Any subset of what was not synced, and writes with any of their sectors."""

    def __init__(self, seed: int) -> None:
        super().__init__(1500, nested_every=10, kill_every=10**9)
        self._random = random.Random(seed)

    def survivors(self, disk: MemoryDisk) -> Iterator[MemoryDisk]:
        for number in range(3):
            yield disk.crash(self._random, subset=number == 0)


@pytest.mark.parametrize("seed", range(4))
def test_random_crashes_recover(seed: int) -> None:
    runner = RandomCrashes(seed)
    runner.run()
    assert runner.checked > 500
