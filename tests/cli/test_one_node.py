"""Every command against one real `coord node` process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import PATIENCE, Process, complaint, environment, output, parsed, run


@pytest.fixture(scope="module")
def at(shared_folder: Path) -> Iterator[tuple[str, str]]:
    """The arguments that name the node."""
    directory = str(shared_folder / "data")
    node = Process("node", "--data-dir", directory)
    node.wait_for(" runs: ")
    yield "--data-dir", directory
    assert node.end() == 0
    # What `test_hostile_bytes_do_not_stop_the_node` left, if it ran; of all its connections the first alone.
    assert node.errors.count("\n") == node.errors.count("control: dropped a connection") <= 1


def test_put_and_get(at: tuple[str, str]) -> None:
    revision = int(output("put", "greeting", "hello", *at))
    assert output("get", "greeting", *at) == "hello\n"
    assert output("get", "greeting", "--linearizable", *at) == "hello\n"
    assert parsed("get", "greeting", *at) == {
        "key": "greeting",
        "value": "hello",
        "revision": revision,
        "created": revision,
        "version": 1,
        "session": 0,
    }


def test_values_that_are_json(at: tuple[str, str]) -> None:
    output("put", "json", '{"b": [1, 2.5, null, true, "é"]}', "--json", *at)
    assert json.loads(output("get", "json", *at)) == {"b": [1, 2.5, None, True, "é"]}
    output("put", "json", "12", *at)
    assert parsed("get", "json", *at)["value"] == "12"
    output("put", "json", "12", "--json", *at)
    assert parsed("get", "json", *at)["value"] == 12
    assert "VALUE is not JSON" in complaint(2, "put", "json", "{", "--json", *at)
    assert "cannot be stored" in complaint(2, "put", "json", "NaN", "--json", *at)
    assert "cannot be sent" in complaint(2, "put", "json", str(1 << 70), "--json", *at)


def test_a_value_from_stdin(at: tuple[str, str]) -> None:
    output("put", "piped", "-", *at, stdin="two\nlines")
    assert output("get", "piped", *at) == "two\nlines\n"
    done = subprocess.run(
        [sys.executable, "-m", "coord.cli", "put", "bytes", "-", *at],
        input=b"\xff\x00",
        stdout=subprocess.PIPE,
        env=environment(),
        cwd="/",
        timeout=PATIENCE,
        check=True,
    )
    assert int(done.stdout)
    assert parsed("get", "bytes", *at)["value"] == {"$bytes": "/wA="}
    raw = subprocess.run(
        [sys.executable, "-m", "coord.cli", "get", "bytes", *at],
        stdout=subprocess.PIPE,
        env=environment(),
        cwd="/",
        timeout=PATIENCE,
        check=True,
    )
    assert raw.stdout == b"\xff\x00"


def test_compare_and_set(at: tuple[str, str]) -> None:
    first = output("put", "cas", "1", "--if-revision", "0", *at).strip()
    assert "not the one asked for; nothing was changed" in complaint(1, "put", "cas", "2", "--if-revision", "0", *at)
    output("put", "cas", "2", "--if-revision", first, *at)
    assert "nothing was changed" in complaint(1, "delete", "cas", "--if-revision", first, *at)
    assert output("get", "cas", *at) == "2\n"


def test_delete(at: tuple[str, str]) -> None:
    output("put", "gone", "x", *at)
    assert output("delete", "gone", *at) == ""
    assert complaint(1, "get", "gone", *at) == "coord: 'gone' is absent"
    assert complaint(1, "delete", "gone", *at) == "coord: 'gone' was absent; nothing changed"
    output("put", "gone", "x", *at)
    assert parsed("delete", "gone", *at) == {"key": "gone", "deleted": True}


def test_a_key_with_a_ttl_goes(at: tuple[str, str]) -> None:
    output("put", "ttl/there", "x", *at)
    watch = Process("watch", "ttl/", "-o", "json", "--timeout", "30", *at)
    watch.wait_for("ttl/there")
    output("put", "ttl/k", "x", "--ttl", "0.3", *at)
    watch.wait_for('"delete"')
    assert watch.end(signal.SIGINT) == 0
    assert "ttl" in complaint(2, "put", "ttl/k", "x", "--ttl", "0", *at)


def test_ls(at: tuple[str, str]) -> None:
    for key in ("ls/b", "ls/a", "ls/\x1b[2J"):
        output("put", key, "", *at)
    assert output("ls", "ls/", *at) == "ls/\\x1b[2J\nls/a\nls/b\n"
    assert parsed("ls", "ls/", *at) == ["ls/\x1b[2J", "ls/a", "ls/b"]
    assert set(parsed("ls", *at)) >= {"ls/a", "ls/b"}
    assert output("ls", "no/such/", *at) == ""


def test_watch_tells_what_is_there_and_what_changes(at: tuple[str, str]) -> None:
    revision = int(output("put", "watch/a", "[1]", "--json", *at))
    watch = Process("watch", "watch/", *at)
    assert watch.wait_for("watch/a") == f"{revision}  put  watch/a = [1]"
    output("put", "unrelated", "x", *at)
    output("put", "watch/b", "two", *at)
    assert watch.wait_for("watch/b").endswith("  put  watch/b = two")
    output("delete", "watch/a", *at)
    assert watch.wait_for("delete").endswith("  delete  watch/a")
    assert watch.end(signal.SIGINT) == 0
    assert watch.errors == ""
    assert len(watch.lines) == 3


def test_watch_from_a_revision_until_a_timeout(at: tuple[str, str]) -> None:
    output("put", "since/a", "1", *at)
    revision = int(output("put", "since/a", "2", *at))
    lines = output("watch", "since/", "--from-revision", str(revision), "--timeout", "0.5", "-o", "json", *at)
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"kind": "put", "key": "since/a", "value": "2", "revision": revision}
    ]
    assert "from_revision=0" in complaint(2, "watch", "--from-revision", "0", "--timeout", "5", *at)


def test_status_members_leader(at: tuple[str, str]) -> None:
    lines = output("status", *at).splitlines()
    assert lines[0].startswith("group coord  leader node  quorum yes  commit ")
    header, row = (line.split() for line in lines[1:])
    assert header == ["NAME", "ROLE", "TERM", "ALIVE", "MATCH", "LAG", "APPLIED", "HASH", "ADDRESS"]
    assert row[:4] == ["node", "leader", "1", "yes"]
    status = parsed("status", *at)
    assert (status["role"], status["quorum_ok"]) == ("leader", True)
    assert status["control"]["address"] == f"ipc://{at[1]}/control.sock"
    assert parsed("members", *at)[0]["name"] == "node"
    assert output("members", *at).splitlines()[1].split() == ["node", "yes", "-"]
    assert output("leader", *at) == "node\n"
    assert parsed("leader", *at) == {"leader": "node", "term": 1}


def test_transfer_with_nobody_to_transfer_to(at: tuple[str, str]) -> None:
    assert "leadership was not handed over" in complaint(1, "transfer", *at)
    assert "'x' is no member of the group" in complaint(2, "transfer", "x", *at)


def test_the_node_may_be_named_by_the_environment(at: tuple[str, str]) -> None:
    assert output("leader", COORD_DATA_DIR=at[1]) == "node\n"
    assert output("leader", COORD_CONTROL=f"ipc://{at[1]}/control.sock", COORD_DATA_DIR="/nowhere") == "node\n"
    assert "not both" in complaint(2, "leader", *at, "--control", "ipc:///x")
    assert "no node takes commands at ipc:///nowhere/control.sock" in complaint(1, "leader", "-d", "/nowhere")


def test_a_reader_that_stops_reading_is_no_error(at: tuple[str, str]) -> None:
    output("put", "large", "x" * 60_000, *at)
    process = subprocess.Popen(
        [sys.executable, "-m", "coord.cli", "watch", "large", *at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd="/",
    )
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.stdout.close()
    for number in range(3):
        output("put", "large", f"{number}" * 60_000, *at)
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_hostile_bytes_do_not_stop_the_node(at: tuple[str, str]) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{at[1]}/control.sock")
            connection.sendall(b"\x00\x00\x00\x02\x01\x01")
            assert connection.recv(1) == b""
    assert parsed("status", *at)["control"]["dropped"] == 3


def test_the_directory_is_taken(at: tuple[str, str]) -> None:
    assert at[1] in complaint(1, "node", *at)


def test_the_log_can_be_looked_into_meanwhile(at: tuple[str, str]) -> None:
    assert run("wal", "verify", at[1]).returncode == 0
