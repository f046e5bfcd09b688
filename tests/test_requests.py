"""What a member asks of locks, event by event: whatever comes between, one outcome is told, and nothing is left behind.

The replica here is a fake whose every step the test decides; numbering, machine and lease are the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import coord
from coord.lease import EXPIRED, SUSPENDED, VALID, Lease
from coord.machine import commands, replies
from coord.machine.machine import Machine
from coord.options import Options
from coord.proposals import Maker, Numbering, Proposal
from coord.raft.batch import COMMANDS, make_batch
from coord.requests import Request, Requests

OPTIONS = Options()
OTHER = 99
TTL = 10_000_000_000


class Replica:
    """A member whose commands go out, are done and are answered when the test says so."""

    def __init__(self) -> None:
        self.options = OPTIONS
        self.now = 0.0
        self.machine = Machine(history_revisions=10, history_bytes=1 << 20)
        self.lease = Lease(1, OPTIONS)
        self.numbering = Numbering(1)
        self.requests = Requests(self)  # type: ignore[arg-type]
        self.room = True
        self.failure: coord.CoordError | None = None
        #: Not yet given to a leader; given, and not yet done; done, so that a copy may come late.
        self.outbox: list[Proposal] = []
        self.flying: list[Proposal] = []
        self.done: list[bytes] = []
        self.answers: list[Callable[[], None]] = []
        self._index = 0
        self._sequence = 0
        self.apply(commands.set_epoch(5))
        self.apply(commands.open_session(OTHER, "other", 9, TTL))
        self.open()

    # What Requests uses.

    def submit(self, maker: Maker, arguments: tuple[Any, ...], done: Callable[[Any], None]) -> bool:
        if not self.room or self.failure is not None:
            return False
        proposal = self.numbering.begin(
            maker, arguments, done, most=1 << 30, max_bytes=1 << 20, patience=0.0, expires_at=float("inf")
        )
        if proposal is not None:
            proposal.queued = True
            self.outbox.append(proposal)
        return proposal is not None

    def defer(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.answers.append(partial(function, *arguments))

    # What the test does.

    def open(self) -> None:
        self.apply(commands.open_session(self.lease.session, "me", 1, TTL, self.machine.session_of("me")))
        self.lease.begin(self.now, self.now)

    def send(self) -> None:
        self.flying += [proposal for proposal in self.outbox if proposal.may_be_sent()]
        self.outbox.clear()

    def apply(self, command: bytes) -> Any:
        self._index += 1
        return self.machine.apply(self._index, 1, self._index, command)

    def commit(self) -> None:
        """Do what was sent. The answers wait for the end of the turn."""
        flying, self.flying = self.flying, []
        for proposal in flying:
            payload = next(iter(make_batch(COMMANDS, 1, 1, 0, [proposal.entry], 1).payloads()))
            self.done.append(payload)
            outcome = self.apply(payload)
            assert outcome is not None
            if outcome[0] == self.lease.session and outcome[2][0] != replies.SESSION_ENDED:
                self.settle(outcome[1], outcome[2])
        self.publish()

    def settle(self, sequence: int, reply: Any) -> None:
        proposal = self.numbering.end(sequence)
        if proposal is not None:
            self.answers.append(partial(proposal.done, reply))

    def publish(self) -> None:
        if not self.machine.has_session(self.lease.session):
            self.renew("expired")
        self.requests.publish(self.machine.take_lock_events())

    def answer(self) -> None:
        answers, self.answers = self.answers, []
        for call in answers:
            call()

    def settle_down(self) -> None:
        """Turns until nothing follows any more."""
        for _ in range(20):
            self.requests.housekeep()
            self.send()
            self.commit()
            self.answer()

    def other(self, name: str, **arguments: Any) -> Callable[[], None]:
        """Another member asks for the lock, and is granted it or waits. Returns its release."""
        self._sequence += 1
        sequence = self._sequence
        options = {"shared": False, "permits": 1, "priority": 0, "wait": True, "delay": 0, **arguments}
        fields = (name, *options.values(), False, b"")
        acquire: Callable[..., bytes] = commands.acquire
        self.apply(acquire(OTHER, sequence, sequence - 1, *fields))

        def release() -> None:
            self._sequence += 1
            hold = self.machine.locks.hold(OTHER, sequence)
            assert hold is not None
            self.apply(commands.release(OTHER, self._sequence, self._sequence - 1, name, sequence, hold.token, ""))

        return release

    def expire(self) -> None:
        """The group ends this member's session, and it sees so."""
        self.apply(commands.expire_session(self.lease.session, 1))

    def renew(self, reason: str) -> None:
        old = self.lease
        old.ended = old.ended or reason
        self.lease = Lease(old.session + 1, OPTIONS)
        self.requests.lease_state(EXPIRED)
        self.requests.session_over(old)
        again = self.numbering.renew(self.lease.session)
        self.flying.clear()
        self.outbox = again
        self.open()

    def lose_sent(self) -> None:
        for proposal in self.numbering.unanswered():
            if proposal.sent:
                self.numbering.end(proposal.sequence)
                self.answers.append(partial(proposal.done, coord.OutcomeUnknown("its session is over")))

    def end(self, error: coord.CoordError) -> None:
        self.failure = error
        for proposal in self.numbering.unanswered():
            self.numbering.end(proposal.sequence)
            self.answers.append(
                partial(proposal.done, coord.OutcomeUnknown("it was on its way") if proposal.sent else error)
            )
        self.lease.ended = self.lease.ended or "stopped"
        self.requests.lease_state(EXPIRED)
        self.requests.end(error)
        self.answer()

    def left(self, name: str = "lock") -> list[int]:
        """Ids of this member's requests in the table, whatever the session."""
        locks = self.machine.locks
        holding = [hold.request for hold in locks.holders(name) if hold.session != OTHER]
        return holding + [waiting.request for waiting in locks.queue(name) if waiting.session != OTHER]


class Asked(Request):
    """A request that remembers what it was told."""

    __slots__ = ("told_of", "losses")

    def __init__(self, name: str = "lock", **arguments: Any) -> None:
        self.told_of: list[str] = []
        self.losses: list[str] = []
        super().__init__(
            name,
            notify=lambda request: self.told_of.append(request.outcome),
            lost=lambda request, reason: self.losses.append(reason),
            **arguments,
        )


@pytest.fixture
def replica() -> Replica:
    return Replica()


def ask(replica: Replica, **arguments: Any) -> Asked:
    request = Asked(**arguments)
    replica.requests.ask(request)
    return request


def granted(replica: Replica, **arguments: Any) -> Asked:
    request = ask(replica, **arguments)
    replica.settle_down()
    assert request.told_of == ["granted"]
    return request


# ---------------------------------------------------------------------------------------------------------------------
# The plain way.


def test_what_is_free_is_granted_in_one_turn(replica: Replica) -> None:
    request = ask(replica, value=b"v")
    replica.send()
    replica.commit()
    assert request.told_of == [], "answers are given out at the end of the turn"
    replica.answer()
    assert request.told_of == ["granted"]
    hold = replica.machine.locks.hold(request.session, request.id)
    assert hold is not None
    assert (request.token, request.slot, request.lease) == (hold.token, hold.slot, replica.lease)
    assert hold.value == b"v"


def test_who_waits_is_told_when_the_grant_comes(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    assert (request.told_of, request.state) == ([], "waiting")
    release()
    replica.commit()
    replica.answer()
    assert request.told_of == ["granted"]
    assert request.token > 0


def test_a_grant_in_the_same_turn_as_the_answer_to_wait_is_not_missed(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.send()
    replica.commit()
    release()
    replica.publish()  # the event comes, and the answer is not yet given out
    replica.answer()
    assert request.told_of == ["granted"]


def test_a_release_is_answered_and_leaves_nothing(replica: Replica) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.requests.release(request, heard.append)
    replica.settle_down()
    assert [reply[0] for reply in heard] == [replies.OK]
    assert (len(replica.requests), replica.left(), request.losses) == (0, [], [])
    replica.requests.release(request, heard.append)
    assert heard[1:] == [(replies.NOT_HELD,)]


def test_what_does_not_wait_is_denied_with_the_holder(replica: Replica) -> None:
    replica.other("lock")
    request = ask(replica, wait=False)
    replica.settle_down()
    assert (request.told_of, request.holder, len(replica.requests)) == (["denied"], "other", 0)


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ((replies.PERMITS_DIFFER, 5), coord.ConfigurationError, "permits=1 .* permits=5"),
        ((replies.QUEUE_FULL, 7), coord.QueueFull, "7 requests wait"),
        ((replies.QUOTA, "lock_requests", 9), coord.QuotaExceeded, "lock_requests=9"),
        ((replies.BAD_COMMAND, "bad"), coord.CoordError, "bad"),
        (coord.ClosedError("closed"), coord.ClosedError, "closed"),
    ],
)
def test_a_refusal_is_the_exception_it_means(
    replica: Replica, reply: Any, kind: type[coord.CoordError], text: str
) -> None:
    request = ask(replica)
    replica.settle(request.id, reply)
    replica.answer()
    assert request.told_of == ["refused"]
    with pytest.raises(kind, match=text):
        raise request.error or AssertionError("no error")
    assert len(replica.requests) == 0


def test_the_successor_is_named(replica: Replica) -> None:
    request = granted(replica)
    replica.apply(commands.open_session(77, "heir", 1, TTL))
    replica.other("lock")
    replica.apply(commands.acquire(77, 1, 0, "lock", False, 1, 0, True, 0, False, b""))
    replica.requests.release(request, lambda reply: None, "heir")
    replica.settle_down()
    assert [hold.owner for hold in replica.machine.locks.holders("lock")] == ["heir"]


def test_a_value_is_replaced(replica: Replica) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.requests.set_value(request, b"new", heard.append)
    replica.settle_down()
    assert [reply[0] for reply in heard] == [replies.OK]
    assert [hold.value for hold in replica.machine.locks.holders("lock")] == [b"new"]


# ---------------------------------------------------------------------------------------------------------------------
# Giving up.


def _new(replica: Replica) -> Asked:
    return Asked()


def _no_room(replica: Replica) -> Asked:
    replica.room = False
    request = ask(replica)
    assert not request.id
    return request


def _unsent(replica: Replica) -> Asked:
    return ask(replica)


def _sent(replica: Replica) -> Asked:
    request = ask(replica)
    replica.send()
    return request


def _done_and_unanswered(replica: Replica) -> Asked:
    request = _sent(replica)
    replica.commit()
    return request


def _waiting(replica: Replica) -> Asked:
    replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    assert request.state == "waiting"
    return request


def _granted_and_untold(replica: Replica) -> Asked:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    release()
    replica.publish()
    assert (request.state, request.told_of) == ("held", [])
    return request


def _told(replica: Replica) -> Asked:
    return granted(replica)


def _releasing(replica: Replica) -> Asked:
    request = granted(replica)
    replica.requests.release(request, lambda reply: None)
    return request


def _asked_again(replica: Replica) -> Asked:
    request = _waiting(replica)
    replica.expire()
    replica.publish()
    assert request.state == "new"
    return request


WAYS = [
    *(_new, _no_room, _unsent, _sent, _done_and_unanswered, _waiting, _granted_and_untold, _told, _releasing),
    _asked_again,
]


@pytest.mark.parametrize("bring", WAYS)
def test_whatever_state_it_is_in_nothing_is_left_of_what_is_abandoned(
    replica: Replica, bring: Callable[[Replica], Asked]
) -> None:
    request = bring(replica)
    told = list(request.told_of)
    replica.requests.abandon(request)
    replica.requests.abandon(request)
    replica.room = True
    replica.settle_down()
    assert (replica.left(), len(replica.requests), request.state) == ([], 0, "over")
    assert (request.told_of, request.losses) == (told, []), "it is told nothing any more"
    assert len(replica.numbering) == 0
    for copy in replica.done:
        replica.apply(copy)
    assert replica.left() == [], "a late copy has no effect"


@pytest.mark.parametrize("bring", [_new, _no_room, _unsent])
def test_what_was_never_sent_is_withdrawn_without_a_word(replica: Replica, bring: Callable[[Replica], Asked]) -> None:
    replica.requests.abandon(bring(replica))
    replica.room = True
    replica.settle_down()
    assert replica.done == []


def test_an_acquire_that_comes_after_its_cancelling_is_not_done(replica: Replica) -> None:
    held_back = ask(replica, name="earlier")  # an open number below keeps the low water down
    request = _sent(replica)
    acquire = replica.flying.pop()
    replica.requests.abandon(request)
    replica.outbox = [proposal for proposal in replica.outbox if proposal.sequence != held_back.id]
    replica.settle_down()
    replica.apply(next(iter(make_batch(COMMANDS, 1, 1, 0, [acquire.entry], 1).payloads())))
    assert replica.left() == []


def test_the_cancelling_is_repeated_until_it_is_answered(replica: Replica) -> None:
    request = _waiting(replica)
    replica.requests.abandon(request)
    (cancelling,) = replica.outbox
    replica.outbox.clear()
    replica.numbering.end(cancelling.sequence)
    cancelling.done(coord.OutcomeUnknown("nobody knows"))
    replica.settle_down()
    assert (replica.left(), len(replica.requests)) == ([], 0)


def test_one_of_the_two_wins_when_the_grant_and_the_deadline_meet(replica: Replica) -> None:
    request = _sent(replica)
    replica.commit()
    assert request.give_up(), "the caller is first"
    replica.answer()
    replica.requests.housekeep()
    replica.answer()
    assert request.told_of == []
    replica.requests.abandon(request)
    replica.settle_down()
    assert replica.left() == []

    request = granted(replica)
    assert not request.give_up(), "the loop was first, so the caller finds all it needs"
    assert (request.outcome, request.lease) == ("granted", replica.lease)


def test_the_next_in_the_queue_is_served_when_one_gives_up(replica: Replica) -> None:
    release = replica.other("lock", shared=True)
    first, second = ask(replica), ask(replica, shared=True)
    replica.settle_down()
    assert second.told_of == [], "it came after one that is exclusive"
    replica.requests.abandon(first)
    replica.settle_down()
    assert second.told_of == ["granted"]
    release()


# ---------------------------------------------------------------------------------------------------------------------
# The end of the session.


@pytest.mark.parametrize("bring", [_unsent, _sent, _waiting, _granted_and_untold, _done_and_unanswered])
def test_what_was_not_told_is_asked_again_in_the_next_session(
    replica: Replica, bring: Callable[[Replica], Asked]
) -> None:
    request = bring(replica)
    replica.expire()
    replica.publish()
    replica.answer()
    if bring is _waiting:
        replica.settle_down()
        assert request.told_of == []
        hold = replica.machine.locks.holders("lock")[0]
        assert hold.owner == "other"
        replica.apply(commands.expire_session(OTHER, 1))
    replica.settle_down()
    assert request.told_of == ["granted"]
    assert (request.session, request.lease) == (2, replica.lease)
    assert replica.left() == [request.id]
    assert request.losses == []


def test_a_reply_and_the_end_of_its_session_in_one_turn(replica: Replica) -> None:
    request = _sent(replica)
    replica.commit()
    assert replica.left() == [request.id]
    replica.expire()
    replica.publish()
    assert request.told_of == []
    replica.answer()
    assert request.told_of == [], "what the reply granted is gone"
    assert [proposal.maker for proposal in replica.outbox] == [request.make], "asked again in the same turn"
    replica.settle_down()
    assert (request.told_of, request.session) == (["granted"], 2)


def test_a_denial_is_one_though_its_session_has_ended_since(replica: Replica) -> None:
    replica.other("lock")
    request = ask(replica, wait=False)
    replica.send()
    replica.commit()
    replica.expire()
    replica.publish()
    replica.answer()
    assert request.told_of == ["denied"]


def test_what_was_held_is_lost_once_and_a_release_says_so(replica: Replica) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.expire()
    replica.publish()
    assert request.losses == ["expired"]
    replica.requests.release(request, heard.append)
    replica.settle_down()
    assert heard == [(replies.NOT_HELD,)]
    assert (request.losses, replica.left(), len(replica.requests)) == (["expired"], [], 0)


def test_a_leader_that_says_so_before_the_log_does_is_enough(replica: Replica) -> None:
    request = granted(replica)
    replica.lease.ended = "expired"
    replica.requests.lease_state(EXPIRED)
    assert request.losses == ["expired"]
    replica.expire()
    replica.publish()
    replica.settle_down()
    assert (request.losses, replica.left()) == (["expired"], [])


@pytest.mark.parametrize("sent", [False, True])
def test_a_release_under_way_when_the_session_ends_is_done_by_that(replica: Replica, sent: bool) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.requests.release(request, heard.append)
    if sent:
        replica.send()
    replica.expire()
    replica.publish()
    replica.settle_down()
    assert heard == [(replies.NOT_HELD,)]
    assert (request.losses, replica.left(), len(replica.requests)) == ([], [], 0)


def test_a_cancelling_under_way_when_the_session_ends_is_done_by_that(replica: Replica) -> None:
    request = _waiting(replica)
    replica.requests.abandon(request)
    replica.send()
    replica.expire()
    replica.publish()
    assert len(replica.requests) == 0
    replica.settle_down()
    assert (replica.left(), request.told_of) == ([], [])


@pytest.mark.parametrize("bring", [_sent, _done_and_unanswered, _waiting])
def test_a_session_given_up_while_the_group_may_still_have_it(
    replica: Replica, bring: Callable[[Replica], Asked]
) -> None:
    """What was sent in it may have happened or not; the next session supersedes it."""
    request = bring(replica)
    replica.lose_sent()
    replica.renew("lapsed")
    replica.answer()
    if bring is _waiting:
        replica.apply(commands.expire_session(OTHER, 1))
    replica.settle_down()
    assert (request.told_of, request.session) == (["granted"], 2)
    assert replica.left() == [request.id]


# ---------------------------------------------------------------------------------------------------------------------
# A lease that does not stand.


def test_a_grant_that_cannot_be_relied_on_is_not_told_until_it_can(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    replica.now = OPTIONS.lease + 1
    replica.requests.lease_state(SUSPENDED)
    release()
    replica.settle_down()
    assert (request.told_of, request.state) == ([], "held")
    replica.lease.confirm(replica.now)
    replica.requests.lease_state(VALID)
    replica.answer()
    assert request.told_of == ["granted"]


def test_a_renewal_in_the_turn_of_the_grant_is_enough(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    replica.now = OPTIONS.lease + 1
    release()
    replica.publish()
    replica.lease.confirm(replica.now)  # nobody tells of it: the state is what it was before the turn
    replica.answer()
    assert request.told_of == ["granted"]


def test_one_that_was_never_told_is_asked_again_if_the_session_does_not_come_back(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    replica.now = OPTIONS.lease + 1
    release()
    replica.settle_down()
    assert request.told_of == []
    replica.expire()
    replica.publish()
    replica.settle_down()
    assert (request.told_of, request.session, request.losses) == (["granted"], 2, [])


# ---------------------------------------------------------------------------------------------------------------------
# A snapshot.


def test_a_snapshot_that_skipped_the_grant(replica: Replica) -> None:
    release = replica.other("lock")
    request = ask(replica)
    replica.settle_down()
    release()
    replica.machine.take_lock_events()  # the entries never come here
    replica.requests.jumped()
    replica.answer()
    assert request.told_of == ["granted"]


def test_a_snapshot_that_skipped_the_answer(replica: Replica) -> None:
    release = replica.other("lock")
    request = _sent(replica)
    proposal = replica.flying.pop()
    replica.apply(next(iter(make_batch(COMMANDS, 1, 1, 0, [proposal.entry], 1).payloads())))
    release()
    replica.machine.take_lock_events()
    replica.settle(request.id, replica.machine.remembered_reply(1, request.id))
    replica.requests.jumped()
    replica.answer()
    assert request.told_of == ["granted"], "the remembered reply says that it waits; the table knows better"


def test_a_snapshot_that_skipped_the_end_of_the_session(replica: Replica) -> None:
    held, release = granted(replica), replica.other("second")
    waiting = ask(replica, name="second")
    replica.settle_down()
    replica.expire()
    replica.machine.take_lock_events()
    replica.requests.jumped()
    replica.publish()
    replica.settle_down()
    assert held.losses == ["expired"]
    assert waiting.told_of == []
    release()
    replica.settle_down()
    assert waiting.told_of == ["granted"]


def test_a_hold_that_the_group_has_no_more_is_lost(replica: Replica) -> None:
    request = granted(replica)
    replica.apply(commands.cancel(1, 100, 99, "lock", request.id))
    replica.publish()
    assert request.losses == ["gone"]


# ---------------------------------------------------------------------------------------------------------------------
# The end of the member.


@pytest.mark.parametrize("bring", [_no_room, _unsent, _sent, _done_and_unanswered, _waiting, _granted_and_untold])
def test_when_the_member_stops_who_waits_is_told_why(replica: Replica, bring: Callable[[Replica], Asked]) -> None:
    request = bring(replica)
    replica.end(coord.ClosedError("stopped"))
    assert request.told_of == ["refused"]
    assert isinstance(request.error, coord.ClosedError)
    replica.requests.abandon(request)
    assert (request.losses, len(replica.requests)) == ([], 0)


def test_when_the_member_stops_what_is_held_is_lost(replica: Replica) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.end(coord.ClosedError("stopped"))
    assert request.losses == ["stopped"]
    replica.requests.release(request, heard.append)
    assert [type(reply) for reply in heard] == [coord.ClosedError]


@pytest.mark.parametrize(("sent", "kind"), [(False, coord.ClosedError), (True, coord.OutcomeUnknown)])
def test_when_the_member_stops_a_release_is_told_what_is_known(
    replica: Replica, sent: bool, kind: type[coord.CoordError]
) -> None:
    heard: list[Any] = []
    request = granted(replica)
    replica.requests.release(request, heard.append)
    if sent:
        replica.send()
    replica.end(coord.ClosedError("stopped"))
    assert [type(reply) for reply in heard] == [kind]
    assert request.losses == []


def test_after_the_end_nothing_is_asked(replica: Replica) -> None:
    replica.end(coord.StorageError("the disk failed"))
    request = ask(replica)
    assert request.told_of == ["refused"]
    assert isinstance(request.error, coord.StorageError)
    assert replica.outbox == []


# ---------------------------------------------------------------------------------------------------------------------
# No room, and two things at once.


def test_what_there_is_no_room_for_waits_in_order(replica: Replica) -> None:
    held = granted(replica)
    replica.room = False
    heard: list[Any] = []
    replica.requests.release(held, heard.append)
    first, second = ask(replica), ask(replica)
    replica.settle_down()
    assert (heard, replica.outbox) == ([], [])
    replica.room = True
    third = ask(replica)
    replica.publish()  # room comes with answers, and is used at once
    makers = [proposal.maker for proposal in replica.outbox]
    assert makers == [commands.release, first.make, second.make, third.make]
    replica.settle_down()
    assert (len(heard), first.told_of, second.told_of) == (1, ["granted"], [])


def test_a_downgrade_changes_token_and_mode(replica: Replica) -> None:
    heard: list[Any] = []
    request = granted(replica)
    before = request.token
    replica.requests.downgrade(request, heard.append)
    replica.settle_down()
    assert heard == [(replies.GRANTED, request.token, 0)]
    assert request.token > before
    assert request.shared


def test_a_release_right_behind_a_downgrade_still_releases(replica: Replica) -> None:
    """It names a token that is old by the time it is done."""
    heard: list[Any] = []
    request = granted(replica)
    replica.requests.downgrade(request, lambda reply: None)
    replica.requests.release(request, heard.append)
    replica.settle_down()
    assert [reply[0] for reply in heard] == [replies.OK]
    assert (replica.left(), len(replica.requests)) == ([], 0)


def test_whoever_observes_a_lock_is_called_once_for_each_step(replica: Replica) -> None:
    told: list[str] = []
    first, second = partial(told.append, "first"), partial(told.append, "second")
    replica.requests.observe("lock", first)
    replica.requests.observe("lock", second)
    release = replica.other("lock")
    ask(replica)
    ask(replica, name="another")
    replica.send()
    replica.commit()
    replica.answer()
    assert told == ["first", "second"]
    replica.publish()
    replica.answer()
    assert len(told) == 2, "nothing has happened"
    replica.requests.unobserve("lock", first)
    replica.requests.unobserve("lock", first)
    release()
    replica.publish()
    replica.answer()
    assert told[2:] == ["second"]
    replica.requests.jumped()
    assert told[3:] == ["second"]
    replica.requests.unobserve("lock", second)
    replica.requests.jumped()
    assert len(told) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Anything, in any order.


def _moves(replica: Replica, rng: random.Random, live: list[Asked]) -> Iterator[Callable[[], object]]:
    """One of everything that can happen next."""
    others: list[Callable[[], None]] = []

    def begin() -> None:
        live.append(ask(replica, shared=rng.random() < 0.3, wait=rng.random() < 0.8, delay=rng.choice((0, 3))))

    def give_up() -> None:
        request = rng.choice(live)
        request.give_up()
        replica.requests.abandon(request)

    def release() -> None:
        replica.requests.release(rng.choice(live), lambda reply: None)

    def downgrade() -> None:
        replica.requests.downgrade(rng.choice(live), lambda reply: None)

    def others_move() -> None:
        mine = [item for item in replica.machine.locks.holders("lock") if item.session == OTHER]
        if others and mine:
            others.pop(0)()
        elif not others:
            others.append(replica.other("lock"))

    def late_copy() -> None:
        if replica.done:
            replica.apply(rng.choice(replica.done))

    def lapse() -> None:
        replica.lose_sent()
        replica.renew("lapsed")

    def time() -> None:
        replica.now += rng.choice((1.0, OPTIONS.lease))
        replica.requests.lease_state(replica.lease.state(replica.now))

    def confirm() -> None:
        replica.lease.confirm(replica.now)
        replica.requests.lease_state(replica.lease.state(replica.now))

    def room() -> None:
        replica.room = rng.random() < 0.7

    usual = [begin, give_up, release, downgrade, others_move, late_copy, time, confirm, room]
    steps: list[Callable[[], object]] = [replica.send, replica.commit, replica.publish, replica.answer]
    seldom: list[Callable[[], object]] = [replica.expire, lapse, replica.requests.jumped, replica.requests.housekeep]
    while True:
        yield rng.choice(rng.choice((usual, steps, steps, seldom if rng.random() < 0.3 else steps)))


@pytest.mark.parametrize("seed", range(300))
def test_anything_in_any_order_leaves_what_it_should(seed: int) -> None:
    rng, replica = random.Random(seed), Replica()
    live: list[Asked] = [ask(replica)]
    moves = _moves(replica, rng, live)
    for _ in range(120):
        next(moves)()
        assert all(len(request.told_of) <= 1 and len(request.losses) <= 1 for request in live)
        assert all(not request.losses or request.told_of == ["granted"] for request in live)
    # Nothing stands in the way any more: the others go, and time is good.
    replica.room = True
    replica.apply(commands.expire_session(OTHER, 1))
    for _ in range(3):
        replica.lease.confirm(replica.now)
        replica.apply(commands.tick())
        replica.settle_down()
    # Each that is not over is in the table, with what it believes of itself; and nothing else is.
    alive = {(request.session, request.id): request for request in live if request.state != "over"}
    assert len(replica.requests) == len(alive)
    locks = replica.machine.locks
    holds = {(hold.session, hold.request): hold for hold in locks.holders("lock")}
    waits = {(waiting.session, waiting.request) for waiting in locks.queue("lock")}
    assert alive.keys() == holds.keys() | waits
    for name, request in alive.items():
        assert (request.state, request.told_of) == (("held", ["granted"]) if name in holds else ("waiting", []))
        if name in holds:
            assert (request.token, request.shared) == (holds[name].token, holds[name].shared)
    # Let go of everything, and nothing is left.
    for request in live:
        replica.requests.abandon(request)
    replica.settle_down()
    assert (replica.left(), len(replica.requests), len(replica.numbering)) == ([], 0, 0)
    assert locks.queue("lock") == []
