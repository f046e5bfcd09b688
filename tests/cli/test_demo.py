"""`coord demo` from beginning to end, ended early, and killed; and that it would notice if something were lost."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from cli.lab import PATIENCE, Process, environment
from coord.cli.demo import missing_writes
from coord.cli.demo_member import SLOTS, key_of
from coord.cli.demo_screen import _cut


def test_the_whole_story_in_plain_lines(folder: Path) -> None:
    demo = Process("demo", TMPDIR=str(folder))
    assert demo.wait() == 0, demo.errors
    text = "\n".join(demo.lines)
    assert demo.errors == ""
    assert "\x1b" not in text
    killed = re.search(r"([abc]), the leader, is killed", text)
    assert killed is not None
    leaders = re.findall(r"([abc]) leads, in term (\d+)", text)
    assert leaders[0][0] == killed[1] != leaders[1][0]
    assert int(leaders[0][1]) < int(leaders[1][1])
    assert f"{killed[1]} has caught up" in text
    assert "all three hold the same" in text
    found = re.search(r"ok  (\d+) writes acknowledged, none lost.* held writes up for (\d+) ms", text)
    assert found is not None
    assert int(found[1]) > 100
    assert list(folder.iterdir()) == []


def test_on_a_terminal_it_draws_and_ends_by_ctrl_c(folder: Path) -> None:
    """In `--keep`, to the end of the story and into the time after it, then Ctrl-C from the keyboard."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "coord.cli", "demo", "--keep"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TMPDIR=str(folder), TERM="xterm", COLUMNS="100", LINES="30"),
        cwd="/",
        start_new_session=True,
    )
    os.close(slave)
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    shown, interrupted = b"", False
    try:
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                break  # the other end is closed
            if not part:
                break
            shown += part
            if not interrupted and b"going on until Ctrl-C" in shown:
                interrupted = True
                process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, shown[-2000:]
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(master)
    assert b"\x1b[?25l" in shown
    # The cursor is given back, and nothing hides it again.
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"checking once more" in shown
    assert b"none lost" in shown
    assert list(folder.iterdir()) == []


def member_pids(folder: Path) -> list[int]:
    """Processes whose command line names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile
    return found


def wait_until_gone(folder: Path) -> None:
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if not member_pids(folder) and not list(folder.iterdir()):
            return
        done.wait(0.05)
    raise AssertionError(f"left: {member_pids(folder)}, {list(folder.iterdir())}")


def test_ended_early_it_leaves_nothing(folder: Path) -> None:
    demo = Process("demo", TMPDIR=str(folder))
    demo.wait_for("leads, in term")
    assert demo.end(signal.SIGTERM) == 130
    assert "Traceback" not in demo.errors
    assert list(folder.iterdir()) == []
    wait_until_gone(folder)


def test_killed_its_members_end_by_themselves_and_clean_up(folder: Path) -> None:
    demo = Process("demo", TMPDIR=str(folder))
    demo.wait_for("leads, in term")
    if Path("/proc/self").exists():
        assert len(member_pids(folder)) == 3
    demo.end(signal.SIGKILL)
    wait_until_gone(folder)


def test_a_missing_write_would_be_noticed() -> None:
    written = {"a": {"demo/a/0001": 1, "demo/a/0002": 2}, "b": {"demo/b/0001": 1}}
    whole = {"demo/a/0001": 1, "demo/a/0002": 2, "demo/b/0001": 1, "demo/b/0002": 2}
    assert missing_writes(written, {"a": whole, "b": whole}) == []
    # A later write of the same key, acknowledged or not, has taken its place.
    assert missing_writes(written, {"a": {**whole, "demo/a/0001": 1 + SLOTS}}) == []
    lacking = {key: value for key, value in whole.items() if key != "demo/b/0001"}
    assert missing_writes(written, {"a": whole, "b": lacking}) == [
        "b lacks 1 acknowledged writes, among them demo/b/0001"
    ]
    assert missing_writes(written, {"a": {**whole, "demo/a/0002": 1}}) != []


def test_a_worker_uses_a_bounded_number_of_keys() -> None:
    assert len({key_of("a", number) for number in range(5 * SLOTS)}) == SLOTS


def test_a_line_is_cut_by_what_is_seen() -> None:
    assert _cut("\x1b[1mabcdef\x1b[0m", 3) == "\x1b[1mabc\x1b[0m"
    assert _cut("abc", 3) == "abc"
