"""No message, from whomever and in whatever state, makes the core raise: it is ignored, obeyed, or it halts the member.

Any field may have any value that fits on the wire. Hypothesis draws the fields blindly, and finds the smallest story; a
seeded forger draws them near the member's own numbers, where they hurt most.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import Disk, Member, batch, incarnation_of, roles
from coord.raft.batch import COMMANDS, MEMBERSHIP, NOOP, Batch, encode_entry, make_batch
from coord.raft.core import Core
from coord.raft.membership import MemberRecord, Membership, membership_of
from coord.raft.messages import (
    Append,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Propose,
    ProposeResponse,
    ReadRequest,
    ReadResponse,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotOffer,
    SnapshotPull,
    TimeoutNow,
    TransferRefused,
    Unknown,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings

HUGE = (1 << 63) - 1

numbers = st.integers(0, 9) | st.sampled_from([10, 20, HUGE - 1, HUGE])
terms = st.integers(0, 4) | st.sampled_from([5, HUGE])
flags = st.booleans()
payloads = st.lists(st.binary(max_size=3).map(encode_entry), min_size=1, max_size=3)


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    names = draw(st.lists(st.sampled_from("abcd"), unique=True))
    return Membership(
        {name: MemberRecord("ipc://x", draw(numbers), draw(flags)) for name in sorted(names)}, draw(numbers)
    )


@st.composite
def runs(draw: st.DrawFn) -> list[Batch]:
    """Batches that mostly follow each other, as the wire insists, and sometimes do not."""
    first, term = draw(st.integers(1, 9)), draw(terms)
    found: list[Batch] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from([COMMANDS, COMMANDS, NOOP, MEMBERSHIP]))
        entries = draw(payloads)
        if kind == MEMBERSHIP and draw(flags):
            entries = [encode_entry(draw(memberships()).encode())]
        found.append(make_batch(kind, term, first, draw(numbers), entries, len(entries)))
        first = found[-1].last + 1 if draw(flags) or draw(flags) else draw(st.integers(1, 9))
        term = min(HUGE, term + draw(st.sampled_from([0, 0, 1])))
    return found


@st.composite
def appends(draw: st.DrawFn) -> Append:
    batches = draw(runs())
    adjacent = draw(flags) or draw(flags)
    previous = batches[0].first - 1 if batches and adjacent else draw(numbers)
    return Append(draw(terms), previous, draw(terms), draw(numbers), draw(numbers), batches)


metas = st.builds(
    SnapshotMeta, numbers, terms, numbers, memberships(), numbers, numbers, st.just(b"\0" * 32), st.just(0)
)

any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(VoteRequest, terms, numbers, terms, flags, flags, st.integers(-2, 2)),
    st.builds(VoteResponse, terms, flags, flags),
    appends(),
    st.builds(AppendResponse, terms, flags, numbers, numbers, numbers, terms, flags),
    st.builds(Heartbeat, terms, numbers, numbers),
    st.builds(HeartbeatResponse, terms, numbers, numbers, flags),
    st.builds(ReadRequest, terms, numbers),
    st.builds(ReadResponse, terms, numbers, numbers),
    st.builds(Propose, terms, numbers, numbers, payloads | st.just([])),
    st.builds(ProposeResponse, terms, numbers, numbers, flags),
    st.builds(TimeoutNow, terms, numbers),
    st.builds(TransferRefused, terms, st.just("because")),
    st.builds(SnapshotOffer, terms, numbers, metas),
    st.builds(SnapshotPull, terms, numbers, numbers),
    st.builds(SnapshotChunk, terms, numbers, numbers, st.binary(max_size=4)),
    st.builds(Unknown, terms, st.just("because")),
)

#: What else may happen between messages.
events = st.sampled_from(
    ["time out", "heartbeat", "long wait", "propose", "read", "transfer", "peer gone", "sync", "hold disk", "snapshot"]
)

steps = st.lists(
    events | st.tuples(st.sampled_from("bbccad"), any_message, st.integers(0, 19)), min_size=1, max_size=30
)


class Target(Member):
    """Keeps whatever a snapshot's bytes were."""

    def _restored(self, index: int) -> list[tuple[int, str]]:
        return []


def befall(member: Member, step: Any) -> None:
    core = member.core
    if step == "time out":
        member.time_out()
    elif step == "heartbeat":
        member.wait(member.core.settings.heartbeat)
    elif step == "long wait":
        member.wait(5.0)
    elif step == "propose":
        member.propose("x", "y")
    elif step == "read":
        member.read(1)
    elif step == "transfer":
        core.transfer_leadership(member.now, "b")
    elif step == "peer gone":
        core.peer_gone(member.now, core.leader or "b")
    elif step == "sync":
        member.hold_disk = False
        member.sync()
    elif step == "hold disk":
        member.hold_disk = True
    elif step == "snapshot":
        if core.applied > core.log.base and (core.snapshot is None or core.applied > core.snapshot.index):
            member.snapshot()
    else:
        sender, message, odd = step
        member.receive(sender, message, incarnation=incarnation_of(sender) + (odd == 0))
    member.work()


def check(member: Member, term: int, commit: int) -> None:
    core = member.core
    assert core.role in (FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER)
    assert term <= core.term
    assert commit <= core.commit <= core.log.last_index
    assert core.applied <= core.handed <= core.commit
    assert core.log.persisted <= core.log.last_index
    assert core.log.ends_batch(core.commit)
    for progress in core.progress.values():
        assert progress.match < progress.next <= core.log.last_index + 1
        assert progress.inflight_bytes == sum(size for _, size, _ in progress.inflight)


@pytest.mark.parametrize(
    "knobs",
    [Settings(), Settings(lease_reads=True, max_inflight_messages=1, max_append_bytes=1, max_uncommitted_bytes=200)],
    ids=["usual", "tight"],
)
@given(steps=steps, leading=flags, members=st.sampled_from(["abc", "ab"]))
@settings(max_examples=400)
def test_no_message_makes_the_core_raise(knobs: Settings, steps: list[Any], leading: bool, members: str) -> None:
    member = Target("a", members, knobs)
    if leading:
        member.lead()
        member.propose("1", "2")
    for step in steps:
        term, commit = member.core.term, member.core.commit
        befall(member, step)
        check(member, term, commit)
        if member.core.halted:
            assert member.work() == []
            break
    # Whatever happened is on disk, and a restart can read it.
    member.hold_disk = False
    member.sync()
    again = Target("a", members, knobs, disk=member.disk, now=member.now)
    check(again, member.core.term if not member.core.halted else 0, 0)


class Forger:
    """Makes messages that are nearly right for `core`."""

    def __init__(self, rng: random.Random, core: Core) -> None:
        self.rng = rng
        self.core = core

    def index(self) -> int:
        core, rng = self.core, self.rng
        near = [core.log.last_index, core.commit, core.log.base, core.verified, core.log.persisted, rng.randrange(12)]
        near += [progress.next - 1 for progress in core.progress.values()]
        near += [core.snapshot.index] if core.snapshot else []
        near += [core.pull.held, core.pull.meta.index] if core.pull else []
        return HUGE if rng.random() < 0.02 else max(0, rng.choice(near) + rng.choice([0, 0, 0, 0, 1, 1, 2, -1]))

    def term(self) -> int:
        core, rng = self.core, self.rng
        return max(0, rng.choice([core.term] * 12 + [core.term + 1] * 2 + [core.term - 1, core.log.last_term]))

    def round(self) -> int:
        return max(0, self.core.rounds.newest + self.rng.choice([0, 0, 1, 2, -1, -2]))

    def membership(self) -> Membership:
        rng = self.rng
        names = [name for name in "abcd" if rng.random() < 0.8]
        return Membership(
            {
                name: MemberRecord("ipc://x", rng.randrange(2) * incarnation_of(name), rng.random() < 0.8)
                for name in names
            },
            rng.randrange(3),
        )

    def run(self, previous: int, term: int) -> list[Batch]:
        rng, found = self.rng, []
        first = previous + 1
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            term = min(max(term, 0) + rng.choice([0, 0, 0, 1]), HUGE) if rng.random() < 0.7 else self.term()
            kind = rng.choice([COMMANDS, COMMANDS, COMMANDS, NOOP, MEMBERSHIP])
            entries = [encode_entry(b"x")] * rng.choice([1, 1, 2, 3])
            if kind == MEMBERSHIP and rng.random() < 0.9:
                entries = [encode_entry(self.membership().encode())]
            found.append(make_batch(kind, term, first, rng.choice([0, 5, HUGE]), entries, len(entries)))
            first = found[-1].last + 1
        return found

    def append(self) -> Append:
        previous = self.index() if self.rng.random() < 0.5 else self.core.log.last_index
        known = self.core.log.term_at(previous)
        term = self.term() if known is None or self.rng.random() < 0.1 else known
        return Append(self.term(), previous, term, self.index(), self.round(), self.run(previous, term))

    def meta(self) -> SnapshotMeta:
        if self.core.pull is not None and self.rng.random() < 0.7:
            return self.core.pull.meta
        index = self.index()
        size = self.rng.choice([0, 1, 4, 4, 9, HUGE])
        membership_index = self.rng.choice([0, index, self.index()])
        return SnapshotMeta(index, self.term(), self.index(), self.membership(), membership_index, size, b"", 0)

    def message(self) -> Message:
        rng = self.rng

        def flag() -> bool:
            return rng.random() < 0.5

        priority = rng.choice([-1, 0, 0, 1])
        makers: list[Callable[[], Message]] = [
            lambda: VoteRequest(self.term() + flag(), self.index(), self.term(), flag(), flag(), priority),
            lambda: VoteResponse(self.term() + flag(), flag(), flag()),
            self.append,
            self.append,
            self.append,
            lambda: AppendResponse(self.term(), flag(), self.index(), self.round(), self.index(), self.term(), flag()),
            lambda: AppendResponse(self.term(), flag(), self.index(), self.round(), self.index(), self.term(), flag()),
            lambda: Heartbeat(self.term(), self.index(), self.round()),
            lambda: HeartbeatResponse(self.term(), self.round(), self.index(), flag()),
            lambda: ReadRequest(self.term(), rng.randrange(3)),
            lambda: ReadResponse(self.term(), rng.randrange(3), self.index()),
            lambda: Propose(self.term(), rng.randrange(2), rng.randrange(3), [encode_entry(b"p")] * rng.randrange(3)),
            lambda: ProposeResponse(self.term(), rng.randrange(2), self.index(), flag()),
            lambda: TimeoutNow(self.term(), self.core.log.last_index - flag() + 0),
            lambda: TransferRefused(self.term(), "because"),
            lambda: SnapshotOffer(self.term(), self.round(), self.meta()),
            lambda: SnapshotPull(self.term(), self.index(), self.index()),
            lambda: SnapshotChunk(self.term(), self.index(), self.index(), b"1234"[: rng.randrange(5)]),
        ]
        return rng.choice(makers)()


EVENTS = [
    "time out",
    "heartbeat",
    "long wait",
    "propose",
    "read",
    "transfer",
    "peer gone",
    "sync",
    "hold disk",
    "snapshot",
]


def forge(seed: int) -> Member:
    """One story of forgeries, checked after each."""
    rng = random.Random(seed)
    tight = Settings(lease_reads=True, max_inflight_messages=1, max_append_bytes=1, max_uncommitted_bytes=200)
    members = rng.choice(["abc", "abc", "ab", "abcd"])
    member = Target("a", members, rng.choice([Settings(), tight]), seed=seed)
    core, forger, liar = member.core, Forger(rng, member.core), "b"
    for _ in range(60):
        term, commit = core.term, core.commit
        if rng.random() < 0.15:
            befall(member, rng.choice(EVENTS))
        elif rng.random() < 0.03 and core.role != LEADER:
            member.stand()
        else:
            liar = liar if core.leader is None else core.leader
            sender = liar if rng.random() < 0.8 and liar != "a" else rng.choice("bcd")
            befall(member, (sender, forger.message(), rng.randrange(40)))
        check(member, term, commit)
        if core.halted:
            break
    return member


def test_no_forgery_makes_the_core_raise() -> None:
    reached: set[str] = set()
    for seed in range(1500):
        try:
            member = forge(seed)
        except Exception as error:
            error.args = (f"seed {seed}: {error}",)
            raise
        reached |= {type(command).__name__ for command in member.done}
        reached |= set(roles(member))
    # A forger that gets nowhere proves nothing.
    assert reached >= {"Apply", "ReadOk", "ReadFailed", "StoreSnapshot", "InstallSnapshot", "SendSnapshot", "Halt"}
    assert reached >= {"MembershipChange", "ProposalsTaken", FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER}


@given(message=any_message)
@settings(max_examples=300)
def test_a_stranger_changes_nothing(message: Message) -> None:
    member = Member("a", "abc").lead()
    before = (member.core.term, member.core.role, member.core.commit, member.core.log.last_index)
    sent = member.receive("x", message)
    assert [type(send.message) for send in sent] == [] if isinstance(message, Unknown) else [Unknown]
    assert (member.core.term, member.core.role, member.core.commit, member.core.log.last_index) == before


@given(message=any_message)
@settings(max_examples=300)
def test_nobody_speaks_for_the_member_itself(message: Message) -> None:
    member = Member("a", "abc")
    member.time_out()
    before = (member.core.term, member.core.role, set(member.core.granted))
    assert member.receive("a", message) == []
    assert (member.core.term, member.core.role, member.core.granted) == before


def test_a_membership_without_voters_is_refused() -> None:
    member = Member("a", "abc")
    nobody = Membership({"a": MemberRecord("ipc://a", voter=False)}, 7)
    append = Append(1, 0, 0, 0, 1, [make_batch(MEMBERSHIP, 1, 1, 0, [encode_entry(nobody.encode())], 1)])
    assert member.receive("b", append) == []
    assert member.core.voters == ("a", "b", "c")
    assert member.core.membership == membership_of({name: f"ipc://{name}" for name in "abc"})


def test_batches_cut_otherwise_than_ours_are_ignored() -> None:
    member = Member("a", "abc", disk=Disk(hard_state=HardState(2), batches=[batch(1, 1, "x"), batch(2, 2, "y", "z")]))
    # The first ends inside one of ours and has its term there; both of ours conflict with it all the same.
    member.receive("b", Append(2, 0, 0, 0, 1, [batch(2, 1, "x", "y"), batch(2, 3, "z", "w")]))
    assert [(one.first, one.last, one.term) for one in member.disk.batches] == [(1, 2, 2), (3, 4, 2)]
    # These say that they are what we hold, and are not.
    for wrong in ([batch(2, 1, "x")], [batch(2, 1, "x", "y", "z")]):
        assert member.receive("b", Append(2, 0, 0, 0, 1, wrong)) == []
    assert member.receive("b", Append(2, 1, 2, 0, 1, [batch(2, 2, "y")])) == []
    assert member.core.log.last_index == 4
