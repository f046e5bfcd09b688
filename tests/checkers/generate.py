"""Histories as a correct group makes them, at random; and ways to spoil them, each of which makes a known anomaly.

What must not live here: what the checkers say of them.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from coord.testing import anomalies
from coord.testing.history import CONFLICT, FAILED, OK, UNKNOWN, UNSAID, Change, Found, Operation

FOREVER = float("inf")
KINDS = ("put", "put", "get", "get", "look", "delete", "compare_and_set", "transaction")


@dataclass
class Shape:
    operations: int = 60
    clients: int = 4
    keys: int = 3
    processes: int = 2
    kinds: tuple[str, ...] = KINDS
    unknown: float = 0.05
    failed: float = 0.05
    #: How long an operation takes on average, if clients rest for 1.
    takes: float = 1.0
    #: Share of the answers that leave out the revision.
    silent: float = 0.0


@dataclass
class Run:
    """What happened, and what was seen of it."""

    operations: list[Operation] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    #: When what happened, by number of the operation, and at which revision.
    points: dict[int, tuple[float, int]] = field(default_factory=dict)

    def before(self, key: str, revision: int) -> Change | None:
        """The last change of `key` below `revision`."""
        return max(
            (change for change in self.changes if change.key == key and change.revision < revision),
            key=lambda change: change.revision,
            default=None,
        )


class Group:
    """A map that changes at one moment, clients that call it, and copies that lag."""

    def __init__(self, seed: int | str, shape: Shape) -> None:
        self._rng = random.Random(seed)
        self._shape = shape
        self._run = Run()
        self._index = 1
        self._values = 0
        self._map: dict[str, Found] = {}
        self._copies = {f"p{number}": 0 for number in range(shape.processes)}
        self._names = {number: f"c{number}" for number in range(shape.clients)}
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0

    def run(self) -> Run:
        for number in self._names:
            self._later(self._rng.random(), partial(self._ask, number))
        while self._queue:
            now, _, act = heapq.heappop(self._queue)
            act(now)
        return self._run

    def _later(self, time: float, act: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, act))

    def _ask(self, number: int, now: float) -> None:
        rng, shape, run = self._rng, self._shape, self._run
        if len(run.operations) >= shape.operations:
            return
        process = f"p{number % shape.processes}"
        operation = Operation(
            len(run.operations), process, self._names[number], rng.choice(shape.kinds), now, **self._wish(number)
        )
        self._shape_wish(operation)
        run.operations.append(operation)
        if operation.kind == "look":
            self._look(operation)
            operation.returned = now + 0.001
            self._later(operation.returned + rng.random(), partial(self._ask, number))
            return
        happens = now + rng.expovariate(1 / shape.takes)
        returns = happens + rng.expovariate(1 / shape.takes)
        writes, fate = operation.kind != "get", rng.random()
        if writes and fate < shape.unknown:
            self._names[number] += "'"
            if rng.random() < 0.6:
                self._later(happens + rng.choice([0, 5]), lambda then: self._happen(operation, then))
        elif writes and fate < shape.unknown + shape.failed:
            operation.outcome = FAILED
        else:
            self._later(happens, lambda then: self._happen(operation, then, returns))
        self._later(returns + rng.random(), partial(self._ask, number))

    def _wish(self, number: int) -> dict[str, Any]:
        return {"key": f"k{self._rng.randrange(self._shape.keys)}"}

    def _shape_wish(self, operation: Operation) -> None:
        rng, kind, key = self._rng, operation.kind, operation.key
        if kind in ("get", "look"):
            return
        operation.key = ""
        expected = self._map[key].revision if key in self._map and rng.random() < 0.8 else rng.choice([0, self._index])
        if kind == "delete":
            operation.deletes = (key,)
        else:
            operation.puts = {key: self._value()}
        if kind == "compare_and_set":
            operation.requires = {key: expected}
        if kind == "transaction":
            other = f"k{rng.randrange(self._shape.keys)}"
            if other != key and rng.random() < 0.7:
                operation.puts = {**operation.puts, other: self._value()}
            elif other != key:
                operation.deletes = (other,)
            if rng.random() < 0.5:
                operation.requires = {key: expected}

    def _value(self) -> int:
        self._values += 1
        return self._values

    def _happen(self, operation: Operation, now: float, returns: float = FOREVER) -> None:
        silent = self._rng.random() < self._shape.silent
        if operation.kind == "get":
            operation.found = self._shown(operation.key, silent)
            self._copies[operation.process] = max(self._copies[operation.process], self._index)
            operation.at = 0 if silent else self._index
            answered = True
        else:
            answered = self._write(operation, now, known=returns < FOREVER, silent=silent)
        if returns < FOREVER:
            operation.returned = returns
            operation.outcome = OK if answered else CONFLICT
            revision = self._index
            if answered and operation.kind != "get":
                self._later(returns, lambda _: self._catch_up(operation.process, revision))

    def _catch_up(self, process: str, revision: int) -> None:
        self._copies[process] = max(self._copies[process], revision)

    def _write(self, operation: Operation, now: float, *, known: bool, silent: bool) -> bool:
        self._index += 2
        for key, required in operation.requires.items():
            there = self._map.get(key)
            if (there.revision if there else 0) != required:
                if known:
                    operation.key, operation.found = key, self._shown(key, False)
                return False
        self._run.points[operation.number] = (now, self._index)
        if known:
            operation.revision = 0 if silent else self._index
        for key in operation.deletes:
            existed = self._map.pop(key, None) is not None
            if existed:
                self._run.changes.append(Change(self._index, key, deleted=True))
            if known and operation.kind == "delete":
                operation.existed = existed
        for key, value in operation.puts.items():
            before = self._map.get(key)
            created, version = (before.created, before.version + 1) if before else (self._index, 1)
            self._map[key] = Found(value, self._index, created, version)
            self._run.changes.append(Change(self._index, key, value))
        return True

    def _shown(self, key: str, silent: bool) -> Found | None:
        found = self._map.get(key)
        return Found(found.value) if found is not None and silent else found

    def _look(self, operation: Operation) -> None:
        least = self._copies[operation.process]
        place = self._copies[operation.process] = self._rng.randint(least, max(least, self._index))
        operation.found = last_found(self._run, operation.key, place)
        operation.at, operation.outcome = place, OK


def last_found(run: Run, key: str, place: int) -> Found | None:
    change = run.before(key, place + 1)
    return None if change is None or change.deleted else Found(change.value, change.revision)


# ---------------------------------------------------------------------------------------------------------------------
# Spoiling.


@dataclass
class Spoiler:
    """One way to spoil a run. `spoil` says whether it could."""

    anomaly: str
    spoil: Callable[[Run, random.Random], bool]
    #: Whether the search, which sees neither copies nor the log nor versions, must find it too.
    search: bool = True
    #: Whether it shows only when the log is given.
    log: bool = False


def spoiled(seed: int, spoiler: Spoiler, shape: Shape) -> Run | None:
    """A run with that anomaly; None if no run of some twenty had the occasion."""
    for attempt in range(20):
        run = copy.deepcopy(Group(f"{seed}/{attempt}", shape).run())
        if spoiler.spoil(run, random.Random(seed)):
            return run
    return None


def _gets(run: Run, rng: random.Random) -> list[Operation]:
    gets = [op for op in run.operations if op.kind == "get" and op.outcome == OK]
    rng.shuffle(gets)
    return gets


def _acknowledged(run: Run, rng: random.Random, *kinds: str) -> list[Operation]:
    writes = [op for op in run.operations if op.outcome == OK and op.revision and op.kind in (kinds or ("put",))]
    rng.shuffle(writes)
    return writes


def _add(run: Run, kind: str, client: str, invoked: float, returned: float, process: str = "", **more: Any) -> None:
    number = len(run.operations)
    run.operations.append(
        Operation(number, process or client, client, kind, invoked, returned=returned, outcome=OK, **more)
    )


def stale(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        known = [op for op in _acknowledged(run, rng, "put", "transaction") if get.key in op.puts]
        known = [op for op in known if op.returned < get.invoked]
        if known:
            newest = max(op.revision for op in known)
            get.found, get.at = last_found(run, get.key, newest - 1), 0
            # Not finding it would be right if it is deleted in time.
            return get.found is not None
    return False


def future(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        for write in _acknowledged(run, rng, "put"):
            if write.invoked > get.returned and get.key in write.puts:
                get.found, get.at = Found(write.puts[get.key], write.revision), 0
                return True
    return False


def dirty(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        for write in run.operations:
            told = write.outcome in (FAILED, CONFLICT) and get.key in write.puts
            if told and write.invoked < get.returned:
                revision = get.found.revision if isinstance(get.found, Found) else 1
                get.found, get.at = Found(write.puts[get.key], revision + 1), 0
                return True
    return False


def never_written(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        if isinstance(get.found, Found):
            get.found = Found("nobody's", get.found.revision + 1)
            return True
    return False


def wrong_value(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        for write in _acknowledged(run, rng, "put"):
            if isinstance(get.found, Found) and get.key in write.puts and write.revision != get.found.revision:
                get.found = Found(write.puts[get.key], get.found.revision)
                author = [op for op in run.operations if op.revision == get.found.revision]
                return bool(author)
    return False


def twice(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        found = get.found
        if isinstance(found, Found) and any(op.revision == found.revision for op in run.operations):
            get.found = Found(found.value, found.revision + 1)
            return True
    return False


def lost_update(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "compare_and_set"):
        ((key, required),) = write.requires.items()
        there = run.before(key, required) if required else None
        author = [op for op in run.operations if op.revision == required and op.kind == "put"]
        if there is not None and not there.deleted and author:
            write.requires = {key: there.revision}
            return True
    return False


def two_winners(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "compare_and_set"):
        ((key, required),) = write.requires.items()
        if required:
            _add(
                run,
                "compare_and_set",
                "winner",
                write.invoked,
                write.returned,
                puts={key: "mine"},
                requires={key: required},
                revision=write.revision + 1,
            )
            return True
    return False


def split(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "transaction"):
        if len(write.puts) == 2:
            one, other = write.puts
            at = run.points[write.number][0]
            older = last_found(run, other, write.revision - 1)
            if older is None:
                continue
            _add(run, "get", "s1", at + 1e-7, at + 2e-7, key=one, found=Found(write.puts[one], write.revision))
            _add(run, "get", "s2", at + 3e-7, at + 4e-7, key=other, found=older)
            return True
    return False


def went_back(run: Run, rng: random.Random) -> bool:
    for look in run.operations:
        if look.kind == "look" and isinstance(look.found, Found):
            author = [op for op in run.operations if op.revision == look.found.revision]
            if not author or author[0].process == look.process:
                continue
            older = last_found(run, look.key, look.found.revision - 1)
            if older is None:
                continue
            times = (look.returned + 1e-7, look.returned + 2e-7)
            _add(run, "look", "b", *times, process=look.process, key=look.key, found=older)
            return True
    return False


def own_write(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "put"):
        (key,) = write.puts
        older = last_found(run, key, write.revision - 1)
        if older is None:
            continue
        times = (write.returned + 1e-7, write.returned + 2e-7)
        _add(run, "look", "b", *times, process=write.process, key=key, found=older)
        return True
    return False


def reused(run: Run, rng: random.Random) -> bool:
    one, other, *_ = [*_acknowledged(run, rng, "put"), None, None]
    if one is None or other is None:
        return False
    one.revision = other.revision
    return True


def out_of_order(run: Run, rng: random.Random) -> bool:
    writes = _acknowledged(run, rng, "put")
    for one in writes:
        for other in writes:
            if one.returned < other.invoked and one.puts.keys() == other.puts.keys():
                one.revision, other.revision = other.revision, one.revision
                return True
    return False


def false_conflict(run: Run, rng: random.Random) -> bool:
    for operation in run.operations:
        if operation.outcome == CONFLICT and isinstance(operation.found, Found):
            operation.requires = {operation.key: operation.found.revision}
            return True
    return False


def wrong_version(run: Run, rng: random.Random) -> bool:
    for get in _gets(run, rng):
        if isinstance(get.found, Found):
            found = get.found
            get.found = Found(found.value, found.revision, found.created, found.version + 1)
            return True
    return False


def wrong_delete(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "delete"):
        write.existed = not write.existed
        return True
    return False


def lost_write(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "put"):
        run.changes = [change for change in run.changes if change.revision != write.revision]
        return True
    return False


def half_lost(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "transaction"):
        if len(write.puts) == 2:
            key = rng.choice(list(write.puts))
            run.changes = [change for change in run.changes if (change.revision, change.key) != (write.revision, key)]
            return True
    return False


def applied_twice(run: Run, rng: random.Random) -> bool:
    for write in _acknowledged(run, rng, "put"):
        ((key, value),) = write.puts.items()
        run.changes.append(Change(write.revision + 1, key, value))
        return True
    return False


SPOILERS = (
    Spoiler(anomalies.STALE_READ, stale),
    Spoiler(anomalies.FUTURE_READ, future),
    Spoiler(anomalies.DIRTY_READ, dirty),
    Spoiler(anomalies.NEVER_WRITTEN, never_written),
    Spoiler(anomalies.WRONG_VALUE, wrong_value),
    Spoiler(anomalies.WRITTEN_TWICE, twice),
    Spoiler(anomalies.LOST_UPDATE, lost_update),
    Spoiler(anomalies.TWO_WINNERS, two_winners),
    Spoiler(anomalies.SPLIT_TRANSACTION, split),
    Spoiler(anomalies.WENT_BACK, went_back, search=False),
    Spoiler(anomalies.OWN_WRITE_NOT_SEEN, own_write, search=False),
    Spoiler(anomalies.REVISION_REUSED, reused, search=False),
    Spoiler(anomalies.OUT_OF_ORDER, out_of_order),
    Spoiler(anomalies.FALSE_CONFLICT, false_conflict),
    Spoiler(anomalies.WRONG_VERSION, wrong_version, search=False, log=True),
    Spoiler(anomalies.WRONG_DELETE, wrong_delete),
    Spoiler(anomalies.LOST_WRITE, lost_write, search=False, log=True),
    Spoiler(anomalies.SPLIT_TRANSACTION, half_lost, search=False, log=True),
    Spoiler(anomalies.WRITTEN_TWICE, applied_twice, search=False, log=True),
)


def perturb(run: Run, rng: random.Random) -> None:
    """Change a thing or two; whether what comes out is possible, nobody says."""
    wanted, attempts = rng.choice((1, 2, 3)), 0
    while wanted and attempts < 50:
        attempts += 1
        wanted -= _change(run, rng.choice(run.operations), rng)


def _change(run: Run, operation: Operation, rng: random.Random) -> bool:
    """Whether it could be changed in the way drawn."""
    told = [op.found for op in run.operations if isinstance(op.found, Found)]
    others = [found for found in (*told, None) if found != operation.found]
    kind = rng.choice(("found", "found", "found", "revision", "requires", "fate", "existed", "value"))
    if kind == "found" and operation.kind == "get" and others:
        operation.found = rng.choice(others)
    elif kind == "revision" and operation.revision:
        operation.revision = max(1, operation.revision + rng.choice((-4, -3, -1, 1, 3, 4)))
    elif kind == "requires" and operation.requires and operation.outcome == OK:
        operation.requires = {key: rng.choice((0, 3, 5, 7)) for key in operation.requires}
    elif kind == "fate" and operation.returned != FOREVER and operation.kind != "get":
        operation.outcome, operation.returned, operation.revision = UNKNOWN, FOREVER, 0
        operation.existed, operation.found, operation.key = None, UNSAID, ""
    elif kind == "existed" and operation.kind == "delete" and operation.existed is not None:
        operation.existed = not operation.existed
    elif kind == "value" and isinstance(operation.found, Found) and operation.kind == "get":
        operation.found = Found(rng.randrange(1, 8), operation.found.revision and operation.found.revision + 2)
    else:
        return False
    return True
