"""What was written, acknowledged and seen, and what may not be: the judge of the tests that kill processes.

Each value is written once. A write is acknowledged, refused (certainly no effect) or unknown; later on it is there, not
there, or either. What must not live here: processes, threads, waiting.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Key:
    """The history of one key, which has one writer."""

    attempted: set[Any] = field(default_factory=set)
    refused: set[Any] = field(default_factory=set)
    #: Values by revision, acknowledged or seen; and the newest revision acknowledged.
    values: dict[int, Any] = field(default_factory=dict)
    acknowledged: int = 0


class History:
    """Safe for use by any thread. Raises AssertionError at the first thing that may not be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}
        #: Newest revision each reader has seen of each key.
        self._newest: dict[tuple[object, str], int] = {}
        self.acknowledged = self.refused = self.unknown = self.seen = 0

    def attempt(self, key: str, value: Any) -> None:
        """About to be written."""
        with self._lock:
            attempted = self._keys.setdefault(key, Key()).attempted
            assert value not in attempted, "each value is written once"
            attempted.add(value)

    def acknowledge(self, key: str, value: Any, revision: int) -> None:
        with self._lock:
            known = self._keys[key]
            assert revision > known.acknowledged, f"{key}: acknowledged {known.acknowledged}, then {revision}"
            assert known.values.setdefault(revision, value) == value, (key, revision, value, known.values[revision])
            known.acknowledged = revision
            self.acknowledged += 1

    def refuse(self, key: str, value: Any) -> None:
        """The writer was told that it certainly had no effect."""
        with self._lock:
            self._keys[key].refused.add(value)
            self.refused += 1

    def doubt(self) -> None:
        """The writer was told that nobody knows, or told nothing."""
        with self._lock:
            self.unknown += 1

    def floor(self, key: str) -> int:
        """The newest revision acknowledged by now: a linearizable read that begins now finds it, or a newer one."""
        with self._lock:
            return self._keys[key].acknowledged if key in self._keys else 0

    def see(self, reader: object, key: str, revision: int, value: Any, floor: int = 0) -> None:
        """`reader` found `value` at `revision`; revision 0: no such key."""
        with self._lock:
            self.seen += 1
            assert revision >= floor, f"{reader} found {key} at {revision} after {floor} was acknowledged"
            before = self._newest.get((reader, key), 0)
            assert revision >= before, f"{reader} saw {key} go back from {before} to {revision}"
            self._newest[reader, key] = revision
            if revision:
                self._check(key, revision, value)

    def check_end(self, found: dict[str, list[Any]]) -> None:
        """`found`: every key's value and revision, read after all writing ended."""
        with self._lock:
            for key, known in self._keys.items():
                value, revision = found.get(key, (None, 0))
                assert revision >= known.acknowledged, f"{key}: acknowledged at {known.acknowledged}, found {revision}"
                if revision:
                    self._check(key, revision, value)
            assert found.keys() <= self._keys.keys(), found.keys() - self._keys.keys()

    def _check(self, key: str, revision: int, value: Any) -> None:
        known = self._keys.get(key)
        assert known is not None, f"{key} was never written, and is {value!r}"
        assert value in known.attempted, f"{key}: {value!r} at {revision} was never written"
        assert value not in known.refused, f"{key}: {value!r} at {revision} was said to have had no effect"
        assert known.values.setdefault(revision, value) == value, (key, revision, value, known.values[revision])
