"""The three processes of `coord demo`, as their parent sees them: started, told what to do, listened to, ended by pid.

What must not live here: what happens to them when (`coord.cli.demo`), what they show (`coord.cli.demo_screen`).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from coord.cli.demo_member import key_of, log_path
from coord.cli.output import CommandError
from coord.clock import clock

#: Seconds a member has to end when told to, before it is killed.
_END_SECONDS = 5.0
#: Enough for the longest stretch that is looked back on.
_TIMES_KEPT = 1000


class DemoProcess:
    """One member's process, and everything it has said. Its number of `life` tells it from those before it."""

    def __init__(self, name: str, directory: str, peers: dict[str, str], first_number: int, life: int) -> None:
        self.name = name
        self.life = life
        self.status: dict[str, Any] | None = None
        self._log_path = log_path(directory)
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coord.cli.demo_member", name, directory, json.dumps(peers), str(first_number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C is for the parent: it ends its members itself.
                start_new_session=True,
                env=_environment(),
            )

    def listen(self, heard: queue.SimpleQueue[tuple[DemoProcess, dict[str, Any]]]) -> None:
        """Put everything it says into `heard`, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                heard.put((self, json.loads(line)))
            except ValueError:
                # The last line of a killed process may be cut short.
                break
        heard.put((self, {"kind": "ended"}))

    def order(self, text: str) -> None:
        """Have it do something; nothing happens when it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except OSError:
            return  # it has ended, and `listen` says so

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to say or write anything more."""
        self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """The last line on its stderr."""
        try:
            with open(self._log_path, encoding="utf-8", errors="replace") as log:
                lines = log.read().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


class Group:
    """All members by name, and what their workers were told has been written."""

    def __init__(self, directory: str, names: tuple[str, ...]) -> None:
        self._directory = directory
        self.peers = {name: f"ipc://{directory}/{name}.sock" for name in names}
        self.members: dict[str, DemoProcess] = {}
        #: By worker, the number of the last write known to have been acknowledged at each of its keys.
        self.written: dict[str, dict[str, int]] = {name: {} for name in names}
        #: By worker, when its latest writes were acknowledged, oldest first.
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self.counts = dict.fromkeys(names, 0)
        self.unknown = 0
        #: By member, what it says it holds: "values", and the "applied" index and "hash" they are at.
        self.held: dict[str, dict[str, Any]] = {}
        #: Whose worker has stopped writing.
        self.resting: set[str] = set()
        self._heard: queue.SimpleQueue[tuple[DemoProcess, dict[str, Any]]] = queue.SimpleQueue()
        self._lives = 0
        self._expected_ends: set[int] = set()

    def start(self, name: str) -> None:
        """Start `name`'s process; its worker goes on after the last write any earlier one can have begun."""
        self._lives += 1
        first_number = 1_000_000 * self._lives
        member = DemoProcess(name, os.path.join(self._directory, name), self.peers, first_number, self._lives)
        self.members[name] = member
        threading.Thread(target=member.listen, args=(self._heard,), name=f"demo-{name}", daemon=True).start()

    def kill(self, name: str) -> None:
        member = self.members.pop(name)
        self._expected_ends.add(member.life)
        member.kill()

    def order(self, text: str) -> None:
        """Have all members do something."""
        for member in self.members.values():
            member.order(text)

    def hear(self, seconds: float) -> None:
        """Take in what members say, for so many seconds."""
        deadline = clock() + seconds
        while (left := deadline - clock()) > 0:
            try:
                self._take(*self._heard.get(timeout=left))
            except queue.Empty:
                return

    def status(self, name: str) -> dict[str, Any] | None:
        """What `name` last said of itself; None when it is down, or has said nothing yet."""
        member = self.members.get(name)
        return None if member is None else member.status

    def leader(self) -> str | None:
        """Whom a majority follows, in the newest term of all."""
        statuses = [status for name in self.members if (status := self.status(name)) is not None]
        newest = max((status["term"] for status in statuses), default=0)
        followed = [status["leader"] for status in statuses if status["term"] == newest]
        for name in self.members:
            if 2 * followed.count(name) > len(self.peers):
                return name
        return None

    def end(self) -> None:
        """End every process, by its pid, and wait for it. Idempotent."""
        for member in self.members.values():
            self._expected_ends.add(member.life)
            member.order("stop")
        deadline = clock() + _END_SECONDS
        for member in self.members.values():
            try:
                member.process.wait(max(0.0, deadline - clock()))
            except subprocess.TimeoutExpired:
                member.kill()
        self.members = {}

    def _take(self, member: DemoProcess, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "written":
            self._take_write(member.name, message)
        elif kind == "status":
            member.status = message
        elif kind == "held":
            self.held[member.name] = message
        elif kind == "resting":
            self.resting.add(member.name)
        elif kind == "unknown":
            self.unknown += 1
        elif kind == "ended" and member.life not in self._expected_ends:
            raise CommandError(f"member {member.name} has ended by itself: {member.last_words() or 'without a word'}")

    def _take_write(self, name: str, message: dict[str, Any]) -> None:
        self.written[name][key_of(name, message["number"])] = message["number"]
        self.counts[name] += 1
        times = self.times[name]
        times.append(message["at"])
        del times[:-_TIMES_KEPT]


def _environment() -> dict[str, str]:
    """The members import the `coord` this process runs, wherever it lies."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root, "PYTHONUNBUFFERED": "1"}
