"""What a member has promised about its disk, and the verdict on what a recovery found there.

What must not live here: how disks come about (`crash_workload`, `crash_runner`), or file formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from coord.errors import CoordError
from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist
from coord.storage.base import Recovered
from coord.storage.directory import DataDirectory, Identity, open_directory
from coord.storage.disk import DiskStorage
from coord.storage.files import Files
from coord.storage.snapshots import snapshot_name
from storage.builders import PATH, content_of, meta_of


class Lost(AssertionError):
    """A recovery found less than was promised, or something nobody asked for, or refused to start."""


@dataclass(frozen=True)
class ModelState:
    """What the stream says after a Persist: plain values, never changed."""

    hard_state: HardState = field(default_factory=HardState)
    base: tuple[int, int] = (0, 0)
    batches: tuple[Batch, ...] = ()
    #: The highest commit index said so far.
    commit: int = 0

    @property
    def last(self) -> tuple[int, int]:
        return (self.batches[-1].last, self.batches[-1].term) if self.batches else self.base

    def after(self, persist: Persist) -> ModelState:
        base, batches = self.base, list(self.batches)
        if persist.reset is not None:
            base, batches = (persist.reset.index, persist.reset.term), []
        if persist.truncate_from is not None:
            batches = [kept for kept in batches if kept.first < persist.truncate_from]
        hard_state = persist.hard_state or self.hard_state
        return ModelState(hard_state, base, (*batches, *persist.batches), max(self.commit, persist.commit))

    def begun_after(self, snapshot: tuple[int, int]) -> ModelState:
        """This state where the log holds that entry; where it does not, one whose log begins there."""
        if self.term_at(snapshot[0]) == snapshot[1]:
            return self
        return ModelState(self.hard_state, snapshot, (), self.commit)

    def term_at(self, index: int) -> int | None:
        if index == self.base[0]:
            return self.base[1]
        return next((kept.term for kept in self.batches if kept.first <= index <= kept.last), None)

    def log_after(self, snapshot: tuple[int, int]) -> list[Batch] | None:
        """The batches a recovery with this snapshot must return; None: this state cannot be met with it."""
        if self.base[0] > snapshot[0]:
            return None
        if self.term_at(snapshot[0]) != snapshot[1]:
            return []
        return [kept for kept in self.batches if kept.last > snapshot[0]]


@dataclass(frozen=True)
class Found:
    """What a start found on a disk; `refusal` when it did not start."""

    refusal: str = ""
    hard_state: HardState = field(default_factory=HardState)
    snapshot: tuple[int, int] = (0, 0)
    batches: tuple[Batch, ...] = ()
    commit: int = 0
    identity: Identity | None = None

    @property
    def last(self) -> int:
        return self.batches[-1].last if self.batches else self.snapshot[0]

    @property
    def term(self) -> int:
        return max(self.hard_state.term, self.snapshot[1])


def found(recovered: Recovered, identity: Identity) -> Found:
    meta = recovered.snapshot
    snapshot = (meta.index, meta.term) if meta else (0, 0)
    return Found(recovered.damage, recovered.hard_state, snapshot, tuple(recovered.batches), recovered.commit, identity)


def open_with(
    files: Files, mint: Callable[[], int], segment_bytes: int, path: str = PATH
) -> tuple[DataDirectory, DiskStorage]:
    directory = open_directory(path, group="g", name="a", fingerprint=77, mint=mint, files=files)
    return directory, DiskStorage(directory, mint=mint, fsync="inline", segment_bytes=segment_bytes)


def look(
    files: Files, mint: Callable[[], int], segment_bytes: int, path: str = PATH
) -> tuple[Found, DiskStorage | None]:
    """Start on a disk; the storage is left open if it started. Any error but those that say so is a bug."""
    try:
        directory, storage = open_with(files, mint, segment_bytes, path)
        recovered = storage.recover()
    except CoordError as error:
        return Found(f"{type(error).__name__}: {error}"), None
    if recovered.snapshot is not None:
        meta = recovered.snapshot
        whole = storage.read_snapshot(meta.index, 0, meta.size + 1)
        if meta != meta_of(meta.index, meta.term, meta.size) or whole != content_of(meta.index, meta.size):
            raise Lost(f"snapshot {meta.index} is not what was written")
    unfinished = [name for name in files.names(path) if name.endswith(".tmp")]
    if not recovered.damage and unfinished:
        raise Lost(f"a start left unfinished files behind: {unfinished}")
    return found(recovered, directory.identity), storage


class Promises:
    """What was asked of a disk, and how much of that was acknowledged."""

    def __init__(self) -> None:
        #: Every state of the stream so far, oldest first; those from `acknowledged` on may be found.
        self.states = [ModelState()]
        self.acknowledged = 0
        #: Index and term of every snapshot ever begun, and of those said to be kept, oldest first, at most two.
        self.begun: set[tuple[int, int]] = {(0, 0)}
        self.kept: list[tuple[int, int]] = []
        #: Identities asked for; those from `known` on may be found. None: no directory was formatted yet.
        self.identities: list[Identity | None] = [None]
        self.known = 0

    @property
    def snapshot(self) -> tuple[int, int]:
        return self.kept[-1] if self.kept else (0, 0)

    @property
    def doubly_kept(self) -> bool:
        """Two snapshots, and the log in between: the newest may rot. Not so after one pulled from beyond the log."""
        if len(self.kept) < 2:
            return False
        possible = self.states[self.acknowledged :]
        return all(state.term_at(index) == term for state in possible for index, term in self.kept)

    def judge(self, found: Found, *, newest_lost: bool = False) -> ModelState:
        """Return the state that was found; Lost if it is none that may be. `newest_lost`: the newest snapshot rotted,
        so the one before it will do."""
        if found.refusal:
            raise Lost(f"it does not start: {found.refusal}")
        identities = self.identities[self.known :]
        if None not in identities and found.identity not in identities:
            raise Lost(f"the directory says it is {found.identity}, not one of {identities}")
        promised = self.snapshot if not newest_lost else self.kept[0]
        if found.snapshot not in self.begun or found.snapshot < promised:
            raise Lost(f"the newest snapshot is {found.snapshot}; {promised} was promised, {self.begun} were begun")
        for state in reversed(self.states[self.acknowledged :]):
            if state.hard_state != found.hard_state:
                continue
            if state.log_after(found.snapshot) == list(found.batches):
                if not found.snapshot[0] <= found.commit <= max(state.commit, found.snapshot[0]):
                    raise Lost(f"commit index {found.commit}; {state.commit} was said, snapshot {found.snapshot}")
                if found.commit > found.last:
                    raise Lost(f"commit index {found.commit}, but the log ends at {found.last}")
                return state
        raise Lost(
            f"{found.hard_state}, snapshot {found.snapshot}, batches {found.batches} are none of the "
            f"{len(self.states) - self.acknowledged} states that may be: {self.states[self.acknowledged :]}"
        )

    def adopt(self, found: Found, kept: list[tuple[int, int]]) -> ModelState:
        """A start has reported this: from now on it is promised."""
        state = self.judge(found).begun_after(found.snapshot)
        self.states.append(state)
        self.acknowledged = len(self.states) - 1
        self.kept = kept
        self.identities.append(found.identity)
        self.known = len(self.identities) - 1
        return state


def newest_snapshot(files: Files) -> str | None:
    """Path of the newest snapshot's file."""
    names = [name for name in files.names(PATH) if name.startswith("snapshot-") and "." not in name]
    return f"{PATH}/{names[-1]}" if names else None


def kept_on(files: Files, promises: Promises) -> list[tuple[int, int]]:
    """Which of the snapshots ever begun are there under their final names, oldest first."""
    names = files.names(PATH)
    return sorted(one for one in promises.begun if one[0] and snapshot_name(one[0]) in names)[-2:]
