"""The transport contract: datagrams between named members, and what is known about their connections.

A transport may lose, delay or repeat a frame, never corrupt one silently and never join two. It knows addresses and
bytes; what is inside a frame, and who really sent it, is checked by `coord.wire` and above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

#: A connection to the peer stands.
UP = "up"
#: The connection to the peer ended.
DOWN = "down"
#: The peer's process is gone: its connection ended and a new one was refused (architecture 5). It follows DOWN.
GONE = "gone"


@dataclass(slots=True, frozen=True)
class PeerEvent:
    kind: str
    peer: str


class Transport(Protocol):
    """One member's end. Every method but `wake` is called by one thread at a time, with `start` first."""

    @property
    def address(self) -> str:
        """What this end listens on, as others may dial it from this host; "" before `start` or when it only sends."""
        ...

    def start(self) -> None:
        """Bind and begin. Raises coord.errors.ConfigurationError: address in use, malformed, not ours, ...."""
        ...

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Connect to exactly these from now on. Never blocks: names are resolved elsewhere.
        Malformed: ConfigurationError, and nothing has changed."""
        ...

    def send(self, peer: str, frame: bytes) -> bool:
        """Never blocks, never raises. False: dropped (no connection, full queue, unknown peer); counted."""
        ...

    def poll(self, timeout: float) -> None:
        """Sleep until a frame, a peer event or a `wake` may be there, at most `timeout` seconds. May return early."""
        ...

    def receive(self, limit: int) -> list[bytes]:
        """Up to `limit` frames that have arrived. Never blocks, never raises; unfit ones are counted and left out.
        Arrivals are noticed by `poll`, so poll every turn, if only with 0."""
        ...

    def events(self) -> list[PeerEvent]:
        """What changed about the connections since the last call."""
        ...

    def wake(self) -> None:
        """End the current or next `poll` at once. From any thread, also after `close`."""
        ...

    def dropped(self) -> Mapping[str, int]:
        """How many frames were dropped so far, by reason; every reason is present from the start."""
        ...

    def close(self) -> None:
        """Let go of every socket and thread. Idempotent; returns within a second; loses what was not yet sent."""
        ...

    def abandon(self) -> None:
        """In a forked child: forget the parent's transport without disturbing it. Nothing works afterwards but `wake`
        and `close`, which do nothing."""
        ...
