"""The traps others fell into, by number (those of storage; 49 is in test_processes)."""

from __future__ import annotations

import errno
import random

import pytest

from coord.raft.messages import HardState, Persist
from coord.storage.base import Recovered
from coord.storage.memory import MemoryDisk
from coord.storage.records import (
    PERSIST,
    RECORD_HEADER_BYTES,
    encode_persist,
    encode_record,
    read_record,
    read_segment_header,
)
from coord.storage.replay import read_log
from storage.builders import (
    PATH,
    appended,
    batch,
    fresh_storage,
    meta_of,
    open_data,
    open_storage,
    put,
    take_snapshot,
    voted,
)
from storage.crash_runner import killed_and_recovered
from storage.test_log import last_segment, power_cut, record_offsets, segments


def test_trap_2_a_vote_is_durable_when_it_is_said_to_be() -> None:
    disk, storage = fresh_storage()
    storage.write(voted(1, 1, "a"))
    assert storage.durable() == 0
    storage.sync()
    assert storage.durable() == 1
    assert open_storage(power_cut(disk)).recover().hard_state == HardState(1, "a")


def test_trap_4_a_vote_and_the_entries_before_it_are_never_reordered() -> None:
    """Whatever a crash leaves of entry, vote, entry: never the later without the earlier."""
    disk, storage = fresh_storage(segment_bytes=10_000)
    for persist in (appended(1, 1, 1, size=700), voted(2, 2, "b"), appended(3, 2, 2, size=700)):
        storage.write(persist)
    hit = set()

    def crash_here(kind: str) -> None:
        generator = random.Random(4)
        for survivor in [*disk.crash_states(), *(disk.crash(generator) for _ in range(200))]:
            recovered = open_storage(survivor, segment_bytes=10_000).recover()
            hit.add((len(recovered.batches), recovered.hard_state.vote))

    disk.before = crash_here
    storage.sync()
    crash_here("write")
    assert hit == {(0, ""), (1, ""), (1, "b"), (2, "b")}


def test_trap_5_term_vote_and_entries_of_one_persist_are_one_record() -> None:
    disk, storage = fresh_storage(segment_bytes=10_000)
    put(storage, appended(1, 1, 1), appended(2, 2, 1))
    storage.write(Persist(3, HardState(2, "b"), None, 2, [batch(2, 2, size=600), batch(3, 2, size=600)]))
    seen = []

    def crash_here(kind: str) -> None:
        for survivor in disk.crash_states():
            recovered = open_storage(survivor, segment_bytes=10_000).recover()
            seen.append((recovered.hard_state, [kept.term for kept in recovered.batches]))

    disk.before = crash_here
    storage.sync()
    assert all(found in ((HardState(), [1, 1]), (HardState(2, "b"), [1, 2, 2])) for found in seen)
    assert len(seen) > 20


def test_trap_37_failed_fsync_is_terminal() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    disk.fail("sync", 1, errno.EIO)
    put(storage, appended(2, 2, 1))
    failure = storage.failure
    assert failure is not None
    calls = dict(disk.calls)
    for seq in range(3, 6):
        put(storage, appended(seq, seq, 1))
    storage.compact(1)
    assert disk.calls == calls, "nothing is ever tried again"
    assert storage.failure is failure
    assert storage.durable() == 1


def test_trap_37_what_is_queued_when_the_disk_fails_is_never_written() -> None:
    disk, storage = fresh_storage()
    for index in range(1, 10):
        put(storage, appended(index, index, 1, size=100))
    for index in (2, 8):
        take_snapshot(storage, index, 1)
    storage.write(appended(10, 10, 1))
    disk.fail("sync_directory", 1, errno.EIO)
    storage.compact(8)
    assert storage.failure is not None
    writes = disk.calls["write"]
    storage.sync()
    assert disk.calls["write"] == writes
    assert storage.durable() == 9


def test_trap_37_what_a_failed_fsync_left_in_the_page_cache_is_not_trusted() -> None:
    """The next start reads it, as the kernel shows it; so it must write it anew, or a power cut takes it away."""
    disk, storage = fresh_storage()
    put(storage, voted(1, 1, "a"))
    disk.fail("sync", 1, errno.EIO)
    put(storage, voted(2, 2, "b"))
    reported = set()
    for survivor, recovered in killed_and_recovered(disk):
        reported.add(recovered.hard_state)
        assert open_storage(survivor).recover().hard_state == recovered.hard_state
    assert reported == {HardState(2, "b")}


def test_trap_38_names_are_durable_before_anything_is_promised() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    names_only = power_cut(disk)
    assert len(segments(names_only)) == 1
    meta = take_snapshot(storage, 1, 1)
    assert open_storage(power_cut(disk)).recover().snapshot == meta
    # And over a roll.
    for index in range(2, 12):
        put(storage, appended(index, index, 1, size=100))
        assert open_storage(power_cut(disk)).recover().batches[-1].last == index


def test_trap_39_losing_all_that_was_not_synced_loses_nothing_promised() -> None:
    disk, storage = fresh_storage()
    for index in range(1, 40):
        put(storage, Persist(index, HardState(index, "a"), batches=[batch(index, index, size=index * 7)]))
        recovered = open_storage(power_cut(disk)).recover()
        assert recovered.hard_state == HardState(index, "a")
        assert recovered.batches[-1].last == index


def three_records() -> tuple[MemoryDisk, str, list[int]]:
    disk, storage = fresh_storage(segment_bytes=2000)
    for index in (1, 2, 3):
        put(storage, appended(index, index, 1, size=100))
    path = last_segment(disk)
    return power_cut(disk), path, record_offsets(disk, path)


def zero(disk: MemoryDisk, path: str, start: int, end: int) -> None:
    for offset, byte in enumerate(disk.read(path, start, end - start), start):
        if byte:
            disk.flip(path, offset, byte)


def test_trap_40_damage_beyond_what_was_known_durable_is_a_torn_tail() -> None:
    disk, path, offsets = three_records()
    disk.flip(path, offsets[-1] - 1)
    recovered = open_storage(disk, segment_bytes=2000).recover()
    assert recovered.damage == ""
    assert [kept.first for kept in recovered.batches] == [1, 2]
    assert len(recovered.notes) == 1


def test_trap_40_damage_at_or_below_it_is_corruption_and_stops_the_member() -> None:
    disk, path, offsets = three_records()
    disk.flip(path, offsets[-2] - 1)
    before = disk.read(path, 0, 2000)
    storage = open_storage(disk, segment_bytes=2000)
    recovered = storage.recover()
    assert f"byte {offsets[-3]}" in recovered.damage
    assert storage.failure is not None
    put(storage, voted(1, 9, "z"))
    assert storage.durable() == 0
    storage.close()
    assert disk.read(path, 0, 2000) == before
    # It stays damaged, whoever starts it how often.
    assert open_storage(disk, segment_bytes=2000).recover().damage == recovered.damage


def test_trap_40_after_a_clean_stop_the_very_last_record_is_covered_too() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    end = record_offsets(disk, last_segment(disk))[-1]
    storage.close()
    disk.flip(last_segment(disk), end - 1)
    assert open_storage(disk).recover().damage


def test_trap_40_after_a_start_everything_found_is_covered() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    survivor = power_cut(disk)
    open_storage(survivor).recover()
    survivor.restart()
    path = last_segment(survivor)
    survivor.flip(path, record_offsets(survivor, path)[-1] - 1)
    assert open_storage(survivor).recover().damage


def test_trap_41_stale_records_never_pass() -> None:
    """A record copied from another segment, or from elsewhere in its own, is not taken for the next one."""
    disk, storage = fresh_storage()
    for index in range(1, 8):
        put(storage, appended(index, index, 1, size=100))
    names = segments(disk)
    assert len(names) >= 2
    old, new = (f"{PATH}/{name}" for name in (names[-2], names[-1]))
    end = record_offsets(disk, new)[-1]
    for source in (old, new):
        start, stop = record_offsets(disk, source)[1:3]
        stale = disk.read(source, start, stop - start)
        survivor = power_cut(disk)
        for at, byte in enumerate(stale):
            survivor.flip(new, end + at, byte)
        recovered = open_storage(survivor).recover()
        assert [kept.first for kept in recovered.batches] == list(range(1, 8))
        assert recovered.damage == ""
        assert "unfinished write" in recovered.notes[0]


def test_trap_41_a_record_must_follow_the_very_one_before_it() -> None:
    """Right seed, checksum and number, but written after another record: a write that went to the wrong place."""
    disk, path, offsets = three_records()
    data = disk.read(path, 0, 2000)
    seed = read_segment_header(data).seed
    last = read_record(data, offsets[-2], seed, None)
    numbers = (last.sequence + 1, last.sequence - 1, 0)
    accepted = []
    for previous in (last.crc, last.crc ^ 1):
        parts, body = encode_persist(voted(1, 7, "z"))
        header, _ = encode_record(seed, previous, PERSIST, parts, 0, numbers, body)
        survivor = power_cut(disk)
        for at, byte in enumerate(header + b"".join(body)):
            survivor.flip(path, offsets[-1] + at, byte)
        accepted.append(open_storage(survivor, segment_bytes=2000).recover().hard_state.vote)
    assert accepted == ["z", ""]


def test_trap_41_what_follows_a_cut_tail_is_written_to_another_file() -> None:
    disk, path, offsets = three_records()
    disk.flip(path, offsets[-1] - 1)
    storage = open_storage(disk, segment_bytes=2000)
    storage.recover()
    put(storage, appended(1, 3, 2, size=100))
    assert last_segment(disk) != path
    header = read_segment_header(disk.read(last_segment(disk), 0, 100))
    assert header.number == 2
    assert [kept.term for kept in open_storage(power_cut(disk), segment_bytes=2000).recover().batches] == [1, 1, 2]


def test_trap_42_zeros_are_the_end_and_a_huge_length_is_not_believed() -> None:
    disk, path, offsets = three_records()
    assert disk.size(path) == 2000
    assert open_storage(power_cut(disk), segment_bytes=2000).recover().notes == []
    length_at = offsets[-2] + 12
    for shift, byte in enumerate(b"\xff\xff\xff\x7f"):
        disk.flip(path, length_at + shift, byte)
    recovered = open_storage(disk, segment_bytes=2000).recover()
    assert "beyond the end of its segment" in recovered.notes[0]
    assert len(recovered.batches) == 2


def test_trap_42_zeros_in_the_middle_are_corruption() -> None:
    """A record all zero, or its header, with a later one whole: not an end."""
    for length in (4, RECORD_HEADER_BYTES, 150):
        disk, path, offsets = three_records()
        zero(disk, path, offsets[2], offsets[2] + length)
        recovered = open_storage(disk, segment_bytes=2000).recover()
        assert f"byte {offsets[2]}" in recovered.damage
        assert "no record begins here" in recovered.damage


def test_trap_43_the_commit_index_is_never_ahead_of_the_log() -> None:
    disk, storage = fresh_storage()
    put(storage, Persist(1, batches=[batch(1, 1, count=2)], commit=1000))
    recovered = open_storage(power_cut(disk)).recover()
    assert recovered.commit == 2
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    take_snapshot(storage, 9, 1)
    recovered = open_storage(power_cut(disk)).recover()
    assert recovered.commit == 9
    assert recovered.snapshot is not None


def test_trap_43_the_commit_index_comes_back_over_rolls_and_restarts() -> None:
    disk, storage = fresh_storage()
    for index in range(1, 12):
        put(storage, Persist(index, batches=[batch(index, 1, size=100)], commit=index - 1))
    disk = power_cut(disk)
    assert open_storage(disk).recover().commit == 10
    disk.restart()
    assert open_storage(disk).recover().commit == 10
    assert read_log(disk, PATH).replay.commit == 10


def test_trap_44_state_and_the_index_it_is_of_are_one_file() -> None:
    disk, storage = fresh_storage()
    put(storage, *(appended(index, index, 1) for index in range(1, 10)))
    seen = []

    def crash_here(kind: str) -> None:
        for survivor in disk.crash_states():
            again = open_storage(survivor)
            snapshot = again.recover().snapshot
            if snapshot is not None:
                assert snapshot == meta_of(snapshot.index, 1)
                assert len(again.read_snapshot(snapshot.index, 0, 1000)) == snapshot.size
            seen.append(snapshot.index if snapshot else 0)

    disk.before = crash_here
    take_snapshot(storage, 4, 1)
    take_snapshot(storage, 8, 1)
    disk.before = None
    assert set(seen) == {0, 4, 8}


def test_trap_50_a_formatted_directory_is_never_formatted_again() -> None:
    disk, storage = fresh_storage()
    put(storage, voted(1, 5, "a"))
    storage.close()
    again = open_data(disk, mint=lambda: pytest.fail("a second incarnation was minted"))
    assert again.identity.has_log
    again.close()
    assert open_storage(disk).recover() == Recovered(HardState(5, "a"))
