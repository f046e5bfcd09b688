"""The 64-bit digests the running state hash is a sum of.

Each item of the state has one, made of all it consists of; the state's is their sum modulo 2**64, so it does not depend
on any order and replacing an item costs one subtraction and one addition. It finds members that diverged (trap 52); it
is no defence against somebody who forges a collision.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import msgpack

MASK = (1 << 64) - 1

_RECORD = struct.Struct("<QQQQQH")
#: Prepared once for each kind of item, so that equal bytes of two kinds have different digests; copied for each use.
_RECORD_HASH = blake2b(digest_size=8, person=b"record")
_SESSION_HASH = blake2b(digest_size=8, person=b"session")
_ENDED_HASH = blake2b(digest_size=8, person=b"ended")
_LOCK_HASH = blake2b(digest_size=8, person=b"lock")
_STATE_HASH = blake2b(digest_size=8, person=b"state")


def record_digest(
    key: bytes, value: bytes, revision: int, created: int, version: int, session: int, expires_at: int
) -> int:
    """Digest of a config key and all its record holds. `key` is in UTF-8."""
    hasher = _RECORD_HASH.copy()
    hasher.update(_RECORD.pack(revision, created, version, session, expires_at, len(key)) + key + value)
    return int.from_bytes(hasher.digest(), "little")


def session_digest(row: tuple[object, ...]) -> int:
    """Digest of a live session: its attributes, low water and remembered replies, in sequence order."""
    hasher = _SESSION_HASH.copy()
    hasher.update(msgpack.packb(row))
    return int.from_bytes(hasher.digest(), "little")


def ended_digest(session: int, index: int) -> int:
    """Digest of the memory that `session` ended at `index`."""
    hasher = _ENDED_HASH.copy()
    hasher.update(struct.pack("<QQ", session, index))
    return int.from_bytes(hasher.digest(), "little")


def lock_digest(row: tuple[object, ...]) -> int:
    """Digest of a lock: its permits, delays, holders and waiters, in their order."""
    hasher = _LOCK_HASH.copy()
    hasher.update(msgpack.packb(row))
    return int.from_bytes(hasher.digest(), "little")


def state_digest(row: tuple[object, ...]) -> int:
    """Digest of the whole: the sums of the tables, and what there is only one of."""
    hasher = _STATE_HASH.copy()
    hasher.update(msgpack.packb(row))
    return int.from_bytes(hasher.digest(), "little")
