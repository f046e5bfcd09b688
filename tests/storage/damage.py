"""A small directory of every kind of file, what was promised of it, and what a start may make of it once damaged."""

from __future__ import annotations

from dataclasses import dataclass

from coord.raft.messages import HardState, Persist
from coord.storage.memory import MemoryDisk
from coord.storage.records import PERSIST, SEGMENT_HEADER_BYTES, DamagedRecord, Record, read_record, read_segment_header
from storage.builders import PATH, appended, batch, fresh_storage, put, take_snapshot, voted
from storage.crash_model import Found, ModelState, look
from storage.crash_workload import mint_from


@dataclass
class Made:
    """A directory, and every state its log went through: `states[n]` after n Persists, the last one acknowledged."""

    disk: MemoryDisk
    states: list[ModelState]
    snapshots: list[tuple[int, int]]

    def files(self, prefix: str = "") -> list[str]:
        return [name for name in self.disk.names(PATH) if name.startswith(prefix)]

    @property
    def segments(self) -> list[str]:
        return self.files("wal-")

    def again(self) -> MemoryDisk:
        """A copy to be damaged."""
        return next(self.disk.crash_subsets())

    def size(self, name: str) -> int:
        return self.disk.size(f"{PATH}/{name}")

    def records(self, name: str) -> list[Record]:
        """The whole records of a segment."""
        data = self.disk.read(f"{PATH}/{name}", 0, self.size(name))
        seed, records = read_segment_header(data).seed, list[Record]()
        while True:
            try:
                records.append(read_record(data, records[-1].end if records else SEGMENT_HEADER_BYTES, seed, None))
            except DamagedRecord:
                return records

    def after(self, record: Record) -> ModelState:
        """The state when this record, and no later one, is in the log."""
        later = [one for name in self.segments for one in self.records(name) if one.sequence > record.sequence]
        return self.states[len(self.states) - 1 - sum(one.kind == PERSIST for one in later)]


def directory(*, clean: bool, snapshots: int) -> Made:
    """Three segments or more with every kind of record; `clean`: and marked as on disk. Up to two snapshots."""
    disk, storage = fresh_storage()
    states = [ModelState()]

    def write(*persists: Persist) -> None:
        for persist in persists:
            states.append(states[-1].after(persist))
        put(storage, *persists)

    write(Persist(1, HardState(1, "a"), batches=[batch(1, 1)]))
    write(appended(2, 2, 1, size=150), appended(3, 3, 1))
    write(Persist(4, HardState(2), None, 3, [batch(3, 2)], commit=2))
    write(appended(5, 4, 2, size=150))
    saved = [(2, 1), (4, 2)][:snapshots]
    for index, term in saved:
        take_snapshot(storage, index, term, size=120)
        storage.compact(index)
    write(appended(6, 5, 2, size=150))
    write(appended(7, 6, 2))
    write(voted(8, 3, "b"))
    assert storage.failure is None and storage.durable() == 8
    if clean:
        storage.close()
    made = Made(next(disk.crash_subsets()), states, saved)
    assert len(made.segments) >= 2
    return made


def start(disk: MemoryDisk) -> Found:
    """What a start makes of it; any error but those that say so passes through."""
    found, storage = look(disk, mint_from("damaged"), 600)
    if storage is not None:
        storage.close()
    return found


def is_state(found: Found, state: ModelState) -> bool:
    """Whether this is what a start of an undamaged disk in that state reports."""
    batches = state.log_after(found.snapshot)
    return found.hard_state == state.hard_state and list(found.batches) == batches and found.commit <= found.last
