"""What clients wished for and were told, in real time: kept until the end, then given to the checkers.

What must not live here: how a history is judged (`coord.testing.linearizability`, `coord.testing.revisions`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coord.testing.process import Process

if TYPE_CHECKING:
    from simulation.world import World


@dataclass(slots=True, eq=False)
class Wish:
    """One operation of one client."""

    kind: str
    #: What keys become; None: deleted, or read.
    changes: dict[str, bytes | None]
    #: Revisions keys must be at.
    required: dict[str, int] = field(default_factory=dict)
    operation: Any = None

    def __str__(self) -> str:
        changes = ", ".join(f"{key}={value!r}" for key, value in self.changes.items())
        required = f" if {self.required}" if self.required else ""
        return f"{self.kind} {changes}{required}"


class Histories:
    def __init__(self, world: World) -> None:
        self._world = world
        #: Operations begun.
        self.count = 0

    def begin(self, client: str, process: Process, wish: Wish) -> None:
        self.count += 1

    def end(self, wish: Wish, outcome: str, **result: Any) -> None:
        pass

    def local(self, client: str, process: Process, key: str, found: tuple[bytes, int] | None) -> None:
        pass

    def check_end(self) -> None:
        pass
