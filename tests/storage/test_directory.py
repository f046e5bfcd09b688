"""The data directory: whose it is, and that only one process has it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from coord.errors import ConfigurationError, IdentityError, StorageError
from coord.storage.directory import DataDirectory, Identity, open_directory, read_identity
from coord.storage.files import OsFiles
from coord.storage.memory import MemoryDisk
from storage.builders import PATH, counter_mint, fresh_storage, open_data


def open_as(disk: MemoryDisk, *, group: str = "g", name: str = "a", fingerprint: int = 77) -> DataDirectory:
    return open_directory(PATH, group=group, name=name, fingerprint=fingerprint, mint=counter_mint(), files=disk)


def test_formats_an_absent_directory_and_finds_it_again() -> None:
    disk = MemoryDisk()
    directory = open_data(disk)
    assert directory.incarnation != 0
    assert directory.group_number == 0
    identity = directory.identity
    directory.close()
    survivor = next(disk.crash_states())
    again = open_data(survivor, mint=lambda: 4242)
    assert again.identity == identity
    assert identity == Identity("g", "a", identity.incarnation, 77)


def test_the_group_number_is_kept_durably() -> None:
    disk = MemoryDisk()
    directory = open_data(disk)
    directory.set_group_number(2**64 - 1)
    directory.set_group_number(2**64 - 1)
    assert open_data(next(disk.crash_states())).group_number == 2**64 - 1


def test_the_group_number_changes_in_one_step() -> None:
    disk = MemoryDisk()
    directory = open_data(disk)
    seen = set()

    def crash_here(kind: str) -> None:
        for survivor in disk.crash_states():
            seen.add(open_data(survivor).group_number)

    disk.before = crash_here
    directory.set_group_number(5)
    assert seen == {0, 5}


def test_a_failed_change_leaves_the_old_number() -> None:
    disk = MemoryDisk()
    directory = open_data(disk)
    disk.fail("sync", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        directory.set_group_number(5)
    assert directory.group_number == 0
    directory.set_group_number(6)
    assert directory.group_number == 6


def test_other_identities_are_refused() -> None:
    disk = MemoryDisk()
    open_data(disk).close()
    with pytest.raises(IdentityError, match="belongs to group 'g', not 'h'"):
        open_as(disk, group="h")
    with pytest.raises(IdentityError, match="belongs to member 'a', not 'b'"):
        open_as(disk, name="b")
    with pytest.raises(IdentityError, match="founded with other members"):
        open_as(disk, fingerprint=78)
    # A refusal gives the lock back.
    open_as(disk).close()


def test_in_use_by_this_process(tmp_path: Path) -> None:
    directory = open_data(OsFiles(), f"{tmp_path}/m")
    with pytest.raises(IdentityError, match=f"this very process \\(pid {os.getpid()}\\)"):
        open_data(OsFiles(), f"{tmp_path}/m")
    directory.close()
    open_data(OsFiles(), f"{tmp_path}/m/").close()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    for path in (f"{tmp_path}/m", f"{tmp_path}/m/deeper"):
        with pytest.raises(ConfigurationError, match="file is in the way"):
            open_data(OsFiles(), path)


@pytest.mark.parametrize("kind", ["make_directory", "lock", "create", "names"])
@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_not_writable(kind: str, error: int) -> None:
    disk = MemoryDisk()
    disk.fail(kind, 1, error)
    with pytest.raises(ConfigurationError, match="cannot be made, read or written"):
        open_data(disk)
    disk.restart()
    open_data(disk).close()


def test_a_file_system_without_locks() -> None:
    disk = MemoryDisk()
    disk.fail("lock", 1, errno.ENOLCK)
    with pytest.raises(ConfigurationError, match="without file locks"):
        open_data(disk)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(ConfigurationError, match="not empty and not a member's: it holds 'holiday"):
        open_data(OsFiles(), str(tmp_path))
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_a_new_file_system_is_as_good_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    open_data(OsFiles(), str(tmp_path)).close()


def test_data_without_an_identity_is_refused() -> None:
    disk, storage = fresh_storage()
    storage.close()
    disk.unlink(f"{PATH}/identity")
    with pytest.raises(StorageError, match="its identity file is gone"):
        open_data(disk)


def test_every_damaged_identity_is_refused() -> None:
    disk = MemoryDisk()
    open_data(disk).close()
    path = f"{PATH}/identity"
    for offset in range(disk.size(path)):
        disk.flip(path, offset, 0x04)
        with pytest.raises(StorageError, match="cannot be trusted"):
            open_data(disk)
        disk.flip(path, offset, 0x04)
    assert read_identity(disk, PATH) is not None
    disk.fail("read", 1, errno.EIO)
    with pytest.raises(StorageError, match="cannot be trusted"):
        open_data(disk)


@pytest.mark.parametrize("size", [0, 5, 16, 20])
def test_a_short_identity_is_refused(size: int) -> None:
    disk = MemoryDisk()
    open_data(disk).close()
    data = disk.read(f"{PATH}/identity", 0, 1000)
    disk.unlink(f"{PATH}/identity")
    disk.write(disk.create(f"{PATH}/identity", 0), 0, [data[:size]])
    with pytest.raises(StorageError, match="cannot be trusted"):
        open_data(disk)


def test_formatting_survives_a_crash_anywhere() -> None:
    disk = MemoryDisk()
    count = 0

    def crash_here(kind: str) -> None:
        nonlocal count
        for survivor in disk.crash_states():
            count += 1
            open_data(survivor).close()

    disk.before = crash_here
    open_data(disk)
    assert count > 10
