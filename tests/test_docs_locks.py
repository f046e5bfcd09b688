"""The code in docs/locks.md runs as it is, and prints what it seems to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coord

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "locks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PRINTED = [
    ["True True True False", "True", "node held by 'node'"],
    ["leads: http://10.0.0.1:8000", "finished", "True True"],
]


@pytest.mark.parametrize(("block", "printed"), list(zip(BLOCKS, PRINTED, strict=True)), ids=["locks", "elections"])
def test_it_runs(tmp_path: Path, block: str, printed: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=block,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent), "PYTHONWARNINGS": "error"},
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == printed


def test_the_times_it_names_are_the_defaults() -> None:
    options = coord.Options()
    assert (options.session_ttl, options.jeopardy, options.session_grace) == (10.0, 6.0, 45.0)
    assert f"SUSPENDED | {options.lease:.2f} s without" in TEXT
