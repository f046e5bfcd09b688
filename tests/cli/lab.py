"""What the tests of the command share: running it as a user would, and nodes in processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import coord
from coord.cli.main import main

#: Nothing here takes long; this is how long a stalled machine may take before a test gives up.
PATIENCE = 60.0
#: Quick elections, so that tests need not wait for the default's seconds; still far above what a busy machine stalls.
QUICK = "heartbeat=0.05 election_timeout=[0.5,1.0]"
_SETTINGS = [name for name in os.environ if name.startswith("COORD_")]


def environment(**more: str) -> dict[str, str]:
    """Nothing of the user's settings; and the `coord` that these tests run, not one that lies about."""
    plain = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**plain, "PYTHONPATH": str(Path(coord.__file__).parent.parent), **more}


#: These take over the process they run in.
_NEED_A_PROCESS = ("node", "demo")


def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """One command, to its end: in this process, as starting one for each takes most of the time there is."""
    if arguments[:1] and arguments[0] in _NEED_A_PROCESS:
        return run_process(*arguments, stdin=stdin, **more)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with (
        mock.patch.dict(os.environ, environment(**more), clear=True),
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    texts = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(arguments, code, *texts)


def run_process(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """One command, to its end, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "coord.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd="/",
        timeout=PATIENCE,
        check=False,
    )


def output(*arguments: str, stdin: str = "", **more: str) -> str:
    """What a command that must succeed prints."""
    done = run(*arguments, stdin=stdin, **more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def parsed(*arguments: str) -> Any:
    """What a command that must succeed prints as JSON."""
    return json.loads(output(*arguments, "-o", "json"))


def complaint(code: int, *arguments: str, stdin: str = "", **more: str) -> str:
    """The one line on stderr of a command that must end with `code`."""
    done = run(*arguments, stdin=stdin, **more)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("coord: ")
    return done.stderr.rstrip("\n")


def free_port() -> int:
    """A loopback port nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A command that goes on until it is ended; its lines as they come."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coord.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
            cwd="/",
        )
        self.lines: list[str] = []
        self._errors: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, text: str) -> str:
        """The first line that holds `text`."""
        found: list[str] = []

        def heard() -> bool:
            found[:] = [line for line in self.lines if text in line]
            return bool(found) or self._ended

        with self._news:
            self._news.wait_for(heard, PATIENCE)
        assert found, f"no line with {text!r} in {self.lines}; stderr: {self._errors}"
        return found[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, to this process alone, and return the exit code. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    @property
    def errors(self) -> str:
        """What it wrote on stderr; whole once it has ended."""
        return "".join(self._errors)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)


#: The fixture `start_node`.
StartNode = Callable[..., Process]
