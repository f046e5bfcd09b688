"""`coord run-if-leader`: one command in the whole group, and again and again, whatever becomes of nodes and of us."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.holding import CRASH, Diary, Ear, ears, is_gone, wait_until_gone
from cli.lab import PATIENCE, Process, StartNode, complaint, parsed
from coord.clock import clock

NAMES = ("a", "b", "c")
#: Short leases, yet with some time from SIGTERM to SIGKILL, and from that to the end, for a busy machine.
SHORT = "heartbeat=0.05 election_timeout=[0.3,0.6] session_ttl=3.0"

Supervise = Callable[..., Process]


@pytest.fixture
def diary(folder: Path) -> Diary:
    return Diary(folder / "diary")


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Start `coord run-if-leader` with these arguments; whatever is left is killed at the end."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process("run-if-leader", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.end(signal.SIGKILL)


def seen(election: str, *at: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = parsed("lock", "ls", f"election:{election}", *at)
    return found[0] if found else {"holders": [], "waiting": 0, "delayed_s": 0.0}


def wait_for_candidates(election: str, waiting: int, *at: str) -> None:
    deadline = clock() + PATIENCE
    while seen(election, *at)["waiting"] != waiting:
        assert clock() < deadline, f"never {waiting} candidates waiting"


def check_never_two_at_a_time(diary: Diary) -> None:
    """Each command has begun after the last sign of life of the one before, with a greater token."""
    notes = diary.notes()
    order = list(dict.fromkeys(note.pid for note in notes))
    for before, after in itertools.pairwise(order):
        last = [note for note in notes if note.pid == before][-1]
        first = next(note for note in notes if note.pid == after)
        assert last.at < first.at, "two ran at a time"
        assert last.token < first.token


# With one node.


@pytest.fixture(scope="module")
def at(shared_folder: Path) -> Iterator[tuple[str, str]]:
    directory = str(shared_folder / "data")
    node = Process("node", "--data-dir", directory)
    node.wait_for(" runs: ")
    yield "--data-dir", directory
    assert node.end() == 0
    assert node.errors == ""


def test_one_of_two_runs_it_and_then_the_other(at: tuple[str, str], diary: Diary, supervise: Supervise) -> None:
    first = supervise(*at, "--value", "me", "--", *diary.command(0))
    begun = diary.wait_for("start")
    second = supervise(*at, "--", *diary.command(0))
    wait_for_candidates("leader", 1, *at)
    assert first.end() == 0
    ended = diary.last(begun.pid)
    assert ended.what == "term"
    then = diary.wait_for("start", 2)
    # Given back, not lost: there is nothing to wait for.
    assert seen("leader", *at)["delayed_s"] == 0.0
    assert seen("leader", *at)["holders"][0]["token"] == then.token
    assert second.end() == 0
    check_never_two_at_a_time(diary)
    assert f"coord: leads 'leader' with token {begun.token}: running " in first.errors
    assert "coord: 'node' leads 'leader'; waiting" in second.errors
    assert seen("leader", *at)["holders"] == []


def test_once(at: tuple[str, str], supervise: Supervise) -> None:
    script = 'echo "$COORD_ELECTION $COORD_TOKEN $COORD_SEQUENCER"; exit 9'
    process = supervise(*at, "--once", "--election", "once", "--", "sh", "-c", script)
    assert process.wait() == 9
    election, token, sequencer = process.lines[0].split()
    assert election == "once"
    assert sequencer.startswith("v1:")
    assert f":x:{token}:" in sequencer
    assert seen("once", *at)["holders"] == []


def test_a_command_that_crashes_is_run_again_after_pauses_that_grow(
    at: tuple[str, str], diary: Diary, supervise: Supervise
) -> None:
    process = supervise(*at, "--election", "crash", "--", *diary.command(CRASH))
    diary.wait_for("start", 3)
    assert process.end() == 0
    first, second, third = (note for note in diary.notes() if note.what == "start")
    assert second.at - first.at >= 1.0
    assert third.at - second.at >= 2.0
    assert first.token < second.token < third.token
    assert f"with exit code {128 + signal.SIGKILL}" in process.errors
    assert seen("crash", *at)["holders"] == []


def test_told_to_end_while_it_waits(at: tuple[str, str], diary: Diary, supervise: Supervise) -> None:
    first = supervise(*at, "--election", "wait", "--", *diary.command(0))
    diary.wait_for("start")
    second = supervise(*at, "--election", "wait", "--", *diary.command(0))
    wait_for_candidates("wait", 1, *at)
    assert second.end(signal.SIGINT) == 0
    assert seen("wait", *at)["waiting"] == 0
    assert first.end() == 0


def test_killed_we_take_the_command_with_us(at: tuple[str, str], diary: Diary, supervise: Supervise) -> None:
    process = supervise(*at, "--election", "killed", "--", *diary.command(-1))
    pid = diary.wait_for("start").pid
    process.end(signal.SIGKILL)
    wait_until_gone(pid)


def test_without_a_node_it_says_so(folder: Path) -> None:
    assert "no node takes commands" in complaint(1, "run-if-leader", "-d", str(folder / "x"), "--", "true")


@pytest.mark.parametrize("option", [("--election", "x" * 250), ("--election", ""), ("--value", "x" * 5000)])
def test_what_cannot_be(at: tuple[str, str], option: tuple[str, str]) -> None:
    complaint(2, "run-if-leader", *at, *option, "--", "true")


def test_a_node_that_comes_back_is_found_again(
    folder: Path, start_node: StartNode, diary: Diary, supervise: Supervise
) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at, COORD_OPTIONS=SHORT)
    process = supervise(*at, "--", *diary.command(0))
    diary.wait_for("start")
    assert node.end() == 0
    assert diary.last().what == "term"
    start_node(*at, COORD_OPTIONS=SHORT)
    diary.wait_for("start", 2)
    assert process.end() == 0
    check_never_two_at_a_time(diary)


# With three.


class Trio:
    """Three nodes, what each tells, and a supervisor beside each of two."""

    def __init__(self, folder: Path, start_node: StartNode) -> None:
        peers = ",".join(f"{name}=ipc://{folder}/{name}.sock" for name in NAMES)
        self.at = {name: ("--data-dir", str(folder / name)) for name in NAMES}
        self.nodes = {
            name: start_node(
                *(*self.at[name], "--name", name, "--bind", f"ipc://{folder}/{name}.sock", "--peers", peers),
                COORD_OPTIONS=SHORT,
            )
            for name in NAMES
        }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_another_host_takes_over_after_the_command_of_the_first_has_ended(
    folder: Path, start_node: StartNode, diary: Diary, supervise: Supervise, number: int
) -> None:
    trio = Trio(folder, start_node)
    with ears(folder, str(folder / "a"), str(folder / "b")) as (ear, other_ear):
        first = supervise(*ear.at, "--", *diary.command(-1))
        begun = diary.wait_for("start")
        second = supervise(*other_ear.at, "--", *diary.command(0))
        wait_for_candidates("leader", 1, *trio.at["b"])
        trio.nodes["a"].process.send_signal(number)
        then = diary.wait_for("start", 2)
        check_in_time(ear, diary, begun.pid)
        assert ear.ends_at < then.at
        assert is_gone(begun.pid)
        check_never_two_at_a_time(diary)
        assert seen("leader", *trio.at["c"])["holders"][0]["owner"] == "b"
        trio.nodes["a"].process.send_signal(signal.SIGCONT)
        assert second.end() == 0
        assert first.end() == 0
        assert "was not renewed in time" in first.errors or "broke" in first.errors or "closed" in first.errors
    check_never_two_at_a_time(diary)


def check_in_time(ear: Ear, diary: Diary, pid: int) -> None:
    """Told to end when the lease became short, dead before it was over."""
    (term,) = (note for note in diary.notes() if note.what == "term" and note.pid == pid)
    assert ear.jeopardy_at <= term.at <= diary.last(pid).at < ear.ends_at
