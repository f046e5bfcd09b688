"""The writer of the write-ahead log: appends records, rolls segments, drops old ones.

What must not live here: threads (`disk`), reading back (`replay`), or the record format (`records`). Every call may
raise OSError, after which the log must never be written again (trap 37); `disk` sees to that.

Two rules make every crash point safe. A segment is written under a temporary name, synced, and only then named, so a
named segment always has its header, its checkpoint and its first records. And an old segment is never written again:
a start rewrites the last segment into a new one and deletes the old, so bytes left behind by a crash never share a
file with new ones (trap 41), and what a killed process had written but not synced is written and synced anew instead
of being trusted because the page cache still shows it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from coord.raft.messages import Persist
from coord.storage.files import Files
from coord.storage.records import (
    CHECKPOINT,
    HARD_STATE,
    MARK,
    PERSIST,
    POSITION,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Buffer,
    SegmentHeader,
    encode_parts,
    encode_persist,
    encode_record,
)
from coord.storage.replay import LogReading, Replay, SegmentFile, segment_name
from coord.storage.stream import StreamEnd

_SEED_MASK = 0xFFFFFFFF


class Reserve:
    """Room set aside for the day the disk is full, given up once so that a snapshot or one more segment still fits.

    Thread-safe: the log and a snapshot may both need it.
    """

    def __init__(self, files: Files, directory: str, size: int) -> None:
        self._files = files
        self._directory = directory
        self._path = f"{directory}/reserve"
        self._size = size
        self._lock = threading.Lock()
        #: False: the disk is, or has been, too full to set the room aside.
        self.held = False

    def take(self) -> None:
        """Set the room aside if it is not; a disk too full for it is no error, only `held` False."""
        with self._lock:
            if self.held or not self._size:
                return
            if self._path.rpartition("/")[2] in self._files.names(self._directory):
                if self._files.size(self._path) == self._size:
                    self.held = True
                    return
                self._files.unlink(self._path)
            try:
                self._files.close(self._files.create(self._path, self._size))
            except OSError as error:
                if not is_full(error):
                    raise
            else:
                self.held = True

    def give_up(self) -> bool:
        """Free the room; tell whether there was any."""
        with self._lock:
            if not self.held:
                return False
            self.held = False
            self._files.unlink(self._path)
            self._files.sync_directory(self._directory)
            return True


class NoRoom(Exception):
    """The disk is too full for another segment. Nothing was changed, and the log is as good as before."""


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class WriteAheadLog:
    """Appends to a log that `start` has opened. One thread at a time.

    Invariant: `_segments` lists the named segments and, last, the one being written.
    """

    def __init__(
        self, files: Files, directory: str, reserve: Reserve, *, segment_bytes: int, mint: Callable[[], int]
    ) -> None:
        self._files = files
        self._directory = directory
        self._reserve = reserve
        self._segment_bytes = segment_bytes
        self._mint = mint
        self._segments: list[SegmentFile] = []
        self._handle: int | None = None
        # The segment being written.
        self._seed = 0
        self._previous = 0
        self._offset = 0
        self._named = False
        self._next_segment: int | None = None
        self._prepared = False
        # Encoded and not yet handed to the disk: the bytes from `_buffered_from` to `_offset`.
        self._buffers: list[Buffer] = []
        self._buffered_from = 0
        # A mark was written since the last sync of the segment.
        self._mark_unsynced = False
        # Sequences: of the last record, of the last known on disk, and the highest `durable` any record states.
        self._sequence = 0
        self._durable = 0
        self._stated = 0
        # The state as of `_sequence`: what a checkpoint says.
        self._end = StreamEnd()

    # -- Starting -----------------------------------------------------------------------------------------------------

    def start(self, reading: LogReading, position: tuple[int, int] | None) -> None:
        """Continue the log that `reading` found whole; with `position`, forget its entries and begin anew after it.

        The last segment is rewritten under a new number and with the same sequences, then deleted.
        """
        assert not reading.damage
        assert self._handle is None
        self._end = end_of(reading.replay)
        last = reading.segments[-1] if reading.segments else None
        self._sequence = (last.first_sequence if last else reading.next_sequence) - 1
        if last:
            needed = sum(record.end - record.start for record in reading.tail) + RECORD_HEADER_BYTES * 2
            self._begin_segment(last.number + 1, self._set_room_aside(last.number + 1, needed), checkpoint=False)
            for record in reading.tail:
                body: list[Buffer] = [record.body] if record.body else []
                self._add(record.kind, record.parts, record.batch_count, record.commit, body)
            self._segments = [*reading.segments[:-1], self._segments[-1]]
            self._segments[-1].last_index = last.last_index
        else:
            self._begin_segment(1, self._set_room_aside(1, 0), checkpoint=True)
        if position is not None:
            self._end.reset(position)
            self._forget_indexes()
            parts, fixed = encode_parts(None, position, None)
            self._add(PERSIST, parts, 0, self._end.commit, [fixed])
        self.commit()
        for name in (*reading.superseded, *([last.name] if last else [])):
            self._files.unlink(f"{self._directory}/{name}")
            self._files.sync_directory(self._directory)

    # -- Writing ------------------------------------------------------------------------------------------------------

    def append(self, persist: Persist) -> None:
        """Encode one more record; `commit` makes it durable. Rolls, and so may write and sync what came before.

        NoRoom: the record was not taken; those before it wait for `commit` as ever."""
        parts, body = encode_persist(persist)
        if not body:
            return
        size = RECORD_HEADER_BYTES
        for piece in body:
            size += len(piece)
        if self._offset + size > self._segments[-1].size:
            self._roll(size)
        self._end.follow(persist)
        self._add(PERSIST, parts, len(persist.batches), self._end.commit, body)
        if persist.reset is not None:
            self._forget_indexes()
        if persist.batches:
            segment = self._segments[-1]
            segment.last_index = max(segment.last_index, self._end.last_index)

    def commit(self) -> None:
        """Make everything appended durable: one write and one sync, and for a new segment its name."""
        if not self._buffers:
            return
        assert self._handle is not None
        segment = self._segments[-1]
        if not self._named:
            header = SegmentHeader(segment.number, self._seed, segment.first_sequence, self._sequence)
            self._buffers[0] = header.encode()
        self._files.write(self._handle, self._buffered_from, self._buffers)
        self._files.sync(self._handle)
        self._mark_unsynced = False
        if not self._named:
            self._files.rename(self._temporary(segment.number), f"{self._directory}/{segment.name}")
            self._files.sync_directory(self._directory)
            self._named = True
            self._stated = self._sequence
        self._durable = self._sequence
        self._buffers = []
        self._buffered_from = self._offset

    def mark(self) -> None:
        """When idle: write, without a sync, that everything so far is on disk, so that later rot shows as rot."""
        if not self.unmarked:
            return
        assert self._handle is not None
        assert not self._buffers
        self._add(MARK, 0, 0, self._end.commit, [])
        self._mark_unsynced = True
        self._files.write(self._handle, self._buffered_from, self._buffers)
        self._buffers = []
        self._buffered_from = self._offset

    @property
    def unmarked(self) -> bool:
        """Nothing on disk says yet that the last records are, and there is room to say it."""
        return self._stated < self._durable and self._offset + RECORD_HEADER_BYTES <= self._segments[-1].size

    def compact(self, index: int, *, waiting: bool) -> None:
        """Drop whole segments, oldest first, while no batch above `index` is in them; never the one being written.

        `waiting`: there are records still to come that were made before `index` was known to be safe, and may take
        back what is below it.

        Each is gone for good before the next goes: whatever a crash leaves is an unbroken run of segments.
        """
        assert not self._buffers, "what drops a segment must be on disk first"
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            self._files.unlink(f"{self._directory}/{self._segments[0].name}")
            self._files.sync_directory(self._directory)
            del self._segments[0]
        if not waiting:
            self._end.compact(index)
        self._reserve.take()

    def prepare(self) -> None:
        """Once the segment is half full, set room for the next aside, so that rolling does not wait for it."""
        segment = self._segments[-1]
        if self._prepared or self._offset * 2 < segment.size:
            return
        # Tried once for each segment: on a full disk rolling decides, which may give up the reserve.
        self._prepared = True
        try:
            self._next_segment = self._files.create(self._temporary(segment.number + 1), self._segment_bytes)
        except OSError as error:
            if not is_full(error):
                raise

    def close(self) -> None:
        """Make everything durable, and say so on disk."""
        self.commit()
        self.mark()
        if self._handle is not None:
            self._files.sync(self._handle)
        self.release()

    def release(self) -> None:
        """Close the files and write nothing."""
        handles, self._handle, self._next_segment = (self._handle, self._next_segment), None, None
        for handle in handles:
            if handle is not None:
                self._files.close(handle)

    @property
    def size(self) -> int:
        """Bytes of disk the segments take."""
        return sum(segment.size for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    # ------------------------------------------------------------------------------------------------------------------

    def _add(self, kind: int, parts: int, batch_count: int, commit: int, body: list[Buffer]) -> None:
        self._sequence += 1
        numbers = (self._sequence, self._durable, commit)
        header, self._previous = encode_record(self._seed, self._previous, kind, parts, batch_count, numbers, body)
        self._stated = self._durable
        self._buffers.append(header)
        self._offset += RECORD_HEADER_BYTES
        for piece in body:
            self._buffers.append(piece)
            self._offset += len(piece)

    def _forget_indexes(self) -> None:
        """The log began anew: no batch so far is in it."""
        for segment in self._segments:
            segment.last_index = 0

    def _roll(self, needed: int) -> None:
        """Go on in a new segment with room for `needed` bytes. What the old one holds is on disk before."""
        # Before anything else: on a full disk the old segment must stay as it is.
        try:
            size = self._set_room_aside(self._segments[-1].number + 1, needed)
        except OSError as error:
            if not is_full(error):
                raise
            raise NoRoom(str(error)) from error
        self.commit()
        assert self._handle is not None
        if self._mark_unsynced:
            # A mark alone promises nothing and was never synced; but what follows in the next segment counts on every
            # record before it, and a hole there would read as corruption.
            self._files.sync(self._handle)
            self._mark_unsynced = False
        self._files.close(self._handle)
        self._handle = None
        self._begin_segment(self._segments[-1].number + 1, size, checkpoint=True)

    def _set_room_aside(self, number: int, needed: int) -> int:
        """Make the next segment, if none waits that is large enough; return its size. Changes nothing else."""
        _, state = encode_parts(self._end.hard_state, self._end.position, None)
        size = max(self._segment_bytes, SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + len(state) + needed)
        if self._next_segment is not None and size > self._segment_bytes:
            spare, self._next_segment = self._next_segment, None
            self._files.close(spare)
            self._files.unlink(self._temporary(number))
        if self._next_segment is None:
            self._next_segment = self._create(number, size)
        return size

    def _begin_segment(self, number: int, size: int, *, checkpoint: bool) -> None:
        parts, state = encode_parts(self._end.hard_state, self._end.position, None)
        assert parts == HARD_STATE | POSITION
        assert self._next_segment is not None
        self._handle, self._next_segment, self._prepared = self._next_segment, None, False
        self._segments.append(SegmentFile(segment_name(number), number, self._sequence + 1, size))
        self._seed = self._previous = (self._mint() & _SEED_MASK) or 1
        self._named = False
        # The header is encoded last, in `commit`: it says how far the records synced before the name was given go.
        self._buffers = [bytes(SEGMENT_HEADER_BYTES)]
        self._buffered_from, self._offset = 0, SEGMENT_HEADER_BYTES
        if checkpoint:
            self._add(CHECKPOINT, parts, 0, self._end.commit, [state])

    def _create(self, number: int, size: int) -> int:
        """Make a segment under its temporary name; a full disk costs the reserve first."""
        path = self._temporary(number)
        try:
            return self._files.create(path, size)
        except OSError as error:
            if not is_full(error) or not self._reserve.give_up():
                raise
        return self._files.create(path, size)

    def _temporary(self, number: int) -> str:
        return f"{self._directory}/{segment_name(number)}.tmp"


def end_of(replay: Replay) -> StreamEnd:
    """The end of the stream that `replay` has read."""
    end = StreamEnd()
    end.hard_state, end.commit = replay.hard_state, replay.commit
    end.reset(replay.base)
    for batch in replay.batches:
        end.extend(batch.first, batch.last, batch.term)
    return end
