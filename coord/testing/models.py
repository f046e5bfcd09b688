"""What a config map and a lock do, one operation at a time: the models a history is held against.

A model's `prepare` turns an operation into what `step` needs, once; `step` gives the state after it, or None where the
operation cannot have happened as it was answered. An operation of unknown outcome happened, or never did: `step` says
what it does if it happens now. States are compared and kept in sets, so they are tuples.
What must not live here: when operations may have happened (`coord.testing.linearizability`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from coord.testing.history import (
    ACQUIRE,
    CONFLICT,
    DELETE,
    EXPIRE,
    GET,
    HOLDER,
    LOCKS,
    OK,
    PUT,
    TRY_ACQUIRE,
    WRITES,
    Found,
    Operation,
    identity,
)

State = Any


class Model(Protocol):
    def initial(self) -> State:
        """The state before the first operation."""

    def prepare(self, operation: Operation) -> Any:
        """What `step` needs of it."""

    def step(self, state: State, prepared: Any) -> State | None:
        """The state after it; None if it cannot have happened in `state`."""


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


class Register:
    """One key, its values only: put, get, delete. It knows nothing of revisions, so it owes nothing to them."""

    def initial(self) -> State:
        return (ABSENT,)

    def prepare(self, operation: Operation) -> Any:
        if operation.requires or len(operation.keys) != 1:
            raise ValueError(f"a register has no conditions and no transactions: {operation}")
        if operation.kind == GET:
            return False, _value_found(operation), None
        if operation.kind == PUT:
            return True, identity(next(iter(operation.puts.values()))), None
        if operation.kind == DELETE:
            return True, ABSENT, operation.existed if operation.outcome == OK else None
        raise ValueError(f"no operation of a register: {operation}")

    def step(self, state: State, prepared: Any) -> State | None:
        writes, value, existed = prepared
        if not writes:
            return state if state[0] == value else None
        if existed is not None and existed != (state[0] is not ABSENT):
            return None
        return (value,)


class ConfigKeys:
    """Keys with revisions, written one by one or several at once: put, get, delete, compare-and-set, transaction.

    The state is (position, entries): the log index of the last write, or the least it can have been, and for each key
    (value, revision). A revision nobody has been told is negative: -7 is some revision, 7 or later. It becomes known
    when somebody is told it, or meets a condition with it. That it must also be below that of the next write of another
    key is not kept track of: the checks by revision see that.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._slots = {key: slot for slot, key in enumerate(keys)}

    def initial(self) -> State:
        return (0, ((ABSENT, 0),) * len(self._slots))

    def prepare(self, operation: Operation) -> Any:
        """(what is read: (slot, value, revision), conditions, conditions of which one fails, writes, revision,
        whether what is deleted was there)."""
        slots = self._slots
        found = operation.found
        reads = None
        if operation.kind == GET or (operation.outcome == CONFLICT and (found is None or isinstance(found, Found))):
            revision = found.revision if isinstance(found, Found) else 0
            reads = (slots[operation.key], _value_found(operation), revision)
        elif operation.kind not in WRITES:
            raise ValueError(f"no operation of a config map: {operation}")
        conditions = tuple((slots[key], revision) for key, revision in operation.requires.items())
        if operation.outcome == CONFLICT:
            if operation.key:
                conditions = ((slots[operation.key], operation.requires[operation.key]),)
            return reads, (), conditions, (), 0, None
        writes = [(slots[key], identity(value)) for key, value in operation.puts.items()]
        writes += [(slots[key], ABSENT) for key in operation.deletes]
        existed = operation.existed if operation.outcome == OK and operation.kind == DELETE else None
        return reads, conditions, (), tuple(writes), operation.revision, existed

    def step(self, state: State, prepared: Any) -> State | None:
        reads, conditions, failing, writes, revision, existed = prepared
        position, entries = state
        if reads is not None:
            slot, value, found = reads
            state = _learn(state, slot, found) if entries[slot][0] == value else None
            if state is None or not failing:
                return state
        if failing:
            return state if any(_may_differ(state[1][slot], required) for slot, required in failing) else None
        for slot, required in conditions:
            absent = state[1][slot][0] is ABSENT
            if absent != (required == 0):
                return None
            state = _learn(state, slot, required)
            if state is None:
                return None
        position, entries = state
        if not writes:
            return state
        if existed is not None and existed != (entries[writes[0][0]][0] is not ABSENT):
            return None
        if revision == 0:
            position, known = position + 1, -position - 1
        elif revision > position:
            position = known = revision
        else:
            return None
        if len(entries) == 1:
            value = writes[0][1]
            return position, ((value, 0 if value is ABSENT else known),)
        changed = list(entries)
        for slot, value in writes:
            changed[slot] = (value, 0 if value is ABSENT else known)
        return position, tuple(changed)


def _learn(state: State, slot: int, revision: int) -> State | None:
    """The state once the entry in `slot` is known to be at `revision` (0: not said); None if it cannot be."""
    position, entries = state
    _, known = entries[slot]
    if revision == 0 or known == revision:
        return state
    if known >= 0 or revision < -known:
        return None
    # Unknown revisions rise in the order of the writes, and those of one write are equal.
    becomes, least = {known: revision}, revision
    for later in sorted({other for _, other in entries if other < known}, reverse=True):
        least = max(-later, least + 1)
        becomes[later] = -least
    return max(position, least), tuple((value, becomes.get(other, other)) for value, other in entries)


def _may_differ(entry: tuple[Any, int], required: int) -> bool:
    value, revision = entry
    return (value is not ABSENT) if required == 0 else (value is ABSENT or revision != required)


def _value_found(operation: Operation) -> Hashable:
    return identity(operation.found.value) if isinstance(operation.found, Found) else ABSENT


class Lock:
    """One exclusive lock. Tokens rise strictly; who tries and fails found it held; only its holder releases it; the
    hold of a process may expire from the moment on at which `EXPIRE` was begun.

    The state is (least token that can come next, token held, its process): -1 held by nobody, 0 with a token nobody
    was told. First come first served is not checked.
    """

    def initial(self) -> State:
        return (1, -1, "")

    def prepare(self, operation: Operation) -> Any:
        if operation.kind not in LOCKS:
            raise ValueError(f"no operation of a lock: {operation}")
        known = operation.outcome == OK
        return operation.kind, operation.token, operation.process, known, operation.existed

    def step(self, state: State, prepared: Any) -> State | None:
        kind, token, process, known, existed = prepared
        least, held, holder = state
        if kind in (ACQUIRE, TRY_ACQUIRE):
            if known and not token:
                return state if held != -1 else None
            if held != -1 or (token and token < least):
                return None
            return (token or least) + 1, token, process
        if kind == HOLDER:
            return self._look(state, token)
        mine = held != -1 and holder == process and (held in (0, token) or (kind == EXPIRE and not token))
        if held == 0 and token and token < least - 1:
            mine = False
        if known and existed is False:
            # With a token nobody was told it may have been another than the one released.
            return state if not mine or held == 0 else None
        if not mine:
            return None
        return max(least, token + 1), -1, ""

    def _look(self, state: State, token: int) -> State | None:
        least, held, holder = state
        if not token:
            return state if held == -1 else None
        if held == 0 and token >= least - 1:
            return token + 1, token, holder
        return state if held == token else None
