"""Stops a member's machine before and after every file operation of a workload, in every way, and starts it again.

The storage is the real one, over a `MemoryDisk`, which says what a power cut may leave. Each disk so left must start by
itself, hold all that was promised and nothing else, keep what it reports, go on, and survive a stop inside its start.
Equal disks are started once; each verdict is by what was promised when it came about. What must not live here: the
verdict itself (`crash_model`), or what the member does (`crash_workload`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from coord.raft.messages import HardState, Persist
from coord.storage.base import Recovered
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk
from storage.builders import batch, open_storage, take_snapshot
from storage.crash_model import Found, Lost, Promises, look, newest_snapshot
from storage.crash_model import ModelState as ModelState
from storage.crash_workload import CHANGING, Workload, mint_from


@dataclass(frozen=True)
class Thoroughness:
    """How much is looked at. The rare ones are done on every so many new disks, or at every so many points."""

    torn_step: int = 64
    whole_up_to: int = 10
    #: Stop inside the start as well, before each of its file operations.
    nested_every: int = 40
    #: Let the newest of two snapshots rot as well.
    rot_every: int = 10
    #: Let the process die and not the machine, start again, then cut the power.
    kill_every: int = 10
    #: Hand the disk to `on_sample`.
    sample_every: int = 40


@dataclass
class Counts:
    """What was done."""

    #: Moments at which the power was cut.
    points: int = 0
    #: Disks judged, against what was promised at that moment; and how many different ones there were among them.
    judged: int = 0
    disks: int = 0
    #: Of them: left by a cut inside a start; with a rotten snapshot; after a kill and a start.
    nested: int = 0
    rotten: int = 0
    killed: int = 0


class CrashRunner:
    """Judges every disk a crash in one workload may leave. Lost: the first that breaks a promise.

    `part` of `parts`: only every so many moments are looked at, so that several runs share the work. `seen`: what was
    found on which disk, if they share that too.
    """

    def __init__(
        self,
        seed: int,
        segment_bytes: int,
        thoroughness: Thoroughness | None = None,
        *,
        part: int = 0,
        parts: int = 1,
        seen: dict[bytes, Found] | None = None,
    ) -> None:
        self.workload = Workload(seed, segment_bytes)
        self.counts = Counts()
        #: Called with some of the disks, and what was found on each.
        self.on_sample: Callable[[MemoryDisk, Found], None] = lambda disk, found: None
        self._thoroughness = thoroughness or Thoroughness()
        self._part, self._parts = part, parts
        self._moments = 0
        self._seen = {} if seen is None else seen
        #: Equal findings are kept once.
        self._findings: dict[Found, Found] = {}

    def run(self, steps: int) -> Counts:
        self.workload.watch = self._before_operation
        try:
            self.workload.run(steps, self._look)
        except Lost as error:
            raise Lost(f"after {self.counts}, {dict(self.workload.taken)}: {error}") from error
        return self.counts

    def _before_operation(self, kind: str) -> None:
        if kind in CHANGING:
            self._look()

    def _look(self) -> None:
        """Cut the power here."""
        self.workload.note_acknowledged()
        self._moments += 1
        if self._moments % self._parts != self._part:
            return
        self.counts.points += 1
        disk, promises = self.workload.disk, self.workload.promises
        for survivor in self._survivors(disk):
            self._examine(survivor, promises)
        if self.counts.points % self._thoroughness.kill_every == 0:
            self._kill_here(disk, promises)

    def _survivors(self, disk: MemoryDisk) -> Iterator[MemoryDisk]:
        how = self._thoroughness
        return disk.crash_subsets(whole_up_to=how.whole_up_to, torn_step=how.torn_step)

    def _examine(self, disk: MemoryDisk, promises: Promises) -> None:
        self.counts.judged += 1
        key = disk.fingerprint()
        found = self._seen.get(key)
        if found is not None:
            promises.judge(found)
            return
        self.counts.disks += 1
        # By what is on the disk, not by its number: which are looked at closer does not depend on what came before.
        number, how = int.from_bytes(key[:4], "little"), self._thoroughness
        # A disk after a power cut has nothing left to lose: what it may leave is itself.
        untouched = next(disk.crash_subsets())
        found, storage = self._start(disk)
        self._seen[key] = found = self._findings.setdefault(found, found)
        promises.judge(found)
        assert storage is not None
        self._stays(disk, found)
        self._goes_on(disk, storage, found)
        if number % how.nested_every == 0:
            self._stop_inside_the_start(next(untouched.crash_subsets()), promises)
        if promises.doubly_kept and number % how.rot_every == 0:
            self._rot(next(untouched.crash_subsets()), promises)
        if number % how.sample_every == 0:
            self.on_sample(untouched, found)

    def _start(self, disk: MemoryDisk) -> tuple[Found, DiskStorage | None]:
        return look(disk, mint_from("after the crash"), self.workload.segment_bytes)

    def _found_on(self, disk: MemoryDisk) -> Found:
        """As `_start`, of a disk that may have been seen; it is not gone on with."""
        key = disk.fingerprint()
        if key not in self._seen:
            found, _ = self._start(disk)
            self._seen[key] = self._findings.setdefault(found, found)
        return self._seen[key]

    def _stays(self, disk: MemoryDisk, reported: Found) -> None:
        """What a start has reported is on the disk: another power cut at once takes nothing of it away."""
        for survivor in self._survivors(disk):
            again = self._found_on(survivor)
            if again != reported:
                raise Lost(f"a start reported {reported}; after a power cut the next found {again}")

    def _goes_on(self, disk: MemoryDisk, storage: DiskStorage, found: Found) -> None:
        """More is written, over a roll, and a snapshot is taken; after a power cut all of it is there."""
        term, last = found.term + 1, found.last
        hard = HardState(term, "b")
        more = [batch(last + 1 + at, term, size=self.workload.segment_bytes // 3) for at in range(3)]
        for at, one in enumerate(more):
            storage.write(Persist(1 + at, hard if at == 0 else None, batches=[one]))
            storage.sync()
        self._needs(storage, 3)
        expected = replace(found, hard_state=hard, batches=(*found.batches, *more))
        self._stays(disk, expected)
        take_snapshot(storage, last + 2, term)
        storage.compact(last + 2)
        self._needs(storage, 3)
        snapshot = (last + 2, term)
        self._stays(disk, replace(expected, snapshot=snapshot, batches=(more[2],), commit=snapshot[0]))

    def _needs(self, storage: DiskStorage, durable: int) -> None:
        if storage.failure is not None or storage.durable() != durable:
            raise Lost(f"after a start it does not go on: {storage.failure}, durable {storage.durable()}")

    def _stop_inside_the_start(self, disk: MemoryDisk, promises: Promises) -> None:
        """Cut the power before every file operation of a start."""

        def cut_here(kind: str) -> None:
            if kind in CHANGING:
                for survivor in self._survivors(disk):
                    self.counts.judged += 1
                    self.counts.nested += 1
                    promises.judge(self._found_on(survivor))

        disk.before = cut_here
        self._start(disk)
        disk.before = None

    def _rot(self, disk: MemoryDisk, promises: Promises) -> None:
        """Two snapshots are kept, and the log from the older one on: without the newest nothing is lost."""
        path = newest_snapshot(disk)
        assert path is not None
        disk.flip(path, disk.size(path) // 2, 0x10)
        self.counts.judged += 1
        self.counts.rotten += 1
        found, _ = self._start(disk)
        promises.judge(found, newest_lost=True)

    def _kill_here(self, disk: MemoryDisk, promises: Promises) -> None:
        """The process dies and the machine lives. A start sees what the page cache shows; the power is cut before each
        of its file operations, and at its end what it reports is promised."""
        hook, disk.before = disk.before, None
        twin = copy.deepcopy(disk)
        disk.before = hook
        twin.restart()

        def cut_here(kind: str) -> None:
            if kind in CHANGING:
                for survivor in self._survivors(twin):
                    self.counts.judged += 1
                    self.counts.killed += 1
                    promises.judge(self._found_on(survivor))

        twin.before = cut_here
        reported, _ = self._start(twin)
        twin.before = None
        promises.judge(reported)
        self._stays(twin, reported)


def killed_and_recovered(disk: MemoryDisk) -> Iterator[tuple[MemoryDisk, Recovered]]:
    """Yield each disk a power cut may leave after a kill and a recovery, and what that recovery reported."""
    hook, disk.before = disk.before, None
    twin = copy.deepcopy(disk)
    disk.before = hook
    twin.restart()
    reported = open_storage(twin).recover()
    assert reported.damage == ""
    for survivor in twin.crash_states():
        yield survivor, reported
