"""Messages to bytes and back: one frame for each message, checked to the last field before anybody acts on it.

What must not live here: sockets, queues, or any decision about a message that is well formed. Whether the sender is a
member, and the one it was, is the core's to judge; that it belongs to this group at all is judged here, first.

Layout, little endian::

    magic 3 | version 1 | crc32 4 | length 4 | kind 1 | sender's name length 1 | recipient's name length 1 | zero 1
    slot 4 | fingerprint 8 | group number 8 | sender's incarnation 8 | recipient's incarnation 8 | term 8
    sender's name | recipient's name | the fields of the message, fixed for each kind | its tail, if the kind has one

`length` is that of the whole frame. The crc covers everything but itself. Only an Append's batches are left out: each
carries its own crc, made once by the leader and checked once by each follower, so the bytes are not summed twice.

The recipient is named because ZeroMQ reconnects to whoever answers at an address (trap 48): a heartbeat meant for one
follower vouches for that follower's log only (trap 17), and must not be believed by another.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from coord.raft.batch import DamagedBatch, read_batch
from coord.raft.membership import ANY, NAME_BYTES_MAX, Membership, read_membership
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

MAGIC = b"crd"
VERSION = 1
_PREAMBLE = MAGIC + bytes([VERSION])
_PREAMBLE_CRC = zlib.crc32(_PREAMBLE)
_CRC = struct.Struct("<I")
_CRC_END = len(_PREAMBLE) + _CRC.size
_REST = struct.Struct("<IBBBBIQQQQQ")
HEADER_BYTES = _CRC_END + _REST.size
#: What a frame adds, at most, to the batches, entries or snapshot bytes it carries.
FRAME_OVERHEAD_BYTES = HEADER_BYTES + 2 * NAME_BYTES_MAX + 64
#: No frame that claims more is believed.
FRAME_BYTES_MAX = 128 << 20
#: A reason that was sent along; what is longer is cut.
TEXT_BYTES_MAX = 512
#: About a hundred members. Bounds what a hostile frame can make msgpack build.
MEMBERSHIP_BYTES_MAX = 16 << 10
#: Terms, indexes, rounds and times stay below this, so that one more still fits everywhere they are written.
NUMBER_LIMIT = 1 << 63

#: Why a frame was refused: every word `BadFrame.reason` can be.
REASONS = (
    "length",  # shorter, or longer, than it says
    "magic",  # not ours at all
    "version",  # ours, of a protocol this member does not speak
    "checksum",  # damaged on the way
    "kind",  # no message of this version
    "sender",  # not a possible name or incarnation
    "cluster",  # another group's
    "recipient",  # for another member of the group
    "batch",  # a damaged batch, or batches that do not follow each other
    "field",  # a field out of its range, or not as `encode` writes it
)


class BadFrame(ValueError):
    """These bytes are no message for this member. `reason` is one of REASONS, for counting; the text says more."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Identity(NamedTuple):
    """Who a member is. The cluster id is `fingerprint` and `group_number` side by side: 128 bits."""

    name: str
    #: Random, minted when the data directory was formatted; never 0.
    incarnation: int
    #: 64 bits, the same for every member of the group from its founding on; see `fingerprint`.
    fingerprint: int
    #: Random, chosen by the group's first leader; 0 while this member has not yet learned it.
    group_number: int = 0
    #: Which of several groups in one process; 0 while a process has only one.
    slot: int = 0


class Envelope(NamedTuple):
    """What `decode` found."""

    sender: Identity
    message: AnyMessage


def fingerprint(group: str, names: Collection[str]) -> int:
    """64 bits of the group's name and its founding members' names. Addresses are left out: they may change."""
    parts = [part.encode() for part in (group, *sorted(names))]
    framed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return int.from_bytes(hashlib.blake2b(framed, digest_size=8, person=b"coord group").digest(), "little")


def is_name(name: str) -> bool:
    """Whether a member may be called so: 1 to 63 visible ASCII characters, no space."""
    return name.isascii() and name.isprintable() and " " not in name and 0 < len(name) <= NAME_BYTES_MAX


def same_cluster(one: Identity, other: Identity) -> bool:
    """Whether both are of one group. A group number not yet known fits any (traps 47, 48)."""
    return (
        one.fingerprint == other.fingerprint
        and one.slot == other.slot
        and (one.group_number == other.group_number or not one.group_number or not other.group_number)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tails: what follows the fixed fields of some kinds. Writers return the pieces to join; readers are given the frame,
# the tail's offset and the fields read so far, and raise BadFrame or ValueError for anything `encode` does not write.


class _Tail:
    """The last field of a message, of variable length. This one is plain bytes."""

    #: Whether the tail's bytes carry their own crc.
    own_crc = False

    def write(self, value: Any) -> list[bytes]:
        return [value]

    def read(self, frame: bytes, offset: int, term: int, fixed: tuple[Any, ...]) -> Any:
        return frame[offset:]


class _Text(_Tail):
    def write(self, value: str) -> list[bytes]:
        encoded = value.encode(errors="replace")
        if len(encoded) > TEXT_BYTES_MAX:
            encoded = encoded[:TEXT_BYTES_MAX].decode(errors="ignore").encode()
        return [encoded]

    def read(self, frame: bytes, offset: int, term: int, fixed: tuple[Any, ...]) -> str:
        if len(frame) - offset > TEXT_BYTES_MAX:
            raise BadFrame("length", f"a text of {len(frame) - offset} bytes")
        return frame[offset:].decode()


class _Batches(_Tail):
    own_crc = True

    def write(self, value: Any) -> list[bytes]:
        return [batch.data for batch in value]

    def read(self, frame: bytes, offset: int, term: int, fixed: tuple[Any, ...]) -> Any:
        last, last_term, last_time = fixed[0], fixed[1], 0
        view, end, batches = memoryview(frame), len(frame), []
        while offset < end:
            try:
                batch = read_batch(view, offset)
            except DamagedBatch as error:
                raise BadFrame("batch", str(error)) from error
            if batch.first != last + 1 or not last_term <= batch.term <= term or batch.time < last_time:
                raise BadFrame("batch", f"{batch!r} of time {batch.time} after index {last}, term {last_term}")
            if batch.last >= NUMBER_LIMIT or batch.time >= NUMBER_LIMIT:
                raise BadFrame("batch", f"{batch!r} of time {batch.time} is out of range")
            last, last_term, last_time = batch.last, batch.term, batch.time
            offset += len(batch.data)
            batches.append(batch)
        return batches


class _Entries(_Tail):
    def write(self, value: list[bytes]) -> list[bytes]:
        return value

    def read(self, frame: bytes, offset: int, term: int, fixed: tuple[Any, ...]) -> list[bytes]:
        end, unpack_from, entries = len(frame), _CRC.unpack_from, []
        while offset < end:
            stop = offset + 4 + unpack_from(frame, offset)[0] if offset + 4 <= end else end + 1
            if stop > end:
                raise BadFrame("field", "entries run past the end of the frame")
            entries.append(frame[offset:stop])
            offset = stop
        return entries


class _Meta(_Tail):
    """Index, term, time, membership index, size, state hash | sha256 | the membership."""

    _FIXED = struct.Struct("<QQQQQQ32s")

    def write(self, value: SnapshotMeta) -> list[bytes]:
        numbers = (value.index, value.term, value.time, value.membership_index, value.size, value.state_hash)
        return [self._FIXED.pack(*numbers, value.sha256), value.membership.encode()]

    def read(self, frame: bytes, offset: int, term: int, fixed: tuple[Any, ...]) -> SnapshotMeta:
        if not self._FIXED.size < len(frame) - offset <= self._FIXED.size + MEMBERSHIP_BYTES_MAX:
            raise BadFrame("length", f"a snapshot's description of {len(frame) - offset} bytes")
        index, made_in, time, membership_index, size, state_hash, sha256 = self._FIXED.unpack_from(frame, offset)
        if max(index, made_in, time, size) >= NUMBER_LIMIT or made_in > term or not 0 <= membership_index <= index:
            raise BadFrame("field", f"a snapshot at index {index}, term {made_in}, membership of {membership_index}")
        membership = _read_membership(frame[offset + self._FIXED.size :])
        return SnapshotMeta(index, made_in, time, membership, membership_index, size, sha256, state_hash)


def _read_membership(encoded: bytes) -> Membership:
    membership = read_membership(encoded)
    # Two rows of one name, or another order, would be equal to no other member's copy.
    ordered = list(membership.members) == sorted(membership.members)
    if not all(map(is_name, membership.members)) or not ordered or membership.encode() != encoded:
        raise BadFrame("field", f"a membership that is not as version {VERSION} writes it: {membership!r}")
    return membership


# ---------------------------------------------------------------------------------------------------------------------
# Kinds. A message's fields are, in order: term (in the header), the fixed ones, and the tail if there is one.


@dataclass(slots=True, frozen=True)
class _Kind:
    number: int
    build: Callable[..., AnyMessage]
    #: All of the message's fields, as one tuple.
    values: Callable[[Any], tuple[Any, ...]]
    fixed: struct.Struct
    #: Those of the fixed fields that are numbers below NUMBER_LIMIT.
    numbers: Callable[[tuple[Any, ...]], tuple[int, ...]]
    tail: _Tail | None


def _kind(number: int, message: type[Any], formats: str, tail: _Tail | None = None) -> _Kind:
    """`formats` has one letter for each fixed field: N, a number below NUMBER_LIMIT; others as in `struct`."""
    names = [field.name for field in fields(message)]
    assert len(names) == 1 + len(formats) + (tail is not None), message
    limited = [place for place, letter in enumerate(formats) if letter == "N"] or [0]
    numbers = itemgetter(*limited, limited[0])
    return _Kind(number, message, attrgetter(*names), struct.Struct("<" + formats.replace("N", "Q")), numbers, tail)


#: Numbers are for ever: a new message takes a new one, a changed message a new VERSION.
_KINDS: dict[int, _Kind] = {
    kind.number: kind
    for kind in (
        _kind(1, VoteRequest, "NN??i"),
        _kind(2, VoteResponse, "??"),
        _kind(3, Append, "NNNN", _Batches()),
        _kind(4, AppendResponse, "?NNNN?"),
        _kind(5, Heartbeat, "NN"),
        _kind(6, HeartbeatResponse, "NN?"),
        _kind(7, ReadRequest, "N"),
        _kind(8, ReadResponse, "NN"),
        _kind(9, Propose, "QN", _Entries()),
        _kind(10, ProposeResponse, "QN?"),
        _kind(11, TimeoutNow, "N"),
        _kind(12, TransferRefused, "", _Text()),
        _kind(13, SnapshotOffer, "N", _Meta()),
        _kind(14, SnapshotPull, "NN"),
        _kind(15, SnapshotChunk, "NN", _Tail()),
        _kind(16, Unknown, "", _Text()),
        _kind(17, Keepalive, "QN"),
        _kind(18, KeepaliveResponse, "QNN?"),
    )
}
_KIND_OF: dict[Callable[..., AnyMessage], _Kind] = {kind.build: kind for kind in _KINDS.values()}


# ---------------------------------------------------------------------------------------------------------------------
# Frames.


def encode(sender: Identity, recipient: str, message: AnyMessage, *, recipient_incarnation: int = ANY) -> bytes:
    """Return the frame that carries `message` from `sender` to the member named `recipient`.

    With `recipient_incarnation`, only that one is meant: a member that lost its disk and kept its name drops the frame.
    A batch's bytes are copied once, into the frame. A field out of range is a bug of the caller: struct.error.
    """
    kind = _KIND_OF[type(message)]
    term, *values = kind.values(message)
    tail = kind.tail.write(values.pop()) if kind.tail else []
    names = f"{sender.name}{recipient}".encode("ascii")
    fixed = kind.fixed.pack(*values)
    length = HEADER_BYTES + len(names) + len(fixed) + sum(map(len, tail))
    rest = _REST.pack(
        length,
        kind.number,
        len(sender.name),
        len(recipient),
        0,
        sender.slot,
        sender.fingerprint,
        sender.group_number,
        sender.incarnation,
        recipient_incarnation,
        term,
    )
    summed = b"".join((rest, names, fixed))
    crc = zlib.crc32(summed, _PREAMBLE_CRC)
    if kind.tail and not kind.tail.own_crc:
        tail = [b"".join(tail)]
        crc = zlib.crc32(tail[0], crc)
    return b"".join((_PREAMBLE, _CRC.pack(crc), summed, *tail))


def decode(frame: bytes, receiver: Identity) -> Envelope:
    """Return who sent `frame`, and what; BadFrame for anything that is not whole, in range, and meant for `receiver`.

    Never raises anything else, whatever the bytes, and does work in proportion to their number. The message shares
    nothing with `frame`.
    """
    if not HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX:
        raise BadFrame("length", f"{len(frame)} bytes")
    if frame[: _CRC_END - _CRC.size] != _PREAMBLE:
        _refuse_preamble(frame)
    (
        length,
        number,
        sender_length,
        recipient_length,
        zero,
        slot,
        founding,
        group_number,
        incarnation,
        recipient_incarnation,
        term,
    ) = _REST.unpack_from(frame, _CRC_END)
    if length != len(frame):
        raise BadFrame("length", f"{len(frame)} bytes that say they are {length}")
    kind = _KINDS.get(number)
    body = HEADER_BYTES + sender_length + recipient_length
    _check_crc(frame, kind, body)
    if kind is None:
        raise BadFrame("kind", f"no message {number} in version {VERSION}")
    names = frame[HEADER_BYTES:body].decode("latin-1")
    sender = Identity(names[:sender_length], incarnation, founding, group_number, slot)
    _check_parties(sender, names[sender_length:], recipient_incarnation, receiver)
    if zero or term >= NUMBER_LIMIT:
        raise BadFrame("field", f"term {term}, reserved byte {zero}")
    return Envelope(sender, _read_message(frame, kind, body, term))


def _refuse_preamble(frame: bytes) -> None:
    if frame[: len(MAGIC)] != MAGIC:
        raise BadFrame("magic", f"starts with {frame[: len(MAGIC)]!r}")
    raise BadFrame("version", f"protocol version {frame[len(MAGIC)]}; this member speaks {VERSION}")


def _check_crc(frame: bytes, kind: _Kind | None, body: int) -> None:
    (crc,) = _CRC.unpack_from(frame, _CRC_END - _CRC.size)
    end = len(frame)
    if kind is not None:
        fixed_end = body + kind.fixed.size
        if end < fixed_end or (kind.tail is None and end > fixed_end):
            raise BadFrame("length", f"{end} bytes for message {kind.number}")
        if kind.tail is not None and kind.tail.own_crc:
            end = fixed_end
    if zlib.crc32(memoryview(frame)[_CRC_END:end], _PREAMBLE_CRC) != crc:
        raise BadFrame("checksum", "does not match")


def _check_parties(sender: Identity, recipient: str, recipient_incarnation: int, receiver: Identity) -> None:
    """Before anything in the body is looked at: is this frame of our group, and for us?"""
    if not is_name(sender.name) or sender.incarnation == ANY:
        raise BadFrame("sender", f"{sender.name!r}, incarnation {sender.incarnation}")
    if not same_cluster(sender, receiver):
        raise BadFrame("cluster", f"{sender!r} is not of the group of {receiver!r}")
    if recipient != receiver.name or recipient_incarnation not in (ANY, receiver.incarnation):
        raise BadFrame("recipient", f"for {recipient!r}, incarnation {recipient_incarnation}; this is {receiver!r}")


def _read_message(frame: bytes, kind: _Kind, body: int, term: int) -> AnyMessage:
    fixed = kind.fixed.unpack_from(frame, body)
    tail_start = body + kind.fixed.size
    # A flag has two encodings only: struct takes any other byte for True.
    if fixed and (max(kind.numbers(fixed)) >= NUMBER_LIMIT or kind.fixed.pack(*fixed) != frame[body:tail_start]):
        raise BadFrame("field", f"{kind.build.__name__}{fixed}")
    if kind.tail is None:
        return kind.build(term, *fixed)
    try:
        return kind.build(term, *fixed, kind.tail.read(frame, tail_start, term, fixed))
    except BadFrame:
        raise
    except ValueError as error:
        raise BadFrame("field", str(error)) from error
