"""The transport tests' fixtures: three ways to connect members, and members in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transport_lab import Lab, OtherProcess


@pytest.fixture(params=["tcp", "ipc", "memory"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["tcp", "ipc"])
def socket_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tcp_lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab("tcp", tmp_path)
    yield made
    made.close()


@pytest.fixture
def other_process() -> Iterator[Callable[..., OtherProcess]]:
    started: list[OtherProcess] = []

    def start(script: str, *arguments: str) -> OtherProcess:
        started.append(OtherProcess(script, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.end()
