"""The storage contract: what the driver may ask of a disk, or of its twin in memory.

One stream holds term, vote and entries, so one sync covers them and they can never be reordered (trap 4).
What must not live here: file formats (`wal`, `snapshots`), or anything about roles and quorums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist, SnapshotMeta


@dataclass(slots=True)
class Recovered:
    """What a start found. A fresh directory gives the defaults."""

    hard_state: HardState = field(default_factory=HardState)
    #: The newest whole snapshot, or None.
    snapshot: SnapshotMeta | None = None
    #: Consecutive; the first may begin at or before the snapshot's index, and reaches at least past it.
    batches: list[Batch] = field(default_factory=list)
    #: A commit index recorded before the stop; never beyond the last entry (trap 43).
    commit: int = 0
    #: The log is damaged at or below what was known durable: this member may have forgotten what it promised, so it
    #: must not vote (architecture 6). `failure` is then set and nothing is written: what is on disk stays as it was
    #: found, until the member is replaced. Empty when all is well.
    damage: str = ""
    #: What recovery had to do that an operator should hear of: a torn tail cut, a broken snapshot set aside.
    notes: list[str] = field(default_factory=list)


class Storage(Protocol):
    """Durable state of one member. All methods are called from one thread, except where told.

    Any failure to write or sync is final: `failure` is set, nothing is ever written again, and `durable` no longer
    rises (trap 37). Writes never raise; `failure` tells.
    """

    #: The error that ended this storage, or None.
    failure: OSError | None

    @property
    def full(self) -> bool:
        """There is no room for more: nothing written since becomes durable until there is. No failure."""
        ...

    def recover(self) -> Recovered:
        """Read everything back. Called once, first. May raise StorageError (coord.errors): unreadable."""
        ...

    def write(self, persist: Persist) -> None:
        """Queue one Persist, first in first out. Does not block on the disk when a sync thread is in use."""
        ...

    def sync(self) -> None:
        """End of the driver's turn: make what `write` queued durable, here or by the sync thread."""
        ...

    def durable(self) -> int:
        """The highest `Persist.seq` known to be on disk; everything below it is too."""
        ...

    def on_progress(self, callback: Callable[[], None]) -> None:
        """Call `callback`, from any thread, when `durable` or `failure` may have changed without a call of `sync`."""
        ...

    def compact(self, index: int) -> None:
        """Batches whose last index is at or below `index` may be dropped: a durable snapshot covers them."""
        ...

    def snapshot_writer(self, index: int, term: int) -> SnapshotSink:
        """Begin a snapshot file under a temporary name; replaces an unfinished one."""
        ...

    def save_snapshot(self, meta: SnapshotMeta) -> None:
        """Keep `meta` beside the finished file, rename it into place and make both durable; older ones beyond the
        last two are deleted. After this `read_snapshot` knows it. May block; may run on another thread.
        Raises OSError; the log is then unharmed, the snapshot not kept."""
        ...

    def read_snapshot(self, index: int, offset: int, size: int) -> bytes:
        """Bytes of a kept snapshot; shorter only at its end. FileNotFoundError when it is gone."""
        ...

    def close(self) -> None:
        """Finish what was queued if the disk still works; release the directory. Returns within a few seconds."""
        ...


class SnapshotSink(Protocol):
    """An unfinished snapshot file."""

    def write_at(self, offset: int, data: bytes) -> None:
        """May raise OSError (a full disk); the file is then abandoned, and the log is unharmed."""
        ...

    def finish(self) -> tuple[int, bytes]:
        """Make it durable; return its size and sha256."""
        ...

    def abandon(self) -> None: ...
