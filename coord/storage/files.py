"""The one narrow door to the operating system's files: `Files`, and the real one, `OsFiles`.

Everything the storage does to a disk goes through these twelve calls, so that a simulated disk
(`coord.storage.memory`) can take its place in every test. What must not live here: file formats, or policy about
errors; every call raises plain OSError.

There is no way to open an old file for writing: what was once written is only ever read, renamed or removed.
No mmap: a full disk would then be a signal that ends the host process, not an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Protocol

#: The most buffers one pwritev takes (IOV_MAX on Linux).
_BUFFERS_MAX = 1024
#: Up to here copying the buffers together is cheaper than describing them to the kernel one by one.
_JOIN_BYTES_MAX = 64 << 10
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Files(Protocol):
    """A disk. Handles are small integers; offsets and sizes are bytes. Every call may raise OSError."""

    def make_directory(self, path: str) -> None:
        """Make `path` and its missing parents, private to this user and durable. Nothing if it is there already."""
        ...

    def names(self, path: str) -> list[str]:
        """What the directory holds, sorted."""
        ...

    def size(self, path: str) -> int: ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        ...

    def lock(self, path: str, content: bytes) -> int:
        """Take the file's lock, making the file if need be, and put `content` into it; `close` gives it back.
        BlockingIOError: somebody else has it."""
        ...

    def create(self, path: str, size: int) -> int:
        """Make a new file of `size` zero bytes with room for them set aside. FileExistsError if it is there."""
        ...

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all of `buffers`, one after the other, from `offset` on. On an error any part may have been written."""
        ...

    def sync(self, handle: int) -> None:
        """Make the file's bytes and size durable; not its name, see `sync_directory`."""
        ...

    def close(self, handle: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Replaces `new` in one step."""
        ...

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None:
        """Make what was created, renamed and unlinked in the directory durable (trap 38)."""
        ...


class OsFiles:
    """The real disk."""

    def __init__(self) -> None:
        # Which handles are locks, and which process took them; see `close`.
        self._lock_owners: dict[int, int] = {}

    def make_directory(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
            return
        except FileNotFoundError:
            parent = os.path.dirname(os.path.abspath(path))
            self.make_directory(parent)
            os.mkdir(path, 0o700)
        self.sync_directory(os.path.dirname(os.path.abspath(path)))

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def size(self, path: str) -> int:
        return os.stat(path, follow_symlinks=False).st_size

    def read(self, path: str, offset: int, size: int) -> bytes:
        descriptor = os.open(path, _READ)
        try:
            pieces = []
            while size > 0:
                piece = os.pread(descriptor, size, offset)
                if not piece:
                    break
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(descriptor)

    def lock(self, path: str, content: bytes) -> int:
        descriptor = os.open(path, _LOCK, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock_owners[descriptor] = os.getpid()
        return descriptor

    def create(self, path: str, size: int) -> int:
        descriptor = os.open(path, _CREATE, 0o600)
        try:
            if size:
                _allocate(descriptor, size)
        except BaseException:
            os.close(descriptor)
            os.unlink(path)
            raise
        return descriptor

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        total = sum(map(len, buffers))
        if total <= _JOIN_BYTES_MAX:
            _write_all(handle, offset, [b"".join(buffers)])
            return
        for start in range(0, len(buffers), _BUFFERS_MAX):
            some = buffers[start : start + _BUFFERS_MAX]
            _write_all(handle, offset, some)
            offset += sum(map(len, some))

    def sync(self, handle: int) -> None:
        _sync_data(handle)

    def close(self, handle: int) -> None:
        # The lock belongs to what the parent opened, and a forked child shares that. So the owner unlocks, not merely
        # closes, or a child that lives on would keep the directory locked; and a child merely closes (trap 49).
        if self._lock_owners.pop(handle, None) == os.getpid():
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
    """A write may be cut short by a signal or a nearly full disk; go on until it is whole or fails."""
    while buffers:
        written = os.pwritev(descriptor, buffers, offset)
        if written == sum(map(len, buffers)):
            return
        if written == 0:
            raise OSError(errno.EIO, "the disk takes no more bytes and gives no reason")
        offset += written
        buffers = [memoryview(b"".join(buffers))[written:]]


def _allocate(descriptor: int, size: int) -> None:
    """Set room aside, so that a later sync has no size to flush and a full disk shows now."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        # Some file systems cannot (and macOS has no such call): then the file has holes, and a full disk shows later.
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)


def _sync_data(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):
        # macOS: fsync alone leaves the bytes in the drive's own cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)
