"""What the commands of the lock table mean, one rule at a time. Their mixtures are judged in test_lock_table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coord.machine import commands, replies
from coord.machine.cluster_clock import TIME_MAX
from coord.machine.commands import EPOCH_MAX, WINDOW
from coord.machine.limits import Limits
from coord.machine.lock_table import CHANGED, EPOCH_SHIFT, GONE, GRANTED
from coord.machine.machine import TICK_LOCKS_MAX, Machine

A, B, C = 7, 8, 9
TERM = 3
EPOCH = 5


class Locks:
    """One machine, fed in order; each command takes the next sequence of its session. `acquire` is told by request."""

    def __init__(self, limits: Limits | None = None, epoch: int = EPOCH) -> None:
        self.machine = Machine(limits)
        self.sequences: dict[int, int] = {}
        self.now = 1000
        for session in (A, B, C):
            self.open(session)
        if epoch:
            self.apply(commands.set_epoch(epoch))
        self.machine.take_session_events()

    def apply(self, payload: bytes, time: int | None = None) -> Any:
        self.now = self.now if time is None else time
        return self.machine.apply(self.index + 1, TERM, self.now, payload)

    def reply(self, payload: bytes) -> Any:
        return self.apply(payload)[2]

    @property
    def index(self) -> int:
        return self.machine.applied_index

    def token(self, index: int | None = None, epoch: int = EPOCH) -> int:
        """Of a grant made by the entry at `index`; by the last one."""
        return (epoch << EPOCH_SHIFT) | (self.index if index is None else index)

    def sender(self, session: int) -> tuple[int, int, int]:
        sequence = self.sequences.get(session, 0) + 1
        self.sequences[session] = sequence
        return session, sequence, max(0, sequence - WINDOW)

    def open(self, session: int, owner: str = "", gone: bool = False) -> Any:
        owner = owner or self.owner(session)
        return self.reply(commands.open_session(session, owner, session, 10, self.machine.session_of(owner), gone))

    def owner(self, session: int) -> str:
        return f"owner {session}"

    def ask(self, session: int, name: str = "l", **options: Any) -> tuple[int, Any]:
        """Return the request and the reply."""
        sender = self.sender(session)
        return sender[1], self.reply(commands.acquire(*sender, name, **options))

    def hold(self, session: int, name: str = "l", **options: Any) -> int:
        """Ask for what must be granted at once; return the request."""
        request, reply = self.ask(session, name, **options)
        assert reply[0] == replies.GRANTED, f"not granted, but answered {reply}"
        return request

    def wait(self, session: int, name: str = "l", **options: Any) -> int:
        """Ask for what cannot be granted yet; return the request."""
        request, reply = self.ask(session, name, **options)
        assert reply == (replies.WAITING,), f"not waiting, but answered {reply}"
        return request

    def release(self, session: int, request: int, name: str = "l", token: int = 0, successor: str = "") -> Any:
        held = self.machine.locks.hold(session, request)
        token = token or (1 if held is None else held.token)
        return self.reply(commands.release(*self.sender(session), name, request, token, successor))

    def cancel(self, session: int, request: int, name: str = "l") -> Any:
        return self.reply(commands.cancel(*self.sender(session), name, request))

    def downgrade(self, session: int, request: int, name: str = "l", token: int = 0) -> Any:
        held = self.machine.locks.hold(session, request)
        token = token or (1 if held is None else held.token)
        return self.reply(commands.downgrade(*self.sender(session), name, request, token))

    def set_value(self, session: int, request: int, value: bytes, name: str = "l", token: int = 0) -> Any:
        held = self.machine.locks.hold(session, request)
        token = token or (1 if held is None else held.token)
        return self.reply(commands.set_value(*self.sender(session), name, request, token, value))

    def expire(self, session: int, time: int | None = None) -> None:
        self.apply(commands.expire_session(session, TERM), time)

    def tick(self, time: int) -> None:
        self.apply(commands.tick(), time)

    def held_by(self, name: str = "l") -> list[tuple[int, int]]:
        return [(hold.session, hold.request) for hold in self.machine.locks.holders(name)]

    def waiting(self, name: str = "l") -> list[tuple[int, int]]:
        return [(waiting.session, waiting.request) for waiting in self.machine.locks.queue(name)]

    def events(self) -> list[tuple[str, str, int, int]]:
        return [(event.kind, event.name, event.session, event.request) for event in self.machine.take_lock_events()]


@pytest.fixture
def locks() -> Locks:
    """Sessions A, B and C are open, and there is an epoch."""
    return Locks()


# ---------------------------------------------------------------------------------------------------------------------
# Grants, tokens, the epoch.


def test_a_free_lock_is_granted_in_the_entry_that_asks(locks: Locks) -> None:
    request, reply = locks.ask(A, delay=3, value=b"host 1")
    assert reply == (replies.GRANTED, locks.token(), 0)
    held = locks.machine.locks.hold(A, request)
    assert held == ("l", A, request, "owner 7", False, 0, locks.token(), 3, b"host 1", 1000, locks.index)
    assert locks.machine.locks.holders("l") == [held]
    assert locks.events() == [(GRANTED, "l", A, request)]


def test_a_held_lock_makes_the_next_wait_and_goes_to_it_when_it_is_released(locks: Locks) -> None:
    first = locks.hold(A)
    second = locks.wait(B, delay=4, value=b"v", priority=2)
    asked = locks.index
    locks.events()
    waiting = locks.machine.locks.waiting(B, second)
    assert waiting == ("l", B, second, "owner 8", False, 2, 4, b"v", 1000, asked)
    assert locks.machine.locks.hold(B, second) is None
    locks.now = 1500
    assert locks.release(A, first) == (replies.OK, locks.index, 1)
    assert locks.machine.locks.waiting(B, second) is None
    held = locks.machine.locks.hold(B, second)
    assert held == ("l", B, second, "owner 8", False, 0, locks.token(), 4, b"v", 1500, locks.index)
    assert locks.events() == [(GONE, "l", A, first), (GRANTED, "l", B, second)]


def test_two_requests_of_one_session_exclude_each_other(locks: Locks) -> None:
    first = locks.hold(A)
    second = locks.wait(A)
    locks.release(A, first)
    assert locks.held_by() == [(A, second)]


def test_a_lock_that_nobody_needs_is_forgotten_but_its_tokens_go_on_rising(locks: Locks) -> None:
    tokens = []
    for _ in range(3):
        request, reply = locks.ask(A)
        tokens.append(reply[1])
        assert locks.machine.locks.names() == ["l"]
        locks.release(A, request)
        assert locks.machine.locks.names() == []
        assert locks.machine.locks.permits("l") == 0
    assert tokens == sorted(set(tokens))


def test_nothing_is_granted_before_there_is_an_epoch_and_everything_is_served_with_it() -> None:
    locks = Locks(epoch=0)
    assert locks.machine.epoch == 0
    assert locks.ask(A, wait=False)[1] == (replies.DENIED, "")
    assert locks.machine.locks.names() == []
    waiting = {name: locks.wait(A, name) for name in ("b", "a", "c")}
    behind = locks.wait(B, "a")
    locks.events()
    assert locks.apply(commands.set_epoch(EPOCH)) is None
    assert locks.machine.epoch == EPOCH
    assert locks.events() == [(GRANTED, name, A, waiting[name]) for name in ("a", "b", "c")]
    assert {locks.machine.locks.holders(name)[0].token for name in waiting} == {locks.token()}
    assert locks.waiting("a") == [(B, behind)]


def test_the_epoch_only_rises_and_is_in_front_of_every_token(locks: Locks) -> None:
    for epoch in (EPOCH, EPOCH - 1, 1):
        locks.apply(commands.set_epoch(epoch))
        assert locks.machine.epoch == EPOCH
    first, reply = locks.ask(A)
    old_token = reply[1]
    locks.apply(commands.set_epoch(EPOCH_MAX))
    assert locks.held_by() == [(A, first)], "raising the epoch took a lock away"
    locks.release(A, first)
    _, reply = locks.ask(B)
    assert reply == (replies.GRANTED, locks.token(epoch=EPOCH_MAX), 0)
    assert old_token < reply[1] < 1 << 63


def test_a_duplicate_is_answered_as_at_first_and_asks_for_nothing_more(locks: Locks) -> None:
    sender = locks.sender(A)
    payload = commands.acquire(*sender, "l")
    granted = locks.apply(payload)
    assert locks.apply(payload) == granted
    late = commands.acquire(*locks.sender(B), "l")
    assert locks.reply(late) == (replies.WAITING,)
    locks.release(A, sender[1])
    # It was granted meanwhile; a duplicate is told what the first was.
    assert locks.reply(late) == (replies.WAITING,)
    assert locks.apply(payload) == granted
    assert locks.held_by() == [(B, 1)]
    assert locks.waiting() == []


def test_without_a_session_nothing_is_asked_or_given_up(locks: Locks) -> None:
    request = locks.hold(A)
    token = locks.token()
    locks.events()
    for payload in (
        commands.acquire(55, 1, 0, "l"),
        commands.release(55, 1, 0, "l", request, token),
        commands.cancel(55, 1, 0, "l", request),
        commands.set_value(55, 1, 0, "l", request, token, b""),
        commands.downgrade(55, 1, 0, "l", request, token),
    ):
        assert locks.apply(payload) == (55, 1, (replies.SESSION_ENDED,))
    assert locks.events() == []


# ---------------------------------------------------------------------------------------------------------------------
# The queue.


def test_requests_are_served_in_the_order_in_which_they_came(locks: Locks) -> None:
    holder = (A, locks.hold(A))
    queue = [(session, locks.wait(session)) for session in (B, C, A, B)]
    assert locks.waiting() == queue
    for following in queue:
        locks.release(*holder)
        assert locks.held_by() == [following]
        holder = following


def test_a_higher_priority_goes_before_all_lower_ones_and_behind_its_equals(locks: Locks) -> None:
    locks.hold(A)
    low = locks.wait(A, priority=-1)
    middle = locks.wait(B)
    high = locks.wait(C, priority=7)
    middle_too = locks.wait(C)
    high_too = locks.wait(B, priority=7)
    assert locks.waiting() == [(C, high), (B, high_too), (B, middle), (C, middle_too), (A, low)]


def test_who_does_not_wait_is_granted_only_what_is_free_and_never_before_those_who_wait(locks: Locks) -> None:
    holder = locks.hold(A, wait=False)
    assert locks.ask(B, wait=False)[1] == (replies.DENIED, "owner 7")
    locks.downgrade(A, holder)
    waiting = locks.wait(B)
    # It could join, but somebody waits.
    assert locks.ask(C, wait=False, shared=True)[1] == (replies.DENIED, "owner 7")
    locks.cancel(B, waiting)
    assert locks.ask(C, wait=False, shared=True)[1][0] == replies.GRANTED
    assert locks.waiting() == []
    assert len(locks.machine.sessions[B].requests) == 0


def test_who_is_denied_leaves_nothing(locks: Locks) -> None:
    locks.hold(A)
    before = locks.machine.locks.digest()
    locks.events()
    request, reply = locks.ask(B, wait=False)
    assert reply == (replies.DENIED, "owner 7")
    assert locks.machine.locks.digest() == before
    assert locks.events() == []
    assert locks.machine.locks.waiting(B, request) is None
    assert locks.machine.sessions[B].requests == {}


def test_the_denied_are_told_the_holder_of_longest_standing(locks: Locks) -> None:
    first = locks.hold(C, permits=2)
    locks.hold(A, permits=2)
    assert locks.ask(B, permits=2, wait=False)[1] == (replies.DENIED, "owner 9")
    locks.release(C, first)
    locks.hold(C, permits=2)
    assert locks.ask(B, permits=2, wait=False)[1] == (replies.DENIED, "owner 7")


def test_a_queue_has_a_limit_and_those_who_need_not_wait_are_not_counted() -> None:
    locks = Locks(Limits(waiters=2))
    locks.hold(A)
    waiting = locks.wait(B)
    locks.wait(C)
    assert locks.ask(A)[1] == (replies.QUEUE_FULL, 2)
    assert locks.ask(A, wait=False)[1] == (replies.DENIED, "owner 7")
    locks.hold(B, "another")
    locks.wait(A, "another")
    locks.cancel(B, waiting)
    locks.wait(A)


def test_a_limit_of_none_lets_nobody_wait() -> None:
    locks = Locks(Limits(waiters=0))
    locks.hold(A)
    assert locks.ask(B)[1] == (replies.QUEUE_FULL, 0)
    assert locks.ask(B, "free")[1][0] == replies.GRANTED


def test_holders_and_waiters_together_have_a_limit() -> None:
    locks = Locks(Limits(lock_requests=3))
    first = locks.hold(A, "a")
    locks.wait(B, "a")
    locks.hold(C, "c")
    before = locks.machine.locks.digest()
    for name in ("a", "c", "free"):
        assert locks.ask(B, name)[1] == (replies.QUOTA, "lock_requests", 3)
    assert locks.ask(B, "free", wait=False)[1] == (replies.QUOTA, "lock_requests", 3)
    assert locks.machine.locks.digest() == before
    assert locks.machine.locks.names() == ["a", "c"]
    locks.release(A, first, "a")
    locks.hold(A, "free")


def test_over_its_limits_only_what_ends_requests_passes(locks: Locks) -> None:
    first = locks.hold(A)
    second = locks.wait(B)
    third = locks.wait(C)
    locks.apply(commands.set_limits(Limits(lock_requests=1, waiters=0), 0))
    assert locks.ask(A)[1] == (replies.QUEUE_FULL, 0)
    assert locks.ask(A, "free")[1] == (replies.QUOTA, "lock_requests", 1)
    assert locks.cancel(C, third) == (replies.OK, locks.index, 1)
    assert locks.release(A, first) == (replies.OK, locks.index, 1)
    assert locks.held_by() == [(B, second)]


def test_a_refused_request_is_refused_again_to_its_duplicate(locks: Locks) -> None:
    first = locks.hold(A)
    sender = locks.sender(B)
    payload = commands.acquire(*sender, "l", wait=False)
    refused = locks.apply(payload)
    locks.release(A, first)
    assert locks.apply(payload) == refused == (B, sender[1], (replies.DENIED, "owner 7"))
    assert locks.machine.locks.names() == []


# ---------------------------------------------------------------------------------------------------------------------
# Sharing.


def test_those_who_share_hold_together_with_one_token(locks: Locks) -> None:
    first, reply = locks.ask(A, shared=True)
    assert reply == (replies.GRANTED, locks.token(), 0)
    second, joined = locks.ask(B, shared=True)
    assert joined == reply
    # The first leaves; who comes now joins the same group.
    locks.release(A, first)
    assert locks.ask(C, shared=True)[1] == reply
    assert [hold.token for hold in locks.machine.locks.holders("l")] == [reply[1]] * 2
    assert locks.held_by()[0] == (B, second)


def test_a_new_group_of_those_who_share_has_a_new_token(locks: Locks) -> None:
    first, old = locks.ask(A, shared=True)
    locks.release(A, first)
    _, new = locks.ask(A, shared=True)
    assert new[1] > old[1]


def test_who_joins_after_the_epoch_rose_has_the_token_of_those_who_share(locks: Locks) -> None:
    """A greater one would shut out at the resource those who read already."""
    _, reply = locks.ask(A, shared=True)
    locks.apply(commands.set_epoch(EPOCH + 1))
    assert locks.ask(B, shared=True)[1] == reply


def test_a_reader_behind_a_waiting_writer_waits_and_then_all_readers_come_at_once(locks: Locks) -> None:
    reader = locks.hold(A, shared=True)
    writer = locks.wait(B)
    behind = [(C, locks.wait(C, shared=True)), (A, locks.wait(A, shared=True))]
    last = locks.wait(C)
    locks.release(A, reader)
    assert locks.held_by() == [(B, writer)]
    locks.events()
    locks.release(B, writer)
    assert locks.held_by() == behind
    assert locks.waiting() == [(C, last)]
    assert {hold.token for hold in locks.machine.locks.holders("l")} == {locks.token()}
    for session, request in behind:
        assert locks.waiting() == [(C, last)]
        locks.release(session, request)
    assert locks.held_by() == [(C, last)]


def test_a_reader_with_priority_joins_before_a_waiting_writer(locks: Locks) -> None:
    locks.hold(A, shared=True)
    locks.wait(B)
    locks.hold(C, shared=True, priority=1)


def test_sharing_a_lock_of_many_permits_is_no_command(locks: Locks) -> None:
    assert locks.ask(A, shared=True, permits=2)[1] == (replies.BAD_COMMAND, "bad permits")


# ---------------------------------------------------------------------------------------------------------------------
# Semaphores.


def test_permits_have_numbers_and_the_lowest_free_one_is_given(locks: Locks) -> None:
    requests = []
    for slot in range(3):
        request, reply = locks.ask(A, permits=3)
        assert reply == (replies.GRANTED, locks.token(), slot)
        requests.append(request)
    waiting = [locks.wait(B, permits=3) for _ in range(2)]
    locks.release(A, requests[1])
    assert locks.machine.locks.hold(B, waiting[0])[5:7] == (1, locks.token())  # type: ignore[index]
    locks.release(A, requests[2])
    locks.release(A, requests[0])
    held = locks.machine.locks.hold(B, waiting[1])
    assert held is not None
    assert held.slot == 2
    assert locks.ask(C, permits=3)[1][2] == 0


def test_all_must_say_the_same_permits_until_the_lock_is_forgotten(locks: Locks) -> None:
    request = locks.hold(A, permits=2)
    before = locks.machine.locks.digest()
    for options in ({}, {"permits": 3}, {"permits": 3, "wait": False}, {"shared": True}, {"permits": 1000}):
        assert locks.ask(B, **options)[1] == (replies.PERMITS_DIFFER, 2)
    assert locks.machine.locks.digest() == before
    locks.release(A, request)
    locks.hold(B, permits=3)


def test_as_many_permits_as_can_be(locks: Locks) -> None:
    for slot in range(commands.PERMITS_MAX):
        sender = A, slot + 1, slot
        assert locks.reply(commands.acquire(*sender, "l", permits=1000)) == (replies.GRANTED, locks.token(), slot)
    locks.wait(B, permits=1000)


# ---------------------------------------------------------------------------------------------------------------------
# Release, cancel.


def test_only_the_holder_with_its_token_releases(locks: Locks) -> None:
    request = locks.hold(A)
    token = locks.token()
    waiting = locks.wait(B)
    locks.events()
    for payload in (
        commands.release(*locks.sender(A), "l", request, token + 1),
        commands.release(*locks.sender(A), "l", request, 1),
        commands.release(*locks.sender(A), "l", request + 1, token),
        commands.release(*locks.sender(A), "other", request, token),
        commands.release(*locks.sender(B), "l", request, token),
        commands.release(*locks.sender(B), "l", waiting, token),
    ):
        assert locks.reply(payload) == (replies.NOT_HELD,)
    assert locks.held_by() == [(A, request)]
    assert locks.waiting() == [(B, waiting)]
    assert locks.events() == []
    assert locks.release(A, request) == (replies.OK, locks.index, 1)
    assert locks.release(A, request, token=token) == (replies.NOT_HELD,)


def test_a_late_duplicate_of_a_release_does_not_free_a_newer_hold(locks: Locks) -> None:
    request = locks.hold(A)
    payload = commands.release(*locks.sender(A), "l", request, locks.token())
    released = locks.apply(payload)
    newer = locks.hold(A)
    assert locks.apply(payload) == released
    assert locks.held_by() == [(A, newer)]


def test_a_successor_is_served_before_all_who_wait(locks: Locks) -> None:
    holder = locks.hold(A)
    first = locks.wait(B, priority=1)
    successor = locks.wait(C)
    later = locks.wait(C)
    locks.release(A, holder, successor="owner 9")
    assert locks.held_by() == [(C, successor)]
    assert locks.waiting() == [(B, first), (C, later)]


@pytest.mark.parametrize("successor", ["nobody", "owner 7", ""])
def test_a_successor_who_does_not_wait_changes_nothing(locks: Locks, successor: str) -> None:
    holder = locks.hold(A)
    waiting = [(session, locks.wait(session)) for session in (B, C)]
    assert locks.release(A, holder, successor=successor) == (replies.OK, locks.index, 1)
    assert [locks.held_by()[0], *locks.waiting()] == waiting


def test_a_successor_who_cannot_be_served_yet_is_at_the_head(locks: Locks) -> None:
    first, _ = locks.hold(A, shared=True), locks.hold(A, shared=True)
    writers = [locks.wait(B), locks.wait(C)]
    locks.release(A, first, successor="owner 9")
    assert locks.waiting() == [(C, writers[1]), (B, writers[0])]
    # Who comes later goes behind all of its own priority, and before lower ones.
    last = locks.wait(A)
    urgent = locks.wait(A, priority=1)
    assert locks.waiting() == [(A, urgent), (C, writers[1]), (B, writers[0]), (A, last)]


def test_a_cancelled_waiter_that_was_in_the_way_lets_the_next_in(locks: Locks) -> None:
    holder = locks.hold(A, shared=True)
    writer = locks.wait(B)
    reader = locks.wait(C, shared=True)
    locks.events()
    assert locks.cancel(B, writer) == (replies.OK, locks.index, 1)
    assert locks.held_by() == [(A, holder), (C, reader)]
    assert locks.events() == [(GONE, "l", B, writer), (GRANTED, "l", C, reader)]


def test_a_cancelled_holder_gives_the_lock_to_the_next_without_delay(locks: Locks) -> None:
    holder = locks.hold(A, delay=1000)
    waiting = locks.wait(B)
    assert locks.cancel(A, holder) == (replies.OK, locks.index, 1)
    assert locks.held_by() == [(B, waiting)]
    assert locks.machine.locks.delayed("l") == {}


def test_a_cancel_of_nothing_says_so(locks: Locks) -> None:
    holder = locks.hold(A)
    assert locks.cancel(A, holder, "other") == (replies.OK, locks.index, 0)
    assert locks.cancel(B, holder) == (replies.OK, locks.index, 0)
    assert locks.held_by() == [(A, holder)]
    locks.cancel(A, holder)
    assert locks.cancel(A, holder) == (replies.OK, locks.index, 0)


def test_what_was_cancelled_before_it_came_is_not_done_when_it_comes(locks: Locks) -> None:
    asking = commands.acquire(A, 1, 0, "l")
    assert locks.reply(commands.cancel(A, 2, 0, "l", 1)) == (replies.OK, locks.index, 0)
    for _ in range(2):
        assert locks.apply(asking) == (A, 1, (replies.CANCELLED,))
    assert locks.machine.locks.names() == []
    assert locks.machine.sessions[A].requests == {}
    # Other commands of that number are no more done than the request.
    assert locks.reply(commands.put(A, 1, 0, "k", b"")) == (replies.CANCELLED,)


def test_a_cancel_does_not_change_a_reply_that_was_given(locks: Locks) -> None:
    asking = commands.acquire(A, 1, 0, "l")
    granted = locks.apply(asking)
    locks.apply(commands.cancel(A, 2, 0, "l", 1))
    assert locks.apply(asking) == granted
    assert locks.held_by() == []


def test_a_cancel_of_what_was_acknowledged_leaves_no_reply(locks: Locks) -> None:
    locks.apply(commands.put(A, 5, 4, "k", b""))
    for request in (3, 4):
        locks.apply(commands.cancel(A, request + 3, 4, "l", request))
    assert sorted(locks.machine.sessions[A].replies) == [5, 6, 7]
    assert locks.reply(commands.acquire(A, 4, 3, "l")) == (replies.STALE,)


def test_cancels_cannot_make_a_session_remember_more_than_its_window(locks: Locks) -> None:
    for low_water in range(0, 3 * WINDOW, WINDOW // 2):
        far = [low_water + 1, low_water + WINDOW, low_water + WINDOW + 1, 1 << 50, commands.SIGNED_MAX]
        for sequence, request in enumerate(far, low_water + 10):
            locks.apply(commands.cancel(A, sequence, low_water, "l", request))
    replies_of_a = locks.machine.sessions[A].replies
    low = locks.machine.sessions[A].low_water
    assert all(low < sequence <= low + WINDOW for sequence in replies_of_a), sorted(replies_of_a)
    assert replies_of_a[low + WINDOW] == (replies.CANCELLED,)
    restored = Machine()
    restored.restore(locks.machine.cut().chunks())
    assert restored.state_hash == locks.machine.state_hash


def test_a_cancel_that_names_itself_is_answered_like_any(locks: Locks) -> None:
    payload = commands.cancel(A, 1, 0, "l", 1)
    assert locks.reply(payload) == (replies.OK, locks.index, 0)
    assert locks.reply(payload) == (replies.OK, locks.index - 1, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Value, downgrade, compare.


def test_the_value_of_a_hold_changes_and_nothing_else(locks: Locks) -> None:
    request = locks.hold(A, value=b"old")
    before = locks.machine.locks.hold(A, request)
    assert before is not None
    locks.events()
    assert locks.set_value(A, request, b"new") == (replies.OK, locks.index, 1)
    assert locks.machine.locks.hold(A, request) == before._replace(value=b"new")
    assert locks.machine.locks.holders("l") == [before._replace(value=b"new")]
    assert locks.events() == [(CHANGED, "l", A, request)]


def test_only_the_holder_with_its_token_sets_the_value_or_downgrades(locks: Locks) -> None:
    request = locks.hold(A)
    token = locks.token()
    waiting = locks.wait(B)
    locks.events()
    for session, number, name, given in (
        (A, request, "l", token + 1),
        (A, request, "m", token),
        (A, request + 1, "l", token),
        (B, request, "l", token),
        (B, waiting, "l", token),
    ):
        assert locks.set_value(session, number, b"x", name, given) == (replies.NOT_HELD,)
        assert locks.downgrade(session, number, name, given) == (replies.NOT_HELD,)
    assert locks.events() == []
    assert locks.machine.locks.holders("l")[0].value == b""


def test_a_downgrade_has_a_new_token_and_lets_those_in_who_share(locks: Locks) -> None:
    request, granted = locks.ask(A)
    since = locks.index
    readers = [(B, locks.wait(B, shared=True)), (C, locks.wait(C, shared=True))]
    writer = locks.wait(B)
    locks.events()
    locks.now = 2000
    assert locks.downgrade(A, request) == (replies.GRANTED, locks.token(), 0)
    assert locks.token() > granted[1]
    assert locks.held_by() == [(A, request), *readers]
    assert {hold.token for hold in locks.machine.locks.holders("l")} == {locks.token()}
    assert locks.waiting() == [(B, writer)]
    assert locks.events() == [(CHANGED, "l", A, request), *((GRANTED, "l", *reader) for reader in readers)]
    held = locks.machine.locks.hold(A, request)
    assert held is not None
    assert (held.granted, held.granted_at) == (since, 1000), "it is held since it was granted"
    # The old token is good for nothing any more.
    assert locks.release(A, request, token=granted[1]) == (replies.NOT_HELD,)


def test_what_is_shared_or_has_many_permits_is_not_downgraded(locks: Locks) -> None:
    shared = locks.hold(A, "shared", shared=True)
    many = locks.hold(A, "many", permits=2)
    assert locks.downgrade(A, shared, "shared") == (replies.NOT_HELD,)
    assert locks.downgrade(A, many, "many") == (replies.NOT_HELD,)


def test_a_transaction_on_condition_of_a_hold_is_done_while_it_is_held_and_not_after(locks: Locks) -> None:
    request = locks.hold(A)
    token = locks.token()
    condition = commands.compare_hold("l", A, request, token)
    write = [commands.put_operation("k", b"v")]

    def attempt(session: int, *compares: Any) -> Any:
        return locks.reply(commands.transaction(*locks.sender(session), compares, write))

    # Anybody may check a hold.
    assert attempt(A, condition) == (replies.OK, locks.index, 1)
    assert attempt(B, condition) == (replies.OK, locks.index, 1)
    wrong = [
        commands.compare_hold("m", A, request, token),
        commands.compare_hold("l", B, request, token),
        commands.compare_hold("l", A, request + 1, token),
        commands.compare_hold("l", A, request, token + 1),
        commands.compare_hold("l", A, request, token - 1),
    ]
    before = locks.machine.store.digest()
    for compare in wrong:
        assert attempt(A, condition, compare) == (replies.HOLD_GONE, compare[1])
    # The first compare that fails is the answer.
    conflict = attempt(A, commands.compare_revision("k", 1), wrong[0])
    assert conflict[0] == replies.CONFLICT
    assert attempt(A, wrong[0], commands.compare_revision("k", 1)) == (replies.HOLD_GONE, "m")
    locks.release(A, request)
    assert attempt(A, condition) == (replies.HOLD_GONE, "l")
    assert locks.machine.store.digest() == before


def test_a_refused_condition_is_remembered_and_kept_in_snapshots(locks: Locks) -> None:
    payload = commands.transaction(*locks.sender(A), [commands.compare_hold("l", A, 99, 1)], [])
    assert locks.reply(payload) == (replies.HOLD_GONE, "l")
    restored = Machine()
    restored.restore(locks.machine.cut().chunks())
    assert restored.apply(locks.index + 1, TERM, 0, payload) == (A, 1, (replies.HOLD_GONE, "l"))


# ---------------------------------------------------------------------------------------------------------------------
# Ends of sessions, and delay.

ENDS: dict[str, Callable[[Locks], Any]] = {
    "closed": lambda locks: locks.apply(commands.close_session(*locks.sender(A))),
    "expired": lambda locks: locks.expire(A),
    "superseded": lambda locks: locks.open(70, "owner 7"),
    "superseded, gone": lambda locks: locks.open(70, "owner 7", gone=True),
}


@pytest.mark.parametrize("how", ENDS)
def test_with_a_session_all_its_requests_end_in_that_entry_and_its_locks_are_served_by_name(
    locks: Locks, how: str
) -> None:
    held = {name: locks.hold(A, name) for name in ("c", "a")}
    shared = locks.hold(B, "b", shared=True)
    in_the_way = locks.wait(A, "b")
    gone_too = locks.wait(A, "a")
    granted = {name: locks.wait(C, name, shared=name == "b") for name in ("b", "c", "a")}
    locks.events()
    ENDS[how](locks)
    gone = {(GONE, "c", A, held["c"]), (GONE, "a", A, held["a"]), (GONE, "b", A, in_the_way), (GONE, "a", A, gone_too)}
    events = locks.events()
    assert set(events[:4]) == gone
    assert events[4:] == [(GRANTED, name, C, granted[name]) for name in ("a", "b", "c")]
    assert locks.held_by("b") == [(B, shared), (C, granted["b"])]
    assert {hold.granted for name in "ac" for hold in locks.machine.locks.holders(name)} == {locks.index}
    assert A not in locks.machine.sessions


@pytest.mark.parametrize("how", ENDS)
def test_who_may_still_be_at_work_leaves_a_delay_and_who_is_not_leaves_none(locks: Locks, how: str) -> None:
    locks.hold(A, "x", delay=50)
    locks.hold(A, "s", delay=50, shared=True)
    locks.hold(A, "none")
    locks.wait(A, "x", delay=60)
    locks.now = 2000
    ENDS[how](locks)
    if how in ("expired", "superseded"):
        assert locks.machine.locks.delayed("x") == {0: (2050, 2050, "owner 7")}
        assert locks.machine.locks.delayed("s") == {0: (2050, 0, "owner 7")}
        assert locks.machine.locks.names() == ["s", "x"]
        assert locks.machine.next_due() == 2050
    else:
        assert locks.machine.locks.names() == []
        assert locks.machine.next_due() is None


def test_a_lost_exclusive_hold_keeps_everybody_out_until_its_delay_has_passed(locks: Locks) -> None:
    locks.hold(A, delay=50)
    locks.expire(A)
    writer = locks.wait(B)
    assert locks.ask(C, wait=False, shared=True)[1] == (replies.DENIED, "")
    reader = locks.wait(C, shared=True)
    assert locks.machine.next_due() == 1050
    locks.tick(1049)
    assert locks.held_by() == []
    locks.tick(1050)
    assert locks.held_by() == [(B, writer)]
    assert locks.waiting() == [(C, reader)]
    assert locks.machine.locks.delayed("l") == {}
    assert locks.machine.next_due() is None


def test_a_lost_shared_hold_keeps_out_only_those_who_do_not_share(locks: Locks) -> None:
    locks.hold(A, shared=True, delay=50)
    locks.expire(A)
    reader = locks.hold(B, shared=True)
    locks.release(B, reader)
    writer = locks.wait(C)
    assert locks.machine.locks.delayed("l") == {0: (1050, 0, "owner 7")}
    locks.tick(1050)
    assert locks.held_by() == [(C, writer)]


def test_delays_of_several_losses_last_as_long_as_the_longest(locks: Locks) -> None:
    locks.hold(A, shared=True, delay=50)
    locks.hold(B, shared=True, delay=10)
    locks.expire(A)
    locks.expire(B)
    assert locks.machine.locks.delayed("l")[0][:2] == (1050, 0)


def test_only_the_lost_slot_of_a_semaphore_is_closed(locks: Locks) -> None:
    locks.hold(A, permits=3, delay=50)
    locks.hold(B, permits=3)
    locks.expire(A)
    assert locks.ask(C, permits=3)[1][2] == 2
    waiting = locks.wait(B, permits=3)
    assert locks.machine.locks.delayed("l") == {0: (1050, 1050, "owner 7")}
    locks.tick(1050)
    held = locks.machine.locks.hold(B, waiting)
    assert held is not None
    assert held.slot == 0


def test_a_delay_that_has_passed_is_no_delay_even_before_the_tick(locks: Locks) -> None:
    locks.hold(A, delay=50)
    locks.expire(A)
    locks.now = 1050
    assert locks.ask(B, wait=False)[1] == (replies.GRANTED, locks.token(), 0)
    # The tick that is still wanted finds nothing to do for others.
    assert locks.machine.next_due() == 1050
    waiting = locks.wait(C)
    locks.tick(1050)
    assert locks.machine.next_due() is None
    assert locks.waiting() == [(C, waiting)]


def test_who_comes_after_a_delay_has_passed_is_behind_those_who_wait(locks: Locks) -> None:
    locks.hold(A, delay=50)
    locks.expire(A)
    first = locks.wait(B)
    locks.now = 1060
    second = locks.wait(C)
    assert locks.held_by() == [(B, first)]
    assert locks.waiting() == [(C, second)]


def test_the_longest_delay_at_the_end_of_time(locks: Locks) -> None:
    locks.hold(A, delay=commands.LOCK_DELAY_MAX)
    locks.expire(A, TIME_MAX - 5)
    waiting = locks.wait(B)
    assert locks.machine.next_due() == TIME_MAX
    locks.tick(TIME_MAX)
    assert locks.held_by() == [(B, waiting)]


def test_the_next_due_is_the_earliest_of_keys_and_locks(locks: Locks) -> None:
    locks.hold(A, "late", delay=90)
    locks.hold(A, "early", delay=30)
    locks.reply(commands.put(*locks.sender(B), "k", b"", ttl=60))
    assert locks.machine.next_due() == 1060
    locks.expire(A)
    for due in (1030, 1060, 1090):
        assert locks.machine.next_due() == due
        locks.tick(due)
    assert locks.machine.next_due() is None
    assert locks.machine.locks.names() == []


def test_a_tick_serves_only_so_many_locks_and_asks_for_another(locks: Locks) -> None:
    for number in range(TICK_LOCKS_MAX + 1):
        locks.hold(A, f"{number:05d}", delay=50)
    locks.expire(A)
    locks.tick(5000)
    assert locks.machine.locks.names() == [f"{TICK_LOCKS_MAX:05d}"]
    assert locks.machine.next_due() == 1050
    locks.tick(5000)
    assert locks.machine.locks.names() == []


# ---------------------------------------------------------------------------------------------------------------------
# Reclaim.


def test_the_owner_that_was_lost_reclaims_its_lock_before_all_who_wait_with_a_greater_token(locks: Locks) -> None:
    locks.hold(A, delay=50)
    old = locks.token()
    locks.expire(A)
    locks.open(70, "owner 7")
    waiting = locks.wait(B, priority=9)
    request, reply = locks.ask(70, reclaim=True)
    assert reply == (replies.GRANTED, locks.token(), 0)
    assert reply[1] > old
    assert locks.machine.locks.delayed("l") == {}
    assert locks.machine.next_due() is None
    # It has taken the loss upon itself: when it releases, the next comes without delay.
    locks.release(70, request)
    assert locks.held_by() == [(B, waiting)]


@pytest.mark.parametrize("why", ["not asked", "another owner", "held", "passed", "permits"])
def test_who_may_not_reclaim_waits_like_anybody(why: str) -> None:
    locks = Locks()
    locks.hold(A, delay=50, permits=2 if why == "permits" else 1, shared=why == "held")
    locks.expire(A)
    locks.open(70, "owner 7" if why != "another owner" else "somebody")
    if why == "held":
        locks.hold(B, shared=True)
    waiting = locks.wait(C, permits=2) if why == "permits" and locks.hold(B, permits=2) else locks.wait(C)
    if why == "passed":
        locks.now = 1050
    _, reply = locks.ask(70, reclaim=why != "not asked", permits=1)
    assert reply == ((replies.PERMITS_DIFFER, 2) if why == "permits" else (replies.WAITING,))
    expected = [(C, waiting)] if why == "passed" else [(B, 1)] if why in ("held", "permits") else []
    assert locks.held_by() == expected


def test_a_semaphores_slot_is_reclaimed_though_another_is_free(locks: Locks) -> None:
    locks.hold(B, permits=3)
    locks.hold(A, permits=3, delay=50)
    locks.expire(A)
    locks.open(70, "owner 7")
    assert locks.ask(70, permits=3, reclaim=True)[1][2] == 1
    assert locks.ask(70, permits=3, reclaim=True)[1][2] == 2


def test_with_a_lock_reclaimed_to_share_come_those_who_waited_to_share(locks: Locks) -> None:
    locks.hold(A, delay=50)
    locks.expire(A)
    locks.open(70, "owner 7")
    reader = locks.wait(B, shared=True)
    writer = locks.wait(C)
    request, reply = locks.ask(70, shared=True, reclaim=True)
    assert reply[0] == replies.GRANTED
    assert locks.held_by() == [(70, request), (B, reader)]
    assert locks.waiting() == [(C, writer)]


def test_reclaiming_what_was_not_lost_is_asking(locks: Locks) -> None:
    assert locks.ask(A, reclaim=True)[1] == (replies.GRANTED, locks.token(), 0)
    assert locks.ask(A, reclaim=True)[1] == (replies.WAITING,)
    assert locks.ask(B, wait=False, reclaim=True)[1] == (replies.DENIED, "owner 7")


def test_nobody_reclaims_what_several_had_lost_together(locks: Locks) -> None:
    """The delay is the longest of theirs: it would be another's that is skipped."""
    locks.hold(A, shared=True, delay=60)
    locks.hold(B, shared=True, delay=1)
    locks.expire(A)
    locks.expire(B)
    assert locks.machine.locks.delayed("l")[0][2] == ""
    locks.open(70, "owner 8")
    assert locks.ask(70, reclaim=True)[1] == (replies.WAITING,)
    twin = Machine()
    twin.restore(locks.machine.cut().chunks())
    assert twin.state_hash == locks.machine.state_hash


def test_reclaiming_is_under_the_limit_of_requests_but_not_under_that_of_the_queue() -> None:
    locks = Locks(Limits(waiters=0, lock_requests=1))
    locks.hold(A, delay=50)
    locks.expire(A)
    locks.open(70, "owner 7")
    other = locks.hold(B, "other")
    assert locks.ask(70, reclaim=True)[1] == (replies.QUOTA, "lock_requests", 1)
    assert locks.machine.locks.delayed("l") == {0: (1050, 1050, "owner 7")}
    locks.release(B, other, "other")
    assert locks.ask(70, reclaim=True)[1][0] == replies.GRANTED
