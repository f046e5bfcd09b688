"""Rounds, and the reads that wait for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coord.raft.read_index import ForwardedReads, PendingReads, Rounds


def test_rounds_rise_and_remember_when_they_were_sent() -> None:
    rounds = Rounds()
    assert [rounds.begin(now) for now in (1.0, 2.0, 2.0)] == [1, 2, 3]
    assert [rounds.sent_at(number) for number in range(5)] == [None, 1.0, 2.0, 2.0, None]
    assert rounds.newest == 3


def test_however_many_rounds_are_begun_an_old_one_still_proves_something() -> None:
    rounds = Rounds()
    for number in range(100_000):
        rounds.begin(number / 1000)
    for number in range(1, 100_001, 77):
        sent_at = rounds.sent_at(number)
        # Never later than it was sent: that would make a lease too long.
        assert sent_at is not None
        assert sent_at <= (number - 1) / 1000
    # What is under way is known closely: the last second to a few milliseconds.
    assert all((number - 1) / 1000 - (rounds.sent_at(number) or 0) < 0.02 for number in range(99_000, 100_001))


def test_reads_ride_on_the_next_round_and_see_what_was_committed_then() -> None:
    reads = PendingReads()
    reads.add(1, parked=False)
    reads.ride(5, 10)
    reads.add(2, parked=False)
    reads.add(("b", 1), parked=False)
    reads.ride(6, 12)
    assert reads.confirmed(4) == []
    assert reads.confirmed(5) == [(10, [1])]
    assert reads.confirmed(9) == [(12, [2, ("b", 1)])]
    assert reads.confirmed(9) == []


def test_parked_reads_wait_until_their_index_can_be_known() -> None:
    reads = PendingReads()
    reads.add(1, parked=True)
    assert not reads.gathering
    reads.unpark()
    assert reads.gathering
    reads.ride(1, 3)
    assert reads.confirmed(1) == [(3, [1])]


def test_stepping_down_hands_back_every_unanswered_read_once() -> None:
    reads = PendingReads()
    reads.add(1, parked=True)
    reads.add(2, parked=False)
    reads.ride(1, 3)
    reads.add(3, parked=False)
    assert sorted(reader for reader in reads.drop() if isinstance(reader, int)) == [1, 2, 3]
    assert reads.drop() == []
    assert reads.confirmed(9) == []


def test_a_followers_reads_share_a_question_and_ask_again_when_it_is_overdue() -> None:
    forwarded = ForwardedReads(0)
    assert forwarded.ask(0.0, 0.3) is None
    assert forwarded.retry_at(0.3) == float("inf")
    forwarded.add(1)
    forwarded.add(2)
    assert forwarded.ask(0.0, 0.3) == 1
    assert forwarded.ask(0.1, 0.3) is None
    assert forwarded.retry_at(0.3) == 0.3
    assert forwarded.ask(0.3, 0.3) == 1
    forwarded.add(3)
    assert forwarded.ask(0.4, 0.3) == 2
    assert forwarded.answered(0) == []
    assert forwarded.answered(1) == [1, 2]
    assert forwarded.answered(1) == []
    # Of a life before this one: it began from another number, and was about other reads.
    assert forwarded.answered(3) == []
    forwarded.add(4)
    assert sorted(forwarded.drop()) == [3, 4]
    assert forwarded.retry_at(0.3) == float("inf")


@given(st.lists(st.sampled_from(["add", "ride", "confirm", "park", "unpark"]), max_size=60))
def test_every_read_is_answered_once_and_never_by_a_round_from_before_it(steps: list[str]) -> None:
    reads, newest, number = PendingReads(), 0, 0
    asked_before: dict[int, int] = {}
    answered: list[int] = []
    for step in steps:
        if step in ("add", "park"):
            number += 1
            asked_before[number] = newest
            reads.add(number, parked=step == "park")
        elif step == "ride":
            newest += 1
            reads.ride(newest, newest)
        elif step == "unpark":
            reads.unpark()
        else:
            for index, readers in reads.confirmed(newest):
                for reader in readers:
                    assert isinstance(reader, int)
                    assert index > asked_before[reader]
                    answered.append(reader)
    answered += [reader for reader in reads.drop() if isinstance(reader, int)]
    assert sorted(answered) == sorted(asked_before)
