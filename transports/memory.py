"""A network in memory that fails on purpose, the same way for the same seed; and a transport on top of it.

`MemoryNetwork` is a value in virtual time: the caller says what time it is, so a simulation runs as fast as it can.
`MemoryTransport` runs it by a real clock, for members in threads of one process.
What must not live here: sockets, and any source of chance but the seed.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coord.errors import ConfigurationError
from coord.transports.base import DOWN, GONE, UP, PeerEvent

#: What arrives at a member.
Delivery = bytes | PeerEvent

NETWORK_REASONS = ("not_connected", "queue_full", "cut", "lost")
TRANSPORT_REASONS = ("unknown_peer", "not_connected", "queue_full")

_DRAWS = struct.Struct("<5Q")


@dataclass(slots=True, frozen=True)
class LinkFaults:
    """How one direction between two members behaves. Times in seconds, the rest probabilities of each frame."""

    #: Every frame takes `delay` plus up to `jitter`, evenly spread.
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    #: A second copy arrives later, up to six times as late.
    duplicate: float = 0.0
    #: The frame may be overtaken by those sent after it; all others arrive in order.
    reorder: float = 0.0

    def __post_init__(self) -> None:
        assert self.delay >= 0 and self.jitter >= 0
        assert all(0 <= p <= 1 for p in (self.loss, self.duplicate, self.reorder))


class _Link:
    """One direction. `number` counts what was offered to it, and with the seed decides the fate of each frame; so a
    fault that is taken away changes nothing for the frames and the links it did not touch."""

    __slots__ = ("clogged_until", "cut", "faults", "in_flight", "last_at", "number", "stream")

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.number = 0
        self.faults: LinkFaults | None = None
        self.cut = False
        self.clogged_until = 0.0
        self.in_flight = 0
        #: When the last frame that keeps its place arrives.
        self.last_at = 0.0

    def draw(self) -> tuple[float, ...]:
        """Five numbers from 0 up to 1 for the next frame."""
        hashed = self.stream.copy()
        hashed.update(self.number.to_bytes(8, "little"))
        self.number += 1
        return tuple((word >> 11) * 2.0**-53 for word in _DRAWS.unpack(hashed.digest()))


class MemoryNetwork:
    """Carries frames between members that `join`. All methods may be called from any thread.

    `seed` decides everything random. `faults` holds for every link without its own. `queue_frames` bounds what is under
    way on one link. `gone_delay` is how long it takes a peer to have proof that a process is gone, in seconds.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        faults: LinkFaults | None = None,
        queue_frames: int = 1024,
        gone_delay: float = 0.01,
    ) -> None:
        assert queue_frames > 0
        assert gone_delay >= 0
        #: Held by every method; a MemoryTransport sleeps on it.
        self.lock = threading.RLock()
        self.dropped = dict.fromkeys(NETWORK_REASONS, 0)
        self._seed = seed
        self._faults = faults if faults is not None else LinkFaults()
        self._queue_frames = queue_frames
        self._gone_delay = gone_delay
        self._links: dict[tuple[str, str], _Link] = {}
        #: How often each name has joined or been killed; odd while it lives. What was under way to an earlier life of
        #: its target is lost.
        self._lives: dict[str, int] = {}
        #: Pairs, in order of name, that have been told UP of each other.
        self._standing: set[tuple[str, str]] = set()
        #: (when, tie-breaker in order of sending, source or "", target, the target's life, what)
        self._under_way: list[tuple[float, int, str, str, int, Delivery]] = []
        self._pushed = 0
        #: The latest time told: when a fault without a time of its own begins or ends.
        self._now = 0.0
        self._transports: dict[str, MemoryTransport] = {}

    # -----------------------------------------------------------------------------------------------------------------
    # Members.

    def join(self, now: float, name: str) -> None:
        """The process `name` starts: it and everybody it can reach get UP of each other."""
        with self.lock:
            assert not self.alive(name), f"{name} lives already"
            self._now = max(self._now, now)
            self._lives[name] = self._lives.get(name, 0) + 1
            self._connect(now)

    def kill(self, now: float, name: str) -> None:
        """The process `name` ends. Whoever was connected to it gets DOWN, then GONE; behind a cut nobody notices."""
        with self.lock:
            assert self.alive(name), f"{name} does not live"
            for other in sorted(self._lives):
                pair = min(name, other), max(name, other)
                if pair in self._standing and self.connected(name, other):
                    at = now + self._delay(name, other)
                    self._push_event(at, other, PeerEvent(DOWN, name))
                    self._push_event(at + self._gone_delay, other, PeerEvent(GONE, name))
                self._standing.discard(pair)
            self._lives[name] += 1
            self._transports.pop(name, None)

    def alive(self, name: str) -> bool:
        with self.lock:
            return self._lives.get(name, 0) % 2 == 1

    def connected(self, one: str, other: str) -> bool:
        """Whether both live and neither direction between them is cut."""
        with self.lock:
            return (
                one != other
                and self.alive(one)
                and self.alive(other)
                and not self._link(one, other).cut
                and not self._link(other, one).cut
            )

    # -----------------------------------------------------------------------------------------------------------------
    # Frames.

    def send(self, now: float, source: str, target: str, frame: bytes) -> bool:
        """Carry one frame. False: refused, and the sender knows. True says nothing about its arrival."""
        with self.lock:
            link = self._link(source, target)
            loss, duplicate, jitter, reorder, copy = link.draw()
            if not self.alive(source) or not self.alive(target):
                self.dropped["not_connected"] += 1
                return False
            if link.cut:
                self.dropped["cut"] += 1
                return True
            if link.in_flight >= self._queue_frames:
                self.dropped["queue_full"] += 1
                return False
            faults = link.faults or self._faults
            if loss < faults.loss:
                self.dropped["lost"] += 1
                return True
            at = now + faults.delay + faults.jitter * jitter
            if reorder < faults.reorder:
                at += faults.delay + faults.jitter
            else:
                at = link.last_at = max(at, link.last_at)
            self._push_frame(at, source, target, link, frame)
            if duplicate < faults.duplicate:
                self._push_frame(at + (faults.delay + faults.jitter) * 5 * copy, source, target, link, frame)
            return True

    def due(self, now: float) -> list[tuple[str, Delivery]]:
        """What has arrived by `now` since the last call: (target, frame or event), in order of arrival."""
        arrived: list[tuple[str, Delivery]] = []
        with self.lock:
            self._now = max(self._now, now)
            while self._under_way and self._under_way[0][0] <= now:
                at, order, source, target, life, what = heapq.heappop(self._under_way)
                if source:
                    link = self._link(source, target)
                    if at < link.clogged_until and not link.cut:
                        heapq.heappush(self._under_way, (link.clogged_until, order, source, target, life, what))
                        continue
                    link.in_flight -= 1
                    if link.cut:
                        self.dropped["cut"] += 1
                        continue
                if self._lives[target] != life:
                    self.dropped["not_connected"] += bool(source)
                    continue
                if isinstance(what, PeerEvent) and what.kind == GONE and not self._refuses(what.peer, target):
                    continue
                arrived.append((target, what))
        return arrived

    def next_due(self) -> float | None:
        """When the next frame or event arrives; None when nothing is under way."""
        with self.lock:
            return self._under_way[0][0] if self._under_way else None

    # -----------------------------------------------------------------------------------------------------------------
    # Faults. All hold until changed again.

    def set_faults(self, faults: LinkFaults | None, source: str | None = None, target: str | None = None) -> None:
        """Behave so from `source` to `target`; on every link, when neither is named. None: as all the others again."""
        with self.lock:
            if source is not None and target is not None:
                self._link(source, target).faults = faults
                return
            assert source is None and target is None, "name both ends or neither"
            assert faults is not None
            self._faults = faults
            for link in self._links.values():
                link.faults = None

    def cut(self, source: str, target: str) -> None:
        """Nothing sent or under way from `source` arrives at `target`. The other direction goes on."""
        with self.lock:
            self._link(source, target).cut = True

    def partition(self, *groups: Iterable[str]) -> None:
        """Replace all cuts: only members of one group reach each other. Whoever has joined and is in no
        group is alone."""
        with self.lock:
            side = {name: number for number, group in enumerate(groups) for name in group}
            names = sorted({*self._lives, *side})
            for source in names:
                for target in names:
                    if source != target:
                        self._link(source, target).cut = source not in side or side[source] != side.get(target)
            self._connect(self._now)

    def isolate(self, name: str) -> None:
        """Cut `name` off from everybody, both ways."""
        with self.lock:
            for other in sorted(self._lives):
                if other != name:
                    self.cut(name, other)
                    self.cut(other, name)

    def clog(self, source: str, target: str, until: float) -> None:
        """Hold back what is sent or under way from `source` to `target`; all of it arrives, in order, at `until`."""
        with self.lock:
            self._link(source, target).clogged_until = until

    def heal(self) -> None:
        """End every cut. What a clog holds back still waits for its time; faults of links stay."""
        with self.lock:
            for link in self._links.values():
                link.cut = False
            self._connect(self._now)

    # -----------------------------------------------------------------------------------------------------------------

    def attach(self, name: str, transport: MemoryTransport) -> None:
        """From now until it is killed, hand what arrives for `name` to `transport`, whose thread may be sleeping."""
        with self.lock:
            self._transports[name] = transport

    def attached(self, name: str) -> MemoryTransport | None:
        with self.lock:
            return self._transports.get(name)

    def deliver(self, now: float) -> None:
        """Hand what is due to the transports attached; what is for nobody is lost."""
        with self.lock:
            for target, what in self.due(now):
                transport = self._transports.get(target)
                if transport is not None:
                    transport.take(what)

    def _connect(self, now: float) -> None:
        """Tell UP to every pair that can reach each other and has not been told."""
        names = sorted(self._lives)
        for pair in itertools.combinations(names, 2):
            if pair not in self._standing and self.connected(*pair):
                self._standing.add(pair)
                for one, other in (pair, pair[::-1]):
                    self._push_event(now + self._delay(other, one), one, PeerEvent(UP, other))

    def _refuses(self, peer: str, target: str) -> bool:
        """Whether `target` would have proof now that `peer` is gone: its host answers, and nobody listens there."""
        return not self.alive(peer) and not self._link(peer, target).cut and not self._link(target, peer).cut

    def _link(self, source: str, target: str) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            keyed = repr((self._seed, source, target)).encode()
            link = self._links[source, target] = _Link(hashlib.blake2b(keyed, digest_size=_DRAWS.size))
        return link

    def _delay(self, source: str, target: str) -> float:
        return (self._link(source, target).faults or self._faults).delay

    def _push_frame(self, at: float, source: str, target: str, link: _Link, frame: bytes) -> None:
        link.in_flight += 1
        self._push(max(at, link.clogged_until), source, target, frame)

    def _push_event(self, at: float, target: str, event: PeerEvent) -> None:
        self._push(at, "", target, event)

    def _push(self, at: float, source: str, target: str, what: Delivery) -> None:
        heapq.heappush(self._under_way, (at, self._pushed, source, target, self._lives[target], what))
        self._pushed += 1
        transport = self._transports.get(target)
        if transport is not None:
            transport.look_again()


class MemoryTransport:
    """Implements `coord.transports.base.Transport` over a `MemoryNetwork`, where names alone tell peers apart.

    The addresses given to `set_peers` may be anything. `clock` tells the network's time, in seconds, the same for all
    transports of one network. `close` and `MemoryNetwork.kill` look the same to peers: the process is gone.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        queue_frames: int = 1024,
    ) -> None:
        assert name
        assert queue_frames > 0
        self._network = network
        self._name = name
        self._clock = clock
        self._queue_frames = queue_frames
        self._changed = threading.Condition(network.lock)
        self._peers: frozenset[str] = frozenset()
        self._up: set[str] = set()
        self._inbox: deque[bytes] = deque()
        self._events: deque[PeerEvent] = deque(maxlen=queue_frames)
        self._woken = False
        self._running = False
        self._dropped = dict.fromkeys(TRANSPORT_REASONS, 0)

    @property
    def address(self) -> str:
        return f"memory://{self._name}" if self._running else ""

    def start(self) -> None:
        with self._network.lock:
            if self._network.alive(self._name):
                raise ConfigurationError(
                    f"bind: {self._name!r} is already in this network; close the transport that holds the name first"
                )
            self._network.attach(self._name, self)
            self._network.join(self._clock(), self._name)
            self._running = True

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        with self._network.lock:
            self._peers = frozenset(addresses)
            self._up &= self._peers
            for peer in sorted(self._peers):
                if self._running and self._network.connected(self._name, peer):
                    self._report(PeerEvent(UP, peer))

    def send(self, peer: str, frame: bytes) -> bool:
        with self._network.lock:
            if peer not in self._peers:
                self._dropped["unknown_peer"] += 1
                return False
            if self._running and self._network.send(self._clock(), self._name, peer, frame):
                return True
            self._dropped["queue_full" if self._network.connected(self._name, peer) else "not_connected"] += 1
            return False

    def poll(self, timeout: float) -> None:
        with self._changed:
            now = self._clock()
            deadline = now + timeout
            self._network.deliver(now)
            while self._running and not (self._woken or self._inbox or self._events) and now < deadline:
                arrival = self._network.next_due()
                until = deadline if arrival is None else min(deadline, arrival)
                self._changed.wait(min(max(until - now, 0.0), threading.TIMEOUT_MAX))
                now = self._clock()
                self._network.deliver(now)
            self._woken = False

    def receive(self, limit: int) -> list[bytes]:
        with self._network.lock:
            return [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]

    def events(self) -> list[PeerEvent]:
        with self._network.lock:
            taken = list(self._events)
            self._events.clear()
            return taken

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def dropped(self) -> Mapping[str, int]:
        return self._dropped

    def close(self) -> None:
        with self._changed:
            if not self._running:
                return
            self._running = False
            # Once killed, its name may live again, in another transport.
            if self._network.attached(self._name) is self:
                self._network.kill(self._clock(), self._name)
            self._inbox.clear()
            self._changed.notify_all()

    def abandon(self) -> None:
        """A forked child has a copy of the whole network, and its lock may be held for ever; so nothing is touched."""
        self._running = False

    def take(self, what: Delivery) -> None:
        """Called by the network, under its lock, with what arrived."""
        if isinstance(what, PeerEvent):
            self._report(what)
        elif len(self._inbox) < self._queue_frames:
            self._inbox.append(what)
        else:
            self._dropped["queue_full"] += 1
        self._changed.notify_all()

    def look_again(self) -> None:
        """Called by the network, under its lock: something is under way that may be due sooner than what was."""
        self._changed.notify_all()

    def _report(self, event: PeerEvent) -> None:
        """Keep `event` if it is about a peer and news: an UP may come twice, once from `set_peers`."""
        if event.peer not in self._peers or (event.kind == UP and event.peer in self._up):
            return
        if event.kind == UP:
            self._up.add(event.peer)
        else:
            self._up.discard(event.peer)
        self._events.append(event)
