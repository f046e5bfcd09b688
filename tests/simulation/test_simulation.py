"""A thousand worlds, each with its own troubles: nothing promised is broken in any, and each recovers.

``COORD_SIMULATION_SEED`` and ``COORD_SIMULATION_COUNT`` choose other seeds, and more of them. A failure names the one
command that tells its story.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

import coord
from simulation.case import Case, kind_of, read_case
from simulation.knobs import draw, spare_of
from simulation.mistakes import MUTANTS, applied
from simulation.probes import PROBES, watched
from simulation.run import Totals, run_seeds
from simulation.shrink import shrink

_FRESH = 1000
#: What must have happened somewhere, or the worlds are too quiet to prove anything.
_RARE = {
    "crashed while starting",
    "damage found",
    "elected",
    "lock closed for a while",
    "lock downgraded",
    "lock granted",
    "lock handed to a successor",
    "lock shared",
    "misdirected",
    "read answered by its leader",
    "read answered to a follower",
    "read answered within a lease",
    "rot",
    "session JEOPARDY",
    "session SUSPENDED",
    "session expired",
    "snapshot installed",
    "started with a vote",
    "stopped by its disk",
    "torn tail cut",
    "transfer begun",
    "truncated",
    "watch across a snapshot",
    "watch resumed",
    "wiped",
    "withdrawn in time",
    "written under a lock",
}
#: These between them have leases, snapshots, five members, rot and slow disks.
_ALIKE = range(8)
_ROOT = Path(__file__).parents[2]


def test_every_world_keeps_its_promises_and_recovers(capsys: pytest.CaptureFixture[str]) -> None:
    first = int(os.environ.get("COORD_SIMULATION_SEED", random.SystemRandom().randrange(1 << 32)))
    count = int(os.environ.get("COORD_SIMULATION_COUNT", _FRESH))
    totals = Totals()
    for part in run_seeds(first, count, os.cpu_count() or 1):
        totals.add(part)
        told = [f"{f.kind}: {f.said}\n  replay: {Case(f.seed).command()} --trace" for f in part.failures]
        assert not told, "\n".join(told)
    with capsys.disabled():
        print(f"\nseeds {first} to {first + count - 1}: {totals.describe()}")
        print(f"  never met: {'; '.join(totals.never_met())}")
    if count >= _FRESH:
        missing = _RARE - totals.seen.keys()
        assert not missing, f"never happened: {sorted(missing)}"
        assert len(PROBES) - len(totals.never_met()) >= 60


@pytest.mark.parametrize("seed", range(300))
def test_troubles_leave_a_majority_that_can_promise_something(seed: int) -> None:
    knobs = draw(seed)
    unable = sum(priority < 0 for priority in knobs.priorities) + knobs.stay_dead + spare_of(knobs)
    assert 2 * unable < knobs.members


# ---------------------------------------------------------------------------------------------------------------------
# The same seed, the same story.

_ASKED = f"from simulation.case import Case; print(*[Case(seed).trace_hash() for seed in range({len(_ALIKE)})])"


def _told_by(python: str, hash_seed: str, *path: str) -> list[str]:
    search = os.pathsep.join([*path, str(_ROOT / "tests")])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        [python, "-c", _ASKED], env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.split()


def test_the_same_seed_tells_the_same_story_in_every_process() -> None:
    drawn = [draw(seed) for seed in _ALIKE]
    assert any(knobs.options["lease_reads"] for knobs in drawn) and any(knobs.members == 5 for knobs in drawn)
    assert any(knobs.hardware.sync_time for knobs in drawn) and any(knobs.rot_every < 100 for knobs in drawn)
    here = [Case(seed).trace_hash() for seed in _ALIKE]
    for hash_seed in ("0", "1", "random"):
        assert _told_by(sys.executable, hash_seed, *filter(None, sys.path)) == here, f"with PYTHONHASHSEED={hash_seed}"


def _other_python() -> str | None:
    """Some interpreter of another version from 3.10 on."""
    home = Path.home() / ".pyenv" / "versions"
    for minor in (13, 10, 12, 11):
        if minor == sys.version_info[1]:
            continue
        found = [shutil.which(f"python3.{minor}"), *sorted(map(str, home.glob(f"3.{minor}.*/bin/python3")))]
        for python in filter(None, found):
            asked = [python, "-c", "import sys; print(sys.version_info[:2])"]
            told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
            if told.stdout.strip() == f"(3, {minor})":
                return python
    return None


def test_another_python_tells_the_same_story(tmp_path: Path) -> None:
    python = _other_python()
    if python is None:
        pytest.skip("there is no other Python here")
    # The simulation needs no socket, and msgpack works without its extension: so no packages need be built for it.
    (tmp_path / "zmq.py").write_text(
        "from unittest.mock import MagicMock\n\n\ndef __getattr__(name):\n    return MagicMock()\n"
    )
    package = Path(msgpack.__file__).parent
    (tmp_path / "msgpack").mkdir()
    for source in package.glob("*.py"):
        shutil.copy(source, tmp_path / "msgpack")
    installed = str(Path(coord.__file__).parents[1])
    assert _told_by(python, "7", str(tmp_path), installed) == [Case(seed).trace_hash() for seed in _ALIKE], python


# ---------------------------------------------------------------------------------------------------------------------
# A failure can be seen again, and made smaller.


def test_a_failure_is_made_smaller_and_named_in_one_command() -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "entries of older terms are committed by counting")
    with applied(mutant):
        for seed in range(1, 200):
            try:
                before = Case(seed).world()
                before.run()
            except AssertionError as error:
                kind = kind_of(error)
                break
        smaller = shrink(Case(seed), seconds=10)
        words = smaller.command().split()
        settings = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
        only = words[words.index("--only") + 1].strip("'") if "--only" in words else None
        again = read_case(seed, settings, only)
        assert again == smaller
        with pytest.raises(AssertionError) as caught:
            again.run()
    assert kind_of(caught.value) == kind
    assert smaller.kept is not None and len(smaller.kept) < len(before.blows)
    again.run()


def test_a_word_that_is_no_knob_is_refused() -> None:
    with pytest.raises(ValueError, match="no knob"):
        read_case(1, ["conditions.weather=1.0"], None)


def test_every_probe_stands_where_it_says() -> None:
    assert len(set(PROBES)) == len(PROBES) >= 60
    with watched() as passed:
        Case(1).run()
    assert passed["a vote is given"]
    before = dict(passed)
    Case(1).run()
    assert passed == before
