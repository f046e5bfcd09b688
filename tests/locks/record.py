"""What the contenders of all processes noted, read back: lines of JSON that outlive the process that wrote them.

Times are those of `coord.clock`, which all processes of one machine share.
What must not live here: what contenders do (`locks.contenders`), what may be (`locks.judge`).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: A request for a lock, as all members know it: session and number.
RequestId = tuple[int, int]


@dataclass(slots=True)
class Held:
    """One hold, as its contender saw it; what it did not live to see is as it was made."""

    process: str
    contender: str
    request: RequestId
    token: int
    #: `acquire` was called, and returned.
    asked: float
    granted: float
    #: Each look whether it is held: the time just before it, and what it found.
    looks: list[tuple[float, bool]] = field(default_factory=list)
    #: "" until it has tried; "written", "stale" (refused by the guard), or "undone".
    write: str = ""
    #: What the counter became, if it was written; the newest token, if it was refused.
    counter: int = 0
    newest: int = 0
    #: When `on_lost` was told, and when `lost` was seen set.
    told: float | None = None
    lost: float | None = None
    #: When `release` was called, and what came of it: "ok", or the name of what it raised.
    released: float | None = None
    release: str = ""
    #: When `release` had returned.
    end: float | None = None

    @property
    def member(self) -> str:
        return self.process.split("/")[0]


@dataclass(slots=True)
class Records:
    """Everything noted."""

    holds: dict[RequestId, Held] = field(default_factory=dict)
    #: Acquires that came to nothing: (process, contender, seconds asked for, seconds taken).
    given_up: list[tuple[str, str, float, float]] = field(default_factory=list)
    #: What a contender did not expect, with its process.
    failures: list[str] = field(default_factory=list)
    #: By process: (index applied, time), both rising.
    applied: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def time_of(self, index: int) -> float:
        """The earliest time at which any member is known to have applied `index`; infinite if none is."""
        times = []
        for steps in self.applied.values():
            place = bisect_left(steps, (index, 0.0))
            if place < len(steps):
                # A process that starts anew applies again what was long before.
                times.append(steps[place][1])
        return min(times, default=float("inf"))


def read_records(paths: Iterable[Path]) -> Records:
    records = Records()
    for path in sorted(paths):
        _read_process(path.read_bytes(), records)
    return records


def _read_process(data: bytes, records: Records) -> None:
    process = ""
    holds: dict[int, Held] = {}
    steps: list[tuple[int, float]] = []
    # What follows the last end of line was being written when the process was killed.
    for text in data.split(b"\n")[:-1]:
        line: dict[str, Any] = json.loads(text)
        if "applied" in line:
            steps.append((line["applied"], line["at"]))
        elif "granted" in line:
            session, number = line["request"]
            held = Held(process, line["contender"], (session, number), line["token"], line["asked"], line["at"])
            holds[line["granted"]] = records.holds[session, number] = held
        elif "hold" in line:
            _note(holds[line["hold"]], line)
        elif "gave_up" in line:
            records.given_up.append((process, line["contender"], line["gave_up"], line["took"]))
        elif "failure" in line:
            records.failures.append(f"{process} {line['contender']}: {line['failure']}")
        else:
            process = line["process"]
    records.applied[process] = steps


def _note(held: Held, line: dict[str, Any]) -> None:
    if "held" in line:
        held.looks.append((line["at"], line["held"]))
    elif "write" in line:
        held.write, held.counter, held.newest = line["write"], line["counter"], line["newest"]
    elif "told" in line:
        held.told = line["at"]
    elif "lost" in line:
        held.lost = line["at"] if line["lost"] else None
    elif "releasing" in line:
        held.released = line["at"]
    else:
        held.release, held.end = line["release"], line["at"]
