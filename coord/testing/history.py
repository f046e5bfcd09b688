"""What clients asked for and were told, and when: recorded while a test runs, judged afterwards.

A history may be kept in memory, written through to a file (what a killed process had under way is then known), dumped
and loaded again; files of several processes of one machine add up to one history, for they share a clock
(`coord.clock`).
What must not live here: what a history may look like (`coord.testing.linearizability`, `coord.testing.revisions`).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

#: How an operation ended. CONFLICT: a compare failed, so it had no effect. FAILED: it certainly had no effect.
#: UNKNOWN: it may have happened, or may yet; also whatever never ended.
OK, CONFLICT, FAILED, UNKNOWN = "ok", "conflict", "failed", "unknown"

#: Reads of the config map: through the quorum, and of a process's own copy.
GET, LOOK = "get", "look"
PUT, DELETE, COMPARE_AND_SET, TRANSACTION = "put", "delete", "compare_and_set", "transaction"
#: Of locks; EXPIRE is nobody's call but what may happen to a holder who is not heard of, and HOLDER is a question.
ACQUIRE, TRY_ACQUIRE, RELEASE, EXPIRE, HOLDER = "acquire", "try_acquire", "release", "expire", "holder"

WRITES = frozenset((PUT, DELETE, COMPARE_AND_SET, TRANSACTION))
LOCKS = frozenset((ACQUIRE, TRY_ACQUIRE, RELEASE, EXPIRE, HOLDER))
KINDS = WRITES | LOCKS | {GET, LOOK}

FOREVER = float("inf")


class _Unsaid:
    def __repr__(self) -> str:
        return "UNSAID"


#: As `found`: the answer did not say what is there; None says that nothing is.
UNSAID = _Unsaid()


@dataclass(slots=True, frozen=True)
class Found:
    """What a key was found to hold. 0: the answer did not say."""

    value: Any
    revision: int = 0
    created: int = 0
    version: int = 0

    def __str__(self) -> str:
        return f"{self.value!r} at {self.revision}" if self.revision else repr(self.value)


@dataclass(slots=True, frozen=True)
class Change:
    """One key changed: as the log has it, or as a watch told it."""

    revision: int
    key: str
    value: Any = None
    deleted: bool = False

    def __str__(self) -> str:
        return f"{self.key} {'deleted' if self.deleted else f'= {self.value!r}'} at {self.revision}"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation of one client."""

    number: int
    #: Whose copy it looked at and whose session it used: the coordinator's, which several clients may share.
    process: str
    client: str
    kind: str
    invoked: float
    #: What a read is of; the lock; after a conflict the key it was over.
    key: str = ""
    #: What was to become of keys; a delete and a put are transactions of one key.
    puts: Mapping[str, Any] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()
    #: Revisions that keys had to be at; 0: absent.
    requires: Mapping[str, int] = field(default_factory=dict)
    returned: float = FOREVER
    outcome: str = UNKNOWN
    #: Of a write that returned; 0: not known.
    revision: int = 0
    #: What a read or a conflict found.
    found: Found | _Unsaid | None = UNSAID
    #: Whether a delete found something to delete, a release something to release; None: not known.
    existed: bool | None = None
    #: Log index up to which the copy that was read had got; 0: not known.
    at: int = 0
    #: Of a lock: what was granted, released, expires or is held; 0: nothing, or not known.
    token: int = 0

    @property
    def keys(self) -> set[str]:
        keys = {*self.puts, *self.deletes, *self.requires}
        if self.key:
            keys.add(self.key)
        return keys

    def __str__(self) -> str:
        end = "..." if self.returned == FOREVER else _time(self.returned)
        who = self.client if self.process == self.client else f"{self.process}/{self.client}"
        return f"[{_time(self.invoked)}, {end}] {who}: {self._asked()} -> {self._told()}"

    def _asked(self) -> str:
        if self.kind in LOCKS:
            return f"{self.kind} {self.key}" + (f" token {self.token}" if self.token and self.kind != HOLDER else "")
        if self.kind in (GET, LOOK):
            return f"{self.kind} {self.key}"
        parts = [f"{key} = {value!r}" for key, value in self.puts.items()]
        parts += [f"no {key}" for key in self.deletes]
        required = "".join(f" if {key} at {revision}" for key, revision in self.requires.items())
        return f"{self.kind} {', '.join(parts)}{required}"

    def _told(self) -> str:
        parts = [self.outcome] if self.outcome != OK else []
        if self.revision:
            parts.append(f"revision {self.revision}")
        if not isinstance(self.found, _Unsaid):
            over = f"{self.key}: " if self.outcome == CONFLICT else ""
            parts.append(over + ("absent" if self.found is None else str(self.found)))
        if self.existed is not None:
            parts.append("was there" if self.existed else "was not there")
        if self.kind in (TRY_ACQUIRE, HOLDER) and self.outcome == OK:
            parts.append(f"token {self.token}" if self.token else "held" if self.kind == TRY_ACQUIRE else "nobody")
        return ", ".join(parts) or self.outcome


def _time(seconds: float) -> str:
    """To the microsecond, which is what it takes to see who was first."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


@dataclass(slots=True, eq=False)
class Watched:
    """What one watch was asked for, and told, in order."""

    process: str
    name: str
    prefix: str = ""
    from_revision: int | None = None
    initial: bool = True
    conflate: bool = True
    events: list[Change] = field(default_factory=list)

    def __str__(self) -> str:
        return f"watch {self.name} of {self.prefix!r} in {self.process}"


def identity(value: Any) -> Hashable:
    """Something to compare values by and to keep in sets: 1, 1.0 and True are three values, and lists are values."""
    kind = type(value)
    if kind is str or kind is bytes or value is None:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return (int, value)
    return (dict, json.dumps(_to_json(value), sort_keys=True))


class HistoryError(ValueError):
    """A history was recorded wrongly, or its file cannot be read."""


class History:
    """Records operations; safe for use by any thread. A client has one operation at a time.

    After an outcome nobody knows, the operation stays open to the end, so its client may not go on under its name:
    `begin` refuses it, and `name_for` gives the next one.
    """

    def __init__(self, *, process: str = "", path: str | os.PathLike[str] | None = None) -> None:
        """`process`: whose operations these are, unless `begin` says otherwise; as a rule the coordinator's name and
        incarnation. Without one, every client is its own. `path`: write through to this file, a line at a time."""
        self._process = process
        self._lock = threading.Lock()
        self._operations: list[Operation] = []
        self._watches: list[Watched] = []
        self._busy: dict[tuple[str, str], Operation] = {}
        self._retired: set[tuple[str, str]] = set()
        self._generations: dict[str, int] = {}
        # Unbuffered, for appending: what was written outlives a kill, and lines of several threads do not mix.
        self._file: IO[bytes] | None = None if path is None else open(path, "ab", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """End the writing through; idempotent."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    # -- recording

    def name_for(self, client: str, *, process: str = "") -> str:
        """`client`, or after outcomes nobody knows what it is called now."""
        with self._lock:
            generation = self._generations.get(client, 0)
            while True:
                name = f"{client}'{generation}" if generation else client
                if (process or self._process or name, name) not in self._retired:
                    self._generations[client] = generation
                    return name
                generation += 1

    def begin(
        self,
        now: float,
        client: str,
        kind: str,
        key: str = "",
        *,
        value: Any = UNSAID,
        revision: int | None = None,
        puts: Mapping[str, Any] | None = None,
        deletes: Iterable[str] = (),
        requires: Mapping[str, int] | None = None,
        token: int = 0,
        process: str = "",
    ) -> Operation:
        """An operation is about to be asked for. `key` and `value` of a put; with `revision` what it must be at;
        `puts`, `deletes` and `requires` of a transaction; `key` is also a lock's name, `token` what to release."""
        puts, requires, deletes = dict(puts or {}), dict(requires or {}), tuple(deletes)
        if kind in (PUT, COMPARE_AND_SET):
            puts[key] = value
        elif kind == DELETE:
            deletes = (key,)
        if revision is not None:
            requires[key] = revision
        _check_asked(kind, key, puts, deletes, requires)
        about = "" if kind in WRITES else key
        with self._lock:
            owner = process or self._process or client
            operation = Operation(
                len(self._operations), owner, client, kind, now, about, puts, deletes, requires, token=token
            )
            self._begin(operation)
            self._write(_began(operation))
        return operation

    def ok(
        self,
        now: float,
        operation: Operation,
        *,
        revision: int = 0,
        found: Found | _Unsaid | None = UNSAID,
        existed: bool | None = None,
        at: int = 0,
        token: int = 0,
    ) -> None:
        """It returned. `revision` of a write, `found` of a read, `existed` of a delete or release; `token` of a lock,
        where none means that `try_acquire` did not get it, or that it has no holder.

        `now` is read after the answer is there. In `ok(clock(), op, revision=config.put(...))` it is not: Python takes
        the time first, and the history then says that the write had returned before it was made.
        """
        if operation.kind in (GET, LOOK) and isinstance(found, _Unsaid):
            raise HistoryError(f"{operation}: a read that returned found something, or nothing")
        if min(revision, at, token) < 0:
            raise HistoryError(f"{operation}: revisions and tokens are not negative")
        if operation.kind == ACQUIRE and not token:
            raise HistoryError(f"{operation}: an acquire that returned has a token")
        answer = {"revision": revision, "found": found, "existed": existed, "at": at, "token": token}
        self._end(operation, OK, now, answer)

    def conflict(
        self, now: float, operation: Operation, *, key: str = "", found: Found | _Unsaid | None = UNSAID
    ) -> None:
        """It returned, without effect: `key` was not where it had to be but `found`, if the answer said so."""
        if not operation.requires:
            raise HistoryError(f"{operation}: it required nothing, so nothing can conflict")
        if not key and len(operation.requires) == 1:
            key = next(iter(operation.requires))
        if key not in operation.requires and not (key == "" and isinstance(found, _Unsaid)):
            raise HistoryError(f"{operation}: a conflict over {key!r}, of which it required nothing")
        self._end(operation, CONFLICT, now, {"found": found, "key": key})

    def failed(self, operation: Operation) -> None:
        """It certainly had no effect and never will."""
        self._end(operation, FAILED, FOREVER, {})

    def unknown(self, operation: Operation) -> None:
        """Nobody knows; its client needs a new name, unless it only read."""
        self._end(operation, UNKNOWN, FOREVER, {})

    def watch(
        self,
        name: str,
        *,
        prefix: str = "",
        from_revision: int | None = None,
        initial: bool = True,
        conflate: bool = True,
        process: str = "",
    ) -> Watched:
        """A watch is about to begin; one that is resumed is another watch."""
        watched = Watched(process or self._process or name, name, prefix, from_revision, initial, conflate)
        with self._lock:
            self._add_watch(watched)
            self._write(_watch_began(watched))
        return watched

    def told(self, watched: Watched, change: Change) -> None:
        """The watch told of a change."""
        with self._lock:
            watched.events.append(change)
            self._write(_told(watched, change))

    # -- what was recorded

    @property
    def operations(self) -> list[Operation]:
        """In the order in which they were asked for."""
        with self._lock:
            return sorted(self._operations, key=lambda operation: operation.invoked)

    @property
    def watches(self) -> list[Watched]:
        with self._lock:
            return list(self._watches)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a new file at `path`, to be loaded again."""
        with self._lock, open(path, "xb") as file:
            for operation in self._operations:
                file.write(_line(_began(operation)))
                if self._busy.get((operation.process, operation.client)) is not operation:
                    file.write(_line(_ended(operation)))
            for watched in self._watches:
                file.write(_line(_watch_began(watched)))
                for change in watched.events:
                    file.write(_line(_told(watched, change)))

    @classmethod
    def load(cls, *paths: str | os.PathLike[str]) -> History:
        """What was dumped, or written through by one or several processes. A line cut off at the end of a file was
        being written when its process was killed, and is left out."""
        history = cls()
        for path in paths:
            with open(path, "rb") as file:
                history._load(file.read().split(b"\n")[:-1], path)
        return history

    # -- within

    def _begin(self, operation: Operation) -> None:
        name = (operation.process, operation.client)
        if name in self._retired:
            raise HistoryError(f"{operation.client} has an operation open to the end; go on as `name_for` says")
        if name in self._busy:
            raise HistoryError(f"{operation.client} asks for more before the end of {self._busy[name]}")
        self._busy[name] = operation
        self._operations.append(operation)

    def _end(self, operation: Operation, outcome: str, now: float, answer: dict[str, Any]) -> None:
        with self._lock:
            name = (operation.process, operation.client)
            if self._busy.get(name) is not operation:
                raise HistoryError(f"{operation} has ended already")
            if now < operation.invoked:
                raise HistoryError(f"{operation} cannot have returned at {now}")
            del self._busy[name]
            if outcome == UNKNOWN and operation.kind not in (GET, LOOK, HOLDER):
                self._retired.add(name)
            operation.outcome, operation.returned = outcome, now
            for field_name, value in answer.items():
                if field_name != "token" or operation.kind not in (RELEASE, EXPIRE):
                    setattr(operation, field_name, value)
            self._write(_ended(operation))

    def _add_watch(self, watched: Watched) -> None:
        if any((known.process, known.name) == (watched.process, watched.name) for known in self._watches):
            raise HistoryError(f"{watched}: that name is taken")
        self._watches.append(watched)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_line(line))

    def _load(self, lines: Iterable[bytes], path: str | os.PathLike[str]) -> None:
        numbered: dict[int, Operation] = {}
        watches: dict[tuple[str, str], Watched] = {}
        for number, text in enumerate(lines, 1):
            try:
                self._load_line(json.loads(text), numbered, watches)
            except (KeyError, TypeError, ValueError) as error:
                raise HistoryError(f"{os.fspath(path)}, line {number}: {error!r}") from error

    def _load_line(
        self, line: dict[str, Any], numbered: dict[int, Operation], watches: dict[tuple[str, str], Watched]
    ) -> None:
        what = line.pop("line")
        if what == "begin":
            line["puts"] = {key: _from_json(value) for key, value in line["puts"].items()}
            line["deletes"] = tuple(line["deletes"])
            own_number = line.pop("number")
            operation = Operation(number=len(self._operations), **line)
            _check_asked(operation.kind, operation.key, operation.puts, operation.deletes, operation.requires)
            self._begin(operation)
            numbered[own_number] = operation
        elif what == "end":
            operation, outcome, now = numbered[line.pop("number")], line.pop("outcome"), line.pop("returned")
            if line.get("found"):
                value, *numbers = line["found"]
                line["found"] = Found(_from_json(value), *numbers)
            self._end(operation, outcome, FOREVER if now is None else now, line)
        elif what == "watch":
            watched = Watched(**line)
            self._add_watch(watched)
            watches[watched.process, watched.name] = watched
        elif what == "told":
            change = Change(line["revision"], line["key"], _from_json(line["value"]), line["deleted"])
            watches[line["process"], line["name"]].events.append(change)
        else:
            raise HistoryError(f"what is {what!r}?")


def _check_asked(
    kind: str, key: str, puts: Mapping[str, Any], deletes: tuple[str, ...], requires: Mapping[str, int]
) -> None:
    if kind not in KINDS:
        raise HistoryError(f"{kind!r} is no kind of operation; these are: {', '.join(sorted(KINDS))}")
    if kind in WRITES and not (puts or deletes or requires):
        raise HistoryError(f"{kind}: of what?")
    if kind not in WRITES and not key:
        raise HistoryError(f"{kind}: of which key?")
    if any(isinstance(value, _Unsaid) for value in puts.values()):
        raise HistoryError(f"{kind} {key}: of which value?")
    if kind == COMPARE_AND_SET and not requires:
        raise HistoryError(f"{kind} {key}: at which revision?")
    if not puts.keys().isdisjoint(deletes):
        raise HistoryError(f"{kind}: a key is put and deleted")


def _began(operation: Operation) -> dict[str, Any]:
    return {
        "line": "begin",
        "number": operation.number,
        "process": operation.process,
        "client": operation.client,
        "kind": operation.kind,
        "invoked": operation.invoked,
        # After a conflict it is the key that was in the way, which the end tells.
        "key": "" if operation.kind in WRITES else operation.key,
        "puts": {key: _to_json(value) for key, value in operation.puts.items()},
        "deletes": list(operation.deletes),
        "requires": dict(operation.requires),
        "token": operation.token if operation.kind in (RELEASE, EXPIRE) else 0,
    }


def _ended(operation: Operation) -> dict[str, Any]:
    line: dict[str, Any] = {
        "line": "end",
        "number": operation.number,
        "outcome": operation.outcome,
        "returned": None if operation.returned == FOREVER else operation.returned,
    }
    for name in ("revision", "existed", "at", "token"):
        if value := getattr(operation, name):
            line[name] = value
    if operation.existed is False:
        line["existed"] = False
    if operation.outcome == CONFLICT:
        line["key"] = operation.key
    if operation.found is None:
        line["found"] = None
    elif isinstance(operation.found, Found):
        found = operation.found
        line["found"] = [_to_json(found.value), found.revision, found.created, found.version]
    return line


def _watch_began(watched: Watched) -> dict[str, Any]:
    names = ("process", "name", "prefix", "from_revision", "initial", "conflate")
    return {"line": "watch", **{name: getattr(watched, name) for name in names}}


def _told(watched: Watched, change: Change) -> dict[str, Any]:
    about = {"line": "told", "process": watched.process, "name": watched.name, "revision": change.revision}
    return {**about, "key": change.key, "value": _to_json(change.value), "deleted": change.deleted}


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


_BYTES = "$bytes"


def _to_json(value: Any) -> Any:
    """A value as JSON has it; bytes as an object of their own, and any key that could be taken for it made longer."""
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    if isinstance(value, dict):
        return {f"${key}" if key.startswith("$") else key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_BYTES}:
            return bytes.fromhex(value[_BYTES])
        return {key[1:] if key.startswith("$") else key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
