"""Frames for the properties: messages with every field at its limits, and all that can happen to their bytes."""

from __future__ import annotations

from hypothesis import strategies as st

from coord import wire
from coord.raft.batch import COMMANDS, KINDS, Batch, encode_entry, make_batch
from coord.raft.membership import MemberRecord, Membership
from coord.raft.messages import (
    AnyMessage,
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Keepalive,
    KeepaliveResponse,
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
from test_wire import summed_again

LAST = wire.NUMBER_LIMIT - 1
number = st.sampled_from([0, 1, 255, 256, (1 << 32) - 1, 1 << 32, LAST - 1, LAST])
unsigned = number | st.just((1 << 64) - 1)
flag = st.booleans()
text = st.sampled_from(["", "\0", "x" * wire.TEXT_BYTES_MAX, "ß" * (wire.TEXT_BYTES_MAX // 2), "\U0010ffff" * 128])
blob = st.sampled_from([b"", b"\0", b"\xff", bytes(range(256)), b"x" * 70_000])
name = st.sampled_from(["!", "~", "b", "a-b.c:7400", "n" * 63])


@st.composite
def appends(draw: st.DrawFn) -> Append:
    """Many batches or none, up to the very last index, term and time there may be."""
    counts = draw(st.sampled_from([[], [1], [3, 1], [1] * 40, [200]]))
    room = LAST - sum(counts)
    prev_index = draw(st.sampled_from([0, 1, 1 << 32, room]))
    prev_term, in_term = draw(st.sampled_from([(0, 0), (0, LAST), (7, 7), (LAST, LAST)]))
    time = draw(number)
    batches: list[Batch] = []
    first = prev_index + 1
    for count in counts:
        payload = encode_entry(draw(st.sampled_from([b"", b"x", b"\0" * 9])))
        batches.append(make_batch(draw(st.sampled_from(KINDS)), in_term, first, time, [payload] * count, count))
        first += count
    return Append(max(in_term, draw(number)), prev_index, prev_term, draw(number), draw(number), batches)


@st.composite
def offers(draw: st.DrawFn) -> SnapshotOffer:
    record = st.builds(MemberRecord, st.sampled_from(["", "tcp://[::1]:7400", "é" * 100]), unsigned, flag)
    members = draw(st.dictionaries(name, record, max_size=5))
    members[draw(name)] = MemberRecord("ipc:///x", draw(unsigned))
    membership = Membership(dict(sorted(members.items())), draw(unsigned))
    index, made_in = draw(number), draw(number)
    since = draw(st.sampled_from([0, index]))
    meta = SnapshotMeta(index, made_in, draw(number), membership, since, draw(number), draw(digest), draw(unsigned))
    return SnapshotOffer(draw(st.sampled_from([made_in, LAST])), draw(number), meta)


digest = st.sampled_from([bytes(32), b"\xff" * 32, bytes(range(32))])
entries = st.lists(blob.map(encode_entry), max_size=3) | st.just([encode_entry(b"")] * 500)

#: Every kind of message, each field at or near a limit.
EXTREMES: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(VoteRequest, number, number, number, flag, flag, st.sampled_from([-(1 << 31), -1, 0, (1 << 31) - 1])),
    st.builds(VoteResponse, number, flag, flag),
    appends(),
    st.builds(AppendResponse, number, flag, number, number, number, number, flag),
    st.builds(Heartbeat, number, number, number),
    st.builds(HeartbeatResponse, number, number, number, flag),
    st.builds(ReadRequest, number, number),
    st.builds(ReadResponse, number, number, number),
    st.builds(Propose, number, unsigned, number, entries),
    st.builds(ProposeResponse, number, unsigned, number, flag),
    st.builds(TimeoutNow, number, number),
    st.builds(TransferRefused, number, text),
    offers(),
    st.builds(SnapshotPull, number, number, number),
    st.builds(SnapshotChunk, number, number, number, blob),
    st.builds(Unknown, number, text),
    st.builds(Keepalive, number, unsigned, number),
    st.builds(KeepaliveResponse, number, unsigned, number, number, flag),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Noise, or one whole frame with something done to it, or two cut and put together."""
    what = draw(st.sampled_from(["noise", "cut", "flip", "splice", "insert", "delete", "forge", "begin"]))
    if what == "noise":
        return draw(st.binary(max_size=200))
    frame = draw(whole)
    at = draw(st.integers(0, len(frame) - 1))
    if what == "cut":
        return frame[:at]
    if what == "begin":
        return frame[: min(at, wire.HEADER_BYTES)] + draw(st.binary(max_size=120))
    if what == "splice":
        other = draw(whole)
        same = draw(flag)
        return frame[:at] + other[at if same else draw(st.integers(0, len(other))) :]
    changed = bytearray(frame)
    if what == "flip":
        for place in draw(st.lists(st.integers(0, 8 * len(frame) - 1), min_size=1, max_size=6, unique=True)):
            changed[place // 8] ^= 1 << place % 8
    elif what == "insert":
        changed[at:at] = draw(st.binary(min_size=1, max_size=20))
    elif what == "delete":
        del changed[at : at + draw(st.integers(1, 20))]
    else:
        return draw(forged(frame))
    return bytes(changed)


@st.composite
def forged(draw: st.DrawFn, frame: bytes) -> bytes:
    """A sender with a grudge: wrong inside, length and checksum made to fit."""
    changed = bytearray(frame)
    body = wire.HEADER_BYTES + frame[13] + frame[14]
    # Kind, lengths and what is reserved; the fixed fields; anywhere.
    ranges = [(12, 16), (body, body + 34), (12, len(frame))]
    low, high = draw(st.sampled_from(ranges))
    at = min(draw(st.integers(low, high - 1)), len(frame) - 1)
    new = bytes(draw(st.lists(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xC1, 0xFF]), min_size=1, max_size=3)))
    if draw(st.integers(0, 3)):
        changed[at : at + len(new)] = new
    else:
        changed[at : at + draw(st.integers(0, 4))] = new
    batches_are_summed_alone = frame[12] == 3
    covered = body + 32 if batches_are_summed_alone else None
    return summed_again(changed, covered)


def noop_batch(first: int, term: int, payload: bytes) -> Batch:
    """A batch with one entry."""
    return make_batch(COMMANDS, term, first, first * 1000, [encode_entry(payload)], 1)
