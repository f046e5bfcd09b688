"""The tools of the fault runs: what they break is broken, and nothing else."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.disk import FaultyDisk, cut_power, flip_byte, written_bytes
from faults.network import Network, Proxies
from faults.proxy import Link, Proxy
from faults.record import OK, UNKNOWN, Recorder, read_records

PATIENCE = 10.0


@pytest.fixture
def disk(tmp_path: Path) -> FaultyDisk:
    (tmp_path / "data").mkdir()
    return FaultyDisk(str(tmp_path / "journal"))


def test_a_power_cut_takes_what_was_not_synced(disk: FaultyDisk, tmp_path: Path) -> None:
    path = tmp_path / "data" / "log"
    handle = disk.create(str(path), 64)
    disk.write(handle, 0, [b"kept"])
    disk.sync(handle)
    disk.write(handle, 4, [b"lost or not"])
    disk.rename(str(path), str(path.with_name("renamed")))
    lost = cut_power(tmp_path / "data", tmp_path / "journal", random.Random(1))
    assert 0 < lost <= 11
    assert path.with_name("renamed").read_bytes() == (b"kept" + b"lost or not"[: 11 - lost]).ljust(64, b"\0")
    # What was taken is not taken again.
    assert cut_power(tmp_path / "data", tmp_path / "journal", random.Random(1)) == 0


@pytest.mark.parametrize(("mode", "number"), [("full", errno.ENOSPC), ("torn", errno.EIO), ("rotten", errno.EIO)])
def test_a_disk_that_fails(disk: FaultyDisk, tmp_path: Path, mode: str, number: int) -> None:
    handle = disk.create(str(tmp_path / "data" / "log"), 16)
    disk.be(mode)

    def write() -> None:
        disk.write(handle, 0, [b"some", b"more"])
        disk.sync(handle)

    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        write()
    disk.be("well")
    assert disk.syncs_after_failure == 0
    disk.sync(handle)
    assert disk.syncs_after_failure == (mode == "rotten")


def test_a_disk_that_hangs(disk: FaultyDisk, tmp_path: Path) -> None:
    handle = disk.create(str(tmp_path / "data" / "log"), 16)
    disk.be("hanging")
    thread = threading.Thread(target=disk.sync, args=(handle,), daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive(), "the sync returned"
    disk.be("well")
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the sync still hangs"


def test_a_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc\0\0")
    assert written_bytes(path) == 3
    flip_byte(path, 1)
    assert path.read_bytes() == b"a\x22c\0\0"


@pytest.fixture
def link() -> Iterator[Link]:
    """A way to a server that echoes."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1024):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    link = Link(("127.0.0.1", server.getsockname()[1]))
    proxy = Proxy([link])
    link.proxy = proxy  # type: ignore[attr-defined]
    yield link
    proxy.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connect(link: Link) -> socket.socket:
    host, port = link.address.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def change(link: Link, **values: object) -> None:
    for name, value in values.items():
        setattr(link.conditions, name, value)
    link.proxy.changed()  # type: ignore[attr-defined]


def test_a_proxy_passes_on(link: Link) -> None:
    with connect(link) as connection:
        connection.sendall(b"hello")
        assert connection.recv(10) == b"hello"


def test_a_proxy_holds_what_is_sent_while_it_is_cut(link: Link) -> None:
    with connect(link) as connection:
        connection.sendall(b"before")
        assert connection.recv(10) == b"before"
        change(link, cut=True)
        time.sleep(0.05)
        connection.sendall(b"meanwhile")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        connection.settimeout(PATIENCE)
        change(link, cut=False)
        assert connection.recv(10) == b"meanwhile"


def test_a_proxy_delays(link: Link) -> None:
    with connect(link) as connection:
        change(link, delay=(0.1, 0.1))
        time.sleep(0.05)
        began = time.monotonic()
        connection.sendall(b"late")
        assert connection.recv(10) == b"late"
        assert time.monotonic() - began >= 0.2, "there and back takes twice the delay"


def test_a_proxy_is_slow(link: Link) -> None:
    with connect(link) as connection:
        change(link, rate=10_000.0)
        time.sleep(0.05)
        began = time.monotonic()
        connection.sendall(bytes(2000))
        received = 0
        while received < 2000:
            received += len(connection.recv(4096))
        assert time.monotonic() - began >= 0.2, "2000 bytes at 10 000 in a second take 0.2 s"


def test_a_proxy_ends_connections(link: Link) -> None:
    with connect(link) as connection:
        connection.sendall(b"hello")
        assert connection.recv(10) == b"hello"
        change(link, reset=True)
        assert connection.recv(10) == b""


def cut_ways(network: Network) -> set[tuple[str, str]]:
    return set(network._cut)


def test_the_shapes_of_cuts() -> None:
    network = Proxies("abc")
    try:
        network.isolate("a")
        assert cut_ways(network) == {("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")}
        network.deafen("a")
        assert cut_ways(network) == {("b", "a"), ("c", "a")}
        network.mute("a")
        assert cut_ways(network) == {("a", "b"), ("a", "c")}
        network.keep("ab", "bc")
        assert cut_ways(network) == {("a", "c"), ("c", "a")}
        network.split("ab", "c")
        assert cut_ways(network) == {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}
        network.mend()
        assert cut_ways(network) == set()
    finally:
        network.close()


def test_what_a_killed_process_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.history"
    recorder = Recorder(str(path), "a/1")
    recorder.acknowledge(recorder.begin("writer", "put", key="k", value="v"), 5)
    recorder.begin("writer", "put", key="k", value="w")
    with path.open("ab") as file:
        file.write(b'{"end": 1, "outco')
    calls = read_records([path]).calls
    assert [(call.asked["value"], call.outcome) for call in calls] == [("v", OK), ("w", UNKNOWN)]
    assert calls[0].revision == 5
    assert calls[1].returned == float("inf")
