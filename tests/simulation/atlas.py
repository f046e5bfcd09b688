"""The fault atlas: which disks may be harmed, so that every committed entry keeps a good copy and a majority remains.

So whatever is lost all the same, and whoever stands still, is a bug and no bad luck. What must not live here: how a
disk is harmed (`coord.testing.disk`), or when (`faults`).
"""

from __future__ import annotations


class Atlas:
    def __init__(self, names: tuple[str, ...], spare: int) -> None:
        """`spare`: how many of `names` may be harmed at most: a minority, less those that are lost otherwise."""
        self._names = names
        self._spare = spare
        self._harm: dict[str, str] = {}
        self._wiped: set[str] = set()

    def may_harm(self, name: str) -> bool:
        return name in self._harm or len(self._harm) < self._spare

    def harmed(self, name: str, what: str, *, wiped: bool = False) -> None:
        assert self.may_harm(name), name
        self._harm[name] = what
        if wiped:
            self._wiped.add(name)

    def harm(self, name: str) -> str:
        """What happened to that member's disk, or ""."""
        return self._harm.get(name, "")

    def is_wiped(self, name: str) -> bool:
        return name in self._wiped
