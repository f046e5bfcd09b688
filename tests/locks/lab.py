"""A group of member processes that contend for one lock, and what may be done to them.

What must not live here: which faults come when (`locks.campaign`), what may be (`locks.judge`).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coord
from coord.clock import clock
from coord.raft.batch import Batch, read_batch
from faults.lab import HANGS_SECONDS, Lab
from locks.contenders import RESOURCE, create
from processes.harness import PATIENCE

#: No snapshot, so that the log of the whole run is there to be read.
WHOLE_LOG = {"snapshot_entries": 1 << 30}
#: Of a hold's work there must be so many seconds left for it to be worth hitting.
WORTH_SECONDS = 0.1


@dataclass(slots=True)
class Fault:
    """What was done to one member, from when to when. A killed process is gone until another is started."""

    kind: str
    member: str
    began: float
    ended: float = float("inf")
    #: The token of a hold that was known to be at work when it was done; 0: none was looked for.
    token: int = 0
    #: Holds of others were seen, and had read the file, before it ended.
    outlived: bool = False
    led: bool = False


@dataclass(slots=True)
class Outcome:
    """What is left to be judged when all is over."""

    batches: list[Batch]
    state_hash: str
    faults: list[Fault] = field(default_factory=list)


class LockLab(Lab):
    """`threads`: contenders by member; those not named only take part."""

    def __init__(
        self,
        directory: Path,
        network: str,
        names: str,
        threads: dict[str, int],
        *,
        lock_delay: float | None = None,
        volatile: bool = False,
        guarded: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(directory, network, names, **{**WHOLE_LOG, **options})
        self.threads = threads
        self.database = str(directory / "shared.sqlite")
        create(self.database)
        self.clients = {"path": self.database, "threads": threads, "lock_delay": lock_delay, "guarded": guarded}
        self.faults: list[Fault] = []
        self._file = sqlite3.connect(self.database, timeout=PATIENCE)
        self.cleanup.callback(self._file.close)
        for member in self.members.values():
            member.script = Path(__file__).with_name("member.py")
            if volatile:
                member.settings["data_dir"] = None

    def __enter__(self) -> LockLab:
        return self

    # -- Who does what

    def worker(self, seconds: float) -> tuple[str, int]:
        """A member one of whose contenders is in the middle of its work, and will be for so many seconds; the token."""

        def found() -> tuple[str, int] | None:
            asked = [(member.name, member.ask("busy")) for member in self.alive]
            for name, answer in asked:
                token, left = answer.result(PATIENCE)
                if left >= WORTH_SECONDS and self[name].call("linger", token=token, seconds=seconds):
                    return name, token
            return None

        worker: tuple[str, int] = self.until(found, "a hold with work left")
        return worker

    def waiter(self) -> str:
        """A member that waits for the lock, and does not hold it."""

        def found() -> str:
            lock = self.alive[0].call("lock")
            holders = {owner for owner, _ in lock["holders"]}
            waiting = [name for name in lock["waiting"] if name not in holders and self[name] in self.alive]
            return waiting[-1] if waiting else ""

        name: str = self.until(found, "a member that waits")
        return name

    # -- What is done

    def begin_fault(self, kind: str, member: str, token: int = 0) -> Fault:
        """Note it before it is done."""
        fault = Fault(kind, member, clock(), token=token)
        self.faults.append(fault)
        return fault

    def end_fault(self, fault: Fault) -> None:
        """Note it after it is over."""
        fault.ended = clock()

    def until_outlived(self, fault: Fault, seconds: float) -> None:
        """Until somebody has got the lock after it and read the file with that, or `seconds` are over: whoever stands
        still in the middle of a transaction keeps the file to itself."""
        deadline = clock() + seconds
        while clock() < deadline:
            if self._newest() > fault.token:
                fault.outlived = True
                return
            self.hold(0.02)

    def _newest(self) -> int:
        """The newest token that the file has seen."""
        guard = coord.FenceGuard.sqlite(self._file)
        (written,) = self._file.execute("SELECT coalesce(max(token), 0) FROM writes").fetchone()
        return max(int(written), guard.newest(RESOURCE))

    def judged(self) -> Outcome:
        """End the contenders, let all members come to one index, and collect the log."""
        asked = [member.ask("end_clients", timeout=3 * HANGS_SECONDS) for member in self.alive]
        for answer in asked:
            answer.result(PATIENCE)
        settled = self.settled()
        hashes = {status["state_hash"] for status in settled}
        assert len(hashes) == 1, f"the members' states differ: {settled}"
        path, applied = self.directory / "log", settled[0]["applied_index"]
        self.alive[0].call("dump_log", path=str(path))
        batches, data, offset = [], path.read_bytes(), 0
        while offset < len(data):
            batch = read_batch(data, offset)
            offset += len(batch.data)
            if batch.last <= applied:
                batches.append(batch)
        return Outcome(batches, hashes.pop(), self.faults)
