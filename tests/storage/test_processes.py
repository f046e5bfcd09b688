"""Real processes on a real disk: two on one directory, a forked child, and kill -9 in the middle of writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import coord
from coord.errors import IdentityError
from coord.storage.files import OsFiles
from storage.builders import appended, batch, open_data, open_storage, put

ROOT = Path(coord.__file__).parent.parent
TESTS = Path(__file__).parent.parent

#: Newer Pythons warn of a fork with threads about, which other tests may have left; the children here only use files.
MAY_FORK = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

HOLDER = """
import sys
from coord.storage.files import OsFiles
from storage.builders import open_data
directory = open_data(OsFiles(), sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""

WRITER = """
import sys, threading
from coord.storage.files import OsFiles
from storage.builders import appended, open_storage, put, voted
storage = open_storage(OsFiles(), sys.argv[1], segment_bytes=20_000, fsync=sys.argv[2])
recovered = storage.recover()
last = recovered.batches[-1].last if recovered.batches else 0
changed = threading.Semaphore(0)
storage.on_progress(changed.release)
term = recovered.hard_state.term + 1
put(storage, voted(1, term, "a"))
seq, promised = 1, 1
while True:
    # Several at a time, and only what is durable is told.
    for _ in range(3):
        seq += 1
        last += 1
        storage.write(appended(seq, last, term, size=100 + last % 400))
    storage.sync()
    if storage.durable() == promised:
        changed.acquire(timeout=1)
    promised = storage.durable()
    if promised > 1:
        print(last - (seq - promised), term, flush=True)
"""


def start(program: str, *args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_trap_49_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with start(HOLDER, f"{tmp_path}/m") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IdentityError, match=f"in use by another process \\(pid {holder.pid}\\)"):
            open_data(OsFiles(), f"{tmp_path}/m")
        holder.kill()
        holder.wait(20)
    # The lock died with its process.
    open_data(OsFiles(), f"{tmp_path}/m").close()


@pytest.mark.parametrize("fsync", ["inline", "thread"])
def test_kill_9_in_the_middle_of_writing_loses_nothing_acknowledged(fsync: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/m"
    for attempt in range(4):
        with start(WRITER, path, fsync) as writer:
            assert writer.stdout is not None
            for _ in range(5 + 30 * attempt):
                line = writer.stdout.readline()
            writer.kill()
            rest = writer.stdout.read().splitlines()
        told = [whole for whole in [line.strip(), *rest] if len(whole.split()) == 2][-2:]
        acknowledged, term = map(int, told[0].split())
        storage = open_storage(OsFiles(), path, segment_bytes=20_000)
        recovered = storage.recover()
        assert recovered.damage == ""
        assert recovered.hard_state.term == term
        assert recovered.batches[-1].last >= acknowledged
        assert recovered.batches == [
            batch(kept.first, kept.term, size=100 + kept.first % 400) for kept in recovered.batches
        ]
        storage.close()


@MAY_FORK
def test_trap_49_a_forked_child_lets_go_and_the_parent_goes_on(tmp_path: Path) -> None:
    storage = open_storage(OsFiles(), f"{tmp_path}/m")
    storage.recover()
    put(storage, appended(1, 1, 1))
    storage.snapshot_writer(1, 1).write_at(0, b"unfinished")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # In the child nothing may escape into the test runner.
        try:
            storage.release_in_child()
            put(storage, appended(2, 2, 1))
            storage.close()
            os.write(writer, b"ok" if storage.durable() == 1 else b"wrote")
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert os.read(reader, 1000) == b"ok"
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    # The parent still holds the directory, and its files still work.
    with pytest.raises(IdentityError):
        open_data(OsFiles(), f"{tmp_path}/m")
    put(storage, appended(2, 2, 1))
    assert storage.durable() == 2
    assert storage.failure is None
    storage.close()


@MAY_FORK
def test_trap_49_a_child_that_lives_on_does_not_keep_the_directory(tmp_path: Path) -> None:
    directory = open_data(OsFiles(), f"{tmp_path}/m")
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go_on)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    try:
        directory.close()
        open_data(OsFiles(), f"{tmp_path}/m").close()
    finally:
        os.close(go_on)
        os.waitpid(child, 0)
