"""`coord lock` and the node behind it: who waits for whom, what is given back when, and what no asker can do to it."""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import coord
from cli.holding import Diary, Ear, is_gone, wait_until_gone
from cli.lab import PATIENCE, QUICK, Process, StartNode, complaint, output, parsed, run_process
from coord.cli import holds
from coord.cli.control import (
    ControlClient,
    FrameReader,
    Gone,
    control_address,
    receive_frame,
    send_frame,
    target_of,
)
from coord.cli.control_server import CONNECTIONS_MAX, ControlServer
from coord.cli.output import FAILED, TIMEOUT, USAGE, CommandError
from coord.clock import clock
from coord.transports.address import Address

#: Short leases, and elections that leave room for them; `session_ttl` is long enough for a machine that is busy.
SHORT = "heartbeat=0.05 election_timeout=[0.3,0.6] session_ttl=3.0"


def locks(*at: str) -> dict[str, dict[str, Any]]:
    return {lock["name"]: lock for lock in parsed("lock", "ls", *at)}


def wait_for_queue(name: str, length: int, *at: str) -> None:
    deadline = clock() + PATIENCE
    while (locks(*at).get(name) or {"waiting": 0})["waiting"] != length:
        assert clock() < deadline, f"never {length} in the queue of {name!r}: {locks(*at)}"


# Against one node, by the command line.


@pytest.fixture(scope="module")
def at(shared_folder: Path) -> Iterator[tuple[str, str]]:
    """The arguments that name the node."""
    directory = str(shared_folder / "data")
    node = Process("node", "--data-dir", directory)
    node.wait_for(" runs: ")
    yield "--data-dir", directory
    assert node.end() == 0
    assert node.errors == ""


LockRun = Callable[..., Process]


@pytest.fixture
def hold() -> Iterator[LockRun]:
    """Start `coord lock run` with these arguments; whatever is left is killed at the end."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process("lock", "run", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.end(signal.SIGKILL)


@pytest.fixture
def diary(folder: Path) -> Diary:
    return Diary(folder / "diary")


def test_it_runs_a_command_and_gives_the_lock_back(at: tuple[str, str]) -> None:
    script = 'echo "$COORD_LOCK_NAME $COORD_LOCK_TOKEN $COORD_SEQUENCER"; exit 3'
    first, second = (run_process("lock", "run", "back", *at, "--", "sh", "-c", script) for _ in range(2))
    assert (first.returncode, first.stderr) == (second.returncode, second.stderr) == (3, "")
    tokens = []
    for done in (first, second):
        name, token, sequencer = done.stdout.split()
        assert name == "back"
        assert sequencer.startswith("v1:")
        assert f":x:{token}:" in sequencer
        tokens.append(int(token))
    assert 0 < tokens[0] < tokens[1]
    assert "back" not in locks(*at)


def test_one_at_a_time_in_order(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    first = hold("turns", *at, "--", *diary.command(0))
    begun = diary.wait_for("start")
    second = hold("turns", *at, "--", *diary.command(0))
    wait_for_queue("turns", 1, *at)
    assert first.end() == 0
    ended = diary.last(begun.pid)
    then = diary.wait_for("start", 2)
    assert ended.what == "term"
    assert ended.at < then.at
    assert begun.token < then.token
    assert second.end() == 0


def test_ls(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    holder = hold("ls/a", *at, "--", *diary.command(0))
    token = diary.wait_for("start").token
    waiter = hold("ls/a", *at, "--", "true")
    wait_for_queue("ls/a", 1, *at)
    (lock,) = parsed("lock", "ls", "ls/", *at)
    (held,) = lock.pop("holders")
    assert lock == {"name": "ls/a", "mode": "exclusive", "permits": 1, "waiting": 1, "delayed_s": 0.0}
    assert held.pop("held_s") >= 0
    assert int(held.pop("session"), 16) > 0
    assert held == {"owner": "node", "token": token, "slot": 0}
    header, row = output("lock", "ls", "ls/", *at).splitlines()
    assert header.split() == ["NAME", "MODE", "PERMITS", "OWNER", "TOKEN", "SLOT", "HELD", "WAITING", "DELAYED"]
    cells = row.split()
    assert [*cells[:6], *cells[7:]] == ["ls/a", "exclusive", "1", "node", str(token), "0", "1", "-"]
    assert parsed("lock", "ls", "no/such/", *at) == []
    assert holder.end() == 0
    assert waiter.wait() == 0


def test_permits_and_shared_holders(at: tuple[str, str], diary: Diary, folder: Path, hold: LockRun) -> None:
    permitted = [hold("two", "--permits", "2", *at, "--", *diary.command(0)) for _ in range(2)]
    diary.wait_for("start", 2)
    both = locks(*at)["two"]
    assert (both["mode"], both["permits"], sorted(holder["slot"] for holder in both["holders"])) == (
        "semaphore",
        2,
        [0, 1],
    )
    assert len(output("lock", "ls", "two", *at).splitlines()) == 3
    assert "permits" in complaint(2, "lock", "run", "two", "--no-wait", *at, "--", "true")
    assert "held by 'node' (token " in complaint(
        5, "lock", "run", "two", "--permits", "2", "--no-wait", *at, "--", "true"
    )
    readers = Diary(folder / "readers")
    shared = [hold("many", "--shared", *at, "--", *readers.command(0)) for _ in range(2)]
    readers.wait_for("start", 2)
    assert (locks(*at)["many"]["mode"], len(locks(*at)["many"]["holders"])) == ("shared", 2)
    assert "held by" in complaint(5, "lock", "run", "many", "--no-wait", *at, "--", "true")
    assert [process.end() for process in permitted + shared] == [0] * 4


def test_not_in_time(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    holder = hold("busy", *at, "--", *diary.command(0))
    token = diary.wait_for("start").token
    for how in (("--timeout", "0.2"), ("--timeout", "0"), ("--no-wait",)):
        text = complaint(5, "lock", "run", "busy", *how, *at, "--", "true")
        assert text.startswith(f"coord: lock 'busy' was not granted in time: held by 'node' (token {token}, for ")
    # Whoever gave up has left nothing behind.
    assert locks(*at)["busy"]["waiting"] == 0
    assert holder.end() == 0
    assert run_process("lock", "run", "busy", "--no-wait", *at, "--", "true").returncode == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("",), "lock name of 0 bytes"),
        (("x" * 256,), "lock name of 256 bytes"),
        (("election:x",), "those of elections"),
        (("x", "--permits", "0"), "permits=0"),
        (("x", "--permits", "2", "--shared"), "shared"),
        (("x", "--priority", "5000"), "priority=5000"),
        (("x", "--lock-delay", "61"), "lock_delay"),
    ],
)
def test_what_cannot_be(at: tuple[str, str], options: tuple[str, ...], problem: str) -> None:
    assert problem in complaint(2, "lock", "run", *options, *at, "--", "true")


def test_wrong_usage(at: tuple[str, str]) -> None:
    for arguments in (
        ("lock",),
        ("lock", "run", "x", *at),
        ("lock", "run", "x", "--timeout", "1", "--no-wait", "true"),
    ):
        assert run_process(*arguments).returncode == 2


def test_a_waiter_that_is_killed_gives_up_its_place(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    holder = hold("killed", *at, "--", *diary.command(0))
    diary.wait_for("start")
    waiter = hold("killed", *at, "--", "true")
    wait_for_queue("killed", 1, *at)
    waiter.end(signal.SIGKILL)
    wait_for_queue("killed", 0, *at)
    assert holder.end() == 0


def test_told_to_end_it_gives_the_lock_back_without_delay(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    holder = hold("told", *at, "--", *diary.command(0))
    pid = diary.wait_for("start").pid
    assert holder.end() == 0
    assert is_gone(pid)
    assert "told" not in locks(*at)
    assert run_process("lock", "run", "told", "--no-wait", *at, "--", "true").returncode == 0


def test_a_waiting_terminal_is_told_nothing_that_a_log_is(at: tuple[str, str], diary: Diary, hold: LockRun) -> None:
    holder = hold("quiet", *at, "--", *diary.command(0))
    diary.wait_for("start")
    waiter = hold("quiet", *at, "--", "true")
    wait_for_queue("quiet", 1, *at)
    assert holder.end() == 0
    assert waiter.wait() == 0
    assert waiter.errors == ""


# A node that stops, is killed, or is stopped by a signal.


def test_a_node_that_is_stopped_has_commands_ended_first(
    folder: Path, start_node: StartNode, diary: Diary, hold: LockRun
) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at)
    holder = hold("x", *at, "--", *diary.command(3))
    pid = diary.wait_for("start").pid
    waiter = hold("x", *at, "--", *diary.command(0))
    wait_for_queue("x", 1, *at)
    assert node.end() == 0
    assert is_gone(pid)
    assert diary.last(pid).what == "term"
    assert holder.wait() == 3
    assert "the node is being stopped" in holder.errors
    assert waiter.wait() == 1
    assert "the node is being stopped" in waiter.errors
    assert {note.pid for note in diary.notes()} == {pid}


def test_a_command_that_does_not_heed_does_not_outlive_a_stopped_node(
    folder: Path, start_node: StartNode, diary: Diary, hold: LockRun
) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at, COORD_OPTIONS=SHORT)
    holder = hold("x", *at, "--", *diary.command(-1))
    pid = diary.wait_for("start").pid
    assert node.end() == 0
    assert is_gone(pid)
    assert holder.wait() == 128 + signal.SIGKILL


@pytest.fixture
def ear(folder: Path) -> Iterator[Ear]:
    made = Ear(folder, str(folder / "data"))
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_is_gone_or_hangs_changes_nothing_of_what_it_told(
    folder: Path, start_node: StartNode, diary: Diary, ear: Ear, number: int, hold: LockRun
) -> None:
    node = start_node("--data-dir", str(folder / "data"), COORD_OPTIONS=SHORT)
    holder = hold("x", *ear.at, "--", *diary.command(-1))
    pid = diary.wait_for("start").pid
    node.process.send_signal(number)
    assert holder.wait() == 128 + signal.SIGKILL
    assert is_gone(pid)
    term = diary.wait_for("term")
    assert ear.jeopardy_at <= term.at <= diary.last().at < ear.ends_at
    assert "lock 'x' was at risk" in holder.errors


def test_a_node_that_is_started_again_waits_for_what_it_told(
    folder: Path, start_node: StartNode, diary: Diary, ear: Ear, hold: LockRun
) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at, COORD_OPTIONS=SHORT)
    holder = hold("x", "--lock-delay", "0", *ear.at, "--", *diary.command(-1))
    pid = diary.wait_for("start").pid
    node.end(signal.SIGKILL)
    node = start_node(*at, COORD_OPTIONS=SHORT)
    assert "for the commands of the process before to end" in node.lines[0]
    assert clock() >= ear.ends_at
    assert is_gone(pid)
    assert holder.wait() == 128 + signal.SIGKILL
    # It does not have to wait for what was given back.
    assert run_process("lock", "run", "x", *at, "--", "true").returncode == 0
    node.end(signal.SIGKILL)
    assert "wait" not in start_node(*at, COORD_OPTIONS=SHORT).lines[0]


def test_told_to_end_while_it_waits_for_what_was_told_before(
    folder: Path, start_node: StartNode, diary: Diary, hold: LockRun
) -> None:
    at = ("--data-dir", str(folder / "data"))
    node = start_node(*at)
    holder = hold("x", *at, "--", *diary.command(0))
    diary.wait_for("start")
    node.end(signal.SIGKILL)
    again = Process("node", *at)
    again.wait_for("for the commands of the process before to end")
    assert again.end() == 0
    assert again.lines[-1].endswith(" has stopped")
    holder.end()


def test_without_a_quorum(folder: Path, start_node: StartNode) -> None:
    peers = ",".join(f"{name}=ipc://{folder}/{name}.sock" for name in "abc")
    at = ("--data-dir", str(folder / "data"))
    start_node(*at, "--name", "a", "--bind", f"ipc://{folder}/a.sock", "--peers", peers, COORD_OPTIONS=QUICK)
    text = complaint(3, "lock", "run", "x", "--timeout", "0.2", *at, "--", "true")
    assert text == "coord: lock 'x' was not granted in time: the group has no quorum"


# The control socket's side of it, in this process.


@pytest.fixture
def node() -> Iterator[coord.Node]:
    options = coord.Options(heartbeat=0.05, election_timeout=(0.3, 0.6), session_ttl=2.0)
    with coord.Node(registry=None, options=options) as member:
        yield member


@pytest.fixture
def server(node: coord.Node, folder: Path) -> Iterator[ControlServer]:
    made = ControlServer(node, control_address(None, str(folder)), str(folder))
    yield made
    made.close(PATIENCE)


HOLD: dict[str, Any] = {
    "kind": "lock",
    "name": "x",
    "shared": False,
    "permits": 1,
    "priority": 0,
    "lock_delay": None,
    "value": None,
    "wait": True,
    "timeout": None,
}


class Asker:
    """The other side of a hold, by hand."""

    def __init__(self, address: Address, **more: Any) -> None:
        target = target_of(address)
        self.socket = socket.socket(target.family, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(target.sockaddr)
        self.jeopardy_at = self.ends_at = 0.0
        send_frame(self.socket, [1, "hold", {**HOLD, **more}])

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def hear(self, what: str) -> list[Any]:
        """The next answer of that kind; what leases are told before it is remembered."""
        while True:
            answer: list[Any] = receive_frame(self.socket)
            if answer[0] == "item" and answer[1][0] == "lease":
                self.jeopardy_at, self.ends_at = answer[1][1:]
            said = answer[1][0] if answer[0] == "item" else answer[0]
            if said == what:
                return answer
            assert said == "lease", answer

    def end(self) -> None:
        """As an asker that dies; what was said until then is heard."""
        self.socket.shutdown(socket.SHUT_WR)
        with_leases = FrameReader()
        while data := self.socket.recv(65536):
            for frame in with_leases.feed(data):
                self.jeopardy_at, self.ends_at = frame[1][1:]


def test_the_words_of_a_hold(server: ControlServer, node: coord.Node) -> None:
    with Asker(server.address) as asker:
        kind, (what, token, sequencer) = asker.hear("held")
        assert (kind, what) == ("item", "held")
        assert node.check_sequencer(sequencer)
        assert f":{token}:" in sequencer
        before = clock()
        asker.hear("lease")
        first = asker.ends_at
        assert first - asker.jeopardy_at == pytest.approx(node.options.lease - node.options.jeopardy)
        assert first <= clock() + node.options.lease
        # Every renewal is told, and none takes away.
        for _ in range(3):
            asker.hear("lease")
            assert asker.ends_at > first
            first = asker.ends_at
        assert clock() > before
        send_frame(asker.socket, ["release"])
        assert asker.hear("done") == ["done", None]
        assert not node.check_sequencer(sequencer)
        # The connection is good for more.
        send_frame(asker.socket, [1, "hold", {**HOLD, "kind": "election", "value": "me"}])
        asker.hear("held")
        leader = node.election("x").leader()
        assert leader is not None
        assert (leader.name, leader.value) == ("node", "me")
        send_frame(asker.socket, ["release"])
        asker.hear("done")
        assert node.election("x").leader() is None
    assert server.dropped == 0


def test_one_that_waits_may_give_up(server: ControlServer, node: coord.Node) -> None:
    with node.lock("x"), Asker(server.address) as asker:
        assert asker.hear("waiting") == ["item", ["waiting", "'node'"]]
        send_frame(asker.socket, ["release"])
        asker.hear("done")
        wait_for_waiters(node, 0)


def wait_for_waiters(node: coord.Node, count: int) -> None:
    deadline = clock() + PATIENCE
    while len(node.lock("x").describe().waiting) != count:
        assert clock() < deadline, f"not {count} waiting"


@pytest.mark.parametrize("last_words", [b"", b"\0\0\0\1\1", b"\0\0", b"\xff\xff\xff\xff"])
def test_what_a_vanished_asker_may_still_use_stays_held(
    server: ControlServer, node: coord.Node, last_words: bytes
) -> None:
    with Asker(server.address) as asker:
        asker.hear("held")
        asker.hear("lease")
        asker.socket.sendall(last_words)
        asker.end()
        granted = node.lock("x").acquire(timeout=PATIENCE)
        assert clock() >= asker.ends_at
        assert granted is not None
        granted.release()
    assert server.dropped == (1 if last_words else 0)
    assert holds.relied_on(str(Path(server.address.path).parent), 10.0) == 0.0


def test_what_was_told_is_remembered_as_long_as_it_is_relied_on(server: ControlServer, node: coord.Node) -> None:
    folder = str(Path(server.address.path).parent)
    with Asker(server.address) as asker, Asker(server.address, name="y") as other:
        asker.hear("held")
        other.hear("held")
        for one in (asker, other):
            one.hear("lease")
            assert clock() + holds.relied_on(folder, 10.0) >= one.ends_at - 1e-3
        for one in (asker, other):
            assert holds.relied_on(folder, 10.0) > 0.0
            send_frame(one.socket, ["release"])
            one.hear("done")
    assert holds.relied_on(folder, 10.0) == 0.0


def test_one_that_waits_in_vain_leaves_its_place(server: ControlServer, node: coord.Node) -> None:
    with node.lock("x"):
        with Asker(server.address) as asker:
            asker.hear("waiting")
            wait_for_waiters(node, 1)
        wait_for_waiters(node, 0)
        with Asker(server.address) as asker:
            asker.hear("waiting")
            asker.socket.sendall(b"nonsense")
            wait_for_waiters(node, 0)
    assert server.dropped == 1


def test_a_hold_that_is_lost_is_told(server: ControlServer, node: coord.Node) -> None:
    with Asker(server.address) as asker:
        asker.hear("held")
        node.stop()
        assert asker.hear("lost") == ["item", ["lost", "closed"]]
        asker.hear("done")


def test_others_are_served_while_all_holds_are_taken(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds.HOLDS_MAX < CONNECTIONS_MAX
    monkeypatch.setattr(holds, "HOLDS_MAX", 1)
    with Asker(server.address) as asker:
        asker.hear("held")
        with ControlClient(server.address) as client, pytest.raises(CommandError, match="try again later") as caught:
            list(client._ask("hold", {**HOLD, "name": "y"}, PATIENCE))
        assert caught.value.code == FAILED
        with ControlClient(server.address) as client:
            assert client.call("status")["name"] == "node"
        send_frame(asker.socket, ["release"])
        asker.hear("done")


@pytest.mark.parametrize(
    ("more", "code", "problem"),
    [
        ({"kind": "key"}, USAGE, "expected lock or election"),
        ({"name": "\n" * 300}, USAGE, "1 to 255"),
        ({"kind": "election", "name": "x" * 247}, USAGE, "1 to 246"),
        ({"kind": "election", "value": "x" * 5000}, USAGE, "value"),
        ({"kind": "election", "value": msgpack.Timestamp(1)}, USAGE, "cannot be stored"),
        ({"kind": "election", "lock_delay": float("nan")}, USAGE, "lock_delay"),
        ({"value": 1}, USAGE, "only an election"),
        ({"permits": 1 << 40}, USAGE, "permits"),
        ({"priority": -(1 << 63)}, USAGE, "priority"),
        ({"lock_delay": -1}, USAGE, "lock_delay"),
    ],
)
def test_holds_that_are_refused(server: ControlServer, more: dict[str, Any], code: int, problem: str) -> None:
    with ControlClient(server.address) as client, pytest.raises(CommandError, match=problem) as caught:
        list(client._ask("hold", {**HOLD, **more}, PATIENCE))
    assert caught.value.code == code
    assert server.dropped == 0


@pytest.mark.parametrize(
    "more",
    [
        {"kind": 1},
        {"name": b"x"},
        {"shared": 1},
        {"permits": True},
        {"priority": 1.5},
        {"lock_delay": "1"},
        {"wait": None},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"more": 1},
    ],
)
def test_holds_that_are_malformed(server: ControlServer, more: dict[str, Any]) -> None:
    with Asker(server.address, **more) as asker, pytest.raises((Gone, ConnectionError)):
        receive_frame(asker.socket)
    assert (server.served, server.dropped) == (0, 1)


def test_a_place_that_is_not_granted_at_once(server: ControlServer, node: coord.Node) -> None:
    with node.lock("x"), ControlClient(server.address) as client, pytest.raises(CommandError) as caught:
        list(client._ask("hold", {**HOLD, "wait": False, "timeout": 30}, PATIENCE))
    assert caught.value.code == TIMEOUT
    assert "held by 'node'" in str(caught.value)


def test_many_locks_are_listed_in_pages(server: ControlServer, node: coord.Node) -> None:
    held = [node.lock(f"l/{number:03}").acquire() for number in range(45)]
    assert all(held)
    with ControlClient(server.address) as client:
        pages = list(client.stream("locks", patience=PATIENCE, prefix="l/"))
    assert [lock["name"] for page in pages for lock in page] == [f"l/{number:03}" for number in range(45)]
    assert max(len(page) for page in pages) <= 20
    assert json.dumps(pages)


def test_frames_are_those_of_the_protocol() -> None:
    data = msgpack.packb(["release"])
    assert FrameReader().feed(struct.pack(">I", len(data)) + data) == [["release"]]


def test_a_killed_holder_keeps_the_lock_no_longer_than_its_lease(
    folder: Path, server: ControlServer, node: coord.Node, diary: Diary, hold: LockRun
) -> None:
    ear = Ear(folder, str(folder))
    holder = hold("x", *ear.at, "--", *diary.command(-1))
    pid = diary.wait_for("start").pid
    holder.end(signal.SIGKILL)
    wait_until_gone(pid)
    granted = node.lock("x").acquire(timeout=PATIENCE)
    assert granted is not None
    assert clock() >= ear.ends_at
    ear.close()
