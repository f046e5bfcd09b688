"""Every example runs as it is, with no argument, and prints what it says it would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import coord

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: What each must have come to say, in this order.
SAYS = {
    "test_with_coord": ["4 passed"],
    "config_map": ["db/url is postgres://10.0.0.5/orders", "'max': 10}", "jobs/done is 3", "refused:", "new-checkout"],
    "three_members": ["leads; a wrote through it", "is killed", "with two of three members", "'still here'"],
    "watch": [
        "callback: put limits/requests = 100",
        "= 250",
        "iterating: put",
        "iterating: delete",
        "('limits/users', 6)",
    ],
    "lock": [
        "a holder writes: True",
        "meanwhile: None",
        "why: held by 'node'",
        "next holder writes: True",
        "greater: True",
        "paused one writes: False",
        "stands: True",
        "released: False",
        "held: nightly",
        "0.2 s: None",
        "database: second",
    ],
    "leader_cron": [
        "monday: made monday",
        "tuesday: made tuesday",
        "the leader is killed",
        "wednesday: nobody leads",
        "thursday: made wednesday and thursday",
    ],
    "party": [
        "a is here, a parent",
        "b is here, a worker",
        "c is here, a worker",
        "b was killed",
        "b is back",
        "still here: b, c",
        "started 3 times",
    ],
    "semaphore": [
        "never more than 2 at a time: True",
        "none is free: held by 'node', 'node'",
        "again 2 are free: True",
        "refused: permits=3",
    ],
    "decorators": [
        "reporting on monday; fencing token is there",
        "same time: None",
        "refused: lock 'reports/nightly'",
        "sent, after",
        "the leader: scheduled",
    ],
}
PATIENCE = 60.0


def test_every_example_is_looked_at() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_an_example(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    position = 0
    for text in SAYS[name]:
        position = done.stdout.find(text, position)
        assert position >= 0, f"{text!r} is missing, or too early, in: {done.stdout}"
    assert list(tmp_path.iterdir()) == []
