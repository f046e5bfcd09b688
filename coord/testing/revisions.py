"""Does a history agree with the revisions it was told? By sorting, without search.

The revision of a write is its place in the one log all members share. So the order in which everything happened is
known; what is left is to check that it can have happened in that order at those times, and that everybody was told
what was there at that place. One pass in order of time keeps the place that whoever begins now must at least see.

What returned without a revision (a delete, through the public API) has no place here and is only allowed for; give
`changes`, or let the search judge it. What must not live here: that search (`coord.testing.linearizability`), what
is known of the log (`coord.testing.known_log`), watches (`coord.testing.watches`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from coord.testing.anomalies import (
    FALSE_CONFLICT,
    FUTURE_READ,
    LOST_UPDATE,
    NEVER_WRITTEN,
    OUT_OF_ORDER,
    OWN_WRITE_NOT_SEEN,
    SPLIT_TRANSACTION,
    STALE_READ,
    TWO_WINNERS,
    WENT_BACK,
    WRONG_DELETE,
    WRONG_VERSION,
    Report,
)
from coord.testing.history import (
    CONFLICT,
    DELETE,
    GET,
    LOOK,
    OK,
    WRITES,
    Change,
    Found,
    Operation,
    identity,
)
from coord.testing.known_log import KnownLog, nobody_else


def check_revisions(
    operations: Iterable[Operation],
    changes: Iterable[Change] | None = None,
    *,
    may_vanish: Callable[[str], bool] = nobody_else,
) -> Report:
    """Everything this module knows about the config map. The map is empty at the beginning.

    `changes`: the whole log, if it is known, of the keys these operations are about; who else writes them must be
    recorded too. `may_vanish`: of which keys the group itself makes an end (ephemeral, or with a time to live).
    """
    wanted = [op for op in operations if op.kind in WRITES or op.kind in (GET, LOOK)]
    report = Report(checked=len(wanted))
    log = KnownLog(wanted, None if changes is None else list(changes), report, may_vanish)
    _check_order(wanted, log, report)
    _check_sessions(wanted, log, report)
    _check_conditions(log, report)
    _check_conflicts(wanted, report)
    _check_deletes(wanted, log, report)
    _check_versions(wanted, log, report)
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Where an operation stands in the log.


def _place_found(log: KnownLog, operation: Operation, found: Found, floor: int) -> tuple[int, int]:
    """(place, missed): the first place at which `found` was there; the first change it should have seen, or 0."""
    revision = found.revision or log.revision_of(operation.key, identity(found.value))
    if not revision:
        return 0, 0
    following = log.next_change(operation.key, revision)
    return revision, following if 0 < following <= max(floor, operation.at) else 0


def _place_absent(log: KnownLog, operation: Operation, floor: int) -> tuple[int, int]:
    """As `_place_found`, for a key that was not there: the first place from `floor` on at which it was not."""
    key = operation.key
    least = max(floor, operation.at)
    last = log.last_change(key, least)
    if last == 0 or log.is_deleted(key, last):
        return last, 0
    if log.may_be_deleted(key):
        return 0, 0
    deleted = log.next_delete(key, least)
    author = log.author(deleted)
    in_time = author is None or author.invoked <= operation.returned
    if deleted and in_time and not (operation.at and deleted > operation.at):
        return deleted, 0
    return 0, last


def _place(log: KnownLog, operation: Operation, floor: int) -> tuple[int, int]:
    found = operation.found
    if isinstance(found, Found):
        return _place_found(log, operation, found, floor)
    return _place_absent(log, operation, floor) if found is None else (0, 0)


class _Floor:
    """The highest place of what had returned when an operation began, and whose it was. Asked in order of time."""

    __slots__ = ("_places", "_position", "_returned", "place", "witness")

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._returned = [op for op in operations if op.outcome in (OK, CONFLICT)]
        self._returned.sort(key=lambda op: op.returned)
        self._position = 0
        self._places: dict[Operation, int] = {}
        self.place = 0
        self.witness: Operation | None = None

    def advance(self, now: float) -> int:
        returned, position = self._returned, self._position
        while position < len(returned) and returned[position].returned < now:
            operation = returned[position]
            place = self._places.pop(operation, 0)
            if place > self.place:
                self.place, self.witness = place, operation
            position += 1
        self._position = position
        return self.place

    def stands(self, operation: Operation, place: int) -> None:
        """When it has returned, everybody must see at least `place`."""
        self._places[operation] = place


def _check_order(operations: list[Operation], log: KnownLog, report: Report) -> None:
    """Whatever begins comes after everything that had returned: writes by their revision, reads by what they saw."""
    ordered = sorted(operations, key=lambda op: op.invoked)
    floor = _Floor(ordered)
    for operation in ordered:
        place = floor.advance(operation.invoked)
        if operation.kind == LOOK:
            # It may be behind; but what it saw had happened.
            if isinstance(operation.found, Found):
                floor.stands(operation, operation.found.revision)
        elif operation.outcome == CONFLICT or operation.kind == GET:
            if operation.outcome not in (OK, CONFLICT):
                continue
            stands, missed = _place(log, operation, place)
            floor.stands(operation, stands)
            if missed:
                _report_missed(operation, missed, floor, log, report)
            _check_served(operation, stands, report)
        elif revision := log.place_of(operation):
            floor.stands(operation, revision)
            if place >= revision:
                _report_disorder(operation, revision, floor, report)


def _check_served(operation: Operation, stands: int, report: Report) -> None:
    if operation.at and stands > operation.at:
        report.add(FUTURE_READ, f"found what happened at {stands} in a copy of {operation.at}", [operation])


def _report_missed(operation: Operation, missed: int, floor: _Floor, log: KnownLog, report: Report) -> None:
    witness, author = floor.witness, log.author(missed)
    involved = [op for op in (author, witness, operation) if op is not None]
    name = STALE_READ
    if author is not None and witness not in (None, author) and len(author.puts) + len(author.deletes) > 1:
        assert witness is not None
        # Somebody had seen another part of it.
        if floor.place == missed and witness.key != operation.key:
            name = SPLIT_TRANSACTION
    unique = list(dict.fromkeys(involved))
    report.add(name, f"{operation.key} had changed at {missed}, and {floor.place} had been seen", unique)


def _report_disorder(operation: Operation, revision: int, floor: _Floor, report: Report) -> None:
    witness = floor.witness
    assert witness is not None
    read = witness.outcome == CONFLICT or witness.kind in (GET, LOOK)
    if read and isinstance(witness.found, Found) and floor.place == revision:
        report.add(FUTURE_READ, f"{revision} was read before it was asked for", [witness, operation])
    else:
        text = f"{floor.place} had returned before {revision} was asked for"
        report.add(OUT_OF_ORDER, text, [witness, operation])


def _check_sessions(operations: list[Operation], log: KnownLog, report: Report) -> None:
    """A process's own copy never goes back, and shows what the process was told."""
    by_process: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_process[operation.process].append(operation)
    for own in by_process.values():
        if not any(op.kind == LOOK for op in own):
            continue
        own.sort(key=lambda op: op.invoked)
        floor = _Floor(own)
        for operation in own:
            place = floor.advance(operation.invoked)
            if operation.kind not in (LOOK, GET):
                # A conflict is told by the leader; it says nothing of this copy.
                floor.stands(operation, log.place_of(operation))
            elif operation.outcome == OK:
                stands, missed = _place(log, operation, place)
                floor.stands(operation, stands)
                if operation.kind == LOOK:
                    _check_look(operation, stands, missed, floor, log, report)


def _check_look(operation: Operation, stands: int, missed: int, floor: _Floor, log: KnownLog, report: Report) -> None:
    _check_served(operation, stands, report)
    if not missed:
        return
    author, witness = log.author(missed), floor.witness
    involved = [op for op in dict.fromkeys((author, witness, operation)) if op is not None]
    own = author is not None and author.process == operation.process and author.returned < operation.invoked
    name = OWN_WRITE_NOT_SEEN if own else WENT_BACK
    report.add(name, f"{operation.key} had changed at {missed}, and {floor.place} had been seen", involved)


# ---------------------------------------------------------------------------------------------------------------------
# What an operation was told, or required.


def _check_conditions(log: KnownLog, report: Report) -> None:
    """A write with a condition happened only where that held."""
    for place, operation in log.placed():
        for key, required in operation.requires.items():
            last = log.last_change(key, place - 1)
            there = 0 if last == 0 or log.is_deleted(key, last) else last
            if there == required:
                continue
            # Deleted, or put, by somebody whose place nobody knows.
            if required == 0 and log.may_be_deleted(key):
                continue
            if required > last and log.may_be_put(key):
                continue
            author = log.author(last)
            text = f"happened at {place} as {key} was at {required}; it was at {there}"
            involved = [op for op in (author, operation) if op is not None]
            if required > last:
                report.add(NEVER_WRITTEN, text, involved)
            elif author is not None and author.requires.get(key) == required:
                report.add(TWO_WINNERS, text, involved)
            else:
                report.add(LOST_UPDATE, text, involved)


def _check_conflicts(operations: list[Operation], report: Report) -> None:
    """Who was told of a conflict was told of something else than it required."""
    for operation in operations:
        if operation.outcome != CONFLICT or not operation.key:
            continue
        required, found = operation.requires[operation.key], operation.found
        same = required == 0 if found is None else isinstance(found, Found) and found.revision == required != 0
        if same:
            report.add(FALSE_CONFLICT, f"{operation.key} was where it was required to be", [operation])


def _check_deletes(operations: list[Operation], log: KnownLog, report: Report) -> None:
    """Whether there was something to delete."""
    for operation in operations:
        if operation.kind != DELETE or operation.existed is None or not operation.revision:
            continue
        key = operation.deletes[0]
        last = log.last_change(key, operation.revision - 1)
        there = last != 0 and not log.is_deleted(key, last)
        if there == operation.existed or (log.may_be_deleted(key) if there else log.may_be_put(key)):
            continue
        text = f"{key} was {'' if there else 'not '}there before {operation.revision}"
        author = log.author(last)
        report.add(WRONG_DELETE, text, [op for op in (author, operation) if op is not None])


def _check_versions(operations: list[Operation], log: KnownLog, report: Report) -> None:
    """`created` and `version` say how often the key was put since it came to be; we may not know of every put."""
    told: dict[str, dict[int, tuple[Found, Operation]]] = defaultdict(dict)
    for operation in operations:
        found = operation.found
        if isinstance(found, Found) and found.revision and (found.created or found.version):
            known, first = told[operation.key].setdefault(found.revision, (found, operation))
            if _differ(known.created, found.created) or _differ(known.version, found.version):
                text = f"{operation.key} at {found.revision} was told differently"
                report.add(WRONG_VERSION, text, [first, operation])
    for key, by_revision in told.items():
        before: Found | None = None
        for revision in sorted(by_revision):
            found, operation = by_revision[revision]
            if reason := _wrong_version(log, key, found, before):
                report.add(WRONG_VERSION, f"{key} at {revision}: {reason}", [operation])
            before = found


def _differ(one: int, other: int) -> bool:
    return one != 0 and other != 0 and one != other


def _wrong_version(log: KnownLog, key: str, found: Found, before: Found | None) -> str:
    created, version, revision = found.created, found.version, found.revision
    if created and created > revision:
        return f"created at {created}, after it was written"
    if created and version and (version == 1) != (created == revision):
        return f"version {version}, and created at {created}"
    if created:
        deleted = log.next_delete(key, created - 1)
        if 0 < deleted < revision:
            return f"created at {created}, but deleted at {deleted}"
        puts = log.count_changes(key, created, revision)
        if version and (version < puts or (log.is_whole and version != puts)):
            return f"version {version} after {puts} known puts since {created}"
        last = log.last_change(key, created - 1)
        if last and not log.is_deleted(key, last) and not log.may_be_deleted(key):
            return f"created at {created}, but it was there already at {last}"
    if before is not None and before.created and created and before.created < created <= before.revision:
        return f"created at {created}, but at {before.revision} it was the one created at {before.created}"
    return ""
