"""Did a watch tell what it promised: every change asked for, once, in order, without a gap?

Held against the log, which must be whole as far as the watch has told. What must not live here: histories of
operations (`coord.testing.revisions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coord.testing.anomalies import (
    WATCH_DUPLICATE,
    WATCH_FOREIGN,
    WATCH_GAP,
    WATCH_REORDER,
    Report,
)
from coord.testing.history import Change, Watched, identity

_NO_END = float("inf")


def check_watch(
    changes: Iterable[Change], watched: Watched, *, began_at: int | None = None, until: int | None = None
) -> Report:
    """`changes`: the log. `began_at`: the revision the copy had reached when the watch began, if that is known.
    `until`: the watch was idle after this revision, so it must have told everything up to it; else up to its last
    event, where one revision may be told in part."""
    report = Report(checked=len(watched.events))
    log = _Log(changes, watched.prefix)
    if _check_events(watched, log, report):
        _check_gaps(watched, log, report, began_at, until)
    return report


def check_resumed(
    changes: Iterable[Change], watches: Sequence[Watched], *, began_at: int | None = None, until: int | None = None
) -> Report:
    """Watches that went on where the one before ended: each by itself, and nothing between them."""
    changes = list(changes)
    report = Report()
    told = 0
    for position, watched in enumerate(watches):
        begins = began_at if position == 0 else None
        part = check_watch(changes, watched, began_at=begins, until=until if position == len(watches) - 1 else None)
        report.anomalies += part.anomalies
        report.checked += part.checked
        if position and watched.from_revision is None:
            report.add(WATCH_GAP, f"{watched} resumes from nowhere, so changes after {told} may be lost")
        elif position and watched.from_revision is not None:
            log = _Log(changes, watched.prefix)
            lost = [change for change in log.changes if told < change.revision < watched.from_revision]
            if lost:
                report.add(WATCH_GAP, f"{watched} goes on at {watched.from_revision}; nobody told of {lost[0]}")
        told = max([told, *(event.revision for event in watched.events)])
    return report


@dataclass(slots=True)
class _Step:
    """One change of the log and the next of the same key."""

    change: Change
    replaced_at: float = _NO_END


class _Log:
    """The changes of the keys with a prefix, in order."""

    def __init__(self, changes: Iterable[Change], prefix: str) -> None:
        self.changes = sorted(
            (change for change in changes if change.key.startswith(prefix)), key=lambda change: change.revision
        )
        self.steps: dict[tuple[int, str], _Step] = {}
        last: dict[str, _Step] = {}
        for change in self.changes:
            step = self.steps[change.revision, change.key] = _Step(change)
            if change.key in last:
                last[change.key].replaced_at = change.revision
            last[change.key] = step


def _check_events(watched: Watched, log: _Log, report: Report) -> bool:
    """Each event is a change that was asked for, none is told twice, none after a later one."""
    told: set[tuple[int, str]] = set()
    last: Change | None = None
    for event in watched.events:
        name = (event.revision, event.key)
        step = log.steps.get(name)
        if not event.key.startswith(watched.prefix):
            report.add(WATCH_FOREIGN, f"{watched} told of {event}")
        elif step is None:
            report.add(WATCH_FOREIGN, f"{watched} told of {event}, which never happened")
        elif (event.deleted, identity(event.value)) != (step.change.deleted, identity(step.change.value)):
            report.add(WATCH_FOREIGN, f"{watched} told of {event}; what happened was {step.change}")
        elif watched.from_revision is not None and event.revision < watched.from_revision:
            report.add(WATCH_FOREIGN, f"{watched} told of {event}, and was to begin at {watched.from_revision}")
        elif name in told:
            report.add(WATCH_DUPLICATE, f"{watched} told of {event} twice")
        elif last is not None and event.revision < last.revision:
            report.add(WATCH_REORDER, f"{watched} told of {event} after {last}")
        told.add(name)
        last = event
    return report.ok


def _check_gaps(watched: Watched, log: _Log, report: Report, began_at: int | None, until: int | None) -> None:
    """Nothing is left out but what was replaced before the watch began, or, if it conflates, before it was told.

    Every change left out, and every one told, says something about where the watch can have begun: at or above `least`,
    below `most`. If it cannot have begun anywhere, whatever was left out is a gap.
    """
    told = {(event.revision, event.key) for event in watched.events}
    last = max((event.revision for event in watched.events), default=0)
    least, most = 0.0, _NO_END
    left_out: Change | None = None
    first_told: Change | None = None
    begins_with_what_is_there = watched.initial and watched.from_revision is None
    if watched.from_revision is not None:
        began_at = watched.from_revision - 1
    for change in log.changes:
        step = log.steps[change.revision, change.key]
        if (change.revision, change.key) in told:
            bound = _begins_below(step, begins_with_what_is_there)
            if bound < most:
                most, first_told = bound, change
        elif change.revision < last or (until is not None and change.revision <= until):
            bound = _begins_from(step, watched, begins_with_what_is_there, until)
            if bound > least:
                least, left_out = bound, change
    if began_at is not None:
        if began_at >= most:
            report.add(WATCH_FOREIGN, f"{watched} began at {began_at} and told of {first_told}, which was over")
        if began_at < least:
            report.add(WATCH_GAP, f"{watched} began at {began_at} and never told of {left_out}")
    elif least >= most or least == _NO_END:
        report.add(WATCH_GAP, f"{watched} told of {first_told} and never of {left_out}")


def _begins_below(step: _Step, initial: bool) -> float:
    """A watch that told of this change began below the result."""
    # What is there when it begins is told as puts, as long as it is there.
    return step.replaced_at if initial and not step.change.deleted else step.change.revision


def _begins_from(step: _Step, watched: Watched, initial: bool, until: int | None) -> float:
    """A watch that did not tell of this change began at the result or above."""
    change, replaced_at = step.change, step.replaced_at
    in_time = until is None or change.revision > until or replaced_at <= until
    if watched.conflate and replaced_at != _NO_END and in_time:
        # It may have been replaced before the reader came to it; the last of each key may not be left out.
        return 0
    if initial and not change.deleted:
        return replaced_at
    return change.revision


def last_values(changes: Iterable[Change], prefix: str = "") -> dict[str, Change]:
    """What there is after `changes`, by key."""
    values: dict[str, Change] = {}
    for change in sorted(changes, key=lambda change: change.revision):
        if change.key.startswith(prefix):
            if change.deleted:
                values.pop(change.key, None)
            else:
                values[change.key] = change
    return values
