"""What strangers may send to a member's port: counted, dropped, and nothing else happens."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import zmq

import coord
from coord import wire
from coord.raft.batch import COMMANDS, encode_entry, make_batch
from coord.raft.messages import Append, Heartbeat, Propose, VoteRequest
from coord.transports.address import parse_peer
from inputs.conftest import PATIENCE, Nodes, until

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


@pytest.fixture
def leader(nodes: Nodes) -> coord.Node:
    """The leader of a group of three that has written something."""
    members = nodes.start("a", "b", "c")
    members[0].config.put("k", 1, timeout=PATIENCE)
    leaders: list[coord.Node] = until(lambda: [node for node in members if node.status().role == "leader"], "a leader")
    return leaders[0]


@pytest.fixture
def stranger(leader: coord.Node) -> Iterator[zmq.Socket[bytes]]:
    """A connection to the leader that speaks ZeroMQ and nothing more."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(leader._running_loop().transport.address)
        yield dealer


def undisturbed(leader: coord.Node, term: int) -> None:
    """The same leader in the same term, it serves, and knows nothing it was not told by its own group."""
    assert leader.config.put("after", "all", timeout=PATIENCE) > 0
    status = leader.status()
    assert (status.role, status.term) == ("leader", term)
    assert leader.config.snapshot() == {"k": 1, "after": "all"}


def dropped(leader: coord.Node, reason: str) -> int:
    return leader._running_loop().replica.counters.frames_dropped[reason]


def dial(leader: coord.Node) -> socket.socket:
    address = parse_peer(leader._running_loop().transport.address)
    return socket.create_connection((address.host, address.port), timeout=PATIENCE)


def closed_by_peer(connection: socket.socket) -> bool:
    """Whatever it answers, it ends the connection."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(range(256)) * 256,
        GREETING[:9] + b"\x01" + bytes(54),
    ],
    ids=["tls", "bytes", "bad greeting"],
)
def test_not_zeromq_at_all(leader: coord.Node, data: bytes) -> None:
    term = leader.status().term
    with dial(leader) as connection:
        connection.sendall(data)
        assert closed_by_peer(connection)
    undisturbed(leader, term)


def test_an_http_request(leader: coord.Node) -> None:
    """libzmq takes it for the beginning of its oldest protocol and waits for the rest, for as long as the client does;
    what the client goes on to say is counted and dropped."""
    term = leader.status().term
    with dial(leader) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        undisturbed(leader, term)


def test_a_claim_of_a_gigabyte(leader: coord.Node) -> None:
    """A proper greeting, then a frame that says it is 1 GiB long: the connection ends, and no memory is taken."""
    term = leader.status().term
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with dial(leader) as connection:
        connection.sendall(GREETING + b"\x04" + bytes([len(ready)]) + ready)
        connection.sendall(b"\x02" + struct.pack(">Q", 1 << 30) + bytes(4096))
        assert closed_by_peer(connection)
    undisturbed(leader, term)


def test_silence(leader: coord.Node) -> None:
    """Connections that say nothing are dropped in a while, and harm nobody meanwhile."""
    term = leader.status().term
    connections = [dial(leader) for _ in range(50)]
    try:
        undisturbed(leader, term)
        assert all(closed_by_peer(connection) for connection in connections)
    finally:
        for connection in connections:
            connection.close()


def forged(leader: coord.Node, **changes: object) -> wire.Identity:
    """What a member of the leader's group would say it is, but for `changes`."""
    other = next(name for name in "abc" if name != leader.name)
    identity = leader._running_loop().replica.identity._replace(name=other, incarnation=4711)
    return identity._replace(**changes)  # type: ignore[arg-type]


def test_a_message_of_another_group(leader: coord.Node, stranger: zmq.Socket[bytes]) -> None:
    term = leader.status().term
    for changes in ({"fingerprint": 1}, {"group_number": 1}, {"slot": 1}):
        sender = forged(leader, **changes)
        for message in (VoteRequest(99, 9999, 99, False, True, 0), Heartbeat(99, 5, 1)):
            stranger.send(wire.encode(sender, leader.name, message))
    until(lambda: dropped(leader, "cluster") == 6, "all were counted")
    undisturbed(leader, term)


@pytest.mark.parametrize("reason", ["version", "magic", "checksum", "length", "recipient", "sender"])
def test_a_message_that_is_not_for_us(leader: coord.Node, stranger: zmq.Socket[bytes], reason: str) -> None:
    term = leader.status().term
    message = VoteRequest(99, 9999, 99, False, True, 0)
    frame = bytearray(wire.encode(forged(leader), leader.name, message))
    if reason == "version":
        frame[len(wire.MAGIC)] += 1
    elif reason == "magic":
        frame[0] ^= 0xFF
    elif reason == "checksum":
        frame[-1] ^= 1
    elif reason == "length":
        del frame[-3:]
    elif reason == "recipient":
        frame = bytearray(wire.encode(forged(leader), "nobody", message))
    else:
        frame = bytearray(wire.encode(forged(leader, incarnation=0), leader.name, message))
    for _ in range(10):
        stranger.send(bytes(frame))
    until(lambda: dropped(leader, reason) == 10, "all were counted")
    undisturbed(leader, term)


def test_parts_and_empty_frames(leader: coord.Node, stranger: zmq.Socket[bytes]) -> None:
    term = leader.status().term
    for _ in range(20):
        stranger.send_multipart([b"part"] * 1000)
        stranger.send(b"")
    transport = leader._running_loop().transport
    until(lambda: transport.dropped()["parts"] == 20 and dropped(leader, "length") == 20, "all were counted")
    undisturbed(leader, term)


def test_a_name_taken_by_somebody_with_another_disk(leader: coord.Node, stranger: zmq.Socket[bytes]) -> None:
    """Well made frames from a known name, but another incarnation: none is believed, whatever it asks."""
    term = leader.status().term
    sender = forged(leader)
    evil = make_batch(COMMANDS, 99, 1, 0, [encode_entry(b"evil")], 1)
    for message in (
        VoteRequest(99, 9999, 99, False, True, 0),
        Heartbeat(99, 9999, 1),
        Append(99, 0, 0, 1, 1, [evil]),
        Propose(term, 1, 0, [encode_entry(b"evil")]),
    ):
        stranger.send(wire.encode(sender, leader.name, message))
    replica = leader._running_loop().replica
    before = replica.counters.frames_received
    until(lambda: replica.counters.frames_received >= before + 4, "all have arrived")
    undisturbed(leader, term)
