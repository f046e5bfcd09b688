"""A disk in memory that forgets as a real one may: what was not synced can be lost, torn or reordered by a crash.

It fulfils `coord.storage.files.Files`, draws nothing at random itself and reads no clock, so that a simulation or the
exhaustive crash-point runner decides everything. What must not live here: knowledge of any file format.

The model. A write changes what readers see at once and joins a list of changes not yet on disk. `sync` makes the
changes of one file's bytes and size durable, `sync_directory` those of one directory's names. A crash keeps some of
the rest. A sync that fails drops the changes of that file from the list while readers still see them: that is what
Linux does, and why a sync must never be tried again (trap 37).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Protocol

SECTOR_BYTES = 512
#: Where the exhaustive enumeration tears a write: every so many bytes, up to `_TORN_BYTES_MAX`, and at its end.
_TORN_STEP = 64
_TORN_BYTES_MAX = 4096
#: Up to so many sectors of one write, `crash_subsets` takes any of them away.
_SECTORS_MAX = 4

#: What can be counted, failed and intercepted.
KINDS = (
    "make_directory",
    "names",
    "size",
    "read",
    "lock",
    "create",
    "write",
    "sync",
    "close",
    "rename",
    "unlink",
    "sync_directory",
)


class Chooser(Protocol):
    """The part of `random.Random` a crash needs."""

    def randrange(self, stop: int, /) -> int: ...


class _File:
    """Bytes as readers see them and as they are on disk. Sizes are kept apart: bytes never written are zero."""

    __slots__ = ("data", "durable_data", "durable_size", "size")

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self.durable_data = bytearray()
        self.durable_size = 0

    def copy_durable(self) -> _File:
        copied = _File()
        copied.data = bytearray(self.durable_data)
        copied.durable_data = bytearray(self.durable_data)
        copied.size = copied.durable_size = self.durable_size
        return copied


class _Write:
    __slots__ = ("data", "file", "offset")

    def __init__(self, file: _File, offset: int, data: bytes) -> None:
        self.file, self.offset, self.data = file, offset, data

    def apply(self, file: _File) -> None:
        _put(file.durable_data, self.offset, self.data)
        file.durable_size = max(file.durable_size, self.offset + len(self.data))


class _Resize:
    __slots__ = ("file", "size")

    def __init__(self, file: _File, size: int) -> None:
        self.file, self.size = file, size

    def apply(self, file: _File) -> None:
        file.durable_size = self.size


class _Extend:
    """What a write leaves that made the file longer, when only the new size reached the disk and not the bytes."""

    __slots__ = ("file", "size")

    def __init__(self, file: _File, size: int) -> None:
        self.file, self.size = file, size

    def apply(self, file: _File) -> None:
        file.durable_size = max(file.durable_size, self.size)


class NameChange:
    """Any change of a directory's names, as one step: created, renamed and unlinked alike."""

    __slots__ = ("directory", "entries")

    def __init__(self, directory: str, entries: dict[str, _File | None]) -> None:
        self.directory, self.entries = directory, entries

    def apply(self, names: dict[str, _File]) -> None:
        for name, file in self.entries.items():
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file


_Change = _Write | _Resize | NameChange
#: What of them a crash may leave.
_Kept = _Change | _Extend


class MemoryDisk:
    """A disk. See the module for what it forgets."""

    def __init__(self, capacity: int | None = None) -> None:
        #: Bytes the disk holds; beyond it `create` and `write` raise ENOSPC. None: no bound.
        self.capacity = capacity
        #: Called with the kind of each operation before it is done.
        self.before: Callable[[str], None] | None = None
        #: How often each kind of operation was called.
        self.calls: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._names: dict[str, dict[str, _File]] = {}
        self._durable_names: dict[str, dict[str, _File]] = {}
        self._pending: list[_Change] = []
        self._handles: dict[int, _File] = {}
        self._locks: dict[int, str] = {}
        self._next_handle = 3
        self._failures: dict[tuple[str, int], int] = {}

    # -- Files --------------------------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        self._begin("make_directory")
        directory, name = _split(path)
        if name in self._names.get(directory, {}):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._names.setdefault(path, {})
        self._durable_names.setdefault(path, {})

    def names(self, path: str) -> list[str]:
        self._begin("names")
        return sorted(self._directory(path))

    def size(self, path: str) -> int:
        self._begin("size")
        return self._file(path).size

    def read(self, path: str, offset: int, size: int) -> bytes:
        self._begin("read")
        file = self._file(path)
        end = min(offset + size, file.size)
        if end <= offset:
            return b""
        return bytes(file.data[offset:end]).ljust(end - offset, b"\0")

    def lock(self, path: str, content: bytes) -> int:
        self._begin("lock")
        if path in self._locks.values():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        directory, name = _split(path)
        names = self._directory(directory)
        if name not in names:
            self._change_names(directory, {name: _File()})
        file = names[name]
        file.data[:] = content
        file.size = len(content)
        handle = self._new_handle(file)
        self._locks[handle] = path
        return handle

    def create(self, path: str, size: int) -> int:
        self._begin("create")
        directory, name = _split(path)
        if name in self._directory(directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._take_room(size)
        file = _File()
        self._change_names(directory, {name: file})
        if size:
            file.size = size
            self._pending.append(_Resize(file, size))
        return self._new_handle(file)

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        file = self._opened(handle)
        data = b"".join(buffers)
        try:
            self._begin("write")
            self._take_room(offset + len(data) - file.size)
        except OSError:
            # What a failed write leaves behind is anybody's guess; half of it is the least convenient.
            self._write(file, offset, data[: len(data) // 2])
            raise
        self._write(file, offset, data)

    def sync(self, handle: int) -> None:
        file = self._opened(handle)
        try:
            self._begin("sync")
        except OSError:
            self._take_pending(file)
            raise
        for change in self._take_pending(file):
            change.apply(file)

    def close(self, handle: int) -> None:
        self._begin("close")
        self._opened(handle)
        del self._handles[handle]
        self._locks.pop(handle, None)

    def rename(self, old: str, new: str) -> None:
        self._begin("rename")
        file = self._file(old)
        (directory, old_name), (new_directory, new_name) = _split(old), _split(new)
        assert directory == new_directory, "a rename stays inside its directory"
        self._change_names(directory, {old_name: None, new_name: file})

    def unlink(self, path: str) -> None:
        self._begin("unlink")
        self._file(path)
        directory, name = _split(path)
        self._change_names(directory, {name: None})

    def sync_directory(self, path: str) -> None:
        self._begin("sync_directory")
        durable = self._durable_names.setdefault(path, {})
        rest: list[_Change] = []
        for change in self._pending:
            if isinstance(change, NameChange) and change.directory == path:
                change.apply(durable)
            else:
                rest.append(change)
        self._pending = rest

    # -- What a test or a simulation does to it -----------------------------------------------------------------------

    def fail(self, kind: str, nth: int, error: int = errno.EIO) -> None:
        """Make the `nth` call of `kind` from now on (1: the next) raise OSError(`error`)."""
        assert kind in KINDS
        assert nth > 0
        self._failures[kind, self.calls[kind] + nth] = error

    def flip(self, path: str, offset: int, mask: int = 0x01) -> None:
        """Rot: change bits of one byte, for readers and on disk alike."""
        file = self._file(path)
        byte = (file.data[offset] if offset < len(file.data) else 0) ^ mask
        _put(file.data, offset, bytes((byte,)))
        _put(file.durable_data, offset, bytes((byte,)))

    def restart(self) -> None:
        """The process died and the machine lives: nothing is lost, handles and locks are gone."""
        self._handles.clear()
        self._locks.clear()
        self._failures.clear()
        self.before = None

    @property
    def unsynced(self) -> int:
        """How many changes a crash now may lose."""
        return len(self._pending)

    def crash(self, chooser: Chooser, *, subset: bool = False) -> MemoryDisk:
        """The disk as a power cut now may leave it: a prefix of the unsynced changes, or with `subset` any of them,
        and perhaps part of one more write: a prefix of its bytes, or some of its sectors."""
        pending = self._pending
        if subset:
            kept = [change for change in pending if chooser.randrange(2)]
            return self._survivor(kept)
        count = chooser.randrange(len(pending) + 1)
        kept = pending[:count]
        if count < len(pending):
            torn = pending[count]
            if isinstance(torn, _Write):
                kept.extend(_torn(torn, chooser))
        return self._survivor(kept)

    def crash_states(self) -> Iterator[MemoryDisk]:
        """Every disk the exhaustive runner looks at: each prefix of the unsynced changes; each with one left out;
        each prefix with a torn write after it, or that write without its first sector; names without bytes and
        bytes without names."""
        pending = self._pending
        for count in range(len(pending) + 1):
            yield self._survivor(pending[:count])
        for omitted in range(len(pending) - 1):
            yield self._survivor(pending[:omitted] + pending[omitted + 1 :])
        for count, change in enumerate(pending):
            if not isinstance(change, _Write):
                continue
            for cut in range(_TORN_STEP, min(len(change.data), _TORN_BYTES_MAX), _TORN_STEP):
                yield self._survivor([*pending[:count], _Write(change.file, change.offset, change.data[:cut])])
            edge = SECTOR_BYTES - change.offset % SECTOR_BYTES
            if edge < len(change.data):
                late = _Write(change.file, change.offset + edge, change.data[edge:])
                yield self._survivor([*pending[:count], late])
        yield self._survivor([change for change in pending if isinstance(change, NameChange)])
        yield self._survivor([change for change in pending if not isinstance(change, NameChange)])

    def crash_subsets(self, *, whole_up_to: int = 10, torn_step: int = _TORN_STEP) -> Iterator[MemoryDisk]:
        """Every disk a power cut now may leave, as far as that can be enumerated; some of them more than once.

        All subsets of the unsynced changes while there are at most `whole_up_to`; of more, each prefix, each with one
        or two left out, and each single one. Then each write torn, with everything before it there and nothing after,
        and with everything else there: cut every `torn_step` bytes and at sector edges, with some of its sectors
        missing, and with its size there in place of its bytes.
        """
        pending = self._pending
        for kept in _subsets(pending, whole_up_to):
            yield self._survivor(kept)
        for at, change in enumerate(pending):
            if not isinstance(change, _Write):
                continue
            for torn in _every_tear(change, torn_step):
                yield self._survivor([*pending[:at], *torn])
                if at + 1 < len(pending):
                    yield self._survivor([*pending[:at], *torn, *pending[at + 1 :]])

    def cut(self, path: str, size: int) -> None:
        """Rot: the file ends after `size` bytes, for readers and on disk alike."""
        file = self._file(path)
        del file.data[size:], file.durable_data[size:]
        file.size = min(file.size, size)
        file.durable_size = min(file.durable_size, size)

    def fingerprint(self) -> bytes:
        """Equal for two disks with the same names, sizes and bytes, as readers see them."""
        digest = hashlib.blake2b(digest_size=16)
        for directory, names in sorted(self._names.items()):
            for name, file in sorted(names.items()):
                # Zeros at the end of a file are the same whether they were written or not.
                data = bytes(file.data).rstrip(b"\0")
                digest.update(f"{directory}/{name}\0{file.size}\0{len(data)}\0".encode())
                digest.update(data)
        return digest.digest()

    # ------------------------------------------------------------------------------------------------------------------

    def _begin(self, kind: str) -> None:
        if self.before is not None:
            self.before(kind)
        self.calls[kind] += 1
        error = self._failures.pop((kind, self.calls[kind]), None)
        if error is not None:
            raise OSError(error, os.strerror(error))

    def _directory(self, path: str) -> dict[str, _File]:
        try:
            return self._names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _file(self, path: str) -> _File:
        directory, name = _split(path)
        try:
            return self._directory(directory)[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _opened(self, handle: int) -> _File:
        try:
            return self._handles[handle]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def _new_handle(self, file: _File) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = file
        return handle

    def _take_room(self, wanted: int) -> None:
        if self.capacity is None or wanted <= 0:
            return
        held = {id(file): file.size for names in self._names.values() for file in names.values()}
        if sum(held.values()) + wanted > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write(self, file: _File, offset: int, data: bytes) -> None:
        if not data:
            return
        _put(file.data, offset, data)
        file.size = max(file.size, offset + len(data))
        self._pending.append(_Write(file, offset, data))

    def _take_pending(self, file: _File) -> list[_Write | _Resize]:
        mine: list[_Write | _Resize] = []
        rest: list[_Change] = []
        for change in self._pending:
            if not isinstance(change, NameChange) and change.file is file:
                mine.append(change)
            else:
                rest.append(change)
        self._pending = rest
        return mine

    def _change_names(self, directory: str, entries: dict[str, _File | None]) -> None:
        change = NameChange(directory, entries)
        change.apply(self._directory(directory))
        self._pending.append(change)

    def _survivor(self, kept: Sequence[_Kept]) -> MemoryDisk:
        """A new disk that holds what is durable here and `kept`, all of it durable."""
        names = {directory: dict(entries) for directory, entries in self._durable_names.items()}
        for change in kept:
            if isinstance(change, NameChange):
                change.apply(names.setdefault(change.directory, {}))
        copies: dict[int, _File] = {}
        for entries in names.values():
            for name, file in entries.items():
                entries[name] = copies.setdefault(id(file), file.copy_durable())
        for change in kept:
            if not isinstance(change, NameChange) and id(change.file) in copies:
                change.apply(copies[id(change.file)])
        for file in copies.values():
            file.data[:] = file.durable_data
            file.size = file.durable_size
        disk = type(self)(self.capacity)
        disk._names = names
        disk._durable_names = {directory: dict(entries) for directory, entries in names.items()}
        return disk


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rpartition("/")
    return directory, name


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _torn(write: _Write, chooser: Chooser) -> list[_Change]:
    """Part of a write: a prefix, or any of its sectors, in which case a later one may be there and an earlier not."""
    if chooser.randrange(2):
        return [_Write(write.file, write.offset, write.data[: chooser.randrange(len(write.data) + 1)])]
    kept: list[_Change] = []
    start, end = write.offset, write.offset + len(write.data)
    while start < end:
        stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        if chooser.randrange(2):
            kept.append(_Write(write.file, start, write.data[start - write.offset : stop - write.offset]))
        start = stop
    return kept


def _subsets(pending: Sequence[_Change], whole_up_to: int) -> Iterator[list[_Change]]:
    count = len(pending)
    if count <= whole_up_to:
        for bits in range(1 << count):
            yield [change for at, change in enumerate(pending) if bits >> at & 1]
        return
    for length in range(count + 1):
        yield list(pending[:length])
    for change in pending:
        yield [change]
    for size in (1, 2):
        for omitted in combinations(range(count), size):
            yield [change for at, change in enumerate(pending) if at not in omitted]


def _every_tear(write: _Write, step: int) -> Iterator[list[_Kept]]:
    """What one write may leave, between nothing and all of it."""
    file, start, data = write.file, write.offset, write.data
    end = start + len(data)
    edges = list(range(start - start % SECTOR_BYTES + SECTOR_BYTES, end, SECTOR_BYTES))
    for cut in sorted({*range(start + 1, end, step), *edges, end - 1} - {start}):
        prefix = _Write(file, start, data[: cut - start])
        yield [prefix]
        yield [prefix, _Extend(file, end)]
    yield [_Extend(file, end)]
    bounds = [start, *edges, end]
    sectors: list[_Kept] = [_Write(file, low, data[low - start : high - start]) for low, high in pairwise(bounds)]
    missing = range(1, len(sectors)) if len(sectors) <= _SECTORS_MAX else (1,)
    for size in missing:
        for omitted in combinations(range(len(sectors)), size):
            yield [sector for at, sector in enumerate(sectors) if at not in omitted]
