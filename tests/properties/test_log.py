"""The log in memory against a plain list of entries, through any sequence of what a member does to it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coord.raft.batch import COMMANDS, Batch, encode_entry, make_batch
from coord.raft.log import Log


class LogAgainstAList(RuleBasedStateMachine):
    """The list has one item for each entry: its term, and the batch it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log(0, 0, 0)
        self.base: tuple[int, int | None, int] = (0, 0, 0)
        self.entries: list[tuple[int, Batch]] = []
        self.persisted = 0
        self.epochs = 0

    # -- What the list says -------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return self.base[0] + len(self.entries)

    def term_at(self, index: int) -> int | None:
        if index == self.base[0]:
            return self.base[1]
        return self.entries[index - self.base[0] - 1][0] if self.base[0] < index <= self.last else None

    def batches(self) -> list[Batch]:
        """Each once, oldest first."""
        return [batch for at, (_, batch) in enumerate(self.entries) if self.base[0] + at + 1 == batch.first]

    # -- What is done to both -----------------------------------------------------------------------------------------

    @initialize(base=st.sampled_from([0, 1, 7, 1 << 40]), term=st.none() | st.integers(0, 3), data=st.data())
    def start(self, base: int, term: int | None, data: st.DataObject) -> None:
        """A log is made with what recovery found in it."""
        self.base = (base, term, 5)
        found = []
        for count in data.draw(st.lists(st.integers(1, 3), max_size=3), label="batches found"):
            found.append(self._made(count, 0, 0, b"found"))
            self.entries += [(found[-1].term, found[-1])] * count
        self.log = Log(base, term, 5, found)
        self.persisted = self.last

    def _made(self, count: int, terms: int, later: int, payload: bytes) -> Batch:
        term = (self.entries[-1][0] if self.entries else self.base[1] or 0) + terms
        time = (self.entries[-1][1].time if self.entries else self.base[2]) + later
        return make_batch(COMMANDS, term, self.last + 1, time, [encode_entry(payload)] * count, count)

    @rule(
        count=st.integers(1, 5),
        terms=st.sampled_from([0, 0, 1, 1 << 20]),
        later=st.integers(0, 9),
        payload=st.binary(max_size=9),
    )
    def append(self, count: int, terms: int, later: int, payload: bytes) -> None:
        batch = self._made(count, terms, later, payload)
        self.log.append(batch)
        self.entries += [(batch.term, batch)] * count

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from([batch.first for batch in self.batches()]), label="from")
        self.log.truncate_from(first)
        del self.entries[first - self.base[0] - 1 :]
        self.persisted = min(self.persisted, first - 1)
        self.epochs += 1

    @rule(above=st.integers(-3, 12))
    def compact(self, above: int) -> None:
        index = self.base[0] + above
        self.log.compact(index)
        gone = [batch for batch in self.batches() if batch.last <= index]
        if gone:
            del self.entries[: gone[-1].last - self.base[0]]
            self.base = (gone[-1].last, gone[-1].term, gone[-1].time)

    @rule(ahead=st.integers(0, 20), terms=st.integers(0, 2), later=st.integers(0, 9))
    def reset(self, ahead: int, terms: int, later: int) -> None:
        base = (self.last + ahead, (self.log.last_term) + terms, self.log.last_time + later)
        self.log.reset(*base)
        self.base, self.entries, self.persisted = base, [], base[0]
        self.epochs += 1

    @precondition(lambda self: self.persisted < self.last)
    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        self.persisted = data.draw(st.integers(self.persisted + 1, self.last), label="durable up to")
        self.log.persisted = self.persisted

    # -- What is asked of both ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def batches_between(self, data: st.DataObject) -> None:
        batches = self.batches()
        low = data.draw(st.integers(0, len(batches) - 1), label="low")
        high = data.draw(st.integers(low, len(batches) - 1), label="high")
        assert self.log.between(batches[low].first, batches[high].last) == batches[low : high + 1]
        assert self.log.between(batches[low].first, batches[low].first - 1) == []

    @precondition(lambda self: any(batch.count > 1 for batch in self.batches()))
    @rule(data=st.data())
    def a_cut_through_a_batch_is_a_bug(self, data: st.DataObject) -> None:
        wide = data.draw(st.sampled_from([batch for batch in self.batches() if batch.count > 1]), label="batch")
        inside = data.draw(st.integers(wide.first + 1, wide.last), label="inside")
        for wrong in (
            lambda: self.log.truncate_from(inside),
            lambda: self.log.from_index(inside, 100),
            lambda: self.log.between(inside, wide.last),
            lambda: self.log.between(wide.first, inside - 1),
        ):
            with pytest.raises(AssertionError, match=r"inside|cuts"):
                wrong()

    @rule(gap=st.sampled_from([-1, 1, 5]))
    def what_does_not_follow_is_a_bug(self, gap: int) -> None:
        stray = make_batch(COMMANDS, 1 << 50, max(self.last + 1 + gap, 1), 0, [encode_entry(b"x")], 1)
        if stray.first != self.last + 1:
            with pytest.raises(AssertionError, match="after"):
                self.log.append(stray)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), more=st.integers(0, 5), room=st.sampled_from([-1, 0, 1, 50]))
    def batches_to_send(self, data: st.DataObject, more: int, room: int) -> None:
        batches = self.batches()
        start = data.draw(st.integers(0, len(batches) - 1), label="first batch")
        limit = max(1, sum(len(batch.data) for batch in batches[start : start + 1 + more]) + room)
        expected, size = [batches[start]], len(batches[start].data)
        for batch in batches[start + 1 :]:
            size += len(batch.data)
            if size > limit:
                break
            expected.append(batch)
        assert self.log.from_index(batches[start].first, limit) == expected

    @rule(away=st.integers(-2, 14), term=st.integers(0, 6) | st.sampled_from([1 << 20, 1 << 60]))
    def newest_not_above(self, away: int, term: int) -> None:
        index = max(self.base[0] + away, 0)
        ends = [batch for batch in self.batches() if batch.last <= index and batch.term <= term]
        expected = (ends[-1].last, ends[-1].term) if ends else (self.base[0], self.base[1] or 0)
        assert self.log.newest_not_above(index, term) == expected

    # -- What always holds --------------------------------------------------------------------------------------------

    @invariant()
    def ends_agree(self) -> None:
        log, (base, base_term, base_time) = self.log, self.base
        assert (log.base, log.base_term, log.base_time) == self.base, "the base"
        assert (log.first_index, log.last_index) == (base + 1, self.last), "the indexes"
        assert log.last_term == (self.entries[-1][0] if self.entries else base_term or 0), "the last term"
        assert log.last_time == (self.entries[-1][1].time if self.entries else base_time), "the last time"
        assert log.persisted == self.persisted <= self.last, "what is durable"
        assert log.epoch == self.epochs, "the epoch"

    @invariant()
    def entries_agree(self) -> None:
        log, base = self.log, self.base[0]
        batches = self.batches()
        assert log.bytes == sum(len(batch.data) for batch in batches), "the size"
        ends = {base, *(batch.last for batch in batches)}
        for index in range(max(base - 2, 0), self.last + 3):
            assert log.term_at(index) == self.term_at(index), f"the term of {index}"
            assert log.ends_batch(index) == (index in ends), f"whether a batch ends at {index}"
            after = sum(len(batch.data) for batch in batches if batch.first > index)
            assert log.bytes_after(index) == after, f"the size after {index}"
        for at, (_, batch) in enumerate(self.entries):
            assert log.batch_at(base + 1 + at) is batch, f"the batch of {base + 1 + at}"


TestLogAgainstAList = LogAgainstAList.TestCase
TestLogAgainstAList.settings = settings.get_profile("properties")
