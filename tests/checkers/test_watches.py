"""Watches: by hand, and what a correct one tells of a random log, with something left out, told twice, exchanged."""

from __future__ import annotations

import random

import pytest

from checkers.generate import Group, Shape
from checkers.text import changes
from coord.testing import anomalies
from coord.testing.history import Change, Watched
from coord.testing.watches import check_resumed, check_watch, last_values

LOG = "3 a/x=1, 5 a/y=1, 7 b/z=1, 8 a/x=2, 8 b/z=2, 11 no a/y, 12 a/x=3, 15 a/y=4"

#: Of everything under a/: how it was begun, what it told, what is wrong with that; "idle N": it was idle after N.
CASES = {
    "everything": ("from 1", "3 a/x=1, 5 a/y=1, 8 a/x=2, 11 no a/y, 12 a/x=3, 15 a/y=4", ""),
    "everything from a revision": ("from 8", "8 a/x=2, 11 no a/y, 12 a/x=3, 15 a/y=4", ""),
    "not to the end": ("from 8", "8 a/x=2, 11 no a/y", ""),
    "nothing yet": ("from 8", "", ""),
    "nothing at all": ("from 8 idle 15", "", anomalies.WATCH_GAP),
    "nothing at all, where there is nothing": ("from 16 idle 15", "", ""),
    "not to the end, and idle": ("from 8 idle 15", "8 a/x=2, 11 no a/y", anomalies.WATCH_GAP),
    "not the first": ("from 8", "11 no a/y, 12 a/x=3", anomalies.WATCH_GAP),
    "one left out": ("from 3", "3 a/x=1, 5 a/y=1, 11 no a/y", anomalies.WATCH_GAP),
    "a delete left out": ("from 3", "3 a/x=1, 5 a/y=1, 8 a/x=2, 12 a/x=3", anomalies.WATCH_GAP),
    "one told twice": ("from 8", "8 a/x=2, 8 a/x=2, 11 no a/y", anomalies.WATCH_DUPLICATE),
    "one told again later": ("from 8", "8 a/x=2, 11 no a/y, 8 a/x=2", anomalies.WATCH_DUPLICATE),
    "two exchanged": ("from 8", "11 no a/y, 8 a/x=2", anomalies.WATCH_REORDER),
    "another's key": ("from 7", "7 b/z=1, 8 a/x=2", anomalies.WATCH_FOREIGN),
    "what never happened": ("from 8", "8 a/x=2, 9 a/x=7", anomalies.WATCH_FOREIGN),
    "another value": ("from 8", "8 a/x=3", anomalies.WATCH_FOREIGN),
    "a delete as a put": ("from 11", "11 a/y=1", anomalies.WATCH_FOREIGN),
    "older than was asked for": ("from 8", "5 a/y=1, 8 a/x=2", anomalies.WATCH_FOREIGN),
    "what is there, then changes": ("initial", "5 a/y=1, 8 a/x=2, 11 no a/y, 12 a/x=3", ""),
    "what is there at the start of all": ("initial", "3 a/x=1, 5 a/y=1, 8 a/x=2, 11 no a/y", ""),
    "what is there at the end": ("initial idle 15", "12 a/x=3, 15 a/y=4", ""),
    "what is there, and one is missing": ("initial idle 15", "12 a/x=3", anomalies.WATCH_GAP),
    "what is there, and a change is left out": ("initial", "5 a/y=1, 8 a/x=2, 12 a/x=3, 15 a/y=4", anomalies.WATCH_GAP),
    "what was replaced when it began": ("initial", "3 a/x=1, 12 a/x=3", anomalies.WATCH_GAP),
    "a delete that was over when it began": ("initial at 11", "8 a/x=2, 11 no a/y", anomalies.WATCH_FOREIGN),
    "began where it is known": ("initial at 8", "5 a/y=1, 8 a/x=2, 11 no a/y", ""),
    "began where it is known, one is missing": ("initial at 8", "8 a/x=2, 11 no a/y", anomalies.WATCH_GAP),
    "changes only": ("later", "11 no a/y, 12 a/x=3", ""),
    "changes only, one is missing": ("later", "8 a/x=2, 12 a/x=3", anomalies.WATCH_GAP),
    "changes only, and it is known from where": ("later at 5", "11 no a/y, 12 a/x=3", anomalies.WATCH_GAP),
    "changes only, told what was there": ("later at 8", "8 a/x=2, 11 no a/y", anomalies.WATCH_FOREIGN),
    "the last of each": ("conflate from 1 idle 15", "12 a/x=3, 15 a/y=4", ""),
    "the last of one is missing": ("conflate from 1 idle 15", "15 a/y=4", anomalies.WATCH_GAP),
    "the last of one is an old one": ("conflate from 1 idle 15", "8 a/x=2, 15 a/y=4", anomalies.WATCH_GAP),
    "the last of one is missing, and a later one is told": (
        "conflate from 1",
        "8 a/x=2, 15 a/y=4",
        anomalies.WATCH_GAP,
    ),
    "a delete may be replaced": ("conflate from 1", "3 a/x=1, 5 a/y=1, 12 a/x=3, 15 a/y=4", ""),
    "a delete may not be left out": ("conflate from 1 idle 12", "5 a/y=1, 12 a/x=3", anomalies.WATCH_GAP),
    "conflated, and told twice": ("conflate from 1", "12 a/x=3, 12 a/x=3", anomalies.WATCH_DUPLICATE),
    "conflated, and exchanged": ("conflate from 1", "15 a/y=4, 12 a/x=3", anomalies.WATCH_REORDER),
    "conflated, not to the end": ("conflate from 1 idle 12", "11 no a/y, 12 a/x=3, 15 a/y=4", ""),
    "conflated, what is there": ("conflate initial idle 15", "12 a/x=3, 15 a/y=4", ""),
    "conflated, what is there and nothing of what was deleted": ("conflate initial idle 12", "12 a/x=3", ""),
    "conflated, the delete of what was told is left out": (
        "conflate initial idle 12",
        "5 a/y=1, 12 a/x=3",
        anomalies.WATCH_GAP,
    ),
}


def watched(how: str, told: str) -> tuple[Watched, int | None, int | None]:
    words = how.split()
    numbers = {name: int(words[words.index(name) + 1]) for name in ("from", "at", "idle") if name in words}
    watch = Watched("p", "w", "a/", numbers.get("from"), "initial" in words, "conflate" in words, changes(told))
    return watch, numbers.get("at"), numbers.get("idle")


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str) -> None:
    how, told, expect = CASES[name]
    watch, began_at, until = watched(how, told)
    report = check_watch(changes(LOG), watch, began_at=began_at, until=until)
    assert report.names == ({expect} if expect else set()), f"{expect or 'nothing'} is wrong, and it was said: {report}"
    assert report.checked == len(watch.events)


def test_resuming() -> None:
    first, _, _ = watched("from 3", "3 a/x=1, 5 a/y=1")
    good, _, _ = watched("from 6", "8 a/x=2, 11 no a/y")
    again, _, _ = watched("from 5", "5 a/y=1, 8 a/x=2")
    late, _, _ = watched("from 9", "11 no a/y")
    anew, _, _ = watched("initial", "12 a/x=3")
    log = changes(LOG)
    assert check_resumed(log, [first, good], until=11).ok
    assert check_resumed(log, [first, again], until=8).ok
    assert check_resumed(log, [first, late]).names == {anomalies.WATCH_GAP}, "8 was never told of"
    assert check_resumed(log, [first, anew]).names == {anomalies.WATCH_GAP}, "it did not say from where"
    assert check_resumed(log, [first, good], until=15).names == {anomalies.WATCH_GAP}, "12 and 15 were never told of"
    assert check_resumed(log, [first, good]).checked == 4


def tell(log: list[Change], rng: random.Random, *, initial: bool, conflate: bool) -> tuple[Watched, int]:
    """A watch that began somewhere in the log and told of everything after."""
    log = sorted((change for change in log if change.key != "k0"), key=lambda change: change.revision)
    begins = rng.choice([0, *(change.revision for change in log[:-4])])
    there = list(last_values([change for change in log if change.revision <= begins]).values())
    waiting = sorted(there, key=lambda change: change.revision) if initial else []
    told: list[Change] = []
    for change in [change for change in log if change.revision > begins]:
        if conflate:
            waiting = [one for one in waiting if one.key != change.key]
        waiting.append(change)
        while waiting and rng.random() < 0.5:
            told.append(waiting.pop(0))
    watch = Watched("p", "w", "k", None if initial else begins + 1, initial, conflate, told + waiting)
    return watch, begins


@pytest.mark.parametrize("conflate", [False, True])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_generated(seed: int, initial: bool, conflate: bool) -> None:
    rng = random.Random(seed)
    log = [change for change in Group(seed, Shape()).run().changes if change.key != "k0"]
    watch, begins = tell(log, rng, initial=initial, conflate=conflate)
    last = log[-1].revision
    for began_at in (None, begins):
        report = check_watch(log, watch, began_at=began_at if initial else None, until=last)
        assert report.ok, f"this is a good watch, and it was said: {report}"
    spoil = [change for change in watch.events if change.revision > begins]
    one = rng.choice(spoil[:-1] or spoil)
    position = watch.events.index(one)
    without = [change for change in watch.events if change is not one]
    latest = {change.key: change for change in watch.events}
    if not conflate or latest[one.key] is one:
        watch.events = without
        report = check_watch(log, watch, began_at=begins if initial else None, until=last)
        assert report.names == {anomalies.WATCH_GAP}, f"{one} is missing, and it was said: {report}"
    watch.events = [*without[:position], one, one, *without[position:]]
    assert check_watch(log, watch).names == {anomalies.WATCH_DUPLICATE}, f"{one} was told twice"
    after = [change for change in without[position:] if change.revision > one.revision]
    if after:
        watch.events = [*without, one]
        assert anomalies.WATCH_REORDER in check_watch(log, watch).names, f"{one} was told last"
