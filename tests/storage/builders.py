"""What the storage tests build again and again: batches, Persists, snapshots, a storage over a disk in memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

from coord.raft.batch import Batch, encode_entry, make_batch
from coord.raft.membership import membership_of
from coord.raft.messages import HardState, Persist, SnapshotMeta
from coord.storage.base import Storage
from coord.storage.directory import DataDirectory, open_directory
from coord.storage.disk import DiskStorage
from coord.storage.files import Files
from coord.storage.memory import MemoryDisk

PATH = "/data"
MEMBERSHIP = membership_of({"a": "ipc:///tmp/a", "b": "ipc:///tmp/b", "c": "ipc:///tmp/c"})


def counter_mint() -> Callable[[], int]:
    """Distinct non-zero numbers that look nothing like record bytes, the same in every run."""
    count = itertools.count(1)
    return lambda: int.from_bytes(hashlib.sha256(b"%d" % next(count)).digest()[:8], "little") | 1


def batch(first: int, term: int, *, count: int = 1, size: int = 20) -> Batch:
    payloads = [hashlib.sha256(b"%d of %d" % (first + at, term)).digest() * (size // 32 + 1) for at in range(count)]
    return make_batch(0, term, first, 1000 * first, [encode_entry(payload[:size]) for payload in payloads], count)


def appended(seq: int, first: int, term: int, **options: int) -> Persist:
    return Persist(seq, batches=[batch(first, term, **options)])


def open_data(files: Files, path: str = PATH, mint: Callable[[], int] | None = None) -> DataDirectory:
    return open_directory(path, group="g", name="a", fingerprint=77, mint=mint or counter_mint(), files=files)


def open_storage(files: Files, path: str = PATH, *, segment_bytes: int = 600, fsync: str = "inline") -> DiskStorage:
    mint = counter_mint()
    directory = open_data(files, path, mint)
    return DiskStorage(directory, mint=mint, fsync=fsync, segment_bytes=segment_bytes)


def fresh_storage(segment_bytes: int = 600) -> tuple[MemoryDisk, DiskStorage]:
    disk = MemoryDisk()
    storage = open_storage(disk, segment_bytes=segment_bytes)
    storage.recover()
    return disk, storage


def put(storage: Storage, *persists: Persist) -> None:
    """Write and sync as one group."""
    for persist in persists:
        storage.write(persist)
    storage.sync()


def content_of(index: int, size: int = 300) -> bytes:
    return (hashlib.sha256(b"state %d" % index).digest() * (size // 32 + 1))[:size]


def meta_of(index: int, term: int, size: int = 300) -> SnapshotMeta:
    sha256 = hashlib.sha256(content_of(index, size)).digest()
    return SnapshotMeta(index, term, 1000 * index, MEMBERSHIP, 0, size, sha256, index * 31)


def take_snapshot(storage: Storage, index: int, term: int, size: int = 300) -> SnapshotMeta:
    """Write a snapshot in two pieces, the later one first, and save it."""
    sink = storage.snapshot_writer(index, term)
    content, half = content_of(index, size), size // 2
    sink.write_at(half, content[half:])
    sink.write_at(0, content[:half])
    meta = meta_of(index, term, size)
    assert sink.finish() == (meta.size, meta.sha256)
    storage.save_snapshot(meta)
    return meta


def voted(seq: int, term: int, vote: str = "") -> Persist:
    return Persist(seq, hard_state=HardState(term, vote))
