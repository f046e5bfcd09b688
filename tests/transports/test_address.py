"""Addresses: what is taken, what is refused and in which words, and names that are looked up off the loop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from coord.errors import ConfigurationError
from coord.transports import link
from coord.transports.address import is_local, look_up, parse_bind, parse_peer
from coord.transports.resolver import Resolver
from coord.transports.zeromq import ZeroMQTransport
from transport_lab import GREETING, PATIENCE, READY_ROUTER, Lab, Member, turns_for, until

MALFORMED = [
    ("", "begins with neither"),
    ("10.0.0.1:7400", "begins with neither"),
    ("http://10.0.0.1:7400", "begins with neither"),
    ("inproc://a", "begins with neither"),
    ("tcp://", "has no port"),
    ("tcp://10.0.0.1", "has no port"),
    ("tcp://10.0.0.1:", "is not a host and a port"),
    ("tcp://:7400", "is not a host and a port"),
    ("tcp://10.0.0.1:x", "is not a host and a port"),
    ("tcp://10.0.0.1:-1", "is not a host and a port"),
    ("tcp://10.0.0.1:7400/", "is not a host and a port"),
    ("tcp://10.0.0.1:7400 ", "is not a host and a port"),
    ("tcp://10.0.0.1:7400;10.0.0.2:7400", "is not a host and a port"),
    ("tcp://::1:7400", "is not a host and a port"),
    ("tcp://[::1]", "is not a host and a port"),
    ("tcp://[10.0.0.1]:7400", "is not an IPv6 address"),
    ("tcp://[zz::1]:7400", "is not an IPv6 address"),
    ("tcp://10.0.0.1:65536", "above 65535"),
    ("ipc://", "names no path"),
    ("ipc://*", "names no path"),
    ("ipc://@", "names no path"),
    ("ipc://a\0b", "names no path"),
    ("ipc:///" + "x" * 107, "has 108 bytes"),
    ("ipc:///" + "ä" * 54, "has 109 bytes"),
]


@pytest.mark.parametrize(("text", "why"), MALFORMED)
def test_malformed(text: str, why: str) -> None:
    for parse, field in ((parse_bind, "bind"), (parse_peer, "peers['b']")):
        with pytest.raises(ConfigurationError) as caught:
            parse(text, field)
        assert str(caught.value).startswith(f"{field}: ")
        assert why in str(caught.value)
        assert "example" in str(caught.value)


@pytest.mark.parametrize("text", [None, 7400, b"tcp://10.0.0.1:7400", ("10.0.0.1", 7400)])
def test_not_text(text: object) -> None:
    with pytest.raises(ConfigurationError, match="is not text"):
        parse_bind(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "tcp://10.0.0.1:7400",
        "tcp://[::1]:7400",
        "tcp://[fe80::1%eth0]:7400",
        "tcp://a-host.example:1",
        "tcp://localhost:65535",
        "ipc:///run/app/coord.sock",
        "ipc://relative.sock",
        "ipc://@abstract",
        "ipc:///" + "x" * 106,
    ],
)
def test_what_can_be_dialled_can_be_bound(text: str) -> None:
    assert parse_peer(text) == parse_bind(text)


@pytest.mark.parametrize("text", ["tcp://*:7400", "tcp://0.0.0.0:7400", "tcp://[::]:7400", "tcp://127.0.0.1:0"])
def test_what_can_only_be_bound(text: str) -> None:
    assert parse_bind(text).text == text
    with pytest.raises(ConfigurationError, match="peers"):
        parse_peer(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("ipc:///run/a.sock", True),
        ("tcp://127.0.0.1:7400", True),
        ("tcp://127.9.9.9:7400", True),
        ("tcp://[::1]:7400", True),
        ("tcp://localhost:7400", True),
        ("tcp://*:7400", False),
        ("tcp://0.0.0.0:7400", False),
        ("tcp://[::]:7400", False),
        ("tcp://10.0.0.1:7400", False),
        ("tcp://localhost.example:7400", False),
        ("tcp://lo:7400", False),
    ],
)
def test_is_local(text: str, local: bool) -> None:
    assert is_local(text) is local


def test_is_local_of_nonsense() -> None:
    with pytest.raises(ConfigurationError):
        is_local("nonsense")


def test_ipv4_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = socket.SOCK_STREAM
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [
            (socket.AF_INET6, stream, 6, "", ("::1", 7, 0, 0)),
            (socket.AF_INET, stream, 6, "", ("127.0.0.1", 7)),
            (socket.AF_INET, stream, 6, "", ("127.0.0.1", 7)),
        ],
    )
    assert [target.endpoint for target in look_up(parse_peer("tcp://both:7"))] == ["tcp://127.0.0.1:7", "tcp://[::1]:7"]


class Names:
    """Stands in for the name server: `known` says what it answers, and `hang` makes it silent."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked = 0
        self.threads: set[str] = set()
        self.answering = threading.Event()
        self.answering.set()
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *, type: int = 0, flags: int = 0) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            return list(self._real(host, port, type=type, flags=flags))
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        assert self.answering.wait(PATIENCE)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in self.known[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    monkeypatch.setattr(link, "RESOLVE_PAUSE", 0.02)
    yield made
    made.answering.set()


def named(address: str, host: str) -> str:
    return f"tcp://{host}:{address.rpartition(':')[2]}"


def test_a_name_is_looked_up_in_another_thread(tcp_lab: Lab, names: Names) -> None:
    names.known["b.example"] = ["127.0.0.1"]
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    a.transport.set_peers({"b": named(tcp_lab.address("b"), "b.example")})
    until(lambda: a.kinds("b") == ["up"], a, b)
    assert names.threads == {"coord-resolver"}
    assert a.transport.send("b", b"x")
    until(lambda: b.frames == [b"x"], b)


def test_a_name_server_that_hangs_stalls_nobody(tcp_lab: Lab, names: Names) -> None:
    names.answering.clear()
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    a.transport.set_peers({"b": tcp_lab.address("b"), "c": "tcp://c.example:7400"})
    until(lambda: a.kinds("b") == ["up"], a, b)
    assert a.transport.send("b", b"x")
    assert not a.transport.send("c", b"x")
    assert a.transport.dropped()["unresolved"] == 1
    begun = time.monotonic()
    a.transport.close()
    assert time.monotonic() - begun < 1.0


def test_an_unknown_name_is_asked_for_again(tcp_lab: Lab, names: Names, caplog: pytest.LogCaptureFixture) -> None:
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    a.transport.set_peers({"b": named(tcp_lab.address("b"), "b.example")})
    until(lambda: names.asked >= 3, a)
    assert not a.transport.send("b", b"x")
    assert a.transport.dropped()["unresolved"] == 1
    names.known["b.example"] = ["127.0.0.1"]
    until(lambda: a.kinds("b") == ["up"], a, b)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["cannot reach peer b yet"]


def test_a_peer_that_moves_is_followed(tcp_lab: Lab, names: Names) -> None:
    """A pod comes back with another number behind the same name."""
    names.known["b.example"] = ["127.0.0.1"]
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    address = named(tcp_lab.address("b"), "b.example")
    a.transport.set_peers({"b": address})
    until(lambda: a.kinds("b") == ["up"], a, b)
    b.transport.close()
    until(lambda: a.kinds("b")[-1] == "gone", a)
    moved = ZeroMQTransport(named(address, "127.0.0.2"))
    moved.start()
    names.known["b.example"] = ["127.0.0.2"]
    until(lambda: a.kinds("b")[-1] == "up", a, Member(moved))
    moved.close()


def test_every_address_of_a_name_is_tried(tcp_lab: Lab, names: Names) -> None:
    names.known["b.example"] = ["127.0.0.3", "127.0.0.4", "127.0.0.1"]
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    a.transport.set_peers({"b": named(tcp_lab.address("b"), "b.example")})
    until(lambda: a.kinds("b") == ["up"], a, b)


def test_moving_on_to_another_address_proves_nothing(
    tcp_lab: Lab, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second address of the name refuses; but the process stood at the first, and may only be slow."""
    names.known["b.example"] = ["127.0.0.1", "127.0.0.2"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(link, "PROBE_PAUSE", 0.2)
        a = tcp_lab.start("a")
        a.transport.set_peers({"b": f"tcp://b.example:{listener.getsockname()[1]}"})
        accepted, _ = _accept(listener, a)
        accepted.sendall(GREETING + READY_ROUTER)
        until(lambda: a.kinds("b") == ["up"], a)
        accepted.close()
        turns_for(0.8, a)
        assert "gone" not in a.kinds("b")


def _accept(listener: socket.socket, member: Member) -> tuple[socket.socket, object]:
    listener.settimeout(0.02)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        member.turn()
        try:
            return listener.accept()
        except TimeoutError:
            continue
    raise AssertionError("nobody dialled")


def test_a_name_known_before_is_kept_when_the_server_fails(tcp_lab: Lab, names: Names) -> None:
    names.known["b.example"] = ["127.0.0.1"]
    a, b = tcp_lab.start("a"), tcp_lab.start("b")
    a.transport.set_peers({"b": named(tcp_lab.address("b"), "b.example")})
    until(lambda: a.kinds("b") == ["up"], a, b)
    names.known.clear()
    b.transport.close()
    until(lambda: a.kinds("b")[-1] == "gone" and names.asked > 3, a)
    b = tcp_lab.start("b")
    until(lambda: a.kinds("b")[-1] == "up", a, b)


def test_a_resolver_that_cannot_start_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    told = threading.Event()
    resolver = Resolver(told.set)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        resolver.ask(parse_peer("tcp://b.example:7400"))
    assert told.is_set()
    assert [(address.host, targets, reason) for address, targets, reason in resolver.answers()] == [
        ("b.example", [], "can't start new thread")
    ]


def test_a_resolver_asks_once_for_what_is_waiting(names: Names) -> None:
    names.answering.clear()
    told = threading.Semaphore(0)
    resolver = Resolver(told.release)
    for host in ("b", "c", "c", "c"):
        resolver.ask(parse_peer(f"tcp://{host}.example:7400"))
    names.answering.set()
    assert told.acquire(timeout=PATIENCE) and told.acquire(timeout=PATIENCE)
    assert [address.host for address, _, _ in resolver.answers()] == ["b.example", "c.example"]
    resolver.close()
    resolver.ask(parse_peer("tcp://d.example:7400"))
    assert names.asked == 2
