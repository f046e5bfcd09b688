"""A member's data directory: one process at a time, and the identity it was formatted with.

What must not live here: the log and the snapshots that share the directory (`wal`, `snapshots`).

The lock comes before everything else (trap 49). The identity says whose directory this is, so that no member ever
starts on another's log, and no wiped one passes for the member it was (traps 46, 50).
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgpack

from coord.errors import ConfigurationError, IdentityError, StorageError
from coord.storage.files import Files, OsFiles
from coord.storage.replay import SEGMENT_PREFIX
from coord.storage.snapshots import PREFIX as SNAPSHOT_PREFIX

LOCK = "LOCK"
IDENTITY = "identity"
RESERVE = "reserve"
BOOT = "boot"
FORMAT_VERSION = 1
MAGIC = b"coordmem"
_HEADER = struct.Struct("<8sII")
_IDENTITY_BYTES_MAX = 64 << 10
_BOOT_BYTES_MAX = 100
#: A random number that Linux draws each time it starts.
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: A new file system's own directory; not a reason to call the place occupied.
_IGNORED = ("lost+found",)


class DamagedIdentity(ValueError):
    """This file is not a whole, undamaged identity."""


@dataclass(slots=True, frozen=True)
class Identity:
    """Whose directory this is."""

    group: str
    name: str
    #: Random, minted when the directory was formatted; never 0.
    incarnation: int
    #: Of the members the group was founded with.
    fingerprint: int
    #: The group's own random number; 0 until it is known.
    group_number: int = 0
    #: A log was begun. Without this a deleted log would look like a fresh directory, and its votes be forgotten.
    has_log: bool = False

    def encode(self) -> bytes:
        row = [FORMAT_VERSION, self.group, self.name, self.incarnation, self.fingerprint]
        payload: bytes = msgpack.packb([*row, self.group_number, self.has_log])
        return _HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def read_identity(files: Files, directory: str) -> Identity | None:
    """Return the identity, or None where there is none; DamagedIdentity if it cannot be trusted."""
    try:
        data = files.read(f"{directory}/{IDENTITY}", 0, _IDENTITY_BYTES_MAX)
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        raise DamagedIdentity(f"it ends after {len(data)} bytes")
    magic, length, crc = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != MAGIC or length != len(payload) or zlib.crc32(payload) != crc:
        raise DamagedIdentity("its checksum or its length does not match")
    try:
        version, group, name, incarnation, fingerprint, group_number, has_log = msgpack.unpackb(payload)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DamagedIdentity(f"it cannot be decoded: {error}") from error
    if version != FORMAT_VERSION:
        raise DamagedIdentity(f"its format {version!r} is unknown to this version of coord")
    kinds = [type(value) for value in (group, name, incarnation, fingerprint, group_number, has_log)]
    if kinds != [str, str, int, int, int, bool] or not incarnation:
        raise DamagedIdentity("it holds values of wrong types")
    return Identity(group, name, incarnation, fingerprint, group_number, has_log)


class DataDirectory:
    """A data directory this process has locked. Made by `open_directory`."""

    def __init__(self, files: Files, path: str, lock: int, identity: Identity) -> None:
        self.files = files
        self.path = path
        self.identity = identity
        self._lock: int | None = lock

    @property
    def incarnation(self) -> int:
        return self.identity.incarnation

    @property
    def group_number(self) -> int:
        return self.identity.group_number

    def set_group_number(self, number: int) -> None:
        """Remember the group's number, durably. Blocks on the disk; may raise OSError, and then nothing changed."""
        self._rewrite(replace(self.identity, group_number=number))

    def set_has_log(self) -> None:
        self._rewrite(replace(self.identity, has_log=True))

    def note_boot(self, boot: bytes) -> bool:
        """Tell whether it was last used since the same start of the same machine, as `boot_id` names it, and note that
        it is now. If so the lock proves that whoever used it is dead; on another machine, to which it was moved or
        copied, it proves nothing. Blocks on the disk; may raise OSError."""
        final = f"{self.path}/{BOOT}"
        try:
            before = self.files.read(final, 0, _BOOT_BYTES_MAX)
        except FileNotFoundError:
            before = b""
        if before != boot:
            _replace(self.files, self.path, BOOT, boot)
        return bool(boot) and before == boot

    def close(self) -> None:
        """Give the directory back. Nothing may write to it any more."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            self.files.close(lock)

    def release_in_child(self) -> None:
        """In a forked child: let go of the lock, which the parent goes on holding (trap 49)."""
        self.close()

    def _rewrite(self, identity: Identity) -> None:
        assert self._lock is not None, "the directory was given back"
        if identity != self.identity:
            _write_identity(self.files, self.path, identity)
            self.identity = identity


def open_directory(
    path: str, *, group: str, name: str, fingerprint: int, mint: Callable[[], int], files: Files | None = None
) -> DataDirectory:
    """Lock the data directory at `path` for this process, and make sure that it is this member's.

    An absent or empty one is formatted, with an incarnation from `mint` (64 random bits, never 0). Blocks on the disk.

    IdentityError: in use by another process, or formatted for another group, member or founding membership.
    ConfigurationError: a file is in the way, it cannot be written, or it holds something else than a member's data.
    StorageError: the identity is damaged, or gone while data is there.
    """
    disk: Files = OsFiles() if files is None else files
    path = path.rstrip("/") or "/"
    _make(disk, path)
    _refuse_foreign(disk, path)
    lock = _take_lock(disk, path)
    try:
        found = _read_or_explain(disk, path)
        if found is None:
            _refuse_foreign(disk, path)
            found = Identity(group, name, mint(), fingerprint)
            assert 0 < found.incarnation < 1 << 64
            try:
                _write_identity(disk, path, found)
            except OSError as error:
                raise _not_usable(path, error) from error
        _compare(path, found, group, name, fingerprint)
    except BaseException:
        disk.close(lock)
        raise
    return DataDirectory(disk, path, lock, found)


def boot_id() -> bytes:
    """Which start of which machine this is; empty where the system does not say."""
    try:
        with open(_BOOT_ID, "rb") as file:
            return file.read(_BOOT_BYTES_MAX).strip()
    except OSError:
        return b""


def _make(files: Files, path: str) -> None:
    try:
        files.make_directory(path)
        files.names(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"data_dir {path!r} cannot be a directory: a file is in the way ({error}); nothing was changed; "
            "remove the file or give another data_dir"
        ) from error
    except OSError as error:
        raise _not_usable(path, error) from error


def _not_usable(path: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"data_dir {path!r} cannot be made, read or written ({error}); a member must be able to write there; "
        "fix its owner, mode, mount or space, or give another data_dir"
    )


def _refuse_foreign(files: Files, path: str) -> None:
    names = [name for name in files.names(path) if name not in _IGNORED]
    if IDENTITY in names:
        return
    data = [name for name in names if name.startswith((SEGMENT_PREFIX, SNAPSHOT_PREFIX))]
    if data:
        raise StorageError(
            f"data_dir {path!r} holds {data[0]!r} and more of a member's data, but its identity file is gone, so "
            "nobody can say whose it is; nothing was changed; restore the file, or empty the directory and let the "
            "member join anew"
        )
    foreign = [name for name in names if name not in (LOCK, RESERVE) and not name.startswith(IDENTITY)]
    if foreign:
        raise ConfigurationError(
            f"data_dir {path!r} is not empty and not a member's: it holds {foreign[0]!r}; nothing was changed; "
            "give a directory of its own"
        )


def _take_lock(files: Files, path: str) -> int:
    try:
        return files.lock(f"{path}/{LOCK}", f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        holder = files.read(f"{path}/{LOCK}", 0, 32).decode("ascii", "replace").strip() or "unknown"
        who = "this very process" if holder == str(os.getpid()) else "another process"
        raise IdentityError(
            f"data_dir {path!r} is in use by {who} (pid {holder}); one process at a time may be this member; "
            "stop that one, or give this one a data_dir of its own"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ConfigurationError(
                f"data_dir {path!r} is on a file system without file locks ({error}), so two processes could damage "
                "it unnoticed; give a data_dir on a local file system"
            ) from error
        raise _not_usable(path, error) from error


def _read_or_explain(files: Files, path: str) -> Identity | None:
    try:
        return read_identity(files, path)
    except (DamagedIdentity, OSError) as error:
        raise StorageError(
            f"the identity file in data_dir {path!r} cannot be trusted: {error}; nothing was changed; restore it, or "
            "empty the directory and let the member join anew"
        ) from error


def _compare(path: str, found: Identity, group: str, name: str, fingerprint: int) -> None:
    if found.group != group:
        raise IdentityError(
            f"data_dir {path!r} belongs to group {found.group!r}, not {group!r}; nothing was changed; "
            "give this group's member a data_dir of its own"
        )
    if found.name != name:
        raise IdentityError(
            f"data_dir {path!r} belongs to member {found.name!r}, not {name!r}; nothing was changed; "
            "start it under its own name, or give this member a data_dir of its own"
        )
    if found.fingerprint != fingerprint:
        raise IdentityError(
            f"data_dir {path!r} was formatted for a group {group!r} founded with other members or addresses than those "
            "given now; nothing was changed; give the same `peers` as at the first start, or empty the directory if "
            "this really is a new group"
        )


def _write_identity(files: Files, path: str, identity: Identity) -> None:
    _replace(files, path, IDENTITY, identity.encode())


def _replace(files: Files, path: str, name: str, data: bytes) -> None:
    """In one step, durable on return (trap 38)."""
    final = f"{path}/{name}"
    temporary = f"{final}.tmp"
    if f"{name}.tmp" in files.names(path):
        files.unlink(temporary)
    handle = files.create(temporary, 0)
    try:
        files.write(handle, 0, [data])
        files.sync(handle)
    finally:
        files.close(handle)
    files.rename(temporary, final)
    files.sync_directory(path)
