"""A disk that fails when told to, and what a power cut leaves of it.

`FaultyDisk` stands between a member and the real files. It also keeps a journal, outside the member's directory, of
what was written and what was synced: after the process was killed, `cut_power` takes back what no sync had covered,
which the page cache would otherwise still show. What must not live here: processes, groups.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coord.storage.files import OsFiles

#: What a disk may do. "full": no more bytes. "torn": half of a write happens, then it fails. "rotten": a sync fails.
#: "slow": a sync takes longer. "hanging": a sync does not return until the disk does something else again.
MODES = ("well", "full", "torn", "rotten", "slow", "hanging")


class FaultyDisk(OsFiles):
    """The real disk, with a mode that any thread may change."""

    def __init__(self, journal: str) -> None:
        super().__init__()
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._mode = "well"
        self._seconds = 0.0
        self._changed = threading.Condition()
        #: Handles on which a sync has failed, and how often one of them was synced again: that must never be.
        self._failed: set[int] = set()
        self.syncs_after_failure = 0
        self.faults = 0

    def be(self, mode: str, seconds: float = 0.0) -> None:
        assert mode in MODES
        with self._changed:
            self._mode, self._seconds = mode, seconds
            self._changed.notify_all()

    def create(self, path: str, size: int) -> int:
        if size:
            self._fail_if("full", errno.ENOSPC)
        handle = super().create(path, size)
        self._failed.discard(handle)
        self._note("create", handle)
        return handle

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        self._fail_if("full", errno.ENOSPC)
        self._note("write", handle, offset, sum(map(len, buffers)))
        if self._mode == "torn":
            data = b"".join(buffers)
            super().write(handle, offset, [data[: len(data) // 2]])
            self._fail_if("torn", errno.EIO)
        super().write(handle, offset, buffers)

    def sync(self, handle: int) -> None:
        self.syncs_after_failure += handle in self._failed
        if self._mode == "rotten":
            self._failed.add(handle)
        self._fail_if("rotten", errno.EIO)
        if self._mode == "slow":
            self.faults += 1
            time.sleep(self._seconds)
        with self._changed:
            self.faults += self._mode == "hanging"
            self._changed.wait_for(lambda: self._mode != "hanging")
        super().sync(handle)
        self._note("sync", handle)

    def _fail_if(self, mode: str, number: int) -> None:
        if self._mode == mode:
            self.faults += 1
            raise OSError(number, os.strerror(number))

    def _note(self, what: str, handle: int, *numbers: int) -> None:
        line = [what, os.fstat(handle).st_ino, *numbers]
        os.write(self._journal, json.dumps(line).encode() + b"\n")


@dataclass(slots=True)
class _Unsynced:
    """What was written to one file since its last sync: offsets and lengths, in order."""

    writes: list[tuple[int, int]] = field(default_factory=list)


def cut_power(directory: Path, journal: Path, rng: random.Random) -> int:
    """Take back what no sync had covered when the process was killed; return how many bytes. Of what one file lost a
    random beginning stays, as if the disk had been about to write it. The log's files are made of zeros, so what never
    reached the disk reads as zeros."""
    files: dict[int, _Unsynced] = {}
    for text in journal.read_bytes().split(b"\n")[:-1]:
        what, inode, *numbers = json.loads(text)
        if what == "write":
            files.setdefault(inode, _Unsynced()).writes.append((numbers[0], numbers[1]))
        else:
            files[inode] = _Unsynced()
    journal.write_bytes(b"")
    lost = 0
    for path in directory.iterdir():
        writes = files.get(path.stat().st_ino, _Unsynced()).writes
        left = rng.choice([0, rng.randrange(1 + sum(length for _, length in writes))])
        size = path.stat().st_size
        with path.open("r+b") as file:
            for offset, length in writes:
                kept = min(left, length)
                left -= kept
                file.seek(offset + kept)
                file.write(bytes(max(0, min(offset + length, size) - offset - kept)))
                lost += length - kept
    return lost


def flip_byte(path: Path, offset: int) -> None:
    """One byte of the file is not what it was."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def written_bytes(path: Path) -> int:
    """Where the last byte that is not zero stands: how far a preallocated log file is in use."""
    return len(path.read_bytes().rstrip(b"\0"))


class SmallDisk:
    """A small file system in memory, mounted where only those processes see it that run with `prefix`. It goes with its
    holder, a process that ends with its input; nothing stays behind whatever becomes of the test."""

    def __init__(self, directory: Path, size: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory
        mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && echo up && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.close()
            raise PermissionError("mounting is not allowed here")
        self.prefix = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    @property
    def path(self) -> Path:
        """Its contents, as seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{self._path}")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while ballast.write(bytes(size)):
                        pass

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()
