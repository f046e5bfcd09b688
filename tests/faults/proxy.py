"""A TCP proxy between members that is told to be a bad network: it stalls, delays, is slow, or cuts connections.

One thread serves all links. A link is one member's way to another, and all its connections; what is sent back on them
takes the same way. TCP neither loses nor doubles bytes, so a link that is cut holds them until it is mended, and says
nothing meanwhile: the ends see a connection that stands and a peer that is silent.
What must not live here: which links there are and when they are cut (`faults.network`).
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

#: Bytes of one connection and direction on their way, beyond which its sender has to wait.
HELD_BYTES_MAX = 256 << 10
_PIECE = 16 << 10
_IDLE_SECONDS = 0.5


class Conditions:
    """How a link is at present. Any thread may change it."""

    def __init__(self) -> None:
        self.cut = False
        #: Seconds each piece takes, drawn anew between these two; later pieces never overtake.
        self.delay = (0.0, 0.0)
        #: Bytes in a second; 0: as many as come.
        self.rate = 0.0
        #: Ends all connections, once.
        self.reset = False


class _Flow:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held: deque[tuple[float, memoryview]] = deque()
        self.held_bytes = 0
        self.last_due = 0.0
        self.ended = False

    def take(self, data: bytes, now: float, conditions: Conditions, rng: random.Random) -> None:
        due = max(self.last_due, now + rng.uniform(*conditions.delay))
        if conditions.rate:
            due = max(due, max(self.last_due, now) + len(data) / conditions.rate)
        self.last_due = due
        self.held.append((due, memoryview(data)))
        self.held_bytes += len(data)

    def give(self, now: float) -> None:
        """Pass on what is due, as far as the sink takes it. Raises OSError."""
        while self.held and self.held[0][0] <= now:
            due, data = self.held[0]
            sent = self.sink.send(data)
            self.held_bytes -= sent
            if sent < len(data):
                self.held[0] = (due, data[sent:])
                return
            self.held.popleft()


class Link:
    """One member's way to another: a port that stands for it."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.conditions = Conditions()
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.flows: list[_Flow] = []

    def accept(self) -> None:
        try:
            near, _ = self.listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(self.target, timeout=1.0)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flows += [_Flow(near, far), _Flow(far, near)]

    def drop(self, *ends: socket.socket) -> None:
        """End the connections that have any of these ends."""
        for flow in [flow for flow in self.flows if flow.source in ends or flow.sink in ends]:
            flow.source.close()
            flow.sink.close()
            self.flows.remove(flow)

    def close(self) -> None:
        self.drop(*(flow.source for flow in self.flows))
        self.listener.close()


class Proxy:
    """Serves links until closed."""

    def __init__(self, links: list[Link], seed: int = 1) -> None:
        self._links = links
        self._rng = random.Random(seed)
        self._ending = False
        self._near, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._near.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Some link's conditions are not what they were."""
        with contextlib.suppress(BlockingIOError):
            self._near.send(b"!")

    def close(self) -> None:
        self._ending = True
        self.changed()
        self._thread.join()
        self._near.close()
        self._far.close()

    def _run(self) -> None:
        try:
            while not self._ending:
                self._turn()
        finally:
            for link in self._links:
                link.close()

    def _turn(self) -> None:
        now = time.monotonic()
        readers: dict[socket.socket, Callable[[], None]] = {self._far: self._drain}
        writers: dict[socket.socket, Callable[[], None]] = {}
        wake = now + _IDLE_SECONDS
        for link in self._links:
            if link.conditions.reset:
                link.conditions.reset = False
                link.drop(*(flow.source for flow in link.flows))
            if link.conditions.cut:
                continue
            readers[link.listener] = link.accept
            for flow in link.flows:
                if flow.held:
                    due = flow.held[0][0]
                    if due <= now:
                        writers[flow.sink] = lambda link=link, flow=flow: self._give(link, flow)  # type: ignore[misc]
                    else:
                        wake = min(wake, due)
                if flow.held_bytes < HELD_BYTES_MAX and not flow.ended:
                    readers[flow.source] = lambda link=link, flow=flow: self._take(link, flow)  # type: ignore[misc]
        readable, writable, _ = select.select(list(readers), list(writers), [], max(0.0, wake - now))
        for ready, table in ((writable, writers), (readable, readers)):
            for end in ready:
                if end.fileno() >= 0:
                    table[end]()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._far.recv(1024)

    def _take(self, link: Link, flow: _Flow) -> None:
        try:
            data = flow.source.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            flow.take(data, time.monotonic(), link.conditions, self._rng)
        else:
            flow.ended = True
            if not flow.held:
                link.drop(flow.source)
        if not any(link.conditions.delay) and not link.conditions.rate:
            self._give(link, flow)

    def _give(self, link: Link, flow: _Flow) -> None:
        try:
            flow.give(time.monotonic())
        except BlockingIOError:
            return
        except OSError:
            link.drop(flow.sink)
            return
        if flow.ended and not flow.held:
            link.drop(flow.source)
