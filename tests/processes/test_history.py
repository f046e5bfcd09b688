"""The judge itself: what it must let pass, and what it must not."""

from __future__ import annotations

import pytest

from processes.history import History


@pytest.fixture
def history() -> History:
    """`k` was one (acknowledged at 5), then perhaps two, then certainly not three."""
    history = History()
    for value in ("one", "two", "three"):
        history.attempt("k", value)
    history.acknowledge("k", "one", 5)
    history.doubt()
    history.refuse("k", "three")
    return history


@pytest.mark.parametrize("found", [["one", 5], ["two", 7]])
def test_what_may_be_found(history: History, found: list[object]) -> None:
    history.check_end({"k": found})


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "acknowledged at 5, found 0"),
        ({"k": ["one", 4]}, "acknowledged at 5, found 4"),
        ({"k": ["two", 5]}, "'two'"),
        ({"k": ["three", 7]}, "said to have had no effect"),
        ({"k": ["four", 7]}, "never written"),
        ({"k": ["one", 5], "other": [1, 8]}, "other"),
    ],
)
def test_what_may_not_be_found(history: History, found: dict[str, list[object]], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        history.check_end(found)


def test_a_reader_never_goes_back(history: History) -> None:
    history.see("reader", "k", 7, "two")
    history.see("another", "k", 5, "one")
    with pytest.raises(AssertionError, match="go back from 7 to 5"):
        history.see("reader", "k", 5, "one")


def test_a_linearizable_read_finds_what_was_acknowledged_before(history: History) -> None:
    with pytest.raises(AssertionError, match="found k at 0 after 5 was acknowledged"):
        history.see("reader", "k", 0, None, floor=history.floor("k"))


def test_one_revision_has_one_value(history: History) -> None:
    history.see("reader", "k", 7, "two")
    history.attempt("k", "four")
    with pytest.raises(AssertionError, match="four"):
        history.acknowledge("k", "four", 7)
