"""What nobody inside knows: who led which term, who voted for whom, what was committed, and what all states must be.

The oracles write here what they see and look up what others saw. What must not live here: what may be (`promises`,
`rules`, `replies`).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NoReturn

from coord.machine.machine import Machine
from coord.machine.records import Change
from coord.raft.batch import COMMANDS, Batch

if TYPE_CHECKING:
    from coord.raft.core import Core
    from coord.testing.process import Process
    from simulation.world import World


class Violation(AssertionError):
    """The group broke a promise."""


class Truth:
    def __init__(self, world: World) -> None:
        self.world = world
        #: Who led each term (election safety).
        self.leaders: dict[int, str] = {}
        #: (term, voter) to whom the vote went, the candidate's own included.
        self.votes: dict[tuple[int, str], str] = {}
        #: What is committed, and in which term that became known.
        self.golden: list[Batch] = []
        self._firsts: list[int] = []
        self._committed_in: list[int] = []
        #: The one true state, its hash at the end of each batch, and all changes of the config map.
        self.machine = Machine()
        self.hashes: dict[int, int] = {0: self.machine.state_hash}
        self.changes: list[Change] = []
        #: (session, sequence): every reply that command was ever given.
        self.replies: dict[tuple[int, int], list[Any]] = {}
        #: Told of each entry as it becomes certain: (index, batch, payload, outcome).
        self.on_entry: list[Any] = []
        #: How often what is rare has happened.
        self.happened: dict[str, int] = {}

    @property
    def committed(self) -> int:
        """The highest commit index anywhere, ever."""
        return self.machine.applied_index

    def fail(self, what: str) -> NoReturn:
        raise Violation(f"at {self.world.timeline.now:.4f}: {what}")

    def require(self, holds: bool, what: str, process: Process) -> None:
        if not holds:
            self.fail(f"{process.name}: {what}\n  {self.world.describe(process)}")

    def note(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    def is_majority(self, count: int) -> bool:
        return 2 * count > len(self.world.names)

    # -----------------------------------------------------------------------------------------------------------------
    # What is committed.

    def extend(self, core: Core) -> None:
        """A leader has committed this far: from now on it is so."""
        for batch in core.log.between(self.committed + 1, core.commit):
            self.golden.append(batch)
            self._firsts.append(batch.first)
            self._committed_in.append(core.term)
            self._apply(batch)
            self.hashes[batch.last] = self.machine.state_hash

    def _apply(self, batch: Batch) -> None:
        machine = self.machine
        if batch.kind != COMMANDS:
            machine.skip(batch.last, batch.time)
            return
        self.note("batch committed")
        index = batch.first
        for payload in batch.payloads():
            outcome = machine.apply(index, batch.term, batch.time, payload)
            if outcome is not None:
                self.replies.setdefault(outcome[:2], []).append(outcome[2])
            for look in self.on_entry:
                look(index, batch, payload, outcome)
            index += 1
        machine.take_session_events()
        self.changes += machine.take_changes()

    def golden_at(self, index: int) -> Batch:
        return self.golden[bisect_right(self._firsts, index) - 1]

    def golden_before(self, term: int) -> int:
        """The last index committed in a term older than `term`."""
        position = len(self.golden)
        while position and self._committed_in[position - 1] >= term:
            position -= 1
        return self.golden[position - 1].last if position else 0
