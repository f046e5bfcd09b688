"""Mistakes of storage put back in, one at a time: the proof that the crash-point runner would see them.

Each is what some known system shipped, or what this one had before it was found. A mistake rewrites a few words of one
function; if the words are no longer there, making it fails, so the table cannot silently come to test nothing.
What must not live here: how many disks it takes (`test_crash_points`).
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from coord.storage import directory, records, replay
from coord.storage.disk import DiskStorage
from coord.storage.snapshots import SnapshotFile, SnapshotStore
from coord.storage.wal import WriteAheadLog


@dataclass(frozen=True)
class Mistake:
    name: str
    #: In `owner.function`, each `old` becomes `new`.
    owner: Any
    function: str
    edits: tuple[tuple[str, str], ...]
    #: A group of several records has to span sectors for some to show.
    segment_bytes: int = 600
    #: Some show only where a process is killed, started again, and the machine then stops: there, at so many moments.
    kill_every: int = 10


@contextmanager
def made(mistake: Mistake) -> Iterator[None]:
    """Within this context every storage makes the mistake."""
    original = inspect.getattr_static(mistake.owner, mistake.function)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in mistake.edits:
        times = source.count(old)
        assert times == 1, f"{mistake.function} has {times} times: {old!r}; the table of mistakes is out of date"
        source = source.replace(old, new)
    # In the original's own module, so that all names mean the same.
    module = sys.modules[original.__module__]
    result: dict[str, Any] = {}
    exec(compile(source, f"<{mistake.name}>", "exec", __future__.annotations.compiler_flag), module.__dict__, result)
    changed = result[mistake.function]
    with ExitStack() as stack:
        if inspect.ismodule(mistake.owner):
            # Whoever imported it by name has it too.
            for name, other in list(sys.modules.items()):
                if name.startswith("coord.") and getattr(other, mistake.function, None) is original:
                    stack.enter_context(mock.patch.object(other, mistake.function, changed))
        else:
            stack.enter_context(mock.patch.object(mistake.owner, mistake.function, changed))
        yield


_SYNC_DIRECTORY = "self._files.sync_directory(self._directory)"

MISTAKES = (
    Mistake(
        "a new segment's name is not synced",
        WriteAheadLog,
        "commit",
        ((_SYNC_DIRECTORY, "pass"),),
    ),
    Mistake(
        "a segment is named before its bytes are synced",
        WriteAheadLog,
        "commit",
        (
            ("    self._files.sync(self._handle)\n", "    if self._named:\n        self._files.sync(self._handle)\n"),
            (f"        {_SYNC_DIRECTORY}\n", f"        {_SYNC_DIRECTORY}\n        self._files.sync(self._handle)\n"),
        ),
    ),
    Mistake(
        "the log is not synced at all once a segment has its name",
        WriteAheadLog,
        "commit",
        (
            (
                "    self._files.sync(self._handle)\n",
                "    if not self._named:\n        self._files.sync(self._handle)\n",
            ),
        ),
    ),
    Mistake(
        "the old segment is not synced on a roll",
        WriteAheadLog,
        "_roll",
        (
            (
                "    self.commit()\n",
                "    if self._named and self._buffers:\n"
                "        self._files.write(self._handle, self._buffered_from, self._buffers)\n"
                "    else:\n"
                "        self.commit()\n",
            ),
        ),
    ),
    Mistake(
        "a mark written when idle is not synced on a roll",
        WriteAheadLog,
        "_roll",
        (("if self._mark_unsynced:", "if False:"),),
        segment_bytes=1000,
    ),
    Mistake(
        "durable is raised before the sync",
        DiskStorage,
        "_write_group",
        (("    self._log.commit()\n", "    self._durable = group[-1].seq\n    self._log.commit()\n"),),
    ),
    Mistake(
        "records say of themselves that they are on disk",
        WriteAheadLog,
        "_add",
        (("(self._sequence, self._durable, commit)", "(self._sequence, self._sequence, commit)"),),
        segment_bytes=2500,
    ),
    Mistake(
        "a torn record passes without its checksum",
        records,
        "read_record",
        (("if zlib.crc32(memoryview(data)[start + _SEED_AND_CRC.size : end], seed) != crc:", "if False:"),),
    ),
    Mistake(
        "a torn tail is taken for corruption",
        replay,
        "_judge",
        (("if durable >= sequence:", "if durable >= sequence or data[offset:].rstrip(b'\\0'):"),),
    ),
    Mistake(
        "the old segment is deleted before the one it was rewritten into is on disk",
        WriteAheadLog,
        "start",
        (
            ("    self.commit()\n", ""),
            (f"        {_SYNC_DIRECTORY}\n", f"        {_SYNC_DIRECTORY}\n    self.commit()\n"),
        ),
    ),
    Mistake(
        "segments are dropped without waiting for each other",
        WriteAheadLog,
        "compact",
        ((_SYNC_DIRECTORY, "pass"),),
    ),
    Mistake(
        "segments are dropped newest first",
        WriteAheadLog,
        "compact",
        (
            (
                "    while len(self._segments) > 1 and self._segments[0].last_index <= index:\n",
                "    dropped = [one.name for one in self._segments[:-1] if one.last_index <= index]\n"
                "    for name in reversed(dropped):\n",
            ),
            ("{self._segments[0].name}", "{name}"),
            ("del self._segments[0]", "self._segments = [one for one in self._segments if one.name != name]"),
        ),
    ),
    Mistake(
        "the log is dropped up to the newest snapshot, not the older one",
        DiskStorage,
        "compact",
        (("    index = min(index, self._snapshots.log_needed_after)\n", ""),),
    ),
    Mistake(
        "unfinished files are left behind",
        DiskStorage,
        "_remove_unfinished",
        (("if name.endswith(_TEMPORARY):", "if False:"),),
    ),
    Mistake(
        "a snapshot is renamed before its bytes are synced",
        SnapshotFile,
        "describe",
        (("        self._files.sync(handle)\n", ""),),
    ),
    Mistake(
        "a snapshot's name is not synced",
        SnapshotStore,
        "save",
        ((f"    {_SYNC_DIRECTORY}\n        kept =", "    kept ="),),
    ),
    Mistake(
        "older snapshots are deleted before their successor is on disk",
        SnapshotStore,
        "save",
        (
            (
                "        self._files.rename(temporary,",
                "        for old in self._kept:\n"
                '            self._files.unlink(f"{self._directory}/{snapshot_name(old)}")\n'
                "        self._kept = {}\n"
                "        self._files.rename(temporary,",
            ),
        ),
    ),
    Mistake(
        "only one snapshot is kept",
        SnapshotStore,
        "save",
        (("list(kept)[:-KEPT]", "list(kept)[:-1]"),),
    ),
    Mistake(
        "the identity is written in place",
        directory,
        "_replace",
        (('temporary = f"{final}.tmp"', "temporary = final"), ('f"{name}.tmp" in', "name in")),
    ),
    Mistake(
        "the identity's new name is not synced",
        directory,
        "_replace",
        (("    files.sync_directory(path)\n", ""),),
    ),
    Mistake(
        "the identity says that there is a log before there is one",
        DiskStorage,
        "_recover",
        (
            ("        self._directory.set_has_log()\n", ""),
            (
                "        self._remove_unfinished()\n",
                "        self._directory.set_has_log()\n        self._remove_unfinished()\n",
            ),
        ),
    ),
    Mistake(
        "a snapshot whose name is only in the page cache replaces the log",
        DiskStorage,
        "_recover",
        (("        self._files.sync_directory(self._path)\n", ""),),
        kill_every=2,
    ),
    Mistake(
        "a start goes on from what the page cache shows, without writing it anew",
        WriteAheadLog,
        "start",
        (
            (
                "    self.commit()\n    for name in",
                "    self._files.sync = lambda handle: None\n"
                "    self.commit()\n"
                "    del self._files.sync\n"
                "    for name in",
            ),
        ),
    ),
)
