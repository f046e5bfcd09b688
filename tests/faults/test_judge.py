"""The judge itself: a history it must let pass, and one change to it for each thing it must not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from coord.testing.anomalies import HistoryViolation
from faults import judge, second_opinion
from faults.record import CONFLICT, OK, REFUSED, UNKNOWN, Call, Event, Recorded, Role, Watched


def call(process: str, op: str, invoked: float, returned: float, outcome: str = OK, **more: Any) -> Call:
    answer = more.pop("answer", {})
    return Call(process, f"{process} client", op, invoked, more, outcome, returned, answer)


@pytest.fixture
def good() -> Recorded:
    """`x` was one at 5, two at 7 (by compare-and-set), deleted at 9; `y` was perhaps written at 8, and was."""
    writes = [
        call("a/1", "put", 1.0, 2.0, key="x", value="one", answer={"revision": 5}),
        call("b/1", "cas", 3.0, 4.0, key="x", value="two", expected=5, answer={"revision": 7}),
        call("a/1", "transaction", 4.0, float("inf"), UNKNOWN, puts={"y": "three"}, requires={}),
        call("b/1", "delete", 6.0, 7.0, key="x", answer={"revision": 9}),
        call("b/1", "put", 6.0, 7.0, REFUSED, key="y", value="never"),
        call("a/1", "cas", 4.5, 5.5, CONFLICT, key="x", value="no", expected=5, answer={"revision": 7, "value": "two"}),
    ]
    reads = [
        call("a/1", "read", 4.5, 4.6, key="x", answer={"value": "two", "revision": 7}),
        call("a/1", "look", 2.1, 2.2, key="x", answer={"value": "one", "revision": 5}),
        call("a/1", "look", 4.7, 4.8, key="x", answer={"value": "two", "revision": 7}),
        call("a/1", "read", 8.0, 8.1, key="x", answer={"value": None, "revision": 0}),
    ]
    events = [
        Event("x", "one", 5, 2.0),
        Event("x", "two", 7, 4.0),
        Event("y", "three", 8, 5.0),
        Event("x", None, 9, 7.0),
    ]
    watches = [Watched("a/1 watch", 1, events), Watched("b/1 watch", 1, list(events))]
    return Recorded([*writes, *reads], watches, [Role("a", 0.5, "leader", 1), Role("b", 5.5, "leader", 2)])


END = {"y": ["three", 8]}


def test_what_may_be(good: Recorded) -> None:
    checked = judge.check_all(good)
    assert checked == {
        "changes": 4,
        "writes": 3,
        "order": 3,
        "reads": 2,
        "conflicts": 1,
        "local reads": 2,
        "watched": 8,
        "terms": 2,
    }
    assert judge.check_end(good, [END, END]) == 1
    assert second_opinion.check_shared(good) == {"searched": 6, "by revision": 10, "watched too": 8}


def change(position: int, **values: Any) -> Callable[[Recorded], None]:
    """What sets these in one call's answer, or in what it asked."""

    def do(recorded: Recorded) -> None:
        one = recorded.calls[position]
        for name, value in values.items():
            if name in ("invoked", "returned", "outcome"):
                setattr(one, name, value)
            elif name in one.asked and name not in one.answer:
                one.asked[name] = value
            else:
                one.answer[name] = value

    return do


def forget(watch: int, event: int) -> Callable[[Recorded], None]:
    def do(recorded: Recorded) -> None:
        recorded.watches[watch].events.pop(event)

    return do


def swap_events(recorded: Recorded) -> None:
    events = recorded.watches[0].events
    events[0], events[1] = events[1], events[0]


def tell_twice(recorded: Recorded) -> None:
    recorded.watches[0].events.insert(1, recorded.watches[0].events[0])


def tell_another_value(recorded: Recorded) -> None:
    recorded.watches[0].events[2] = Event("y", "else", 8, 5.0)


def never_deleted(recorded: Recorded) -> None:
    for watched in recorded.watches:
        watched.events.pop()
    recorded.calls.pop(3)


def both_lead(recorded: Recorded) -> None:
    recorded.roles.append(Role("c", 6.0, "leader", 2))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change(3, revision=6), "after 7 was acknowledged"),
        (change(0, revision=6), "acknowledged at 6 and happened at 5"),
        (change(0, outcome=REFUSED), "told refused, so without effect"),
        (change(2, puts={"y": "else"}), "which nobody wrote"),
        (change(1, expected=4), "as x was at 4; it was at 5"),
        (change(2, puts={"y": "three", "z": "four"}), "half of"),
        (change(4, value="two"), "written once"),
        (change(5, revision=5, value="one"), "that is where it was"),
        (never_deleted, "nobody had deleted it"),
        (change(6, revision=5, value="one"), "found x at 5 after 7"),
        (change(6, revision=6, value="one"), "which never was"),
        (change(6, invoked=0.1, returned=0.2), "before it was written"),
        (change(8, revision=5, value="one"), "found x at 5 after 7"),
        (change(9, revision=7, value="two"), "found x at 7 after 9"),
        (forget(0, 2), "never told of"),
        (swap_events, "told 5 after 7"),
        (tell_twice, "twice"),
        (tell_another_value, "else"),
        (both_lead, "all led in term 2"),
    ],
)
def test_what_may_not_be(good: Recorded, spoil: Callable[[Recorded], None], why: str) -> None:
    spoiled = copy.deepcopy(good)
    spoil(spoiled)
    with pytest.raises(AssertionError, match=why):
        judge.check_all(spoiled)


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ([], "nobody is left"),
        ([END, {}], "do not hold the same"),
        ([{"y": ["else", 8]}], "which never was"),
        ([{**END, "x": ["two", 7]}], "its last change is at 9"),
    ],
)
def test_how_it_may_not_end(good: Recorded, ends: list[dict[str, list[Any]]], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        judge.check_end(good, ends)


@pytest.mark.parametrize(
    "spoil",
    [
        change(1, expected=4),
        change(5, revision=5, value="one"),
        change(6, revision=5, value="one"),
        change(9, revision=7, value="two"),
        change(8, revision=5, value="one"),
        forget(0, 2),
        swap_events,
        tell_twice,
    ],
)
def test_what_the_second_opinion_does_not_let_pass(good: Recorded, spoil: Callable[[Recorded], None]) -> None:
    spoil(good)
    with pytest.raises(HistoryViolation):
        second_opinion.check_shared(good)


def test_a_gap_that_a_snapshot_made(good: Recorded) -> None:
    """It is told apart from a gap that nothing explains, and a delete found so is not taken at its revision."""
    events = good.watches[0].events
    events[1:] = [Event("y", "three", 8, 5.0, True), Event("x", None, 10, 7.0, True)]
    assert judge.check_all(good)["changes"] == 4
    assert judge.find_silent_gaps(good) == ["a/1 watch was never told of 2 changes, nor that it was not"]
    events[0] = Event("y", "three", 8, 5.0)
    del events[1]
    with pytest.raises(AssertionError, match="never told of"):
        judge.check_all(good)


def test_an_acknowledged_write_that_is_gone(good: Recorded) -> None:
    good.calls.append(call("a/1", "put", 8.0, 9.0, key="z", value="last", answer={"revision": 12}))
    with pytest.raises(AssertionError, match="z: its last change is at 12, and it ends at 0"):
        judge.check_end(good, [END])
