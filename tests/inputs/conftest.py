"""Groups of nodes within the test's own process, quick to elect, stopped at the end whatever happens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coord
from processes.harness import free_addresses

#: Nothing here takes so long; a stalled machine may.
PATIENCE = 60.0
QUICK = coord.Options(heartbeat=0.05, election_timeout=(0.3, 0.6), session_ttl=5.0, wal_segment_bytes=1 << 20)


class Nodes:
    """Makes members a, b and c of one group, each with its address and its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.peers = dict(zip("abc", free_addresses(), strict=False))
        self._made: list[coord.Node] = []

    def make(self, name: str, **changes: Any) -> coord.Node:
        settings: dict[str, Any] = {
            "bind": self.peers[name],
            "peers": self.peers,
            "data_dir": self.directory / name,
            "options": QUICK,
            "registry": None,
            **changes,
        }
        node = coord.Node(name, **settings)
        self._made.append(node)
        return node

    def start(self, *names: str) -> list[coord.Node]:
        return [self.make(name).start() for name in names]

    def close(self) -> None:
        for node in self._made:
            node.stop(0.0)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="coord-") as directory:
        nodes = Nodes(Path(directory))
        try:
            yield nodes
        finally:
            nodes.close()


@pytest.fixture
def node() -> Iterator[coord.Node]:
    """A group of one, serving."""
    with coord.Node(registry=None) as node:
        yield node


def until(condition: Any, what: str) -> Any:
    """Wait until `condition()` is true, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return found
