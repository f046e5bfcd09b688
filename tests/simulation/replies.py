"""Replies: whatever a caller is told is what an independent model of the replicated state says, entry by entry.

The model (`machine.reference`) shares no code with what it judges; neither does the reading of commands here. What must
not live here: the order of events in real time (`clients`, and the checkers they go through).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from coord.machine.limits import Limits
from coord.machine.lock_table import LockTable
from coord.raft.batch import Batch
from coord.testing.process import Process
from machine.reference import Reference
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.world import World

_LIMITS = ("value_bytes", "transaction_bytes", "state_bytes", "keys", "sessions", "lock_requests", "waiters")
#: The commands of locks, by number.
_OF_LOCKS = {48: "acquire", 49: "release", 50: "cancel", 51: "set_value", 52: "downgrade"}
_OK, _SESSION_ENDED, _STALE = 0, 2, 3


class Replies:
    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        self._model = Reference(dict(zip(_LIMITS, Limits().row(), strict=True)))
        #: (session, sequence), in the order in which each was first applied: first in, first out for each session.
        self._newest: dict[int, int] = {}
        #: What nobody may ever see applied: (session, sequence) of what its caller was told never happens.
        self.withdrawn: set[tuple[int, int]] = set()
        #: What its caller gave up after it was sent: it may yet happen, also after what was sent later.
        self.doubtful: set[tuple[int, int]] = set()
        truth.on_entry.append(self._on_entry)

    def session_in(self, payload: bytes) -> int:
        """The session an expiry is about."""
        session: int = msgpack.unpackb(payload)[1]
        return session

    def _on_entry(self, index: int, batch: Batch, payload: bytes, outcome: Any) -> None:
        command = msgpack.unpackb(payload, use_list=False)
        told = as_told(command)
        model = self._model
        model.time = max(model.time, self._truth.machine.time)
        expected = model.apply(index, batch.term, batch.time, told) if told else None
        if outcome != expected:
            self._truth.fail(f"M1: entry {index}, {command}, is answered {outcome}; the model says {expected}")
        self._check_locks(f"after entry {index}, {command},")
        if expected is None or expected[1] == 0:
            return
        session, sequence, reply = expected
        if (session, sequence) in self.withdrawn and reply[0] != _SESSION_ENDED:
            self._truth.fail(f"{command} happened at {index}; its caller was told that it never would")
        newest = self._newest.get(session, 0)
        if reply[0] not in (_SESSION_ENDED, _STALE) and sequence > newest:
            self._newest[session] = sequence
        elif sequence < newest and reply[0] == _OK and self._first(session, sequence):
            if (session, sequence) in self.doubtful:
                self._truth.note("given up, and done late")
                return
            self._truth.fail(f"first in, first out: {command} is first done at {index}, after number {newest}")

    def _first(self, session: int, sequence: int) -> bool:
        """Is the newest reply to it also the first?"""
        return len(self._truth.replies[session, sequence]) == 1

    def settling(self, process: Process, sequence: int, reply: Any) -> None:
        """S2: exactly once, whichever copy, whoever leads."""
        if reply[0] == _SESSION_ENDED:
            # No answer: of a session that was given up in this very batch, perhaps.
            return
        numbering = process.replica.numbering
        session = numbering.session
        if reply[0] == _STALE and sequence in numbering._open:
            self._truth.fail(f"S2: {process.name} is told that it took the answer to {sequence}, and waits for it")
        known = self._truth.replies.get((session, sequence), [])
        if reply not in known:
            self._truth.fail(
                f"S2: {process.name} finds {reply} for number {sequence} of session {session:x}; it was {known}"
            )

    def check_end(self) -> None:
        """The state, not only the replies."""
        machine, model = self._truth.machine, self._model
        found = {key: row[:6] for key, row in machine.store.view()[1].items()}
        revision = model.changes[-1][0] if model.changes else 0
        if machine.store.revision != revision:
            self._truth.fail(f"M1: the revision at the end is {machine.store.revision}; the model says {revision}")
        names = ("value", "revision", "created", "version", "session", "expires_at")
        expected = {key: tuple(record[name] for name in names) for key, record in model.keys.items()}
        if found != expected or set(machine.sessions) != set(model.sessions):
            self._truth.fail(f"M1: the state at the end is {found}; the model says {expected}")
        self._check_locks("at the end")

    def _check_locks(self, when: str) -> None:
        """Who holds, who waits, what is closed. After each entry, since at the end of most worlds nothing is left."""
        machine, model = self._truth.machine, self._model.locks
        found, expected = (machine.epoch, locks_of(machine.locks)), (model.epoch, model.view())
        if found != expected:
            self._truth.fail(f"M1: epoch and locks {when} are {found}; the model says {expected}")


def locks_of(table: LockTable) -> dict[str, dict[str, Any]]:
    """All locks, as the model's view has them."""
    return {
        name: {
            "permits": table.permits(name),
            "holders": [hold[1:] for hold in table.holders(name)],
            "queue": [waiting[1:] for waiting in table.queue(name)],
            "delays": table.delayed(name),
        }
        for name in table.names()
    }


def as_told(command: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A command as the model takes it; None for what changes nothing."""
    number, *fields = command
    if number == 1:
        return ("open", *fields)
    if number == 2:
        return ("expire", *fields)
    if number == 3:
        return ("tick",)
    if number == 4:
        return ("limits", fields[0], dict(zip(_LIMITS, fields[1], strict=True)))
    if number == 6:
        return ("epoch", *fields)
    if number == 16:
        return ("close", *fields)
    if number == 32:
        session, sequence, low, key, value, ephemeral, ttl, expected = fields
        compares = [] if expected == -1 else [(key, expected)]
        return ("write", session, sequence, low, compares, [("put", key, value, ephemeral, ttl)], False)
    if number == 33:
        session, sequence, low, key, expected = fields
        compares = [] if expected == -1 else [(key, expected)]
        return ("write", session, sequence, low, compares, [("delete", key)], False)
    if number == 34:
        session, sequence, low, compares, operations = fields
        wanted = [("put", *op[1:]) if op[0] == 32 else ("delete", op[1]) for op in operations]
        told = [compare[1:] if compare[0] == 1 else ("hold", *compare[1:]) for compare in compares]
        return ("write", session, sequence, low, told, wanted, True)
    if number in _OF_LOCKS:
        return (_OF_LOCKS[number], *fields)
    return None
