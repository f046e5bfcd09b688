"""The same history for the checkers of `coord.testing`, which know nothing of this judge and share no code with it.

What must not live here: judging.
"""

from __future__ import annotations

from coord.testing import history
from coord.testing.linearizability import check_config
from coord.testing.revisions import check_revisions
from coord.testing.watches import check_watch
from faults.judge import Log, build_log
from faults.record import CONFLICT, OK, REFUSED, UNKNOWN, Call, Recorded, Watched

_KINDS = {
    "put": history.PUT,
    "cas": history.COMPARE_AND_SET,
    "delete": history.DELETE,
    "transaction": history.TRANSACTION,
    "read": history.GET,
    "look": history.LOOK,
}
_OUTCOMES = {OK: history.OK, CONFLICT: history.CONFLICT, REFUSED: history.FAILED, UNKNOWN: history.UNKNOWN}


def check_shared(recorded: Recorded) -> dict[str, int]:
    """By search, which does not trust revisions to be the order; by revisions; and each watch. Raises what is wrong;
    what cannot be decided is wrong too."""
    log = build_log(recorded)
    operations = operations_of(recorded, log)
    changes = changes_of(log)
    searched = check_config(operations)
    searched.require_ok()
    by_revision = check_revisions(operations, changes if _is_whole(recorded, log) else None)
    by_revision.require_ok()
    told = 0
    for watched in recorded.watches:
        if not _is_resynced(watched):
            report = check_watch(changes, _watched(watched))
            report.require_ok()
            told += report.checked
    return {"searched": searched.checked, "by revision": by_revision.checked, "watched too": told}


def changes_of(log: Log) -> list[history.Change]:
    return [
        history.Change(revision, key, value, deleted=value is None)
        for revision in sorted(log.changes)
        for key, value in log.changes[revision].items()
    ]


def operations_of(recorded: Recorded, log: Log) -> list[history.Operation]:
    calls = sorted(recorded.calls, key=lambda call: call.invoked)
    return [_operation(number, call, log) for number, call in enumerate(calls)]


def _operation(number: int, call: Call, log: Log) -> history.Operation:
    asked, writes = call.asked, call.writes
    requires = dict(asked.get("requires", {}))
    if call.op == "cas":
        requires = {asked["key"]: asked["expected"]}
    operation = history.Operation(
        number,
        call.process,
        call.client,
        _KINDS[call.op],
        call.invoked,
        key="" if writes else asked["key"],
        puts={key: value for key, value in writes.items() if value is not None},
        deletes=tuple(key for key, value in writes.items() if value is None),
        requires=requires,
        returned=call.returned if call.outcome in (OK, CONFLICT) else history.FOREVER,
        outcome=_OUTCOMES[call.outcome],
    )
    if call.outcome == OK and writes:
        # A delete of what is not there has a revision of its own, at which nothing changed.
        changed = not operation.deletes or operation.deletes[0] in log.changes.get(call.revision, {})
        operation.revision = call.revision if changed else 0
    elif call.outcome == CONFLICT:
        operation.key = next(iter(requires))
    if call.outcome == CONFLICT or (call.outcome == OK and not writes):
        revision = call.answer["revision"]
        operation.found = history.Found(call.answer["value"], revision) if revision else None
    return operation


def _watched(watched: Watched) -> history.Watched:
    events = [
        history.Change(event.revision, event.key, event.value, deleted=event.value is None) for event in watched.events
    ]
    return history.Watched(
        watched.name, watched.name, from_revision=watched.since, initial=False, conflate=False, events=events
    )


def _is_resynced(watched: Watched) -> bool:
    return any(event.resync for event in watched.events)


def _is_whole(recorded: Recorded, log: Log) -> bool:
    """Whether some watch has told everything from the beginning to the end."""
    newest = max(log.changes, default=0)
    return any(
        watched.since == 1 and not _is_resynced(watched) and watched.events and watched.events[-1].revision == newest
        for watched in recorded.watches
    )
