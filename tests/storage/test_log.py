"""The log on disk: what is written comes back, old segments go, damage is told from a torn tail."""

from __future__ import annotations

import errno
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coord.errors import StorageError
from coord.raft.messages import HardState, Persist
from coord.storage.base import Recovered
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk
from coord.storage.records import SEGMENT_HEADER_BYTES, read_record, read_segment_header
from storage.builders import (
    PATH,
    appended,
    batch,
    fresh_storage,
    meta_of,
    open_storage,
    put,
    take_snapshot,
    voted,
)
from storage.crash_runner import ModelState


def segments(disk: MemoryDisk) -> list[str]:
    return [name for name in disk.names(PATH) if name.startswith("wal-") and "." not in name]


def last_segment(disk: MemoryDisk) -> str:
    return f"{PATH}/{segments(disk)[-1]}"


def record_offsets(disk: MemoryDisk, path: str) -> list[int]:
    """Where each record of a segment starts, and where the last one ends."""
    data = disk.read(path, 0, disk.size(path))
    seed = read_segment_header(data).seed
    offsets = [SEGMENT_HEADER_BYTES]
    while True:
        try:
            offsets.append(read_record(data, offsets[-1], seed, None).end)
        except ValueError:
            return offsets


def power_cut(disk: MemoryDisk) -> MemoryDisk:
    """Everything not synced is lost."""
    return next(disk.crash_states())


def recovered_after_cut(disk: MemoryDisk) -> tuple[MemoryDisk, DiskStorage, Recovered]:
    survivor = power_cut(disk)
    storage = open_storage(survivor)
    return survivor, storage, storage.recover()


def test_a_fresh_directory_gives_the_defaults() -> None:
    storage = open_storage(MemoryDisk())
    assert storage.recover() == Recovered()
    assert storage.durable() == 0


def test_everything_comes_back() -> None:
    disk, storage = fresh_storage()
    batches = [batch(1, 1, count=3), batch(4, 1), batch(5, 2)]
    put(storage, Persist(1, HardState(1, "a"), batches=batches[:1]))
    put(storage, Persist(2, batches=batches[1:2]), Persist(3, HardState(2, "b"), batches=batches[2:], commit=4))
    assert storage.durable() == 3
    _, _, recovered = recovered_after_cut(disk)
    assert recovered == Recovered(HardState(2, "b"), None, batches, 4)


def test_write_alone_promises_nothing() -> None:
    disk, storage = fresh_storage()
    storage.write(appended(1, 1, 1))
    assert storage.durable() == 0
    assert recovered_after_cut(disk)[2] == Recovered()


def test_a_group_costs_one_write_and_one_sync() -> None:
    disk, storage = fresh_storage(segment_bytes=100_000)
    before = dict(disk.calls)
    put(storage, *(appended(1 + at, 1 + 5 * at, 1, count=5) for at in range(20)))
    assert storage.durable() == 20
    assert {kind: disk.calls[kind] - before[kind] for kind in before if disk.calls[kind] != before[kind]} == {
        "write": 1,
        "sync": 1,
    }


def test_a_persist_that_says_nothing_new_costs_nothing() -> None:
    disk, storage = fresh_storage()
    before = disk.calls["write"]
    put(storage, Persist(1, commit=0), Persist(2))
    assert storage.durable() == 2
    assert disk.calls["write"] == before


def test_the_bytes_of_a_batch_are_written_as_they_are() -> None:
    disk, storage = fresh_storage(segment_bytes=10_000)
    one = batch(1, 1, count=4, size=100)
    put(storage, Persist(1, batches=[one]))
    data = disk.read(last_segment(disk), 0, 10_000)
    assert data.count(one.data) == 1


def test_rolling_keeps_everything_and_compaction_drops_whole_old_segments() -> None:
    disk, storage = fresh_storage()
    put(storage, voted(1, 1, "a"))
    for index in range(1, 31):
        put(storage, appended(1 + index, index, 1, size=100))
    assert len(segments(disk)) > 5
    put(storage, voted(32, 2))
    storage.compact(30)
    assert len(segments(disk)) > 5, "no snapshot covers anything yet"
    take_snapshot(storage, 10, 1)
    take_snapshot(storage, 20, 1)
    storage.compact(20)
    kept = segments(disk)
    _, _, recovered = recovered_after_cut(disk)
    assert recovered.hard_state == HardState(2)
    assert [kept.first for kept in recovered.batches] == list(range(21, 31))
    storage.compact(20)
    assert segments(disk) == kept
    # The log still reaches back to the older snapshot, and no further than its segment.
    disk.flip(f"{PATH}/snapshot-{20:020d}", 40)
    _, _, fallen_back = recovered_after_cut(disk)
    assert fallen_back.damage == ""
    assert fallen_back.snapshot == meta_of(10, 1)
    assert [kept.first for kept in fallen_back.batches] == list(range(11, 31))
    assert "set aside" in fallen_back.notes[0]


def test_an_unreadable_snapshot_is_set_aside_and_not_deleted() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    take_snapshot(storage, 1, 1)
    name = f"snapshot-{1:020d}"
    disk.flip(f"{PATH}/{name}", 40)
    broken = disk.read(f"{PATH}/{name}", 0, 10_000)
    survivor, _, recovered = recovered_after_cut(disk)
    assert recovered.snapshot is None
    assert recovered.damage == ""
    assert recovered.batches == [batch(1, 1)]
    assert survivor.read(f"{PATH}/{name}.broken", 0, 10_000) == broken


def test_no_snapshot_left_and_a_log_that_begins_later_is_damage() -> None:
    disk, storage = fresh_storage()
    for index in range(1, 21):
        put(storage, appended(index, index, 1, size=100))
    take_snapshot(storage, 10, 1)
    take_snapshot(storage, 20, 1)
    storage.compact(20)
    for index in (10, 20):
        disk.flip(f"{PATH}/snapshot-{index:020d}", 40)
    before = {name: disk.read(f"{PATH}/{name}", 0, 10_000) for name in disk.names(PATH)}
    disk.restart()
    storage = open_storage(disk)
    recovered = storage.recover()
    assert "the log begins after entry" in recovered.damage
    assert isinstance(storage.failure, StorageError)
    put(storage, voted(1, 9, "x"))
    storage.compact(20)
    storage.close()
    assert storage.durable() == 0
    assert {name: disk.read(f"{PATH}/{name}", 0, 10_000) for name in disk.names(PATH)} == before


def test_a_reset_makes_all_older_segments_droppable() -> None:
    disk, storage = fresh_storage()
    for index in range(1, 21):
        put(storage, appended(index, index, 1, size=100))
    meta = take_snapshot(storage, 15, 2)
    assert len(segments(disk)) > 3
    put(storage, Persist(21, HardState(2), meta), appended(22, 16, 2))
    storage.compact(0)
    assert len(segments(disk)) == 1
    _, _, recovered = recovered_after_cut(disk)
    assert (recovered.snapshot, recovered.batches) == (meta, [batch(16, 2)])


def test_a_snapshot_beyond_the_log_replaces_it() -> None:
    disk, storage = fresh_storage()
    put(storage, *(appended(index, index, 1) for index in range(1, 6)))
    meta = take_snapshot(storage, 8, 1)
    disk, storage, recovered = recovered_after_cut(disk)
    assert recovered == Recovered(snapshot=meta, commit=8)
    put(storage, appended(1, 9, 1))
    _, _, again = recovered_after_cut(disk)
    assert again.batches == [batch(9, 1)]


def test_a_snapshot_of_another_history_replaces_the_log() -> None:
    disk, storage = fresh_storage()
    put(storage, *(appended(index, index, 1) for index in range(1, 9)))
    meta = take_snapshot(storage, 5, 3)
    _, _, recovered = recovered_after_cut(disk)
    assert (recovered.snapshot, recovered.batches) == (meta, [])


def test_restarts_do_not_pile_up_segments() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    for _ in range(20):
        disk, storage, recovered = recovered_after_cut(disk)
        assert recovered.batches == [batch(1, 1)]
    assert len(segments(disk)) == 1
    assert storage.segment_count == 1
    assert storage.log_bytes == 600


def test_a_torn_tail_is_cut_copied_and_reported() -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    end = record_offsets(disk, last_segment(disk))[-1]
    storage.write(appended(2, 2, 1))
    disk.fail("sync", 1)
    storage.sync()
    segment = segments(disk)[-1]
    disk.flip(f"{PATH}/{segment}", end + 60)
    disk.restart()
    storage = open_storage(disk)
    recovered = storage.recover()
    assert recovered.batches == [batch(1, 1)]
    assert recovered.damage == ""
    assert f"{segment}, byte {end}" in recovered.notes[0]
    assert disk.size(f"{PATH}/{segment}-{end}.broken") > 50
    storage.close()
    assert open_storage(disk).recover() == Recovered(batches=[batch(1, 1)])


def test_copies_of_torn_tails_do_not_pile_up() -> None:
    disk, storage = fresh_storage()
    for number in range(1, 15):
        storage.write(appended(1, 1, number))
        disk.fail("sync", 1)
        storage.sync()
        path = last_segment(disk)
        disk.flip(path, record_offsets(disk, path)[-2] + 60)
        disk.restart()
        storage = open_storage(disk)
        recovered = storage.recover()
        assert recovered.batches == []
        assert len(recovered.notes) == 1
    assert len([name for name in disk.names(PATH) if name.endswith(".broken")]) == 8


def small_log(*, clean: bool) -> MemoryDisk:
    """Three segments with every kind of record, everything acknowledged; `clean`: and marked as such."""
    disk, storage = fresh_storage()
    put(storage, Persist(1, HardState(1, "a"), batches=[batch(1, 1)]))
    put(storage, appended(2, 2, 1, size=150), appended(3, 3, 1))
    put(storage, Persist(4, HardState(2), None, 3, [batch(3, 2)], commit=2))
    put(storage, appended(5, 4, 2, size=150))
    put(storage, appended(6, 5, 2, size=150))
    put(storage, appended(7, 6, 2))
    put(storage, voted(8, 3, "b"))
    if clean:
        storage.close()
    assert len(segments(disk)) == 3
    return power_cut(disk)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_every_flipped_bit_is_detected(clean: bool, mask: int) -> None:
    """In every byte of the log, not merely every 64th: never silent. Torn at most in the last, unmarked record."""
    good = open_storage(small_log(clean=clean)).recover()
    shorter = Recovered(HardState(2), None, good.batches, good.commit)
    names = segments(small_log(clean=clean))
    verdicts = {"damage": 0, "torn": 0, "unused": 0}
    for name in names:
        pristine = small_log(clean=clean)
        ends = record_offsets(pristine, f"{PATH}/{name}")
        for offset in range(pristine.size(f"{PATH}/{name}")):
            disk = power_cut(pristine)
            disk.flip(f"{PATH}/{name}", offset, mask)
            recovered = open_storage(disk).recover()
            if recovered.damage:
                verdicts["damage"] += 1
                assert f"{name}, byte" in recovered.damage
                assert offset < ends[-1]
            elif recovered.notes:
                # Beyond what was known to be on disk: the last record only, or the unused room behind it.
                verdicts["torn"] += 1
                assert name == names[-1]
                assert offset >= ends[-2]
                recovered.notes.clear()
                assert recovered == (shorter if offset < ends[-1] and not clean else good)
            else:
                verdicts["unused"] += 1
                assert offset >= ends[-1], f"a flip at {name}, byte {offset} went unseen"
                assert name != names[-1]
                assert recovered == good
    assert min(verdicts.values()) > 0
    assert verdicts["damage"] > 1000


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_segment_is_damage(lost: int) -> None:
    disk = small_log(clean=True)
    disk.unlink(f"{PATH}/{segments(disk)[lost]}")
    recovered = open_storage(disk).recover()
    if lost < 2:
        assert recovered.damage
    else:
        # The last one leaves nothing behind that could tell; see the module's text on what cannot be told apart.
        assert recovered.damage == ""


def test_a_lost_log_is_damage() -> None:
    disk = small_log(clean=True)
    for name in segments(disk):
        disk.unlink(f"{PATH}/{name}")
    assert "the log is gone" in open_storage(disk).recover().damage


def test_exchanged_segments_are_damage() -> None:
    disk = small_log(clean=True)
    first, second, _ = (f"{PATH}/{name}" for name in segments(disk))
    disk.rename(first, f"{PATH}/x")
    disk.rename(second, first)
    disk.rename(f"{PATH}/x", second)
    assert "the header says" in open_storage(disk).recover().damage


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "unlink", "sync_directory"])
def test_an_error_at_every_call_is_terminal_and_loses_nothing(kind: str, error: int) -> None:
    failed = 0
    for nth in range(1, 200):
        disk, storage = fresh_storage()
        target = disk.calls[kind] + nth
        disk.fail(kind, nth, error)
        acknowledged = run_until_failure(storage)
        if disk.calls[kind] < target:
            break
        if storage.failure is not None:
            failed += 1
            assert storage.failure.errno == error
            calls = dict(disk.calls)
            put(storage, voted(1000, 1000, "x"))
            storage.compact(25)
            assert storage.durable() == acknowledged
            assert disk.calls == calls
        storage.close()
        for survivor in disk.crash_states():
            recovered = open_storage(survivor).recover()
            assert recovered.damage == ""
            last = recovered.batches[-1].last if recovered.batches else 0
            assert last >= acknowledged or (recovered.snapshot and recovered.snapshot.index >= acknowledged)
    else:
        pytest.fail("the workload never ran to its end")
    # A full disk costs the reserve before it costs the member: one refused segment is survived.
    assert failed > 2 or (kind, error) == ("create", errno.ENOSPC)


def run_until_failure(storage: DiskStorage) -> int:
    """Thirty entries over several segments, two snapshots, a compaction. Returns what was acknowledged."""
    for index in range(1, 31):
        put(storage, appended(index, index, 1, size=100))
        if index in (8, 16):
            try:
                take_snapshot(storage, index, 1)
            except OSError:
                # A snapshot that cannot be written is given up, and the log goes on.
                assert storage.failure is None
            storage.compact(index)
    return storage.durable()


def filled(disk: MemoryDisk) -> tuple[DiskStorage, int]:
    """A storage that waits for room, and how many entries it has acknowledged."""
    storage = open_storage(disk)
    storage.recover()
    assert storage.reserve_held
    index = 0
    while not storage.full:
        index += 1
        assert index < 100 and storage.failure is None
        put(storage, appended(index, index, 1, size=100))
    assert storage.durable() == index - 1
    assert not storage.reserve_held
    assert len(segments(disk)) >= 5
    return storage, index - 1


def test_a_full_disk_costs_the_reserve_then_makes_the_log_wait_for_room() -> None:
    disk = MemoryDisk(capacity=600 * 6)
    storage, acknowledged = filled(disk)
    for index in range(acknowledged + 2, acknowledged + 12):
        put(storage, appended(index, index, 1, size=100))
    done = threading.Event()

    def look() -> None:
        if storage.durable() == acknowledged + 11:
            done.set()

    storage.on_progress(look)
    assert storage.durable() == acknowledged and storage.failure is None
    disk.capacity = None
    assert done.wait(30), "there was room again, and nothing went on"
    assert not storage.full
    storage.close()
    recovered = open_storage(disk).recover()
    assert [batch.last for batch in recovered.batches] == list(range(1, acknowledged + 12))


def test_a_member_stopped_on_a_full_disk_has_kept_what_it_acknowledged() -> None:
    disk = MemoryDisk(capacity=600 * 6)
    storage, acknowledged = filled(disk)
    storage.close()
    assert storage.failure is None
    # No room to start either, and it says so; with room again, everything acknowledged is there.
    disk.restart()
    storage = open_storage(disk)
    with pytest.raises(StorageError, match="free space"):
        storage.recover()
    storage.close()
    disk.capacity = None
    storage = open_storage(disk)
    recovered = storage.recover()
    assert recovered.batches[-1].last == acknowledged
    assert storage.reserve_held


def test_the_reserve_lets_a_snapshot_through_and_compaction_takes_it_back() -> None:
    disk = MemoryDisk()
    storage = open_storage(disk)
    storage.recover()
    for index in range(1, 21):
        put(storage, appended(index, index, 1, size=100))
    take_snapshot(storage, 10, 1, size=30)
    disk.capacity = used(disk) + 500
    take_snapshot(storage, 20, 1, size=700)
    assert not storage.reserve_held
    storage.compact(20)
    assert storage.reserve_held
    assert storage.failure is None


def used(disk: MemoryDisk) -> int:
    return sum(disk.size(f"{PATH}/{name}") for name in disk.names(PATH))


def test_a_start_that_cannot_read_raises_and_changes_nothing() -> None:
    disk = small_log(clean=True)
    names = disk.names(PATH)
    disk.fail("read", 3)
    storage = open_storage(disk)
    with pytest.raises(StorageError, match="cannot be read back"):
        storage.recover()
    assert storage.failure is not None
    storage.close()
    assert disk.names(PATH) == names
    assert open_storage(disk).recover().damage == ""


@pytest.mark.parametrize(
    "persist",
    [
        Persist(3, batches=[batch(4, 1)]),
        Persist(3, batches=[batch(2, 1)]),
        Persist(3, batches=[batch(3, 0)]),
        Persist(3, truncate_from=4),
        Persist(3, hard_state=HardState(0)),
        Persist(3, hard_state=HardState(1, "b")),
        Persist(3, hard_state=HardState(1)),
        Persist(2),
    ],
)
def test_a_persist_that_cannot_follow_is_refused_before_it_is_written(persist: Persist) -> None:
    disk, storage = fresh_storage()
    put(storage, voted(1, 1, "a"), appended(2, 1, 1, count=2))
    with pytest.raises(AssertionError):
        storage.write(persist)
    assert recovered_after_cut(disk)[2].batches == [batch(1, 1, count=2)]


def test_what_a_bug_wrote_is_damage() -> None:
    """A whole record that cannot follow: the reader does not rely on the writer's own check."""
    for wrong in (Persist(2, batches=[batch(9, 1)]), Persist(2, batches=[batch(2, 1)]), Persist(2, HardState(1))):
        disk, storage = fresh_storage()
        put(storage, Persist(1, HardState(5), batches=[batch(1, 4)]))
        log = storage._log
        log._end.follow = lambda persist: None  # type: ignore[method-assign]
        log.append(wrong)
        log.commit()
        assert "follows" in recovered_after_cut(disk)[2].damage


@st.composite
def persists(draw: st.DrawFn) -> list[list[Persist]]:
    """Groups of Persists a correct core might ask for."""
    groups: list[list[Persist]] = []
    seq, term, commit = 0, 1, 0
    ends: list[tuple[int, int]] = [(0, 0)]  # (last index, term) after each batch
    for _ in range(draw(st.integers(1, 12))):
        group = []
        for _ in range(draw(st.integers(1, 4))):
            seq += 1
            truncate_from = hard_state = None
            if draw(st.booleans()):
                term += 1
                hard_state = HardState(term, draw(st.sampled_from(["", "a", "member-with-a-long-name"])))
            keepable = [at for at, end in enumerate(ends) if end[0] >= commit]
            if draw(st.integers(0, 3)) == 0 and len(keepable) > 1:
                ends = ends[: draw(st.sampled_from(keepable[:-1])) + 1]
                truncate_from = ends[-1][0] + 1
            batches = []
            for _ in range(draw(st.integers(0, 3))):
                count = draw(st.integers(1, 3))
                batches.append(batch(ends[-1][0] + 1, term, count=count, size=draw(st.integers(0, 300))))
                ends.append((batches[-1].last, term))
            commit = draw(st.integers(commit, ends[-1][0]))
            group.append(Persist(seq, hard_state, None, truncate_from, batches, commit))
        groups.append(group)
    return groups


@settings(max_examples=150, deadline=None)
@given(persists(), st.sampled_from([400, 1000, 50_000]), st.data())
def test_any_stream_comes_back(groups: list[list[Persist]], segment_bytes: int, data: st.DataObject) -> None:
    """Against the model, with restarts of every sort in between; a restart numbers its Persists anew."""
    disk, storage = fresh_storage(segment_bytes)
    state, commit, offset = ModelState(), 0, 0
    for group in groups:
        for persist in group:
            persist.seq -= offset
            state = state.after(persist)
            if persist.batches or persist.hard_state or persist.truncate_from:
                commit = max(commit, persist.commit)
        put(storage, *group)
        how = data.draw(st.sampled_from(["go on", "go on", "power cut", "kill", "clean stop"]))
        if how == "go on":
            continue
        if how == "clean stop":
            storage.close()
        disk.restart()
        disk = power_cut(disk) if how == "power cut" else disk
        offset += group[-1].seq
        storage = open_storage(disk, segment_bytes=segment_bytes)
        assert storage.recover() == Recovered(state.hard_state, None, list(state.batches), commit)
    assert storage.failure is None


def test_rot_never_raises_whatever_it_hits() -> None:
    """Random bytes in random places, many at once: damage, torn, or unused room, but never an exception."""
    generator = random.Random(5)
    pristine = small_log(clean=True)
    names = segments(pristine)
    for attempt in range(300):
        disk = power_cut(pristine)
        noise = generator.randbytes(40)
        for at in range(0, len(noise), 4):
            name = names[noise[at] % len(names)]
            disk.flip(f"{PATH}/{name}", int.from_bytes(noise[at + 1 : at + 3], "little") % 600, noise[at + 3] or 1)
        recovered = open_storage(disk).recover()
        assert isinstance(recovered, Recovered), attempt
