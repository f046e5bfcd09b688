"""Snapshot files: verified before use, two kept, written by other threads, never trusted when they do not check out."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
from dataclasses import replace

import pytest

from coord.errors import StorageError
from coord.raft.messages import HardState, Persist
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk
from coord.storage.snapshots import decode_meta, encode_meta
from coord.storage.volatile import VolatileStorage
from storage.builders import PATH, appended, batch, content_of, fresh_storage, meta_of, open_storage, put, take_snapshot

Either = DiskStorage | VolatileStorage


@pytest.fixture(params=["disk", "volatile"])
def storage(request: pytest.FixtureRequest) -> Either:
    return fresh_storage()[1] if request.param == "disk" else VolatileStorage()


def test_bytes_come_back_in_pieces(storage: Either) -> None:
    take_snapshot(storage, 7, 2)
    content = content_of(7)
    assert storage.read_snapshot(7, 0, 100) + storage.read_snapshot(7, 100, 1000) == content
    assert storage.read_snapshot(7, 300, 10) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_snapshot(8, 0, 10)


def test_the_two_newest_are_kept(storage: Either) -> None:
    for index in (3, 9, 6):
        take_snapshot(storage, index, 1)
    with pytest.raises(FileNotFoundError):
        storage.read_snapshot(3, 0, 10)
    assert storage.read_snapshot(6, 0, 1000) == content_of(6)
    assert storage.read_snapshot(9, 0, 1000) == content_of(9)
    take_snapshot(storage, 4, 1)
    assert storage.read_snapshot(6, 0, 1000) == content_of(6)


def test_pieces_in_any_order_and_twice(storage: Either) -> None:
    content = content_of(5, 5000)
    pieces = [(at, content[at : at + 128]) for at in range(0, 5000, 128)] * 2
    random.Random(1).shuffle(pieces)
    sink = storage.snapshot_writer(5, 1)
    for offset, data in pieces:
        sink.write_at(offset, data)
    assert sink.finish() == (5000, hashlib.sha256(content).digest())
    storage.save_snapshot(meta_of(5, 1, 5000))
    assert storage.read_snapshot(5, 0, 5000) == content


def test_an_empty_snapshot(storage: Either) -> None:
    sink = storage.snapshot_writer(5, 1)
    assert sink.finish() == (0, hashlib.sha256().digest())
    storage.save_snapshot(meta_of(5, 1, 0))
    assert storage.read_snapshot(5, 0, 10) == b""


def test_one_that_is_not_what_was_written_is_refused(storage: Either) -> None:
    sink = storage.snapshot_writer(5, 1)
    sink.write_at(0, content_of(5))
    sink.finish()
    with pytest.raises(StorageError):
        storage.save_snapshot(replace(meta_of(5, 1), sha256=bytes(32)))
    with pytest.raises(FileNotFoundError):
        storage.read_snapshot(5, 0, 10)
    with pytest.raises(StorageError):
        storage.save_snapshot(meta_of(6, 1))
    take_snapshot(storage, 5, 1)


def test_a_new_writer_replaces_an_unfinished_one() -> None:
    disk, storage = fresh_storage()
    first = storage.snapshot_writer(5, 1)
    first.write_at(0, b"abandoned")
    take_snapshot(storage, 5, 1)
    with pytest.raises(StorageError, match="abandoned"):
        first.write_at(9, b"x")
    with pytest.raises(StorageError, match="abandoned"):
        first.finish()
    first.abandon()
    assert storage.read_snapshot(5, 0, 1000) == content_of(5)
    assert not [name for name in disk.names(PATH) if name.endswith(".tmp")]


def test_unfinished_ones_do_not_pile_up() -> None:
    disk, storage = fresh_storage()
    sinks = [storage.snapshot_writer(index, 1) for index in range(1, 10)]
    assert len([name for name in disk.names(PATH) if name.startswith("snapshot-")]) == 2
    sinks[-1].write_at(0, b"x")
    with pytest.raises(StorageError, match="abandoned"):
        sinks[0].write_at(0, b"x")
    storage.close()
    assert not [name for name in disk.names(PATH) if name.startswith("snapshot-")]


def test_unfinished_ones_are_removed_at_start() -> None:
    disk, storage = fresh_storage()
    sink = storage.snapshot_writer(5, 1)
    sink.write_at(0, content_of(5))
    sink.finish()
    disk.restart()
    storage = open_storage(disk)
    assert storage.recover().snapshot is None
    assert not [name for name in disk.names(PATH) if name.endswith(".tmp")]
    with pytest.raises(StorageError):
        storage.save_snapshot(meta_of(5, 1))


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_an_error_gives_the_snapshot_up_and_leaves_the_log_unharmed(kind: str, error: int) -> None:
    hit = 0
    for nth in range(1, 10):
        disk, storage = fresh_storage()
        put(storage, appended(1, 1, 1))
        take_snapshot(storage, 1, 1)
        target = disk.calls[kind] + nth
        disk.fail(kind, nth, error)
        try:
            take_snapshot(storage, 2, 1)
        except OSError:
            hit += 1
        if disk.calls[kind] < target:
            break
        assert storage.failure is None
        put(storage, appended(2, 2, 1))
        assert storage.durable() == 2
        recovered = open_storage(next(disk.crash_states())).recover()
        assert recovered.snapshot in (meta_of(1, 1), meta_of(2, 1))
        assert recovered.damage == ""
    assert hit or (kind, error) == ("write", errno.ENOSPC), "a full disk costs the reserve first"


@pytest.mark.parametrize(("kind", "nth"), [("unlink", 1), ("sync_directory", 2)])
def test_what_goes_wrong_with_older_ones_does_not_undo_a_snapshot(kind: str, nth: int) -> None:
    """The new one is durable by then; were the caller told that it is not kept, it would name one that is gone."""
    disk, storage = fresh_storage()
    for index in (3, 6):
        take_snapshot(storage, index, 1)
    disk.fail(kind, nth)
    take_snapshot(storage, 9, 1)
    assert storage.read_snapshot(9, 0, 1000) == content_of(9)
    assert storage.read_snapshot(6, 0, 1000) == content_of(6)
    with pytest.raises(FileNotFoundError):
        storage.read_snapshot(3, 0, 10)


def test_every_flipped_bit_is_detected() -> None:
    disk, storage = fresh_storage()
    put(storage, *(appended(index, index, 1) for index in range(1, 4)))
    take_snapshot(storage, 1, 1)
    take_snapshot(storage, 3, 1)
    path = f"{PATH}/snapshot-{3:020d}"
    for offset in range(disk.size(path)):
        survivor = next(disk.crash_states())
        survivor.flip(path, offset, 0x10)
        recovered = open_storage(survivor).recover()
        assert recovered.snapshot == meta_of(1, 1), f"a flip at {offset} went unseen"
        assert recovered.batches == [batch(2, 1), batch(3, 1)]
        assert recovered.damage == ""
        assert len(recovered.notes) == 1


@pytest.mark.parametrize("size", [0, 10, 40, 200])
def test_a_short_file_is_detected(size: int) -> None:
    disk, storage = fresh_storage()
    put(storage, appended(1, 1, 1))
    take_snapshot(storage, 1, 1)
    path = f"{PATH}/snapshot-{1:020d}"
    data = disk.read(path, 0, size)
    disk.unlink(path)
    disk.write(disk.create(path, 0), 0, [data])
    disk.restart()
    recovered = open_storage(disk).recover()
    assert (recovered.snapshot, recovered.batches) == (None, [batch(1, 1)])


def test_a_renamed_file_is_not_believed() -> None:
    disk, storage = fresh_storage()
    put(storage, *(appended(index, index, 1) for index in range(1, 4)))
    take_snapshot(storage, 1, 1)
    disk.rename(f"{PATH}/snapshot-{1:020d}", f"{PATH}/snapshot-{3:020d}")
    disk.restart()
    recovered = open_storage(disk).recover()
    assert (recovered.snapshot, len(recovered.batches)) == (None, 3)


def test_snapshots_from_other_threads_while_the_log_is_written() -> None:
    """Two threads take and read snapshots of rising indexes; the log goes on in this one."""
    disk = MemoryDisk()
    storage = open_storage(disk, segment_bytes=50_000)
    storage.recover()
    errors: list[BaseException] = []

    def snapshots(offset: int) -> None:
        try:
            for index in range(1 + offset, 41, 2):
                try:
                    take_snapshot(storage, index, 1, size=2000)
                    assert storage.read_snapshot(index, 0, 5000) == content_of(index, 2000)
                except FileNotFoundError:
                    continue  # Two newer ones were saved meanwhile.
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=snapshots, args=(offset,)) for offset in (0, 1)]
    for thread in threads:
        thread.start()
    for index in range(1, 301):
        put(storage, appended(index, index, 1))
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert storage.failure is None
    recovered = open_storage(next(disk.crash_states()), segment_bytes=50_000).recover()
    assert recovered.snapshot == meta_of(40, 1, 2000)
    assert recovered.batches[-1].last == 300


def test_descriptions_round_trip_and_nonsense_is_refused() -> None:
    meta = meta_of(3, 1)
    encoded = encode_meta(meta)
    assert decode_meta(encoded) == meta
    generator = random.Random(3)
    for _ in range(2000):
        mutated = bytearray(encoded)
        for _ in range(generator.randrange(1, 4)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        try:
            decoded = decode_meta(bytes(mutated[: generator.randrange(1, len(mutated) + 1)]))
        except ValueError:
            continue
        assert type(decoded.index) is int
        assert type(decoded.sha256) is bytes


def test_volatile_storage_is_durable_at_once_and_keeps_nothing() -> None:
    storage = VolatileStorage()
    assert storage.recover().batches == []
    storage.write(Persist(1, HardState(1, "a"), batches=[batch(1, 1)]))
    storage.sync()
    assert storage.durable() == 1
    assert storage.failure is None
    storage.compact(1)
    with pytest.raises(AssertionError):
        storage.write(appended(2, 3, 1))
    storage.close()
