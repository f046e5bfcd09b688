"""What the README says is so: its code runs, its links lead somewhere, its commands and defaults are the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coord
from coord.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PATIENCE = 60.0


def test_the_two_commands_to_begin_with_are_one_line_each_and_come_first() -> None:
    assert [block.strip() for block in SHELL[:2]] == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/coord demo",
        "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox",
    ]
    assert README.index(SHELL[1]) < README.index("\n## ")


def test_the_first_code_runs_as_it_is(tmp_path: Path) -> None:
    assert len([line for line in PYTHON[0].splitlines() if line and not line.startswith("#")]) == 12
    done = subprocess.run(
        [sys.executable, "-"],
        input=PYTHON[0],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent), "PYTHONWARNINGS": "error"},
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "postgres://10.0.0.5/orders",
        "['db/url']",
        "put db/url postgres://10.0.0.5/orders",
    ]


@pytest.mark.parametrize(("block", "printed"), [(1, ["True"]), (2, ["True done node"])], ids=["lock", "election"])
def test_code_runs_as_it_is(tmp_path: Path, block: int, printed: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=PYTHON[block],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent), "PYTHONWARNINGS": "error"},
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(printed)


def test_the_test_of_a_job_passes(tmp_path: Path) -> None:
    (tmp_path / "test_job.py").write_text(PYTHON[4])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "coord.testing.plugin", "-p", "no:cacheprovider", "test_job.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent)},
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_node_of_three_is_accepted() -> None:
    """Its settings are checked when it is made; it is not started, as its ports and directory are the reader's."""
    assert len(PYTHON) == 5
    done = subprocess.run(
        [sys.executable, "-c", f"import coord\n{PYTHON[3]}print(node)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent)},
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("coord.Node('a', group='orders')\n", "")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_a_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).is_file()


def test_the_commands_exist() -> None:
    used = {line.split()[1] for block in SHELL for line in block.splitlines() if line.startswith("coord ")}
    assert used <= COMMANDS.keys()
    assert {"node", "put", "get", "status"} <= used


def test_the_errors_exist_and_those_of_what_is_not_there_yet_are_not_promised() -> None:
    section = README.split("## When something goes wrong")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert names
    assert all(issubclass(getattr(coord, name), coord.CoordError) for name in names)


def test_the_options_and_their_defaults_are_the_real_ones() -> None:
    section = README.split("## Options that matter")[1].split("\n## ")[0]
    defaults = coord.Options()
    shown = dict(re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", section, re.MULTILINE))
    kib = 1024
    assert shown == {
        "`heartbeat`": f"{defaults.heartbeat} s",
        "`election_timeout`": f"{defaults.election_timeout} s",
        "`session_ttl`": f"{defaults.session_ttl:g} s",
        "`session_grace`": f"{defaults.session_grace:g} s",
        "`default_timeout`": f"{defaults.default_timeout:g} s",
        "`priority`": f"{defaults.priority}",
        "`max_value_bytes`, `max_state_bytes`": f"{defaults.max_value_bytes // kib} KiB, "
        f"{defaults.max_state_bytes // kib // kib} MiB",
        "`fsync`": f'`"{defaults.fsync}"`',
        "`snapshot_entries`": f"{defaults.snapshot_entries:,}".replace(",", " "),
    }
