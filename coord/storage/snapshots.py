"""Snapshot files: written under a temporary name, described by their own footer, verified before they are used.

What must not live here: what the bytes mean (`coord.machine`), or when to take a snapshot.

Layout, little endian::

    magic 8 | format version 2 | zero 6 | content | meta (msgpack) | meta length 4 | crc32 of meta 4 | magic 8

State and the index it is of are one file, and so can never disagree (trap 44). The two newest are kept: should the
newest be unreadable, the older one and the log still give everything. An unreadable one is set aside, never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import struct
import threading
import zlib

import msgpack

from coord.errors import StorageError
from coord.raft.membership import read_membership
from coord.raft.messages import SnapshotMeta
from coord.storage.files import Files
from coord.storage.wal import Reserve, is_full

MAGIC = b"coordsnp"
END_MAGIC = b"coordend"
FORMAT_VERSION = 1
PREFIX = "snapshot-"
KEPT = 2
#: One cut here and one pulled from a peer.
UNFINISHED_MAX = 2
META_BYTES_MAX = 16 << 20
_HEADER = struct.Struct("<8sH6x")
_TRAILER = struct.Struct("<II8s")
_READ_BYTES = 1 << 20


class DamagedSnapshot(ValueError):
    """This file is not a whole, undamaged snapshot."""


def snapshot_name(index: int) -> str:
    return f"{PREFIX}{index:020d}"


def is_snapshot_name(name: str) -> bool:
    digits = name.removeprefix(PREFIX)
    return name.startswith(PREFIX) and len(digits) == 20 and digits.isdecimal()


def encode_meta(meta: SnapshotMeta) -> bytes:
    membership = meta.membership.encode()
    row = [meta.index, meta.term, meta.time, membership, meta.membership_index, meta.size, meta.sha256, meta.state_hash]
    encoded: bytes = msgpack.packb([FORMAT_VERSION, *row])
    return encoded


def decode_meta(encoded: bytes) -> SnapshotMeta:
    """The reverse; DamagedSnapshot for anything else."""
    try:
        version, index, term, time, membership, membership_index, size, sha256, state_hash = msgpack.unpackb(encoded)
        if version != FORMAT_VERSION:
            raise DamagedSnapshot(f"its description has format {version!r}, unknown to this version of coord")
        numbers = (index, term, time, membership_index, size, state_hash)
        if not all(type(number) is int and number >= 0 for number in numbers) or type(sha256) is not bytes:
            raise DamagedSnapshot("its description holds values of wrong types")
        members = read_membership(membership)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DamagedSnapshot(f"its description cannot be read: {error}") from error
    return SnapshotMeta(index, term, time, members, membership_index, size, sha256, state_hash)


def read_meta(files: Files, path: str) -> SnapshotMeta:
    """Read a snapshot's description; DamagedSnapshot if it does not check out. The content is not looked at."""
    total = files.size(path)
    if total < _HEADER.size + _TRAILER.size:
        raise DamagedSnapshot(f"it ends after {total} bytes")
    header = files.read(path, 0, _HEADER.size)
    if header != _HEADER.pack(MAGIC, FORMAT_VERSION):
        raise DamagedSnapshot("it does not begin as a snapshot of a format known to this version of coord")
    length, crc, magic = _TRAILER.unpack(files.read(path, total - _TRAILER.size, _TRAILER.size))
    room = total - _HEADER.size - _TRAILER.size
    if magic != END_MAGIC or length > min(room, META_BYTES_MAX):
        raise DamagedSnapshot("it does not end as a snapshot")
    encoded = files.read(path, total - _TRAILER.size - length, length)
    if zlib.crc32(encoded) != crc:
        raise DamagedSnapshot("its description's checksum does not match")
    meta = decode_meta(encoded)
    if meta.size != room - length:
        raise DamagedSnapshot(f"it holds {room - length} bytes in place of {meta.size}")
    return meta


def verify_content(files: Files, path: str, meta: SnapshotMeta) -> None:
    """DamagedSnapshot unless the content has the sha256 its description gives."""
    if _hash(files, path, meta.size) != meta.sha256:
        raise DamagedSnapshot("its content does not have the sha256 it was written with")


def _hash(files: Files, path: str, size: int) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, size, _READ_BYTES):
        digest.update(files.read(path, _HEADER.size + offset, min(_READ_BYTES, size - offset)))
    return digest.digest()


class SnapshotFile:
    """An unfinished snapshot (`coord.storage.base.SnapshotSink`). Any thread; `abandon` may come from another."""

    def __init__(self, files: Files, path: str, reserve: Reserve, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self._files = files
        self._reserve = reserve
        self._path = path
        self._lock = threading.Lock()
        self._size = 0
        # Content up to here went through `_digest`, in order; -1 once bytes came out of order.
        self._hashed = 0
        self._digest = hashlib.sha256()
        self._finished: tuple[int, bytes] | None = None
        self._handle: int | None = files.create(self._path, 0)

    def write_at(self, offset: int, data: bytes) -> None:
        with self._lock:
            handle = self._open_handle()
            assert self._finished is None
            assert offset >= 0
            self._write(handle, _HEADER.size + offset, data)
            if offset == self._hashed:
                self._digest.update(data)
                self._hashed += len(data)
            else:
                self._hashed = -1
            self._size = max(self._size, offset + len(data))

    def finish(self) -> tuple[int, bytes]:
        with self._lock:
            handle = self._open_handle()
            if self._finished is None:
                self._write(handle, 0, _HEADER.pack(MAGIC, FORMAT_VERSION))
                self._files.sync(handle)
                in_order = self._hashed == self._size
                digest = self._digest.digest() if in_order else _hash(self._files, self._path, self._size)
                self._finished = (self._size, digest)
            return self._finished

    def abandon(self) -> None:
        with self._lock:
            if self._handle is not None:
                handle, self._handle = self._handle, None
                self._files.close(handle)
                self._files.unlink(self._path)

    def describe(self, meta: SnapshotMeta) -> str:
        """Add the footer, make the file whole and durable; return its path, still a temporary one."""
        with self._lock:
            handle = self._open_handle()
            if (meta.size, meta.sha256) != self._finished:
                raise StorageError(
                    f"snapshot {meta.index} was to have {meta.size} bytes and sha256 {meta.sha256.hex()}, but what was "
                    f"written is {self._finished}; nothing was kept; take or pull it again"
                )
            encoded = encode_meta(meta)
            footer = encoded + _TRAILER.pack(len(encoded), zlib.crc32(encoded), END_MAGIC)
            self._write(handle, _HEADER.size + meta.size, footer)
            self._files.sync(handle)
            self._handle = None
            self._files.close(handle)
            return self._path

    def release_in_child(self) -> None:
        """In a forked child: close the file, which the parent goes on with. Takes no lock: its owner is not here."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._files.close(handle)

    def _open_handle(self) -> int:
        if self._handle is None:
            raise StorageError(
                f"unfinished snapshot {self.index} was abandoned, most likely for a newer one; nothing was kept of it; "
                "begin again if it is still wanted"
            )
        return self._handle

    def _write(self, handle: int, offset: int, data: bytes) -> None:
        """A full disk costs the reserve first: a snapshot is what lets the log shrink."""
        try:
            self._files.write(handle, offset, [data])
        except OSError as error:
            if not is_full(error) or not self._reserve.give_up():
                raise
            self._files.write(handle, offset, [data])


class SnapshotStore:
    """The snapshots of one data directory. Thread-safe."""

    def __init__(self, files: Files, directory: str, reserve: Reserve) -> None:
        self._files = files
        self._directory = directory
        self._reserve = reserve
        # `_saving` is held over slow syncs, so that `begin` and `read`, which the driver calls, never wait for one.
        self._saving = threading.Lock()
        self._lock = threading.Lock()
        #: By index, oldest first; at most `KEPT`. Replaced as a whole, so it can be read without a lock.
        self._kept: dict[int, SnapshotMeta] = {}
        self._unfinished: dict[int, SnapshotFile] = {}
        self._begun = 0

    def load(self) -> tuple[SnapshotMeta | None, dict[str, str]]:
        """Read what is there; return the newest whole snapshot, and why each unreadable file is. Changes nothing."""
        broken: dict[str, str] = {}
        found: dict[int, SnapshotMeta] = {}
        newest: SnapshotMeta | None = None
        for name in reversed(list(filter(is_snapshot_name, self._files.names(self._directory)))):
            path = f"{self._directory}/{name}"
            try:
                meta = read_meta(self._files, path)
                if snapshot_name(meta.index) != name:
                    raise DamagedSnapshot(f"it is of index {meta.index}")
                if newest is None:
                    verify_content(self._files, path, meta)
                    newest = meta
            except DamagedSnapshot as error:
                broken[name] = str(error)
            else:
                found[meta.index] = meta
        self._kept = dict(sorted(found.items())[-KEPT:])
        return newest, broken

    def set_aside(self, name: str) -> None:
        """Keep an unreadable file out of the way, under another name, for whoever wants to look into it."""
        self._files.rename(f"{self._directory}/{name}", f"{self._directory}/{name}.broken")
        self._files.sync_directory(self._directory)

    def begin(self, index: int, term: int) -> SnapshotFile:
        with self._lock:
            abandoned = [self._unfinished.pop(index)] if index in self._unfinished else []
            while len(self._unfinished) >= UNFINISHED_MAX:
                abandoned.append(self._unfinished.pop(next(iter(self._unfinished))))
            for snapshot in abandoned:
                snapshot.abandon()
            self._begun += 1
            path = f"{self._directory}/{snapshot_name(index)}.{self._begun}.tmp"
            begun = SnapshotFile(self._files, path, self._reserve, index, term)
            self._unfinished[index] = begun
            return begun

    def save(self, meta: SnapshotMeta) -> None:
        with self._saving:
            with self._lock:
                snapshot = self._unfinished.pop(meta.index, None)
            if snapshot is None or snapshot.term != meta.term:
                raise StorageError(
                    f"there is no finished snapshot of index {meta.index}, term {meta.term}; it may have been replaced "
                    "by a newer one; nothing was changed"
                )
            try:
                temporary = snapshot.describe(meta)
            except OSError:
                snapshot.abandon()
                raise
            self._files.rename(temporary, f"{self._directory}/{snapshot_name(meta.index)}")
            self._files.sync_directory(self._directory)
            kept = dict(sorted({**self._kept, meta.index: meta}.items()))
            surplus = [kept.pop(index) for index in list(kept)[:-KEPT]]
            # First out of the table, so that nobody is sent to a file that is going away.
            self._kept = kept
            # The new one is kept, whatever becomes of the old: an error here must not make the caller think otherwise.
            with contextlib.suppress(OSError):
                for old in surplus:
                    self._files.unlink(f"{self._directory}/{snapshot_name(old.index)}")
                if surplus:
                    self._files.sync_directory(self._directory)

    def read(self, index: int, offset: int, size: int) -> bytes:
        meta = self._kept.get(index)
        if meta is None:
            raise FileNotFoundError(errno.ENOENT, "this snapshot is not kept, or no longer", snapshot_name(index))
        size = max(0, min(size, meta.size - offset))
        return self._files.read(f"{self._directory}/{snapshot_name(index)}", _HEADER.size + offset, size)

    @property
    def log_needed_after(self) -> int:
        """The log may not begin after this index: that of the older of two kept snapshots, 0 while there is but one."""
        kept = self._kept
        return next(iter(kept)) if len(kept) >= KEPT else 0

    def abandon_all(self) -> None:
        with self._lock:
            unfinished, self._unfinished = self._unfinished, {}
            for snapshot in unfinished.values():
                snapshot.abandon()

    def release_in_child(self) -> None:
        for snapshot in self._unfinished.values():
            snapshot.release_in_child()
