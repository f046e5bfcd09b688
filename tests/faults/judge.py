"""What a history of clients may look like: the judge of the fault runs.

The revision of a write is its place in the one order all members share. So the judge first builds the log of all
changes from what watches told and writes returned, and then holds everything against it. Each `check_*` raises
AssertionError at what may not be, and returns how much it looked at.
What must not live here: processes, faults, waiting.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from faults.record import CONFLICT, OK, REFUSED, Call, Recorded, Watched


@dataclass(slots=True)
class Log:
    """All changes known: by revision, and for each key in order."""

    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    revisions: dict[str, list[int]] = field(default_factory=dict)
    #: Who told of each revision.
    told_by: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def value(self, key: str, revision: int) -> Any:
        return self.changes.get(revision, {}).get(key)

    def at(self, key: str, revision: int) -> int:
        """The newest change of `key` at or before `revision`; 0: none."""
        revisions = self.revisions.get(key, [])
        position = bisect_right(revisions, revision)
        return revisions[position - 1] if position else 0


def check_all(recorded: Recorded) -> dict[str, int]:
    """Every check of a history alone; how much each looked at."""
    log = build_log(recorded)
    return {
        "changes": len(log.changes),
        "writes": check_writes(recorded, log),
        "order": check_order(recorded, log),
        "reads": check_linearizable_reads(recorded, log),
        "conflicts": check_conflicts(recorded, log),
        "local reads": check_local_reads(recorded, log),
        "watched": check_watches(recorded, log),
        "terms": check_leaders(recorded),
    }


def build_log(recorded: Recorded) -> Log:
    """The log. No two may disagree about a revision."""
    log = Log()

    def add(who: str, revision: int, key: str, value: Any) -> None:
        known = log.changes.setdefault(revision, {})
        log.told_by[revision].add(who)
        assert known.setdefault(key, value) == value, f"{who}: {key} at {revision} is {value!r}, else {known[key]!r}"

    for watched in recorded.watches:
        for event in watched.events:
            if not event.resync:
                add(watched.name, event.revision, event.key, event.value)
    for call in recorded.acknowledged():
        for key, value in call.writes.items():
            # Deleting what is not there changes nothing, so nobody is told.
            if value is not None or key in log.changes.get(call.revision, {}):
                add(call.client, call.revision, key, value)
    revisions: dict[str, list[int]] = defaultdict(list)
    for revision in sorted(log.changes):
        for key in log.changes[revision]:
            revisions[key].append(revision)
    log.revisions = dict(revisions)
    return log


def check_writes(recorded: Recorded, log: Log) -> int:
    """What changed was written by somebody, all of it or nothing, once, and by nobody who was told otherwise."""
    writers: dict[Any, Call] = {}
    for attempt in recorded.calls:
        for value in attempt.writes.values():
            if value is not None:
                assert value not in writers, f"each value is written once, and {value!r} was not"
                writers[value] = attempt
    places: dict[Any, int] = {}
    for revision, changes in sorted(log.changes.items()):
        for key, value in changes.items():
            if value is None:
                continue
            assert value in writers, f"{key} was {value!r} at {revision}, which nobody wrote"
            call = writers[value]
            assert call.outcome not in (REFUSED, CONFLICT), (
                f"{key} was {value!r} at {revision}; {call.client} was told {call.outcome}, so without effect"
            )
            assert call.writes.get(key) == value, f"{value!r} was written to {list(call.writes)}, and found in {key}"
            assert call.outcome != OK or call.revision == revision, (
                f"{value!r} was acknowledged at {call.revision} and happened at {revision}"
            )
            assert call.writes.items() <= changes.items(), f"half of {call.client}'s {call.writes} at {revision}"
            assert value not in places or places[value] == revision, f"{value!r} at {places[value]} and at {revision}"
            places[value] = revision
            _check_condition(call, revision, log)
    return len(places)


def _check_condition(call: Call, revision: int, log: Log) -> None:
    """A write with a condition happened only where that held."""
    required = call.asked.get("requires", {})
    if call.op == "cas":
        required = {call.asked["key"]: call.asked["expected"]}
    for key, expected in required.items():
        found = _shown(log, key, log.at(key, revision - 1))
        assert found == expected, (
            f"{call.client} wrote at {revision} (told by {sorted(log.told_by[revision])}) as {key} was at {expected}; "
            f"it was at {found} (told by {sorted(log.told_by[found])})"
        )


def _shown(log: Log, key: str, revision: int) -> int:
    """The revision a reader is told: none for what was deleted."""
    return revision if log.value(key, revision) is not None else 0


def check_order(recorded: Recorded, log: Log) -> int:
    """A write that returned before another began comes first."""
    newest, checked = 0, 0
    returned = recorded.acknowledged()
    position = 0
    for call in sorted(returned, key=lambda call: call.invoked):
        while returned[position].returned < call.invoked:
            newest = max(newest, returned[position].revision)
            position += 1
        assert call.revision > newest, f"{call.client} wrote at {call.revision} after {newest} was acknowledged"
        checked += 1
    return checked


class _Floors:
    """For each key, what a read that begins at some time must at least find: revisions by time, both rising."""

    def __init__(self, recorded: Recorded) -> None:
        known: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for call in recorded.calls:
            if call.op == "read" and call.outcome == OK:
                known[call.asked["key"]].append((call.returned, call.revision))
            elif call.outcome == OK and call.writes:
                for key in call.writes:
                    known[key].append((call.returned, call.revision))
        self._times: dict[str, list[float]] = {}
        self._revisions: dict[str, list[int]] = {}
        for key, pairs in known.items():
            pairs.sort()
            newest = 0
            self._times[key] = [time for time, _ in pairs]
            self._revisions[key] = [newest := max(newest, revision) for _, revision in pairs]

    def floor(self, key: str, time: float) -> int:
        position = bisect_left(self._times.get(key, []), time)
        return self._revisions[key][position - 1] if position else 0


def check_linearizable_reads(recorded: Recorded, log: Log) -> int:
    """A linearizable read finds whatever was acknowledged, or read so, before it began; and nothing not yet written."""
    floors, checked = _Floors(recorded), 0
    begun = _begun(recorded)
    for call in recorded.of("read"):
        if call.outcome != OK:
            continue
        key, checked = call.asked["key"], checked + 1
        floor = log.at(key, floors.floor(key, call.invoked))
        _check_found(call, log, key, call.revision, call.answer["value"], floor)
        assert begun.get(call.answer["value"], 0.0) <= call.returned, f"{call.client} read {key} before it was written"
    return checked


def _begun(recorded: Recorded) -> dict[Any, float]:
    return {value: call.invoked for call in recorded.calls for value in call.writes.values() if value is not None}


def _check_found(call: Call, log: Log, key: str, revision: int, value: Any, floor: int) -> None:
    """`value` at `revision` is in the log, and not older than `floor`. Absent: deleted since, or never there."""
    if revision:
        assert log.value(key, revision) == value, f"{call.client} found {key} {value!r} at {revision}, which never was"
        assert revision >= floor, f"{call.client} found {key} at {revision} after {floor} was acknowledged"
    elif _shown(log, key, floor):
        revisions = log.revisions[key]
        later = revisions[bisect_left(revisions, floor) :]
        assert any(log.value(key, later_one) is None for later_one in later), (
            f"{call.client} did not find {key} after {floor} was acknowledged, and nobody had deleted it"
        )


def check_conflicts(recorded: Recorded, log: Log) -> int:
    """Whoever was refused over a conflict was told of one: something else than it asked for, and not out of date."""
    floors, checked = _Floors(recorded), 0
    for call in recorded.calls:
        if call.outcome != CONFLICT:
            continue
        requires = call.asked.get("requires") or {call.asked["key"]: call.asked["expected"]}
        (key, expected) = next(iter(requires.items()))
        found = call.answer["revision"]
        assert found != expected, f"{call.client} was refused {key} at {expected}, and that is where it was"
        floor = log.at(key, floors.floor(key, call.invoked))
        _check_found(call, log, key, found, call.answer["value"], floor)
        checked += 1
    return checked


def check_local_reads(recorded: Recorded, log: Log) -> int:
    """In one process the copy never goes back, and shows what the process wrote."""
    checked = 0
    by_process: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in recorded.calls:
        if call.outcome == OK and call.op in ("look", "read"):
            by_process[call.process, call.asked["key"]].append(call)
        elif call.outcome == OK:
            for key in call.writes:
                by_process[call.process, key].append(call)
    for (_, key), calls in by_process.items():
        calls.sort(key=lambda call: call.returned)
        newest, position = 0, 0
        for call in sorted((call for call in calls if call.op == "look"), key=lambda call: call.invoked):
            while position < len(calls) and calls[position].returned < call.invoked:
                newest = max(newest, calls[position].revision)
                position += 1
            floor = log.at(key, newest)
            _check_found(call, log, key, call.revision, call.answer["value"], floor)
            checked += 1
    return checked


def check_watches(recorded: Recorded, log: Log) -> int:
    """Each watch tells changes in order, without a gap."""
    known = sorted(log.changes)
    for watched in recorded.watches:
        _check_watch(watched, log, known)
    return sum(len(watched.events) for watched in recorded.watches)


def _check_watch(watched: Watched, log: Log, known: list[int]) -> None:
    told: dict[int, set[str]] = defaultdict(set)
    last, replaced = 0, _replaced(watched)
    for event in watched.events:
        assert event.revision >= last, f"{watched.name} told {event.revision} after {last}"
        assert event.key not in told[event.revision], f"{watched.name} told {event.key} at {event.revision} twice"
        told[event.revision].add(event.key)
        last = event.revision
    # The end of the last revision told may have been cut off with the process.
    for revision in known[bisect_left(known, watched.since) : bisect_left(known, last)]:
        missing = log.changes[revision].keys() - told.get(revision, set())
        if any(after < revision <= up_to for after, up_to in replaced):
            continue
        assert not missing, f"{watched.name} went from before {revision} to {last} and never told of {missing}"


def _replaced(watched: Watched) -> list[tuple[int, int]]:
    """The revisions a snapshot stood for: above the first, up to the second."""
    found: list[tuple[int, int]] = []
    last, resyncing = watched.since - 1, False
    for event in watched.events:
        if event.resync and resyncing:
            found[-1] = (found[-1][0], event.revision)
        elif event.resync:
            found.append((last, event.revision))
        resyncing, last = event.resync, event.revision
    return found


def find_silent_gaps(recorded: Recorded) -> list[str]:
    """Watches that wanted every change, missed some to a snapshot, and went on without being told: what no watch that
    does not conflate may do."""
    log = build_log(recorded)
    silent = []
    for watched in recorded.watches:
        told = {(event.key, event.revision) for event in watched.events}
        missed = [
            (key, revision)
            for after, up_to in _replaced(watched)
            for revision in range(after + 1, up_to + 1)
            for key in log.changes.get(revision, {})
            if (key, revision) not in told
        ]
        if missed:
            silent.append(f"{watched.name} was never told of {len(missed)} changes, nor that it was not")
    return silent


def check_leaders(recorded: Recorded) -> int:
    """No term has two leaders."""
    leaders: dict[int, set[str]] = defaultdict(set)
    for role in recorded.roles:
        if role.role == "leader":
            leaders[role.term].add(role.member)
    for term, members in leaders.items():
        assert len(members) == 1, f"{sorted(members)} all led in term {term}"
    return len(leaders)


def check_end(recorded: Recorded, everything: Iterable[dict[str, list[Any]]]) -> int:
    """`everything`: key to value and revision, of each member at the end. All the same, as the log says, and every
    acknowledged write is there or was written over by a later one."""
    found = list(everything)
    assert found, "nobody is left to ask"
    assert all(one == found[0] for one in found), "the members do not hold the same"
    log = build_log(recorded)
    for key, (value, revision) in found[0].items():
        assert log.value(key, revision) == value, f"{key} ends as {value!r} at {revision}, which never was"
    for call in recorded.acknowledged():
        for key in call.writes:
            last = log.revisions.get(key, [0])[-1]
            ends_at = found[0].get(key, [None, 0])[1]
            assert ends_at == _shown(log, key, last), (
                f"{key}: its last change is at {last}, and it ends at {ends_at}; {call.client} wrote it at "
                f"{call.revision} and was acknowledged"
            )
    return len(found[0])
