"""The command as a whole: what it says of itself, and how it ends when something is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

import coord
from cli.lab import PATIENCE, complaint, environment, run, run_process
from coord.cli.main import COMMANDS
from coord.cli.output import exit_code
from coord.errors import ERRORS


def test_the_version() -> None:
    assert run_process("--version").stdout == f"coord {coord.__version__}\n"


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert not COMMANDS.keys() - {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert "exit codes: 0 done" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: coord {name} ")


@pytest.mark.parametrize(
    "arguments", [(), ("bogus",), ("put", "k"), ("status", "--bogus"), ("get", "k", "--timeout", "x")]
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = run_process(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_without_a_node_named_it_says_how() -> None:
    assert complaint(2, "status").endswith("give --data-dir DIR or --control ADDRESS, or set COORD_CONTROL")


def test_only_the_module_of_the_command_is_imported() -> None:
    look = (
        "import sys; from coord.cli.main import main; code = main(['wal', 'verify', '/nowhere']); "
        "print(code, sorted(name for name in sys.modules if name.startswith('coord.cli.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=True
    )
    assert done.stdout == "2 ['coord.cli.main', 'coord.cli.output', 'coord.cli.wal']\n"


def test_every_error_has_an_exit_code() -> None:
    codes = {kind.__name__: exit_code(kind("why")) for kind in ERRORS}
    assert codes.pop("ConfigurationError") == 2
    assert codes.pop("Unavailable") == 3
    assert codes.pop("OutcomeUnknown") == 5
    assert set(codes.values()) == {1}
