"""The replicated state in other processes and other Pythons: the same commands, hostile ones among them, and the same
hash, replies, changes and snapshot bytes, whatever the hash seed, and whether a snapshot came in between or not.

`tests/machine/test_reference` holds some fixed histories against a reference and other hash seeds; here they are drawn,
broken in places, and the other versions of Python this project supports are asked as well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coord
from coord.machine import commands
from coord.machine.limits import Limits
from coord.machine.machine import Machine
from machine.histories import Historian
from properties.replay import Entries, account, encode

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
SCRIPT = Path(__file__).parent / "replay.py"
#: What `coord` asks for in setup.cfg.
OLDEST_MSGPACK = (1, 2, 1)
TAKES_AT_MOST = 60.0
MAX = (1 << 63) - 1

numbers = st.sampled_from([-(1 << 63), -2, -1, 0, 1, 2, 7, 1024, MAX, (1 << 64) - 1]) | st.integers(-10, 1 << 64 - 1)
fields = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.floats()
    | st.binary(max_size=9)
    | st.text(max_size=5)
    | st.just("k" * 513),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)
operations = st.sampled_from([0, 1, 2, 3, 4, 5, 16, 32, 33, 34, 48, 127, -1, MAX])
shaped = st.tuples(operations, st.lists(fields, max_size=8)).map(lambda made: msgpack.packb([made[0], *made[1]]))


@st.composite
def histories(draw: st.DrawFn) -> Entries:
    """What careless members commit, with bytes of all kinds in place of some commands, and clocks that leap."""
    entries = [
        (entry.index, entry.term, entry.time, entry.payload)
        for entry in Historian(random.Random(draw(st.integers(0, 1 << 32)))).entries(draw(st.integers(1, 80)))
    ]
    for _ in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, len(entries) - 1))
        index, term, time, payload = entries[at]
        what = draw(st.sampled_from(["bytes", "shaped", "changed", "time", "limits", "report"]))
        if what == "bytes":
            payload = draw(st.binary(max_size=40) | st.just(b"\x91" * 3000) | st.just(b"\xdd\xff\xff\xff\xff"))
        elif what == "shaped":
            payload = draw(shaped)
        elif what == "changed" and payload:
            changed = bytearray(payload)
            changed[draw(st.integers(0, len(payload) - 1))] ^= draw(st.integers(1, 255))
            payload = bytes(changed)
        elif what == "limits":
            payload = commands.set_limits(Limits(value_bytes=draw(st.integers(1, 100))), draw(st.integers(0, index)))
        elif what == "report":
            payload = commands.report_hash(draw(st.sampled_from(["a", "é"])), index, draw(st.integers(0, 9)))
        else:
            time = draw(st.sampled_from([0, time + 50, MAX]))
        entries[at] = (index, term, time, payload)
    return entries


class Elsewhere:
    """Another process that runs `replay`. Skips the test where it cannot."""

    def __init__(self, python: str, hash_seed: str) -> None:
        self.process = subprocess.Popen(
            [python, str(SCRIPT), str(Path(coord.__file__).parent), str(Path(msgpack.__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._ask, self._answers = self.process.stdin, self.process.stdout

    def hello(self) -> tuple[str, tuple[int, ...]]:
        """Which Python it is, and its msgpack; skips the test when it has none that will do."""
        line = self._answers.readline()
        if not line:
            _, problem = self.process.communicate()
            if "No module named 'msgpack'" in problem:
                pytest.skip("it has no msgpack")
            pytest.fail(f"it did not start: {problem}")
        version, packer, _ = json.loads(line)
        if tuple(packer) < OLDEST_MSGPACK:
            pytest.skip(f"its msgpack is {packer}")
        return ".".join(map(str, version)), tuple(packer)

    def account(self, entries: Entries, cut_after: int) -> dict[str, Any]:
        self._ask.write(encode(entries, cut_after) + "\n")
        self._ask.flush()
        line = self._answers.readline()
        assert line, f"it ended: {self.process.communicate()[1]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Its input ends, and so it does."""
        try:
            self.process.communicate(timeout=TAKES_AT_MOST)
        finally:
            self.process.kill()


def find_python(version: str) -> str | None:
    """A Python of this version that starts: on the path, or one of those pyenv keeps, whichever it has switched on."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = shutil.which("pyenv")
    roots = [os.environ.get("PYENV_ROOT"), str(Path(pyenv).resolve().parents[1]) if pyenv else None]
    for root in filter(None, roots):
        candidates += sorted(map(str, Path(root).glob(f"versions/{version}.*/bin/python")))
    for candidate in filter(None, candidates):
        try:
            found = subprocess.run(
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                timeout=TAKES_AT_MOST,
                check=False,
            )
        except OSError:
            continue
        if found.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture(scope="module", params=["0", "1", "4294967295"], ids=lambda seed: f"hash seed {seed}")
def other_seed(request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    elsewhere = Elsewhere(sys.executable, request.param)
    try:
        elsewhere.hello()
        yield elsewhere
    finally:
        elsewhere.close()


@pytest.fixture(scope="module", params=VERSIONS)
def other_python(request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    if request.param == "{}.{}".format(*sys.version_info[:2]):
        pytest.skip("it is this one")
    python = find_python(request.param)
    if python is None:
        pytest.skip("it is not on this machine")
    elsewhere = Elsewhere(python, "random")
    try:
        version, _ = elsewhere.hello()
        assert version.startswith(request.param + "."), f"{python} is {version}"
        yield elsewhere
    finally:
        elsewhere.close()


def same(here: dict[str, Any], there: dict[str, Any]) -> None:
    for number, (mine, other) in enumerate(zip(here["replies"], there["replies"], strict=True)):
        assert mine == other, f"entry {number} was answered {mine} here and {other} there"
    differ = {name: (here[name], there[name]) for name in here if here[name] != there[name]}
    assert not differ, f"differ: {differ}"


@settings.get_profile("slow properties")
@given(entries=histories(), data=st.data())
def test_trap_52_any_history_is_the_same_under_another_hash_seed(
    other_seed: Elsewhere, entries: Entries, data: st.DataObject
) -> None:
    cut_after = data.draw(st.integers(0, len(entries) - 1), label="snapshot after")
    same(account(entries, cut_after), other_seed.account(entries, cut_after))


@settings.get_profile("slow properties")
@given(entries=histories(), data=st.data())
def test_trap_52_any_history_is_the_same_in_another_python(
    other_python: Elsewhere, entries: Entries, data: st.DataObject
) -> None:
    cut_after = data.draw(st.integers(0, len(entries) - 1), label="snapshot after")
    same(account(entries, cut_after), other_python.account(entries, cut_after))


@settings.get_profile("properties")
@given(entries=histories(), data=st.data())
def test_a_snapshot_anywhere_in_any_history_changes_nothing(entries: Entries, data: st.DataObject) -> None:
    cut_after = data.draw(st.integers(0, len(entries) - 1), label="snapshot after")
    found = account(entries, cut_after)
    assert found["state hash after a snapshot"] == found["state hash"], "another state"
    assert found["snapshot after a snapshot"] == found["snapshot"], "another snapshot"


@settings.get_profile("properties")
@given(before=histories(), hostile=shaped | st.binary(max_size=60))
def test_what_is_no_command_changes_nothing_but_the_index(before: Entries, hostile: bytes) -> None:
    machine, twin = Machine(), Machine()
    for entry in before:
        machine.apply(*entry)
        twin.apply(*entry)
    index, term, time = machine.applied_index + 1, before[-1][1], machine.time
    try:
        commands.decode(hostile)
    except commands.BadCommand:
        machine.apply(index, term, time, hostile)
        twin.skip(index, time)
        assert machine.state_hash == twin.state_hash, "a refused command left something behind"
        assert machine.take_changes() == twin.take_changes(), "a refused command was told to watches"
    else:
        # A command after all: it must at least be the same twice.
        outcomes = [one.apply(index, term, time, hostile) for one in (machine, twin)]
        assert outcomes[0] == outcomes[1], "the same command, two replies"
        assert machine.state_hash == twin.state_hash, "the same command, two states"
