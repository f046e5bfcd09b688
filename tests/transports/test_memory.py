"""The network in memory: the same seed gives the same faults, and each fault does what it says."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from coord.transports.base import DOWN, GONE, UP, PeerEvent
from coord.transports.memory import LinkFaults, MemoryNetwork, MemoryTransport
from transport_lab import PATIENCE, Member, until

WILD = LinkFaults(delay=0.01, jitter=0.05, loss=0.2, duplicate=0.2, reorder=0.3)


def network_of(names: str, seed: int = 0, faults: LinkFaults | None = None, **settings: int) -> MemoryNetwork:
    network = MemoryNetwork(seed, faults=faults, **settings)
    for name in names:
        network.join(0.0, name)
    network.due(1.0)
    return network


def frames_by(network: MemoryNetwork, now: float, target: str = "b") -> list[bytes]:
    return [what for to, what in network.due(now) if to == target and isinstance(what, bytes)]


def events_by(network: MemoryNetwork, now: float) -> list[tuple[str, str, str]]:
    return [(to, what.kind, what.peer) for to, what in network.due(now) if isinstance(what, PeerEvent)]


def trace(
    seed: int, meddle: Callable[[MemoryNetwork, int], None] = lambda network, step: None
) -> list[tuple[str, bytes]]:
    """What arrives where in 400 steps of three members that all talk."""
    network = network_of("abc", seed, WILD)
    arrived: list[tuple[str, bytes]] = []
    for step in range(400):
        now = 1.0 + step * 0.01
        meddle(network, step)
        for source in "abc":
            for target in "abc":
                if source != target:
                    network.send(now, source, target, f"{source}{target}{step}".encode())
        arrived += [(to, what) for to, what in network.due(now) if isinstance(what, bytes)]
    return arrived


def test_the_same_seed_the_same_run() -> None:
    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_the_same_run_in_another_process() -> None:
    """Neither the hash seed of the interpreter nor anything else of the process may show."""
    script = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1].split(':'); sys.path.append(sys.argv[2])\n"
        "from test_memory import trace\n"
        "print(hashlib.sha256(repr(trace(5)).encode()).hexdigest())\n"
    )
    path = ":".join(entry or os.getcwd() for entry in sys.path)
    digests = {hashlib.sha256(repr(trace(5)).encode()).hexdigest()}
    for hash_seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", script, path, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_taking_a_fault_away_changes_no_other_link() -> None:
    """So a failing run can be made smaller, fault by fault."""

    def cut_early(network: MemoryNetwork, step: int) -> None:
        if step == 10:
            network.cut("a", "b")
        if step == 50:
            network.heal()

    def without(arrived: list[tuple[str, bytes]], link: bytes) -> list[bytes]:
        return [frame for _, frame in arrived if not frame.startswith(link)]

    plain, faulty = trace(3), trace(3, cut_early)
    assert without(plain, b"ab") == without(faulty, b"ab")
    of_link = [[frame for _, frame in run if frame.startswith(b"ab")] for run in (plain, faulty)]
    assert len(of_link[1]) < len(of_link[0])
    # And once healed, the link's own frames meet the fate they would have met.
    late = [sorted(frame for frame in run if int(frame[2:]) >= 60) for run in of_link]
    assert late[0] == late[1]


def test_without_faults_all_arrive_at_once_in_order() -> None:
    network = network_of("ab")
    sent = [b"%d" % number for number in range(50)]
    assert all(network.send(2.0, "a", "b", frame) for frame in sent)
    assert network.next_due() == 2.0
    assert frames_by(network, 2.0) == sent
    assert network.next_due() is None


def test_delay_and_jitter() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1, jitter=0.1))
    taken: list[float] = []
    for number in range(200):
        assert network.send(2.0 + number, "a", "b", b"x")
        due = network.next_due()
        assert due is not None
        taken.append(due - 2.0 - number)
        assert frames_by(network, due) == [b"x"]
    assert 0.1 <= min(taken) < 0.11
    assert 0.19 < max(taken) <= 0.2


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_loss(share: float) -> None:
    network = network_of("ab", faults=LinkFaults(loss=share), queue_frames=5000)
    for _ in range(4000):
        assert network.send(2.0, "a", "b", b"x")
    lost = 4000 - len(frames_by(network, 2.0))
    assert abs(lost / 4000 - share) < 0.05
    assert network.dropped["lost"] == lost


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_duplicates(share: float) -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.01, duplicate=share), queue_frames=9000)
    for number in range(4000):
        assert network.send(2.0, "a", "b", b"%d" % number)
    arrived = frames_by(network, 3.0)
    assert abs((len(arrived) - 4000) / 4000 - share) < 0.05
    assert set(arrived) == {b"%d" % number for number in range(4000)}


def test_jitter_alone_keeps_the_order() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1, jitter=0.5))
    sent = [b"%03d" % number for number in range(100)]
    for number, frame in enumerate(sent):
        network.send(2.0 + number * 0.01, "a", "b", frame)
    assert frames_by(network, 9.0) == sent


def test_reorder() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1, reorder=0.2))
    for number in range(100):
        network.send(2.0 + number * 0.01, "a", "b", b"%03d" % number)
    arrived = frames_by(network, 9.0)
    assert arrived != sorted(arrived)
    assert sorted(arrived) == [b"%03d" % number for number in range(100)]


def test_faults_of_one_link() -> None:
    network = network_of("ab")
    network.set_faults(LinkFaults(loss=1.0), "a", "b")
    network.send(2.0, "a", "b", b"lost")
    network.send(2.0, "b", "a", b"arrives")
    assert frames_by(network, 2.0, "a") == [b"arrives"]
    network.set_faults(None, "a", "b")
    network.send(3.0, "a", "b", b"arrives")
    assert frames_by(network, 3.0) == [b"arrives"]
    network.set_faults(LinkFaults(loss=1.0))
    network.send(4.0, "a", "b", b"lost")
    assert frames_by(network, 4.0) == []


def test_a_one_way_cut() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1))
    network.send(2.0, "a", "b", b"under way")
    network.cut("a", "b")
    assert network.send(2.0, "a", "b", b"cut"), "the sender does not know"
    network.send(2.0, "b", "a", b"other way")
    assert network.due(3.0) == [("a", b"other way")]
    assert network.dropped["cut"] == 2
    network.heal()
    network.send(3.0, "a", "b", b"healed")
    assert frames_by(network, 4.0) == [b"healed"]


def reachable(network: MemoryNetwork, names: str) -> set[str]:
    for source in names:
        for target in names:
            if source != target:
                network.send(5.0, source, target, (source + target).encode())
    return {what.decode() for _, what in network.due(6.0) if isinstance(what, bytes)}


def test_partition_replaces_the_one_before() -> None:
    network = network_of("abcde")
    network.partition("ab", "cd")
    assert reachable(network, "abcde") == {"ab", "ba", "cd", "dc"}
    network.partition("abcd")
    assert reachable(network, "abcde") == {one + other for one in "abcd" for other in "abcd" if one != other}
    network.heal()
    assert len(reachable(network, "abcde")) == 20


def test_isolate() -> None:
    network = network_of("abc")
    network.isolate("b")
    assert reachable(network, "abc") == {"ac", "ca"}


def test_a_clog_holds_everything_back() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1))
    network.send(2.0, "a", "b", b"1")
    network.clog("a", "b", 5.0)
    network.send(2.5, "a", "b", b"2")
    assert frames_by(network, 4.9) == []
    assert network.next_due() == 5.0
    network.send(4.95, "a", "b", b"3")
    assert frames_by(network, 5.0) == [b"1", b"2"]
    assert frames_by(network, 5.1) == [b"3"]


def test_a_link_holds_so_many_frames() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1), queue_frames=3)
    assert [network.send(2.0, "a", "b", b"x") for _ in range(5)] == [True, True, True, False, False]
    assert network.dropped["queue_full"] == 2
    assert len(frames_by(network, 3.0)) == 3
    assert network.send(3.0, "a", "b", b"x")


def test_members_learn_of_each_other() -> None:
    network = MemoryNetwork(faults=LinkFaults(delay=0.1), gone_delay=0.05)
    network.join(0.0, "a")
    assert network.next_due() is None
    network.join(1.0, "b")
    assert events_by(network, 1.0) == []
    assert events_by(network, 1.1) == [("a", UP, "b"), ("b", UP, "a")]
    network.send(2.0, "a", "b", b"for the dead")
    network.kill(2.0, "b")
    assert not network.send(2.0, "a", "b", b"refused")
    assert not network.send(2.0, "b", "a", b"refused")
    assert network.due(2.1) == [("a", PeerEvent(DOWN, "b"))]
    assert network.due(2.15 + 1e-9) == [("a", PeerEvent(GONE, "b"))]
    assert network.dropped["not_connected"] == 3
    network.join(3.0, "b")
    assert events_by(network, 3.1) == [("a", UP, "b"), ("b", UP, "a")]


def test_what_the_dead_sent_before_still_arrives() -> None:
    network = network_of("ab", faults=LinkFaults(delay=0.1))
    network.send(2.0, "a", "b", b"last words")
    network.kill(2.0, "a")
    assert frames_by(network, 3.0) == [b"last words"]


def test_nothing_meant_for_an_earlier_life_arrives() -> None:
    network = network_of("ab", faults=LinkFaults(delay=1.0))
    network.send(2.0, "a", "b", b"for the first")
    network.kill(2.1, "b")
    network.join(2.2, "b")
    assert frames_by(network, 9.0) == []


def test_a_death_behind_a_cut_is_not_noticed() -> None:
    """What a member cannot see must not depose a leader."""
    for cut in (("a", "b"), ("b", "a")):
        network = network_of("ab")
        network.cut(*cut)
        network.kill(2.0, "b")
        network.heal()
        assert events_by(network, 9.0) == []
        network.join(9.0, "b")
        assert events_by(network, 9.0) == [("a", UP, "b"), ("b", UP, "a")]


def test_proof_needs_an_answer() -> None:
    """The connection ended, and before anything could be refused the network was cut: DOWN, and no more."""
    network = network_of("ab", gone_delay=1)
    network.kill(2.0, "b")
    network.isolate("b")
    assert events_by(network, 9.0) == [("a", DOWN, "b")]


def test_a_quick_successor_is_not_gone() -> None:
    network = network_of("ab", gone_delay=1)
    network.kill(2.0, "b")
    network.join(2.5, "b")
    assert events_by(network, 9.0) == [("a", DOWN, "b"), ("a", UP, "b"), ("b", UP, "a")]


def test_joining_behind_a_cut_is_noticed_once_healed() -> None:
    network = network_of("a")
    network.join(1.0, "b")
    network.due(1.0)
    network.kill(2.0, "b")
    network.due(3.0)
    network.isolate("b")
    network.join(3.0, "b")
    assert events_by(network, 4.0) == []
    network.heal()
    assert events_by(network, 4.0) == [("a", UP, "b"), ("b", UP, "a")]
    network.heal()
    assert network.next_due() is None


def test_three_threads_talk_through_faults() -> None:
    """Everybody repeats until everybody has heard from everybody, over a bad network."""
    network = MemoryNetwork(9, faults=LinkFaults(delay=0.001, jitter=0.002, loss=0.3, duplicate=0.3, reorder=0.3))
    heard: dict[str, set[bytes]] = {name: set() for name in "abc"}
    deadline = threading.Event()

    def run(name: str) -> None:
        transport = MemoryTransport(network, name)
        transport.start()
        transport.set_peers(dict.fromkeys(set("abc") - {name}, ""))
        # Those who have heard enough still talk, for the others.
        while not all(len(frames) == 2 for frames in heard.values()) and not deadline.is_set():
            for peer in sorted(set("abc") - {name}):
                transport.send(peer, name.encode())
            transport.poll(0.002)
            heard[name].update(transport.receive(10))
            transport.events()
        transport.close()

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    deadline.set()
    assert heard == {"a": {b"b", b"c"}, "b": {b"a", b"c"}, "c": {b"a", b"b"}}


def test_a_killed_transport_is_dead_and_harmless() -> None:
    network = MemoryNetwork()
    clock = [0.0]
    a, b = (Member(MemoryTransport(network, name, lambda: clock[0])) for name in "ab")
    for member, peer in ((a, "b"), (b, "a")):
        member.transport.start()
        member.transport.set_peers({peer: ""})
    network.kill(0.0, "b")
    clock[0] = 1.0
    a.turn(0.0)
    assert a.kinds("b")[-2:] == [DOWN, GONE]
    assert not b.transport.send("a", b"from the dead")
    successor = MemoryTransport(network, "b", lambda: clock[0])
    successor.start()
    # The old one's close is not the new one's.
    b.transport.close()
    assert network.alive("b")
    a.turn(0.0)
    assert a.kinds("b")[-1] == UP
    assert a.transport.send("b", b"x")
    successor.poll(0.0)
    assert successor.receive(10) == [b"x"]


def test_an_inbox_holds_so_many_frames() -> None:
    network = MemoryNetwork()
    a, b = MemoryTransport(network, "a"), MemoryTransport(network, "b", queue_frames=2)
    for transport, peer in ((a, "b"), (b, "a")):
        transport.start()
        transport.set_peers({peer: ""})
    for _ in range(5):
        assert a.send("b", b"x")
        a.poll(0.0)  # delivers for everybody
    assert b.dropped()["queue_full"] == 3
    assert b.receive(10) == [b"x", b"x"]


def test_a_frame_under_way_ends_a_sleep_when_it_is_due() -> None:
    network = MemoryNetwork(faults=LinkFaults(delay=0.05))
    a, b = MemoryTransport(network, "a"), MemoryTransport(network, "b")
    for transport, peer in ((a, "b"), (b, "a")):
        transport.start()
        transport.set_peers({peer: ""})
    member = Member(b)
    assert a.send("b", b"x")
    until(lambda: member.frames == [b"x"], member)


def test_random_meddling_never_breaks_it() -> None:
    chance = random.Random(4)
    network = MemoryNetwork(4, faults=WILD, queue_frames=20)
    names = "abcd"
    now = 0.0
    for _ in range(5000):
        now += chance.random() * 0.01
        one, other = chance.sample(names, 2)
        match chance.randrange(9):
            case 0:
                (network.kill if network.alive(one) else network.join)(now, one)
            case 1:
                network.cut(one, other)
            case 2:
                network.heal()
            case 3:
                network.clog(one, other, now + chance.random())
            case 4:
                network.partition(chance.sample(names, 2), chance.sample(names, 1))
            case _:
                network.send(now, one, other, b"x")
        before = network.next_due()
        for target, what in network.due(now):
            assert before is not None
            assert network.alive(target)
            assert what == b"x" or isinstance(what, PeerEvent)
    network.heal()
    network.due(now + 100.0)
    assert network.next_due() is None
