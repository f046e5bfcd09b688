"""The sync thread: off the caller's path, in order, final in failure, and never in the way of an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from coord.errors import IdentityError
from coord.raft.messages import Persist
from coord.storage import disk as disk_module
from coord.storage.disk import DiskStorage
from coord.storage.files import OsFiles
from coord.storage.records import MARK
from coord.storage.replay import read_log
from storage.builders import appended, batch, open_storage, put, take_snapshot

PATIENCE = 20.0


class GatedFiles(OsFiles):
    """Real files whose syncs wait for a gate, and can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.error: OSError | None = None
        self.syncs = 0
        self.writes = 0

    def sync(self, handle: int) -> None:
        self.waiting.set()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.syncs += 1
        super().sync(handle)

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        self.writes += 1
        super().write(handle, offset, buffers)

    def close_gate(self) -> None:
        self.waiting.clear()
        self.gate.clear()


class Progress:
    """Waits for the callback, which may come from any thread."""

    def __init__(self, storage: DiskStorage) -> None:
        self._changed = threading.Condition()
        self.threads: set[str] = set()
        storage.on_progress(self._called)

    def _called(self) -> None:
        with self._changed:
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)


@pytest.fixture
def files() -> GatedFiles:
    return GatedFiles()


def open_threaded(files: OsFiles, path: Path, segment_bytes: int = 20_000) -> DiskStorage:
    storage = open_storage(files, f"{path}/m", fsync="thread", segment_bytes=segment_bytes)
    storage.recover()
    return storage


def test_trap_45_a_stalled_sync_does_not_hold_the_caller_and_groups_what_waits(
    files: GatedFiles, tmp_path: Path
) -> None:
    storage = open_threaded(files, tmp_path)
    progress = Progress(storage)
    files.close_gate()
    put(storage, appended(1, 1, 1))
    assert files.waiting.wait(PATIENCE)
    before = files.writes
    for index in range(2, 12):
        put(storage, appended(index, index, 1))
    assert storage.durable() == 0
    files.gate.set()
    progress.until(lambda: storage.durable() == 11)
    assert files.writes == before + 1
    assert progress.threads == {"coord-sync"}
    storage.close()
    assert [kept.first for kept in open_storage(files, f"{tmp_path}/m").recover().batches] == list(range(1, 12))


def test_rolls_compacts_and_comes_back(tmp_path: Path) -> None:
    storage = open_threaded(OsFiles(), tmp_path, segment_bytes=5000)
    progress = Progress(storage)
    for index in range(1, 301):
        put(storage, appended(index, index, 1, size=200))
        if index in (100, 200):
            progress.until(lambda index=index: storage.durable() == index)  # type: ignore[misc]
            take_snapshot(storage, index, 1)
            storage.compact(index)
    progress.until(lambda: storage.durable() == 300)
    storage.close()
    assert storage.failure is None
    assert storage.segment_count < 15
    again = open_storage(OsFiles(), f"{tmp_path}/m")
    recovered = again.recover()
    assert recovered.batches[-1].last == 300
    assert recovered.snapshot is not None
    again.close()


def test_the_next_segment_is_prepared_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = OsFiles()
    storage = open_threaded(files, tmp_path, segment_bytes=5000)
    prepared, create = threading.Event(), files.create

    def watching(path: str, size: int) -> int:
        handle = create(path, size)
        if path.endswith("/wal-0000000000000002.tmp") and threading.current_thread().name == "coord-sync":
            prepared.set()
        return handle

    monkeypatch.setattr(files, "create", watching)
    put(storage, appended(1, 1, 1, size=3000))
    assert prepared.wait(PATIENCE)
    # Rolling takes the prepared one: nothing is created for it.
    prepared.clear()
    put(storage, appended(2, 2, 1, size=2000))
    storage.close()
    assert not prepared.is_set()
    assert (storage.durable(), storage.segment_count) == (2, 2)


def test_when_idle_it_writes_down_what_is_on_disk(files: GatedFiles, tmp_path: Path) -> None:
    storage = open_threaded(files, tmp_path)
    marked = threading.Event()
    write = files.write

    def watching(handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        write(handle, offset, buffers)
        if storage.durable() == 1:
            marked.set()

    files.write = watching  # type: ignore[method-assign]
    put(storage, appended(1, 1, 1))
    assert marked.wait(PATIENCE)
    reading = read_log(OsFiles(), f"{tmp_path}/m")
    assert reading.tail[-1].kind == MARK
    assert reading.durable == reading.tail[-2].sequence
    storage.close()


def test_trap_37_a_failed_sync_in_the_thread_is_terminal(files: GatedFiles, tmp_path: Path) -> None:
    storage = open_threaded(files, tmp_path)
    progress = Progress(storage)
    put(storage, appended(1, 1, 1))
    progress.until(lambda: storage.durable() == 1)
    files.error = OSError(5, "Input/output error")
    put(storage, appended(2, 2, 1))
    progress.until(lambda: storage.failure is not None)
    files.error = None
    writes = files.writes
    put(storage, appended(3, 3, 1))
    storage.compact(3)
    storage.close()
    assert storage.durable() == 1
    assert files.writes == writes


def test_a_bug_in_the_thread_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_threaded(OsFiles(), tmp_path)
    progress = Progress(storage)
    seen: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))

    def broken(persist: Persist) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(storage._log, "append", broken)
    put(storage, appended(1, 1, 1))
    progress.until(lambda: storage.failure is not None)
    assert "a bug" in str(storage.failure)
    storage.close()
    assert isinstance(seen[0], RuntimeError)


def test_close_finishes_what_was_queued(files: GatedFiles, tmp_path: Path) -> None:
    storage = open_threaded(files, tmp_path)
    for index in range(1, 50):
        storage.write(appended(index, index, 1))
    storage.close()
    storage.close()
    assert storage.durable() == 49
    assert not any(thread.name == "coord-sync" for thread in threading.enumerate())
    recovered = open_storage(OsFiles(), f"{tmp_path}/m").recover()
    assert recovered.batches == [batch(index, 1) for index in range(1, 50)]


def test_close_does_not_wait_for_a_hanging_sync(
    files: GatedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "_CLOSE_SECONDS", 0.1)
    storage = open_threaded(files, tmp_path)
    files.close_gate()
    put(storage, appended(1, 1, 1))
    assert files.waiting.wait(PATIENCE)
    storage.close()
    assert "has not returned" in str(storage.failure)
    # The thread may still write, so nobody else gets the directory until it has ended.
    with pytest.raises(IdentityError, match="this very process"):
        open_storage(OsFiles(), f"{tmp_path}/m")
    thread = storage._thread
    assert thread is not None
    files.gate.set()
    thread.join(PATIENCE)
    assert storage.durable() == 0
    again = open_storage(OsFiles(), f"{tmp_path}/m")
    assert again.recover().damage == ""
    again.close()


@pytest.mark.parametrize(("seconds", "expected"), [(1e9, "inline"), (0.0, "thread")])
def test_auto_measures(seconds: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "INLINE_SYNC_SECONDS", seconds)
    storage = open_storage(OsFiles(), f"{tmp_path}/m", fsync="auto")
    storage.recover()
    assert storage.fsync == expected
    progress = Progress(storage)
    put(storage, appended(1, 1, 1))
    if expected == "thread":
        progress.until(lambda: storage.durable() == 1)
    assert storage.durable() == 1
    storage.close()
