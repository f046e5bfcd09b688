"""`coord node` itself: what it refuses, how it ends, what it says."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from cli.lab import StartNode, complaint, free_port, output, run

THREE = "a=tcp://127.0.0.1:1,b=tcp://127.0.0.1:2,c=tcp://127.0.0.1:3"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "data_dir is missing"),
        (("-d", "{}/d", "--name", "a", "--peers", "a=ipc:///a,b=ipc:///b", "--bind", "ipc:///a"), "an even number"),
        (("-d", "{}/d", "--name", "x", "--peers", THREE, "--bind", "ipc:///a"), "peers does not name this member, 'x'"),
        (("-d", "{}/d", "--peers", THREE), "name is missing"),
        (("-d", "{}/d", "--name", "a", "--peers", THREE), "bind is missing"),
        (("-d", "{}/d", "--peers", "a=ipc:///a,a=ipc:///b"), "'a' is named twice"),
        (("-d", "{}/d", "--name", "a", "--bind", "tcp://0.0.0.0:7400"), "insecure"),
        (("-d", "{}/d", "--option", "heartbeat=1"), "heartbeat=1"),
        (("-d", "{}/d", "--control", "tcp://10.0.0.1:7400"), "whoever reaches it may do everything"),
        (("-d", "{}/" + "d" * 100), "too long for a Unix socket"),
        (
            (
                "-d",
                "/dev/null/d",
            ),
            "/dev/null/d",
        ),
    ],
)
def test_settings_that_are_refused(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in complaint(2, "node", *(argument.replace("{}", str(folder)) for argument in arguments))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(folder: Path, start_node: StartNode, number: int) -> None:
    directory = folder / "data"
    node = start_node("--data-dir", str(directory), "--name", "a")
    assert node.end(number) == 0
    assert node.errors == ""
    assert [line for line in node.lines if " runs: " in line] == [
        f"a runs: group coord, 1 member, takes commands on ipc://{directory}/control.sock"
    ]
    assert node.lines[-1] == "a has stopped"
    assert not (directory / "control.sock").exists()


def test_it_starts_again_after_a_kill_with_what_it_had(folder: Path, start_node: StartNode) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at)
    output("put", "k", "kept", *at)
    assert node.end(signal.SIGKILL) == -signal.SIGKILL
    assert (folder / "data" / "control.sock").exists()
    assert "no node takes commands" in complaint(1, "get", "k", *at)
    node = start_node(*at)
    assert output("get", "k", *at) == "kept\n"
    assert node.end() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_a_disk_that_fails_ends_it_with_the_reason(folder: Path, start_node: StartNode) -> None:
    import resource

    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at)
    # From here on no file of that process takes a byte beyond its first.
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (1, 1))
    done = run("put", "k", "v", *at)
    assert done.returncode in (1, 5)
    assert node.wait() == 1
    assert "coord: the disk failed, and this member has stopped itself" in node.errors
    assert "Traceback" not in node.errors
    assert not (folder / "data" / "control.sock").exists()


def test_a_control_address_of_its_own(folder: Path, start_node: StartNode) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    start_node("--data-dir", str(folder / "data"), "--control", address)
    assert output("leader", "--control", address) == "node\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_a_file_says_it_all(folder: Path, start_node: StartNode) -> None:
    path = folder / "node.toml"
    path.write_text(f'name = "x"\ndata_dir = "{folder}/data"\ngroup = "filed"\n[options]\npriority = 1\n')
    start_node("--config", str(path))
    assert output("status", "-d", f"{folder}/data").startswith("group filed  leader x  quorum yes")


def test_another_members_directory_is_refused(folder: Path, start_node: StartNode) -> None:
    directory = str(folder / "data")
    assert start_node("--data-dir", directory, "--name", "a").end() == 0
    assert "'a'" in complaint(1, "node", "--data-dir", directory, "--name", "b")
