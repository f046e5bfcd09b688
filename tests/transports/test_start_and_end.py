"""What can go wrong at start, said so that it can be put right; and nothing left behind at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

from coord.errors import ConfigurationError
from coord.transports import link, poller
from coord.transports.zeromq import ZeroMQTransport
from transport_lab import PATIENCE, Lab, Member, OtherProcess, turns_for, until


def start_error(bind: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        ZeroMQTransport(bind).start()
    return str(caught.value)


def test_construction_opens_nothing(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd"), threading.active_count()
    ZeroMQTransport(f"ipc://{tmp_path}/a.sock")
    ZeroMQTransport("tcp://127.0.0.1:0")
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        text = start_error(address)
    assert f"another process listens on {address}" in text
    # Nothing of the failed start is in the way of the next one.
    transport = ZeroMQTransport(address)
    transport.start()
    transport.close()


def test_an_address_of_another_host() -> None:
    assert "is not an address of this host" in start_error("tcp://192.0.2.1:7400")


@pytest.mark.parametrize("name", ["no-such-interface0", "no-such-host.invalid", "x" * 64 + ".invalid"])
def test_a_name_without_address(name: str) -> None:
    text = start_error(f"tcp://{name}:7400")
    assert "is no interface, and no name that has an address" in text
    assert "tcp://127.0.0.1:7400" in text


def test_a_path_in_no_directory(tmp_path: Path) -> None:
    assert "does not exist" in start_error(f"ipc://{tmp_path}/no/a.sock")


def test_a_path_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot use" in start_error(f"ipc://{tmp_path}/file/a.sock")


def test_a_path_that_is_a_file_of_the_users(tmp_path: Path) -> None:
    """libzmq would remove it."""
    precious = tmp_path / "precious"
    precious.write_text("data")
    assert "is not a socket" in start_error(f"ipc://{precious}")
    assert precious.read_text() == "data"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_lock_file_of_the_users_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "a.sock.lock"
    lock.write_text("mine")
    transport = ZeroMQTransport(f"ipc://{tmp_path}/a.sock")
    transport.start()
    transport.close()
    assert lock.read_text() == "mine"


def test_a_lock_file_removed_in_the_moment_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who held it before removes it when done: a lock on the removed file would keep nobody out."""
    lock = tmp_path / "a.sock.lock"
    real, calls = fcntl.flock, [0]

    def flock(fd: int, operation: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            lock.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    transport = ZeroMQTransport(f"ipc://{tmp_path}/a.sock")
    transport.start()
    assert calls[0] == 2
    assert "another process listens" in start_error(f"ipc://{tmp_path}/a.sock")
    transport.close()


def test_a_path_served_by_a_program_that_knows_no_lock(tmp_path: Path) -> None:
    """libzmq would take it over, and the other would serve nobody any more."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert f"another process listens on ipc://{path}" in start_error(f"ipc://{path}")
        with socket.socket(socket.AF_UNIX) as dialler:
            dialler.connect(str(path))


def test_a_stale_path_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    transport = ZeroMQTransport(f"ipc://{path}")
    transport.start()
    transport.close()
    assert list(tmp_path.iterdir()) == []


def test_close_leaves_a_path_that_is_no_longer_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    transport = ZeroMQTransport(f"ipc://{path}")
    transport.start()
    path.unlink()
    path.write_text("somebody else's")
    transport.close()
    assert path.read_text() == "somebody else's"


def test_an_abstract_path(tmp_path: Path) -> None:
    name = f"ipc://@{tmp_path.name}-{os.getpid()}"
    first, second = ZeroMQTransport(name), ZeroMQTransport(None)
    first.start()
    second.start()
    a, b = Member(first), Member(second)
    second.set_peers({"a": name})
    until(lambda: b.kinds("a") == ["up"], a, b)
    assert "another process listens" in start_error(name)
    first.close()
    until(lambda: b.kinds("a") == ["up", "down", "gone"], b)
    second.close()


@pytest.mark.parametrize("bind", ["tcp://*:0", "tcp://0.0.0.0:0", "tcp://localhost:0", "tcp://lo:0", "tcp://[::1]:0"])
def test_ways_to_listen(bind: str) -> None:
    if "[" in bind and not has_ipv6():
        pytest.skip("this system has no IPv6")
    transport = ZeroMQTransport(bind)
    transport.start()
    port = transport.address.rpartition(":")[2]
    assert int(port) > 0
    dialled = f"tcp://[::1]:{port}" if "[" in bind else f"tcp://127.0.0.1:{port}"
    other = ZeroMQTransport(None)
    other.start()
    other.set_peers({"a": dialled})
    member = Member(other)
    until(lambda: member.kinds("a") == ["up"], member)
    assert other.send("a", b"x")
    transport.close()
    other.close()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_libzmq_with_known_holes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))
    assert "4.3.3" in start_error("tcp://127.0.0.1:0")


def test_malformed_peers_change_nothing(socket_lab: Lab) -> None:
    a, b = socket_lab.pair()
    with pytest.raises(ConfigurationError, match=r"peers\['c'\]: 'tcp://10\.0\.0\.1' has no port"):
        a.transport.set_peers({"c": "tcp://10.0.0.1"})
    assert a.transport.send("b", b"x")
    until(lambda: b.frames == [b"x"], b)


def test_without_descriptors_a_peer_is_tried_again(tcp_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host app may have used up all of them for a while."""
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    failures = [0]

    def fail(*_: object) -> None:
        failures[0] += 1
        raise zmq.ZMQError(errno.EMFILE)

    with monkeypatch.context() as patch:
        patch.setattr(zmq.Context, "socket", fail)
        patch.setattr(link, "RESOLVE_PAUSE_MAX", 0.05)
        patch.setattr(link, "RESOLVE_PAUSE", 0.02)
        a.transport.set_peers({"b": tcp_lab.address("b")})
        until(lambda: failures[0] >= 3, a)
        assert not a.transport.send("b", b"x")
    until(lambda: a.kinds("b") == ["up"], a, b)


def test_start_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(poller, "_open_wake_fds", fail)
    assert "Too many open files" in start_error("tcp://127.0.0.1:0")


def test_a_wake_before_start_is_not_lost(tcp_lab: Lab) -> None:
    transport = tcp_lab.make("a")
    transport.wake()
    transport.start()
    begun = time.monotonic()
    transport.poll(PATIENCE * 2)
    assert time.monotonic() - begun < PATIENCE


def test_many_starts_leave_nothing_behind(tmp_path: Path) -> None:
    def round_of(number: int) -> None:
        a = ZeroMQTransport("tcp://127.0.0.1:0")
        b = ZeroMQTransport(f"ipc://{tmp_path}/b.sock")
        a.start()
        b.start()
        a.set_peers({"b": b.address, "nobody": "tcp://127.0.0.1:1", "unknown": "tcp://no-such-host.invalid:1"})
        b.set_peers({"a": a.address})
        if number % 2:
            members = Member(a), Member(b)
            until(lambda: a.send("b", b"x") and b.send("a", b"y"), *members)
        if number % 3 == 0:
            with pytest.raises(ConfigurationError):
                ZeroMQTransport(a.address).start()
        a.close()
        b.close()

    round_of(1)
    before = counted()
    for number in range(50):
        round_of(number)
    until(lambda: counted() <= before)
    assert list(tmp_path.iterdir()) == []


def counted() -> tuple[int, int]:
    """Descriptors and threads of this process, libzmq's included."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("ending", ["del transport; gc.collect()", "pass", "raise SystemExit(0)"])
def test_a_transport_nobody_closed_does_not_hang_the_process(ending: str) -> None:
    script = (
        "import gc\n"
        "from coord.transports.zeromq import ZeroMQTransport\n"
        "transport = ZeroMQTransport('tcp://127.0.0.1:0')\n"
        "transport.start()\n"
        "transport.set_peers({'itself': transport.address, 'nobody': 'tcp://127.0.0.1:1'})\n"
        "while not transport.events():\n"
        "    transport.poll(1.0)\n"
        "    transport.receive(10)\n"
        f"{ending}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", script], timeout=PATIENCE, env=environment, check=False)
    assert run.returncode == 0


def test_a_child_that_abandons_disturbs_nobody(tmp_path: Path) -> None:
    process = OtherProcess("forking_process.py", f"ipc://{tmp_path}/a.sock")
    try:
        assert process.ask("fork and exit") == "0"
        watcher = ZeroMQTransport(None)
        watcher.start()
        member = Member(watcher)
        watcher.set_peers({"a": process.address})
        until(lambda: member.kinds("a") == ["up"], member)
        assert process.ask("fork") == "0 descriptors of ours left"
        assert watcher.send("a", b"after the fork")
        assert process.ask("receive") == "after the fork"
        turns_for(0.1, member)
        assert member.kinds("a") == ["up"]
        watcher.close()
    finally:
        process.end()


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_the_address_is_free_while_an_abandoned_child_lives(scheme: str, tmp_path: Path) -> None:
    bind = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/a.sock"
    process = OtherProcess("forking_process.py", bind)
    try:
        assert process.ask("fork and stay") == "child stays"
        assert process.ask("close") == "closed"
        successor = ZeroMQTransport(process.address)
        successor.start()
        successor.close()
    finally:
        process.end()
