"""A held command in time: what happens to it, and when, whatever the node, the terminal or our own process does."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.holding import Diary, ToldNode, is_gone, wait_until_gone
from cli.lab import PATIENCE, Process, complaint, environment, run_process
from coord.cli.control import BadControlFrame, FrameReader
from coord.cli.holds import _Leases, relied_on
from coord.cli.run import Pauses
from coord.clock import clock

#: A lease that does not matter.
LONG = (500.0, 1000.0)
#: One that is short, with much time from SIGTERM to the end: what must be over by then has to be on a busy machine too.
SHORT = (0.5, 4.0)


@pytest.fixture
def node(folder: Path) -> Iterator[ToldNode]:
    made = ToldNode(folder)
    yield made
    made.close()


@pytest.fixture
def diary(folder: Path) -> Diary:
    return Diary(folder / "diary")


class Started:
    """`coord lock run` of a command, which has begun."""

    def __init__(self, node: ToldNode, diary: Diary, command: list[str], *options: str, lease: tuple[float, float]):
        self.process = Process("lock", "run", "x", *node.at, *options, "--", *command)
        node.accept()
        node.grant()
        node.lease(*lease)
        self.command = diary.wait_for("start").pid

    def exit_code(self, node: ToldNode) -> int:
        """After what it held was given back; by then nothing runs any more."""
        assert node.hear() == ["release"]
        assert is_gone(self.command), "given back while the command runs"
        node.done()
        return self.process.wait()


Start = Callable[..., Started]


@pytest.fixture
def start(node: ToldNode, diary: Diary) -> Iterator[Start]:
    started: list[Started] = []

    def begin(command: list[str], *options: str, lease: tuple[float, float] = LONG) -> Started:
        started.append(Started(node, diary, command, *options, lease=lease))
        return started[-1]

    yield begin
    for one in started:
        one.process.end(signal.SIGKILL)


def test_it_gets_what_was_granted_and_its_exit_code_is_ours(node: ToldNode) -> None:
    script = 'echo "$COORD_LOCK_NAME $COORD_LOCK_TOKEN $COORD_SEQUENCER"; exit 7'
    process = Process("lock", "run", "x", *node.at, "--", "sh", "-c", script)
    asked = node.accept()
    assert asked == {
        "kind": "lock",
        "name": "x",
        "shared": False,
        "permits": 1,
        "priority": 0,
        "lock_delay": None,
        "value": None,
        "wait": True,
        "timeout": None,
    }
    node.say("waiting", "'b'")
    node.grant(12)
    assert process.lines == []
    node.lease(*LONG)
    assert node.hear() == ["release"]
    node.done()
    assert process.wait() == 7
    assert process.lines == ["x 12 sequencer-12"]
    assert process.errors == ""


def test_the_arguments_of_a_command_are_its_own(node: ToldNode) -> None:
    process = Process("lock", "run", *node.at, "x", "--timeout", "30", "--", "echo", "-o", "json", "--", "--shared")
    assert node.accept()["timeout"] == 30
    node.grant()
    node.lease(*LONG)
    assert node.hear() == ["release"]
    node.done()
    assert process.wait() == 0
    assert process.lines == ["-o json -- --shared"]


def test_a_signal_that_ends_it_is_told_as_shells_do(node: ToldNode) -> None:
    process = Process("lock", "run", "x", *node.at, "--", "sh", "-c", "kill -KILL $$")
    node.accept()
    node.grant()
    node.lease(*LONG)
    assert node.hear() == ["release"]
    node.done()
    assert process.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize(("command", "code", "problem"), [("no-such-thing", 127, "not found"), ("/", 126, "cannot be")])
def test_a_command_that_cannot_be_run(folder: Path, command: str, code: int, problem: str) -> None:
    assert problem in complaint(code, "lock", "run", "x", "-d", str(folder), "--", command)
    assert problem in complaint(code, "run-if-leader", "-d", str(folder), "--", command)


def test_one_that_proves_impossible_gives_back_what_was_granted(node: ToldNode, folder: Path) -> None:
    path = folder / "script"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    process = Process("lock", "run", "x", *node.at, "--", str(path))
    node.accept()
    node.grant()
    node.lease(*LONG)
    assert node.hear() == ["release"]
    node.done()
    assert process.wait() == 127
    assert "cannot be run" in process.errors


def test_in_jeopardy_it_is_told_to_end_and_before_the_lease_ends_it_is_killed(
    node: ToldNode, diary: Diary, start: Start
) -> None:
    started = start(diary.command(-1), lease=SHORT)
    assert started.exit_code(node) == 128 + signal.SIGKILL
    term = diary.wait_for("term")
    assert node.jeopardy_at <= term.at < diary.last().at < node.ends_at
    assert "lock 'x' was at risk, so the command was told to end: the lease was not renewed in time" in (
        started.process.errors
    )


@pytest.mark.parametrize(("exits", "code"), [(3, 3), (0, 1)])
def test_one_that_ends_when_told_is_no_success_for_that(
    node: ToldNode, diary: Diary, start: Start, exits: int, code: int
) -> None:
    started = start(diary.command(exits), lease=SHORT)
    assert started.exit_code(node) == code
    assert diary.last().what == "term"


def test_a_lease_that_is_renewed_goes_on(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(0), lease=SHORT)
    first_end = node.ends_at
    node.lease(*LONG)
    while diary.last().at < first_end:
        diary.wait_for("alive", len(diary.notes()))
    started.process.process.send_signal(signal.SIGTERM)
    assert started.exit_code(node) == 0


def test_a_lease_that_recovers_too_late_changes_nothing(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1), "--term-grace", "0.3", lease=SHORT)
    jeopardy_at = node.jeopardy_at
    assert diary.wait_for("term").at >= jeopardy_at
    node.lease(*LONG)
    assert started.exit_code(node) == 128 + signal.SIGKILL
    assert len([note for note in diary.notes() if note.what == "term"]) == 1


def test_what_is_lost_is_not_waited_for(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1))
    node.say("lost", "superseded")
    node.done()
    assert started.process.wait() == 128 + signal.SIGKILL
    assert is_gone(started.command)
    assert "superseded" in started.process.errors


def test_a_node_that_stops_has_it_ended_first(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(4))
    node.say("ending", "the node is being stopped")
    assert started.exit_code(node) == 4
    assert diary.last().what == "term"


def test_a_node_that_is_gone_leaves_it_its_lease(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(3), lease=SHORT)
    node.hang_up()
    assert started.process.wait() == 3
    assert node.jeopardy_at <= diary.wait_for("term").at < node.ends_at


def test_a_command_that_is_faster_than_the_end_of_its_lease_went_well(node: ToldNode, folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    process = Process("lock", "run", "x", *node.at, "--", "sh", "-c", f"echo begun; cat {fifo}")
    node.accept()
    node.grant()
    node.lease(*LONG)
    process.wait_for("begun")
    node.hang_up()
    fifo.write_text("")
    assert process.wait() == 0
    assert process.errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_end_we_end_it_first(node: ToldNode, diary: Diary, start: Start, number: int) -> None:
    started = start(diary.command(5))
    started.process.process.send_signal(number)
    assert started.exit_code(node) == 5
    assert diary.last().what == "term"
    assert started.process.errors == ""


def test_told_twice_we_kill_it(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1), "--term-grace", "1000")
    started.process.process.send_signal(signal.SIGTERM)
    diary.wait_for("term")
    started.process.process.send_signal(signal.SIGTERM)
    assert started.exit_code(node) == 128 + signal.SIGKILL


def test_the_grace_never_goes_beyond_the_lease(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1), "--term-grace", "1000", lease=(3.0, 4.0))
    started.process.process.send_signal(signal.SIGTERM)
    assert started.exit_code(node) == 128 + signal.SIGKILL
    assert diary.last().at < node.ends_at


def test_told_to_end_while_waiting(node: ToldNode) -> None:
    process = Process("lock", "run", "x", *node.at, "--", "true")
    node.accept()
    node.say("waiting", "'b'")
    process.process.send_signal(signal.SIGINT)
    assert node.hear() == ["release"]
    node.done()
    assert process.wait() == 128 + signal.SIGINT


def test_ctrl_z_stops_neither(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1), lease=SHORT)
    started.process.process.send_signal(signal.SIGTSTP)
    assert started.exit_code(node) == 128 + signal.SIGKILL
    assert diary.last().at < node.ends_at


#: The shell is our child, and what keeps the diary is the shell's.
NESTED = ["sh", "-c", '"$@" & wait', "sh"]


def test_killed_we_take_everything_with_us(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start([*NESTED, *diary.command(-1)])
    assert started.process.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(started.command)
    assert node.hear() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux does it")
def test_killed_together_with_the_guard_the_command_still_goes(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start(diary.command(-1))
    ours = started.process.process.pid
    children = Path(f"/proc/{ours}/task/{ours}/children").read_text().split()
    (guard,) = (int(pid) for pid in children if int(pid) != started.command)
    os.kill(guard, signal.SIGKILL)
    started.process.end(signal.SIGKILL)
    wait_until_gone(started.command)


def test_stopped_we_do_not_let_it_outlive_the_lease(node: ToldNode, diary: Diary, start: Start) -> None:
    started = start([*NESTED, *diary.command(-1)], lease=SHORT)
    started.process.process.send_signal(signal.SIGSTOP)
    wait_until_gone(started.command)
    assert diary.last().at < node.ends_at
    started.process.process.send_signal(signal.SIGCONT)
    assert started.exit_code(node) == 128 + signal.SIGKILL
    assert "was at risk" in started.process.errors


def test_what_it_leaves_running_ends_with_it(node: ToldNode, diary: Diary, start: Start, folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    started = start(["sh", "-c", f'"$@" & cat {fifo}; exit 6', "sh", *diary.command(-1)])
    fifo.write_text("")
    assert node.hear() == ["release"]
    wait_until_gone(started.command)
    node.done()
    assert started.process.wait() == 6


def test_a_log_whose_reader_is_gone_ends_nobody(node: ToldNode, diary: Diary) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "coord.cli", "run-if-leader", *node.at, "--", *diary.command(0)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd="/",
    )
    try:
        assert process.stderr is not None
        process.stderr.close()
        node.accept()
        node.grant()
        node.lease(*LONG)
        diary.wait_for("alive", 10)
        process.send_signal(signal.SIGTERM)
        assert node.hear() == ["release"]
        node.done()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert diary.last().what == "term"


def test_a_log_that_nobody_reads_keeps_nobody_alive(node: ToldNode, diary: Diary) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while os.write(write, b"x" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(write, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "coord.cli", "run-if-leader", *node.at, "--", *diary.command(-1)],
        stdin=subprocess.DEVNULL,
        stderr=write,
        env=environment(),
        cwd="/",
    )
    try:
        node.accept()
        node.grant()
        node.lease(*SHORT)
        assert node.hear() == ["release"]
        assert diary.last().at < node.ends_at
        process.send_signal(signal.SIGTERM)
        node.done()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)


def test_a_node_that_does_not_answer_in_time(node: ToldNode) -> None:
    process = Process("lock", "run", "x", *node.at, "--timeout", "0", "--", "true")
    node.accept()
    assert process.wait() == 5
    assert "does not answer" in process.errors


@pytest.mark.parametrize("item", [["held"], ["held", "x", "y"], ["lease", 1], ["news"], "text", 7, [], [[]]])
def test_nonsense_about_a_hold(node: ToldNode, item: object) -> None:
    process = Process("lock", "run", "x", *node.at, "--", "true")
    node.accept()
    if isinstance(item, list):
        node.say(*item)
    else:
        node.say_raw(item)
    assert process.wait() == 1
    assert "unknown form" in process.errors


# Small parts.


def test_frames_in_pieces() -> None:
    reader = FrameReader()
    data = b"\0\0\0\1\x01" + b"\0\0\0\2\x91\x02" + b"\0\0"
    found = [frame for byte in data for frame in reader.feed(bytes([byte]))]
    assert found == [1, [2]]
    assert reader.partial
    assert FrameReader().feed(data) == [1, [2]]


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\2\1\1"])
def test_frames_that_are_none(data: bytes) -> None:
    with pytest.raises(BadControlFrame):
        FrameReader().feed(data)


def test_pauses_grow_until_it_goes_well() -> None:
    pauses = Pauses(1.0, 5.0)
    assert [pauses.next() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    pauses.went_well()
    assert pauses.next() == 1.0


def test_what_is_relied_on_outlives_the_process(folder: Path) -> None:
    assert relied_on(str(folder), 10.0) == 0.0
    leases = _Leases(str(folder))
    assert relied_on(str(folder), 10.0) == 0.0
    leases.write(clock() + 9.0)
    assert 0.0 < relied_on(str(folder), 10.0) <= 9.0
    # No lease is as long, so this is none.
    assert relied_on(str(folder), 5.0) == 0.0
    leases.write(clock() - 1.0)
    assert relied_on(str(folder), math.inf) == 0.0
    leases.write(clock() + 9.0)
    leases.close()
    path = folder / "control.leases"
    path.write_text("another-boot " + path.read_text().split()[1])
    assert relied_on(str(folder), 10.0) == 0.0
    for text in ("", "x", "a b c", "\0" * 128):
        path.write_text(text)
        assert relied_on(str(folder), 10.0) == 0.0


def test_the_help_says_what_is_linux_alone() -> None:
    for command in (("lock", "run"), ("run-if-leader",)):
        text = " ".join(run_process(*command, "--help").stdout.split())
        assert "on Linux, and there alone" in text
        assert "Ctrl-C" in text
