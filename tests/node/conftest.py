"""Groups for the tests of the public API. Each ends with its test, whatever the test did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coord
from node.group import QUICK, Group, LabNode


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory with a short path: an ipc address has about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="coord") as path:
        yield path


@pytest.fixture
def alone() -> Iterator[coord.Node]:
    """A volatile group of one."""
    with coord.Node(options=QUICK, registry=None) as node:
        yield node


@pytest.fixture
def cfg(alone: coord.Node) -> coord.ConfigMap:
    """The config map of a volatile group of one."""
    return alone.config


@pytest.fixture
def make_group(directory: str) -> Iterator[Callable[..., Group]]:
    """Makes groups of three, not started. Arguments: `durable`, and fields of Options."""
    made: list[Group] = []

    def make(**arguments: Any) -> Group:
        made.append(Group(directory, **arguments))
        return made[-1]

    yield make
    for group in made:
        group.close()


@pytest.fixture
def three(make_group: Callable[..., Group]) -> Group:
    """A volatile group of three, started."""
    group = make_group()
    group.start()
    return group


@pytest.fixture
def leader(three: Group) -> LabNode:
    return three.leader()
