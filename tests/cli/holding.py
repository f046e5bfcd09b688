"""What the tests of held commands share: a command that keeps a diary, a node that says what a test has it say, and an
ear on what a real one says."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cli.lab import PATIENCE
from coord.cli.control import (
    DONE,
    HELD,
    ITEM,
    LEASE,
    FrameReader,
    Gone,
    control_address,
    receive_frame,
    send_frame,
    target_of,
)
from coord.clock import clock

#: Notes what happens to it, and again and again that it lives. Told to end it exits with a code, or (-1) it does not.
_COMMAND = """
import os, signal, sys, time
path, code = sys.argv[1], int(sys.argv[2])
boottime = getattr(time, "CLOCK_BOOTTIME", None)
diary = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
token = os.environ.get("COORD_TOKEN") or os.environ.get("COORD_LOCK_TOKEN")
def note(what):
    now = time.monotonic() if boottime is None else time.clock_gettime(boottime)
    os.write(diary, f"{what} {now!r} {os.getpid()} {token}\\n".encode())
def told(number, frame):
    note("term")
    if code >= 0:
        os._exit(code)
signal.signal(signal.SIGTERM, told)
note("start")
if code == -2:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    note("alive")
    time.sleep(0.005)
"""
#: In place of an exit code: it is killed as soon as it has begun.
CRASH = -2


class Note(NamedTuple):
    what: str
    at: float
    pid: int
    token: int


class Diary:
    """Of one or more commands that keep it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def command(self, code: int) -> list[str]:
        """A command that runs until told to end; then it exits with `code`, or goes on if that is -1."""
        return [sys.executable, "-c", _COMMAND, str(self.path), str(code)]

    def notes(self) -> list[Note]:
        try:
            lines = self.path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        rows = [line.split() for line in lines if line.endswith("\n")]
        return [Note(what, float(at), int(pid), int(token)) for what, at, pid, token in rows]

    def wait_for(self, what: str, count: int = 1) -> Note:
        """The last of so many notes of that kind."""
        deadline = clock() + PATIENCE
        pause = threading.Event()
        while True:
            found = [note for note in self.notes() if note.what == what]
            if len(found) >= count:
                return found[count - 1]
            assert clock() < deadline, f"no {what!r} in {self.notes()[-3:]}"
            pause.wait(0.01)

    def last(self, pid: int | None = None) -> Note:
        return [note for note in self.notes() if pid in (None, note.pid)][-1]


def wait_until_gone(pid: int) -> None:
    """Until there is no such process, or it waits for nothing but to be waited for."""
    deadline = clock() + PATIENCE
    pause = threading.Event()
    while not is_gone(pid):
        assert clock() < deadline, f"process {pid} lives on"
        pause.wait(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    return False


class ToldNode:
    """Takes commands as a node does, and says what a test wants. One asker at a time."""

    def __init__(self, folder: Path) -> None:
        self.at = ("--control", f"ipc://{folder}/told.sock")
        self.jeopardy_at = self.ends_at = 0.0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/told.sock")
        self._listener.listen(8)
        self._listener.settimeout(PATIENCE)
        self._connection = socket.socket(socket.AF_UNIX)

    def accept(self) -> dict[str, Any]:
        """The arguments of the next hold that is asked for."""
        while True:
            self.hang_up()
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(PATIENCE)
            with suppress(Gone):
                version, operation, arguments = receive_frame(self._connection)
                assert (version, operation) == (1, "hold")
                return dict(arguments)

    def say(self, *item: object) -> None:
        self.say_raw(list(item))

    def say_raw(self, item: object) -> None:
        send_frame(self._connection, [ITEM, item])

    def grant(self, token: int = 7) -> None:
        self.say(HELD, token, f"sequencer-{token}")

    def lease(self, jeopardy_in: float, ends_in: float) -> None:
        self.jeopardy_at, self.ends_at = clock() + jeopardy_in, clock() + ends_in
        self.say(LEASE, self.jeopardy_at, self.ends_at)

    def hear(self) -> Any:
        """What the asker says next; None when it is gone."""
        try:
            return receive_frame(self._connection)
        except Gone:
            return None

    def done(self) -> None:
        send_frame(self._connection, [DONE, None])

    def hang_up(self) -> None:
        self._connection.close()

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


class Ear:
    """Between commands and a node: passes on what they say, and remembers until when the node let them rely on it."""

    def __init__(self, folder: Path, data_dir: str) -> None:
        self.at = ("--control", f"ipc://{folder}/ear.sock")
        #: The last lease that was told.
        self.jeopardy_at = self.ends_at = 0.0
        self._data_dir = data_dir
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/ear.sock")
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                asker, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(asker,), daemon=True).start()

    def _pass_on(self, asker: socket.socket) -> None:
        node = socket.socket(socket.AF_UNIX)
        with asker, node, suppress(OSError):
            node.connect(target_of(control_address(None, self._data_dir)).sockaddr)
            reader = FrameReader()
            while True:
                for source in select.select([asker, node], [], [])[0]:
                    data = source.recv(65536)
                    if source is node:
                        self._note(reader.feed(data))
                    (asker if source is node else node).sendall(data)
                    if not data:
                        return

    def _note(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame[0] == ITEM and frame[1] and frame[1][0] == LEASE:
                self.jeopardy_at, self.ends_at = frame[1][1:]


@contextmanager
def ears(folder: Path, *data_dirs: str) -> Iterator[list[Ear]]:
    made = []
    try:
        for number, data_dir in enumerate(data_dirs):
            place = folder / f"ear{number}"
            place.mkdir()
            made.append(Ear(place, data_dir))
        yield made
    finally:
        for ear in made:
            ear.close()
