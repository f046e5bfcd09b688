"""A member that is sent anything at all: what it cannot believe is counted once, changes nothing, and it works on."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coord.machine import commands
from coord.options import Options
from coord.raft.batch import COMMANDS, NOOP, encode_entry, make_batch
from coord.raft.messages import Append, Heartbeat, HeartbeatResponse
from coord.replica import Replica
from coord.storage.memory import MemoryDisk
from coord.wire import BadFrame, decode, encode
from properties.frames import EXTREMES, damaged, noop_batch
from storage.builders import open_storage
from test_wire import FOUNDING, MESSAGES, SAMPLES, A, B, sent

ADDRESSES = {name: f"tcp://127.0.0.1:{port}" for port, name in enumerate("abc", 1)}
SESSION = 77
#: Whole frames; those of SAMPLES and what hypothesis makes of them are damaged before they are used.
whole = st.sampled_from([sent(sample) for sample in SAMPLES.values()]) | (MESSAGES | EXTREMES).map(sent)
#: Meant for somebody else, or from nobody: nothing is wrong with them but that.
foreign = st.one_of(
    st.builds(lambda message: encode(A, "c", message), EXTREMES),
    st.builds(lambda message: encode(A._replace(incarnation=0), "b", message), EXTREMES),
    st.builds(lambda message: encode(A._replace(group_number=1), "b", message), EXTREMES),
    st.builds(lambda message: encode(A._replace(fingerprint=FOUNDING ^ 1), "b", message), EXTREMES),
    st.builds(lambda message: encode(A, "b", message, recipient_incarnation=0x3333), EXTREMES),
)


class Member:
    """Member b of three, following a in term 3; `now` stands still unless told."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.sent: list[tuple[str, bytes]] = []
        self.now = 1.0
        self.replica = Replica(
            B,
            ADDRESSES,
            Options(),
            open_storage(self.disk, segment_bytes=4000),
            send=self._send,
            set_peers=lambda addresses: None,
            keep_group_number=lambda number: None,
            background=lambda task: None,
            rng=random.Random(5),
            now=self.now,
            epoch=1,
            alone=False,
        )
        opening = commands.open_session(SESSION, "a", 1, 10**12)
        noop = make_batch(NOOP, 3, 1, 1000, [encode_entry(b"")], 1)
        first = make_batch(COMMANDS, 3, 2, 2000, [encode_entry(opening), encode_entry(self._put(1))], 2)
        self.turn(encode(A, "b", Append(3, 0, 0, 3, 1, [noop, first])))
        assert self.replica.machine.applied_index == 3, "the member did not begin to follow"
        self.turn()
        self.turn()

    def _send(self, to: str, frame: bytes) -> bool:
        self.sent.append((to, frame))
        return True

    def _put(self, sequence: int) -> bytes:
        return commands.put(SESSION, sequence, 0, f"key {sequence}", b"value", False, 0, commands.ANY)

    def turn(self, *frames: bytes) -> None:
        self.replica.turn(self.now, frames)

    def state(self) -> dict[str, Any]:
        """All that a frame may not change: what it holds, what is on its disk, what it says, what it counts."""
        replica, core = self.replica, self.replica.core
        counters = replica.counters
        names = (
            *("elections", "leader_changes", "step_downs", "frames_sent", "frames_unsent", "proposals_accepted"),
            *("proposals_refused", "entries_applied", "persists", "snapshots_installed", "recent"),
        )
        return {
            "state hash": replica.machine.state_hash,
            "term and vote": (core.term, core.vote),
            "role": (core.role, core.leader),
            "log": (core.log.base, core.log.last_index, core.log.last_term, core.log.persisted, core.log.epoch),
            "commit": (core.commit, core.applied, core.deadline()),
            "heard": {name: self.now - replica.silence(name) for name in "ac"},
            "counters": {name: getattr(counters, name) for name in names},
            "disk": self.disk.fingerprint(),
            "sent": len(self.sent),
            "failure": (replica.failure, replica.refusal),
        }

    def works(self) -> None:
        """It takes an entry, answers, applies it, and follows the same leader."""
        core, before = self.replica.core, len(self.sent)
        index = core.log.last_index + 1
        more = noop_batch(index, 3, self._put(index))
        self.turn(encode(A, "b", Append(3, index - 1, 3, index - 1, 2, [more])), encode(A, "b", Heartbeat(3, index, 3)))
        assert (core.term, core.leader, core.log.persisted) == (3, "a", index), "it no longer follows its leader"
        assert self.replica.machine.applied_index == index, "it no longer applies what is committed"
        assert self.replica.machine.store.get(f"key {index}") is not None, "the write is not there"
        answers = [decode(frame, A).message for to, frame in self.sent[before:] if to == "a"]
        assert any(isinstance(answer, HeartbeatResponse) and answer.verified == index for answer in answers), answers


@settings.get_profile("properties")
@given(frames=st.lists(damaged(whole) | foreign, min_size=1, max_size=6), one_turn=st.booleans())
def test_what_is_not_believed_is_counted_once_and_changes_nothing(frames: list[bytes], one_turn: bool) -> None:
    member = Member()
    expected = dict(member.replica.counters.frames_dropped)
    received = member.replica.counters.frames_received
    refused = []
    for frame in frames:
        try:
            decode(frame, B)
        except BadFrame as error:
            expected[error.reason] += 1
            refused.append(frame)
    before = member.state()
    for batch in [refused] if one_turn else [[frame] for frame in refused]:
        # Time goes on, but not so far that anything falls due.
        member.now += 1 / 1024
        member.turn(*batch)
    after = member.state()
    assert after == before, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert member.replica.counters.frames_dropped == expected, "not one drop each, by its reason"
    assert member.replica.counters.frames_received == received + len(refused), "not each was counted as received"
    member.works()


@settings.get_profile("properties")
@given(
    frames=st.lists(damaged(whole) | whole | foreign, min_size=1, max_size=8), later=st.sampled_from([0.0, 0.01, 9.0])
)
def test_no_frame_makes_a_member_raise_or_fail(frames: list[bytes], later: float) -> None:
    """Forged ones among them that are believed: they may say anything, and a member may even stand for election."""
    member = Member()
    for frame in frames:
        member.now += later
        member.turn(frame)
        core = member.replica.core
        assert core.log.persisted <= core.log.last_index, "more durable than there is"
        assert core.term >= 3, "the term went back"
    counters = member.replica.counters
    assert counters.frames_received == 1 + len(frames), "a frame was not counted"
    assert sum(counters.frames_dropped.values()) <= len(frames), "a frame was dropped twice"
    assert member.replica.failure is None, "it stopped itself"
