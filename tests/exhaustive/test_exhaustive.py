"""Small scopes, searched to the end: nothing is wrong in any. And mistakes put back in, each found in one.

``PYTHONPATH=tests python -m exhaustive --help`` goes further.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from coord.raft import replication
from exhaustive.frozen import rename, swap_names
from exhaustive.mutants import MUTANTS, TWO_LEAD, Mutant, applied
from exhaustive.rules import differ_at
from exhaustive.scope import FREE, INSTANT, REAL, SLOW, Scope, disk_of
from exhaustive.search import ORDERS, Outcome, Search
from exhaustive.story import Story

_QUICK = Scope(pre_votes=INSTANT, disk_answers=INSTANT)
#: Each scope, and how many states it has: the same in every run and under every Python. It changes with the core's
#: behaviour; whoever changed that says here what it is now.
SCOPES: dict[str, tuple[Scope, int]] = {
    "two leaders, one after the other": (replace(_QUICK, terms=2, entries=0), 52388),
    "two leaders, and a crash": (replace(_QUICK, terms=2, entries=0, crashes=1, old_messages=False), 224173),
    "a crash in the middle of anything": (replace(_QUICK, terms=1, entries=2, crashes=1), 80015),
    "slow disks": (Scope(terms=1, entries=2, pre_votes=FREE, disk_answers=SLOW), 27232),
    "slow disks, and a crash": (Scope(terms=1, entries=1, crashes=1, pre_votes=FREE, disk_answers=SLOW), 3805),
    "pre-votes asked and answered": (Scope(terms=1, entries=2, pre_votes=REAL, disk_answers=INSTANT), 48566),
    "heartbeats, and voters that hear a leader": (replace(_QUICK, terms=1, entries=1, rounds=2, stickiness=True), 7535),
    "two messages in one turn": (replace(_QUICK, terms=1, entries=2, joined=True), 4758),
    "an entry only its leader has, and a crash": (
        replace(_QUICK, terms=2, entries=0, crashes=1, disks=(disk_of(1, "a", 1), disk_of(1, "a"), disk_of(1, ""))),
        3810,
    ),
    "tails that conflict, and a crash": (
        replace(
            _QUICK,
            terms=3,
            entries=0,
            crashes=1,
            old_messages=False,
            disks=(disk_of(2, "", 1), disk_of(2, "b", 2), disk_of(2, "b")),
        ),
        7508,
    ),
    "reads of an old leader and of a new one": (TWO_LEAD, 63092),
}


@pytest.mark.parametrize("name", SCOPES)
def test_nothing_is_wrong_in_a_small_scope(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope, states = SCOPES[name]
    outcome = Search(scope).run()
    with capsys.disabled():
        print(f"\n{name}: {outcome.describe()}")
    assert not outcome.violation, _told(scope, outcome)
    assert outcome.complete, f"{outcome.frontier} states were not looked at"
    assert outcome.states == states, f"{outcome.states} states, once {states}: the core behaves otherwise than it did"


_FINDS = [(mutant, False) for mutant in MUTANTS] + [(mutant, True) for mutant in MUTANTS if mutant.harm]


@pytest.mark.parametrize(
    ("mutant", "harm_only"), _FINDS, ids=[f"{m.name}-{'harm' if h else 'promise'}" for m, h in _FINDS]
)
def test_a_mistake_is_found(mutant: Mutant, harm_only: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """By the promise that it breaks; and, when nobody looks at promises, by the harm that comes of that."""
    scope = mutant.scope
    if harm_only:
        scope = replace(mutant.harm_scope or scope, harm_only=True)
    with applied(mutant):
        outcome = Search(scope).run(max_states=300_000)
        assert outcome.violation, f"not found in {outcome.states} states"
        story = Story(scope)
        # By cores that live from the first step to the last, so it is no slip of the search.
        assert story.tell(outcome.story), "not found again when its story was told"
    with capsys.disabled():
        print(f"\n{mutant.name}: {len(outcome.story)} steps, {outcome.states} states: {story.violation}")
    # The mistake is needed for it, not the story alone.
    assert not _goes_through(scope, outcome), "the story shows something wrong in the core as it is"


def _goes_through(scope: Scope, outcome: Outcome) -> str:
    """What the same steps, as far as they can be made, show without the mistake."""
    story = Story(scope)
    try:
        return story.tell(outcome.story)
    except AssertionError as error:
        return "" if "nobody said that" in str(error) else str(error)


def test_a_mistake_is_gone_when_it_was_looked_at() -> None:
    before = replication.on_append
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name.startswith("an acknowledgement"))
    with applied(mutant):
        assert replication.on_append is not before
    assert replication.on_append is before


def test_a_story_can_be_read() -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "two votes in one term")
    scope = replace(mutant.scope, harm_only=True)
    with applied(mutant):
        text = _told(scope, Search(scope).run())
    assert "waits in vain" in text
    assert "VoteRequest(term=1" in text
    assert "led term 1, now" in text.splitlines()[-1]


def test_dropping_dead_letters_loses_no_group() -> None:
    scope = replace(_QUICK, terms=2, entries=0, opening=("a stands", "a > b", "b > a", "a > c", "c > a"))
    kept = replace(scope, dead_letters=True)
    dropped_groups, kept_groups = _groups(scope), _groups(kept)
    assert len(kept_groups) > 100, "too few to prove anything"
    assert dropped_groups == kept_groups, (
        f"{len(dropped_groups)} groups of members, {len(kept_groups)} when all is kept"
    )


def _groups(scope: Scope) -> set[int]:
    """Every group of three members that is reached, whoever they are."""
    search = Search(scope)
    assert search.run().complete
    names = [swap_names(order) for order in ORDERS]
    return {min(hash(frozenset(rename(group, called))) for called in names) for group in search.groups()}


def test_limits_end_a_search() -> None:
    outcome = Search(Scope(terms=2)).run(max_states=1000)
    assert not outcome.complete
    assert outcome.frontier > 0
    assert outcome.states >= 1000


def test_logs_that_share_an_entry_share_all_before_it() -> None:
    assert differ_at(((0, 1, 1, 1), (0, 2, 2, 1)), ((0, 1, 1, 1), (0, 3, 2, 1))) == 0
    assert differ_at(((0, 1, 1, 1), (0, 2, 2, 1)), ((0, 2, 1, 1), (0, 2, 2, 1))) == 2
    assert differ_at(((0, 1, 1, 2),), ((0, 1, 1, 1), (0, 1, 2, 1))) == 2
    assert differ_at((), ((0, 1, 1, 1),)) == 0
    assert len(ORDERS) == 6


def _told(scope: Scope, outcome: Outcome) -> str:
    story = Story(scope)
    story.tell(outcome.story)
    return story.text()
