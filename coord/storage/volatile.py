"""Storage for a member without a data directory: durable at once, gone with the process.

Allowed for a group of one, for learners and for tests (architecture 6). What must not live here: files.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable

from coord.errors import StorageError
from coord.raft.messages import Persist, SnapshotMeta
from coord.storage.base import Recovered
from coord.storage.stream import StreamEnd

_SNAPSHOTS_KEPT = 2


class VolatileStorage:
    """`coord.storage.base.Storage` with nothing behind it. The core keeps the log; only snapshots are kept here."""

    def __init__(self) -> None:
        self.failure: OSError | None = None
        self.full = False
        self._durable = 0
        self._stream = StreamEnd()
        self._lock = threading.Lock()
        self._snapshots: dict[int, bytes] = {}
        self._unfinished: dict[int, VolatileSnapshot] = {}

    def recover(self) -> Recovered:
        return Recovered()

    def write(self, persist: Persist) -> None:
        self._stream.follow(persist)
        self._durable = persist.seq

    def sync(self) -> None:
        """Nothing to do: `write` was all."""

    def durable(self) -> int:
        return self._durable

    def on_progress(self, callback: Callable[[], None]) -> None:
        """Never called: everything happens in `write`."""

    def compact(self, index: int) -> None:
        """Nothing to drop: the log is the core's alone."""

    def snapshot_writer(self, index: int, term: int) -> VolatileSnapshot:
        with self._lock:
            snapshot = self._unfinished[index] = VolatileSnapshot()
            while len(self._unfinished) > _SNAPSHOTS_KEPT:
                del self._unfinished[next(iter(self._unfinished))]
            return snapshot

    def save_snapshot(self, meta: SnapshotMeta) -> None:
        with self._lock:
            snapshot = self._unfinished.pop(meta.index, None)
            if snapshot is None or snapshot.finish() != (meta.size, meta.sha256):
                raise StorageError(
                    f"there is no finished snapshot of index {meta.index} with {meta.size} bytes and this sha256; "
                    "nothing was changed; take or pull it again"
                )
            kept = {**self._snapshots, meta.index: bytes(snapshot.data)}
            self._snapshots = dict(sorted(kept.items())[-_SNAPSHOTS_KEPT:])

    def read_snapshot(self, index: int, offset: int, size: int) -> bytes:
        content = self._snapshots.get(index)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "this snapshot is not kept, or no longer", f"snapshot {index}")
        return content[offset : offset + size]

    def close(self) -> None:
        self._unfinished.clear()

    def release_in_child(self) -> None:
        """Nothing to let go of."""


class VolatileSnapshot:
    """An unfinished snapshot in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write_at(self, offset: int, data: bytes) -> None:
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def finish(self) -> tuple[int, bytes]:
        return len(self.data), hashlib.sha256(self.data).digest()

    def abandon(self) -> None:
        self.data.clear()
