"""What every transport promises (`coord.transports.base`), asked of each of them."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest

from coord.errors import ConfigurationError
from coord.transports.base import PeerEvent, Transport
from transport_lab import PATIENCE, Lab, turns_for, until


def test_frames_arrive_whole_and_in_order(lab: Lab) -> None:
    a, b = lab.pair()
    sent = [b"%d" % number * (number % 50) for number in range(300)]
    for frame in sent:
        # A full queue refuses; then the other end has to catch up.
        until(lambda frame=frame: a.transport.send("b", frame), b)  # type: ignore[misc]
    until(lambda: len(b.frames) >= len(sent), b)
    assert b.frames == sent
    assert a.frames == []


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65536, 1 << 20])
def test_a_frame_of_any_size_up_to_the_limit(lab: Lab, size: int) -> None:
    a, b = lab.pair()
    frame = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert a.transport.send("b", frame)
    until(lambda: b.frames == [frame], b)
    assert type(b.frames[0]) is bytes


def test_both_directions_and_three_members(lab: Lab) -> None:
    members = {name: lab.start(name) for name in "abc"}
    for name, member in members.items():
        member.transport.set_peers({other: lab.address(other) for other in members if other != name})
    everybody = list(members.values())
    until(lambda: all(len(member.events) == 2 for member in everybody), *everybody)
    for name, member in members.items():
        for other in members:
            assert (name == other) is not member.transport.send(other, f"{name} to {other}".encode())
    until(lambda: all(len(member.frames) == 2 for member in everybody), *everybody)
    for name, member in members.items():
        assert sorted(member.frames) == [f"{other} to {name}".encode() for other in members if other != name]


def test_a_frame_to_nobody_is_dropped_and_counted(lab: Lab) -> None:
    a, _ = lab.pair()
    before = dict(a.transport.dropped())
    assert not a.transport.send("stranger", b"x")
    assert a.transport.dropped() == {**before, "unknown_peer": before["unknown_peer"] + 1}


def test_a_peer_that_was_never_there(lab: Lab) -> None:
    """It is not gone: gone is who was there."""
    a = lab.start("a")
    a.transport.set_peers({"b": lab.unused_address()})
    turns_for(0.4, a)
    assert not a.transport.send("b", b"x")
    assert a.transport.dropped()["not_connected"] == 1
    assert a.events == []


def test_every_reason_is_counted_from_the_start(lab: Lab) -> None:
    dropped = lab.make("a").dropped()
    assert {"unknown_peer", "not_connected", "queue_full"} <= dropped.keys()
    assert set(dropped.values()) == {0}


def test_a_peer_that_ends_is_down_then_gone_and_its_successor_is_reached(lab: Lab) -> None:
    a, b = lab.pair()
    for round_number in range(3):
        b.transport.close()
        until(lambda: a.kinds("b")[-1] == "gone", a)
        assert a.kinds("b")[-2] == "down"
        assert not a.transport.send("b", b"lost")
        b = lab.start("b")
        until(lambda: a.kinds("b")[-1] == "up", a, b)
        assert a.transport.send("b", b"again %d" % round_number)
        until(lambda: b.frames == [b"again %d" % round_number], b)  # noqa: B023
    assert a.kinds("b") == ["up", *["down", "gone", "up"] * 3]


def test_a_peer_that_returns_while_we_are_not_looking(lab: Lab) -> None:
    """A stable routing id would lose everything the new process sends (research: 0 of 10 arrived)."""
    a, b = lab.pair()
    b.transport.close()
    b = lab.start("b")
    b.transport.set_peers({"a": lab.address("a")})
    until(lambda: b.kinds("a") == ["up"], b)
    for number in range(10):
        assert b.transport.send("a", b"%d" % number)
    until(lambda: len(a.frames) == 10, a)
    assert a.frames == [b"%d" % number for number in range(10)]


def test_a_full_queue_refuses_and_recovers(lab: Lab) -> None:
    a, b = lab.pair()
    frame = b"x" * 65536
    taken = 0
    while a.transport.send("b", frame):
        taken += 1
        assert taken < 2000, "nothing bounds the queue"
    assert a.transport.dropped()["queue_full"] == 1
    until(lambda: len(b.frames) == taken, b)
    until(lambda: a.transport.send("b", b"room again"), a, b)
    until(lambda: b.frames[-1] == b"room again", b)


def test_receive_gives_no_more_than_asked_for(lab: Lab) -> None:
    a, b = lab.pair()
    for number in range(10):
        assert a.transport.send("b", b"%d" % number)
    sizes: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while sum(sizes) < 10 and time.monotonic() < deadline:
        b.transport.poll(1.0)
        sizes.append(len(b.transport.receive(3)))
    assert sum(sizes) == 10
    assert max(sizes) <= 3
    assert b.transport.receive(0) == []


def test_set_peers_replaces_them_all(lab: Lab) -> None:
    a, b = lab.pair()
    c = lab.start("c")
    a.transport.set_peers({"c": lab.address("c")})
    until(lambda: a.kinds("c") == ["up"], a, c)
    assert not a.transport.send("b", b"x")
    assert a.transport.send("c", b"to c")
    until(lambda: c.frames == [b"to c"], a, b, c)
    a.transport.set_peers({})
    assert not a.transport.send("c", b"x")
    a.transport.set_peers({"b": lab.address("b")})
    until(lambda: a.kinds("b") == ["up", "up"], a, b)
    assert a.transport.send("b", b"to b")
    until(lambda: b.frames == [b"to b"], a, b)


def test_the_same_peers_again_change_nothing(lab: Lab) -> None:
    a, b = lab.pair()
    a.transport.set_peers({"b": lab.address("b")})
    assert a.transport.send("b", b"x")
    until(lambda: b.frames == [b"x"], a, b)
    assert a.kinds("b")[0] == "up"
    assert "down" not in a.kinds("b")


def test_poll_sleeps_as_long_as_told(lab: Lab) -> None:
    a, b = lab.pair()
    turns_for(0.05, a, b)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.2:
        a.transport.poll(0.2)
        assert a.transport.receive(10) == []
    a.transport.poll(0.0)
    a.transport.poll(-1.0)
    assert time.monotonic() - begun < PATIENCE


def test_a_wake_before_poll_ends_the_next_one(lab: Lab) -> None:
    a = lab.start("a")
    for _ in range(3):
        a.turn()  # whatever start left to notice
    for _ in range(100):
        begun = time.monotonic()
        a.transport.wake()
        a.transport.poll(PATIENCE * 2)
        assert time.monotonic() - begun < PATIENCE


def test_no_wake_is_ever_lost(lab: Lab) -> None:
    """Threads hand over work and wake; the owner may sleep only when all of it was seen."""
    a = lab.start("a")
    handed: deque[int] = deque()
    total = 3 * 3000

    def hand_over(count: int) -> None:
        for number in range(count):
            handed.append(number)
            a.transport.wake()
            if number % 7 == 0:
                time.sleep(0)  # let the owner go to sleep in between

    threads = [threading.Thread(target=hand_over, args=(total // 3,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    seen = 0
    while seen < total:
        begun = time.monotonic()
        a.transport.poll(PATIENCE * 2)
        # Frames, events: none. So only a wake ends a poll, and a lost one would make it sleep.
        assert time.monotonic() - begun < PATIENCE
        a.transport.receive(64)
        while handed:
            handed.popleft()
            seen += 1
    for thread in threads:
        thread.join()
    assert a.events == [] and a.frames == []


def test_a_wake_ends_a_sleep_that_has_begun(lab: Lab) -> None:
    a = lab.start("a")
    for _ in range(3):
        a.turn()
    asleep = threading.Event()
    woken = threading.Event()

    def owner() -> None:
        asleep.set()
        a.transport.poll(PATIENCE * 2)
        woken.set()

    thread = threading.Thread(target=owner)
    thread.start()
    assert asleep.wait(PATIENCE)
    a.transport.wake()
    assert woken.wait(PATIENCE)
    thread.join()


def test_a_frame_ends_a_sleep(lab: Lab) -> None:
    a, b = lab.pair()
    turns_for(0.05, a, b)
    begun = time.monotonic()
    assert a.transport.send("b", b"x")
    while not b.frames:
        b.turn(timeout=PATIENCE * 2)
    assert time.monotonic() - begun < PATIENCE


def test_close_is_prompt_and_final(lab: Lab) -> None:
    a, b = lab.pair()
    while a.transport.send("b", b"x" * 65536):
        continue
    begun = time.monotonic()
    a.transport.close()
    a.transport.close()
    assert time.monotonic() - begun < 1.0
    assert not a.transport.send("b", b"x")
    assert a.transport.receive(10) == []
    a.transport.poll(PATIENCE * 2)
    a.transport.wake()
    a.transport.set_peers({"b": lab.address("b")})
    assert not a.transport.send("b", b"x")
    assert all(isinstance(event, PeerEvent) for event in a.transport.events())
    assert time.monotonic() - begun < PATIENCE
    b.turn()


def test_close_without_start(lab: Lab) -> None:
    transport = lab.make("a")
    transport.wake()
    transport.close()
    transport.close()
    assert transport.address == ""


def test_many_threads_wake_through_close(lab: Lab) -> None:
    """A late wake-up must not write into whatever took over its descriptor."""
    for _ in range(5):
        transport: Transport = lab.make("a")
        transport.start()
        stop = threading.Event()
        threads = [threading.Thread(target=_wake_until, args=(transport, stop)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            transport.poll(0.01)
        transport.close()
        stop.set()
        for thread in threads:
            thread.join()


def _wake_until(transport: Transport, stop: threading.Event) -> None:
    while not stop.is_set():
        transport.wake()


def test_an_address_in_use_is_refused_by_name(lab: Lab) -> None:
    a = lab.start("a")
    second = lab.make("a")
    with pytest.raises(ConfigurationError, match="bind"):
        second.start()
    second.close()
    # The first is unharmed.
    b = lab.start("b")
    b.transport.set_peers({"a": lab.address("a")})
    until(lambda: b.kinds("a") == ["up"], a, b)
    assert b.transport.send("a", b"x")
    until(lambda: a.frames == [b"x"], a, b)
