"""Storage on disk: data directory, write-ahead log and snapshots put together, and the thread that syncs.

What must not live here: formats (`records`, `snapshots`), or how damage is judged (`replay`).

In mode "inline" there is no thread, clock or random source in here: `sync` does the work, in the caller, so that a
simulation over `coord.storage.memory` repeats exactly.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from coord.errors import StorageError
from coord.raft.messages import Persist, SnapshotMeta
from coord.storage.base import Recovered
from coord.storage.directory import DataDirectory
from coord.storage.files import Files
from coord.storage.replay import Cut, LogReading, read_log
from coord.storage.snapshots import SnapshotFile, SnapshotStore
from coord.storage.stream import StreamEnd
from coord.storage.wal import NoRoom, Reserve, WriteAheadLog, end_of, is_full

SEGMENT_BYTES = 16 << 20
#: Below this a sync costs less than handing it to a thread and back (performance, 2.4).
INLINE_SYNC_SECONDS = 50e-6
#: How long the sync thread waits for more before it writes down that the last records are on disk.
_IDLE_SECONDS = 0.05
#: How long it waits on a full disk before it tries again.
_RETRY_SECONDS = 0.2
_CLOSE_SECONDS = 3.0
_PROBES = 5
_PROBE_BYTES = 4096
_CUTS_KEPT = 8
_TEMPORARY = ".tmp"
_BROKEN = ".broken"


class DiskStorage:
    """`coord.storage.base.Storage` on a data directory, which it closes with itself.

    `fsync`: "inline" writes and syncs in the caller of `sync`; "thread" in a thread of its own; "auto" measures at
    `recover` and takes the cheaper. `segment_bytes`: size of a log segment, and of the reserve. `mint`: 64 random
    bits, never 0.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        mint: Callable[[], int],
        fsync: str = "auto",
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int | None = None,
    ) -> None:
        assert fsync in ("auto", "inline", "thread")
        assert segment_bytes > 0
        self.failure: OSError | None = None
        #: "inline" or "thread"; "auto" until `recover` has measured.
        self.fsync = fsync
        self._directory = directory
        self._files: Files = directory.files
        self._path = directory.path
        self._reserve = Reserve(self._files, self._path, segment_bytes if reserve_bytes is None else reserve_bytes)
        self._log = WriteAheadLog(self._files, self._path, self._reserve, segment_bytes=segment_bytes, mint=mint)
        self._snapshots = SnapshotStore(self._files, self._path, self._reserve)
        self._stream = StreamEnd()
        self._durable = 0
        self._queue: list[Persist] = []
        #: What the disk was too full for, oldest first; tried again now and then. It lives in the sync thread.
        self._backlog: list[Persist] = []
        self._progress: Callable[[], None] = _nothing
        self._closed = False
        self._thread: threading.Thread | None = None
        self._releasing = threading.Lock()
        # `close` gave up waiting for the thread, which then has to let go of the directory itself.
        self._left_to_thread = False
        # To the thread: Persists to write, an index to compact up to, or None to end. Bounded by what the core lets
        # be in flight.
        self._inbox: SimpleQueue[list[Persist] | int | None] = SimpleQueue()

    # -- Starting -----------------------------------------------------------------------------------------------------

    def recover(self) -> Recovered:
        try:
            recovered = self._recover()
            if not recovered.damage:
                if self.fsync == "auto":
                    self.fsync = "inline" if self._measure() < INLINE_SYNC_SECONDS else "thread"
                if self.fsync == "thread":
                    self._start_thread()
        except OSError as error:
            self.failure = error
            raise StorageError(
                f"the log in {self._path!r} cannot be read back, or not be continued: {error}; what is on disk is as "
                "it was; look at the disk and its free space, then start again"
            ) from error
        if recovered.damage:
            self.failure = StorageError(
                f"the data in {self._path!r} is damaged: {recovered.damage}; this member may have forgotten what it "
                "promised, so it writes nothing and votes no more; nothing was changed on disk; replace the member: "
                "move the directory away and let it join anew"
            )
        return recovered

    def _recover(self) -> Recovered:
        reading = read_log(self._files, self._path)
        snapshot, broken = self._snapshots.load()
        position, damage = self._fit_together(reading, snapshot)
        notes = [f"snapshot {name} is unreadable and was set aside: {reason}" for name, reason in broken.items()]
        if not damage:
            # What a killed process had named is seen here and may yet be lost; a snapshot must not take the place of
            # the log before its own name is on disk.
            self._files.sync_directory(self._path)
            self._remove_unfinished()
            self._reserve.take()
            for name in broken:
                self._snapshots.set_aside(name)
            if reading.cut is not None:
                notes.append(f"torn tail cut from the log: {reading.cut}; {self._keep_cut(reading.cut)}")
            self._log.start(reading, position)
            self._directory.set_has_log()
        replay = reading.replay
        first_needed = 1 if snapshot is None else snapshot.index + 1
        batches = [] if position else [batch for batch in replay.batches if batch.last >= first_needed]
        last_index = position[0] if position else replay.last[0]
        self._stream = end_of(replay)
        if position is not None:
            self._stream.reset(position)
        commit = max(min(replay.commit, last_index), first_needed - 1)
        return Recovered(replay.hard_state, snapshot, batches, commit, damage, [] if damage else notes)

    def _fit_together(self, reading: LogReading, snapshot: SnapshotMeta | None) -> tuple[tuple[int, int] | None, str]:
        """Return the position to begin the log anew at, if the snapshot replaces it, and what is damaged."""
        if reading.damage:
            return None, reading.damage
        index, term = (0, 0) if snapshot is None else (snapshot.index, snapshot.term)
        if not reading.segments:
            if self._directory.identity.has_log or snapshot is not None:
                return None, "the log is gone: no segment is left"
            return None, ""
        begin, begin_term = reading.replay.base
        if begin > index:
            return None, f"the log begins after entry {begin}, but the newest whole snapshot is of {index}"
        if begin == index and begin_term != term:
            return None, f"the log begins after entry {index} of term {begin_term}, the snapshot says term {term}"
        if snapshot is not None and reading.replay.term_at(index) != term:
            # The log ends before the snapshot, or took another turn: the snapshot was pulled from a peer, or taken
            # of entries that others had on disk before this member. What it covers is committed; nothing else is.
            return (index, term), ""
        return None, ""

    def _remove_unfinished(self) -> None:
        """What was being written under a temporary name when the process stopped was promised to nobody."""
        for name in self._files.names(self._path):
            if name.endswith(_TEMPORARY):
                self._files.unlink(f"{self._path}/{name}")

    def _keep_cut(self, cut: Cut) -> str:
        """Copy the bytes of a torn tail for whoever wants to look into it; the newest few copies stay."""
        copy = f"{cut.name}-{cut.offset}{_BROKEN}"
        copies = [name for name in self._files.names(self._path) if name.startswith("wal-") and name.endswith(_BROKEN)]
        surplus = set(copies[: max(0, len(copies) - _CUTS_KEPT + 1)])
        for old in sorted(surplus | ({copy} & set(copies))):
            self._files.unlink(f"{self._path}/{old}")
        handle = self._files.create(f"{self._path}/{copy}", 0)
        try:
            self._files.write(handle, 0, [cut.data])
            self._files.sync(handle)
        except OSError as error:
            if not is_full(error):
                raise
            return "no room to keep a copy"
        finally:
            self._files.close(handle)
        return f"a copy is in {copy}"

    def _measure(self) -> float:
        """The median time of a write and a sync, in seconds."""
        path = f"{self._path}/probe{_TEMPORARY}"
        handle = self._files.create(path, _PROBES * _PROBE_BYTES)
        try:
            self._files.sync(handle)
            times = []
            for number in range(_PROBES):
                started = time.perf_counter()
                self._files.write(handle, number * _PROBE_BYTES, [bytes(_PROBE_BYTES)])
                self._files.sync(handle)
                times.append(time.perf_counter() - started)
        finally:
            self._files.close(handle)
            self._files.unlink(path)
        return sorted(times)[_PROBES // 2]

    # -- The log ------------------------------------------------------------------------------------------------------

    def write(self, persist: Persist) -> None:
        if self.failure is None and not self._closed:
            self._stream.follow(persist)
            self._queue.append(persist)

    def sync(self) -> None:
        if not self._queue or self.failure is not None:
            return
        group, self._queue = self._queue, []
        if self._thread is not None:
            self._inbox.put(group)
            return
        try:
            self._write_group(group)
        except OSError as error:
            self._fail(error)
        if self._backlog:
            # Waiting for room is not for the caller; from now on a thread does the writing.
            self.fsync = "thread"
            self._start_thread()

    @property
    def full(self) -> bool:
        """The disk is too full for another log segment. Nothing written since is durable until there is room."""
        return bool(self._backlog)

    def durable(self) -> int:
        return self._durable

    def on_progress(self, callback: Callable[[], None]) -> None:
        self._progress = callback

    def compact(self, index: int) -> None:
        if self.failure is not None or self._closed:
            return
        # Never beyond the older snapshot: with it and the log, one unreadable snapshot loses nothing.
        index = min(index, self._snapshots.log_needed_after)
        self._stream.compact(index)
        if self._thread is not None:
            self._inbox.put(index)
            return
        try:
            self._log.compact(index, waiting=self.full)
        except OSError as error:
            self._fail(error)

    def _write_group(self, group: list[Persist]) -> None:
        """Group commit: one write and one sync for all of `group`, then it is durable."""
        group, waiting = self._backlog + group, []
        append = self._log.append
        for at, persist in enumerate(group):
            try:
                append(persist)
            except NoRoom:
                # A disk out of room has not failed: what it said it has, it has. The rest waits, promised to nobody.
                group, waiting = group[:at], group[at:]
                break
        self._log.commit()
        # Only now: `full`, which others read, stays true while room is looked for in vain.
        self._backlog = waiting
        if self.failure is None and group:
            self._durable = group[-1].seq

    def _fail(self, error: OSError) -> None:
        """Trap 37: after a failed sync the kernel may call lost pages clean; a second try would only seem to work."""
        if self.failure is None:
            self.failure = StorageError(
                f"the disk under {self._path!r} failed: {error}; what was acknowledged is on it, nothing more is "
                "written; this member stops; look at the disk and its free space, then start it again"
            )
            self.failure.errno = error.errno
            self.failure.__cause__ = error

    # -- The sync thread ----------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="coord-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._work():
                pass
        finally:
            if self._left_to_thread:
                self._release()

    def _work(self) -> bool:
        """Wait for something to do, and do it; False when there is nothing to do any more."""
        try:
            return self._turn()
        except OSError as error:
            self._fail(error)
            self._progress()
            return False
        except BaseException as error:
            # A bug; the driver must hear of it all the same, or it would wait for ever.
            self._fail(OSError(f"internal error in the sync thread: {error!r}"))
            self._progress()
            raise

    def _turn(self) -> bool:
        """Do everything that is queued by now; return False when told to end."""
        try:
            item = self._inbox.get(timeout=self._patience())
        except Empty:
            self._idle()
            return True
        group: list[Persist] = []
        compact: int | None = None
        going_on = True
        while True:
            if item is None:
                going_on = False
            elif isinstance(item, int):
                compact = item
            else:
                group.extend(item)
            if self._inbox.empty():
                break
            item = self._inbox.get()
        if group:
            self._write_group(group)
            self._progress()
        if self.failure is not None:
            return False
        if compact is not None:
            self._log.compact(compact, waiting=self.full)
        if going_on:
            self._log.prepare()
        return going_on

    def _patience(self) -> float | None:
        """How long to wait for something to do before `_idle`; None: for ever."""
        if self._backlog:
            return _RETRY_SECONDS
        return _IDLE_SECONDS if self._log.unmarked else None

    def _idle(self) -> None:
        """Nothing came for a while."""
        if self._backlog:
            self._write_group([])
            self._progress()
        else:
            self._log.mark()

    # -- Snapshots ----------------------------------------------------------------------------------------------------

    def snapshot_writer(self, index: int, term: int) -> SnapshotFile:
        return self._snapshots.begin(index, term)

    def save_snapshot(self, meta: SnapshotMeta) -> None:
        self._snapshots.save(meta)

    def read_snapshot(self, index: int, offset: int, size: int) -> bytes:
        return self._snapshots.read(index, offset, size)

    # -- Ending -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closed:
            return
        self.sync()
        self._closed = True
        thread = self._thread
        if thread is not None:
            self._inbox.put(None)
            thread.join(_CLOSE_SECONDS)
            if thread.is_alive():
                # A sync hangs. The thread may still touch the files, so the directory stays locked until it ends.
                self._fail(OSError(errno.ETIMEDOUT, f"a sync has not returned for {_CLOSE_SECONDS:g} seconds"))
                self._left_to_thread = True
                if thread.is_alive():
                    return
        self._release()

    def _release(self) -> None:
        with self._releasing:
            try:
                if self.failure is None:
                    self._log.close()
                self._log.release()
                self._snapshots.abandon_all()
            except OSError as error:
                self._fail(error)
            self._directory.close()

    def release_in_child(self) -> None:
        """In a forked child: close the files and the lock, write nothing, and be dead from then on (trap 49)."""
        self._closed = True
        self._log.release()
        self._snapshots.release_in_child()
        self._directory.release_in_child()

    # -- Figures ------------------------------------------------------------------------------------------------------

    @property
    def log_bytes(self) -> int:
        """Bytes of disk the log's segments take."""
        return self._log.size

    @property
    def segment_count(self) -> int:
        return self._log.segment_count

    @property
    def reserve_held(self) -> bool:
        """False: the disk is, or has been, too full to keep room aside; free some."""
        return self._reserve.held


def _nothing() -> None:
    """Nobody wants to know."""
