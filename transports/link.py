"""One peer as this end sees it: the socket that sends to it, whether its connection stands, and proof when it is gone.

What must not live here: receiving (`coord.transports.zeromq`), looking names up (`coord.transports.resolver`).
"""

from __future__ import annotations

import math
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from coord.transports.address import Address, Target
from coord.transports.base import DOWN, GONE, UP, PeerEvent
from coord.transports.poller import Poller
from coord.transports.probe import PENDING, REFUSED, Probe

_EVENT = struct.Struct("=Hi")
_MONITORED = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED

#: A dying process closes its descriptors one by one, the connection perhaps before the listener; so one answer is not
#: enough. Ten times the first pause is still far below an election timeout, and after that it no longer helps.
PROBES = 6
PROBE_PAUSE = 0.01
#: A host that is unreachable does not answer at all.
PROBE_TIMEOUT = 1.0
#: How long a peer with a name stays unconnected before its name is looked up again; doubled each time up to the last.
RESOLVE_PAUSE = 0.25
RESOLVE_PAUSE_MAX = 5.0


@dataclass(slots=True, frozen=True)
class Services:
    """What a link needs of its transport."""

    poller: Poller
    #: Make a DEALER with all options set but not connected. Raises zmq.ZMQError.
    make_dealer: Callable[[str, Target], zmq.Socket[bytes]]
    #: A name for a monitor's endpoint, never used before.
    monitor_endpoint: Callable[[], str]
    resolve: Callable[[Address], None]
    report: Callable[[PeerEvent], None]
    clock: Callable[[], float]


class Link:
    """One DEALER, one monitor.

    Invariants: `up` only while the socket exists; probing only while not `up`, after the connection stood; `due` is
    the earliest moment at which `run_timers` has something to do, infinity when never.
    """

    __slots__ = (
        "_dealer",
        "_monitor",
        "_probe",
        "_probe_at",
        "_probe_pause",
        "_probes_left",
        "_resolve_at",
        "_resolve_pause",
        "_services",
        "_target",
        "address",
        "due",
        "peer",
        "resolved",
        "send",
        "up",
    )

    def __init__(self, peer: str, address: Address, services: Services) -> None:
        self.peer = peer
        self.address = address
        self.up = False
        self.resolved = False
        self.due = math.inf
        #: The DEALER's own send; only while `up`.
        self.send: Callable[..., Any] | None = None
        self._services = services
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._target: Target | None = None
        self._probe: Probe | None = None
        self._probe_at = math.inf
        self._probe_pause = PROBE_PAUSE
        self._probes_left = 0
        self._resolve_at = math.inf
        self._resolve_pause = RESOLVE_PAUSE

    def take_targets(self, targets: list[Target]) -> None:
        """Use what a lookup found, nothing when it failed. While not connected, move on to the next target."""
        self._schedule_lookup()
        if self.up:
            return
        if not targets:
            # What worked before may work again: a name server that is down must not cut what it did not serve.
            return
        self.resolved = True
        following = targets[0]
        if self._target in targets:
            following = targets[(targets.index(self._target) + 1) % len(targets)]
        if following != self._target or self._dealer is None:
            self._open(following)

    def run_timers(self, now: float) -> None:
        """Do what is due at `now`."""
        if self._probe_at <= now:
            if self._probe is None:
                self._start_probe()
            else:
                self._settle_probe()
        if self._resolve_at <= now:
            self._resolve_at = math.inf
            self._services.resolve(self.address)
        self._update_due()

    def close(self) -> None:
        self._stop_probing()
        self._close_sockets()
        self.due = math.inf

    # -----------------------------------------------------------------------------------------------------------------
    # The connection.

    def _open(self, target: Target) -> None:
        """Replace the sockets: a fresh monitor holds no event of an old connection, a reused one could."""
        # What another target answers says nothing about the process the connection stood to.
        self._stop_probing()
        self._close_sockets()
        self._target = target
        try:
            dealer = self._services.make_dealer(self.peer, target)
        except zmq.ZMQError:
            self._schedule_lookup(always=True)  # no descriptors left: try again later
            return
        self._dealer = dealer
        try:
            monitor = self._monitor = dealer.get_monitor_socket(_MONITORED, self._services.monitor_endpoint())
            self._services.poller.watch(descriptor(monitor), self._read_monitor)
            # A queue nobody has tried to read does not signal: the first try has to come before the first event.
            _drain(monitor)
            dealer.connect(target.endpoint)
        except zmq.ZMQError:
            self._close_sockets()
            self._schedule_lookup(always=True)

    def _close_sockets(self) -> None:
        """The monitor goes first: libzmq never finishes closing a socket whose monitor is open."""
        self.up = False
        self.send = None
        dealer, monitor = self._dealer, self._monitor
        self._dealer = self._monitor = None
        if dealer is None:
            return
        if monitor is not None:
            self._services.poller.forget(descriptor(monitor))
            # Emptied first: libzmq's thread may wait for room in it, holding the lock that disabling needs.
            _drain(monitor)
        dealer.disable_monitor()
        if monitor is not None:
            monitor.close(linger=0)
        dealer.close(linger=0)

    def _read_monitor(self) -> None:
        assert self._monitor is not None
        assert self._dealer is not None
        for kind in _drain(self._monitor):
            if kind == zmq.Event.HANDSHAKE_SUCCEEDED and not self.up:
                self._connected()
            elif kind == zmq.Event.DISCONNECTED and self.up:
                self._disconnected()
        # A socket runs libzmq's internal commands only when it is called: this makes a new connection usable at once,
        # and keeps a socket that sends nothing from collecting them.
        self._dealer.getsockopt(zmq.EVENTS)
        self._update_due()

    def _connected(self) -> None:
        assert self._dealer is not None
        self._stop_probing()
        self.up = True
        self.send = self._dealer.send
        self._resolve_at = math.inf
        self._resolve_pause = RESOLVE_PAUSE
        self._services.report(PeerEvent(UP, self.peer))

    def _disconnected(self) -> None:
        self.up = False
        self.send = None
        self._services.report(PeerEvent(DOWN, self.peer))
        self._schedule_lookup()
        self._probes_left = PROBES
        self._probe_pause = PROBE_PAUSE
        self._start_probe()

    def _schedule_lookup(self, *, always: bool = False) -> None:
        """Look the name up again if the peer stays unconnected. A numeric address can change only by `set_peers`."""
        if always or (not self.up and not self.address.numeric):
            self._resolve_at = self._services.clock() + self._resolve_pause
            self._resolve_pause = min(2 * self._resolve_pause, RESOLVE_PAUSE_MAX)
        else:
            self._resolve_at = math.inf
        self._update_due()

    # -----------------------------------------------------------------------------------------------------------------
    # Proof that the peer's process is gone.

    def _start_probe(self) -> None:
        assert self._target is not None
        self._probes_left -= 1
        probe = self._probe = Probe(self._target)
        if probe.verdict is PENDING:
            self._services.poller.watch(probe.fileno(), self._read_probe, select.POLLOUT)
            self._probe_at = self._services.clock() + PROBE_TIMEOUT
        else:
            self._settle_probe()

    def _read_probe(self) -> None:
        assert self._probe is not None
        self._probe.decide()
        self._settle_probe()
        self._update_due()

    def _settle_probe(self) -> None:
        """The probe has answered, or took too long: report, or ask again a little later, or give up."""
        assert self._probe is not None
        verdict = self._probe.verdict
        self._drop_probe()
        if verdict is REFUSED:
            self._stop_probing()
            self._services.report(PeerEvent(GONE, self.peer))
        elif verdict is PENDING or self._probes_left == 0:
            self._stop_probing()  # a host that stays silent proves nothing, and is left to the election timeout
        else:
            self._probe_at = self._services.clock() + self._probe_pause
            self._probe_pause *= 2

    def _stop_probing(self) -> None:
        self._drop_probe()
        self._probes_left = 0
        self._probe_at = math.inf

    def _drop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            if probe.is_open:
                self._services.poller.forget(probe.fileno())
            probe.close()

    def _update_due(self) -> None:
        self.due = min(self._probe_at, self._resolve_at)


def descriptor(zmq_socket: zmq.Socket[bytes]) -> int:
    """The edge-triggered descriptor that tells when a socket has something to do."""
    fd = zmq_socket.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd


def _drain(monitor: zmq.Socket[bytes]) -> list[int]:
    """Every event waiting, oldest first. Read to the end: its descriptor is edge-triggered."""
    kinds: list[int] = []
    while True:
        try:
            kinds.append(_EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])[0])
        except zmq.Again:
            return kinds
