"""The disk in memory forgets what a real one may, and nothing else."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from coord.storage.files import Files, OsFiles
from coord.storage.memory import MemoryDisk


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory("/d")
    return disk


def contents(disk: MemoryDisk) -> dict[str, bytes]:
    return {name: disk.read(f"/d/{name}", 0, 1 << 20) for name in disk.names("/d")}


def states(disk: MemoryDisk) -> list[dict[str, bytes]]:
    return [contents(survivor) for survivor in disk.crash_states()]


def test_a_name_needs_the_directory_synced(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.write(handle, 0, [b"abc"])
    disk.sync(handle)
    assert {} in states(disk)
    disk.sync_directory("/d")
    assert states(disk) == [{"f": b"abc"}] * 3


def test_bytes_need_the_file_synced(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 8)
    disk.sync_directory("/d")
    disk.write(handle, 2, [b"a", b"bc"])
    found = states(disk)
    assert {"f": b""} in found
    assert {"f": bytes(8)} in found
    assert {"f": b"\0\0abc"} in found  # The size was lost, the write was not.
    assert {"f": b"\0\0abc\0\0\0"} in found
    disk.sync(handle)
    assert states(disk) == [{"f": b"\0\0abc\0\0\0"}] * 3


def test_a_rename_is_one_step(disk: MemoryDisk) -> None:
    for name, text in (("old", b"1"), ("new", b"2")):
        handle = disk.create(f"/d/{name}", 0)
        disk.write(handle, 0, [text])
        disk.sync(handle)
    disk.sync_directory("/d")
    disk.rename("/d/new", "/d/old")
    assert contents(disk) == {"old": b"2"}
    for state in states(disk):
        assert state in ({"old": b"1", "new": b"2"}, {"old": b"2"})


def test_an_unlink_needs_the_directory_synced(disk: MemoryDisk) -> None:
    disk.create("/d/f", 0)
    disk.sync_directory("/d")
    disk.unlink("/d/f")
    assert states(disk)[0] == {"f": b""}
    disk.sync_directory("/d")
    assert states(disk)[0] == {}


def test_a_write_is_torn_at_bytes_and_at_sectors(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 2048)
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.write(handle, 100, [b"x" * 1500])
    written = {state["f"].count(b"x") for state in states(disk)}
    assert {0, 64, 128, 1500, 1500 - 412} <= written
    generator = random.Random(1)
    torn = {contents(disk.crash(generator))["f"] for _ in range(300)}
    assert any(state[512:1024] == b"x" * 512 and not state[100:512].strip(b"\0") for state in torn)
    assert any(0 < state.count(b"x") < 1500 and state[100:101] == b"x" for state in torn)


def test_crash_with_a_subset_can_keep_the_later_change_only(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 4)
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.write(handle, 0, [b"a"])
    disk.write(handle, 1, [b"b"])
    generator = random.Random(2)
    found = {contents(disk.crash(generator, subset=True))["f"] for _ in range(50)}
    assert found == {b"\0\0\0\0", b"a\0\0\0", b"\0b\0\0", b"ab\0\0"}


def test_a_crash_leaves_the_disk_itself_alone(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.sync_directory("/d")
    disk.write(handle, 0, [b"abc"])
    survivor = disk.crash(random.Random(3))
    survivor.create("/d/other", 0)
    assert contents(disk) == {"f": b"abc"}
    disk.write(handle, 0, [b"xyz"])
    assert contents(survivor)["f"] != b"xyz"


def test_a_failed_sync_loses_what_readers_still_see(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.write(handle, 0, [b"abc"])
    disk.fail("sync", 1, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        disk.sync(handle)
    disk.sync(handle)
    assert contents(disk) == {"f": b"abc"}
    assert states(disk) == [{"f": b""}] * 3


def test_a_failed_write_leaves_half(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.fail("write", 2, errno.ENOSPC)
    disk.write(handle, 0, [b"ab"])
    with pytest.raises(OSError, match="No space"):
        disk.write(handle, 2, [b"cdef"])
    assert contents(disk) == {"f": b"abcd"}


def test_a_full_disk() -> None:
    disk = MemoryDisk(capacity=100)
    disk.make_directory("/d")
    handle = disk.create("/d/f", 60)
    disk.write(handle, 0, [bytes(60)])
    with pytest.raises(OSError, match="No space"):
        disk.create("/d/g", 41)
    assert disk.names("/d") == ["f"]
    with pytest.raises(OSError, match="No space"):
        disk.write(handle, 60, [bytes(41)])
    disk.unlink("/d/f")
    disk.create("/d/g", 41)


def test_a_restart_closes_handles_and_unlocks_but_loses_nothing(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.write(handle, 0, [b"abc"])
    disk.lock("/d/LOCK", b"1")
    with pytest.raises(BlockingIOError):
        disk.lock("/d/LOCK", b"2")
    disk.restart()
    disk.lock("/d/LOCK", b"2")
    assert contents(disk) == {"f": b"abc", "LOCK": b"2"}
    assert disk.unsynced > 0
    with pytest.raises(OSError, match="Bad file"):
        disk.write(handle, 0, [b"x"])


def test_rot(disk: MemoryDisk) -> None:
    handle = disk.create("/d/f", 0)
    disk.write(handle, 0, [b"abc"])
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.flip("/d/f", 1, 0x80)
    assert contents(disk)["f"] == b"a\xe2c"
    assert states(disk)[0]["f"] == b"a\xe2c"


@pytest.mark.parametrize("kind", ["real", "memory"])
def test_both_disks_behave_alike(kind: str, tmp_path: Path) -> None:
    """Everything in the contract that does not need a crash."""
    files: Files = OsFiles() if kind == "real" else MemoryDisk()
    path = f"{tmp_path}/deep/er"
    files.make_directory(path)
    files.make_directory(path)
    handle = files.create(f"{path}/f", 4096)
    assert files.size(f"{path}/f") == 4096
    many = [b"%04d" % number for number in range(3000)]
    files.write(handle, 10, many)
    files.write(handle, 10 + 12000, [memoryview(bytes(range(256)) * 400), b"end"])
    files.sync(handle)
    files.sync_directory(path)
    assert files.size(f"{path}/f") == 10 + 12000 + 102400 + 3
    assert files.read(f"{path}/f", 10, 12000) == b"".join(many)
    assert files.read(f"{path}/f", 12010, 102403) == bytes(range(256)) * 400 + b"end"
    assert files.read(f"{path}/f", 114412, 10) == b"d"
    assert files.read(f"{path}/f", 114413, 10) == b""
    with pytest.raises(FileExistsError):
        files.create(f"{path}/f", 0)
    with pytest.raises(FileExistsError):
        files.make_directory(f"{path}/f")
    files.close(handle)
    files.rename(f"{path}/f", f"{path}/g")
    assert files.names(path) == ["g"]
    lock = files.lock(f"{path}/LOCK", b"12345\n")
    with pytest.raises(BlockingIOError):
        files.lock(f"{path}/LOCK", b"6\n")
    assert files.read(f"{path}/LOCK", 0, 100) == b"12345\n"
    files.close(lock)
    files.close(files.lock(f"{path}/LOCK", b"7\n"))
    assert files.read(f"{path}/LOCK", 0, 100) == b"7\n"
    files.unlink(f"{path}/g")
    for action in (files.unlink, files.size, lambda gone: files.read(gone, 0, 1)):
        with pytest.raises(FileNotFoundError):
            action(f"{path}/g")


@pytest.mark.parametrize("big", [False, True])
def test_a_write_cut_short_by_the_kernel_goes_on(big: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.pwritev

    def cut_short(descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        return whole_write(descriptor, [b"".join(buffers)[:30_000]], offset)

    monkeypatch.setattr(os, "pwritev", cut_short)
    files = OsFiles()
    handle = files.create(f"{tmp_path}/f", 0)
    pieces = [bytes([number]) * 997 for number in range(200 if big else 60)]
    files.write(handle, 5, pieces)
    assert files.read(f"{tmp_path}/f", 5, 1 << 20) == b"".join(pieces)
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="takes no more bytes"):
        files.write(handle, 0, [b"x"])
    files.close(handle)


def test_real_files_are_private_and_do_not_follow_links(tmp_path: Path) -> None:
    files = OsFiles()
    files.make_directory(f"{tmp_path}/d")
    files.close(files.create(f"{tmp_path}/d/f", 10))
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d" / "f").stat().st_mode & 0o777 == 0o600
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="exists"):
        files.create(f"{tmp_path}/d/link", 0)
    with pytest.raises(OSError, match="symbolic"):
        files.read(f"{tmp_path}/d/link", 0, 1)
    with pytest.raises(OSError, match="symbolic"):
        files.lock(f"{tmp_path}/d/link", b"1")
    assert not (tmp_path / "elsewhere").exists()
