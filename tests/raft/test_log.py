"""The log in memory, against a plain list of entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import batch
from coord.raft.batch import Batch
from coord.raft.log import Log


def log_of(*sizes_and_terms: tuple[int, int], base: int = 0, base_term: int | None = 0) -> Log:
    """A log of batches of (count, term)."""
    log = Log(base, base_term, 0)
    for count, term in sizes_and_terms:
        log.append(batch(term, log.last_index + 1, *["x"] * count))
    return log


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=8)


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, dict[int, Batch]]:
    """A log, and the batch each index is in."""
    base = draw(st.sampled_from([0, 0, 3, 10]))
    log, term, holder = Log(base, 1 if base else 0, 0), 1, {}
    for count, step in draw(shapes):
        term += step
        log.append(batch(term, log.last_index + 1, *["x"] * count))
        holder.update(
            dict.fromkeys(range(log.last_index - count + 1, log.last_index + 1), log.batch_at(log.last_index))
        )
    return log, holder


def test_an_empty_log_ends_at_its_base() -> None:
    log = Log(7, 3, 99)
    assert (log.first_index, log.last_index, log.last_term, log.last_time, log.persisted) == (8, 7, 3, 99, 7)
    assert log.term_at(7) == 3
    assert log.term_at(6) is log.term_at(8) is None
    assert log.between(8, 7) == []
    assert Log(7, None, 0).term_at(7) is None


@given(made=logs(), index=st.integers(-1, 40))
def test_terms_and_ends_are_those_of_the_batch(made: tuple[Log, dict[int, Batch]], index: int) -> None:
    log, holder = made
    at_base = index == log.base
    assert log.term_at(index) == (log.base_term if at_base else holder[index].term if index in holder else None)
    assert log.ends_batch(index) == (at_base or (index in holder and holder[index].last == index))
    assert log.bytes == sum(len(one.data) for one in set(holder.values()))
    assert log.bytes_after(index) == sum(len(one.data) for one in set(holder.values()) if one.first > index)


@given(made=logs(), index=st.integers(0, 40), term=st.integers(0, 20))
def test_the_newest_entry_not_above_a_term(made: tuple[Log, dict[int, Batch]], index: int, term: int) -> None:
    log, holder = made
    ends = [one.last for one in holder.values() if one.last <= index and one.term <= term]
    found = max(ends, default=log.base)
    assert log.newest_not_above(index, term) == (found, log.term_at(found))


@given(made=logs(), start=st.integers(0, 10), limit=st.integers(1, 300))
def test_sending_takes_whole_batches_up_to_a_limit(made: tuple[Log, dict[int, Batch]], start: int, limit: int) -> None:
    log, holder = made
    firsts = sorted({one.first for one in holder.values()})
    if start >= len(firsts):
        return
    found = log.from_index(firsts[start], limit)
    assert found[0].first == firsts[start]
    assert [one.first for one in found] == firsts[start : start + len(found)]
    assert len(found) == 1 or sum(len(one.data) for one in found) <= limit
    following = firsts[start + len(found) :]
    if following:
        assert sum(len(one.data) for one in found) + len(holder[following[0]].data) > limit


@given(made=logs(), cut=st.integers(0, 8))
def test_truncation_drops_the_tail_and_its_durability(made: tuple[Log, dict[int, Batch]], cut: int) -> None:
    log, holder = made
    firsts = sorted({one.first for one in holder.values()})
    if cut >= len(firsts):
        return
    index = firsts[cut]
    log.persisted = log.last_index
    log.truncate_from(index)
    assert (log.last_index, log.persisted, log.epoch) == (index - 1, index - 1, 1)
    assert log.bytes == sum(len(one.data) for one in set(holder.values()) if one.first < index)
    log.append(batch(99, index, "new"))
    assert (log.last_index, log.persisted, log.last_term) == (index, index - 1, 99)


@given(made=logs(), index=st.integers(0, 40))
def test_compaction_forgets_only_whole_batches_up_to_the_index(made: tuple[Log, dict[int, Batch]], index: int) -> None:
    log, holder = made
    base, last, last_term = log.base, log.last_index, log.last_term
    log.compact(index)
    ends = [one.last for one in holder.values() if one.last <= index]
    assert log.base == max(ends, default=base)
    assert (log.last_index, log.last_term, log.epoch) == (last, last_term, 0)
    for kept in range(log.base + 1, last + 1):
        assert log.term_at(kept) == holder[kept].term
    assert log.bytes == sum(len(one.data) for one in set(holder.values()) if one.first > log.base)


def test_a_snapshot_takes_the_place_of_everything() -> None:
    log = log_of((2, 1), (3, 2))
    log.reset(50, 9, 1234)
    assert (log.first_index, log.last_index, log.last_term, log.last_time) == (51, 50, 9, 1234)
    assert (log.persisted, log.epoch, log.bytes) == (50, 1, 0)


def test_a_gap_a_falling_term_and_a_cut_through_a_batch_are_bugs() -> None:
    log = log_of((2, 1), (3, 2))
    for wrong in (batch(2, 7, "x"), batch(2, 5, "x"), batch(1, 6, "x")):
        with pytest.raises(AssertionError):
            log.append(wrong)
    with pytest.raises(AssertionError, match="inside"):
        log.truncate_from(4)
    with pytest.raises(AssertionError, match="inside"):
        log.from_index(4, 100)
    for low, high in ((1, 4), (2, 5)):
        with pytest.raises(AssertionError, match="cuts"):
            log.between(low, high)
    with pytest.raises(AssertionError, match="outside"):
        log.batch_at(6)
