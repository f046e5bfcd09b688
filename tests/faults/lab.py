"""One group under one fault: members, their network and disks, their clients, and what is measured.

What must not live here: which faults there are (`faults.scenarios` and the files it names), what a history may look
like (`faults.judge`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import coord
from coord.clock import clock
from faults.network import Namespaces, Network, Plain, Proxies
from faults.record import Recorded, read_records
from processes.harness import PATIENCE, Group, MemberGone, MemberProcess

#: Quick elections; what a busy machine makes of them are more elections, never wrong answers.
QUICK: dict[str, Any] = {"heartbeat": 0.05, "election_timeout": (0.3, 0.6), "session_ttl": 2.0, "default_timeout": 20.0}
#: Below the smallest log file everything happens more often: new files, snapshots.
SMALL: dict[str, Any] = {**QUICK, "wal_segment_bytes": 256 << 10, "snapshot_entries": 400}
DEFAULTS: dict[str, Any] = {}

#: Acknowledged writes by which each member shows that it is served.
SOME_WRITES = 10
#: A client's call ends by its own timeout; this is when one that does not counts as hanging.
HANGS_SECONDS = 20.0


class FaultMember(MemberProcess):
    """A member whose process records what its clients do, and has a disk that may be told to fail."""

    def __init__(self, name: str, network: Network, directory: Path, options: dict[str, Any]) -> None:
        super().__init__(name, network.peers(name), directory, options)
        self.directory = directory
        self.script = Path(__file__).with_name("member.py")
        self.prefix = network.prefix(name)
        self.journal = directory / f"{name}.journal"
        self.settings.update(
            bind=network.bind(name), insecure=True, group="faults", lies=False, journal=str(self.journal)
        )

    def launch(self) -> None:
        number = self.starts + 1
        self.settings["process"] = f"{self.name}/{number}"
        self.settings["record"] = str(self.directory / f"{self.name}-{number:03}.history")
        super().launch()


class Lab(Group):
    """A group under test. Use it in a `with` statement: at its end nothing is left, whatever happened."""

    def __init__(self, directory: Path, network: str, names: str = "abc", **options: Any) -> None:
        self.directory = directory
        self.names = names
        self.network = {"plain": Plain, "proxies": Proxies, "namespaces": Namespaces}[network](names)
        self.members: dict[str, FaultMember] = {}  # type: ignore[assignment]
        self.members = {name: FaultMember(name, self.network, directory, options) for name in names}
        #: Those that are not expected to answer: paused, refused, or their disk has failed.
        self.out: set[str] = set()
        self.clients: dict[str, Any] = {"pace": 0.01, "value_bytes": 0, "writers": 2, "readers": 2}
        #: When the fault began and ended.
        self.fault_began = self.fault_ended = 0.0
        #: What a scenario found worth telling, and closes at the end.
        self.notes: list[str] = []
        self.cleanup = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members.values():
            if member.alive and member.name in self.out:
                with contextlib.suppress(ProcessLookupError):
                    member.resume()
            member.close()
        self.network.close()
        self.cleanup.close()

    def __getitem__(self, name: str) -> FaultMember:
        return self.members[name]

    # -- Who is there

    @property
    def alive(self) -> list[MemberProcess]:
        """Those that are expected to answer."""
        return [member for member in self.members.values() if member.alive and member.name not in self.out]

    def leads(self) -> str:
        """The leader's name, once there is one that leads and can write."""
        return self.leader().name

    def others(self, *names: str) -> str:
        return "".join(name for name in self.names if name not in names)

    def leader_among(self, names: str) -> str:
        """The name of a leader among these, once there is one that is followed by a majority."""

        def found() -> str:
            for name in names:
                status = self[name].call("status")
                if status["role"] == "leader" and status["quorum_ok"]:
                    return name
            return ""

        name: str = self.until(found, f"a leader among {names}")
        return name

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"gave up waiting: {what}\n{self.tails()}"
            time.sleep(0.02)
        return value

    def tails(self) -> str:
        """The end of what each member's process logged."""
        return "\n".join(f"--- {member.name}\n{member.tail()[-1500:]}" for member in self.members.values())

    # -- Their life

    def begin(self, *names: str) -> None:
        """Start these members, and their clients."""
        self.start(*names)
        for name in names:
            self[name].call("begin_clients", **self.clients)

    def again(self, *names: str) -> None:
        """Start these, which were killed, on what they left."""
        self.out -= set(names)
        self.begin(*names)

    def kill(self, *names: str) -> None:
        for name in names:
            self[name].kill()

    def pause(self, name: str) -> None:
        self.out.add(name)
        self[name].pause()

    def resume(self, name: str) -> None:
        self[name].resume()
        self.out.discard(name)

    # -- Time

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """The time in which the fault is there. Its end is asked for, not waited for: the network is mended."""
        self.fault_began = clock()
        yield
        self.network.mend()
        self.fault_ended = clock()

    @staticmethod
    def hold(seconds: float) -> None:
        """Let things be as they are."""
        time.sleep(seconds)

    def progress(self, names: str, writes: int = SOME_WRITES) -> None:
        """Until the clients of each of these members have had so many more writes acknowledged."""
        goals = {name: self._acknowledged(name) + writes for name in names}
        self.until(
            lambda: all(self._acknowledged(name) >= goal for name, goal in goals.items()),
            f"writes by each of {names}; they are at { {name: self._acknowledged(name) for name in names} } of {goals}",
        )

    def _acknowledged(self, name: str) -> int:
        acknowledged = self[name].call("acknowledged")
        assert isinstance(acknowledged, int)
        return acknowledged

    # -- The end

    def finish(self) -> tuple[Recorded, list[dict[str, list[Any]]]]:
        """End the clients, let all members come to the same index, and collect what they recorded and hold."""
        asked = [member.ask("end_clients", timeout=HANGS_SECONDS) for member in self.alive]
        for answer in asked:
            answer.result(PATIENCE)
        settled = self.settled()
        hashes = {status["state_hash"] for status in settled}
        assert len(hashes) == 1, f"the members' states differ: {settled}"
        everything = [member.call("everything", timeout=PATIENCE) for member in self.alive]
        for member in self.alive:
            figures = member.call("disk_figures")
            assert figures["syncs_after_failure"] == 0, f"{member.name} synced again after a failed sync: {figures}"
        self._wait_watched()
        return read_records(self.directory.glob("*.history")), everything

    def _wait_watched(self) -> None:
        """Until the watches have told everything: a last write of each member, seen by itself."""
        sizes: dict[Path, int] = {}

        def quiet() -> bool:
            before = dict(sizes)
            sizes.update({path: path.stat().st_size for path in self.directory.glob("*.history")})
            return before == sizes

        while not quiet():
            time.sleep(0.1)


@dataclass(slots=True)
class Measured:
    """The figures of one run."""

    leader_changes: int = 0
    terms: int = 0
    gap_during: float = 0.0
    gap_after: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)


def measure(recorded: Recorded, began: float, ended: float) -> Measured:
    """Leader changes and terms since the fault began; the longest time without an acknowledged write while it was
    there, and after it."""
    measured = Measured()
    elected = {role.term for role in recorded.roles if role.role == "leader" and role.at >= began}
    measured.leader_changes = len(elected)
    terms = [role.term for role in recorded.roles]
    before = [role.term for role in recorded.roles if role.at < began]
    measured.terms = max(terms, default=0) - max(before, default=0)
    times = [call.returned for call in recorded.acknowledged()]
    last = max(times, default=ended)
    measured.gap_during = _longest_gap(times, began, ended)
    measured.gap_after = _longest_gap(times, ended, last)
    for call in recorded.calls:
        measured.outcomes[call.outcome] = measured.outcomes.get(call.outcome, 0) + 1
    return measured


def _longest_gap(times: list[float], began: float, ended: float) -> float:
    inside = [began, *(time for time in times if began < time < ended), ended]
    return max((later - earlier for earlier, later in pairwise(inside)), default=0.0)


def refused_start(member: FaultMember, error: type[coord.CoordError]) -> str:
    """Start a member that must be refused at once; the text of why."""
    try:
        member.start()
    except error as refusal:
        member.close()
        return str(refusal)
    except MemberGone as gone:
        raise AssertionError(f"{member.name} died instead of refusing to start") from gone
    raise AssertionError(f"{member.name} started, and should have been refused with {error.__name__}")
