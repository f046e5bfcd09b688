"""Stop the machine at every file operation of a recorded workload, in every legal way, and start again (reliability
2.1, 3.7); and the proof that it would notice.

`COORD_CRASH_POINTS=all` looks at far more: other seeds, writes torn every few bytes, a stop inside every start.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from coord.storage.files import OsFiles
from coord.storage.memory import MemoryDisk
from storage.builders import PATH
from storage.crash_model import Found, Lost, look
from storage.crash_runner import Counts, CrashRunner, Thoroughness
from storage.crash_workload import mint_from
from storage.mistakes import MISTAKES, Mistake, made

ALL = os.environ.get("COORD_CRASH_POINTS") == "all"
STEPS = 300
WORKLOADS = [(1, 600), (2, 2000), *([(3, 450), (4, 1200)] if ALL else [])]
#: Each workload is looked at in so many tests, none of which takes long enough to be taken for hanging.
PARTS = 60 if ALL else 4
#: For each workload, what the parts so far have found on which disk: nothing is started twice.
SEEN: dict[tuple[int, int], dict[bytes, Found]] = {}
#: Every kind of thing a member does to its disk.
STEPS_TAKEN = {
    *("append", "vote", "truncate", "snapshot", "half_snapshot", "install", "pull_and_stop", "idle", "prepare"),
    *("group_number", "reopen_cleanly", "reopen_killed", "stop_in_the_middle"),
}


def thoroughness() -> Thoroughness:
    return Thoroughness(torn_step=8, nested_every=5, rot_every=1, kill_every=3) if ALL else Thoroughness()


def say(capsys: pytest.CaptureFixture[str], counts: Counts, what: str) -> None:
    with capsys.disabled():
        print(
            f"\n{what}: {counts.points} crash points, {counts.judged} disks judged, {counts.disks} of them different "
            f"and gone on with; {counts.nested} were left by a stop inside a start, {counts.killed} by one after a "
            f"kill, {counts.rotten} had a rotten snapshot"
        )


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("seed", "segment_bytes"), WORKLOADS)
def test_every_crash_point_recovers(
    seed: int, segment_bytes: int, part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = SEEN.setdefault((seed, segment_bytes), {})
    runner = CrashRunner(seed, segment_bytes, thoroughness(), part=part, parts=PARTS, seen=seen)
    on_a_real_disk = RealDisk(tmp_path, segment_bytes)
    runner.on_sample = on_a_real_disk
    counts = runner.run(STEPS)
    say(capsys, counts, f"seed {seed}, segments of {segment_bytes} bytes, part {part + 1} of {PARTS}")
    assert runner.workload.taken.keys() == STEPS_TAKEN, "the workload leaves something out"
    assert counts.points > 2000 // PARTS, "hardly any crash points"
    assert counts.disks > 5000 // PARTS, "hardly any disks"
    assert min(counts.nested, counts.rotten, counts.killed) > 200 // PARTS, "something was hardly tried"
    assert on_a_real_disk.compared > 20 // PARTS, "hardly anything was compared with a real disk"


class RealDisk:
    """Some of the disks are copied to the file system, and must be found there as they are in memory."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self.compared = 0
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._number = count()

    def __call__(self, disk: MemoryDisk, found: Found) -> None:
        path = self._directory / str(next(self._number))
        path.mkdir()
        for name in disk.names(PATH):
            (path / name).write_bytes(disk.read(f"{PATH}/{name}", 0, disk.size(f"{PATH}/{name}")))
        real, storage = look(OsFiles(), mint_from("after the crash"), self._segment_bytes, str(path))
        assert real == found, f"what is in {sorted(disk.names(PATH))} reads otherwise from a real disk"
        assert storage is not None
        storage.close()
        self.compared += 1


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_put_back_in_is_noticed(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    runner = CrashRunner(7, mistake.segment_bytes, Thoroughness(kill_every=mistake.kill_every))
    with made(mistake), pytest.raises(Lost):
        runner.run(100)
    with capsys.disabled():
        print(f"\n{mistake.name}: noticed on disk {runner.counts.judged}, at crash point {runner.counts.points}")
