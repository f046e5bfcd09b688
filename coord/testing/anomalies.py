"""What can be wrong with a history, by name, and how a checker says so.

What must not live here: how it is found (`coord.testing.linearizability`, `coord.testing.revisions`,
`coord.testing.watches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coord.testing.history import Operation

#: A read missed a write that had been acknowledged, or read, before it began.
STALE_READ = "stale read"
#: A read found what was not yet asked for when it returned.
FUTURE_READ = "read of the future"
#: What a failed or conflicting write wanted to write was found.
DIRTY_READ = "dirty read of a failed write"
#: Found what nobody ever asked for.
NEVER_WRITTEN = "never written"
#: Something else than what was written at that revision.
WRONG_VALUE = "wrong value"
#: A write with a condition happened although something newer was there, which it destroyed unseen.
LOST_UPDATE = "lost update"
#: Two writes with the same condition, which only one can have met.
TWO_WINNERS = "two winners of a compare-and-set"
#: Some of a transaction's changes were there without the others.
SPLIT_TRANSACTION = "split transaction"
#: A conflict was told of where there was none.
FALSE_CONFLICT = "false conflict"
#: The order of revisions is not one in which it can have happened.
OUT_OF_ORDER = "revisions out of order"
#: One revision, two writes.
REVISION_REUSED = "revision used twice"
#: One write, two revisions.
WRITTEN_TWICE = "written twice"
#: An acknowledged write is not in the log.
LOST_WRITE = "lost write"
#: `created` or `version` cannot be right.
WRONG_VERSION = "wrong version"
#: A delete was told that something was there, or was not, and it was otherwise.
WRONG_DELETE = "wrong answer to a delete"
#: A process's own copy went back.
WENT_BACK = "copy went back"
#: A process's own copy did not show what that process had written.
OWN_WRITE_NOT_SEEN = "own write not seen"
WATCH_GAP = "watch gap"
WATCH_DUPLICATE = "watch duplicate"
WATCH_REORDER = "watch reorder"
#: A watch told of what was not asked for, or of what never happened.
WATCH_FOREIGN = "watch of something foreign"

#: How many a report spells out.
_SHOWN = 10


class HistoryViolation(AssertionError):
    """A history is not what the promises allow, or it could not be decided whether it is."""


@dataclass(slots=True, frozen=True)
class Anomaly:
    name: str
    text: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.name}: {self.text}", *map(str, self.operations)])


@dataclass(slots=True)
class Report:
    """What a checker found. `require_ok` is what a test calls."""

    anomalies: list[Anomaly] = field(default_factory=list)
    #: How many operations or events it looked at: a check of nothing is no check.
    checked: int = 0

    @property
    def ok(self) -> bool:
        return not self.anomalies

    @property
    def names(self) -> set[str]:
        return {anomaly.name for anomaly in self.anomalies}

    def add(self, name: str, text: str, operations: Sequence[Operation] = ()) -> None:
        self.anomalies.append(Anomaly(name, text, tuple(operations)))

    def require_ok(self) -> None:
        if self.anomalies:
            raise HistoryViolation(str(self))

    def __str__(self) -> str:
        if not self.anomalies:
            return f"nothing wrong in {self.checked}"
        shown = [str(anomaly) for anomaly in self.anomalies[:_SHOWN]]
        left_out = len(self.anomalies) - len(shown)
        return "\n".join(shown + ([f"and {left_out} more"] if left_out else []))
