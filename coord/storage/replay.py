"""Reading the write-ahead log back: the state its records describe, and what to make of damage. Changes nothing.

Shared by recovery and by `coord wal verify`, so that both see the same. What must not live here: writing (`wal`), or
snapshots (`snapshots`; `disk` puts the two together).

Damage is judged by what was known to be on disk (trap 40). Nothing was promised about a record beyond that mark: it
is a torn tail, and is cut. A record at or below it may carry a vote or an acknowledged entry: that is corruption, and
it is reported, never cut. What cannot be told apart is rot inside the very last records before a crash, written
before any later record could say that they were on disk: they read as torn.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from coord.raft.batch import Batch
from coord.raft.messages import HardState
from coord.storage.files import Files
from coord.storage.records import (
    CHECKPOINT,
    SEGMENT_HEADER_BYTES,
    Contents,
    DamagedRecord,
    Record,
    SegmentHeader,
    find_records,
    read_contents,
    read_record,
    read_segment_header,
)

SEGMENT_PREFIX = "wal-"


def segment_name(number: int) -> str:
    return f"{SEGMENT_PREFIX}{number:016x}"


def is_segment_name(name: str) -> bool:
    digits = name.removeprefix(SEGMENT_PREFIX)
    return name.startswith(SEGMENT_PREFIX) and len(digits) == 16 and set(digits) <= set("0123456789abcdef")


class Violation(ValueError):
    """A whole record that cannot follow what came before it: a bug wrote it, or records are missing."""


class Replay:
    """What the records so far add up to."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        #: Index and term just before the first batch. Term 0: not known, or nothing is there.
        self.base = (0, 0)
        #: Consecutive; terms never fall.
        self.batches: list[Batch] = []
        self.commit = 0
        self._started = False

    @property
    def last(self) -> tuple[int, int]:
        """Index and term of the last entry."""
        return (self.batches[-1].last, self.batches[-1].term) if self.batches else self.base

    def term_at(self, index: int) -> int | None:
        """The term of entry `index`, or None where the log does not know."""
        if index == self.base[0]:
            return self.base[1]
        at = bisect_right(self.batches, index, key=lambda batch: batch.first) - 1
        return self.batches[at].term if at >= 0 and index <= self.batches[at].last else None

    def apply(self, record: Record, contents: Contents) -> None:
        """Take one more record; Violation if it cannot be the next."""
        if record.kind == CHECKPOINT:
            self._apply_checkpoint(contents)
        else:
            self._apply_persist(contents)
        # Trap 43: one stream, so a commit index is never on disk ahead of the entries it speaks of.
        self.commit = max(self.commit, record.commit)

    def _apply_checkpoint(self, contents: Contents) -> None:
        hard_state, position = contents.hard_state, contents.position
        if hard_state is None or position is None:
            raise Violation("a checkpoint without a hard state or a position")
        if not self._started:
            self._started, self.hard_state, self.base = True, hard_state, position
        elif not self.batches and position[0] == self.base[0] and not self.base[1] and hard_state == self.hard_state:
            self.base = position
        elif (hard_state, position) != (self.hard_state, self.last):
            raise Violation(
                f"a segment that continues {hard_state} at {position} follows {self.hard_state} at {self.last}"
            )

    def _apply_persist(self, contents: Contents) -> None:
        if contents.position is not None:
            self.batches.clear()
            self.base = contents.position
        if contents.truncate_from is not None:
            self._truncate(contents.truncate_from)
        for batch in contents.batches:
            index, term = self.last
            if batch.first != index + 1 or batch.term < term:
                raise Violation(f"{batch} follows index {index} of term {term}")
            self.batches.append(batch)
        if contents.hard_state is not None:
            before, after = self.hard_state, contents.hard_state
            # Trap 3: within one term a vote, once given, stays.
            if after.term < before.term or (after.term == before.term and before.vote not in ("", after.vote)):
                raise Violation(f"{after} follows {before}")
            self.hard_state = after

    def _truncate(self, index: int) -> None:
        if index < 1:
            raise Violation(f"entries from {index} on are dropped; the first is 1")
        if index <= self.base[0]:
            # The entries were in a segment that is gone. They were taken back, and others of the same indexes are
            # covered by a snapshot: whoever puts log and snapshot together checks that it reaches past here.
            self.base = (index - 1, 0)
            self.batches.clear()
        while self.batches and self.batches[-1].first >= index:
            self.batches.pop()
        if self.last[0] >= index:
            raise Violation(f"entries from {index} on are dropped, which would cut {self.batches[-1]}")


@dataclass(slots=True)
class SegmentFile:
    """A segment on disk."""

    name: str
    number: int
    first_sequence: int
    size: int
    #: The highest index of a batch in it that may still be in the log; 0 when none is.
    last_index: int = 0


@dataclass(slots=True)
class Cut:
    """A torn tail: bytes that were being written when the process or the machine stopped."""

    name: str
    offset: int
    data: bytes
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, byte {self.offset}: {len(self.data)} bytes of an unfinished write ({self.reason})"


@dataclass(slots=True)
class LogReading:
    """What a reading of the log found."""

    replay: Replay = field(default_factory=Replay)
    #: In order; the last is where writing stopped.
    segments: list[SegmentFile] = field(default_factory=list)
    #: Segments rewritten by an earlier start and not yet deleted.
    superseded: list[str] = field(default_factory=list)
    #: The records of the last segment.
    tail: list[Record] = field(default_factory=list)
    next_sequence: int = 1
    #: Records up to this sequence are known to have been on disk.
    durable: int = 0
    cut: Cut | None = None
    #: Where and what; empty when all is well.
    damage: str = ""


def read_log(files: Files, directory: str) -> LogReading:
    """Read every segment in `directory`. May raise OSError; never raises for what the bytes say."""
    reading = LogReading()
    headers, header_damage = _read_headers(files, directory)
    for at, (name, header) in enumerate(headers):
        limit = headers[at + 1][1].first_sequence if at + 1 < len(headers) else None
        if limit == header.first_sequence:
            reading.superseded.append(name)
            continue
        if reading.segments and header.first_sequence != reading.next_sequence:
            reading.damage = (
                f"{name}: begins with record {header.first_sequence}, but {reading.next_sequence} should follow "
                f"{reading.segments[-1].name}; records are missing"
            )
            break
        _read_segment(files, directory, name, header, limit, reading)
        if reading.damage:
            break
    reading.damage = reading.damage or header_damage
    if reading.damage:
        reading.cut = None
    return reading


def _read_headers(files: Files, directory: str) -> tuple[list[tuple[str, SegmentHeader]], str]:
    headers: list[tuple[str, SegmentHeader]] = []
    for name in filter(is_segment_name, files.names(directory)):
        try:
            header = read_segment_header(files.read(f"{directory}/{name}", 0, SEGMENT_HEADER_BYTES))
        except DamagedRecord as error:
            # A segment gets its name only once its header is on disk, so this is never a torn write.
            return headers, f"{name}, byte 0: {error}"
        if segment_name(header.number) != name:
            return headers, f"{name}, byte 0: the header says that this is segment {header.number}"
        headers.append((name, header))
    return headers, ""


def _read_segment(
    files: Files, directory: str, name: str, header: SegmentHeader, limit: int | None, reading: LogReading
) -> None:
    """Read the records of one segment up to `limit`, the first of the next segment; without one, to the end."""
    path = f"{directory}/{name}"
    data = files.read(path, 0, files.size(path))
    segment = SegmentFile(name, header.number, header.first_sequence, len(data))
    reading.segments.append(segment)
    reading.tail = tail = []
    reading.durable = max(reading.durable, header.through)
    offset, previous, sequence = SEGMENT_HEADER_BYTES, header.seed, header.first_sequence
    while limit is None or sequence < limit:
        try:
            record = read_record(data, offset, header.seed, previous)
            if record.sequence != sequence:
                raise DamagedRecord(f"a record is numbered {record.sequence} in place of {sequence}")
        except DamagedRecord as error:
            _judge(reading, segment, data, offset, header.seed, sequence, limit, str(error))
            break
        try:
            contents = read_contents(record)
            if (record.kind == CHECKPOINT) != (sequence == header.first_sequence):
                raise Violation("a checkpoint out of place")
            reading.replay.apply(record, contents)
        except ValueError as error:
            reading.damage = f"{name}, byte {offset}: {error}"
            break
        _note_indexes(reading.segments, record, contents)
        tail.append(record)
        reading.durable = max(reading.durable, record.durable)
        offset, previous, sequence = record.end, record.crc, sequence + 1
    reading.next_sequence = sequence


def _judge(
    reading: LogReading,
    segment: SegmentFile,
    data: bytes,
    offset: int,
    seed: int,
    sequence: int,
    limit: int | None,
    reason: str,
) -> None:
    """Record `sequence` is not whole: the end of the log, a torn tail, or corruption?"""
    durable = reading.durable if limit is None else limit - 1
    for later in find_records(data, offset, seed):
        durable = max(durable, later.durable)
    if durable >= sequence:
        reading.damage = (
            f"{segment.name}, byte {offset}: {reason}, yet record {sequence} was on disk: "
            f"the records up to {durable} were known to be"
        )
        return
    rest = data[offset:].rstrip(b"\0")
    if rest:
        reading.cut = Cut(segment.name, offset, rest, reason)


def _note_indexes(segments: list[SegmentFile], record: Record, contents: Contents) -> None:
    if contents.position is not None and record.kind != CHECKPOINT:
        for segment in segments:
            segment.last_index = 0
    if contents.batches:
        segments[-1].last_index = max(segments[-1].last_index, contents.batches[-1].last)
