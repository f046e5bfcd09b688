"""The group in virtual time that most of these tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coord.testing import Group
from peer_bugs.lab import Bench, settle


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=5) as group:
        settle(group)
        yield group


@pytest.fixture
def bench() -> Bench:
    """Two members, a and b, with sessions 1 and 2."""
    bench = Bench()
    bench.open(1, "a")
    bench.open(2, "b")
    return bench
