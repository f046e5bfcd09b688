"""Config keys in order, for reads by prefix.

The keys are in one big list, and those created since it was made in a small one; both sorted. A deleted key stays until
the next merge: the index answers with candidates, and the store knows which of them exist. Any thread may ask while the
writer adds, if it then makes sure that nothing was added meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable

#: Merge when this many keys are new, or a 64th of all: a merge touches every key, an insertion every new one.
_FRESH_MIN = 1024
_FRESH_FRACTION = 64


class KeyIndex:
    """Invariant: every existing key is in one of the two lists of `_order`."""

    __slots__ = ("_order", "_stale")

    def __init__(self, keys: Iterable[str] = ()) -> None:
        #: (all, created since): one word, so that a reader never sees the one without the other.
        self._order: tuple[list[str], list[str]] = (sorted(keys), [])
        #: How many were deleted since the last merge.
        self._stale = 0

    def add(self, key: str, existing: Collection[str]) -> None:
        """Note that `key` was created. `existing`: all keys there are."""
        ordered, fresh = self._order
        place = bisect_left(fresh, key)
        if place < len(fresh) and fresh[place] == key:
            return  # created, deleted, created again
        fresh.insert(place, key)
        if len(fresh) >= max(_FRESH_MIN, len(ordered) // _FRESH_FRACTION):
            merged = self.candidates()
            if self._stale:
                merged = [key for key in merged if key in existing]
                self._stale = 0
            self._order = (merged, [])

    def discard(self) -> None:
        """Note that a key was deleted."""
        self._stale += 1

    def candidates(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, in order, each once; some may no longer exist. From any thread."""
        ordered, fresh = self._order
        found = _with_prefix(ordered, prefix)
        extra = _with_prefix(fresh, prefix)
        return _merge(found, extra) if extra else found


def _merge(many: list[str], few: list[str]) -> list[str]:
    """All keys of two sorted lists, sorted, each once. A sort would compare every key of the long one."""
    merged: list[str] = []
    start = 0
    for key in few:
        place = bisect_left(many, key, start)
        merged += many[start:place]
        start = place
        if place == len(many) or many[place] != key:
            merged.append(key)
    merged += many[start:]
    return merged


def _with_prefix(ordered: list[str], prefix: str) -> list[str]:
    if not prefix:
        return ordered.copy()
    low = bisect_left(ordered, prefix)
    high = bisect_left(ordered, True, lo=low, key=lambda key: not key.startswith(prefix))
    return ordered[low:high]
