"""What commands mean, one rule at a time. The reference (test_reference) judges their mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coord.machine import commands, replies
from coord.machine.cluster_clock import TIME_MAX
from coord.machine.commands import ABSENT, WINDOW
from coord.machine.limits import RECORD_OVERHEAD_BYTES, Limits
from coord.machine.machine import TICK_KEYS_MAX, Machine
from coord.machine.sessions import CLOSED, ENDED_MAX, EXPIRED, OPENED, REPLY_VALUE_BYTES_MAX, SUPERSEDED

A, B = 7, 8
TERM = 3


class Group:
    """One machine, fed in order; each write takes the next sequence of its session."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.machine = Machine(limits)
        self.sequences: dict[int, int] = {}
        self.now = 0

    def apply(self, payload: bytes, time: int | None = None, term: int = TERM) -> Any:
        self.now = self.now if time is None else time
        return self.machine.apply(self.machine.applied_index + 1, term, self.now, payload)

    def reply(self, payload: bytes, time: int | None = None) -> Any:
        return self.apply(payload, time)[2]

    def sender(self, session: int) -> tuple[int, int, int]:
        sequence = self.sequences.get(session, 0) + 1
        self.sequences[session] = sequence
        return session, sequence, sequence - 1

    def open(self, session: int, owner: str = "", instance: int = 1, supersedes: bool = True) -> Any:
        owner = owner or f"owner {session}"
        older = self.machine.session_of(owner) if supersedes else 0
        return self.reply(commands.open_session(session, owner, instance, 10, older))

    def put(self, session: int, key: str, value: bytes = b"v", **options: Any) -> Any:
        return self.reply(commands.put(*self.sender(session), key, value, **options))

    def delete(self, session: int, key: str, **options: Any) -> Any:
        return self.reply(commands.delete(*self.sender(session), key, **options))

    def transaction(self, session: int, compares: Any, operations: Any) -> Any:
        return self.reply(commands.transaction(*self.sender(session), compares, operations))

    @property
    def index(self) -> int:
        return self.machine.applied_index

    def keys(self) -> list[str]:
        return [key for key, _ in self.machine.store.range()[1]]

    def seen(self) -> list[tuple[str, str, int]]:
        return [(change.kind, change.key, change.revision) for change in self.machine.take_changes()]


@pytest.fixture
def group() -> Group:
    """Sessions A and B are open, at index 1 and 2."""
    made = Group()
    assert made.open(A) == (replies.OK, 1, 0)
    assert made.open(B) == (replies.OK, 2, 0)
    made.machine.take_session_events()
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Traps.


def test_trap_44_the_applied_index_moves_with_the_state_and_no_entry_is_taken_twice_or_left_out(group: Group) -> None:
    payload = commands.put(A, 1, 0, "k", b"v")
    group.machine.apply(3, TERM, 0, payload)
    for index in (2, 3, 5):
        with pytest.raises(AssertionError):
            group.machine.apply(index, TERM, 0, payload)
    with pytest.raises(AssertionError):
        group.machine.skip(2, 0)
    group.machine.skip(10, 50)
    assert (group.machine.applied_index, group.machine.time) == (10, 50)
    restored = Machine()
    restored.restore(group.machine.cut().chunks())
    assert (restored.applied_index, restored.store.revision) == (10, 3)


def test_trap_51_duplicate_is_answered_from_the_cache(group: Group) -> None:
    payload = commands.put(A, 1, 0, "k", b"first")
    first = group.apply(payload)
    group.put(B, "k", b"second")
    assert group.apply(payload) == first == (A, 1, (replies.OK, 3, 1))
    record = group.machine.store.get("k")
    assert record is not None
    assert (record.value, record.revision, record.version) == (b"second", 4, 2)


def test_trap_51_a_duplicate_of_a_refused_write_is_refused_again_though_it_would_do_now(group: Group) -> None:
    group.put(B, "k", b"in the way")
    payload = commands.put(A, 1, 0, "k", b"mine", expected=ABSENT)
    refused = group.apply(payload)
    group.delete(B, "k")
    assert group.apply(payload) == refused
    assert refused[2] == (replies.CONFLICT, "k", (b"in the way", 3, 3, 1, 0, 0))
    assert group.keys() == []


def test_trap_51_a_duplicate_whose_reply_was_taken_does_nothing(group: Group) -> None:
    late = commands.put(A, 1, 0, "k", b"late")
    group.apply(late)
    group.apply(commands.delete(A, 2, 1, "k"))
    assert group.apply(late) == (A, 1, (replies.STALE,))
    assert group.keys() == []


def test_trap_51_sequences_may_come_in_any_order_within_the_window(group: Group) -> None:
    for sequence in (WINDOW, 3, 1, 2):
        assert group.reply(commands.put(A, sequence, 0, f"k{sequence}", b"")) == (replies.OK, group.index, 1)
    # One that says the first three were taken: their replies are forgotten, and nothing else.
    group.apply(commands.put(A, WINDOW + 3, 3, "k", b""))
    assert group.machine.remembered_reply(A, 3) is None
    assert group.machine.remembered_reply(A, WINDOW) == (replies.OK, 3, 1)
    assert group.reply(commands.put(A, 2, 0, "k2", b"")) == (replies.STALE,)


def test_trap_51_the_replies_of_a_session_are_bounded_and_a_leap_of_the_low_water_is_cheap(group: Group) -> None:
    for sequence in range(1, WINDOW + 1):
        group.apply(commands.delete(A, sequence, 0, "k"))
    session = group.machine.sessions[A]
    assert len(session.replies) == WINDOW
    assert group.reply(commands.delete(A, WINDOW + 1, 0, "k"))[0] == replies.BAD_COMMAND
    group.apply(commands.delete(A, 1 << 60, (1 << 60) - 1, "k"))
    assert session.replies == {1 << 60: (replies.OK, group.index, 0)}


def test_trap_51_an_ended_session_cannot_be_opened_or_used_again(group: Group) -> None:
    opening = commands.open_session(9, "late", 1, 10)
    writing = commands.put(9, 1, 0, "k", b"v")
    group.apply(opening)
    assert group.reply(writing) == (replies.OK, 4, 1)
    group.delete(A, "k")
    assert group.reply(commands.close_session(9, 2, 0)) == (replies.OK, 6, 0)
    for late in (opening, writing, commands.close_session(9, 2, 0), opening, writing):
        assert group.reply(late) == (replies.SESSION_ENDED,)
    assert group.keys() == []
    restored = Machine()
    restored.restore(group.machine.cut().chunks())
    outcome = restored.apply(restored.applied_index + 1, TERM, 0, opening)
    assert outcome is not None
    assert outcome[2] == (replies.SESSION_ENDED,)


def test_the_memory_of_ended_sessions_is_bounded(group: Group) -> None:
    for number in range(ENDED_MAX + 2):
        group.apply(commands.open_session(100 + number, "x", 1, 10, group.machine.session_of("x")))
    assert len(group.machine.sessions) == 3
    group.apply(commands.expire_session(100 + ENDED_MAX + 1, TERM))
    # The two oldest are forgotten: only now could they come back.
    assert group.reply(commands.open_session(102, "y", 1, 10)) == (replies.SESSION_ENDED,)
    assert group.reply(commands.open_session(101, "y", 1, 10))[0] == replies.OK
    restored = Machine()
    restored.restore(group.machine.cut().chunks())
    assert restored.state_hash == group.machine.state_hash


def test_trap_54_what_has_no_session_certainly_has_no_effect(group: Group) -> None:
    before = group.machine.store.digest()
    for payload in (
        commands.put(5, 1, 0, "k", b""),
        commands.delete(5, 1, 0, "k"),
        commands.transaction(5, 1, 0, [], []),
    ):
        assert group.apply(payload) == (5, 1, (replies.SESSION_ENDED,))
    assert group.machine.store.digest() == before


# ---------------------------------------------------------------------------------------------------------------------
# Sessions.


def test_opening_twice_is_opening_once(group: Group) -> None:
    assert group.open(A) == (replies.OK, 1, 0)
    assert group.open(A, instance=2) == (replies.SESSION_ID_IN_USE,)
    assert group.open(A, owner="another") == (replies.SESSION_ID_IN_USE,)
    assert group.machine.take_session_events() == []


def test_a_late_open_of_a_dead_process_ends_nothing(group: Group) -> None:
    """It names the session that it found; the next process of its owner has opened another since."""
    late = commands.open_session(70, f"owner {A}", 6, 10, replaces=A, gone=True)
    assert group.open(71, owner=f"owner {A}") == (replies.OK, group.index, 0)
    assert group.reply(late) == (replies.OWNER_IN_USE, 71)
    assert group.machine.has_session(71)
    assert not group.machine.has_session(70)


def test_a_new_session_supersedes_its_owners_older_one_and_all_it_holds(group: Group) -> None:
    group.put(A, "mine", ephemeral=True)
    group.put(A, "kept")
    group.put(B, "others", ephemeral=True)
    group.seen()
    assert group.open(9, owner=f"owner {A}", supersedes=False) == (replies.OWNER_IN_USE, A)
    assert group.open(9, owner=f"owner {A}") == (replies.OK, group.index, 0)
    assert group.seen() == [("delete", "mine", group.index)]
    assert group.keys() == ["kept", "others"]
    assert group.machine.take_session_events() == [(A, SUPERSEDED), (9, OPENED)]
    assert group.put(A, "kept") == (replies.SESSION_ENDED,)


def test_an_old_leader_expires_nobody(group: Group) -> None:
    assert group.apply(commands.expire_session(A, TERM - 1)) is None
    assert group.apply(commands.expire_session(A, TERM), term=TERM + 1) is None
    assert group.machine.has_session(A)
    assert group.apply(commands.expire_session(A, TERM + 1), term=TERM + 1) is None
    assert not group.machine.has_session(A)
    assert group.machine.take_session_events() == [(A, EXPIRED)]
    group.apply(commands.expire_session(A, TERM))
    group.apply(commands.expire_session(12345, TERM))
    assert group.machine.take_session_events() == []


@pytest.mark.parametrize(
    "end", [lambda group: commands.close_session(*group.sender(A)), lambda group: commands.expire_session(A, TERM)]
)
def test_what_a_session_holds_ends_with_it_at_one_revision(group: Group, end: Callable[[Group], bytes]) -> None:
    for key in ("c", "a", "b"):
        group.put(A, key, ephemeral=True)
    group.put(A, "kept")
    group.seen()
    group.apply(end(group))
    assert group.seen() == [("delete", key, group.index) for key in ("a", "b", "c")]
    assert group.keys() == ["kept"]
    assert group.machine.store.revision == group.index


def test_closing_tells_how_much_went(group: Group) -> None:
    group.put(A, "k", ephemeral=True)
    assert group.reply(commands.close_session(*group.sender(A))) == (replies.OK, 4, 1)
    assert group.machine.take_session_events() == [(A, CLOSED)]
    assert group.machine.session_ttls() == {B: (f"owner {B}", 10)}


def test_no_more_sessions_than_the_limit_but_one_may_replace_another() -> None:
    group = Group(Limits(sessions=2))
    group.open(A)
    group.open(B)
    assert group.open(9) == (replies.QUOTA, "sessions", 2)
    assert group.open(9, owner=f"owner {A}")[0] == replies.OK
    assert group.open(10) == (replies.QUOTA, "sessions", 2)
    group.apply(commands.close_session(B, 1, 0))
    assert group.open(10)[0] == replies.OK


# ---------------------------------------------------------------------------------------------------------------------
# The config map.


def test_a_record_remembers_its_life(group: Group) -> None:
    group.put(A, "k", b"1")
    group.put(B, "k", b"2")
    record = group.machine.store.get("k")
    assert record is not None
    assert record[:6] == (b"2", 4, 3, 2, 0, 0)
    assert group.delete(A, "k") == (replies.OK, 5, 1)
    assert group.delete(A, "k") == (replies.OK, 6, 0)
    assert group.machine.store.get("k") is None
    group.put(A, "k", b"3")
    record = group.machine.store.get("k")
    assert record is not None
    assert record[:6] == (b"3", 7, 7, 1, 0, 0)
    assert group.seen() == [("put", "k", 3), ("put", "k", 4), ("delete", "k", 5), ("put", "k", 7)]


def test_compare_and_set_and_delete(group: Group) -> None:
    assert group.put(A, "k", b"1", expected=5) == (replies.CONFLICT, "k", None)
    assert group.put(A, "k", b"1", expected=ABSENT) == (replies.OK, 4, 1)
    assert group.put(A, "k", b"2", expected=ABSENT) == (replies.CONFLICT, "k", (b"1", 4, 4, 1, 0, 0))
    assert group.put(A, "k", b"2", expected=4) == (replies.OK, 6, 1)
    assert group.delete(A, "k", expected=4)[0] == replies.CONFLICT
    assert group.delete(A, "k", expected=6) == (replies.OK, 8, 1)
    assert group.delete(A, "k", expected=ABSENT) == (replies.OK, 9, 0)


def test_a_transaction_happens_whole_at_one_revision_or_not_at_all(group: Group) -> None:
    group.put(A, "a")
    compare = commands.compare_revision
    operations = [commands.put_operation("b", b"2"), commands.delete_operation("a"), commands.delete_operation("none")]
    assert group.transaction(A, [compare("a", 3), compare("b", 9)], operations) == (replies.CONFLICT, "b", None)
    assert group.keys() == ["a"]
    group.seen()
    assert group.transaction(A, [compare("a", 3), compare("b", ABSENT)], operations) == (replies.OK, 5, 2)
    assert group.seen() == [("put", "b", 5), ("delete", "a", 5)]
    # Nothing left to do: done, and nobody is told.
    assert group.transaction(A, [compare("b", 5)], [commands.delete_operation("a")]) == (replies.OK, 6, 0)
    assert group.transaction(A, [], []) == (replies.OK, 7, 0)
    assert group.seen() == []
    assert group.machine.store.revision == 5


def test_whose_an_ephemeral_key_is(group: Group) -> None:
    def owner() -> int:
        record = group.machine.store.get("k")
        assert record is not None
        return record.session

    group.put(A, "k", b"plain")
    group.put(B, "k", b"now B's", ephemeral=True)
    assert owner() == B
    assert group.put(A, "k") == (replies.OWNED_BY_OTHER, "k", B)
    assert group.put(A, "k", ephemeral=True) == (replies.OWNED_BY_OTHER, "k", B)
    both = [commands.put_operation("j", b""), commands.put_operation("k", b"")]
    assert group.transaction(A, [], both) == (replies.OWNED_BY_OTHER, "k", B)
    assert group.keys() == ["k"]
    # A plain put by its owner keeps it; a delete, anybody's, ends it.
    assert group.put(B, "k", b"still B's")[0] == replies.OK
    assert owner() == B
    assert group.delete(A, "k") == (replies.OK, group.index, 1)
    group.put(A, "k", b"A's", ephemeral=True)
    group.apply(commands.close_session(*group.sender(B)))
    assert owner() == A


def test_a_conflict_holds_only_so_many_bytes_of_values(group: Group) -> None:
    group.apply(commands.set_limits(Limits(value_bytes=1 << 20), 0))
    half = bytes(REPLY_VALUE_BYTES_MAX // 2)
    group.put(B, "k", half)

    def refused(sequence: int, low_water: int) -> Any:
        reply = group.reply(commands.put(A, sequence, low_water, "k", b"", expected=ABSENT))
        assert reply[0] == replies.CONFLICT
        return reply[2][0]

    assert refused(1, 0) == refused(2, 0) == half
    assert refused(3, 0) is None
    # The same again for the duplicate, and a value again when there is room.
    assert refused(3, 2) is None
    assert refused(4, 2) == half
    assert group.machine.sessions[A].reply_value_bytes == len(half)
    restored = Machine()
    restored.restore(group.machine.cut().chunks())
    assert restored.sessions[A].reply_value_bytes == len(half)


# ---------------------------------------------------------------------------------------------------------------------
# Time.


def test_cluster_time_never_falls_and_never_overflows(group: Group) -> None:
    group.apply(commands.tick(), time=100)
    group.apply(commands.tick(), time=50)
    group.machine.skip(group.index + 1, 60)
    assert group.machine.time == 100
    group.apply(commands.tick(), time=(1 << 64) - 1)
    assert group.machine.time == TIME_MAX
    group.put(A, "k", ttl=(1 << 63) - 1)
    record = group.machine.store.get("k")
    assert record is not None
    assert record.expires_at == TIME_MAX


def test_a_key_with_a_ttl_goes_with_the_first_tick_after_it_and_not_before(group: Group) -> None:
    group.apply(commands.tick(), time=1000)
    group.put(A, "k", ttl=10)
    group.put(A, "later", ttl=20)
    assert group.machine.next_due() == 1010
    group.apply(commands.tick(), time=1009)
    assert group.keys() == ["k", "later"]
    # Only a tick acts: until there is one, the key is there and may be renewed.
    group.put(B, "other")
    group.now = 1015
    group.put(B, "other")
    assert group.keys() == ["k", "later", "other"]
    group.seen()
    group.apply(commands.tick(), time=1015)
    assert group.seen() == [("delete", "k", group.index)]
    assert group.machine.next_due() == 1020
    group.apply(commands.tick(), time=1020)
    assert group.machine.next_due() is None
    assert group.keys() == ["other"]


def test_a_put_without_a_ttl_ends_the_old_one_and_a_new_ttl_replaces_it(group: Group) -> None:
    group.put(A, "k", ttl=10)
    group.put(A, "renewed", ttl=10)
    group.put(A, "k")
    assert group.machine.next_due() == 10
    group.now = 5
    group.put(A, "renewed", ttl=10)
    assert group.machine.next_due() == 15
    group.apply(commands.tick(), time=14)
    assert group.keys() == ["k", "renewed"]
    group.delete(A, "renewed")
    assert group.machine.next_due() is None
    group.put(A, "renewed", ttl=100)
    group.apply(commands.tick(), time=30)
    assert group.keys() == ["k", "renewed"]


def test_a_tick_removes_only_so_many_and_asks_for_another() -> None:
    group = Group()
    group.open(A)
    for number in range(TICK_KEYS_MAX + 1):
        group.put(A, f"{number:05d}", b"", ttl=10)
    group.apply(commands.tick(), time=50)
    assert group.keys() == [f"{TICK_KEYS_MAX:05d}"]
    assert group.machine.next_due() == 10
    group.apply(commands.tick())
    assert group.keys() == []


# ---------------------------------------------------------------------------------------------------------------------
# Quotas.


def cost(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + RECORD_OVERHEAD_BYTES


def test_the_state_may_be_exactly_as_large_as_its_limit() -> None:
    group = Group(Limits(state_bytes=cost("é", b"12") + cost("k", b"1")))
    group.open(A)
    assert group.put(A, "é", b"12")[0] == replies.OK
    assert group.put(A, "k", b"12") == (replies.QUOTA, "state_bytes", group.machine.limits.state_bytes)
    assert group.put(A, "k", b"1")[0] == replies.OK
    assert group.machine.store.state_bytes == group.machine.limits.state_bytes
    assert group.put(A, "k", b"2")[0] == replies.OK
    assert group.put(A, "k", b"22")[0] == replies.QUOTA
    # A transaction counts as a whole.
    moved = [commands.put_operation("k", b"22"), commands.put_operation("é", b"1")]
    assert group.transaction(A, [], moved)[0] == replies.OK
    assert (
        group.transaction(A, [], [commands.delete_operation("k"), commands.put_operation("z", b"22")])[0] == replies.OK
    )
    assert group.machine.store.state_bytes == group.machine.limits.state_bytes


def test_over_quota_only_what_frees_passes(group: Group) -> None:
    group.put(A, "k", b"12345")
    group.put(B, "mine", b"", ephemeral=True)
    group.put(A, "old", b"", ttl=1)
    group.apply(commands.set_limits(Limits(state_bytes=0, sessions=1), 0))
    assert group.put(A, "k", b"") == (replies.QUOTA, "state_bytes", 0)
    assert group.open(9) == (replies.QUOTA, "sessions", 1)
    assert group.delete(A, "k") == (replies.OK, group.index, 1)
    assert group.transaction(A, [], [commands.delete_operation("none")]) == (replies.OK, group.index, 0)
    group.apply(commands.tick(), time=5)
    assert group.keys() == ["mine"]
    assert group.reply(commands.close_session(*group.sender(B))) == (replies.OK, group.index, 1)
    group.apply(commands.expire_session(A, TERM))
    assert group.machine.store.state_bytes == 0


def test_the_other_limits() -> None:
    group = Group(Limits(value_bytes=3, transaction_bytes=6, keys=2))
    group.open(A)
    assert group.put(A, "a", b"1234") == (replies.QUOTA, "value_bytes", 3)
    assert group.put(A, "a", b"123")[0] == replies.OK
    assert group.put(A, "b", b"123")[0] == replies.OK
    assert group.put(A, "c", b"") == (replies.QUOTA, "keys", 2)
    assert group.put(A, "a", b"")[0] == replies.OK
    operation = commands.put_operation
    assert group.transaction(A, [], [operation("a", b"12"), operation("b", b"12")])[0] == replies.OK
    too_long = [operation("a", b"12"), operation("b", b"123")]
    assert group.transaction(A, [], too_long) == (replies.QUOTA, "transaction_bytes", 6)
    assert group.transaction(A, [], [operation("a", b"1234")]) == (replies.QUOTA, "value_bytes", 3)
    exchange = [commands.delete_operation("a"), operation("c", b"")]
    assert group.transaction(A, [], exchange)[0] == replies.OK
    assert group.keys() == ["b", "c"]


def test_limits_are_replaced_only_by_who_has_seen_them(group: Group) -> None:
    first = commands.set_limits(Limits(keys=1), 0)
    assert group.apply(first) is None
    assert (group.machine.limits, group.machine.limits_index) == (Limits(keys=1), 3)
    group.apply(commands.set_limits(Limits(keys=2), 3))
    # A late duplicate of the first.
    group.apply(first)
    assert (group.machine.limits, group.machine.limits_index) == (Limits(keys=2), 4)
