"""What clients wished for and were told, in real time: kept until the end, then given to the checkers.

What must not live here: how a history is judged (`coord.testing.linearizability`, `coord.testing.revisions`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coord.testing import history as records
from coord.testing.history import UNSAID, Change, Found, History, Operation
from coord.testing.linearizability import check_config
from coord.testing.process import Process
from coord.testing.revisions import check_revisions

if TYPE_CHECKING:
    from simulation.world import World

#: What is given to the search: operations, and writes of unknown outcome among them.
_PART_MAX, _UNKNOWN_MAX = 100, 3

_KINDS = {
    "get": records.GET,
    "put": records.PUT,
    "delete": records.DELETE,
    "transaction": records.TRANSACTION,
}


@dataclass(slots=True, eq=False)
class Wish:
    """One operation of one client."""

    #: "get", "put", "delete", "transaction"; "other" is judged by the model of the state alone.
    kind: str
    #: What keys become; None: deleted, or read.
    changes: dict[str, bytes | None]
    #: Revisions keys must be at.
    required: dict[str, int] = field(default_factory=dict)
    operation: Operation | None = None

    def __str__(self) -> str:
        changes = ", ".join(f"{key}={value!r}" for key, value in self.changes.items())
        required = f" if {self.required}" if self.required else ""
        return f"{self.kind} {changes}{required}"


class Histories:
    def __init__(self, world: World) -> None:
        self._world = world
        self._history = History()
        #: Operations begun.
        self.count = 0

    def begin(self, client: str, process: Process, wish: Wish) -> None:
        self.count += 1
        if wish.kind == "other":
            return
        kind = records.COMPARE_AND_SET if wish.kind == "put" and wish.required else _KINDS[wish.kind]
        whole = kind == records.TRANSACTION
        key = "" if whole else next(iter(wish.changes))
        puts = {name: value for name, value in wish.changes.items() if value is not None}
        wish.operation = self._history.begin(
            self._world.timeline.now,
            client,
            kind,
            key,
            value=UNSAID if whole or kind not in (records.PUT, records.COMPARE_AND_SET) else wish.changes[key],
            puts=puts if whole else None,
            deletes=[name for name, value in wish.changes.items() if value is None] if whole else (),
            requires=wish.required,
            process=f"{process.name}{process.life}",
        )

    def end(
        self,
        wish: Wish,
        outcome: str,
        *,
        revision: int = 0,
        changed: int = 0,
        found: tuple[str, tuple[bytes | None, int] | None] | None = None,
    ) -> None:
        """`found`: (key, (value, revision) or None) of a read, or what was in the way of a write."""
        operation, history, now = wish.operation, self._history, self._world.timeline.now
        if operation is None:
            return
        if outcome == "ok" and wish.kind == "get":
            assert found is not None
            history.ok(now, operation, found=_found(found[1]))
        elif outcome == "ok":
            history.ok(now, operation, revision=revision if changed else 0, existed=_existed(wish, changed))
        elif outcome == "conflict":
            assert found is not None
            history.conflict(now, operation, key=found[0], found=_found(found[1]))
        elif outcome == "unknown":
            history.unknown(operation)
        else:
            history.failed(operation)

    def local(self, client: str, process: Process, key: str, found: tuple[bytes, int] | None) -> None:
        now = self._world.timeline.now
        owner = f"{process.name}{process.life}"
        operation = self._history.begin(now, client, records.LOOK, key, process=owner)
        self._history.ok(now, operation, found=_found(found), at=process.replica.machine.applied_index)

    def check_end(self) -> None:
        """By their revisions, against the one true log; and by search, which asks no revision, where that is sure to
        end: parts that are not too large, with few writes of unknown outcome."""
        operations = self._history.operations
        changes = [
            Change(made.revision, made.key, None if made.record is None else made.record.value, made.record is None)
            for made in self._world.truth.changes
            if made.key.startswith("k")
        ]
        check_revisions(operations, changes).require_ok()
        if self._world.knobs.transactions:
            parts = [operations]
        else:
            by_key: dict[str, list[Operation]] = {}
            for operation in operations:
                by_key.setdefault(min(operation.keys), []).append(operation)
            parts = list(by_key.values())
        for part in parts:
            unknown = sum(op.outcome == records.UNKNOWN for op in part)
            if len(part) <= _PART_MAX and unknown <= _UNKNOWN_MAX:
                check_config(part).require_ok()
                self._world.truth.note("history searched")
            else:
                self._world.truth.note("history too large for a search")


def _found(found: tuple[bytes | None, int] | None) -> Found | None:
    return None if found is None else Found(found[0], found[1])


def _existed(wish: Wish, changed: int) -> bool | None:
    return bool(changed) if wish.kind == "delete" else None
