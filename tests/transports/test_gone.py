"""GONE is proof, never a guess: the process ended, and its system says that nobody listens there any more."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coord.transports import link, probe
from coord.transports.address import Target
from coord.transports.zeromq import ZeroMQTransport
from transport_lab import GREETING, READY_ROUTER, Lab, Member, OtherProcess, turns_for, until

Start = Callable[..., OtherProcess]


@pytest.fixture
def watcher() -> Iterator[Member]:
    """A member with quick heartbeats, so that a silent peer is noticed within half a second."""
    transport = ZeroMQTransport(None, heartbeat_interval=0.1, heartbeat_timeout=0.3)
    transport.start()
    yield Member(transport)
    transport.close()


@pytest.fixture(params=["tcp", "ipc"])
def listen_at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{tmp_path}/other.sock"


def watch(watcher: Member, process: OtherProcess) -> None:
    watcher.transport.set_peers({"b": process.address})
    until(lambda: watcher.kinds("b") == ["up"], watcher)


def test_a_killed_process_is_gone_and_its_successor_is_up(
    watcher: Member, listen_at: str, other_process: Start
) -> None:
    process = other_process("member_process.py", listen_at)
    watch(watcher, process)
    for _ in range(3):
        process.process.send_signal(signal.SIGKILL)
        until(lambda: watcher.kinds("b")[-1] == "gone", watcher)
        assert watcher.kinds("b")[-3:] == ["up", "down", "gone"]
        process = other_process("member_process.py", process.address)
        until(lambda: watcher.kinds("b")[-1] == "up", watcher)
    assert watcher.transport.send("b", b"x")


def test_a_transport_closed_in_a_living_process_is_gone(watcher: Member, listen_at: str, other_process: Start) -> None:
    process = other_process("member_process.py", listen_at)
    watch(watcher, process)
    assert process.ask("close") == "closed"
    until(lambda: watcher.kinds("b") == ["up", "down", "gone"], watcher)


def test_a_stopped_process_is_down_but_not_gone(watcher: Member, listen_at: str, other_process: Start) -> None:
    """It may go on at any moment, and still thinks that it leads: its lease must be waited out."""
    process = other_process("member_process.py", listen_at)
    watch(watcher, process)
    process.process.send_signal(signal.SIGSTOP)
    until(lambda: "down" in watcher.kinds("b"), watcher)
    turns_for(1.2, watcher)  # all probes take 0.63 s
    assert watcher.kinds("b") == ["up", "down"]
    process.process.send_signal(signal.SIGCONT)
    until(lambda: watcher.kinds("b")[-1] == "up", watcher)
    assert "gone" not in watcher.kinds("b")


def test_killed_while_stopped(watcher: Member, listen_at: str, other_process: Start) -> None:
    """Down for want of heartbeats, then really dead: no proof is claimed that was not seen."""
    process = other_process("member_process.py", listen_at)
    watch(watcher, process)
    process.process.send_signal(signal.SIGSTOP)
    until(lambda: "down" in watcher.kinds("b"), watcher)
    process.process.send_signal(signal.SIGKILL)
    process.process.wait()
    replacement = other_process("member_process.py", process.address)
    until(lambda: watcher.kinds("b")[-1] == "up", watcher)
    assert watcher.kinds("b") in (["up", "down", "up"], ["up", "down", "gone", "up"])
    assert replacement.address == process.address


def test_a_listener_without_its_connection_is_not_gone(watcher: Member) -> None:
    """Somebody listens there, whoever it is: the probe connects, and nothing is claimed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        peer = ZeroMQTransport("tcp://127.0.0.1:0")
        peer.start()
        relay = Relay(listener, peer.address)
        watcher.transport.set_peers({"b": f"tcp://127.0.0.1:{port}"})
        until(lambda: relay.pump() and watcher.kinds("b") == ["up"], watcher)
        relay.drop()
        until(lambda: watcher.kinds("b") == ["up", "down"], watcher)
        turns_for(0.8, watcher)
        assert watcher.kinds("b") == ["up", "down"]
        peer.close()


class Relay:
    """Passes bytes on between one connection to `listener` and a peer, when pumped."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        listener.setblocking(False)
        self._listener = listener
        host, port = address.removeprefix("tcp://").split(":")
        self._ends = [socket.create_connection((host, int(port)))]

    def pump(self) -> bool:
        if len(self._ends) == 1:
            try:
                self._ends.append(self._listener.accept()[0])
            except BlockingIOError:
                return True
        for end, other in (self._ends, self._ends[::-1]):
            end.setblocking(False)
            try:
                other.sendall(end.recv(65536))
            except BlockingIOError:
                continue
        return True

    def drop(self) -> None:
        for end in self._ends:
            end.close()


def test_a_host_that_does_not_answer_is_not_gone(
    watcher: Member, other_process: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition: the connection ends, and the attempt to make a new one is neither taken nor refused."""
    monkeypatch.setattr(link, "PROBE_TIMEOUT", 0.05)
    process = other_process("member_process.py", "tcp://127.0.0.1:0")
    watch(watcher, process)
    monkeypatch.setattr(link, "Probe", SilentProbe)
    process.process.send_signal(signal.SIGKILL)
    until(lambda: watcher.kinds("b") == ["up", "down"], watcher)
    assert SilentProbe.made == 1
    turns_for(0.4, watcher)
    assert SilentProbe.made == 1
    assert watcher.kinds("b") == ["up", "down"]


def test_probing_ends_when_the_peer_is_back(tcp_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is up, nothing is being proved any more."""
    monkeypatch.setattr(link, "Probe", CountedProbe)
    watcher = tcp_lab.start("a")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        watcher.transport.set_peers({"b": f"tcp://127.0.0.1:{listener.getsockname()[1]}"})
        connections: list[socket.socket] = []

        def welcome() -> bool:
            try:
                connections.append(listener.accept()[0])
                connections[-1].sendall(GREETING + READY_ROUTER)
            except (TimeoutError, ConnectionError, BrokenPipeError):  # nobody, or a probe that has left already
                return True
            return True

        until(lambda: welcome() and watcher.kinds("b") == ["up"], watcher)
        for connection in connections:
            connection.close()
        # The first probe may pause for long, for somebody listens; the peer is back before the second.
        monkeypatch.setattr(link, "PROBE_PAUSE", 0.3)
        until(lambda: "down" in watcher.kinds("b"), watcher)
        until(lambda: welcome() and watcher.kinds("b") == ["up", "down", "up"], watcher)
        made = CountedProbe.made
        assert made >= 1
        turns_for(0.5, watcher)
        assert CountedProbe.made == made
        for connection in connections:
            connection.close()


class CountedProbe(probe.Probe):
    made = 0

    def __init__(self, target: Target) -> None:
        type(self).made += 1
        super().__init__(target)


class SilentProbe(probe.Probe):
    """A connect nobody answers, made from an end of a pipe that never is writable: it is full."""

    made = 0

    def __init__(self, target: Target) -> None:
        type(self).made += 1
        self._socket, self._other = socket.socketpair()
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.send(b"x" * 65536)
        except BlockingIOError:
            self.verdict = probe.PENDING

    def close(self) -> None:
        super().close()
        self._other.close()


@pytest.mark.parametrize(
    "code", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET, errno.EAGAIN, 0]
)
def test_only_a_refusal_is_evidence(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("tcp://127.0.0.1:9", socket.AF_INET, ("127.0.0.1", 9))
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: code)
    tried = probe.Probe(target)
    assert tried.verdict is probe.NO_EVIDENCE
    assert not tried.is_open


@pytest.mark.parametrize("code", [errno.ECONNREFUSED, errno.ENOENT])
def test_a_refusal_is_evidence(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("tcp://127.0.0.1:9", socket.AF_INET, ("127.0.0.1", 9))
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: code)
    assert probe.Probe(target).verdict is probe.REFUSED


def test_no_descriptor_left_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", fail)
    assert probe.Probe(Target("tcp://127.0.0.1:9", socket.AF_INET, ("127.0.0.1", 9))).verdict is probe.NO_EVIDENCE


def test_gone_is_reported_to_everybody_who_was_connected(socket_lab: Lab) -> None:
    members = [socket_lab.start(name) for name in "abc"]
    for member, name in zip(members, "abc", strict=True):
        member.transport.set_peers({other: socket_lab.address(other) for other in "abc" if other != name})
    until(lambda: all(len(member.events) == 2 for member in members), *members)
    members[2].transport.close()
    until(lambda: all(m.kinds("c") == ["up", "down", "gone"] for m in members[:2]), *members[:2])
    assert members[0].kinds("b") == ["up"]
