"""A recorded workload, and what any recovery from a crash during it must find.

The workload drives a real `DiskStorage` over a `MemoryDisk`. Before every file operation that changes something, the
runner takes every disk a crash there may leave and recovers from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist
from coord.storage.base import Recovered
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk
from storage.builders import appended, batch, meta_of, open_storage, put, take_snapshot, voted

CHANGING = ("create", "write", "sync", "rename", "unlink", "sync_directory", "lock")


@dataclass(frozen=True)
class ModelState:
    """What the stream says after a Persist: plain values, never changed."""

    hard_state: HardState = field(default_factory=HardState)
    base: tuple[int, int] = (0, 0)
    batches: tuple[Batch, ...] = ()

    def after(self, persist: Persist) -> ModelState:
        base, batches = self.base, list(self.batches)
        if persist.reset is not None:
            base, batches = (persist.reset.index, persist.reset.term), []
        if persist.truncate_from is not None:
            batches = [kept for kept in batches if kept.first < persist.truncate_from]
        return ModelState(persist.hard_state or self.hard_state, base, (*batches, *persist.batches))

    def term_at(self, index: int) -> int | None:
        if index == self.base[0]:
            return self.base[1]
        return next((kept.term for kept in self.batches if kept.first <= index <= kept.last), None)

    def log_after(self, snapshot: tuple[int, int]) -> list[Batch] | None:
        """The batches a recovery with this snapshot must return; None: this state cannot be met with it."""
        if self.base[0] > snapshot[0]:
            return None
        if self.term_at(snapshot[0]) != snapshot[1]:
            return []
        return [kept for kept in self.batches if kept.last > snapshot[0]]


class Workload:
    """Drives a storage and keeps the model beside it."""

    def __init__(self, segment_bytes: int) -> None:
        self.disk = MemoryDisk()
        self.segment_bytes = segment_bytes
        self.storage = self._open()
        #: Every state so far: `states[n]` after n Persists; `acknowledged` of them are promised.
        self.states = [ModelState()]
        self.acknowledged = 0
        #: Index and term of snapshots begun, and the newest one that was promised.
        self.snapshots: list[tuple[int, int]] = [(0, 0)]
        self.promised_snapshot = (0, 0)
        self._before_reopening = 0

    def _open(self) -> DiskStorage:
        return open_storage(self.disk, segment_bytes=self.segment_bytes)

    def _put(self, *persists: Persist) -> None:
        for persist in persists:
            self.states.append(self.states[-1].after(persist))
            self.storage.write(persist)
        self.storage.sync()
        assert self.storage.failure is None
        self.note_acknowledged()

    def note_acknowledged(self) -> None:
        self.acknowledged = self._before_reopening + self.storage.durable()

    def _seq(self) -> int:
        return len(self.states) - self._before_reopening

    def _append(self, first: int, term: int, *, times: int = 1, **options: int) -> None:
        seq = self._seq()
        self._put(*(appended(seq + at, first + at, term, **options) for at in range(times)))

    def _snapshot(self, index: int, term: int) -> None:
        self.snapshots.append((index, term))
        take_snapshot(self.storage, index, term)
        self.promised_snapshot = (index, term)
        self.storage.compact(index)

    def _reopen(self, *, cleanly: bool) -> None:
        if cleanly:
            self.storage.close()
        else:
            hook = self.disk.before
            self.disk.restart()
            self.disk.before = hook
        reopened = self._open()
        self.storage, self._before_reopening = reopened, len(self.states) - 1
        assert self.acknowledged == self._before_reopening
        self.storage.recover()

    def run(self) -> None:
        """Every kind of thing a member does to its disk, more than once and in awkward orders."""
        self.storage.recover()
        self._put(voted(1, 1, "a"))
        self._append(1, 1)
        self._append(2, 1, times=3)
        self._put(Persist(self._seq(), batches=[batch(5, 1, count=2), batch(7, 1)], commit=4))
        self._put(voted(self._seq(), 2), Persist(self._seq() + 1, hard_state=HardState(2, "b")))
        # Another leader: what followed 5-6 goes, and all of it is one Persist.
        self._put(Persist(self._seq(), HardState(3), None, 7, [batch(7, 3), batch(8, 3)], commit=6))
        self._append(9, 3, times=4, size=90)
        self._snapshot(8, 3)
        self._append(13, 3, times=3, size=200)
        self._reopen(cleanly=True)
        self._put(voted(1, 4, "c"))
        self._append(16, 4, times=2)
        self._snapshot(16, 4)
        # Larger than a segment.
        self._append(18, 4, size=1500)
        self._append(19, 4)
        self._reopen(cleanly=False)
        self._append(20, 4, times=2)
        # A snapshot from the leader replaces the log.
        self.snapshots.append((40, 5))
        meta = take_snapshot(self.storage, 40, 5)
        self.promised_snapshot = (40, 5)
        self._put(Persist(self._seq(), HardState(5), meta, commit=40))
        self.storage.compact(40)
        self._append(41, 5, times=2)
        self._put(Persist(self._seq(), truncate_from=42, batches=[batch(42, 6)], hard_state=HardState(6, "a")))
        self._append(43, 6, times=6, size=120)
        self._snapshot(44, 6)
        self._snapshot(47, 6)
        # One pulled while the log is behind it: saved, and the machine stops before the Persist that says so.
        self.snapshots.append((60, 6))
        take_snapshot(self.storage, 60, 6)
        self.promised_snapshot = (60, 6)
        self._put(Persist(self._seq(), reset=meta_of(60, 6)), appended(self._seq() + 1, 61, 6))
        self._put(voted(self._seq(), 7, "b"))
        self.storage.close()


class CrashRunner:
    """Recovers from every crash. `checked` counts the disks."""

    def __init__(self, segment_bytes: int, *, nested_every: int = 25, kill_every: int = 6) -> None:
        self.workload = Workload(segment_bytes)
        self.checked = 0
        self.operations = 0
        self._nested_every = nested_every
        self._kill_every = kill_every

    def run(self) -> None:
        self.workload.disk.before = self._crash_here
        self.workload.run()
        self._crash_here("write")

    def _crash_here(self, kind: str) -> None:
        if kind not in CHANGING:
            return
        self.operations += 1
        # The storage may have published more since the last Persist was put: a roll makes earlier records durable.
        self.workload.note_acknowledged()
        disk = self.workload.disk
        for survivor in self.survivors(disk):
            self.check(survivor)
        if self.operations % self._kill_every == 0:
            self._kill_here(disk)

    def survivors(self, disk: MemoryDisk) -> Iterator[MemoryDisk]:
        return disk.crash_states()

    def check(self, disk: MemoryDisk) -> Recovered:
        self.checked += 1
        if self.checked % self._nested_every == 0:
            self._crash_in_recovery(copy.deepcopy(disk))
        recovered = self._recover_and_compare(disk)
        # A second start, after a clean stop, finds the same; and so does a third, after more was written.
        storage = open_storage(disk)
        again = storage.recover()
        assert same(recovered, again)
        last = (
            recovered.batches[-1].last if recovered.batches else recovered.snapshot.index if recovered.snapshot else 0
        )
        term = max(recovered.hard_state.term, recovered.snapshot.term if recovered.snapshot else 0) + 1
        more = batch(last + 1, term)
        put(storage, Persist(1, hard_state=HardState(term, "a"), batches=[more]))
        assert storage.failure is None
        storage.close()
        storage = open_storage(disk)
        third = storage.recover()
        assert third.damage == ""
        assert third.hard_state == HardState(term, "a")
        assert third.batches == [*recovered.batches, more]
        storage.close()
        return recovered

    def _recover_and_compare(self, disk: MemoryDisk) -> Recovered:
        storage = open_storage(disk)
        recovered = storage.recover()
        assert storage.failure is None, storage.failure
        self._compare(recovered)
        if recovered.snapshot is not None:
            meta = recovered.snapshot
            content = storage.read_snapshot(meta.index, 0, meta.size + 1)
            assert meta == meta_of(meta.index, meta.term)
            assert len(content) == meta.size
        storage.close()
        return recovered

    def _compare(self, recovered: Recovered) -> None:
        """All that was promised is there, and nothing that was never proposed."""
        workload = self.workload
        assert recovered.damage == ""
        meta = recovered.snapshot
        snapshot = (meta.index, meta.term) if meta else (0, 0)
        assert snapshot in workload.snapshots
        assert snapshot >= workload.promised_snapshot
        possible = workload.states[workload.acknowledged :]
        found = [
            state
            for state in possible
            if state.hard_state == recovered.hard_state and state.log_after(snapshot) == recovered.batches
        ]
        assert found, f"{recovered} is none of {possible}"
        last = recovered.batches[-1].last if recovered.batches else snapshot[0]
        assert snapshot[0] <= recovered.commit <= last

    def _kill_here(self, disk: MemoryDisk) -> None:
        """The process dies and the machine lives. What recovery then reports counts as promised: a power cut after it
        must not take it away (the page cache showed it, the disk may not have had it)."""
        for survivor in killed_and_recovered(disk):
            storage = open_storage(survivor[0])
            assert same(storage.recover(), survivor[1])
            storage.close()
            self.checked += 1

    def _crash_in_recovery(self, disk: MemoryDisk) -> None:
        """Crash before every operation of a recovery: what the next one finds is legal all the same."""

        def crash_here(kind: str) -> None:
            if kind in CHANGING:
                for survivor in disk.crash_states():
                    self.checked += 1
                    self._recover_and_compare(survivor)

        disk.before = crash_here
        storage = open_storage(disk)
        storage.recover()
        disk.before = None
        storage.close()


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


def same(one: Recovered, other: Recovered) -> bool:
    """Equal but for the notes: a torn tail is cut once."""
    return (one.hard_state, one.snapshot, one.batches, one.commit, one.damage) == (
        other.hard_state,
        other.snapshot,
        other.batches,
        other.commit,
        other.damage,
    )
