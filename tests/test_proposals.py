"""Numbering and Outbox: in order and exactly once, whatever gets lost, doubled, or led by somebody else meanwhile."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from coord.errors import QuotaExceeded
from coord.machine import commands
from coord.machine.commands import WINDOW
from coord.machine.machine import Machine
from coord.machine.replies import SESSION_ENDED
from coord.machine.values import encode_value
from coord.proposals import Numbering, Outbox, Proposal
from coord.raft.batch import COMMANDS, encode_entry, make_batch

SESSION = 7
FOREVER = float("inf")


def begin(numbering: Numbering, *arguments: Any, patience: float = 0.0, most: int = 10_000) -> Proposal | None:
    """A put of "k" that nobody waits for, unless told otherwise."""
    return numbering.begin(
        commands.put,
        arguments or ("k", encode_value(0)),
        lambda reply: None,
        most=most,
        max_bytes=1 << 20,
        patience=patience,
        expires_at=FOREVER,
    )


def begun(numbering: Numbering, count: int) -> list[Proposal]:
    found = [begin(numbering) for _ in range(count)]
    return [proposal for proposal in found if proposal is not None]


def payload(proposal: Proposal) -> bytes:
    """The command a proposal carries."""
    return next(iter(make_batch(COMMANDS, 1, 1, 0, [proposal.entry], 1).payloads()))


def sent_in(outbox: Outbox, now: float = 0.0) -> list[bytes]:
    found = outbox.remote(now)
    return [] if found is None else found[2]


@pytest.fixture
def numbering() -> Numbering:
    return Numbering(SESSION)


@pytest.fixture
def outbox() -> Outbox:
    streams = itertools.count(100)
    return Outbox(lambda: next(streams), retry_after=1.0, max_bytes=1 << 20)


# -- numbering


def test_sequences_count_from_one_and_the_low_water_follows_the_oldest_open(numbering: Numbering) -> None:
    first, second, third = begun(numbering, 3)
    assert [p.sequence for p in (first, second, third)] == [1, 2, 3]
    numbering.end(2)
    assert commands.decode(payload(begun(numbering, 1)[0]))[2:4] == (4, 0), "1 is still open"
    numbering.end(1)
    assert commands.decode(payload(begun(numbering, 1)[0]))[2:4] == (5, 2), "3 is still open"
    for sequence in (3, 4, 5):
        numbering.end(sequence)
    assert commands.decode(payload(begun(numbering, 1)[0]))[2:4] == (6, 5)
    assert numbering.end(3) is None, "answered once"


def test_the_window_bounds_what_is_open(numbering: Numbering) -> None:
    """However few are open, a number may not run further ahead of the oldest than the group remembers replies."""
    oldest = begun(numbering, 1)[0]
    for _ in range(WINDOW - 1):
        for proposal in begun(numbering, 1):
            numbering.end(proposal.sequence)
    assert len(numbering) == 1
    assert begin(numbering) is None
    numbering.end(oldest.sequence)
    assert begin(numbering) is not None


def test_every_number_of_a_full_window_is_a_good_command(numbering: Numbering) -> None:
    for proposal in begun(numbering, WINDOW):
        commands.decode(payload(proposal))
    assert begin(numbering) is None


def test_a_bound_on_open_proposals(numbering: Numbering) -> None:
    assert begin(numbering, most=1) is not None
    assert begin(numbering, most=1) is None


def test_room_is_waited_for(numbering: Numbering) -> None:
    begun(numbering, WINDOW)
    got: list[Proposal | None] = []
    waiter = threading.Thread(target=lambda: got.append(begin(numbering, patience=20.0)))
    waiter.start()
    numbering.end(1)
    waiter.join(20)
    assert [proposal and proposal.sequence for proposal in got] == [WINDOW + 1]


def test_what_cannot_be_encoded_leaves_no_hole(numbering: Numbering) -> None:
    with pytest.raises(OverflowError):
        begin(numbering, "k", encode_value(0), False, 1 << 80)
    with pytest.raises(QuotaExceeded, match="max_batch_bytes"):
        begin(numbering, "k", encode_value(b"x" * (1 << 20)))
    assert len(numbering) == 0
    assert commands.decode(payload(begun(numbering, 1)[0]))[2:4] == (3, 2)


def test_numbers_of_many_threads_have_no_gap_and_no_double(numbering: Numbering) -> None:
    found: list[int] = []

    def work() -> None:
        for _ in range(200):
            proposal = begin(numbering, patience=20.0)
            assert proposal is not None
            found.append(proposal.sequence)
            numbering.end(proposal.sequence)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 801))
    assert len(numbering) == 0


def test_renewal_encodes_anew_what_is_queued_and_the_rest_when_it_comes(numbering: Numbering, outbox: Outbox) -> None:
    queued, coming = begun(numbering, 2)
    outbox.add(queued)
    assert numbering.renew(8) == [queued]
    assert commands.decode(payload(queued))[1] == queued.session == 8
    assert coming.session == SESSION
    numbering.encode_again(coming)
    assert commands.decode(payload(coming))[1:3] == (8, 2)


def test_unanswered_is_what_was_queued_oldest_first(numbering: Numbering, outbox: Outbox) -> None:
    first, second, third = begun(numbering, 3)
    outbox.add(third)
    outbox.add(first)
    assert numbering.unanswered() == [first, third]
    numbering.end(first.sequence)
    assert numbering.unanswered() == [third]
    assert second.queued is False


# -- who wins: the loop that sends, or the caller that gives up


def test_given_up_before_it_is_sent_it_never_is(numbering: Numbering, outbox: Outbox) -> None:
    given_up, kept = begun(numbering, 2)
    outbox.add(given_up)
    outbox.add(kept)
    assert given_up.give_up() is True
    assert sent_in(outbox) == [kept.entry]


def test_given_up_after_it_is_sent_it_may_happen_but_is_not_sent_again(numbering: Numbering, outbox: Outbox) -> None:
    (proposal,) = begun(numbering, 1)
    outbox.add(proposal)
    assert sent_in(outbox) == [proposal.entry]
    assert proposal.give_up() is False
    numbering.end(proposal.sequence)
    outbox.restart([], numbering.unanswered())
    assert not outbox
    assert proposal.may_be_sent() is False


def test_giving_up_twice_is_as_certain_as_once(numbering: Numbering) -> None:
    (proposal,) = begun(numbering, 1)
    assert proposal.give_up() is True
    assert proposal.may_be_sent() is False


def test_the_race_has_exactly_one_winner(numbering: Numbering) -> None:
    for _ in range(300):
        (proposal,) = begun(numbering, 1)
        numbering.end(proposal.sequence)
        start = threading.Barrier(2)
        won: dict[str, bool] = {}

        def give_up(proposal: Proposal = proposal, start: threading.Barrier = start, won: Any = won) -> None:
            start.wait(20)
            won["caller"] = proposal.give_up()

        caller = threading.Thread(target=give_up)
        caller.start()
        start.wait(20)
        won["loop"] = proposal.may_be_sent()
        caller.join()
        assert won["caller"] != won["loop"]


# -- the outbox, towards this member's own core


def test_to_the_own_core_in_order_and_refused_ones_stay(numbering: Numbering, outbox: Outbox) -> None:
    proposals = begun(numbering, 3)
    for proposal in proposals:
        outbox.add(proposal)
    given: list[list[bytes]] = []
    log_indexes = iter([0, 5])

    def propose(entries: list[bytes]) -> int:
        given.append(entries)
        return next(log_indexes)

    outbox.local(propose)
    assert outbox
    outbox.local(propose)
    assert given == [[proposal.entry for proposal in proposals]] * 2
    assert not outbox


def test_prune_lets_go_of_what_was_given_up_and_of_nothing_else(numbering: Numbering, outbox: Outbox) -> None:
    outbox.add(b"opening")
    kept, given_up, also_kept = begun(numbering, 3)
    for proposal in (kept, given_up, also_kept):
        outbox.add(proposal)
    given_up.give_up()
    outbox.prune()
    assert sent_in(outbox) == [b"opening", kept.entry, also_kept.entry]


# -- the outbox, towards a remote leader


def test_entries_are_numbered_in_a_stream(numbering: Numbering, outbox: Outbox) -> None:
    first, second, third = begun(numbering, 3)
    outbox.add(first)
    assert outbox.remote(0.0) == (100, 0, [first.entry])
    assert outbox.remote(0.0) is None
    outbox.add(second)
    outbox.add(third)
    assert outbox.remote(0.1) == (100, 1, [second.entry, third.entry])
    assert outbox.taken(100, 3) is True
    assert not outbox
    assert outbox.deadline() == FOREVER


def test_what_is_not_taken_is_sent_again_from_there(numbering: Numbering, outbox: Outbox) -> None:
    first, second = begun(numbering, 2)
    outbox.add(first)
    outbox.add(second)
    assert sent_in(outbox) == [first.entry, second.entry]
    outbox.taken(100, 1)
    assert outbox.remote(0.9) is None
    assert outbox.deadline() == 1.0
    assert outbox.remote(1.0) == (100, 1, [second.entry])


def test_a_leader_that_has_lost_the_thread_is_found_out(numbering: Numbering, outbox: Outbox) -> None:
    for proposal in begun(numbering, 2):
        outbox.add(proposal)
    sent_in(outbox)
    outbox.taken(100, 2)
    assert outbox.taken(100, 1) is False
    assert outbox.taken(99, 0) is True, "an answer about another stream says nothing"


def test_starting_over_draws_another_stream(numbering: Numbering, outbox: Outbox) -> None:
    proposals = begun(numbering, 2)
    for proposal in proposals:
        outbox.add(proposal)
    sent_in(outbox)
    outbox.restart([b"opening"], numbering.unanswered())
    assert outbox.taken(100, 2) is True, "late, and about the old stream"
    assert outbox.remote(0.0) == (101, 0, [b"opening", *(proposal.entry for proposal in proposals)])


def test_a_message_has_a_bound_and_always_something_in_it(numbering: Numbering) -> None:
    outbox = Outbox(lambda: 1, retry_after=1.0, max_bytes=100)
    large = begin(numbering, "k", encode_value(b"x" * 200))
    small = begun(numbering, 2)
    assert large is not None
    for proposal in (large, *small):
        outbox.add(proposal)
    assert sent_in(outbox) == [large.entry]
    assert sent_in(outbox) == [proposal.entry for proposal in small]


def test_no_more_than_a_window_is_on_the_way(numbering: Numbering, outbox: Outbox) -> None:
    for _ in range(WINDOW + 10):
        outbox.add(encode_entry(b"x"))
    assert len(sent_in(outbox)) == WINDOW
    assert sent_in(outbox) == []
    outbox.taken(100, 4)
    assert len(sent_in(outbox)) == 4


# -- everything together, at random


class Leader:
    """Takes streams in order and without a gap, as Raft's leader does, and applies what it took."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._expected: dict[int, int] = {}

    def take(self, stream: int, number: int, entries: list[bytes]) -> tuple[int, int, list[Any]]:
        expected = self._expected.get(stream, 0)
        fresh = entries[expected - number :] if number <= expected else []
        outcomes = []
        for entry in fresh:
            for command in make_batch(COMMANDS, 1, 1, 0, [entry], 1).payloads():
                outcomes.append(self.machine.apply(self.machine.applied_index + 1, 1, 0, command))
        self._expected[stream] = expected + len(fresh)
        return stream, self._expected[stream], outcomes


class Story:
    """One member and leaders that come and go. The first of each message may be lost or doubled, answers too."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = Machine()
        self.numbering = Numbering(1)
        self.outbox = Outbox(lambda: self.random.getrandbits(64), retry_after=1.0, max_bytes=2000)
        self.leader = Leader(self.machine)
        self.now = 0.0
        self.started = 0
        self.answers: dict[int, Any] = {}
        self.given_up: dict[int, bool] = {}
        self.sessions: Iterator[int] = itertools.count(2)
        self.restart()

    def restart(self) -> None:
        session = self.numbering.session
        first = [encode_entry(commands.open_session(session, "a", 1, 10**9))]
        self.outbox.restart([] if self.machine.has_session(session) else first, self.numbering.unanswered())

    def begin(self) -> None:
        """Each call writes a key of its own, whose version tells how often it was written, and whose revision when."""
        call = self.started
        proposal = self.numbering.begin(
            commands.put,
            (f"k{call}", encode_value(call)),
            lambda reply: self.answers.setdefault(call, reply),
            most=50,
            max_bytes=1 << 20,
            patience=0.0,
            expires_at=FOREVER,
        )
        if proposal is not None:
            self.started += 1
            self.outbox.add(proposal)
            if self.random.random() < 0.1:
                self.given_up[call] = proposal.give_up()
                self.numbering.end(proposal.sequence)

    def exchange(self, reliable: bool = False) -> None:
        self.now += 1.1 if reliable else self.random.choice([0.1, 0.5, 1.1])
        message = self.outbox.remote(self.now)
        if message is None or (not reliable and self.random.random() < 0.3):
            return
        for _ in range(1 if reliable or self.random.random() < 0.7 else 2):
            stream, expected, outcomes = self.leader.take(*message)
            for session, sequence, reply in outcomes:
                if session == self.numbering.session and sequence and reply[0] != SESSION_ENDED:
                    found = self.numbering.end(sequence)
                    if found is not None:
                        found.done(reply)
            if (reliable or self.random.random() < 0.7) and not self.outbox.taken(stream, expected):
                self.restart()

    def renew(self) -> None:
        self.numbering.renew(next(self.sessions))
        self.restart()

    def expire_session(self) -> None:
        session = self.numbering.session
        if self.machine.has_session(session):
            self.machine.apply(self.machine.applied_index + 1, 1, 0, commands.expire_session(session, 1))
            self.renew()

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.5:
            self.begin()
        elif chance < 0.95:
            self.exchange()
        elif chance < 0.98:
            self.leader = Leader(self.machine)
            self.restart()
        else:
            self.expire_session()


@pytest.mark.parametrize("seed", range(60))
def test_each_happens_once_and_in_order(seed: int) -> None:
    story = Story(seed)
    for _ in range(400):
        story.step()
    while len(story.numbering):
        story.exchange(reliable=True)
    store = story.machine.store
    revisions = []
    for call in range(story.started):
        record = store.get(f"k{call}")
        if call in story.given_up:
            assert record is None or record.version == 1
            assert not (story.given_up[call] and record), "given up before it was sent, it never happens"
            continue
        assert record is not None and record.version == 1
        assert story.answers[call] == (0, record.revision, 1)
        revisions.append(record.revision)
    assert story.started > 50
    assert revisions == sorted(revisions)
