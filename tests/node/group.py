"""Groups of members in this process, over real sockets, that can be cut off from each other.

What must not live here: assertions about what members do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import coord
from coord.clock import clock
from coord.transports.zeromq import ZeroMQTransport

#: Nothing here takes long; this is how long a stalled machine may take before a test gives up.
PATIENCE = 30.0

#: Quick elections. What a busy machine makes of them are more elections, never wrong answers.
QUICK = coord.Options(heartbeat=0.05, election_timeout=(0.3, 0.6), session_ttl=2.0, default_timeout=20.0)

_pause = threading.Event()


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """What `condition` returns, once that is true."""
    deadline = clock() + PATIENCE
    while not (value := condition()):
        assert clock() < deadline, f"gave up waiting: {what}"
        _pause.wait(0.005)
    return value


class CuttableTransport(ZeroMQTransport):
    """Loses what it is told to lose, without a word, like a network."""

    deaf = False
    mute = False

    def send(self, peer: str, frame: bytes) -> bool:
        return True if self.mute else super().send(peer, frame)

    def receive(self, limit: int) -> list[bytes]:
        frames = super().receive(limit)
        return [] if self.deaf else frames


class LabNode(coord.Node):
    """A node one can cut off."""

    network: CuttableTransport

    def _transport(self) -> CuttableTransport:
        self.network = CuttableTransport(self._bind, max_frame_bytes=self.options.max_frame_bytes, clock=clock)
        return self.network

    def cut_off(self) -> None:
        self.network.deaf = self.network.mute = True

    def reconnect(self) -> None:
        self.network.deaf = self.network.mute = False
        self.network.wake()

    @property
    def session_id(self) -> int:
        """The id of its present session, 0 while none is open."""
        replica = self._running_loop().replica
        return replica.numbering.session if replica.session_open else 0


class Group:
    """Members a, b and c. Stopped members start again as new nodes, with their data if the group is durable."""

    def __init__(
        self, directory: str, *, durable: bool = False, options: coord.Options = QUICK, **changes: Any
    ) -> None:
        self._directory = directory
        self._durable = durable
        self.options = replace(options, **changes)
        self.peers = {name: f"ipc://{directory}/{name}" for name in "abc"}
        #: Those that run.
        self.nodes: dict[str, LabNode] = {}

    def make(self, name: str) -> LabNode:
        return LabNode(
            name,
            bind=self.peers[name],
            peers=self.peers,
            data_dir=os.path.join(self._directory, f"{name}.data") if self._durable else None,
            options=self.options,
            registry=None,
        )

    def start(self, *names: str) -> None:
        for name in names or self.peers:
            self.nodes[name] = self.make(name)
            self.nodes[name].start()

    def stop(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            self.nodes.pop(name).stop()

    def leader(self, among: Iterable[str] = ()) -> LabNode:
        """The leader, once it is ready to serve and the other running members, or those given, follow it."""

        def agreed() -> LabNode | None:
            found = [self.nodes[name].status() for name in (among or self.nodes)]
            names = {status.leader for status in found}
            if len(names) != 1 or len({status.term for status in found}) != 1:
                return None
            leader = self.nodes.get(names.pop() or "")
            return leader if leader is not None and leader.status().quorum_ok else None

        node: LabNode = until(agreed, "a leader all agree on")
        return node

    def followers(self) -> list[LabNode]:
        leader = self.leader()
        return [node for node in self.nodes.values() if node is not leader]

    def close(self) -> None:
        for node in self.nodes.values():
            if hasattr(node, "network"):
                node.reconnect()
        threads = [threading.Thread(target=node.stop) for node in self.nodes.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.nodes = {}


def converged(*nodes: coord.Node) -> str:
    """The state hash all these share, once they do at one index."""

    def shared() -> str:
        found = {(status.applied_index, status.state_hash) for status in (node.status() for node in nodes)}
        return found.pop()[1] if len(found) == 1 else ""

    state_hash: str = until(shared, "equal states")
    return state_hash
