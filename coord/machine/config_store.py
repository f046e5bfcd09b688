"""The config map's keys and records.

One thread writes: the one that applies. Any thread reads, without a lock and without ever making the writer wait. A
change of several keys becomes visible to all readers at one moment, whichever way they read, and nobody goes back.

What must not live here: who may write what (`coord.machine.machine`), or what a value means (`coord.machine.values`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from coord.machine.digests import MASK
from coord.machine.expiry import Expiry
from coord.machine.key_index import KeyIndex
from coord.machine.limits import RECORD_OVERHEAD_BYTES
from coord.machine.records import Record, Row, Write

#: (revision, the writes under way, rows, index). While a change of several keys is under way the rows are already some
#: of the way, the revision is the one before, and the writes tell what to take back.
_Version = tuple[int, Sequence[Write], dict[str, Row], KeyIndex]

#: How often `range` tries to read past a busy writer before it copies everything.
_RANGE_TRIES = 3


def key_bytes(key: str) -> int:
    """Length of `key` in UTF-8."""
    return len(key) if key.isascii() else len(key.encode())


class ConfigStore:
    """A sorted map of key to record.

    Invariant: `_version` is replaced before and after every change, by a new tuple. So a reader that finds the same
    tuple after reading as before has read one version, and takes back what is under way in it: a sequence lock whose
    counter says what to undo, so that a reader need not wait for the end of a change either.
    """

    __slots__ = ("_digest", "_expiry", "_index", "_rows", "_version", "state_bytes")

    def __init__(self, revision: int = 0, rows: dict[str, Row] | None = None) -> None:
        """Start with `rows`, which are the store's from now on."""
        self._rows = {} if rows is None else rows
        self._index = KeyIndex(self._rows)
        self._expiry = Expiry()
        self._digest = 0
        #: What the quota of that name counts.
        self.state_bytes = 0
        for key, row in self._rows.items():
            self._digest += row[6]
            self.state_bytes += key_bytes(key) + len(row[0]) + RECORD_OVERHEAD_BYTES
            if row[5]:
                self._expiry.set(key, row[5])
        self._version: _Version = (revision, (), self._rows, self._index)

    # -- any thread

    @property
    def revision(self) -> int:
        """Log index of the last entry that changed a key; 0 before the first."""
        return self._version[0]

    def __len__(self) -> int:
        while True:
            version = self._version
            count = len(version[2])
            if self._version is version:
                return count if not version[1] else len(self.view()[1])

    def get(self, key: str) -> Record | None:
        """Return what `key` holds, or None."""
        row = self._read(key)
        return None if row is None else tuple.__new__(Record, row)

    def value(self, key: str) -> bytes | None:
        """Return the encoded value of `key`, or None: the shortest way for a plain read."""
        row = self._read(key)
        return None if row is None else row[0]

    def _read(self, key: str) -> Row | None:
        # A bare lookup could see one key of a change and then, in the same thread, another key as it was before.
        while True:
            version = self._version
            row = version[2].get(key)
            if self._version is version:
                break
        for name, before, _ in version[1]:
            if name == key:
                return before
        return row

    def view(self) -> tuple[int, dict[str, Row]]:
        """Return everything at one revision: (revision, a dict of the caller's own)."""
        while True:
            version = self._version
            revision, writes, rows, _ = version
            copied = rows.copy()
            if self._version is version:
                break
        for key, before, _ in writes:
            if before is None:
                copied.pop(key, None)
            else:
                copied[key] = before
        return revision, copied

    def range(self, prefix: str = "") -> tuple[int, list[tuple[str, Record]]]:
        """Return one revision, and the keys with `prefix` and their records in order, all at that one revision."""
        for _ in range(_RANGE_TRIES):
            version = self._version
            revision, writes, rows, index = version
            if writes:
                continue
            keys = index.candidates(prefix)
            found = [(key, tuple.__new__(Record, row)) for key in keys if (row := rows.get(key)) is not None]
            if self._version is version:
                return revision, found
        revision, rows = self.view()
        return revision, [(key, tuple.__new__(Record, rows[key])) for key in sorted(rows) if key.startswith(prefix)]

    # -- the thread that applies

    def row(self, key: str) -> Row | None:
        """What `key` holds, as it is kept."""
        return self._rows.get(key)

    def sizes_after(self, writes: Sequence[Write]) -> tuple[int, int]:
        """Return what `state_bytes` and the number of keys would be after `writes`."""
        size, keys = self.state_bytes, len(self._rows)
        for key, before, after in writes:
            if before is None:
                size += key_bytes(key) + RECORD_OVERHEAD_BYTES
                keys += 1
            else:
                size -= len(before[0])
            if after is None:
                size -= key_bytes(key) + RECORD_OVERHEAD_BYTES
                keys -= 1
            else:
                size += len(after[0])
        return size, keys

    def commit(self, revision: int, writes: Sequence[Write], size: int) -> None:
        """Make `writes` (not none) in one step, for all readers. `size`: the bytes that `sizes_after` found."""
        rows, index = self._rows, self._index
        self._version = (self._version[0], writes, rows, index)
        for key, before, after in writes:
            if after is None:
                assert before is not None, "a delete of an absent key is no write"
                del rows[key]
                index.discard()
                self._digest -= before[6]
                if before[5]:
                    self._expiry.set(key, 0)
                continue
            rows[key] = after
            self._digest += after[6]
            if before is None:
                index.add(key, rows)
                if after[5]:
                    self._expiry.set(key, after[5])
            else:
                self._digest -= before[6]
                if before[5] != after[5]:
                    self._expiry.set(key, after[5])
        self.state_bytes = size
        self._version = (revision, (), rows, index)

    def become(self, other: ConfigStore) -> None:
        """Hold what `other` holds, in one step for all readers. `other` must not be used any more."""
        self._rows, self._index, self._expiry = other._rows, other._index, other._expiry
        self._digest, self.state_bytes = other._digest, other.state_bytes
        self._version = other._version

    def differences(self, newer: ConfigStore) -> list[tuple[int, list[Write]]]:
        """Return the writes that lead from here to `newer`, by revision, in order.

        A put has the revision that made it. A delete's own is lost, so it has the newest; and so has a put that would
        be below what a watch here has seen (this member had gone astray): nobody is taken back.
        """
        last = max(self.revision, newer.revision)
        found: dict[int, list[Write]] = {}
        for key, after in newer._rows.items():
            before = self._rows.get(key)
            if before is None or before[6] != after[6]:
                found.setdefault(after[1] if after[1] > self.revision else last, []).append((key, before, after))
        for key, before in self._rows.items():
            if key not in newer._rows:
                found.setdefault(last, []).append((key, before, None))
        return [(revision, sorted(found[revision], key=itemgetter(0))) for revision in sorted(found)]

    def digest(self) -> int:
        """Digest of all records."""
        self._digest &= MASK
        return self._digest

    def next_due(self) -> int | None:
        """The earliest cluster time at which a key falls due, or None."""
        return self._expiry.next()

    def take_due(self, now: int, most: int) -> list[str]:
        """Return up to `most` keys that are due at `now`; they must be deleted at once."""
        return self._expiry.take_due(now, most)

    def candidates(self) -> list[str]:
        """Return all keys in order, and perhaps some that no longer exist."""
        return self._index.candidates()
