"""Mistakes on the way to the disk and back: syncs, names, checksums, torn tails, segments, snapshot files, identities.

"trap N" is the number under which a mistake is known in the code's own comments. What must not live here: what a member
does with what its disk has kept (`mistakes_consensus`).
"""

from __future__ import annotations

from coord.raft.core import Core
from coord.replica import Replica
from coord.snapshots import Snapshots
from coord.storage import directory, records, replay
from coord.storage.disk import DiskStorage
from coord.storage.snapshots import SnapshotFile, SnapshotStore
from coord.storage.wal import WriteAheadLog
from simulation.mutation import (
    failing_disks,
    mutant,
    power_cuts,
    power_cuts_at_start,
    pulled_snapshots,
    pulled_snapshots_in_one_segment,
    rotting_disks,
    snapshots,
    wiped_disks,
)
from simulation.stories import power_lost_after_a_lonely_mark
from simulation.stories_of_disks import (
    a_snapshot_knows_what_its_index_knew,
    one_snapshot_fails,
    one_snapshot_rots,
    one_snapshot_rots_where_it_is_pulled_from,
    power_lost_in_the_middle_of_writes,
)

_SYNC = "self._files.sync(self._handle)\n    self._mark_unsynced = False\n    if not self._named:"
_RENAME = 'self._files.rename(self._temporary(segment.number), f"{self._directory}/{segment.name}")'
_CRC = 'raise DamagedRecord("a record\'s checksum does not match")'

SYNCS_AND_NAMES = [
    mutant(
        "the log is not synced",
        "trap 39",
        (WriteAheadLog, "commit", _SYNC, "self._mark_unsynced = False\n    if not self._named:"),
    ),
    mutant(
        "what was handed to the disk counts as durable",
        "trap 39, etcd #14143",
        (DiskStorage, "sync", "self._inbox.put(group)", "self._inbox.put(group); self._durable = group[-1].seq"),
    ),
    mutant(
        "a failed sync is tried again and believed",
        "trap 37, PostgreSQL in 2018, CockroachDB #37214",
        (
            WriteAheadLog,
            "commit",
            _SYNC,
            "try:\n"
            "        self._files.sync(self._handle)\n"
            "    except OSError:\n"
            "        self._files.sync(self._handle)\n"
            "    self._mark_unsynced = False\n"
            "    if not self._named:",
        ),
        world=failing_disks,
    ),
    mutant(
        "a failed sync is passed over",
        "trap 37, LevelDB and LMDB in ATC'20",
        (
            WriteAheadLog,
            "commit",
            _SYNC,
            "try:\n"
            "        self._files.sync(self._handle)\n"
            "    except OSError:\n"
            "        pass\n"
            "    self._mark_unsynced = False\n"
            "    if not self._named:",
        ),
        world=failing_disks,
    ),
    mutant(
        "the name of a new segment is not synced",
        "trap 38, etcd #6368",
        (
            WriteAheadLog,
            "commit",
            "self._files.sync_directory(self._directory)\n        self._named = True",
            "self._named = True",
        ),
    ),
    mutant(
        "a segment gets its name before its bytes are synced",
        "trap 38, ALICE in OSDI'14",
        (
            WriteAheadLog,
            "commit",
            f"{_SYNC}\n        {_RENAME}",
            f"if not self._named:\n        {_RENAME}\n    {_SYNC}",
        ),
        world=power_cuts_at_start,
    ),
    mutant(
        "the last segment goes before its copy is on disk",
        "ALICE in OSDI'14",
        (
            WriteAheadLog,
            "start",
            "self._segments[-1].last_index = last.last_index",
            "self._segments[-1].last_index = last.last_index\n"
            '        self._files.unlink(f"{self._directory}/{last.name}")\n'
            "        self._files.sync_directory(self._directory)",
        ),
        (WriteAheadLog, "start", "*([last.name] if last else [])", "*()"),
        world=power_cuts,
    ),
    mutant(
        "the identity gets its name before its bytes are synced",
        "trap 38, ext4 in 2009",
        (directory, "_replace", "files.sync(handle)", "pass"),
        world=power_cuts,
    ),
    mutant(
        "a lost mark reads as corruption",
        "found here",
        (WriteAheadLog, "_roll", "if self._mark_unsynced:", "if False:"),
        story=power_lost_after_a_lonely_mark,
    ),
]

DAMAGE = [
    mutant(
        "checksums of records are not checked",
        "trap 40, Redis in FAST'17",
        (records, "read_record", f"!= crc:\n        {_CRC}", f"!= crc and False:\n        {_CRC}"),
        story=power_lost_in_the_middle_of_writes,
    ),
    mutant(
        "checksums cover the header only",
        "trap 42, etcd #5230",
        (records, "encode_record", "crc = zlib.crc32(piece, crc)", "pass"),
        (
            records,
            "read_record",
            "[start + _SEED_AND_CRC.size : end]",
            "[start + _SEED_AND_CRC.size : start + RECORD_HEADER_BYTES]",
        ),
        story=power_lost_in_the_middle_of_writes,
    ),
    mutant(
        "damage in the middle is cut like a torn tail",
        "trap 40, LogCabin and ZooKeeper in Protocol-Aware Recovery",
        (replay, "_judge", "if durable >= sequence:", "if False:"),
        world=rotting_disks,
    ),
    mutant(
        "damage is judged by what stands before it only",
        "trap 40, canonical/raft",
        (replay, "_judge", "for later in find_records(data, offset, seed):", "for later in ():"),
        (replay, "_judge", "limit - 1", "reading.durable"),
        world=rotting_disks,
    ),
    mutant(
        "a record does not say what was on disk before it",
        "trap 40, canonical/raft",
        (WriteAheadLog, "_add", "(self._sequence, self._durable, commit)", "(self._sequence, 0, commit)"),
        world=rotting_disks,
    ),
    mutant(
        "a torn tail reads as corruption",
        "trap 42, etcd #14098",
        (replay, "_judge", "if durable >= sequence:", 'if durable >= sequence or data[offset:].rstrip(b"\\0"):'),
        world=power_cuts,
    ),
]

WHAT_IS_WRITTEN = [
    mutant(
        "the term is kept and the vote is not",
        "trap 5, PySyncObj #202",
        (records, "encode_parts", "vote = hard_state.vote.encode()", 'vote = b""'),
    ),
    mutant(
        "a truncation is not written down",
        "Raft 5.3",
        (records, "encode_persist", "position, persist.truncate_from)", "position, None)"),
        world=power_cuts,
    ),
    mutant(
        "a new segment begins without term and vote",
        "trap 2",
        (
            WriteAheadLog,
            "_begin_segment",
            "encode_parts(self._end.hard_state,",
            "encode_parts(type(self._end.hard_state)(),",
        ),
    ),
    mutant(
        "a restart knows only of memberships that have committed",
        "trap 24, Camunda #62837",
        (Core, "__init__", "if batch.kind == MEMBERSHIP and batch.first > start.membership_index:", "if False:"),
        world=wiped_disks,
    ),
]

SNAPSHOT_FILES = [
    mutant(
        "a pulled snapshot replaces the log before it is durable",
        "trap 38",
        (SnapshotFile, "describe", "self._files.sync(handle)\n        self._handle = None", "self._handle = None"),
        world=pulled_snapshots,
    ),
    mutant(
        "the name of a snapshot is not synced",
        "trap 38, etcd #6368",
        (
            SnapshotStore,
            "save",
            "self._files.sync_directory(self._directory)\n        kept = dict",
            "kept = dict",
        ),
        (SnapshotStore, "save", "if surplus:", "if False:"),
        world=pulled_snapshots_in_one_segment,
    ),
    mutant(
        "the log is dropped up to the newest snapshot",
        "trap 40, ZooKeeper in Protocol-Aware Recovery",
        (DiskStorage, "compact", "index = min(index, self._snapshots.log_needed_after)", "pass"),
        story=one_snapshot_rots,
    ),
    mutant(
        "a snapshot is not read before it is chosen",
        "trap 40",
        (SnapshotStore, "load", "verify_content(self._files, path, meta)", "pass"),
        story=one_snapshot_rots,
    ),
    mutant(
        "after one snapshot that failed there is never another",
        "trap 53, openraft d0245e2",
        (Snapshots, "_cut_failed", "self._cutting = False", "pass"),
        story=one_snapshot_fails,
    ),
    mutant(
        "a snapshot is of the term that leads, not of its entry's",
        "trap 25, async-raft #133",
        (Snapshots, "_cut", "SnapshotMeta(last, term,", "SnapshotMeta(last, core.term,"),
        world=snapshots,
    ),
    mutant(
        "a membership that has not committed is in the snapshot",
        "trap 25, canonical/raft #250",
        (
            Snapshots,
            "_cut",
            "index, membership = core.history.at(last)",
            "index, membership = core.history.latest_index, core.history.latest",
        ),
        story=a_snapshot_knows_what_its_index_knew,
    ),
    mutant(
        "a snapshot holds the state of when it is written",
        "trap 44, etcd 3.5",
        (Snapshots, "_cut", "self._write(meta, cut)", "self._write(meta, machine.cut())"),
        world=snapshots,
    ),
    mutant(
        "the checksum of a pulled snapshot is not compared",
        "trap 40",
        (Snapshots, "_finish_pull", "if sink.finish() != (meta.size, meta.sha256):", "if not sink.finish():"),
        (SnapshotFile, "describe", "if (meta.size, meta.sha256) != self._finished:", "if not self._finished:"),
        story=one_snapshot_rots_where_it_is_pulled_from,
    ),
    mutant(
        "a member whose disk failed goes on",
        "trap 37",
        (Replica, "_work", "if self.storage.failure is not None:", "if False:"),
        world=failing_disks,
    ),
]

STORAGE = [*SYNCS_AND_NAMES, *DAMAGE, *WHAT_IS_WRITTEN, *SNAPSHOT_FILES]
