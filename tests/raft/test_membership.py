"""Memberships, their encoding, and their history along the log."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.raft.batch import COMMANDS, MEMBERSHIP, encode_entry, make_batch
from coord.raft.membership import (
    MemberRecord,
    Membership,
    MembershipHistory,
    membership_in,
    membership_of,
    read_membership,
)

names = st.text("abcdefghij-", min_size=1, max_size=10)
records = st.builds(MemberRecord, st.text(max_size=20), st.integers(0, (1 << 64) - 1), st.booleans())
memberships = st.builds(
    Membership, st.dictionaries(names, records, min_size=1, max_size=5), st.integers(0, (1 << 64) - 1)
).filter(lambda membership: bool(membership.voters))


@given(membership=memberships)
def test_a_membership_survives_its_encoding(membership: Membership) -> None:
    assert read_membership(membership.encode()) == membership
    assert hash(read_membership(membership.encode())) == hash(membership)
    batch = make_batch(MEMBERSHIP, 1, 1, 0, [encode_entry(membership.encode())], 1)
    assert membership_in(batch) == membership


def test_a_group_starts_with_voters_nobody_has_seen() -> None:
    membership = membership_of({"c": "tcp://c", "a": "tcp://a"})
    assert membership.voters == ("a", "c")
    assert membership.group_number == 0
    seen = membership.with_incarnation("c", 9)
    assert (seen.members["c"].incarnation, seen.members["a"].incarnation) == (9, 0)
    assert membership.members["c"].incarnation == 0


ONE = ["a", "tcp://a", 1, True]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        [],
        [1],
        [1, []],
        [1, [["a", "tcp://a", 1, False]]],
        [-1, [ONE]],
        [True, [ONE]],
        ["1", [ONE]],
        [1, [["", "tcp://a", 1, True]]],
        [1, [["a" * 64, "tcp://a", 1, True]]],
        [1, [[["a"], "tcp://a", 1, True]]],
        [1, [["a", 5, 1, True]]],
        [1, [["a", "tcp://a", -1, True]]],
        [1, [["a", "tcp://a", True, True]]],
        [1, [["a", "tcp://a", 1.0, True]]],
        [1, [["a", "tcp://a", 1, 1]]],
        [1, [["a", "tcp://a", 1]]],
        [1, [[*ONE, 1]]],
        [1, {"a": ONE}],
        [1, "abcd"],
        [1, [ONE], 1],
    ],
)
def test_what_is_no_membership_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a membership"):
        read_membership(msgpack.packb(value))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_membership_or_a_value_error(data: bytes) -> None:
    try:
        assert read_membership(data).voters
    except ValueError:
        return


def test_a_batch_with_two_entries_sets_no_membership() -> None:
    entry = encode_entry(membership_of({"a": ""}).encode())
    with pytest.raises(ValueError, match="too many values"):
        membership_in(make_batch(MEMBERSHIP, 1, 1, 0, [entry, entry], 2))
    with pytest.raises(AssertionError):
        membership_in(make_batch(COMMANDS, 1, 1, 0, [entry], 1))


def numbered(number: int) -> Membership:
    return Membership({"a": MemberRecord("")}, number)


@given(
    indexes=st.lists(st.integers(1, 50), unique=True).map(sorted),
    cuts=st.lists(st.tuples(st.sampled_from(["truncate", "compact"]), st.integers(1, 50)), max_size=4),
)
def test_history_answers_as_a_list_of_all_would(indexes: list[int], cuts: list[tuple[str, int]]) -> None:
    history, model = MembershipHistory(0, numbered(0)), {0: 0}
    for index in indexes:
        history.append(index, numbered(index))
        model[index] = index
    lowest = 0
    for cut, index in cuts:
        if cut == "compact":
            lowest = max(lowest, index)
            history.compact(index)
        elif index > lowest:
            # What is compacted is committed, and never truncated.
            changed = history.truncate_from(index)
            assert changed == (max(model) >= index)
            model = {kept: value for kept, value in model.items() if kept < index}
        for asked in range(lowest, 51):
            newest = max(kept for kept in model if kept <= asked)
            assert history.at(asked) == (newest, numbered(newest))
        assert (history.latest_index, history.latest) == (max(model), numbered(max(model)))


def test_history_begins_anew_with_a_snapshot_and_only_moves_forward() -> None:
    history = MembershipHistory(0, numbered(0))
    history.append(5, numbered(5))
    history.reset(3, numbered(3))
    assert history.at(9) == (3, numbered(3))
    with pytest.raises(AssertionError):
        history.append(3, numbered(4))
