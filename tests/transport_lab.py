"""What the transport tests share: members driven step by step, and the three ways to connect them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coord.transports.base import Transport
from coord.transports.memory import MemoryNetwork, MemoryTransport
from coord.transports.zeromq import ZeroMQTransport

#: Nothing here takes long; this is how long a stalled machine may take before a test gives up.
PATIENCE = 20.0


class Member:
    """A transport, and everything it has said so far."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.frames: list[bytes] = []
        self.events: list[tuple[str, str]] = []

    def turn(self, timeout: float = 0.005, limit: int = 64) -> None:
        self.transport.poll(timeout)
        self.frames += self.transport.receive(limit)
        self.events += [(event.kind, event.peer) for event in self.transport.events()]

    def kinds(self, peer: str) -> list[str]:
        return [kind for kind, about in self.events if about == peer]


def until(condition: Callable[[], bool], *members: Member) -> None:
    """Give every member turns until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        for member in members:
            member.turn()


def turns_for(seconds: float, *members: Member) -> None:
    """Give every member turns for a while: to see that something does not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for member in members:
            member.turn()


#: What an anonymous, unencrypted peer says before its first frame (ZMTP 3.0).
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY_DEALER = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
READY_ROUTER = READY_DEALER.replace(b"DEALER", b"ROUTER")


def shake_hands(connection: socket.socket, ready: bytes, patience: float = PATIENCE) -> None:
    """Take a raw connection past its handshake: what follows are frames. Raises TimeoutError."""
    connection.settimeout(patience)
    connection.sendall(GREETING + ready)
    answer = b""
    while b"READY" not in answer:  # a frame before the other end is ready would be taken for a command
        received = connection.recv(4096)
        assert received, "the other end hung up"
        answer += received


class Lab:
    """Makes members that reach each other over one kind of transport, and closes what a test leaves open."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        self._network = MemoryNetwork(seed=1, queue_frames=64)
        self._addresses: dict[str, str] = {}
        self._made: list[Transport] = []

    def make(self, name: str) -> Transport:
        """A transport for `name`, not started; at the address it had before, if it had one."""
        transport: Transport
        if self.kind == "memory":
            transport = MemoryTransport(self._network, name, queue_frames=64)
        else:
            transport = ZeroMQTransport(self._addresses.get(name, self._first_address(name)), max_frame_bytes=1 << 20)
        self._made.append(transport)
        return transport

    def start(self, name: str) -> Member:
        transport = self.make(name)
        transport.start()
        self._addresses[name] = transport.address
        return Member(transport)

    def address(self, name: str) -> str:
        return self._addresses[name]

    def unused_address(self) -> str:
        """An address at which nobody listens."""
        probe = self.start("nobody")
        probe.transport.close()
        return self._addresses["nobody"]

    def pair(self) -> tuple[Member, Member]:
        """Members a and b, connected both ways."""
        a, b = self.start("a"), self.start("b")
        a.transport.set_peers({"b": self.address("b")})
        b.transport.set_peers({"a": self.address("a")})
        until(lambda: a.kinds("b") == ["up"] and b.kinds("a") == ["up"], a, b)
        return a, b

    def close(self) -> None:
        for transport in self._made:
            transport.close()

    def _first_address(self, name: str) -> str:
        return "tcp://127.0.0.1:0" if self.kind == "tcp" else f"ipc://{self._directory}/{name}.sock"


class OtherProcess:
    """A member in a process of its own: `address`, and a pid to do harm to. Ends with its standard input."""

    def __init__(self, script: str, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("transports") / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the process did not start"

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Kill it if it still lives, even if it is stopped."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
