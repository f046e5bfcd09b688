"""Strangers at the port: whatever they send, members go on talking, and nothing malformed gets through."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from coord.transports.zeromq import ZeroMQTransport
from transport_lab import GREETING, READY_DEALER, READY_ROUTER, Lab, Member, shake_hands, turns_for, until

MORE, LONG = 1, 2


def dial(member: Member) -> socket.socket:
    host, port = member.transport.address.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)))


def dial_past_handshake(member: Member) -> socket.socket:
    stranger = dial(member)
    shake_hands(stranger, READY_DEALER)
    return stranger


def long_frame(flags: int, claimed: int, body: bytes) -> bytes:
    return bytes([flags | LONG]) + struct.pack(">Q", claimed) + body


@pytest.fixture
def victim(tcp_lab: Lab) -> tuple[Member, Member]:
    """The member attacked, and a peer of it."""
    a, b = tcp_lab.pair()
    return b, a


@pytest.fixture
def dealer() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.setsockopt(zmq.LINGER, 0)
        yield made


def assert_serves(victim: Member, peer: Member) -> None:
    """The peer's connection stood all along, and still carries frames."""
    mark = random.randbytes(8)
    assert peer.transport.send("b", mark)
    until(lambda: mark in victim.frames, victim, peer)
    assert peer.kinds("b") == ["up"]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_the_raw_handshake_of_these_tests_is_right(victim: tuple[Member, Member]) -> None:
    member, peer = victim
    with dial_past_handshake(member) as stranger:
        stranger.sendall(b"\x00\x05hello")
        until(lambda: member.frames == [b"hello"], member)
        assert_serves(member, peer)


def test_an_http_request(victim: tuple[Member, Member]) -> None:
    member, peer = victim
    with dial(member) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        turns_for(0.1, member)
        assert_serves(member, peer)
    assert len(member.frames) == 1


def test_random_bytes_in_every_phase(victim: tuple[Member, Member]) -> None:
    member, peer = victim
    chance = random.Random(7)
    for round_number in range(60):
        opening = (b"", GREETING[:11], GREETING, GREETING + READY_DEALER[:5])[round_number % 4]
        with dial(member) as stranger:
            stranger.sendall(opening + chance.randbytes(chance.randrange(1, 3000)))
        member.turn()
    # Some of it is taken for an old, unversioned peer, and comes through as frames: their content protects the rest.
    assert_serves(member, peer)


def test_a_flood_of_silent_connections(victim: tuple[Member, Member]) -> None:
    member, peer = victim
    strangers = [dial(member) for _ in range(150)]
    turns_for(0.1, member, peer)
    assert_serves(member, peer)
    for stranger in strangers:
        stranger.close()
    turns_for(0.1, member, peer)
    assert_serves(member, peer)


def test_a_frame_that_claims_a_gigabyte(victim: tuple[Member, Member]) -> None:
    """It is refused on its claim, before memory is set aside, and the connection with it."""
    member, peer = victim
    before = resident_bytes()
    with dial_past_handshake(member) as stranger:
        stranger.sendall(long_frame(0, 1 << 30, b"x" * 1000))
        while stranger.recv(4096):
            continue  # ends when the connection is ended
    assert resident_bytes() - before < 64 << 20
    assert_serves(member, peer)


def test_a_frame_just_above_the_limit(victim: tuple[Member, Member], dealer: zmq.Socket[bytes]) -> None:
    member, peer = victim
    dealer.connect(member.transport.address)
    dealer.send(b"x" * (1 << 20))
    until(lambda: len(member.frames) == 1, member)
    dealer.send(b"x" * ((1 << 20) + 1))
    dealer.send(b"behind it")
    turns_for(0.2, member)
    assert b"x" * ((1 << 20) + 1) not in member.frames
    assert_serves(member, peer)


def test_our_own_oversize_frame_is_not_sent(victim: tuple[Member, Member]) -> None:
    """Sent, it would end the connection."""
    member, peer = victim
    assert not peer.transport.send("b", b"x" * ((1 << 20) + 1))
    assert peer.transport.dropped()["oversize"] == 1
    assert_serves(member, peer)


@pytest.mark.parametrize("parts", [2, 3, 5, 64, 1000])
def test_a_message_of_many_parts_is_dropped_whole(
    victim: tuple[Member, Member], dealer: zmq.Socket[bytes], parts: int
) -> None:
    member, peer = victim
    dealer.connect(member.transport.address)
    dealer.send_multipart([b"part %d" % number for number in range(parts)])
    dealer.send(b"whole")
    dealer.send_multipart([b"", b""])
    dealer.send(b"whole too")
    until(lambda: b"whole too" in member.frames, member)
    assert member.frames == [b"whole", b"whole too"]
    assert member.transport.dropped()["parts"] == 2
    assert_serves(member, peer)


def test_throwing_parts_away_takes_turns(victim: tuple[Member, Member], dealer: zmq.Socket[bytes]) -> None:
    """A million parts must not keep the loop from everything else."""
    member, peer = victim
    dealer.connect(member.transport.address)
    dealer.send_multipart([b"x"] * 5000)
    dealer.send(b"behind them")
    turns = 0
    while b"behind them" not in member.frames:
        member.transport.poll(1.0)
        member.frames += member.transport.receive(10)
        turns += 1
        assert turns < 10_000
    assert turns > 5000 / 40 / 2
    assert_serves(member, peer)


def test_parts_without_end(victim: tuple[Member, Member]) -> None:
    """libzmq keeps what it is sent; members are served meanwhile, and nothing of it ever comes through."""
    member, peer = victim
    part = long_frame(MORE, 1024, b"x" * 1024)
    with dial_past_handshake(member) as stranger:
        for _ in range(64):
            stranger.sendall(part * 64)
            member.turn(timeout=0.0)
        assert_serves(member, peer)
    turns_for(0.1, member)
    assert_serves(member, peer)
    assert set(map(len, member.frames)) == {8}
    assert member.transport.dropped()["parts"] == 0


def test_a_listener_that_is_no_member_is_never_up() -> None:
    """Something else took the peer's port: it accepts and says nothing, or says goodbye."""
    transport = ZeroMQTransport(None)
    transport.start()
    member = Member(transport)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport.set_peers({"b": f"tcp://127.0.0.1:{listener.getsockname()[1]}"})
        for _ in range(3):
            accepted, _ = listener.accept()
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
            accepted.close()
            member.turn()
        assert not transport.send("b", b"x")
    turns_for(0.2, member)
    assert member.events == []
    transport.close()


def test_a_peer_that_talks_back_gains_nothing(tcp_lab: Lab) -> None:
    """Links are one-way: what a hostile ROUTER answers to our DEALER is never read, and bounded."""
    a = tcp_lab.start("a")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.SNDHWM, 10)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        a.transport.set_peers({"b": f"tcp://127.0.0.1:{port}"})
        until(lambda: a.kinds("b") == ["up"], a)
        assert a.transport.send("b", b"hello")
        identity, _ = router.recv_multipart()
        refused = False
        for _ in range(2000):
            try:
                router.send_multipart([identity, b"x" * 4000], zmq.NOBLOCK)
            except zmq.Again:
                refused = True
                break
            a.turn(timeout=0.0)
        turns_for(0.1, a)
        assert a.frames == []
        assert refused or a.kinds("b")[-1] in ("up", "down")


def test_a_peer_that_comes_and_goes_while_nobody_looks() -> None:
    """Its events fill the monitor's queue, and libzmq's thread waits for room, holding a lock that `close` needs."""
    transport = ZeroMQTransport(None, reconnect_interval=0.001, reconnect_interval_max=0.001)
    transport.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        transport.set_peers({"b": f"tcp://127.0.0.1:{listener.getsockname()[1]}"})
        connections = 0
        try:
            while connections < 5000:
                _welcome(listener)
                connections += 1
        except TimeoutError:
            pass  # libzmq's thread waits for room
        assert 100 < connections < 5000
        begun = time.monotonic()
        transport.close()
        assert time.monotonic() - begun < 1.0


def _welcome(listener: socket.socket) -> None:
    """Shake hands with whoever dials, and hang up."""
    accepted, _ = listener.accept()
    with accepted:
        shake_hands(accepted, READY_ROUTER, patience=0.5)
