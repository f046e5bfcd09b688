"""What the clients of one process did and saw, as lines of JSON that outlive the process; and reading them back.

A call is two lines, one before it is made and one after it returned, so that of a killed process one knows what was
under way. Times are those of `coord.clock`, which all processes of one machine share.
What must not live here: what clients do (`faults.clients`), what a history may look like (`faults.judge`).
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coord.clock import clock

#: How a call ended. REFUSED: it certainly had no effect. UNKNOWN: it may have happened; also if it never returned.
OK, CONFLICT, REFUSED, UNKNOWN = "ok", "conflict", "refused", "unknown"

#: What a call was.
WRITES = ("put", "cas", "delete", "transaction")


class Recorder:
    """Appends to one file, a whole line at a time. Safe for use by any thread."""

    def __init__(self, path: str, process: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.acknowledged = 0
        self._line(process=process, at=clock())

    def begin(self, client: str, op: str, **what: Any) -> int:
        number = next(self._numbers)
        self._line(call=number, client=client, op=op, at=clock(), **what)
        return number

    def end(self, number: int, outcome: str, **what: Any) -> None:
        self._line(end=number, outcome=outcome, at=clock(), **what)

    def acknowledge(self, number: int, revision: int) -> None:
        """A write has returned."""
        self.end(number, OK, revision=revision)
        with self._lock:
            self.acknowledged += 1

    def event(self, watch: str, kind: str, key: str, value: Any, revision: int) -> None:
        self._line(watch=watch, kind=kind, key=key, value=value, revision=revision, at=clock())

    def note(self, **what: Any) -> None:
        self._line(**what)

    def _line(self, **what: Any) -> None:
        # One write to a file opened for appending: lines of several threads do not mix.
        os.write(self._descriptor, json.dumps(what).encode() + b"\n")


@dataclass(slots=True)
class Call:
    """One call of one client."""

    process: str
    client: str
    op: str
    invoked: float
    #: What was asked: key and value, the revision expected; for a transaction `puts` and `requires`.
    asked: dict[str, Any]
    outcome: str = UNKNOWN
    returned: float = float("inf")
    #: What was answered: the revision of a write; revision and value of a read; the entry found of a conflict.
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def writes(self) -> dict[str, Any]:
        """Values by key; None: deleted."""
        if self.op not in WRITES:
            return {}
        if self.op == "transaction":
            return dict(self.asked["puts"])
        return {self.asked["key"]: self.asked.get("value")}

    @property
    def revision(self) -> int:
        revision = self.answer["revision"]
        assert isinstance(revision, int)
        return revision


@dataclass(slots=True)
class Event:
    """One change, as a watch told it. `value` is None for a delete."""

    key: str
    value: Any
    revision: int
    at: float
    #: Not seen happening, but found in a snapshot; then the revision of a delete is not its own.
    resync: bool = False


@dataclass(slots=True)
class Watched:
    """One watch, from its first event on."""

    name: str
    #: Every change from this revision on must be in it; 0 if it began with what was there, not with changes.
    since: int
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class Role:
    """A member changed its role, its term or the leader it knows."""

    member: str
    at: float
    role: str
    term: int


@dataclass(slots=True)
class Recorded:
    """Everything that was recorded."""

    calls: list[Call] = field(default_factory=list)
    watches: list[Watched] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)

    def of(self, *ops: str) -> Iterator[Call]:
        return (call for call in self.calls if call.op in ops)

    def acknowledged(self) -> list[Call]:
        """The writes that returned, in the order in which they did."""
        return sorted((call for call in self.of(*WRITES) if call.outcome == OK), key=lambda call: call.returned)


def read_records(paths: Iterable[Path]) -> Recorded:
    recorded = Recorded()
    for path in sorted(paths):
        _read_process(path.read_bytes(), recorded)
    return recorded


def _read_process(data: bytes, recorded: Recorded) -> None:
    calls: dict[int, Call] = {}
    watches: dict[str, Watched] = {}
    resyncs: set[tuple[str, int]] = set()
    process = ""
    # What follows the last end of line was being written when the process was killed.
    for text in data.split(b"\n")[:-1]:
        line: dict[str, Any] = json.loads(text)
        if "call" in line:
            number, client, op, at = (line.pop(name) for name in ("call", "client", "op", "at"))
            calls[number] = Call(process, f"{process} {client}", op, at, line)
        elif "end" in line:
            call = calls[line.pop("end")]
            call.outcome, call.returned = line.pop("outcome"), line.pop("at")
            call.answer = line
            if call.outcome == UNKNOWN:
                # It may take effect at any later time.
                call.returned = float("inf")
        elif "begin_watch" in line:
            watches[line["begin_watch"]] = Watched(f"{process} {line['begin_watch']}", line["since"])
        elif "watch" in line:
            key, revision = line["key"], line["revision"]
            event = Event(key, line["value"], revision, line["at"], (key, revision) in resyncs)
            watches[line["watch"]].events.append(event)
        elif "resync" in line:
            resyncs.add((line["resync"], line["revision"]))
        elif "role" in line:
            recorded.roles.append(Role(process.split("/")[0], line["at"], line["role"], line["term"]))
        else:
            process = line["process"]
    recorded.calls += calls.values()
    recorded.watches += watches.values()
