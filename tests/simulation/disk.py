"""A simulated member's disk: what it was asked to keep, what it has kept, and what a crash leaves of the rest.

`ModelDisk` says what a disk may do in as few lines as possible; `LogDisk` is the real log and the real snapshot files
on a disk in memory that tears and loses writes. Both tell the checks what is truly durable, in `view`.
What must not live here: how long a sync takes (`member`).
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist, SnapshotMeta
from coord.storage.base import Recovered
from coord.storage.directory import open_directory
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk

_PATH = "/data"
_SEGMENT_BYTES = 4096
#: A crash strikes during one of this many file operations.
_OPERATIONS = 8


class View:
    """Term, vote and log as they are on a disk."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.commit = 0
        self.base, self.base_term = 0, 0
        self.batches: list[Batch] = []
        self._firsts: list[int] = []

    @property
    def last(self) -> int:
        return self.batches[-1].last if self.batches else self.base

    def apply(self, persist: Persist) -> None:
        if persist.reset is not None:
            self.reset(persist.reset.index, persist.reset.term)
        if persist.truncate_from is not None:
            assert self.base < persist.truncate_from <= self.last + 1, f"{persist.truncate_from} of {self.last}"
            self.keep(bisect_right(self._firsts, persist.truncate_from - 1))
        for batch in persist.batches:
            self.append(batch)
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        self.commit = max(self.commit, persist.commit)

    def append(self, batch: Batch) -> None:
        assert batch.first == self.last + 1, f"{batch!r} written after {self.last}"
        self.batches.append(batch)
        self._firsts.append(batch.first)

    def reset(self, index: int, term: int) -> None:
        self.base, self.base_term = index, term
        self.batches, self._firsts = [], []

    def keep(self, count: int) -> None:
        """Only the first `count` batches."""
        del self.batches[count:], self._firsts[count:]

    def term_at(self, index: int) -> int | None:
        """None: not there, or only within a snapshot."""
        if index == self.base:
            return self.base_term
        if not self.base < index <= self.last:
            return None
        return self.batches[bisect_right(self._firsts, index) - 1].term

    def holds(self, index: int, term: int) -> bool:
        """Only what is committed is within a snapshot."""
        return index < self.base or self.term_at(index) == term


class PowerCut(Exception):
    """The machine stops in the middle of a file operation."""


class ModelDisk:
    """Keeps Persists in order; a crash loses all it has not synced, but for a few of the oldest."""

    def __init__(self) -> None:
        self.view = View()
        #: Asked for and not durable, oldest first.
        self.queue: list[Persist] = []
        self.durable = 0
        self._snapshots: dict[int, tuple[SnapshotMeta, bytes]] = {}
        self._compacted = 0

    # What the driver may ask.

    def recover(self) -> Recovered:
        self.durable = 0
        snapshot = max((meta for meta, _ in self._snapshots.values()), key=lambda meta: meta.index, default=None)
        view = self.view
        batches = [batch for batch in view.batches if batch.last > self._compacted]
        if snapshot is not None:
            if view.term_at(snapshot.index) != snapshot.term:
                view.reset(snapshot.index, snapshot.term)
            if view.last <= snapshot.index:
                batches = []
        return Recovered(view.hard_state, snapshot, batches, min(view.commit, view.last))

    def ask(self, persist: Persist) -> None:
        self.queue.append(persist)

    def sync(self, seq: int) -> None:
        """Everything asked for up to `seq` is on disk now."""
        done = [persist for persist in self.queue if persist.seq <= seq]
        del self.queue[: len(done)]
        if done:
            self._write(done)
            self.durable = done[-1].seq

    def save_snapshot(self, meta: SnapshotMeta, content: bytes) -> None:
        self._snapshots[meta.index] = meta, content
        self._snapshots = dict(sorted(self._snapshots.items())[-2:])

    def read_snapshot(self, index: int, offset: int, size: int) -> bytes:
        """b"" when it is gone."""
        return self._snapshots[index][1][offset : offset + size] if index in self._snapshots else b""

    def compact(self, index: int) -> None:
        # As the real one: what follows the older of the two snapshots stays.
        older = min(self._snapshots) if len(self._snapshots) > 1 else 0
        self._compacted = max(self._compacted, min(index, older))

    # What befalls it.

    def crash(self, rng: random.Random) -> None:
        """The machine stops: any number of the oldest unsynced Persists made it."""
        kept = rng.randrange(len(self.queue) + 1)
        lost, self.queue = self.queue, []
        for persist in lost[:kept]:
            self.view.apply(persist)

    def damage(self, rng: random.Random) -> None:
        """Bits rot: it forgets entries and promises it had kept."""
        view = self.view
        snapshot = max(self._snapshots, default=0)
        if view.term_at(snapshot) is not None:
            covered = sum(batch.last <= snapshot for batch in view.batches)
            view.keep(rng.randint(covered, max(covered, len(view.batches))))
        view.hard_state = HardState(rng.randint(0, view.hard_state.term))
        view.commit = min(view.commit, view.last)

    def wipe(self) -> None:
        self.view = View()
        self._snapshots, self._compacted = {}, 0

    def _write(self, persists: Sequence[Persist]) -> None:
        for persist in persists:
            self.view.apply(persist)


class LogDisk(ModelDisk):
    """The product's own storage. After each crash it must give back all it had called durable."""

    def __init__(self, name: str, mint: Callable[[], int]) -> None:
        super().__init__()
        self._name = name
        self._mint = mint
        self._files = MemoryDisk()
        self._storage: DiskStorage | None = None
        #: What was being written when it crashed.
        self._torn: list[Persist] = []

    def recover(self) -> Recovered:
        self.durable = 0
        directory = open_directory(
            _PATH, group="g", name=self._name, fingerprint=77, mint=self._mint, files=self._files
        )
        self._storage = DiskStorage(directory, mint=self._mint, fsync="inline", segment_bytes=_SEGMENT_BYTES)
        recovered = self._storage.recover()
        assert not recovered.damage, recovered.damage
        self._compare(recovered)
        return recovered

    def save_snapshot(self, meta: SnapshotMeta, content: bytes) -> None:
        assert self._storage is not None
        sink = self._storage.snapshot_writer(meta.index, meta.term)
        sink.write_at(0, content)
        assert sink.finish() == (meta.size, meta.sha256)
        self._storage.save_snapshot(meta)
        super().save_snapshot(meta, content)

    def read_snapshot(self, index: int, offset: int, size: int) -> bytes:
        assert self._storage is not None
        try:
            return self._storage.read_snapshot(index, offset, size)
        except FileNotFoundError:
            return b""

    def compact(self, index: int) -> None:
        assert self._storage is not None
        self._storage.compact(index)

    def crash(self, rng: random.Random) -> None:
        """Power fails, in the middle of writing what was still queued; or the process dies and the machine lives."""
        if self.queue and rng.random() < 0.7:
            self._tear(rng.randrange(_OPERATIONS))
            self._torn = self.queue
        self.queue = []
        if rng.random() < 0.3:
            self._files.restart()
        else:
            self._files = self._files.crash(rng, subset=rng.random() < 0.3)

    def _tear(self, operations: int) -> None:
        assert self._storage is not None
        left = operations

        def strike(_kind: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut

        self._files.before = strike
        try:
            for persist in self.queue:
                self._storage.write(persist)
            self._storage.sync()
        except PowerCut:
            return
        finally:
            self._files.before = None

    def _write(self, persists: Sequence[Persist]) -> None:
        assert self._storage is not None
        for persist in persists:
            self._storage.write(persist)
        self._storage.sync()
        assert self._storage.failure is None, self._storage.failure
        assert self._storage.durable() == persists[-1].seq
        super()._write(persists)

    def _compare(self, recovered: Recovered) -> None:
        """What is found is what was called durable, and after it some of what was being written, in order. The view
        begins anew from there."""
        found = View()
        found.hard_state, found.commit = recovered.hard_state, recovered.commit
        snapshot = recovered.snapshot
        if snapshot is not None:
            found.reset(snapshot.index, snapshot.term)
        for batch in recovered.batches:
            found.append(batch)
        expected, told = self.view, []
        for persist in [None, *self._torn]:
            if persist is not None:
                expected.apply(persist)
            told.append(f"{expected.hard_state} to {expected.last}")
            if _same(found, expected, snapshot):
                self.view, self._torn = found, []
                return
        raise AssertionError(
            f"{self._name} kept {' or '.join(told)}; found {found.hard_state} to {found.last}, snapshot {snapshot}"
        )


def _same(found: View, expected: View, snapshot: SnapshotMeta | None) -> bool:
    if found.hard_state != expected.hard_state:
        return False
    if snapshot is not None and expected.term_at(snapshot.index) != snapshot.term:
        # The log ended before the snapshot, or took another turn: the snapshot has replaced it.
        return not found.batches
    last = max(expected.last, snapshot.index if snapshot is not None else 0)
    return found.last == last and all(expected.holds(batch.last, batch.term) for batch in found.batches)


def content_hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
