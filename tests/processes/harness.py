"""Groups of real member processes: started by exec, asked over pipes, killed by pid.

What must not live here: what a member does (`processes.member`), what a history may look like (`processes.history`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import coord

#: Nothing here takes so long; a stalled machine may.
PATIENCE = 60.0
#: Below the ports a system gives to those who dial: none of those may sit on a member's port while it is down.
_PORTS = range(15_000, 30_000)


class MemberGone(Exception):
    """The process died before it answered: what it was asked may have happened or not."""


class MemberProcess:
    """One member, through all its processes: it may be killed and started again on the same directory."""

    def __init__(self, name: str, peers: dict[str, str], directory: Path, options: dict[str, Any]) -> None:
        self.name = name
        self.data_dir = directory / name
        self.log = directory / f"{name}.log"
        self.settings: dict[str, Any] = {
            "name": name,
            "bind": peers[name],
            "peers": peers,
            "data_dir": str(self.data_dir),
            "options": options,
        }
        #: Told (member, number of its process, key, revision, value) for each change a member has seen.
        self.on_seen: Callable[[str, int, str, int, Any], None] = lambda *seen: None
        #: What the process runs.
        self.script = Path(__file__).with_name("member.py")
        #: What runs the interpreter, if not the system directly.
        self.prefix: list[str] = []
        self.starts = 0
        #: The last of its processes whose output has ended.
        self._ended = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._started: Future[int] = Future()
        self._listener: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start a process; does not wait until it serves."""
        assert self._process is None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, str(self.script), json.dumps(self.settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        self.starts += 1
        self._started = Future()
        self._listener = threading.Thread(target=self._listen, args=(self._process, self.starts), daemon=True)
        self._listener.start()

    def wait_started(self) -> None:
        """Until it serves; raises what kept it from starting."""
        self._started.result(PATIENCE)

    def start(self) -> None:
        self.launch()
        self.wait_started()

    def ask(self, do: str, **arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            process = self._process
            # A dying process may still take a question when all it ever said has been read.
            if process is None or self._ended == self.starts:
                raise MemberGone(self.name)
            assert process.stdin is not None
            number = next(self._numbers)
            self._calls[number] = future
            try:
                process.stdin.write(json.dumps({"call": number, "do": do, "arguments": arguments}).encode() + b"\n")
                process.stdin.flush()
            except (OSError, ValueError) as error:
                self._calls.pop(number, None)
                raise MemberGone(self.name) from error
        return future

    def call(self, do: str, **arguments: Any) -> Any:
        """Ask, and wait for the answer. Raises what the call raised there, or MemberGone."""
        try:
            return self.ask(do, **arguments).result(PATIENCE)
        except FutureTimeout as error:
            # On Python 3.11 and later coord's own time-outs arrive here too.
            if isinstance(error, coord.CoordError):
                raise
            raise AssertionError(
                f"member {self.name} did not answer {do} within {PATIENCE} s:\n{self.tail()}"
            ) from error

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """End this member's process, now, and collect what it said."""
        # First out of everybody's sight, so that nobody asks a process that is about to die again and again.
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal_number)
        self._collect(process)

    def orphan(self) -> int:
        """Close its input, as the end of this process would; its exit code."""
        process, self._process = self._process, None
        assert process is not None
        self._collect(process)
        return process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it still lives, even if it is paused."""
        if self._process is not None:
            self.kill()

    def _collect(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        # What is still in its buffer nobody will read.
        with self._lock, contextlib.suppress(OSError):
            process.stdin.close()
        process.wait(PATIENCE)
        assert self._listener is not None
        self._listener.join(PATIENCE)

    def _listen(self, process: subprocess.Popen[bytes], number: int) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                # The last line of a killed process may be cut short.
                if line.endswith(b"\n"):
                    self._take(json.loads(line), number)
        if not self._started.done():
            self._started.set_exception(MemberGone(f"{self.name} died at start:\n{self.tail()}"))
        with self._lock:
            self._ended = number
            calls, self._calls = self._calls, {}
        for future in calls.values():
            future.set_exception(MemberGone(self.name))

    def _take(self, said: dict[str, Any], number: int) -> None:
        if "seen" in said:
            self.on_seen(self.name, number, *said["seen"])
        elif "started" in said:
            self._started.set_result(said["started"])
        elif "call" not in said:
            self._started.set_exception(_error(said))
        else:
            future = self._calls.pop(said["call"])
            if "error" in said:
                future.set_exception(_error(said))
            else:
                future.set_result(said["result"])


def _error(said: dict[str, Any]) -> Exception:
    if not said["error"]:
        return AssertionError(f"raised in the member: {said['text']}")
    error = getattr(coord, said["error"])(said["text"])
    assert isinstance(error, Exception)
    return error


class Group:
    """Members a, b and c (or others), each in its own process with its own directory."""

    def __init__(self, directory: Path, names: str = "abc", **options: Any) -> None:
        self.peers = dict(zip(names, free_addresses(), strict=False))
        self.members = {name: MemberProcess(name, self.peers, directory, options) for name in names}

    def __enter__(self) -> Group:
        self.start(*self.members)
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members.values():
            member.close()

    def __getitem__(self, name: str) -> MemberProcess:
        return self.members[name]

    def start(self, *names: str) -> None:
        """Start these members, together."""
        for name in names:
            self.members[name].launch()
        for name in names:
            self.members[name].wait_started()

    @property
    def alive(self) -> list[MemberProcess]:
        return [member for member in self.members.values() if member.alive]

    def leader(self, *, of: MemberProcess | None = None) -> MemberProcess:
        """The leader, once there is one that a live member (`of`: that one) knows and that knows it too."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for asked in [of] if of is not None else self.alive:
                name = asked.call("status")["leader"]
                if name is not None and self.members[name].alive:
                    leader = self.members[name]
                    if leader.call("status")["role"] == "leader":
                        return leader
            time.sleep(0.02)
        raise AssertionError("no leader:\n" + "\n".join(member.tail() for member in self.members.values()))

    def followers(self) -> list[MemberProcess]:
        leader = self.leader()
        return [member for member in self.alive if member is not leader]

    def settled(self) -> list[dict[str, Any]]:
        """Every live member's status, once all have applied the same."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [member.call("status") for member in self.alive]
            if len({status["applied_index"] for status in found}) == 1:
                return found
            assert time.monotonic() < deadline, f"the members do not come to the same index: {found}"
            time.sleep(0.05)


def free_addresses() -> Iterator[str]:
    """Loopback addresses nobody listens on, each once."""
    for port in random.Random(os.getpid() ^ time.monotonic_ns()).sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield f"tcp://127.0.0.1:{port}"
