"""What may be, of a lock and a file that many processes fought over while some of them were killed, stopped or cut off.

The order is that of the log (`locks.truth`); the file and the contenders' notes are held against it. Each `check_*`
raises AssertionError at what may not be, and returns how much it looked at. Times are only compared where one comes
after the other whatever the machine does; how long things took is measured, and judged by those who asked.
What must not live here: processes, faults, waiting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from locks.lab import Fault
from locks.record import Held, Records
from locks.truth import Grant, Truth


@dataclass(slots=True)
class Written:
    """One change of the file: a row, in the order in which they were committed."""

    token: int
    contender: str
    counter: int


@dataclass(slots=True)
class File:
    writes: list[Written]
    counter: int


def read_file(path: str) -> File:
    with closing(sqlite3.connect(path, timeout=60.0)) as database:
        rows = database.execute("SELECT token, contender, counter FROM writes ORDER BY number").fetchall()
        (counter,) = database.execute("SELECT value FROM counter").fetchone()
    return File([Written(*row) for row in rows], counter)


def check_all(truth: Truth, file: File, records: Records, faults: list[Fault]) -> dict[str, int]:
    """Every check; how much each looked at."""
    assert not records.failures, f"contenders failed: {records.failures}"
    return {
        "holds": check_order(truth),
        "writes": check_file(truth, file, records),
        "refusals": check_refusals(truth, records),
        "records": check_records(truth, records),
        "looks": check_looks(truth, records),
        "stopped": check_stopped(records, faults),
    }


def check_order(truth: Truth) -> int:
    """In the order of the log one hold ends before the next begins, and tokens rise."""
    assert truth.most <= 1, f"{truth.most} held the lock at once"
    for earlier, later in pairwise(truth.grants):
        assert 0 < earlier.gone <= later.granted, f"{earlier} overlaps {later}"
        assert earlier.token < later.token, f"tokens do not rise from {earlier} to {later}"
    return len(truth.grants)


def check_file(truth: Truth, file: File, records: Records) -> int:
    """Tokens never go down, each write counts once and sees the one before it, and each has a hold to its name."""
    by_token = {grant.token: grant for grant in truth.grants}
    newest, noted = 0, {held.token: held for held in records.holds.values()}
    for place, write in enumerate(file.writes, 1):
        assert write.token > newest, f"write {place} has token {write.token} after {newest}"
        newest = write.token
        assert write.counter == place, f"write {place} made the counter {write.counter}: one was lost"
        assert write.token in by_token, f"write {place} has token {write.token}, which nobody was granted"
        assert write.token in noted, f"write {place} has token {write.token}, which no contender was told of"
        held = noted[write.token]
        assert f"{held.member} {held.contender}" == write.contender, f"write {place} is not of {held}"
        # "": killed between the commit and the note of it.
        assert held.write in ("written", ""), f"{held} noted something else than write {place}"
    assert file.counter == len(file.writes), f"the counter is {file.counter} after {len(file.writes)} writes"
    written = {write.token for write in file.writes}
    for held in noted.values():
        assert held.write != "written" or held.token in written, f"{held} wrote, and the file does not show it"
    return len(file.writes)


def check_refusals(truth: Truth, records: Records) -> int:
    """Whoever was refused had lost its hold before whoever it was refused for had got one."""
    by_token = {grant.token: grant for grant in truth.grants}
    refused = [held for held in records.holds.values() if held.write == "stale"]
    for held in refused:
        own, other = by_token[held.token], by_token.get(held.newest)
        assert other is not None, f"{held} was refused for token {held.newest}, which nobody was granted"
        assert own.gone and own.gone <= other.granted, f"{held} was refused for {other} while it held"
        assert held.release != "ok", f"{held} had lost its hold, and was told that it was released"
    return len(refused)


def check_records(truth: Truth, records: Records) -> int:
    """What contenders were told of their holds is what the log says."""
    granted = {grant.request: grant for grant in truth.grants}
    for request, held in records.holds.items():
        grant = granted.get(request)
        assert grant is not None, f"{held} was told of a hold that the log has not"
        assert (grant.token, grant.owner) == (held.token, held.member), f"{held} is {grant} in the log"
    for grant in truth.grants:
        assert grant.gone, f"{grant} is held still, and nobody is there who would"
    return len(records.holds)


def check_looks(truth: Truth, records: Records) -> int:
    """Nobody who was told that it holds was so after another was granted the lock."""
    checked = 0
    for earlier, later in pairwise(truth.grants):
        held = records.holds.get(earlier.request)
        if held is None:
            continue
        theirs = records.time_of(later.granted)
        for at, good in held.looks:
            assert not good or at < theirs, (
                f"{held.process} {held.contender} was told at {at:.4f} that it holds with token {held.token}; "
                f"{later.owner} had been granted {later.token} at {theirs:.4f}"
            )
            checked += 1
    return checked


def check_stopped(records: Records, faults: Iterable[Fault]) -> int:
    """A holder that was stopped until others had got the lock finds at once, by the first look, that it holds no more,
    and then that it is lost; and its write is refused."""
    checked = 0
    by_token = {held.token: held for held in records.holds.values()}
    for fault in faults:
        held = by_token.get(fault.token)
        if held is None or not fault.outlived or not fault.kind.startswith("stop"):
            continue
        after = [good for at, good in held.looks if at >= fault.ended]
        if not after or (held.released is not None and held.released < fault.began):
            # It was through with its work when the signal came.
            continue
        assert not any(after), f"{held} was told that it holds after it had been stopped"
        assert held.write in ("stale", "written"), f"{held} has not even tried"
        assert held.lost is not None, f"{held} was not told that it was lost"
        assert held.release == "NotHeld", f"{held} released what it had lost, and was told {held.release!r}"
        checked += 1
    return checked


# ---------------------------------------------------------------------------------------------------------------------
# How long it took.


@dataclass(slots=True)
class Wait:
    """From a lock's being free, in the world, to the next grant in the log."""

    seconds: float
    #: Why its last holder was none any more: a kind of fault, "released", "given up", or "" if nobody knows.
    why: str
    earlier: Grant
    later: Grant


def find_waits(truth: Truth, records: Records, faults: list[Fault]) -> list[Wait]:
    """For each grant to somebody who waited: how long nobody had held the lock who could act on it."""
    waits = []
    for earlier, later in pairwise(truth.grants):
        if not later.asked:
            continue
        free, why = _freed(earlier, records, faults)
        free = max(free, records.time_of(later.asked))
        waits.append(Wait(max(0.0, records.time_of(later.granted) - free), why, earlier, later))
    return waits


def _freed(grant: Grant, records: Records, faults: list[Fault]) -> tuple[float, str]:
    """When its holder let go, or could not act on it any more."""
    began, gone = records.time_of(grant.granted), records.time_of(grant.gone)
    held = records.holds.get(grant.request)
    released = held.released if held is not None else None
    own = [fault for fault in faults if fault.member == grant.owner and not fault.kind.startswith("transfer")]
    if held is not None and released is not None and held.release == "ok":
        # Cut off, it goes on being released in the background, or runs out.
        during = [fault for fault in own if fault.began <= released < fault.ended]
        return released, f"{during[-1].kind}, released meanwhile" if during else "released"
    covering = [fault for fault in own if fault.began < gone and began < fault.ended]
    if covering:
        last = covering[-1]
        free = max(began, last.began)
        return (released, "released") if released is not None and released < free else (free, last.kind)
    if held is None:
        # Its acquire had come to its timeout, and was taken back.
        return gone, "given up"
    return (released, "released") if released is not None and released < gone else (gone, "")


def find_told(records: Records, truth: Truth, faults: list[Fault]) -> list[float]:
    """For each hold whose member was well: from the grant in the log until its contender was told."""
    told = []
    for grant in truth.grants:
        held = records.holds.get(grant.request)
        if held is None:
            continue
        time = records.time_of(grant.granted)
        if not any(f.member == grant.owner and f.began < held.granted and time < f.ended for f in faults):
            told.append(held.granted - time)
    return told


def find_lost(records: Records, faults: list[Fault], kind: str) -> list[float]:
    """For each holder that lost its hold to a fault of this kind: from the end of the fault until it was told."""
    by_token = {held.token: held for held in records.holds.values()}
    found: list[float] = []
    for fault in faults:
        held: Held | None = by_token.get(fault.token)
        if held is not None and held.told is not None and fault.kind.startswith(kind):
            found.append(max(0.0, held.told - fault.ended))
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 if there are none."""
    ordered: list[Any] = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if ordered else 0.0
