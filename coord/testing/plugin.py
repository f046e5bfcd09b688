"""The pytest plugin: fixtures that hand a test a group of its own, and say in the report of a failure how that stood.

Installed with `coord`, it is found by itself; from a checkout, `-p coord.testing.plugin`.
What must not live here: anything a test without these fixtures would pay for; the group is imported by the first that
uses one.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coord.node import Node
    from coord.testing.group import Group

_MARKER = (
    "coord(members=3, names=None, options=None, seed=None, loss=0.0, delay=None): how the coord_group, coord_node and "
    "coord_virtual_group of a test are made; arguments as for coord.testing.Group"
)
_GROUPS: pytest.StashKey[list[Group]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("coord").addoption(
        "--coord-seed",
        type=int,
        default=None,
        metavar="N",
        help="the seed of every coord group, instead of one from each test's name; a marker's own seed goes first",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A failure's report shows the group as it was then: its seed before all."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for group in item.stash.get(_GROUPS, []):
            report.sections.append(("coord", group.describe()))


@pytest.fixture
def coord_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A `coord.testing.Group` of three members, started, in real time. It ends with the test."""
    yield from _group(request, virtual=False)


@pytest.fixture
def coord_virtual_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A `coord.testing.Group` of three members, started, in virtual time, with a seed from the test's name."""
    yield from _group(request, virtual=True)


@pytest.fixture
def coord_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A `coord.Node`, started: a group of one, in real time. It ends with the test."""
    for group in _group(request, virtual=False, names=None, members=1):
        yield group[group.names[0]]


def _group(request: pytest.FixtureRequest, **arguments: Any) -> Iterator[Group]:
    from coord.testing.group import Group

    settings = {"seed": _seed(request), **_marked(request), **arguments}
    with Group(**settings) as group:
        stash = request.node.stash
        stash.setdefault(_GROUPS, []).append(group)
        yield group


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the test's markers say; the nearest one wins."""
    settings: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("coord"))):
        if marker.args:
            raise pytest.UsageError(f"@pytest.mark.coord takes named arguments only, not {marker.args!r}")
        settings |= marker.kwargs
    return settings


def _seed(request: pytest.FixtureRequest) -> int:
    """The same in every run, from every folder; another for every test."""
    chosen: int | None = request.config.getoption("--coord-seed")
    if chosen is not None:
        return chosen
    _, _, name = request.node.nodeid.partition("::")
    return zlib.crc32(name.encode())
