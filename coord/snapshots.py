"""What a replica does about snapshots: cut them, keep them, hand out their bytes, take in those of others.

Cut at the first batch past each multiple of `snapshot_entries`: the same indexes on every member. The state is copied
on the loop's thread, cheaply; encoding and disk happen elsewhere.

What must not live here: when a member needs one (`coord.raft.snapshot`), files (`coord.storage`), what the bytes mean
(`coord.machine.snapshot`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from coord.errors import StorageError
from coord.events import Counters
from coord.logs import Log
from coord.machine.machine import Machine
from coord.machine.snapshot import Cut
from coord.options import Options
from coord.raft.batch import Batch
from coord.raft.core import Core
from coord.raft.messages import SnapshotMeta, StoreSnapshot
from coord.storage.base import SnapshotSink, Storage

_log = Log("coord.wal")

#: Runs the first on some other thread, or at once; later, on the loop's thread, calls what that returned.
Background = Callable[[Callable[[], Callable[[], None]]], None]


class Snapshots:
    """Invariant: at most one snapshot is being cut, and at most one pulled."""

    def __init__(
        self,
        name: str,
        options: Options,
        storage: Storage,
        machine: Machine,
        counters: Counters,
        background: Background,
        report: Callable[[SnapshotMeta], None],
    ) -> None:
        """`report` is told of every snapshot about to be written: its index and state hash are known by then."""
        self._name = name
        self._report = report
        self._every = options.snapshot_entries
        self._chunk_bytes = options.snapshot_chunk_bytes
        self._storage = storage
        self._machine = machine
        self._counters = counters
        self._background = background
        self._core: Core | None = None
        self._last_cut = 0
        self._cutting = False
        self._pulling: tuple[SnapshotMeta, SnapshotSink] | None = None

    def attach(self, core: Core) -> None:
        """The core to report to; the state restored before this came from the disk."""
        self._core = core

    def restore(self, meta: SnapshotMeta) -> None:
        """Make the state that of a kept snapshot. StorageError: unreadable, or not what it should be; the state is then
        as it was."""
        try:
            self._machine.restore(self._chunks(meta))
        except (OSError, ValueError) as error:
            raise StorageError(f"snapshot {meta.index} cannot be restored: {error}") from error
        if (self._machine.applied_index, self._machine.state_hash) != (meta.index, meta.state_hash):
            raise StorageError(f"snapshot {meta.index} holds another state than its description says")
        self._last_cut = max(self._last_cut, meta.index)
        if self._core is not None:
            self._counters.snapshots_installed += 1
            self._storage.compact(meta.index)

    def applied(self, batch: Batch) -> None:
        """The state now includes `batch`: cut a snapshot if the grid says so."""
        if batch.last // self._every == self._last_cut // self._every:
            return
        self._last_cut = batch.last
        if not self._cutting and self._core is not None:
            self._cut(self._core, batch.last, batch.term)

    def renew(self) -> None:
        """Take a snapshot of the state as it is, on the grid or not: the newest one kept is of no use."""
        core = self._core
        assert core is not None
        term = core.log.term_at(core.applied)
        if not self._cutting and term is not None:
            _log.warning("%s: the newest snapshot is damaged or cannot be read; taking another", self._name)
            self._cut(core, core.applied, term)

    def _cut(self, core: Core, last: int, term: int) -> None:
        self._cutting = True
        index, membership = core.history.at(last)
        machine = self._machine
        meta = SnapshotMeta(last, term, machine.time, membership, index, 0, b"", machine.state_hash)
        cut = machine.cut()
        self._report(meta)
        self._background(lambda: self._write(meta, cut))

    def read(self, index: int, offset: int) -> bytes:
        """Some bytes of a kept snapshot, for a member that pulls it; empty when it is gone."""
        try:
            return self._storage.read_snapshot(index, offset, self._chunk_bytes)
        except OSError as error:
            _log.warning("%s: snapshot %d cannot be read: %s", self._name, index, error)
            return b""

    def store(self, command: StoreSnapshot) -> None:
        """Keep a piece of the snapshot being pulled."""
        assert self._core is not None
        meta = command.meta
        try:
            if command.offset == 0:
                self._pulling = (meta, self._storage.snapshot_writer(meta.index, meta.term))
            assert self._pulling is not None and self._pulling[0] == meta
            sink = self._pulling[1]
            sink.write_at(command.offset, command.data)
        except OSError as error:
            self._pull_failed(meta, str(error))
            return
        held = command.offset + len(command.data)
        if held < meta.size:
            self._core.snapshot_progress(self._core.now, meta.index, held)
            return
        self._pulling = None
        self._background(lambda: self._finish_pull(meta, sink))

    # On another thread, each returning what the loop's thread does with the outcome.

    def _write(self, meta: SnapshotMeta, cut: Cut) -> Callable[[], None]:
        try:
            sink = self._storage.snapshot_writer(meta.index, meta.term)
            try:
                offset = 0
                for chunk in cut.chunks():
                    sink.write_at(offset, chunk)
                    offset += len(chunk)
                size, sha256 = sink.finish()
                finished = replace(meta, size=size, sha256=sha256)
                self._storage.save_snapshot(finished)
            except OSError:
                sink.abandon()
                raise
        except OSError as error:
            problem = str(error)
            return lambda: self._cut_failed(problem)
        return lambda: self._cut_done(finished)

    def _finish_pull(self, meta: SnapshotMeta, sink: SnapshotSink) -> Callable[[], None]:
        core = self._core
        assert core is not None
        try:
            if sink.finish() != (meta.size, meta.sha256):
                sink.abandon()
                return lambda: self._pull_failed(meta, "its bytes are not what was offered", doubted=True)
            self._storage.save_snapshot(meta)
        except OSError as error:
            problem = str(error)
            return lambda: self._pull_failed(meta, problem)
        return lambda: core.snapshot_stored(core.now, meta)

    # On the loop's thread.

    def _cut_done(self, meta: SnapshotMeta) -> None:
        assert self._core is not None
        self._cutting = False
        self._counters.snapshots_taken += 1
        self._core.snapshot_taken(meta)
        self._storage.compact(meta.index)

    def _cut_failed(self, problem: str) -> None:
        self._cutting = False
        self._counters.snapshots_failed += 1
        _log.warning("%s: no snapshot: %s; the log keeps growing until one succeeds", self._name, problem)

    def _pull_failed(self, meta: SnapshotMeta, problem: str, *, doubted: bool = False) -> None:
        assert self._core is not None
        self._counters.snapshots_failed += 1
        _log.warning("%s: snapshot %d was not kept: %s", self._name, meta.index, problem)
        if self._pulling is not None and self._pulling[0] == meta:
            self._pulling[1].abandon()
            self._pulling = None
        self._core.snapshot_failed(self._core.now, meta.index, doubted=doubted)

    def _chunks(self, meta: SnapshotMeta) -> Iterator[bytes]:
        offset = 0
        while offset < meta.size:
            data = self._storage.read_snapshot(meta.index, offset, self._chunk_bytes)
            if not data:
                return
            yield data
            offset += len(data)
