"""Frames: every message there and back, the format as it was yesterday, and nothing believed that should not be."""

from __future__ import annotations

import random
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coord import wire
from coord.raft.batch import COMMANDS, KINDS, NOOP, Batch, encode_entry, make_batch
from coord.raft.membership import MemberRecord, Membership, membership_of
from coord.raft.messages import (
    AnyMessage,
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Keepalive,
    KeepaliveResponse,
    Message,
    Propose,
    ProposeResponse,
    ReadRequest,
    ReadResponse,
    SessionMessage,
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
from coord.wire import BadFrame, Envelope, Identity, decode, encode, fingerprint, is_name, same_cluster

GOLDEN = Path(__file__).parent / "golden" / "wire_v1.txt"
FOUNDING = fingerprint("orders", ["a", "b", "c"])
A = Identity("a", 0x1111, FOUNDING, 0x9999)
B = Identity("b", 0x2222, FOUNDING, 0x9999)


def batch(first: int, *payloads: bytes, term: int = 3, time: int = 1_000, kind: int = COMMANDS) -> Batch:
    return make_batch(kind, term, first, time, map(encode_entry, payloads), len(payloads))


META = SnapshotMeta(
    index=90,
    term=3,
    time=77_000,
    membership=Membership({"a": MemberRecord("tcp://10.0.0.1:7400", 0x1111), "b": MemberRecord("ipc:///b")}, 0x9999),
    membership_index=4,
    size=4096,
    sha256=bytes(range(32)),
    state_hash=(1 << 64) - 1,
)

#: One of each, with every field different from its default.
SAMPLES: dict[str, AnyMessage] = {
    "vote request": VoteRequest(5, 10, 4, pre=True, transfer=True, priority=-2),
    "vote response": VoteResponse(5, granted=True, pre=True),
    "append": Append(5, 10, 3, 9, 21, [batch(11, b"x", b"", b"yz"), batch(14, b"", term=5, time=2_000, kind=NOOP)]),
    "probe": Append(5, 10, 3, 9, 21),
    "append response": AppendResponse(5, True, 14, 21, hint_index=7, hint_term=2, disk_slow=True),
    "heartbeat": Heartbeat(5, 9, 22),
    "heartbeat response": HeartbeatResponse(5, 22, 14, disk_slow=True),
    "read request": ReadRequest(5, 33),
    "read response": ReadResponse(5, 33, 14),
    "propose": Propose(5, 0xABCD << 48, 6, [encode_entry(b"one"), encode_entry(b"")]),
    "propose response": ProposeResponse(5, 0xABCD << 48, 8, accepting=True),
    "timeout now": TimeoutNow(5, 14),
    "transfer refused": TransferRefused(5, "the disk is slow"),
    "snapshot offer": SnapshotOffer(5, 23, META),
    "snapshot pull": SnapshotPull(5, 90, 1024),
    "snapshot chunk": SnapshotChunk(5, 90, 1024, b"\x00\x01\x02"),
    "unknown": Unknown(5, "größer als gedacht"),
    "keepalive": Keepalive(5, 0xABCD << 48, 77),
    "keepalive response": KeepaliveResponse(5, 0xABCD << 48, 77, 123_000, alive=True),
}


def sent(message: AnyMessage, sender: Identity = A, recipient: Identity = B) -> bytes:
    return encode(sender, recipient.name, message)


def refused(frame: bytes, receiver: Identity = B) -> str:
    """Why `frame` is refused; a failure of the test when it is not, or for anything but BadFrame."""
    with pytest.raises(BadFrame) as caught:
        decode(frame, receiver)
    assert caught.value.reason in wire.REASONS
    assert str(caught.value).startswith(f"{caught.value.reason}: ")
    return caught.value.reason


def judged(frame: bytes) -> Envelope | str:
    """What is in `frame`, or why it is refused; any other exception passes through."""
    try:
        return decode(frame, B)
    except BadFrame as error:
        return error.reason


def summed_again(frame: bytes | bytearray, covered: int | None = None) -> bytes:
    """`frame` as a sender with a bug, not a bad line, would send it: length and crc right."""
    changed = bytearray(frame)
    struct.pack_into("<I", changed, 8, len(changed))
    struct.pack_into("<I", changed, 4, zlib.crc32(changed[8:covered], zlib.crc32(changed[:4])))
    return bytes(changed)


# ---------------------------------------------------------------------------------------------------------------------
# There and back.

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=63)
u64 = st.integers(0, (1 << 64) - 1)
number = st.integers(0, wire.NUMBER_LIMIT - 1)
term = st.integers(0, wire.NUMBER_LIMIT - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)


@st.composite
def appends(draw: st.DrawFn) -> Append:
    prev_index, prev_term = draw(st.integers(0, 1 << 62)), draw(st.integers(0, 1 << 40))
    next_index, now, in_term = prev_index + 1, 0, prev_term
    batches = []
    for payloads in draw(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=4)):
        in_term += draw(st.integers(0, 3))
        now += draw(st.integers(0, 1 << 40))
        batches.append(batch(next_index, *payloads, term=in_term, time=now, kind=draw(st.sampled_from(KINDS))))
        next_index += len(payloads)
    return Append(in_term + draw(st.integers(0, 3)), prev_index, prev_term, draw(number), draw(number), batches)


@st.composite
def offers(draw: st.DrawFn) -> SnapshotOffer:
    records = st.builds(MemberRecord, texts, u64, st.booleans())
    members = {**draw(st.dictionaries(names, records, max_size=5)), draw(names): MemberRecord(draw(texts), draw(u64))}
    index, made_in = draw(number), draw(term)
    meta = SnapshotMeta(
        index,
        made_in,
        draw(number),
        Membership(dict(sorted(members.items())), draw(u64)),
        draw(st.integers(0, index)),
        draw(number),
        draw(st.binary(min_size=32, max_size=32)),
        draw(u64),
    )
    return SnapshotOffer(draw(st.integers(made_in, wire.NUMBER_LIMIT - 1)), draw(number), meta)


MESSAGES: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(VoteRequest, term, number, number, st.booleans(), st.booleans(), st.integers(-(1 << 31), (1 << 31) - 1)),
    st.builds(VoteResponse, term, st.booleans(), st.booleans()),
    appends(),
    st.builds(AppendResponse, term, st.booleans(), number, number, number, number, st.booleans()),
    st.builds(Heartbeat, term, number, number),
    st.builds(HeartbeatResponse, term, number, number, st.booleans()),
    st.builds(ReadRequest, term, number),
    st.builds(ReadResponse, term, number, number),
    st.builds(Propose, term, u64, number, st.lists(st.binary(max_size=20).map(encode_entry), max_size=5)),
    st.builds(ProposeResponse, term, u64, number, st.booleans()),
    st.builds(TimeoutNow, term, number),
    st.builds(TransferRefused, term, texts),
    offers(),
    st.builds(SnapshotPull, term, number, number),
    st.builds(SnapshotChunk, term, number, number, st.binary(max_size=100)),
    st.builds(Unknown, term, texts),
    st.builds(Keepalive, term, u64, number),
    st.builds(KeepaliveResponse, term, u64, number, number, st.booleans()),
)


@settings(max_examples=600)
@given(MESSAGES, names, names, st.integers(1, (1 << 64) - 1), u64, st.integers(0, (1 << 32) - 1))
def test_a_message_comes_back_as_it_was_sent(
    message: AnyMessage, name: str, recipient: str, incarnation: int, group_number: int, slot: int
) -> None:
    sender = Identity(name, incarnation, FOUNDING, group_number, slot)
    receiver = Identity(recipient, 7, FOUNDING, group_number, slot)
    for meant in (0, 7):
        envelope = decode(encode(sender, recipient, message, recipient_incarnation=meant), receiver)
        assert envelope.sender == sender
        assert type(envelope.message) is type(message)
        assert envelope.message == message


@given(MESSAGES)
def test_a_frame_adds_no_more_than_it_says(message: AnyMessage) -> None:
    carried = getattr(message, "batches", getattr(message, "entries", getattr(message, "data", b"")))
    blobs = [carried] if isinstance(carried, bytes) else [getattr(item, "data", item) for item in carried]
    overhead = len(encode(A._replace(name="n" * 63), "m" * 63, message)) - sum(map(len, blobs))
    if not isinstance(message, (SnapshotOffer, TransferRefused, Unknown)):
        assert overhead <= wire.FRAME_OVERHEAD_BYTES


def test_every_message_has_a_kind_and_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES.values()} == {*get_args(Message), *get_args(SessionMessage)}
    assert {kind.build for kind in wire._KINDS.values()} == {*get_args(Message), *get_args(SessionMessage)}


def test_the_format_is_that_of_yesterday(rewrite: bool) -> None:
    now = "".join(f"{name}: {sent(message).hex()}\n" for name, message in SAMPLES.items())
    if rewrite:
        GOLDEN.write_text(now)
    golden = GOLDEN.read_text()
    assert now == golden
    for line in golden.splitlines():
        name, _, frame = line.partition(": ")
        assert decode(bytes.fromhex(frame), B) == (A, SAMPLES[name])


def test_a_long_reason_is_cut_between_characters() -> None:
    envelope = decode(sent(Unknown(1, "ß" * 600)), B)
    assert envelope.message == Unknown(1, "ß" * (wire.TEXT_BYTES_MAX // 2))
    envelope = decode(sent(Unknown(1, "x" + "ß" * 600)), B)
    assert envelope.message == Unknown(1, "x" + "ß" * (wire.TEXT_BYTES_MAX // 2 - 1))


def test_a_field_out_of_range_is_refused_where_it_was_made() -> None:
    with pytest.raises(struct.error):
        sent(Heartbeat(-1, 0, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Who is who.


def test_a_fingerprint_is_of_names_not_of_their_order() -> None:
    assert fingerprint("orders", {"c": "tcp://1", "a": "tcp://2", "b": "tcp://3"}) == FOUNDING
    others = {fingerprint("order", "abc"), fingerprint("orders", "ab"), fingerprint("ordersa", "bc"), FOUNDING}
    assert len(others) == 4
    assert all(0 <= value < 1 << 64 for value in others)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *[("a", True), ("web-1.example:7400", True), ("n" * 63, True)],
        *[("", False), ("n" * 64, False), ("a b", False), ("a\n", False), ("ä", False), ("\x7f", False)],
    ],
)
def test_names(name: str, fits: bool) -> None:
    assert is_name(name) is fits


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (B, True),
        (B._replace(group_number=0), True),
        (B._replace(group_number=1), False),
        (B._replace(fingerprint=1), False),
        (B._replace(slot=1), False),
    ],
)
def test_trap_48_a_frame_of_another_cluster_is_dropped_before_its_body_is_read(other: Identity, same: bool) -> None:
    assert same_cluster(A, other) is same_cluster(other, A) is same
    frame = sent(SAMPLES["heartbeat"], recipient=other)
    if same:
        assert decode(frame, other).sender == A
    else:
        assert refused(frame, other) == "cluster"
        broken = sent(SAMPLES["unknown"])[:-3] + b"\xff\xff\xff"
        assert refused(summed_again(broken), other) == "cluster"


def test_a_frame_for_another_member_is_dropped() -> None:
    """Two members that swapped addresses: a heartbeat vouches for one follower's log (trap 17), and no other's."""
    assert refused(sent(SAMPLES["heartbeat"]), B._replace(name="c")) == "recipient"


def test_trap_46_a_frame_for_the_former_owner_of_a_name_is_dropped() -> None:
    frame = encode(A, "b", SAMPLES["heartbeat"], recipient_incarnation=B.incarnation)
    assert decode(frame, B).message == SAMPLES["heartbeat"]
    assert refused(frame, B._replace(incarnation=0x3333)) == "recipient"


@pytest.mark.parametrize("sender", [A._replace(name=""), A._replace(name="a b"), A._replace(incarnation=0)])
def test_a_sender_that_cannot_be_is_dropped(sender: Identity) -> None:
    assert refused(sent(SAMPLES["heartbeat"], sender)) == "sender"


def test_a_sender_of_non_ascii_name_is_dropped() -> None:
    frame = bytearray(sent(SAMPLES["heartbeat"]))
    frame[wire.HEADER_BYTES] = 0xFC
    assert refused(summed_again(frame)) == "sender"


# ---------------------------------------------------------------------------------------------------------------------
# What is not believed.


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_and_extension_is_refused(name: str) -> None:
    frame = sent(SAMPLES[name])
    for length in range(len(frame)):
        assert refused(frame[:length]) == "length"
    assert refused(frame + b"\x00") == "length"


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_is_refused(name: str) -> None:
    frame = sent(SAMPLES[name])
    reasons = set()
    for bit in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        reasons.add(refused(bytes(flipped)))
    assert {"magic", "version", "length", "checksum"} <= reasons <= {"magic", "version", "length", "checksum", "batch"}


@pytest.mark.parametrize("name", SAMPLES)
def test_wrong_bytes_under_a_right_checksum_never_raise_anything_else(name: str) -> None:
    """A sender with a bug, or with a grudge: any byte, any value, length and crc made to fit."""
    frame = sent(SAMPLES[name])
    kind = next(kind for kind in wire._KINDS.values() if kind.build is type(SAMPLES[name]))
    covered = wire.HEADER_BYTES + 2 + kind.fixed.size if kind.tail and kind.tail.own_crc else None
    for position in range(len(frame)):
        for value in (0x00, 0x01, 0x02, 0x7F, 0x80, 0xC1, 0xDD, 0xFF):
            changed = bytearray(frame)
            changed[position] = value
            believed_or_refused(summed_again(changed, covered))
            believed_or_refused(summed_again(changed[: max(position, 12)], covered))


def believed_or_refused(frame: bytes) -> None:
    """Either a BadFrame, or a message that is encoded to the same bytes again: nothing was ignored."""
    envelope = judged(frame)
    if isinstance(envelope, str):
        return
    (meant,) = struct.unpack_from("<Q", frame, 44)
    assert encode(envelope.sender, "b", envelope.message, recipient_incarnation=meant) == frame


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise: bytes) -> None:
    refused(noise)
    refused(sent(SAMPLES["probe"])[:8] + noise)


@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 255), st.binary(max_size=120))
def test_random_bodies_of_every_kind_never_raise_anything_else(name: str, kind: int, body: bytes) -> None:
    frame = bytearray(sent(SAMPLES[name])[: wire.HEADER_BYTES + 2] + body)
    frame[12] = kind
    believed_or_refused(summed_again(frame))
    frame[12] = 3
    believed_or_refused(summed_again(frame, wire.HEADER_BYTES + 2 + 32))


def test_an_unknown_kind_is_refused_by_that_name() -> None:
    for kind in {0, *range(len(wire._KINDS) + 1, 256)}:
        frame = bytearray(sent(SAMPLES["heartbeat"]))
        frame[12] = kind
        assert refused(summed_again(frame)) == "kind"


def test_a_flag_is_zero_or_one_and_the_reserved_byte_zero() -> None:
    frame = bytearray(sent(SAMPLES["vote response"]))
    frame[-1] = 2
    assert refused(summed_again(frame)) == "field"
    frame = bytearray(sent(SAMPLES["heartbeat"]))
    frame[15] = 1
    assert refused(summed_again(frame)) == "field"


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(wire.NUMBER_LIMIT, 1, 1),
        Heartbeat(1, wire.NUMBER_LIMIT, 1),
        ReadResponse(1, 1, (1 << 64) - 1),
        SnapshotOffer(2, 1, META),
        SnapshotOffer(5, 1, replace(META, index=wire.NUMBER_LIMIT)),
        SnapshotOffer(5, 1, replace(META, size=wire.NUMBER_LIMIT)),
        SnapshotOffer(5, 1, replace(META, time=wire.NUMBER_LIMIT)),
        SnapshotOffer(5, 1, replace(META, membership_index=91)),
        SnapshotOffer(5, 1, replace(META, membership=membership_of({"a b": "tcp://x"}))),
        SnapshotOffer(5, 1, replace(META, membership=Membership({"a": MemberRecord("tcp://x", -1)}))),
        SnapshotOffer(5, 1, replace(META, membership=Membership({}))),
        SnapshotOffer(
            5, 1, replace(META, membership=Membership({"b": MemberRecord("tcp://x"), "a": MemberRecord("tcp://y")}))
        ),
    ],
    ids=repr,
)
def test_a_field_out_of_range_is_refused(message: Message) -> None:
    assert refused(sent(message)) == "field"


def test_a_membership_is_bounded() -> None:
    members = {f"member-{number:05}": "tcp://10.0.0.1:7400" for number in range(1000)}
    assert refused(sent(SnapshotOffer(5, 1, replace(META, membership=membership_of(members))))) == "length"


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([batch(12, b"x")], "a gap after the previous entry"),
        ([batch(10, b"x")], "an entry again"),
        ([batch(11, b"x"), batch(13, b"y")], "a gap between batches"),
        ([batch(11, b"x", term=2)], "an older term than the previous entry's"),
        ([batch(11, b"x", term=4), batch(12, b"y", term=3)], "a falling term"),
        ([batch(11, b"x", term=6)], "a newer term than the leader's"),
        ([batch(11, b"x", time=9), batch(12, b"y", time=8)], "a falling time"),
        ([batch(11, b"x", time=wire.NUMBER_LIMIT)], "a time out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_batches_that_do_not_follow_each_other_are_refused(batches: list[Batch], why: str) -> None:
    assert refused(sent(Append(5, 10, 3, 9, 21, batches))) == "batch", why


def test_an_index_that_could_not_be_counted_on_from_is_refused() -> None:
    at_end = Append(5, wire.NUMBER_LIMIT - 2, 3, 0, 0, [batch(wire.NUMBER_LIMIT - 1, b"x", b"y")])
    assert refused(sent(at_end)) == "batch"


def test_a_batch_cut_at_a_batch_boundary_is_refused_though_the_rest_is_whole() -> None:
    frame = sent(SAMPLES["append"])
    assert refused(frame[: -len(batch(14, b"", term=5, kind=NOOP).data)]) == "length"


# ---------------------------------------------------------------------------------------------------------------------
# Bounded work.


def hostile() -> Iterator[tuple[str, bytes]]:
    """Frames of up to 64 KiB, made to cost as much as they can."""
    rng = random.Random(7)
    room = 64_000
    yield "noise", rng.randbytes(room)
    yield "the right beginning, then noise", sent(SAMPLES["append"])[:8] + rng.randbytes(room)
    empty = encode_entry(b"")
    yield "entries of nothing", sent(Propose(5, 1, 0, [empty] * (room // len(empty))))
    yield "one batch of nothing", sent(Append(5, 0, 0, 0, 0, [batch(1, *[b""] * (room // 4 - 10))]))
    yield "batches of nothing", sent(Append(5, 0, 0, 0, 0, [batch(index, b"") for index in range(1, room // 40)]))
    body = sent(SnapshotOffer(5, 1, META))[: wire.HEADER_BYTES + 2 + 8 + 80]
    yield "a deep membership", summed_again(body + b"\x92\x00" + b"\x91" * 16_000)
    yield "a wide membership", summed_again(body + b"\x92\x00\xdc\x3e\x80" + b"\x90" * 16_000)
    yield "a membership that claims 4 GiB", summed_again(body + b"\x92\x00\xdd\xff\xff\xff\xff" + b"\x90" * 100)


@pytest.mark.parametrize(("name", "frame"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_the_work_for_a_hostile_frame_is_bounded(name: str, frame: bytes) -> None:
    """Processor time, and the best of some runs: a busy machine must not fail this. Well-formed ones take most."""
    best = 1.0
    for _ in range(10):
        begun = time.thread_time()
        judged(frame)
        best = min(best, time.thread_time() - begun)
    assert best < 0.02, f"{name}: {best * 1000:.2f} ms"
