"""Where each of the known mistakes of other systems, the traps, is tested: by number, and by the names of the tests.

Those that concern the core are beside this file, each with a test that fails in a core that makes the mistake; the
others are beside what they concern.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
RAFT, STORAGE, MACHINE, WIRE = "raft", "storage", "machine", "test_wire.py"
LATER = {
    **dict.fromkeys((26, 27, 28, 29, 47), "the voters of a group do not change yet"),
    55: "there are no locks yet",
}

WHERE = {
    **dict.fromkeys((*range(1, 26), *range(30, 37), 43, 45, 46, 50, 53, 54), RAFT),
    **dict.fromkeys((37, 38, 39, 40, 41, 42, 44, 49), STORAGE),
    48: WIRE,
    **dict.fromkeys((51, 52), MACHINE),
}


def test_every_trap_has_a_place() -> None:
    assert sorted([*WHERE, *LATER]) == list(range(1, 56))


@pytest.mark.parametrize("number", sorted(LATER))
def test_what_waits_is_not_tested_yet(number: int) -> None:
    pattern = re.compile(rf"^ *def test_trap_{number:02}_", re.MULTILINE)
    assert not any(pattern.search(source.read_text()) for source in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("number", sorted(WHERE))
def test_the_tests_of_a_trap_are_where_the_table_says(number: int) -> None:
    place = TESTS / WHERE[number]
    sources = [place] if place.suffix else sorted(place.glob("*.py"))
    pattern = re.compile(rf"^ *def test_trap_{number:02}_", re.MULTILINE)
    assert any(pattern.search(source.read_text()) for source in sources)
