"""Directories with short names, as a Unix socket's path has 107 bytes at most, and nodes that run in them."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import Process, StartNode


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="coord-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="coord-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def start_node() -> Iterator[StartNode]:
    """Start `coord node` with these arguments, and wait until it runs; whatever is left is killed at the end."""
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        process = Process("node", *arguments, **environment)
        started.append(process)
        process.wait_for(" runs: ")
        return process

    yield start
    for process in started:
        process.end(signal.SIGKILL)
