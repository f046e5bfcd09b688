"""A simulated member's disk: a disk in memory that can also lie and rot, and the product's own storage on it, stepped.

`SimDisk` knows what is truly durable, in `view`, whatever the storage on it believes; so a promise can be held against
it. `SimStorage` is `DiskStorage` without its thread: somebody else says when a sync is done.
What must not live here: when a disk fails, or how long a sync takes.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist, SnapshotMeta
from coord.storage.base import Recovered
from coord.storage.directory import DataDirectory
from coord.storage.disk import DiskStorage
from coord.storage.memory import SECTOR_BYTES, MemoryDisk, NameChange
from coord.storage.records import RECORD_HEADER_BYTES
from coord.storage.replay import SEGMENT_PREFIX, is_segment_name
from coord.storage.snapshots import PREFIX as SNAPSHOT_PREFIX

#: Where a member keeps its data.
DATA = "/data"


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


class SimDisk(MemoryDisk):
    """Besides what `MemoryDisk` forgets: it may put a write in the wrong place, and rot."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self.view = View()
        #: Asked of the log and not durable, oldest first.
        self.asked: list[Persist] = []
        #: Why what is on it can no longer be trusted, or "".
        self.harm = ""
        #: A lie that no later record has yet exposed: a crash now would be believed.
        self.lying = False
        #: The next write of the log goes elsewhere: drawn from here.
        self.misdirect: random.Random | None = None
        #: Segments written to since their last sync, and from which offset.
        self._written: dict[str, int] = {}
        self._lied = False
        #: Where the last commit of the log began: (file, offset). What lies before it has been stated durable since.
        self._last_commit: tuple[str, int] = ("", 0)

    # What the storage does to it.

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        name = self._log_name(handle)
        if not name:
            super().write(handle, offset, buffers)
            return
        self._written.setdefault(name, offset)
        rng = self.misdirect
        if rng is not None and offset >= 2 * SECTOR_BYTES:
            self.misdirect, self._lied = None, True
            self.harm, self.lying = "a write went elsewhere", True
            # Whole sectors away, over what was written before it.
            offset -= SECTOR_BYTES * (1 + rng.randrange(offset // SECTOR_BYTES))
        super().write(handle, offset, buffers)

    def sync(self, handle: int) -> None:
        super().sync(handle)
        name = self._log_name(handle)
        begun = self._written.pop(name, None)
        if begun is not None:
            self._last_commit = (name, begun)
            self.lying, self._lied = self._lied, False

    def _log_name(self, handle: int) -> str:
        """Of a segment, also while it has only a temporary one; else ""."""
        file = self._handles.get(handle)
        for names in self._names.values():
            for name, known in names.items():
                if known is file and name.startswith(SEGMENT_PREFIX):
                    return name.removesuffix(".tmp")
        return ""

    def log_is_synced(self) -> bool:
        """Nothing of the log, neither bytes nor names, waits for a sync; but for a mark, which promises nothing."""
        names: set[str] = set()
        files = {id(file): name for entries in self._names.values() for name, file in entries.items()}
        for change in self._pending:
            if isinstance(change, NameChange):
                names.update(name for name, file in change.entries.items() if file is not None)
            elif len(getattr(change, "data", b"")) != RECORD_HEADER_BYTES:
                names.add(files.get(id(change.file), ""))
        return not any(is_segment_name(name) for name in names)

    def settle(self, seq: int) -> None:
        """The storage calls everything up to `seq` durable; so it is, if the disk agrees."""
        if self.log_is_synced():
            while self.asked and self.asked[0].seq <= seq:
                self.view.apply(self.asked.pop(0))

    # What befalls it.

    def used(self) -> int:
        """Bytes its files take."""
        files = {id(file): file.size for names in self._names.values() for file in names.values()}
        return sum(files.values())

    def clear_failures(self) -> None:
        """Whatever was to fail will not."""
        self._failures.clear()

    def lose(self, rng: random.Random, *, power: bool) -> SimDisk:
        """The process died, or with `power` the whole machine: what the next one finds."""
        if not power:
            self.restart()
            return self
        survivor = self.crash(rng, subset=rng.random() < 0.3)
        assert isinstance(survivor, SimDisk)
        survivor.view, survivor.asked, survivor.harm = self.view, self.asked, self.harm
        survivor.lying, survivor.misdirect = self.lying, self.misdirect
        survivor._last_commit = self._last_commit
        return survivor

    def rot(self, rng: random.Random) -> str:
        """Bits change where the disk holds what was stated durable since: a lost tail cannot be told from a torn one.
        Returns where, or "" when there is nothing to rot."""
        names = [name for name in self._names.get(DATA, {}) if not name.endswith((".tmp", ".broken"))]
        logs = sorted(name for name in names if name.startswith(SEGMENT_PREFIX))
        places = [(name, self._names[DATA][name].size) for name in logs[:-1]]
        if logs and logs[-1] == self._last_commit[0]:
            places.append(self._last_commit)
        snapshots = [(name, self._names[DATA][name].size) for name in sorted(names) if name.startswith(SNAPSHOT_PREFIX)]
        places = [(name, size) for name, size in (*places, *snapshots[-1:]) if size > 0]
        if not places:
            return ""
        name, size = rng.choice(places)
        held = len(self._names[DATA][name].data)
        offset = rng.randrange(min(size, held) or 1)
        self.flip(f"{DATA}/{name}", offset, 1 << rng.randrange(8))
        self.harm = f"a bit of {name} changed"
        return f"{name} at {offset}"

    def compare(self, recovered: Recovered) -> str:
        """What is found is what was durable, and after it some of what was being written, in order. "" if so, and the
        view begins anew from there; else what is wrong."""
        found = View()
        found.hard_state, found.commit = recovered.hard_state, recovered.commit
        snapshot = recovered.snapshot
        if snapshot is not None:
            found.reset(snapshot.index, snapshot.term)
        if recovered.batches and recovered.batches[0].first <= found.base:
            found.reset(recovered.batches[0].first - 1, 0)
        for batch in recovered.batches:
            found.append(batch)
        expected, told = self.view, []
        for persist in (None, *self.asked):
            if persist is not None:
                expected.apply(persist)
            told.append(f"{expected.hard_state} to {expected.last}")
            if _same(found, expected, snapshot):
                if snapshot is not None and not found.holds(snapshot.index, snapshot.term):
                    found.reset(snapshot.index, snapshot.term)
                self.view, self.asked = found, []
                return ""
        return f"kept {' or '.join(told)}; found {found.hard_state} to {found.last}, snapshot {snapshot}"


def _same(found: View, expected: View, snapshot: SnapshotMeta | None) -> bool:
    if found.hard_state != expected.hard_state:
        return False
    if snapshot is not None and not expected.holds(snapshot.index, snapshot.term):
        # The log ended before the snapshot, or took another turn: the snapshot has replaced it.
        return not found.batches
    last = max(expected.last, snapshot.index if snapshot is not None else 0)
    return found.last == last and all(expected.holds(batch.last, batch.term) for batch in found.batches)


class SimStorage(DiskStorage):
    """The product's storage without its thread: `ask` is told that there is something to do, and `work` does it,
    whenever it is called. `inline`: as long as there is room, nothing is left to a thread at all."""

    def __init__(
        self,
        directory: DataDirectory,
        disk: SimDisk,
        *,
        mint: Callable[[], int],
        segment_bytes: int,
        inline: bool,
        ask: Callable[[], None],
    ) -> None:
        super().__init__(directory, mint=mint, fsync="inline" if inline else "thread", segment_bytes=segment_bytes)
        #: What the start found.
        self.recovered: Recovered | None = None
        self._disk = disk
        self._ask = ask

    def recover(self) -> Recovered:
        self.recovered = super().recover()
        return self.recovered

    def _start_thread(self) -> None:
        # Never started: it only stands for "somebody else does the work".
        self._thread = threading.Thread()

    def write(self, persist: Persist) -> None:
        if self.failure is None and not self._closed:
            self._disk.asked.append(persist)
        super().write(persist)

    def sync(self) -> None:
        super().sync()
        if self.waits:
            self._ask()

    def compact(self, index: int) -> None:
        super().compact(index)
        if self.waits:
            self._ask()

    @property
    def waits(self) -> bool:
        """There is something to do for who has the thread's part."""
        return self.failure is None and (not self._inbox.empty() or self.full)

    def work(self) -> None:
        """Do what is queued, or try again what there was no room for."""
        if not self._inbox.empty():
            self._work()
        else:
            self.idle()

    def idle(self) -> None:
        """Nothing came for a while."""
        if self.failure is None and self._thread is not None:
            try:
                self._idle()
            except OSError as error:
                self._fail(error)
                self._progress()

    def _write_group(self, group: list[Persist]) -> None:
        super()._write_group(group)
        if self.failure is None:
            self._disk.settle(self._durable)

    def close(self) -> None:
        thread, self._thread = self._thread, None
        while thread is not None and not self._inbox.empty():
            self._work()
        super().close()
