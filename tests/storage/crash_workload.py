"""Everything a member does to its disk, drawn from a seed: a few hundred steps over a `MemoryDisk`, crashes among them.

Every step keeps `Promises` beside what it asks of the storage. What must not live here: what is looked at between two
file operations (`crash_runner`), or the verdict on it (`crash_model`).
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from coord.raft.batch import Batch
from coord.raft.messages import HardState, Persist
from coord.storage.directory import DataDirectory
from coord.storage.disk import DiskStorage
from coord.storage.memory import MemoryDisk
from storage.builders import batch, content_of, meta_of
from storage.crash_model import ModelState, Promises, found, kept_on, open_with

SIZES = (0, 20, 20, 20, 90, 200, 700)
#: The workload goes on with at most so many bytes of the log after its newest snapshot: longer ones show nothing more.
LOG_BYTES = 2500


class PowerCut(BaseException):
    """The machine, or only the process, stops in the middle of a file operation."""


def mint_from(name: str) -> Callable[[], int]:
    """Distinct non-zero numbers, the same in every run; other names, other numbers."""
    count = itertools.count(1)
    return lambda: int.from_bytes(hashlib.sha256(b"%s %d" % (name.encode(), next(count))).digest()[:8], "little") | 1


class Workload:
    """Drives a storage, and knows what it has promised. Deterministic: the seed decides."""

    def __init__(self, seed: int, segment_bytes: int) -> None:
        self.rng = random.Random(seed)
        self.segment_bytes = segment_bytes
        self.disk = MemoryDisk()
        self.promises = Promises()
        #: How often each kind of step was taken.
        self.taken: Counter[str] = Counter()
        #: Called before each file operation, with its kind.
        self.watch: Callable[[str], None] = lambda kind: None
        self._storage: DiskStorage | None = None
        self._directory: DataDirectory | None = None
        #: How many states there were when the storage was opened: its Persists are numbered from there.
        self._before = 0
        self._lives = 0
        #: Stop before so many more file operations that change something; below 0: not planned.
        self._fuse = -1

    # -- What the runner asks -----------------------------------------------------------------------------------------

    def note_acknowledged(self) -> None:
        """The storage may publish in the middle of a step: whatever it has is promised from that moment."""
        if self._storage is not None:
            self.promises.acknowledged = max(self.promises.acknowledged, self._before + self._storage.durable())

    def run(self, steps: int, after_each: Callable[[], None]) -> None:
        self._open()
        after_each()
        weighted = [
            *[(self.append, 30), (self.vote, 6), (self.truncate, 7), (self.snapshot, 8), (self.half_snapshot, 2)],
            *[(self.install, 3), (self.pull_and_stop, 2), (self.idle, 6), (self.prepare, 6), (self.group_number, 3)],
            *[(self.reopen_cleanly, 4), (self.reopen_killed, 5), (self.stop_in_the_middle, 9)],
        ]
        kinds = [step for step, _ in weighted]
        weights = [weight for _, weight in weighted]
        # First each of them once, so that no seed leaves any out.
        first = [step for step, _ in weighted if step != self.stop_in_the_middle]
        for number in range(steps):
            step = first[number // 4] if number % 4 == 3 and number // 4 < len(first) else None
            step = step or self.rng.choices(kinds, weights)[0]
            step()
            self.taken[step.__name__] += 1
            after_each()

    # -- Steps: the log -----------------------------------------------------------------------------------------------

    def append(self) -> None:
        """One group of Persists; some hold several batches, some a commit index, some a vote as well."""
        made = []
        (last, term), hard = self._state.last, self._state.hard_state
        for _ in range(self.rng.choice([1, 1, 1, 2, 3, 4])):
            batches: list[Batch] = []
            term = max(term, hard.term)
            for _ in range(self.rng.choice([1, 1, 2])):
                batches.append(self._batch(last + 1, term))
                last = batches[-1].last
            raised = self.rng.random() < 0.15
            hard = HardState(hard.term + 1, self._name()) if raised else hard
            made.append((hard if raised else None, batches))
        seq = self._seq
        self._put(
            *(Persist(seq + at, new, batches=batches, commit=self._commit()) for at, (new, batches) in enumerate(made))
        )
        if self._log_bytes() > LOG_BYTES:
            self.snapshot()

    def vote(self) -> None:
        hard = self._state.hard_state
        # A vote in a term already known, or a new term, with a vote or without.
        if not hard.vote and self.rng.random() < 0.5:
            after = HardState(hard.term, self._name())
        else:
            after = HardState(hard.term + 1, self.rng.choice(["", self._name()]))
        self._put(Persist(self._seq, after))

    def truncate(self) -> None:
        """Another leader: a tail goes, another comes, in one Persist."""
        droppable = [one for one in self._state.batches if one.first > self._floor]
        if not droppable:
            self.append()
            return
        index = self.rng.choice(droppable[-4:]).first
        term = self._term() + 1
        new = [self._batch(index, term)] if self.rng.random() < 0.8 else []
        new += [self._batch(new[-1].last + 1, term)] if new and self.rng.random() < 0.4 else []
        self._put(Persist(self._seq, HardState(term), None, index, new))

    def idle(self) -> None:
        """What the sync thread does when nothing comes: it writes down, without a sync, what is on disk."""
        self._live._log.mark()
        if self.rng.random() < 0.5:
            # What comes next may be too large for what is left of the segment.
            size = self.segment_bytes // 2
            self._put(Persist(self._seq, batches=[batch(self._state.last[0] + 1, self._term(), size=size)]))

    def prepare(self) -> None:
        """What the sync thread does after a write: it sets room for the next segment aside."""
        self._live._log.prepare()

    # -- Steps: snapshots ---------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Cut here, of something committed; other writes come in between."""
        newest = self.promises.snapshot[0]
        possible = [one for one in self._state.batches if one.last > newest]
        if not possible:
            self._put(Persist(self._seq, batches=[self._batch(self._state.last[0] + 1, self._term())]))
            possible = [self._state.batches[-1]]
        chosen = self.rng.choice(possible[-5:])
        self._put(Persist(self._seq, commit=chosen.last, hard_state=HardState(self._term() + 1)))
        between = self.rng.random() < 0.3
        self._save(chosen.last, chosen.term, between=between)
        self._live.compact(chosen.last)

    def half_snapshot(self) -> None:
        """One that is begun and never finished."""
        index, term = self._state.last[0] + 7, self._term()
        self.promises.begun.add((index, term))
        self._live.snapshot_writer(index, term).write_at(0, bytes(self.rng.choice([1, 300, 1000])))

    def install(self) -> None:
        """One pulled from a leader that is far ahead, or of another history, takes the place of the log."""
        self._pull()
        index, term = self.promises.snapshot
        meta = meta_of(index, term, self._size_of(index))
        new = HardState(term) if term > self._state.hard_state.term else None
        more = [self._batch(index + 1, term)] if self.rng.random() < 0.5 else []
        self._put(Persist(self._seq, new, meta, batches=more, commit=index))
        self._live.compact(index)

    def pull_and_stop(self) -> None:
        """Pulled and saved, and the machine stops before the log says so."""
        self._pull()
        self.reopen_killed()

    # -- Steps: the identity, and ends --------------------------------------------------------------------------------

    def group_number(self) -> None:
        assert self._directory is not None
        number = self.rng.getrandbits(64) | 1
        self._ask_identity(number)
        self._directory.set_group_number(number)
        self.promises.known = len(self.promises.identities) - 1

    def reopen_cleanly(self) -> None:
        self._live.close()
        self._storage = None
        self._open()

    def reopen_killed(self) -> None:
        """The process or the machine stops between two steps."""
        self._stop(machine=self.rng.random() < 0.5)
        self._open()

    def stop_in_the_middle(self) -> None:
        """The process or the machine stops inside another step, perhaps inside the start that follows."""
        inner = self.rng.choice(
            [
                *[self.append, self.append, self.truncate, self.snapshot, self.install],
                *[self.group_number, self.reopen_cleanly],
            ]
        )
        self._fuse = self.rng.choice([0, 1, 2, 3, 4, 6, 9, 14])
        try:
            inner()
        except PowerCut:
            pass
        else:
            self._fuse = -1
            return
        for patience in (self.rng.choice([-1, -1, 1, 3, 6]), -1):
            self._stop(machine=self.rng.random() < 0.7)
            self._fuse = patience
            try:
                self._open()
            except PowerCut:
                continue
            break
        self._fuse = -1

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> ModelState:
        return self.promises.states[-1]

    @property
    def _live(self) -> DiskStorage:
        assert self._storage is not None
        return self._storage

    @property
    def _seq(self) -> int:
        return len(self.promises.states) - self._before

    @property
    def _floor(self) -> int:
        """What may not be dropped any more."""
        return max(self._state.commit, self.promises.snapshot[0], self._state.base[0])

    def _term(self) -> int:
        return max(self._state.hard_state.term, self._state.last[1])

    def _name(self) -> str:
        return self.rng.choice(["a", "b", "a-member-with-a-long-name"])

    def _batch(self, first: int, term: int) -> Batch:
        return batch(first, term, count=self.rng.choice([1, 1, 2]), size=self.rng.choice(SIZES))

    def _commit(self) -> int:
        return self._state.last[0] if self.rng.random() < 0.3 else 0

    def _log_bytes(self) -> int:
        newest = self.promises.snapshot[0]
        return sum(len(one.data) for one in self._state.batches if one.last > newest)

    def _size_of(self, index: int) -> int:
        return (0, 30, 300, 900)[index % 4]

    def _put(self, *persists: Persist) -> None:
        for persist in persists:
            self.promises.states.append(self._state.after(persist))
            self._live.write(persist)
        self._live.sync()
        assert self._live.failure is None, self._live.failure
        self.note_acknowledged()

    def _save(self, index: int, term: int, *, between: bool = False) -> None:
        size = self._size_of(index)
        content, half = content_of(index, size), size // 2
        self.promises.begun.add((index, term))
        sink = self._live.snapshot_writer(index, term)
        sink.write_at(half, content[half:])
        if between:
            self._put(Persist(self._seq, batches=[self._batch(self._state.last[0] + 1, self._term())]))
        sink.write_at(0, content[:half])
        assert sink.finish() == (size, hashlib.sha256(content).digest())
        self._live.save_snapshot(meta_of(index, term, size))
        self.promises.kept = [*self.promises.kept, (index, term)][-2:]

    def _pull(self) -> None:
        last, floor = self._state.last[0], self._floor
        if last > floor and self.rng.random() < 0.4:
            # The log goes on, but in another history.
            self._save(self.rng.randint(floor + 1, last), self._term() + 1)
        else:
            self._save(last + self.rng.choice([1, 2, 20]), self._term() + self.rng.choice([0, 1]))

    def _ask_identity(self, number: int) -> None:
        assert self._directory is not None
        self.promises.identities.append(replace(self._directory.identity, group_number=number))

    def _open(self) -> None:
        """Start, and hold what the start reports for promised."""
        self._lives += 1
        self.disk.before = self._before_operation
        directory, storage = open_with(self.disk, mint_from(f"life {self._lives}"), self.segment_bytes)
        if not directory.identity.has_log:
            # Formatted just now, or before the log was begun: `recover` notes that it is there.
            self.promises.identities.append(directory.identity)
            self.promises.known = len(self.promises.identities) - 1
            self.promises.identities.append(replace(directory.identity, has_log=True))
        recovered = storage.recover()
        self._directory, self._storage = directory, storage
        self.promises.adopt(found(recovered, directory.identity), kept_on(self.disk, self.promises))
        self._before = len(self.promises.states) - 1

    def _stop(self, *, machine: bool) -> None:
        """Everything in memory is gone; of what was not synced, with the machine, whatever chance takes."""
        self._storage = self._directory = None
        self.disk.before = None
        if machine:
            self.disk = self.rng.choice(list(self.disk.crash_subsets()))
        else:
            self.disk.restart()

    def _before_operation(self, kind: str) -> None:
        self.watch(kind)
        if kind in CHANGING:
            if self._fuse == 0:
                raise PowerCut
            self._fuse -= self._fuse > 0


#: The file operations that change something a crash may take back.
CHANGING = ("make_directory", "create", "write", "sync", "rename", "unlink", "sync_directory", "lock")
