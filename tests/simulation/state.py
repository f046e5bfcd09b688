"""The replicated state of a simulated member: what was applied, boiled down to a hash and a few counters.

Entries are `session 4 | number 4 | filling`. A session's numbers must be applied for the first time in order and
without a gap: that is what first in, first out for each member means, and what the real state's sessions build on.
What must not live here: how an entry came to be committed.
"""

from __future__ import annotations

import hashlib
import struct

from coord.raft.batch import COMMANDS, Batch

_ENTRY = struct.Struct("<II")
_SNAPSHOT = struct.Struct("<Q32sI")


def entry_payload(session: int, number: int, filling: int) -> bytes:
    return _ENTRY.pack(session, number) + b"." * filling


class Gap(Exception):
    """A session's numbers skip one."""


class State:
    def __init__(self) -> None:
        self.index = 0
        self.digest = bytes(32)
        #: The highest number applied of each session.
        self.applied: dict[int, int] = {}

    def apply(self, batch: Batch) -> None:
        assert batch.first == self.index + 1, f"{batch!r} applied after {self.index}"
        if batch.kind == COMMANDS:
            for payload in batch.payloads():
                session, number = _ENTRY.unpack_from(payload)
                before = self.applied.get(session, 0)
                if number > before + 1:
                    raise Gap(f"session {session}: {number} after {before}, in {batch!r}")
                if number == before + 1:
                    self.applied[session] = number
        self.index = batch.last
        self.digest = hashlib.blake2b(self.digest + batch.data, digest_size=32).digest()

    def encode(self) -> bytes:
        rows = sorted(self.applied.items())
        head = _SNAPSHOT.pack(self.index, self.digest, len(rows))
        return head + b"".join(_ENTRY.pack(session, number) for session, number in rows)


def restored(content: bytes) -> State:
    state = State()
    state.index, state.digest, count = _SNAPSHOT.unpack_from(content)
    for position in range(count):
        session, number = _ENTRY.unpack_from(content, _SNAPSHOT.size + position * _ENTRY.size)
        state.applied[session] = number
    return state
