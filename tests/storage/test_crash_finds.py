"""What the crash-point runner has found, each told as briefly as it can be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coord.raft.messages import HardState, Persist
from coord.storage.memory import MemoryDisk
from storage.builders import appended, batch, fresh_storage, open_storage, put, take_snapshot
from storage.test_log import power_cut, segments, used


def test_a_mark_written_when_idle_is_on_disk_before_a_segment_that_counts_it() -> None:
    """The mark is not synced, and need not be; but the next segment says that every record before it is there."""
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1, size=200))
    storage._log.mark()
    put(storage, appended(2, 2, 1, size=300))
    assert len(segments(disk)) == 2, "the second entry was to begin another segment"
    assert storage.durable() == 2
    recovered = open_storage(power_cut(disk)).recover()
    assert recovered.damage == "", "a power cut, and nothing else, made the log look damaged"
    assert [one.last for one in recovered.batches] == [1, 2]


def test_a_snapshot_seen_only_in_the_page_cache_does_not_replace_the_log() -> None:
    """Its name was not synced when the process died. The start that follows forgets the log for it; so by then its name
    must be on disk, whatever order the file system keeps."""
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1), appended(2, 2, 1))
    before_the_sync = stopped_at(disk, "sync_directory", lambda: take_snapshot(storage, 2, 2))
    assert any(name.startswith("snapshot-") for name in before_the_sync.names("/data"))
    found = set()

    def cut_here(kind: str) -> None:
        for survivor in before_the_sync.crash_subsets():
            recovered = open_storage(survivor).recover()
            assert recovered.damage == "", recovered.damage
            found.add((recovered.snapshot is not None, len(recovered.batches)))

    before_the_sync.before = cut_here
    open_storage(before_the_sync).recover()
    assert found == {(False, 2), (True, 0)}, "either the log, or the snapshot in its place"


def test_a_start_after_a_kill_can_be_cut_short_anywhere() -> None:
    """The same for what a killed process had written to the log and not synced."""
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    killed = stopped_at(disk, "sync", lambda: put(storage, Persist(2, batches=[appended(2, 2, 1).batches[0]])))
    lengths = set()

    def cut_here(kind: str) -> None:
        for survivor in killed.crash_subsets():
            recovered = open_storage(survivor).recover()
            assert recovered.damage == "", recovered.damage
            lengths.add(len(recovered.batches))

    killed.before = cut_here
    assert len(open_storage(killed).recover().batches) == 2
    assert lengths == {1, 2}, "the entry that was acknowledged, with or without the one that was not"


def test_a_snapshot_taken_while_the_log_waits_for_room_loses_nothing_it_waits_with() -> None:
    """What waits may take back entries that a snapshot, finished meanwhile, covers by others of the same indexes."""
    disk = MemoryDisk()
    storage = open_storage(disk)
    storage.recover()
    put(storage, *(appended(index, index, index, size=60) for index in (1, 2, 3)))
    put(storage, appended(4, 4, 4, size=60), appended(5, 5, 4, size=60))
    storage._reserve.give_up()
    disk.capacity = used(disk)
    # Room is looked for only when told: no thread.
    storage._start_thread = lambda: None  # type: ignore[method-assign]
    again = [batch(2, 9, size=500), batch(3, 9, count=8)]
    put(storage, Persist(6, HardState(9), None, 2, again, commit=10))
    assert storage.full and storage.durable() == 5
    disk.capacity = used(disk) + 2000
    for index in (6, 9):
        take_snapshot(storage, index, 9)
    storage.compact(9)
    disk.capacity = None
    storage._write_group([])
    assert storage.durable() == 6 and not storage.full and storage.failure is None
    recovered = open_storage(power_cut(disk)).recover()
    assert not recovered.damage and recovered.snapshot is not None and recovered.snapshot.index == 9


class Stopped(BaseException):
    """The process ends here."""


def stopped_at(disk: MemoryDisk, kind: str, work: Callable[[], object]) -> MemoryDisk:
    """The disk after a process was killed before its next operation of that kind; nothing is lost yet."""

    def stop_here(now: str) -> None:
        if now == kind:
            raise Stopped

    disk.before = stop_here
    with pytest.raises(Stopped):
        work()
    disk.restart()
    return disk
