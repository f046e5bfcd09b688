"""The format of the write-ahead log: segment headers, and the records inside a segment.

One record is one `Persist`: term, vote, truncation and batches become durable together or not at all (traps 3 to 5).
What must not live here: files, recovery's decisions (`replay`), or the writer (`wal`).

Segment header, little endian::

    magic 8 | format version 2 | algorithm 1 | zero 1 | seed 4 | number 8 | first sequence 8 | through 8 | crc32 4

`seed` is random for each segment, begins every record and starts every checksum, so that a record of another segment
or from a recycled block cannot pass (trap 41). `through`: the records up to this sequence were on disk before the
segment got its name.

Record::

    seed 4 | crc32 4 | previous crc 4 | body length 4 | kind 1 | parts 1 | zero 2 | batches 4 | sequence 8 | durable 8
    | commit 8 | body

The crc covers everything after itself. `durable` is the sequence up to which records were on disk when this one was
written: what tells a torn tail from corruption (trap 40). The body holds the parts that `parts` names, in this order::

    HARD_STATE: term 8 | vote length 2 | vote        POSITION: index 8 | term 8        TRUNCATE: index 8
    then the batches, each as `coord.raft.batch` made it
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from coord.raft.batch import Batch, read_batch
from coord.raft.messages import HardState, Persist

MAGIC = b"coordwal"
FORMAT_VERSION = 1
CRC32 = 1

#: Kinds of records. PERSIST: what the core asked for. CHECKPOINT: begins every segment; the hard state, and the log's
#: last index and term, as they stood before it, so that all older segments can be dropped. MARK: nothing but `durable`.
PERSIST, CHECKPOINT, MARK = 1, 2, 3
KIND_NAMES = {PERSIST: "persist", CHECKPOINT: "checkpoint", MARK: "mark"}

#: Parts of a body. POSITION: in a CHECKPOINT the end of the log so far; in a PERSIST, forget the log and begin anew
#: after this index and term, those of a snapshot.
HARD_STATE, POSITION, TRUNCATE = 1, 2, 4

_SEGMENT = struct.Struct("<8sHBBIQQQ")
_CRC = struct.Struct("<I")
_SEED_AND_CRC = struct.Struct("<II")
_REST = struct.Struct("<IIBBHIQQQ")
_TERM_AND_LENGTH = struct.Struct("<QH")
_INDEX_AND_TERM = struct.Struct("<QQ")
_INDEX = struct.Struct("<Q")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size
RECORD_HEADER_BYTES = _SEED_AND_CRC.size + _REST.size

Buffer = bytes | memoryview


class DamagedRecord(ValueError):
    """These bytes are not a whole, undamaged record or segment header."""


class SegmentHeader:
    __slots__ = ("first_sequence", "number", "seed", "through")

    def __init__(self, number: int, seed: int, first_sequence: int, through: int) -> None:
        assert 0 < seed < 1 << 32, "a zero seed would make fresh zeros look like the start of a record"
        self.number = number
        self.seed = seed
        self.first_sequence = first_sequence
        self.through = through

    def encode(self) -> bytes:
        fields = (self.seed, self.number, self.first_sequence, self.through)
        header = _SEGMENT.pack(MAGIC, FORMAT_VERSION, CRC32, 0, *fields)
        return header + _CRC.pack(zlib.crc32(header))


def read_segment_header(data: bytes) -> SegmentHeader:
    if len(data) < SEGMENT_HEADER_BYTES:
        raise DamagedRecord(f"the segment ends after {len(data)} bytes, inside its header")
    magic, version, algorithm, _, seed, number, first_sequence, through = _SEGMENT.unpack_from(data)
    if magic != MAGIC:
        raise DamagedRecord("the segment does not begin as one")
    if _CRC.unpack_from(data, _SEGMENT.size)[0] != zlib.crc32(data[: _SEGMENT.size]):
        raise DamagedRecord("the segment header's checksum does not match")
    if version != FORMAT_VERSION or algorithm != CRC32 or not seed or not 0 < first_sequence <= through:
        raise DamagedRecord(f"segment format {version} with checksum {algorithm} is not known to this version of coord")
    return SegmentHeader(number, seed, first_sequence, through)


class Record:
    """One record as read. `data[start:end]` is the whole of it, `data[body:end]` its body."""

    __slots__ = ("batch_count", "commit", "crc", "data", "durable", "end", "kind", "parts", "sequence", "start")

    def __init__(self, data: bytes, start: int, header: tuple[int, ...], crc: int) -> None:
        _, length, self.kind, self.parts, _, self.batch_count, self.sequence, self.durable, self.commit = header
        self.data = data
        self.start = start
        self.end = start + RECORD_HEADER_BYTES + length
        self.crc = crc

    @property
    def body(self) -> memoryview:
        return memoryview(self.data)[self.start + RECORD_HEADER_BYTES : self.end]


class Contents:
    """What a record says."""

    __slots__ = ("batches", "hard_state", "position", "truncate_from")

    def __init__(self) -> None:
        self.hard_state: HardState | None = None
        self.position: tuple[int, int] | None = None
        self.truncate_from: int | None = None
        self.batches: list[Batch] = []


def read_record(data: bytes, start: int, seed: int, previous: int | None) -> Record:
    """Return the record at `start`, its checksum and its place in the chain verified; DamagedRecord if there is none.

    `previous` is the crc of the record before it; None: not known, any will do. Nothing is allocated for a length
    before it is known to lie inside the segment (trap 42).
    """
    if len(data) - start < RECORD_HEADER_BYTES:
        raise DamagedRecord("no room for another record")
    found_seed, crc = _SEED_AND_CRC.unpack_from(data, start)
    if found_seed != seed:
        raise DamagedRecord("no record begins here")
    header = _REST.unpack_from(data, start + _SEED_AND_CRC.size)
    end = start + RECORD_HEADER_BYTES + header[1]
    if end > len(data):
        raise DamagedRecord(f"a record claims {header[1]} bytes, beyond the end of its segment")
    if zlib.crc32(memoryview(data)[start + _SEED_AND_CRC.size : end], seed) != crc:
        raise DamagedRecord("a record's checksum does not match")
    if previous is not None and header[0] != previous:
        raise DamagedRecord("a record does not follow the one before it")
    return Record(data, start, header, crc)


def read_contents(record: Record) -> Contents:
    """Decode the body; ValueError (DamagedBatch among them) if a whole record says nonsense: a bug wrote it."""
    contents = Contents()
    data, offset, parts = record.data, record.start + RECORD_HEADER_BYTES, record.parts
    try:
        if parts & HARD_STATE:
            term, length = _TERM_AND_LENGTH.unpack_from(data, offset)
            offset += _TERM_AND_LENGTH.size
            contents.hard_state = HardState(term, data[offset : offset + length].decode())
            offset += length
        if parts & POSITION:
            index, term = _INDEX_AND_TERM.unpack_from(data, offset)
            contents.position = (index, term)
            offset += _INDEX_AND_TERM.size
        if parts & TRUNCATE:
            (contents.truncate_from,) = _INDEX.unpack_from(data, offset)
            offset += _INDEX.size
    except struct.error as error:
        raise DamagedRecord(f"a record is shorter than its parts: {error}") from error
    for _ in range(record.batch_count):
        batch = read_batch(data, offset)
        contents.batches.append(batch)
        offset += len(batch.data)
    if offset != record.end or record.kind not in KIND_NAMES or parts >= TRUNCATE << 1:
        raise DamagedRecord(f"a record of kind {record.kind} with parts {parts} does not fill its {record.end} bytes")
    return contents


def find_records(data: bytes, start: int, seed: int) -> Iterator[Record]:
    """Yield every whole record that begins at or after `start`, wherever: what damage may have left behind it."""
    needle = _CRC.pack(seed)
    at = data.find(needle, start)
    while at >= 0:
        try:
            record = read_record(data, at, seed, None)
        except DamagedRecord:
            at = data.find(needle, at + 1)
        else:
            yield record
            at = data.find(needle, record.end)


def encode_record(
    seed: int,
    previous: int,
    kind: int,
    parts: int,
    batch_count: int,
    numbers: tuple[int, int, int],
    body: Sequence[Buffer],
) -> tuple[bytes, int]:
    """Return the header of a record with this body, and its crc. `numbers`: sequence, durable, commit."""
    length = 0
    for piece in body:
        length += len(piece)
    rest = _REST.pack(previous, length, kind, parts, 0, batch_count, *numbers)
    crc = zlib.crc32(rest, seed)
    for piece in body:
        crc = zlib.crc32(piece, crc)
    return _SEED_AND_CRC.pack(seed, crc) + rest, crc


def encode_persist(persist: Persist) -> tuple[int, list[Buffer]]:
    """Return the parts and the body of `persist`; the batches' bytes as they are."""
    reset = persist.reset
    position = None if reset is None else (reset.index, reset.term)
    parts, fixed = encode_parts(persist.hard_state, position, persist.truncate_from)
    body: list[Buffer] = [fixed] if fixed else []
    for batch in persist.batches:
        body.append(batch.data)
    return parts, body


def encode_parts(
    hard_state: HardState | None, position: tuple[int, int] | None, truncate_from: int | None
) -> tuple[int, bytes]:
    parts, fixed = 0, b""
    if hard_state is not None:
        vote = hard_state.vote.encode()
        parts |= HARD_STATE
        fixed = _TERM_AND_LENGTH.pack(hard_state.term, len(vote)) + vote
    if position is not None:
        parts |= POSITION
        fixed += _INDEX_AND_TERM.pack(*position)
    if truncate_from is not None:
        parts |= TRUNCATE
        fixed += _INDEX.pack(truncate_from)
    return parts, fixed
