"""`coord wal dump|verify`: says what is there, finds every damage, changes nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from coord.cli.wal import DAMAGED, OK, USAGE, add_parser
from coord.raft.messages import HardState, Persist
from coord.storage.files import OsFiles
from storage.builders import appended, batch, meta_of, open_storage, put, take_snapshot


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["wal", *words])
    code = args.func(args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A member's directory with every kind of record, two snapshots, and nobody running."""
    storage = open_storage(OsFiles(), f"{tmp_path}/m")
    storage.recover()
    put(storage, Persist(1, HardState(1, "a"), batches=[batch(1, 1, count=2), batch(3, 1)]))
    put(storage, appended(2, 4, 1, size=200), appended(3, 5, 1, size=200))
    put(storage, Persist(4, HardState(2), None, 5, [batch(5, 2)], commit=4))
    take_snapshot(storage, 3, 1)
    take_snapshot(storage, 20, 2)
    put(storage, Persist(5, reset=meta_of(20, 2)), appended(6, 21, 2))
    storage.close()
    return tmp_path / "m"


def state_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_dump_as_lines(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(directory)
    assert run("dump", str(directory)) == OK
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "batches=1-2t1,3-3t1" in text
    assert "truncate_from=5" in text
    assert "reset_to=20t2" in text
    assert "term=1 vote=a" in text
    assert lines[0].split()[:3] == ["wal-0000000000000001", "0", "segment"]
    assert lines[1].split()[2] == "checkpoint"
    assert lines[-1].split()[2] in ("persist", "mark")
    assert state_of(directory) == before


def test_dump_as_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dump", str(directory), "-o", "json") == OK
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sequences = [row["sequence"] for row in rows if "sequence" in row]
    assert sequences == list(range(1, len(sequences) + 1))
    assert [row["kind"] for row in rows].count("segment") == len(list(directory.glob("wal-" + "[0-9a-f]" * 16)))


def test_verify_says_fine(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(directory)
    assert run("verify", str(directory)) == OK
    out = capsys.readouterr().out
    assert "no damage" in out
    assert "member 'a' of group 'g'" in out
    assert run("verify", str(directory), "-o", "json") == OK
    assert json.loads(capsys.readouterr().out)["damage"] == []
    assert state_of(directory) == before


def test_verify_of_a_running_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No lock is taken, and what is not marked as durable yet is fine."""
    storage = open_storage(OsFiles(), f"{tmp_path}/m")
    storage.recover()
    put(storage, appended(1, 1, 1))
    assert run("verify", f"{tmp_path}/m") == OK
    assert run("dump", f"{tmp_path}/m") == OK
    put(storage, appended(2, 2, 1))
    assert storage.failure is None
    storage.close()


@pytest.mark.parametrize("pattern", ["wal-*", "snapshot-*", "identity"])
def test_verify_finds_damage_and_says_what_to_do(
    pattern: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(directory.glob(pattern)):
        if path.suffix:
            continue
        good = path.read_bytes()
        # The middle of what is used, not of the room behind it.
        at = len(good.rstrip(b"\0")) // 2
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
        assert run("verify", str(directory)) == DAMAGED
        out = capsys.readouterr().out
        assert path.name in out
        assert "what to do" in out
        assert run("dump", str(directory)) == OK
        capsys.readouterr()
        path.write_bytes(good)
    assert run("verify", str(directory)) == OK


def test_not_a_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("dump", "verify"):
        assert run(command, str(tmp_path)) == USAGE
        assert "no member's data" in capsys.readouterr().err
        assert run(command, f"{tmp_path}/absent") == USAGE
        assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        run("polish", str(tmp_path))
    assert usage.value.code == USAGE
