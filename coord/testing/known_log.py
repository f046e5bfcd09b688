"""What a history tells about the log: who wrote what at which revision.

Acknowledged writes say where they are. What readers found, and the changes of the log if they are given, say where
writes of unknown outcome got to, if only one can have written that value; so write each value once. What contradicts
itself already here is reported: a revision used twice, a value nobody wrote, a write that was said to have failed.
What must not live here: times (`coord.testing.revisions`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator

from coord.testing.anomalies import (
    DIRTY_READ,
    FUTURE_READ,
    LOST_WRITE,
    NEVER_WRITTEN,
    REVISION_REUSED,
    SPLIT_TRANSACTION,
    WRITTEN_TWICE,
    WRONG_VALUE,
    Report,
)
from coord.testing.history import (
    CONFLICT,
    DELETE,
    FAILED,
    OK,
    UNKNOWN,
    WRITES,
    Change,
    Found,
    Operation,
    identity,
)


def nobody_else(key: str) -> bool:
    """`may_vanish` where keys end only by deletes of clients."""
    return False


class _Deleted:
    def __repr__(self) -> str:
        return "DELETED"


_DELETED = _Deleted()


def _show(value: Hashable) -> str:
    """What `identity` made of a value, for people."""
    return str(value[1]) if isinstance(value, tuple) else repr(value)


class KnownLog:
    """The changes known, by revision and by key; and who made them."""

    def __init__(
        self,
        operations: list[Operation],
        changes: list[Change] | None,
        report: Report,
        may_vanish: Callable[[str], bool],
    ) -> None:
        self._report = report
        self._changes = changes
        self._may_vanish = may_vanish
        self._operations = operations
        self._authors: dict[int, Operation] = {}
        #: Where an operation happened, if it was not told so itself.
        self._places: dict[Operation, int] = {}
        #: Changes told by readers or by the log: what, and by whom.
        self._told: dict[tuple[str, int], tuple[Hashable, Operation | None]] = {}
        #: Writes that may have happened, nobody knows where, by what they put; and by key.
        self._unplaced: dict[tuple[str, Hashable], list[Operation]] = defaultdict(list)
        self._unplaced_puts: dict[str, list[Operation]] = defaultdict(list)
        self._unplaced_deletes: dict[str, list[Operation]] = defaultdict(list)
        self._ambiguous: dict[tuple[str, Hashable], set[int]] = defaultdict(set)
        #: Made when first asked for.
        self._values: dict[tuple[str, Hashable], list[int]] | None = None
        self._by_value: dict[tuple[str, Hashable], list[Operation]] | None = None
        self._collect_writes()
        self._collect_told()
        for (key, revision), (value, who) in self._told.items():
            self._attribute(key, revision, value, who)
        self._place_required()
        self._check_ambiguous()
        self._states = self._build_states()
        self._revisions = {key: sorted(states) for key, states in self._states.items()}
        self._deletes = {
            key: [revision for revision in revisions if self._states[key][revision] is _DELETED]
            for key, revisions in self._revisions.items()
        }
        if changes is not None:
            self._check_whole(changes)

    # -- asking

    @property
    def is_whole(self) -> bool:
        """Whether every change is known."""
        return self._changes is not None

    def place_of(self, operation: Operation) -> int:
        """The revision of a write; 0: nobody knows."""
        return operation.revision or self._places.get(operation, 0)

    def placed(self) -> Iterator[tuple[int, Operation]]:
        return iter(sorted(self._authors.items(), key=lambda pair: pair[0]))

    def author(self, revision: int) -> Operation | None:
        return self._authors.get(revision)

    def last_change(self, key: str, up_to: int) -> int:
        """The last revision, at or below `up_to`, at which `key` changed; 0: none."""
        revisions = self._revisions.get(key)
        position = bisect_right(revisions, up_to) if revisions else 0
        return revisions[position - 1] if revisions and position else 0

    def next_change(self, key: str, after: int) -> int:
        """The first revision above `after` at which `key` changed; 0: none."""
        revisions = self._revisions.get(key, ())
        position = bisect_right(revisions, after)
        return revisions[position] if position < len(revisions) else 0

    def next_delete(self, key: str, after: int) -> int:
        revisions = self._deletes.get(key, ())
        position = bisect_right(revisions, after)
        return revisions[position] if position < len(revisions) else 0

    def count_changes(self, key: str, first: int, last: int) -> int:
        revisions = self._revisions.get(key, ())
        return bisect_right(revisions, last) - bisect_left(revisions, first)

    def is_deleted(self, key: str, revision: int) -> bool:
        return self._states[key][revision] is _DELETED

    def may_be_deleted(self, key: str) -> bool:
        """Whether it may have been deleted at places nobody knows."""
        deletes = self._unplaced_deletes.get(key, ())
        return not self.is_whole and (self._may_vanish(key) or any(not self.place_of(op) for op in deletes))

    def may_be_put(self, key: str) -> bool:
        """Whether it may have been put at places nobody knows."""
        puts = self._unplaced_puts.get(key, ())
        return not self.is_whole and any(not self.place_of(operation) for operation in puts)

    def revision_of(self, key: str, value: Hashable) -> int:
        """Where `key` became `value`, if that happened once; else 0."""
        if self._values is None:
            self._values = defaultdict(list)
            for name, states in self._states.items():
                for revision, state in states.items():
                    self._values[name, state].append(revision)
        revisions = self._values.get((key, value), ())
        unplaced = [op for op in self._unplaced.get((key, value), ()) if not self.place_of(op)]
        return revisions[0] if len(revisions) == 1 and not unplaced else 0

    # -- finding out

    def _collect_writes(self) -> None:
        for operation in self._operations:
            if operation.kind not in WRITES or operation.outcome not in (OK, UNKNOWN):
                continue
            if operation.revision:
                other = self._authors.setdefault(operation.revision, operation)
                if other is not operation:
                    self._report.add(REVISION_REUSED, f"two writes at {operation.revision}", [other, operation])
                continue
            for key, value in operation.puts.items():
                self._unplaced[key, identity(value)].append(operation)
                self._unplaced_puts[key].append(operation)
            if operation.existed is not False:
                for key in operation.deletes:
                    self._unplaced_deletes[key].append(operation)

    def _collect_told(self) -> None:
        told = self._told
        for change in self._changes or ():
            told[change.key, change.revision] = (_DELETED if change.deleted else identity(change.value), None)
        for operation in self._operations:
            found = operation.found
            if not isinstance(found, Found):
                continue
            value = identity(found.value)
            if not found.revision:
                self._check_value(operation, value)
                continue
            name = (operation.key, found.revision)
            known = told.setdefault(name, (value, operation))
            if known[0] != value:
                text = f"{operation.key} at {found.revision} was told differently"
                self._report.add(WRONG_VALUE, text, [op for op in (known[1], operation) if op is not None])

    def _attribute(self, key: str, revision: int, value: Hashable, who: Operation | None) -> None:
        """Somebody told that `key` became `value` at `revision`: by whom?"""
        author = self._authors.get(revision)
        if author is not None:
            put = identity(author.puts[key]) if key in author.puts else _DELETED if key in author.deletes else None
            if (put is None and key not in author.puts) or put != value:
                self._report_foreign(key, revision, value, who, author)
            return
        if value is _DELETED:
            self._attribute_delete(key, revision)
            return
        candidates = self._unplaced.get((key, value), ())
        if len(candidates) == 1:
            self._put_at(candidates[0], key, revision)
        elif candidates:
            self._ambiguous[key, value].add(revision)
        else:
            self._report_foreign(key, revision, value, who, None)

    def _attribute_delete(self, key: str, revision: int) -> None:
        candidates = self._unplaced_deletes.get(key, [])
        if not candidates and not self._may_vanish(key):
            self._report.add(NEVER_WRITTEN, f"nobody deleted {key}, and it was deleted at {revision}")
        elif len(candidates) == 1 and not self._may_vanish(key):
            self._put_at(candidates[0], key, revision)

    def _put_at(self, operation: Operation, key: str, revision: int) -> None:
        """It happened at `revision`."""
        place = self._places.setdefault(operation, revision)
        if place == revision:
            self._authors[revision] = operation
        elif self._told.get((key, place)) is None:
            # One of its keys changed there, and another here.
            self._report.add(SPLIT_TRANSACTION, f"some of it at {place}, {key} at {revision}", [operation])
        else:
            self._report.add(WRITTEN_TWICE, f"{key} at {place} and at {revision}", [operation])

    def _report_foreign(
        self, key: str, revision: int, value: Hashable, who: Operation | None, author: Operation | None
    ) -> None:
        """`key` was `value` at `revision`, and `author`, if anybody, wrote something else there."""
        wrote = [op for op in self._operations if key in op.puts and identity(op.puts[key]) == value]
        shown = _show(value)
        told = [who] if who is not None else []
        failed = [op for op in wrote if op.outcome in (FAILED, CONFLICT)]
        if failed and len(failed) == len(wrote):
            text = f"{key} was {shown} at {revision}, and who wrote it was told that it had no effect"
            self._report.add(DIRTY_READ, text, [*failed, *told])
        elif author is not None:
            text = f"{key} was {shown} at {revision}, where something else was written"
            self._report.add(WRONG_VALUE, text, [author, *told])
        elif placed := [op for op in wrote if op.outcome == OK and op.revision]:
            text = f"{key} was {shown} at {revision}; that was written at {placed[0].revision}"
            self._report.add(WRITTEN_TWICE, text, [placed[0], *told])
        else:
            self._report.add(NEVER_WRITTEN, f"nobody wrote {key} = {shown}, found at {revision}", told)

    def _check_value(self, operation: Operation, value: Hashable) -> None:
        """A value found without a revision: somebody must have written it, before the end of the read."""
        wrote = [op for op in self._writers(operation.key, value) if op.outcome in (OK, UNKNOWN)]
        if any(op.invoked <= operation.returned for op in wrote):
            return
        if wrote:
            self._report.add(FUTURE_READ, "found before anybody asked for it", [operation, *wrote])
        else:
            self._report_foreign(operation.key, 0, value, operation, None)

    def _writers(self, key: str, value: Hashable) -> list[Operation]:
        if self._by_value is None:
            self._by_value = defaultdict(list)
            for operation in self._operations:
                for name, put in operation.puts.items():
                    self._by_value[name, identity(put)].append(operation)
        return self._by_value.get((key, value), [])

    def _place_required(self) -> None:
        """A condition that held says that somebody had put the key at that revision."""
        for operation in list(self._authors.values()):
            for key, required in operation.requires.items():
                if not required or required in self._authors or (key, required) in self._told:
                    continue
                candidates = [op for op in self._unplaced_puts.get(key, ()) if not self.place_of(op)]
                if len(candidates) == 1:
                    self._put_at(candidates[0], key, required)

    def _check_ambiguous(self) -> None:
        """No value was written more often than it was asked for."""
        for (key, value), revisions in self._ambiguous.items():
            candidates = self._unplaced[key, value]
            if len(revisions) > len(candidates):
                text = f"{key} = {_show(value)} at {sorted(revisions)}, asked for {len(candidates)} times"
                self._report.add(WRITTEN_TWICE, text, candidates)

    def _build_states(self) -> dict[str, dict[int, Hashable]]:
        states: dict[str, dict[int, Hashable]] = defaultdict(dict)
        for (key, revision), (value, _) in self._told.items():
            states[key][revision] = value
        if self.is_whole:
            return states
        for revision, operation in self._authors.items():
            for key, value in operation.puts.items():
                states[key][revision] = identity(value)
            if operation.existed is not False:
                for key in operation.deletes:
                    states[key][revision] = _DELETED
        return states

    def _check_whole(self, changes: list[Change]) -> None:
        """What was acknowledged is in the log, all of it and nothing else."""
        by_revision: dict[int, set[str]] = defaultdict(set)
        for change in changes:
            by_revision[change.revision].add(change.key)
        for revision, operation in self.placed():
            there = by_revision.get(revision, set())
            missing = set(operation.puts) - there
            if missing and there:
                text = f"only {sorted(there)} at {revision}, without {sorted(missing)}"
                self._report.add(SPLIT_TRANSACTION, text, [operation])
            elif missing:
                self._report.add(LOST_WRITE, f"acknowledged at {revision}, which is not in the log", [operation])
            elif operation.kind == DELETE and operation.existed and not there:
                self._report.add(LOST_WRITE, f"a delete acknowledged at {revision} is not in the log", [operation])
            for key in set(operation.deletes) - there:
                last = self.last_change(key, revision)
                if last and not self.is_deleted(key, last) and operation.kind != DELETE:
                    text = f"{sorted(there)} at {revision}, and {key} was not deleted"
                    self._report.add(SPLIT_TRANSACTION, text, [operation])
        for operation in self._operations:
            acknowledged = operation.kind in WRITES and operation.outcome == OK and not self.place_of(operation)
            for key, value in operation.puts.items() if acknowledged else ():
                if (key, identity(value)) not in self._ambiguous:
                    self._report.add(LOST_WRITE, f"{key} = {value!r} is not in the log", [operation])
