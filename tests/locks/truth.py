"""The one order of what happened to a lock: the group's log, applied again, entry by entry.

What must not live here: clocks, and what contenders say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coord.machine.lock_table import GONE, GRANTED
from coord.machine.machine import Machine
from coord.raft.batch import COMMANDS, Batch
from locks.record import RequestId


@dataclass(slots=True)
class Grant:
    """One hold in the log."""

    request: RequestId
    owner: str
    token: int
    #: Index of the entry that granted it, and of the one that ended it; 0 while it is held.
    granted: int
    gone: int = 0
    #: Index of the entry that asked, if it had to wait; 0 if it was granted at once.
    asked: int = 0


@dataclass(slots=True)
class Truth:
    """All holds of one lock, in the order of the log."""

    grants: list[Grant]
    #: Of the whole state at the end, as a member tells it.
    state_hash: str
    #: The most that ever held it at a time.
    most: int
    entries: int


def replay(batches: Iterable[Batch], name: str) -> Truth:
    """Apply the log to an empty state. It must begin with entry 1."""
    machine, grants, most, entries = Machine(), [], 0, 0
    held: dict[RequestId, Grant] = {}
    for batch in batches:
        if batch.kind != COMMANDS:
            machine.skip(batch.last, batch.time)
            continue
        for index, payload in enumerate(batch.payloads(), batch.first):
            queue = {(waiting.session, waiting.request): waiting.asked for waiting in machine.locks.queue(name)}
            machine.apply(index, batch.term, batch.time, payload)
            entries += 1
            for event in machine.take_lock_events():
                request = (event.session, event.request)
                if event.name != name:
                    continue
                if event.kind == GRANTED:
                    hold = machine.locks.hold(*request)
                    # Granted and gone within one entry it would be None, and nobody could rely on it.
                    assert hold is not None, f"entry {index} grants {request}, and takes it back"
                    held[request] = Grant(request, hold.owner, hold.token, index, asked=queue.get(request, 0))
                    grants.append(held[request])
                elif event.kind == GONE and request in held:
                    held.pop(request).gone = index
                assert len(held) >= len(machine.locks.holders(name)) - 1
            most = max(most, len(machine.locks.holders(name)))
            assert set(held) == {(hold.session, hold.request) for hold in machine.locks.holders(name)}
        machine.take_changes()
        machine.take_session_events()
    return Truth(grants, f"{machine.state_hash:016x}", most, entries)
