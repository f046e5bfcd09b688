"""The transport over ZeroMQ: one bound ROUTER that only receives, and for each peer one DEALER that only sends.

One-way links need no routing ids. A stable id would lose a restarted peer's messages without a word, or let anybody
take over its place; so nobody sets one, and who sent a frame stands inside it.

What libzmq leaves us exposed to: a stranger who never ends a message (the MORE flag on every part) makes it hold all
parts, and no option bounds that: MAXMSGSIZE is for one part, the high-water mark counts whole messages. It ends with
the connection. Whoever can connect can do it, so without keys only loopback and ipc addresses may be bound.

What must not live here: what is inside a frame (`coord.wire`), one peer's connection (`coord.transports.link`).
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from coord.errors import ConfigurationError
from coord.logs import Log
from coord.transports.address import Address, Target, endpoint_of, look_up, parse_bind, parse_peer
from coord.transports.base import PeerEvent
from coord.transports.ipc import PathClaim
from coord.transports.link import Link, Services, descriptor
from coord.transports.poller import Poller
from coord.transports.resolver import Resolver

#: Earlier ones let an unauthenticated peer crash the process (CVE-2020-15166 and before).
LIBZMQ_MIN = (4, 3, 3)
HANDSHAKE_TIMEOUT_MS = 3000
CONNECT_TIMEOUT_MS = 2000
#: A peer never sends to our DEALER; only its handshake must fit.
DEALER_FRAME_BYTES_MAX = 4096
#: Parts of malformed messages thrown away in one `receive`, for each frame asked for.
PARTS_PER_FRAME = 4
#: Events an owner has not taken; the oldest go first. They are hints, and one who does not look needs none.
EVENTS_MAX = 1024
#: Of the second in which `close` must return.
TERM_TIMEOUT = 0.7

REASONS = ("unknown_peer", "unresolved", "not_connected", "queue_full", "oversize", "parts")

#: Started and not closed. Kept alive: to collect one would make pyzmq end its context in the middle of the host's work,
#: and wait for ever for its monitors.
_open: set[ZeroMQTransport] = set()

_log = Log("coord.transports")


class ZeroMQTransport:
    """Implements `coord.transports.base.Transport`.

    `bind`: address to listen on, None for an end that only sends. `max_frame_bytes`: longer frames are not sent, and a
    connection that brings one is dropped. `queue_frames`: frames waiting to be sent to one peer, and frames taken in
    from one connection ahead of `receive`; each such queue holds at most `queue_frames * max_frame_bytes`.
    Times are in seconds: a connection is dropped after `heartbeat_timeout` of silence, and tried again after
    `reconnect_interval`, doubled each time up to `reconnect_interval_max`. `clock` measures intervals only.

    Construction checks the arguments (ConfigurationError) and does nothing else.
    """

    def __init__(
        self,
        bind: str | None,
        *,
        max_frame_bytes: int = 4 << 20,
        queue_frames: int = 64,
        heartbeat_interval: float = 1.0,
        heartbeat_timeout: float = 3.0,
        reconnect_interval: float = 0.01,
        reconnect_interval_max: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert max_frame_bytes > 0
        assert queue_frames > 0
        assert 0 < heartbeat_interval <= heartbeat_timeout
        assert 0 < reconnect_interval <= reconnect_interval_max
        self._bind: Address | None = None if bind is None else parse_bind(bind)
        self._max_frame_bytes = max_frame_bytes
        self._queue_frames = queue_frames
        self._heartbeat_interval = heartbeat_interval
        self._heartbeat_timeout = heartbeat_timeout
        self._reconnect_interval = reconnect_interval
        self._reconnect_interval_max = reconnect_interval_max
        self._clock = clock

        self._address = ""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._router: zmq.Socket[bytes] | None = None
        self._poller: Poller | None = None
        self._resolver: Resolver | None = None
        self._claim: PathClaim | None = None
        self._listen_fd = -1
        self._links: dict[str, Link] = {}
        self._orphans: dict[str, Link] = {}
        self._monitor_numbers = itertools.count()
        #: The ROUTER may hold something. Its descriptor is edge-triggered: once seen, it is only cleared by a drain.
        self._readable = False
        #: In the middle of a message with too many parts.
        self._discarding = False
        self._events: deque[PeerEvent] = deque(maxlen=EVENTS_MAX)
        self._unresolved_logged: set[str] = set()
        self._dropped = dict.fromkeys(REASONS, 0)
        self._pid = os.getpid()
        self._closed = False

    @property
    def address(self) -> str:
        """What this end listens on, with the port the system chose for port 0; "" before `start` or without `bind`."""
        return self._address

    # -----------------------------------------------------------------------------------------------------------------
    # Start and end.

    def start(self) -> None:
        assert self._poller is None, "a transport starts once"
        assert not self._closed
        if zmq.zmq_version_info() < LIBZMQ_MIN:
            raise ConfigurationError(
                f"libzmq {zmq.zmq_version()} lets strangers crash this process; install pyzmq with libzmq "
                f"{'.'.join(map(str, LIBZMQ_MIN))} or newer: pip install --upgrade pyzmq"
            )
        self._pid = os.getpid()
        try:
            self._poller = Poller()
            self._poller.wake()  # one that came before there was anything to wake is not lost either
            self._resolver = Resolver(self._poller.wake)
            self._context = zmq.Context(io_threads=1)
            _open.add(self)
            if self._bind is not None:
                self._listen(self._bind, self._poller)
        except (OSError, zmq.ZMQError) as error:
            self.close()
            raise ConfigurationError(
                f"cannot start the transport: {error}; free what it lacks, then start again"
            ) from error
        except ConfigurationError:
            self.close()
            raise

    def close(self) -> None:
        if os.getpid() != self._pid:
            self.abandon()
        if self._closed:
            return
        self._closed = True
        if self._resolver is not None:
            self._resolver.close()
        for link in self._links.values():
            link.close()
        self._links = {}
        if self._router is not None:
            assert self._poller is not None
            self._poller.forget(descriptor(self._router))
            self._router.close(linger=0)
            self._router = None
        self._readable = False
        if self._context is not None:
            _terminate(self._context)
        if self._claim is not None:
            self._claim.release()
        if self._poller is not None:
            self._poller.close()
        _open.discard(self)

    def abandon(self) -> None:
        """Closes what it can name: the wake-up, the lock of an ipc path and the listening socket.

        The parent's connections have no name: while a child lives that did not exec, peers notice the parent's death
        only by missed heartbeats.
        """
        if self._closed:
            return
        self._closed = True
        # No call into libzmq: in a child its sockets spin or abort. They are kept, so that nothing finalizes them.
        self._orphans, self._links = self._links, {}
        self._readable = False
        if self._claim is not None:
            self._claim.abandon()
        if self._poller is not None:
            self._poller.abandon()
        if self._listen_fd >= 0:
            os.close(self._listen_fd)

    def _listen(self, bind: Address, poller: Poller) -> None:
        assert self._context is not None
        endpoint, ipv6 = _bind_endpoint(bind)
        if bind.path and not bind.path.startswith("@"):
            self._claim = PathClaim(bind)
        router = self._router = self._context.socket(zmq.ROUTER)
        self._set_common_options(router)
        # No limit: at its limit a connection stops reading, and when its peer then goes, the heartbeat of libzmq (up to
        # 4.3.5 at least) finds a dead engine and aborts the process. What peers send unasked is bounded by what they
        # were answered: a window of appends, one of proposals, a request at a time.
        router.setsockopt(zmq.RCVHWM, 0)
        router.setsockopt(zmq.SNDHWM, 1)
        router.setsockopt(zmq.MAXMSGSIZE, self._max_frame_bytes)
        router.setsockopt(zmq.ROUTER_HANDOVER, 0)
        router.setsockopt(zmq.IPV6, int(ipv6))
        monitor = router.get_monitor_socket(zmq.Event.LISTENING, self._monitor_endpoint())
        try:
            router.bind(endpoint)
            self._listen_fd = struct.unpack("=Hi", monitor.recv_multipart(zmq.NOBLOCK)[0])[1]
        except zmq.ZMQError as error:
            raise ConfigurationError(_explain_bind(bind, error)) from error
        finally:
            router.disable_monitor()
            monitor.close(linger=0)
        if self._claim is not None:
            self._claim.bound()
        self._address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        poller.watch(descriptor(router), self._router_ready)
        self._readable = True

    # -----------------------------------------------------------------------------------------------------------------
    # Peers.

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        assert self._poller is not None, "start comes first"
        parsed = {peer: parse_peer(text, f"peers[{peer!r}]") for peer, text in addresses.items()}
        if self._closed:
            return
        for peer, link in list(self._links.items()):
            if parsed.get(peer) != link.address:
                link.close()
                del self._links[peer]
                self._unresolved_logged.discard(peer)
        services = Services(
            poller=self._poller,
            make_dealer=self._make_dealer,
            monitor_endpoint=self._monitor_endpoint,
            resolve=self._resolve,
            report=self._events.append,
            clock=self._clock,
        )
        for peer, address in parsed.items():
            if peer in self._links:
                continue
            self._links[peer] = Link(peer, address, services)
            self._resolve(address)

    def _resolve(self, address: Address) -> None:
        assert self._resolver is not None
        if not address.numeric:
            self._resolver.ask(address)
            return
        self._take_targets(address, look_up(address), "")

    def _take_targets(self, address: Address, targets: list[Target], reason: str) -> None:
        for link in list(self._links.values()):
            if link.address != address:
                continue
            link.take_targets(targets)
            if not targets and link.peer not in self._unresolved_logged:
                self._unresolved_logged.add(link.peer)
                _log.warning("cannot reach peer %s yet: %s: %s; trying again", link.peer, address.text, reason)

    def _make_dealer(self, peer: str, target: Target) -> zmq.Socket[bytes]:
        assert self._context is not None
        dealer = self._context.socket(zmq.DEALER)
        self._set_common_options(dealer)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # else a dead peer gets a backlog of stale frames when it returns
        dealer.setsockopt(zmq.SNDHWM, self._queue_frames)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, DEALER_FRAME_BYTES_MAX)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        dealer.setsockopt(zmq.IPV6, int(target.needs_ipv6))
        # libzmq adds no jitter once there is a maximum; a spread by name keeps peers from knocking in step.
        spread = 1.0 + zlib.crc32(f"{self._address} {peer}".encode()) / (1 << 32) / 2
        dealer.setsockopt(zmq.RECONNECT_IVL, _milliseconds(self._reconnect_interval * spread))
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _milliseconds(self._reconnect_interval_max * spread))
        return dealer

    def _set_common_options(self, zmq_socket: zmq.Socket[bytes]) -> None:
        zmq_socket.setsockopt(zmq.LINGER, 0)
        zmq_socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
        zmq_socket.setsockopt(zmq.HEARTBEAT_IVL, _milliseconds(self._heartbeat_interval))
        zmq_socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _milliseconds(self._heartbeat_timeout))
        zmq_socket.setsockopt(zmq.HEARTBEAT_TTL, _milliseconds(self._heartbeat_timeout))

    def _monitor_endpoint(self) -> str:
        return f"inproc://monitor-{next(self._monitor_numbers)}"

    # -----------------------------------------------------------------------------------------------------------------
    # Frames and events.

    def send(self, peer: str, frame: bytes) -> bool:
        link = self._links.get(peer)
        if link is None:
            self._dropped["unknown_peer"] += 1
            return False
        if link.send is None:
            self._dropped["not_connected" if link.resolved else "unresolved"] += 1
            return False
        if len(frame) > self._max_frame_bytes:
            self._dropped["oversize"] += 1
            return False
        try:
            link.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            # Again: the queue is full, or the connection ended and its event has not been read yet.
            self._dropped["queue_full"] += 1
            return False
        return True

    def poll(self, timeout: float) -> None:
        if self._closed:
            return
        assert self._poller is not None
        if self._readable:
            timeout = 0.0
        due = min((link.due for link in self._links.values()), default=math.inf)
        if due < math.inf:
            timeout = min(timeout, due - self._clock())
        self._poller.poll(timeout)
        assert self._resolver is not None
        for address, targets, reason in self._resolver.answers():
            self._take_targets(address, targets, reason)
        if due < math.inf:
            now = self._clock()
            for link in self._links.values():
                if link.due <= now:
                    link.run_timers(now)

    def receive(self, limit: int) -> list[bytes]:
        frames: list[bytes] = []
        if not self._readable:
            return frames
        assert self._router is not None
        receive = self._router.recv
        get: Callable[[int], Any] = self._router.getsockopt
        try:
            for _ in range(limit * PARTS_PER_FRAME):
                if self._discarding:
                    self._discarding = receive(zmq.NOBLOCK, False).more
                else:
                    receive(zmq.NOBLOCK)  # the routing id of the connection, which nothing here believes
                    frame = receive(zmq.NOBLOCK, False)
                    if frame.more:
                        self._dropped["parts"] += 1
                        self._discarding = True
                        continue
                    frames.append(frame.bytes)
                    if len(frames) == limit:
                        return frames
                # Cheaper than running into Again, and without letting go of the GIL.
                if not self._discarding and not get(zmq.EVENTS) & zmq.POLLIN:
                    self._readable = False
                    return frames
        except zmq.Again:
            self._readable = False
        return frames

    def events(self) -> list[PeerEvent]:
        if not self._events:
            return []
        taken = list(self._events)
        self._events.clear()
        return taken

    def wake(self) -> None:
        if self._poller is not None:
            self._poller.wake()

    def dropped(self) -> Mapping[str, int]:
        return self._dropped

    def _router_ready(self) -> None:
        self._readable = True


def _terminate(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """End the context's threads. It takes a millisecond; if libzmq should ever hang, the host does not."""
    try:
        thread = threading.Thread(target=context.term, name="coord-zmq-term", daemon=True)
        thread.start()
    except RuntimeError:
        return  # no thread can start while the interpreter ends, and the end of the process does the same
    thread.join(TERM_TIMEOUT)


def _bind_endpoint(bind: Address) -> tuple[str, bool]:
    """What to give libzmq, and whether it needs IPv6. Names are looked up here: libzmq binds numbers and interfaces."""
    if bind.path or bind.host == "*" or _is_interface(bind.host):
        return bind.text, False
    try:
        target = look_up(bind)[0]
    except (OSError, UnicodeError, IndexError) as error:
        raise ConfigurationError(
            f"bind: {bind.host!r} in {bind.text!r} is no interface, and no name that has an address ({error}); "
            f"write this host's own address, for example {endpoint_of('127.0.0.1', bind.port)}"
        ) from error
    return target.endpoint, target.needs_ipv6


def _is_interface(host: str) -> bool:
    return any(name == host for _, name in socket.if_nameindex())


def _explain_bind(bind: Address, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"bind: another process listens on {bind.text}; stop it, or choose another address, "
            f"for example {endpoint_of('127.0.0.1', 7401)}"
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return (
            f"bind: {bind.text} is not an address of this host; write one of its own, "
            f"for example {endpoint_of('127.0.0.1', bind.port)}, and what others dial as advertise"
        )
    return f"bind: cannot listen on {bind.text}: {error.strerror}; choose another address, for example tcp://127.0.0.1:7400"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
