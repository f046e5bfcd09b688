"""What a config key holds, and what changes are made of: plain values, shared by the store, the history and readers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coord.machine.digests import record_digest

#: A record as the store keeps it: a plain tuple with Record's fields. Python's garbage collector stops looking at plain
#: tuples of numbers and bytes, but not at instances: with a million keys that is 1 ms of the host's time against 140.
Row = tuple[bytes, int, int, int, int, int, int]
#: (key, row before, row after); None where the key does not exist.
Write = tuple[str, "Row | None", "Row | None"]

#: What a remembered change costs beside its key and values.
CHANGE_OVERHEAD_BYTES = 200

PUT, DELETE = "put", "delete"


class Record(NamedTuple):
    """What a config key holds, with names. Make one from the store's row by `Record(*row)`."""

    #: As `coord.machine.values` encoded it.
    value: bytes
    #: Log index of the entry that last wrote it.
    revision: int
    #: Log index of the entry that created it.
    created: int
    #: How often it was written since, that first time included. A delete ends the count.
    version: int
    #: The session it ends with, or 0.
    session: int
    #: Cluster time in nanoseconds at which it falls due, or 0.
    expires_at: int
    #: Its share of the state hash.
    digest: int


class Change(NamedTuple):
    """One key's change, for watches."""

    #: PUT or DELETE.
    kind: str
    key: str
    #: What the key holds now; None when deleted.
    record: Record | None
    revision: int
    #: Not seen happening: found by comparing the state with a snapshot that replaced it. Steps between may be missing.
    resync: bool


def make_row(key: bytes, value: bytes, revision: int, before: Row | None, session: int, expires_at: int) -> Row:
    """The row that writing `value` at `revision` makes of `before`. `key` is in UTF-8."""
    created, version = (revision, 1) if before is None else (before[2], before[3] + 1)
    digest = record_digest(key, value, revision, created, version, session, expires_at)
    return value, revision, created, version, session, expires_at, digest


def changes_of(revision: int, writes: Iterable[Write], resync: bool) -> list[Change]:
    """`writes` as watches see them."""
    new = tuple.__new__  # a third of what calling a NamedTuple costs
    return [
        new(Change, (DELETE, key, None, revision, resync))
        if after is None
        else new(Change, (PUT, key, new(Record, after), revision, resync))
        for key, _, after in writes
    ]
