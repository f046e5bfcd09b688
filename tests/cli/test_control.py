"""The control socket: what it takes, what it refuses, and that no bytes whatever harm the node behind it."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import coord
from cli.lab import PATIENCE, free_port
from coord.cli import control
from coord.cli.control import ControlClient, control_address, receive_frame, target_of
from coord.cli.control_server import CONNECTIONS_MAX, ControlServer
from coord.cli.output import FAILED, NO_QUORUM, TIMEOUT, USAGE, CommandError
from coord.errors import ConfigurationError
from coord.transports.address import Address


@pytest.fixture
def node() -> Iterator[coord.Node]:
    with coord.Node(registry=None) as member:
        yield member


@pytest.fixture
def server(node: coord.Node, folder: Path) -> Iterator[ControlServer]:
    made = ControlServer(node, control_address(None, str(folder)))
    yield made
    made.close(PATIENCE)


def frame(message: object) -> bytes:
    data: bytes = msgpack.packb(message)
    return struct.pack(">I", len(data)) + data


def connect(address: Address) -> socket.socket:
    target = target_of(address)
    connection = socket.socket(target.family, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    connection.connect(target.sockaddr)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    """For what another thread does in its own time."""
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("gave up waiting")


def rest(connection: socket.socket) -> bytes:
    """Say that nothing more will come; all that is answered. A reset, as bytes were left unread, is an end like any."""
    answer = b""
    try:
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(4096):
            answer += part
    except ConnectionError:
        return answer
    return answer


PUT: dict[str, Any] = {"key": "k", "value": 1, "revision": None, "ttl": None, "timeout": 1}

HOSTILE = {
    "nothing but zeros": b"\0" * 64,
    "an announced length of 4 GiB": b"\xff\xff\xff\xff",
    "just above the bound": struct.pack(">I", control.FRAME_BYTES_MAX + 1),
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "half a frame": frame([1, "status", {}])[:-1],
    "half a length": b"\0\0",
    "not msgpack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "bytes after the message": struct.pack(">I", 2) + b"\x01\x01",
    "nested without end": struct.pack(">I", 100_000) + b"\x91" * 100_000,
    "a list said to be huge": struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff",
    "no list": frame({"op": "status"}),
    "too short": frame([1, "status"]),
    "another version": frame([2, "status", {}]),
    "an operation that is no text": frame([1, ["status"], {}]),
    "an operation of another name": frame([1, "_accept", {}]),
    "arguments that are no map": frame([1, "status", []]),
    "an argument too many": frame([1, "status", {"x": 1}]),
    "an argument too few": frame([1, "get", {"key": "k"}]),
    "a key that is no text": frame([1, "put", {**PUT, "key": b"k"}]),
    "true as a revision": frame([1, "put", {**PUT, "revision": True}]),
    "text as a ttl": frame([1, "put", {**PUT, "ttl": "1"}]),
    "a timeout below 0": frame([1, "put", {**PUT, "timeout": -1}]),
    "a timeout without end": frame([1, "put", {**PUT, "timeout": float("inf")}]),
    "a timeout that is no number": frame([1, "put", {**PUT, "timeout": float("nan")}]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_malformed_is_counted_and_does_nothing(server: ControlServer, node: coord.Node, data: bytes) -> None:
    before = node.status().applied_index
    with connect(server.address) as connection:
        connection.sendall(data)
        assert rest(connection) == b""
    wait_until(lambda: server.dropped == 1)
    assert server.served == 0
    assert node.status().applied_index == before
    with ControlClient(server.address) as client:
        assert client.call("status")["control"]["dropped"] == 1


def test_damaged_requests_are_answered_or_dropped(server: ControlServer) -> None:
    rng = random.Random(7)
    good = frame([1, "put", PUT])
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(4, len(good))] = rng.randrange(256)
        with connect(server.address) as connection:
            connection.sendall(bytes(data))
            rest(connection)
    wait_until(lambda: server.dropped + server.served == 200)
    assert server.dropped > 50
    with ControlClient(server.address) as client:
        assert client.call("put", 5.0, key="k", value=2, revision=None, ttl=None) > 0


@pytest.mark.parametrize(
    ("operation", "arguments", "problem"),
    [
        ("put", {**PUT, "key": ""}, "key"),
        ("put", {**PUT, "key": "k" * 5000}, "key"),
        ("put", {**PUT, "value": float("nan")}, "nan"),
        ("put", {**PUT, "value": msgpack.Timestamp(1)}, "cannot be stored"),
        ("put", {**PUT, "ttl": -1}, "ttl"),
        ("put", {**PUT, "revision": -1}, "revision"),
        ("watch", {"prefix": "", "from_revision": 0, "initial": True}, "from_revision"),
    ],
)
def test_values_that_the_map_refuses_are_the_askers_mistake(
    server: ControlServer, operation: str, arguments: dict[str, Any], problem: str
) -> None:
    with ControlClient(server.address) as client, pytest.raises(CommandError, match=problem) as caught:
        list(client._ask(operation, arguments, PATIENCE))
    assert caught.value.code == USAGE
    assert server.dropped == 0


def test_several_requests_on_one_connection(server: ControlServer) -> None:
    with ControlClient(server.address) as client:
        for number in range(3):
            client.call("put", 5.0, key="k", value=number, revision=None, ttl=None)
        assert client.call("get", 5.0, key="k", linearizable=True)["value"] == 2
    wait_until(lambda: server.served == 4)


def test_every_key_is_listed_however_many(server: ControlServer, node: coord.Node) -> None:
    futures = [node.config.put_async(f"k/{number:04d}", None) for number in range(250)]
    for future in futures:
        future.result(PATIENCE)
    with ControlClient(server.address) as client:
        pages = list(client.stream("ls", patience=PATIENCE, prefix="k/"))
    assert [key for page in pages for key in page] == [f"k/{number:04d}" for number in range(250)]
    assert len(pages) == 3


def test_no_more_than_so_many_at_a_time(server: ControlServer) -> None:
    idle = [connect(server.address) for _ in range(CONNECTIONS_MAX)]
    try:
        wait_until(lambda: len(server._connections) == CONNECTIONS_MAX)
        with connect(server.address) as connection:
            assert receive_frame(connection)[:2] == ["error", FAILED]
            assert connection.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()
    wait_until(lambda: not server._connections)
    with ControlClient(server.address) as client:
        assert client.call("status")["role"] == "leader"


def test_a_watch_ends_when_its_reader_goes(server: ControlServer, node: coord.Node) -> None:
    node.config["k"] = 1
    with connect(server.address) as connection:
        connection.sendall(frame([1, "watch", {"prefix": "", "from_revision": None, "initial": True}]))
        assert receive_frame(connection)[1]["value"] == 1
        assert len(server._connections) == 1
    wait_until(lambda: not server._connections)
    assert server.dropped == 0


def test_closing_ends_what_is_under_way(node: coord.Node, folder: Path) -> None:
    server = ControlServer(node, control_address(None, str(folder)))
    node.config["k"] = 1
    watching, waiting = connect(server.address), connect(server.address)
    with watching, waiting:
        watching.sendall(frame([1, "watch", {"prefix": "", "from_revision": None, "initial": True}]))
        assert receive_frame(watching)[1]["value"] == 1
        wait_until(lambda: len(server._connections) == 2)
        server.close(PATIENCE)
        assert watching.recv(1) == waiting.recv(1) == b""
    assert not server._connections
    assert os.listdir(folder) == []
    server.close(0)


def test_the_socket_is_the_owners_alone_and_one_left_behind_is_replaced(node: coord.Node, folder: Path) -> None:
    address = control_address(None, str(folder))
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(address.path)
    server = ControlServer(node, address)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
    with pytest.raises(ConfigurationError, match=r"^control: another process listens on"):
        ControlServer(node, address)
    with ControlClient(address) as client:
        assert client.call("status")["name"] == "node"
    server.close(PATIENCE)


def test_a_file_in_the_way_is_left_alone(node: coord.Node, folder: Path) -> None:
    (folder / "control.sock").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        ControlServer(node, control_address(None, str(folder)))
    assert (folder / "control.sock").read_text() == "mine"


def test_over_loopback(node: coord.Node) -> None:
    while True:
        address = control_address(f"tcp://127.0.0.1:{free_port()}", None)
        try:
            server = ControlServer(node, address)
        except ConfigurationError:
            # Somebody else was quicker to take the port.
            continue
        break
    with ControlClient(address) as client:
        assert client.call("status")["name"] == "node"
    with pytest.raises(ConfigurationError, match="Address already in use"):
        ControlServer(node, address)
    server.close(PATIENCE)


@pytest.mark.parametrize(
    ("text", "data_dir", "problem"),
    [
        ("tcp://10.0.0.1:7400", None, "whoever reaches it may do everything"),
        ("tcp://*:7400", None, "whoever reaches it may do everything"),
        ("http://x", None, "begins with neither"),
        (None, "/" + "x" * 120, "too long for a Unix socket; give the node and its commands one shorter place"),
        (None, None, "which node"),
    ],
)
def test_addresses_that_are_refused(text: str | None, data_dir: str | None, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        control_address(text, data_dir)


# The asking side.


class FakeNode:
    """Takes one connection, reads the request, and answers with these bytes."""

    def __init__(self, folder: Path, answer: bytes, *, hold: bool = False) -> None:
        self.address = control_address(None, str(folder))
        self._answer = answer
        self._hold = hold
        self._release = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address.path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._release.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            receive_frame(connection)
            connection.sendall(self._answer)
            if self._hold:
                self._release.wait(PATIENCE)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "has closed the connection; was it stopped"),
        (b"\0\0", "it ends after 2 of 4 bytes"),
        (b"\xff\xff\xff\xff", "a frame said to have 4294967295 bytes"),
        (frame("hello"), "unknown form"),
        (frame(["error", 0, "fine"]), "unknown form"),
        (frame(["error", 99, "text"]), "unknown form"),
        (frame(["error", 1]), "unknown form"),
        (frame(["done"]), "unknown form"),
    ],
)
def test_answers_that_are_no_answers(folder: Path, answer: bytes, problem: str) -> None:
    with FakeNode(folder, answer) as fake, ControlClient(fake.address) as client:
        with pytest.raises(CommandError, match=problem) as caught:
            client.call("status")
        assert caught.value.code == FAILED


def test_a_node_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MARGIN_SECONDS", 0.1)
    with FakeNode(folder, b"", hold=True) as fake, ControlClient(fake.address) as client:
        with pytest.raises(CommandError, match="does not answer") as caught:
            client.call("status", 0.1)
        assert caught.value.code == TIMEOUT


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(CommandError, match=r"no node takes commands .* is it running"):
        ControlClient(control_address(None, str(folder)))


def test_what_cannot_be_sent(server: ControlServer) -> None:
    with ControlClient(server.address) as client, pytest.raises(CommandError, match="cannot be sent") as caught:
        client.call("put", 1.0, key="k", value=1 << 70, revision=None, ttl=None)
    assert caught.value.code == USAGE


def test_no_quorum_is_told_from_slowness(folder: Path) -> None:
    peers = {name: f"ipc://{folder}/{name}" for name in "abc"}
    with coord.Node("a", bind=peers["a"], peers=peers, registry=None) as alone:
        server = ControlServer(alone, control_address(None, str(folder)))
        with ControlClient(server.address) as client, pytest.raises(CommandError, match="knows no leader") as caught:
            client.call("get", 0.2, key="k", linearizable=True)
        assert caught.value.code == NO_QUORUM
        server.close(PATIENCE)
