"""Is there an order, one operation after the other, in which all of a history can have happened? By search.

The algorithm is that of Wing and Gong with Lowe's improvements, as in porcupine: calls and returns in a linked list;
take ("lift") any call not preceded by another's return that the model accepts; remember (what was taken, state); go
back at a return that was reached too early. The question is NP-complete, so there is a limit in steps, above which
the answer is UNDECIDED: no pass. Keep histories small: some ten clients on a key, a few hundred operations.
What must not live here: what operations do (`coord.testing.models`); checks by revision, which need no search
(`coord.testing.revisions`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coord.testing.anomalies import HistoryViolation
from coord.testing.history import (
    CONFLICT,
    DELETE,
    FAILED,
    FOREVER,
    GET,
    HOLDER,
    LOCKS,
    LOOK,
    OK,
    RELEASE,
    TRY_ACQUIRE,
    UNKNOWN,
    WRITES,
    Found,
    Operation,
    identity,
)
from coord.testing.models import ConfigKeys, Lock, Model

LINEARIZABLE, VIOLATION, UNDECIDED = "linearizable", "not linearizable", "undecided"

STEPS_MAX = 1_000_000
#: What making the failing part smaller may cost: searches, and steps in all.
_SHRINK_SEARCHES, _SHRINK_STEPS = 300, 300_000
#: Operations of the failing part that are spelled out.
_SHOWN = 20


@dataclass(slots=True)
class Judgement:
    """What the search says. `require_ok` is what a test calls."""

    verdict: str = LINEARIZABLE
    #: The keys, or the lock, of the part that failed.
    partition: tuple[str, ...] = ()
    #: Operations of that part that cannot have happened in any order, as few as could be found in reasonable time.
    window: list[Operation] = field(default_factory=list)
    #: Of the window: the one that had returned when none of the others could come next.
    stuck: Operation | None = None
    steps: int = 0
    #: How many operations were looked at.
    checked: int = 0

    @property
    def ok(self) -> bool:
        return self.verdict == LINEARIZABLE

    def require_ok(self) -> None:
        if not self.ok:
            raise HistoryViolation(str(self))

    def __str__(self) -> str:
        if self.ok:
            return f"linearizable: {self.checked} operations, {self.steps} steps"
        where = ", ".join(self.partition)
        if self.verdict == UNDECIDED:
            return f"undecided: {where}: no answer after {self.steps} steps; make the history smaller"
        lines = [f"not linearizable: {where}; these cannot have happened in any order:"]
        left_out = len(self.window) - _SHOWN
        if left_out > 0:
            lines.append(f"  ({left_out} earlier ones)")
        mark = self.stuck
        lines += [f"{'>' if operation is mark else ' '} {operation}" for operation in self.window[-_SHOWN:]]
        return "\n".join(lines)


def check_config(operations: Iterable[Operation], *, steps_max: int = STEPS_MAX) -> Judgement:
    """The config map: each key by itself, or with the keys that transactions tie it to. Local reads are no part.

    The map is empty at the beginning, and no key ends by itself: leave out those that are ephemeral or live for a time.
    """
    wanted = [op for op in operations if op.kind in WRITES or op.kind == GET]
    return _check_parts(_components(wanted), lambda keys: ConfigKeys(keys), steps_max)


def check_locks(operations: Iterable[Operation], *, steps_max: int = STEPS_MAX) -> Judgement:
    """Each lock by itself."""
    by_lock: dict[tuple[str, ...], list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind in LOCKS:
            by_lock[operation.key,].append(operation)
    return _check_parts(by_lock, lambda _: Lock(), steps_max)


def check(
    operations: Iterable[Operation], model: Model, *, partition: tuple[str, ...] = (), steps_max: int = STEPS_MAX
) -> Judgement:
    """One model, all these operations. `steps_max`: of the search."""
    items = _items(list(operations))
    verdict, steps, end = _search(items, model, steps_max)
    judgement = Judgement(verdict, partition, steps=steps, checked=len(items))
    if verdict == VIOLATION:
        window = _shrink(items, model, end)
        judgement.window = [item.operation for item in sorted(window, key=lambda item: item.operation.invoked)]
        judgement.stuck = max(window, key=lambda item: (item.returned != FOREVER, item.returned)).operation
    return judgement


def _check_parts(
    parts: dict[tuple[str, ...], list[Operation]], model: Callable[[Sequence[str]], Model], steps_max: int
) -> Judgement:
    """The first part that is not linearizable; else one that is undecided; else all of them."""
    whole, undecided = Judgement(), None
    for names, operations in sorted(parts.items()):
        judgement = check(operations, model(names), partition=names, steps_max=steps_max)
        if judgement.verdict == VIOLATION:
            return judgement
        if judgement.verdict == UNDECIDED and undecided is None:
            undecided = judgement
        whole.steps += judgement.steps
        whole.checked += judgement.checked
    return undecided or whole


def _components(operations: list[Operation]) -> dict[tuple[str, ...], list[Operation]]:
    """Operations by the keys that have to do with each other."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for operation in operations:
        first, *others = operation.keys
        for other in others:
            parent[root(other)] = root(first)
        root(first)
    keys: dict[str, list[str]] = defaultdict(list)
    for key in parent:
        keys[root(key)].append(key)
    names = {top: tuple(sorted(members)) for top, members in keys.items()}
    parts: dict[tuple[str, ...], list[Operation]] = defaultdict(list)
    for operation in operations:
        parts[names[root(next(iter(operation.keys)))]].append(operation)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# What goes into the search.


@dataclass(slots=True, eq=False)
class _Item:
    """An operation and when it must have happened, if it must: one that is open may have, from `invoked` on."""

    operation: Operation
    invoked: float
    returned: float


def _only_looks(operation: Operation) -> bool:
    """Whether it changes nothing, wherever it comes."""
    if operation.outcome != OK:
        return operation.outcome == CONFLICT
    if operation.kind == TRY_ACQUIRE:
        return not operation.token
    return operation.kind in (GET, HOLDER) or (operation.kind == RELEASE and operation.existed is False)


def _is_unknown_write(operation: Operation) -> bool:
    return operation.outcome == UNKNOWN and operation.kind in WRITES


def _items(operations: list[Operation]) -> list[_Item]:
    """Without what had no effect and told nothing. Of unknown writes, those whose values were seen had happened by
    then; those that made no difference are left out."""
    wanted = [op for op in operations if op.outcome != FAILED and op.kind != LOOK]
    wanted = [op for op in wanted if op.outcome != UNKNOWN or op.kind not in (GET, HOLDER)]
    seen = _Seen(wanted)
    items = []
    for operation in wanted:
        returned = operation.returned
        if _is_unknown_write(operation):
            if seen.can_be_left_out(operation):
                continue
            returned = seen.first_seen(operation)
        elif operation.outcome == UNKNOWN:
            returned = FOREVER
        items.append(_Item(operation, operation.invoked, returned))
    return items


class _Seen:
    """Which values were written by one operation only, and which of them were found."""

    def __init__(self, operations: list[Operation]) -> None:
        self._writers: dict[Any, int] = defaultdict(int)
        #: When a read that found it returned.
        self._found: dict[Any, float] = {}
        #: Keys where it shows in other ways than by its value whether a put happened; or a delete.
        self._telling: set[str] = set()
        self._puzzling: set[str] = set()
        #: When the last operation returned that found a key absent, or required it to be.
        self._absent: dict[str, float] = defaultdict(lambda: -FOREVER)
        revisions = {op.revision for op in operations} | {0}
        for operation in operations:
            if operation.outcome != CONFLICT:
                for key, value in operation.puts.items():
                    self._writers[key, identity(value)] += 1
            if isinstance(operation.found, Found):
                revisions.add(operation.found.revision)
                name = (operation.key, identity(operation.found.value))
                self._found[name] = min(self._found.get(name, FOREVER), operation.returned)
        for operation in operations:
            self._look_at(operation, revisions)

    def _look_at(self, operation: Operation, revisions: set[int]) -> None:
        absent = self._absent
        if operation.found is None:
            absent[operation.key] = max(absent[operation.key], operation.returned)
        if operation.kind == DELETE and operation.existed is not None:
            (key,) = operation.deletes
            if operation.existed:
                self._telling.add(key)
            else:
                absent[key] = max(absent[key], operation.returned)
        if operation.outcome == CONFLICT:
            if operation.found is not None and not isinstance(operation.found, Found):
                self._telling.update(operation.requires)
                self._puzzling.update(operation.requires)
            return
        for key, required in operation.requires.items():
            if required == 0:
                absent[key] = max(absent[key], operation.returned)
            elif required not in revisions:
                # A condition on a revision nobody was told may be on that of any unknown write.
                self._telling.add(key)

    def first_seen(self, operation: Operation) -> float:
        """When an operation returned that found what only `operation` wrote."""
        names = [(key, identity(value)) for key, value in operation.puts.items()]
        seen = min((self._found.get(name, FOREVER) for name in names if self._writers[name] == 1), default=FOREVER)
        return seen if seen >= operation.invoked else FOREVER

    def can_be_left_out(self, operation: Operation) -> bool:
        """Whether it makes no difference to anybody: nobody found what it put, or its keys absent, or could tell.

        Between such a write and the next of the same key nobody looked; without it they may be where they were.
        """
        if not self._telling.isdisjoint(operation.puts) or not self._puzzling.isdisjoint(operation.deletes):
            return False
        if any(self._absent.get(key, -FOREVER) >= operation.invoked for key in operation.deletes):
            return False
        return not any((key, identity(value)) in self._found for key, value in operation.puts.items())


# ---------------------------------------------------------------------------------------------------------------------
# The search.


def _search(items: list[_Item], model: Model, steps_max: int) -> tuple[str, int, float]:
    """(verdict, steps, when the operation returned beyond which no order was found)."""
    search = _Search(items, model)
    verdict = search.run(steps_max)
    return verdict, search.steps, search.stuck_at


class _Search:
    """The linked list holds the calls and returns of what has returned. What is open need not have happened, so it is
    tried only where nothing else can come next: at a return that is in the way."""

    def __init__(self, items: list[_Item], model: Model) -> None:
        self._model = model
        self._prepared = [model.prepare(item.operation) for item in items]
        self._only_looks = [_only_looks(item.operation) for item in items]
        events = [(item.invoked, 0, number) for number, item in enumerate(items)]
        # Calls first: what ends at the moment at which another begins may have happened after it.
        events += [(item.returned, 1, number) for number, item in enumerate(items) if item.returned != FOREVER]
        events.sort()
        size = len(events) + 1
        #: Of the event at each place from 1 on: its operation, and the place of its return; 0 for a return.
        self._number = [0] * (size + 1)
        self._return = [0] * (size + 1)
        self._times = [0.0] * (size + 1)
        calls: dict[int, int] = {}
        for place, (time, is_return, number) in enumerate(events, 1):
            self._number[place], self._times[place] = number, time
            if is_return:
                self._return[calls[number]] = place
            else:
                calls[number] = place
        self._open = [(place, number) for number, place in calls.items() if not self._return[place]]
        self._open.sort()
        left_out = {place for place, _ in self._open}
        inside = [place for place in range(1, size) if place not in left_out]
        self._next = [0] * (size + 1)
        self._previous = [0] * (size + 1)
        for before, after in zip([0, *inside], [*inside, 0], strict=True):
            self._next[before], self._previous[after] = after, before
        self._remaining = len(items) - len(self._open)
        self._farthest = 0
        self.steps = 0

    @property
    def stuck_at(self) -> float:
        return self._times[self._farthest]

    def run(self, steps_max: int) -> str:
        step, prepared, looks = self._model.step, self._prepared, self._only_looks
        numbers, returns, following = self._number, self._return, self._next
        state, taken, seen = self._model.initial(), 0, set()
        #: (place, state before, taken before, where to go on among what is open; -1: nowhere, it changed nothing)
        stack: list[tuple[int, Any, int, int]] = []
        at, next_open = following[0], 0
        while self._remaining:
            if self.steps >= steps_max:
                return UNDECIDED
            if returns[at]:
                self.steps += 1
                number = numbers[at]
                after = step(state, prepared[number])
                if after is not None:
                    bits = taken | 1 << number
                    if (bits, after) not in seen:
                        seen.add((bits, after))
                        # What only looks may as well look now as later: no need to come back to it, unless it told
                        # a revision nobody knew.
                        stack.append((at, state, taken, -1 if looks[number] and after == state else 0))
                        self._lift(at)
                        state, taken, at = after, bits, following[0]
                        continue
                at = following[at]
                continue
            found = self._try_open(at, state, taken, next_open, seen)
            if found is not None:
                next_open, after, bits = found
                stack.append((at, state, taken, next_open))
                state, taken, at, next_open = after, bits, following[0], 0
                continue
            self._farthest = max(self._farthest, at)
            while True:
                if not stack:
                    return VIOLATION
                at, state, taken, next_open = stack.pop()
                if not returns[at]:
                    break
                self._unlift(at)
                if next_open == 0:
                    at = following[at]
                    break
        return LINEARIZABLE

    def _try_open(
        self, at: int, state: Any, taken: int, first: int, seen: set[tuple[int, Any]]
    ) -> tuple[int, Any, int] | None:
        """The first that is open, was asked for before the return at `at`, and makes a difference."""
        for position in range(first, len(self._open)):
            place, number = self._open[position]
            if place > at:
                return None
            if taken >> number & 1:
                continue
            self.steps += 1
            after = self._model.step(state, self._prepared[number])
            if after is None or after == state:
                continue
            bits = taken | 1 << number
            if (bits, after) not in seen:
                seen.add((bits, after))
                return position + 1, after, bits
        return None

    def _lift(self, call: int) -> None:
        following, previous = self._next, self._previous
        for place in (call, self._return[call]):
            following[previous[place]] = following[place]
            previous[following[place]] = previous[place]
        self._remaining -= 1

    def _unlift(self, call: int) -> None:
        following, previous = self._next, self._previous
        for place in (self._return[call], call):
            following[previous[place]] = place
            previous[following[place]] = place
        self._remaining += 1


# ---------------------------------------------------------------------------------------------------------------------
# Making the failing part small enough to be read.


def _shrink(items: list[_Item], model: Model, end: float) -> list[_Item]:
    """Items that fail for the same reason, as few as a bounded number of searches finds.

    Up to `end`, then without whatever is not needed: without reads what is left can only be easier to explain; and so
    it is without a write nobody can tell from one that never was.
    """
    cut = [item for item in items if item.invoked <= end]
    cut = [replace(item, returned=FOREVER) if item.returned > end else item for item in cut]
    cut = [item for item in cut if item.returned != FOREVER or not _only_looks(item.operation)]
    budget = _Budget()
    if not budget.fails(cut, model):
        return items
    size = len(cut) // 2
    while size:
        position = len(cut)
        while position > 0 and budget.left():
            part = cut[max(0, position - size) : position]
            position -= size
            removable = {item for item in part if _may_go(item)}
            rest = [item for item in cut if item not in removable]
            if removable and _nobody_misses(removable, rest) and budget.fails(rest, model):
                cut = rest
        size //= 2
    return cut


class _Budget:
    def __init__(self) -> None:
        self._searches, self._steps = 0, 0

    def left(self) -> bool:
        return self._searches < _SHRINK_SEARCHES and self._steps < _SHRINK_STEPS

    def fails(self, items: list[_Item], model: Model) -> bool:
        # Who saw an unknown write, and so said that it had happened, may be gone.
        seen = _Seen([item.operation for item in items])
        items = [
            replace(item, returned=seen.first_seen(item.operation)) if _is_unknown_write(item.operation) else item
            for item in items
        ]
        verdict, steps, _ = _search(items, model, _SHRINK_STEPS)
        self._searches += 1
        self._steps += steps
        return verdict == VIOLATION


def _may_go(item: _Item) -> bool:
    """Whether leaving it out cannot make what is left harder to explain; of a write, if nobody misses it."""
    return _only_looks(item.operation) or item.operation.kind in WRITES


def _nobody_misses(gone: set[_Item], rest: list[_Item]) -> bool:
    """Whether what is left cannot tell the writes in `gone` from writes that never were."""
    writes = [item.operation for item in gone if not _only_looks(item.operation)]
    seen = _Seen([item.operation for item in rest]) if writes else None
    return seen is None or all(seen.can_be_left_out(operation) for operation in writes)
