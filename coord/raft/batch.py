"""The batch: a run of entries of one term, encoded once.

The batch is the unit of the log, of replication and of the disk. A leader makes it from what its callers encoded;
the same bytes then go to its own disk, to every follower, to their disks, and to a follower that catches up later.
Nothing between proposal and apply looks at a single entry.

What must not live here: what an entry means (`coord.machine`), or where batches are kept (`coord.raft.log`).

Layout, little endian::

    crc32 4 | body length 4 | kind 1 | zero 3 | count 4 | term 8 | first index 8 | cluster time 8 | body

The crc covers everything after itself. The body is `count` times: length 4 | payload.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

#: What the entries of a batch are. All entries of one batch are of one kind.
COMMANDS, NOOP, MEMBERSHIP = 0, 1, 2
KINDS = (COMMANDS, NOOP, MEMBERSHIP)

_HEADER = struct.Struct("<IIB3xIQQQ")
_LENGTH = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
ENTRY_OVERHEAD_BYTES = _LENGTH.size
#: No header that claims more is believed, whatever its crc says.
BATCH_BYTES_MAX = 64 << 20


class DamagedBatch(ValueError):
    """These bytes are not a whole, undamaged batch."""


def encode_entry(payload: bytes) -> bytes:
    """Return `payload` as it stands in a batch's body."""
    return _LENGTH.pack(len(payload)) + payload


class Batch:
    """A run of `count` entries, indexes `first` to `last`, of one term; never changed once made.

    Invariant: an (index, term) belongs to exactly one batch, everywhere. A leader never re-cuts what it has appended,
    so logs always share whole batches, and truncation always falls between two.
    """

    __slots__ = ("data", "first", "kind", "last", "term", "time")

    def __init__(self, kind: int, term: int, first: int, count: int, time: int, data: bytes) -> None:
        assert count > 0
        self.kind = kind
        self.term = term
        self.first = first
        self.last = first + count - 1
        #: Cluster time in nanoseconds at which the leader made it; never falls along the log.
        self.time = time
        #: The whole encoding, header included.
        self.data = data

    def __repr__(self) -> str:
        return f"Batch({self.first}-{self.last} t{self.term} kind{self.kind} {len(self.data)}B)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def payloads(self) -> Iterator[bytes]:
        """Yield each entry's payload, in order."""
        data, offset = self.data, HEADER_BYTES
        for _ in range(self.count):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += ENTRY_OVERHEAD_BYTES
            yield data[offset : offset + length]
            offset += length


def make_batch(kind: int, term: int, first: int, time: int, entries: Iterable[bytes], count: int) -> Batch:
    """Join `count` entries, each already passed through `encode_entry`, into a batch."""
    body = b"".join(entries)
    rest = _HEADER.pack(0, len(body), kind, count, term, first, time)[4:]
    crc = zlib.crc32(body, zlib.crc32(rest))
    return Batch(kind, term, first, count, time, _LENGTH.pack(crc) + rest + body)


def read_batch(buffer: bytes | memoryview, offset: int = 0) -> Batch:
    """Return the batch that starts at `offset`, checked; DamagedBatch if there is none. It copies its bytes."""
    view = memoryview(buffer)
    if len(view) - offset < HEADER_BYTES:
        raise DamagedBatch("shorter than a batch header")
    crc, length, kind, count, term, first, time = _HEADER.unpack_from(view, offset)
    end = offset + HEADER_BYTES + length
    if length > BATCH_BYTES_MAX or end > len(view):
        raise DamagedBatch(f"header claims a body of {length} bytes")
    data = bytes(view[offset:end])
    if zlib.crc32(memoryview(data)[4:]) != crc:
        raise DamagedBatch("checksum does not match")
    if kind not in KINDS or not 0 < count <= length // ENTRY_OVERHEAD_BYTES or first < 1:
        raise DamagedBatch(f"kind {kind}, {count} entries from index {first} in {length} bytes")
    _check_lengths(data, count)
    return Batch(kind, term, first, count, time, data)


def _check_lengths(data: bytes, count: int) -> None:
    """A sender with a bug, not a bad disk, makes these: the crc is right, the lengths inside are not."""
    offset, end, unpack_from = HEADER_BYTES, len(data), _LENGTH.unpack_from
    for _ in range(count):
        if offset + ENTRY_OVERHEAD_BYTES > end:
            raise DamagedBatch("entries run past the end of the body")
        offset += ENTRY_OVERHEAD_BYTES + unpack_from(data, offset)[0]
    if offset != end:
        raise DamagedBatch("entries do not fill the body")
