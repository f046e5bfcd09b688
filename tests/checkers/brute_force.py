"""Is a history possible? By trying every order: slow, simple, and owing nothing to the checkers.

Writes get revisions in their order: each the one it was told, else any between its neighbours' that agrees with what
others were told of it. Tokens of locks likewise. What must not live here: anything for more than some eight operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from coord.testing.history import CONFLICT, FAILED, GET, HOLDER, LOOK, OK, UNKNOWN, Found, Operation


@dataclass(frozen=True)
class Written:
    """One write of an order: the revision it must have, and those it may not have."""

    exactly: int = 0
    not_at: frozenset[int] = frozenset()


@dataclass(frozen=True)
class World:
    #: (value as text, place in `writes`) by key.
    keys: dict[str, tuple[str, int]] = field(default_factory=dict)
    writes: tuple[Written, ...] = ()

    def is_possible(self) -> bool:
        """Whether there are rising revisions that agree; the least that do leave most room to the next."""
        last = 0
        for write in self.writes:
            if write.exactly:
                if write.exactly <= last or write.exactly in write.not_at:
                    return False
                last = write.exactly
            else:
                last += 1
                while last in write.not_at:
                    last += 1
        return True

    def at(self, place: int, revision: int) -> World | None:
        """Somebody was told that the write at `place` has `revision`."""
        write = self.writes[place]
        if write.exactly not in (0, revision):
            return None
        writes = list(self.writes)
        writes[place] = replace(write, exactly=revision)
        return replace(self, writes=tuple(writes))

    def not_at(self, place: int, revision: int) -> World:
        writes = list(self.writes)
        writes[place] = replace(writes[place], not_at=writes[place].not_at | {revision})
        return replace(self, writes=tuple(writes))


def show(value: object) -> str:
    return f"{type(value).__name__} {value!r}"


def is_possible(operations: list[Operation]) -> bool:
    wanted = [op for op in operations if op.outcome != FAILED and op.kind != LOOK]
    wanted = [op for op in wanted if op.outcome != UNKNOWN or op.kind != GET]
    return _try(wanted, World())


def _try(left: list[Operation], world: World) -> bool:
    if all(op.outcome == UNKNOWN for op in left):
        return True
    ends = [op.returned for op in left if op.outcome != UNKNOWN]
    for operation in left:
        if all(operation.invoked <= end for end in ends):
            rest = [op for op in left if op is not operation]
            for after in happen(operation, world):
                if after.is_possible() and _try(rest, after):
                    return True
    return False


def happen(operation: Operation, world: World) -> list[World]:
    """What the world may be once `operation` has happened, as it was answered."""
    if operation.kind == GET:
        return found(operation, world)
    if operation.outcome == CONFLICT:
        return conflicted(operation, world)
    current: World | None = world
    for key, required in operation.requires.items():
        assert current is not None
        if (required == 0) != (key not in current.keys):
            return []
        if required:
            current = current.at(current.keys[key][1], required)
        if current is None:
            return []
    assert current is not None
    if operation.existed is not None and operation.existed != (operation.deletes[0] in current.keys):
        return []
    keys = dict(current.keys)
    for key in operation.deletes:
        keys.pop(key, None)
    for key, value in operation.puts.items():
        keys[key] = (show(value), len(current.writes))
    return [World(keys, (*current.writes, Written(operation.revision)))]


def found(operation: Operation, world: World) -> list[World]:
    there = world.keys.get(operation.key)
    if operation.found is None or there is None:
        return [world] if operation.found is None and there is None else []
    assert isinstance(operation.found, Found)
    if there[0] != show(operation.found.value):
        return []
    after = world.at(there[1], operation.found.revision) if operation.found.revision else world
    return [] if after is None else [after]


def conflicted(operation: Operation, world: World) -> list[World]:
    told = operation.found is None or isinstance(operation.found, Found)
    worlds = found(operation, world) if told else [world]
    keys = [operation.key] if operation.key else list(operation.requires)
    possible = []
    for current in worlds:
        for key in keys:
            required, there = operation.requires[key], current.keys.get(key)
            if required == 0:
                possible += [current] if there is not None else []
            else:
                possible.append(current if there is None else current.not_at(there[1], required))
    return possible


# ---------------------------------------------------------------------------------------------------------------------
# Locks.


def lock_is_possible(operations: list[Operation]) -> bool:
    wanted = [op for op in operations if op.outcome != FAILED]
    wanted = [op for op in wanted if op.outcome != UNKNOWN or op.kind != HOLDER]
    return _try_lock(wanted, (), None)


#: The tokens granted in order, 0 where nobody was told; and who holds the last one.
def _try_lock(left: list[Operation], grants: tuple[int, ...], holder: str | None) -> bool:
    if all(op.outcome == UNKNOWN for op in left):
        return True
    ends = [op.returned for op in left if op.outcome != UNKNOWN]
    for operation in left:
        if all(operation.invoked <= end for end in ends):
            rest = [op for op in left if op is not operation]
            for after_grants, after_holder in lock_after(operation, grants, holder):
                if rise(after_grants) and _try_lock(rest, after_grants, after_holder):
                    return True
    return False


def rise(grants: tuple[int, ...]) -> bool:
    last = 0
    for token in grants:
        if token and token <= last:
            return False
        last = token or last + 1
    return True


def lock_after(
    operation: Operation, grants: tuple[int, ...], holder: str | None
) -> list[tuple[tuple[int, ...], str | None]]:
    token, known = operation.token, operation.outcome == OK
    told = [(*grants[:-1], token)] if holder is not None and grants[-1] in (0, token) else []
    if operation.kind in ("acquire", "try_acquire"):
        if known and not token:
            return [(grants, holder)] if holder is not None else []
        return [((*grants, token), operation.process)] if holder is None else []
    if operation.kind == "holder":
        if not token:
            return [(grants, holder)] if holder is None else []
        return [(now, holder) for now in told]
    if operation.kind == "expire" and not token:
        return [(grants, None)] if holder == operation.process else []
    if operation.kind == "release" and known and operation.existed is False:
        not_this = holder != operation.process or grants[-1] != token
        return [(grants, holder)] if not_this else []
    return [(now, None) for now in told if holder == operation.process]
