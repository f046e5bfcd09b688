"""The world of a group in real time: nodes with threads of their own, over a network and on disks in memory.

What must not live here: what users see of it (`coord.testing.group`).
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from coord.clock import clock
from coord.errors import ClosedError, CoordError
from coord.node import Node
from coord.options import Options
from coord.storage.directory import DataDirectory, open_directory
from coord.storage.memory import MemoryDisk
from coord.transports.base import PeerEvent
from coord.transports.memory import LinkFaults, MemoryNetwork, MemoryTransport

#: Quick elections: failing over by silence takes about half a second. What a busy machine makes of them are more
#: elections, never wrong answers. Synced in the member's own thread: this disk is never slow.
QUICK = Options(heartbeat=0.05, election_timeout=(0.3, 0.6), session_ttl=2.0, fsync="inline", wal_segment_bytes=1 << 20)

GROUP = "testing"
_DIRECTORY = "/data"
#: How long a member's thread may take to do what it is told; one that hangs is left behind.
_PATIENCE = 5.0
#: What is waited for may change without any member's doing; so it is looked at this often at least.
_LOOK_AGAIN_SECONDS = 0.1


def addresses(names: Sequence[str]) -> dict[str, str]:
    """A node wants them; nothing ever listens there."""
    return {name: f"ipc://{name}" for name in names}


class Disk:
    """`coord.storage.files.Files` in memory, for several threads: the member's, and those that sync and take snapshots.
    It outlives the member."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self._disk = disk if disk is not None else MemoryDisk()
        self._lock = threading.Lock()

    def image(self) -> Disk:
        """The disk as a process finds it that starts after this moment, whatever the present one still does."""
        with self._lock:
            disk = copy.deepcopy(self._disk)
        disk.restart()
        return Disk(disk)

    def make_directory(self, path: str) -> None:
        with self._lock:
            self._disk.make_directory(path)

    def names(self, path: str) -> list[str]:
        with self._lock:
            return self._disk.names(path)

    def size(self, path: str) -> int:
        with self._lock:
            return self._disk.size(path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        with self._lock:
            return self._disk.read(path, offset, size)

    def lock(self, path: str, content: bytes) -> int:
        with self._lock:
            return self._disk.lock(path, content)

    def create(self, path: str, size: int) -> int:
        with self._lock:
            return self._disk.create(path, size)

    def write(self, handle: int, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        with self._lock:
            self._disk.write(handle, offset, buffers)

    def sync(self, handle: int) -> None:
        with self._lock:
            self._disk.sync(handle)

    def close(self, handle: int) -> None:
        with self._lock:
            self._disk.close(handle)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            self._disk.rename(old, new)

    def unlink(self, path: str) -> None:
        with self._lock:
            self._disk.unlink(path)

    def sync_directory(self, path: str) -> None:
        with self._lock:
            self._disk.sync_directory(path)


class GroupTransport(MemoryTransport):
    """Its member's thread passes through here every turn, so this is where it can be made to stand still."""

    def __init__(self, network: MemoryNetwork, name: str, turned: Callable[[], None]) -> None:
        super().__init__(network, name, clock)
        self._turned = turned
        self._gate = threading.Condition()
        self._paused = self._standing = self._dead = False

    def receive(self, limit: int) -> list[bytes]:
        with self._gate:
            while self._paused:
                self._standing = True
                self._gate.notify_all()
                self._gate.wait()
            self._standing = False
            dead = self._dead
        return [] if dead else super().receive(limit)

    def events(self) -> list[PeerEvent]:
        return [] if self._dead else super().events()

    def poll(self, timeout: float) -> None:
        self._turned()
        super().poll(timeout)

    def close(self) -> None:
        super().close()
        self._turned()

    def pause(self) -> bool:
        """Have the thread stand still. False: it does not come here, so it hangs elsewhere, or has ended."""
        with self._gate:
            self._paused = True
        self.wake()
        with self._gate:
            return self._gate.wait_for(lambda: self._standing, _PATIENCE)

    def resume(self) -> None:
        with self._gate:
            self._paused = False
            self._gate.notify_all()

    def die(self) -> None:
        """Nothing that has arrived is seen any more; the thread goes on, to its end."""
        self._dead = True
        self.resume()


class RealNode(Node):
    """A node in memory: no socket, no file."""

    def __init__(self, world: RealWorld, name: str) -> None:
        peers = addresses(world.names)
        super().__init__(name, bind=peers[name], peers=peers, group=GROUP, options=world.options[name], registry=None)
        self._world = world
        self.network: GroupTransport | None = None

    def _open_directory(self) -> DataDirectory:
        return open_directory(
            _DIRECTORY,
            group=self.group,
            name=self.name,
            fingerprint=self._fingerprint,
            mint=lambda: random.SystemRandom().getrandbits(64) or 1,
            files=self._world.disks[self.name],
        )

    def _transport(self) -> GroupTransport:
        self.network = GroupTransport(self._world.network, self.name, self._world.turned)
        return self.network


class RealWorld:
    """Implements `coord.testing.group.World`."""

    virtual = False

    def __init__(self, names: Sequence[str], options: Mapping[str, Options], seed: int) -> None:
        self.names = tuple(names)
        self.options = options
        self.network = MemoryNetwork(seed)
        self.disks = {name: Disk() for name in names}
        self._nodes: dict[str, RealNode] = {}
        self._began = clock()
        self._changed = threading.Condition()
        #: Turns members have taken while somebody waited for something to change.
        self._turns = 0
        self._waiting = 0

    def now(self) -> float:
        return clock() - self._began

    def start(self, name: str) -> Node:
        self._nodes[name] = node = RealNode(self, name)
        node.start()
        return node

    def kill(self, name: str) -> None:
        self._end(name, ClosedError(f"member {name!r} was killed by the test"))

    def _end(self, name: str, error: ClosedError) -> None:
        """What its thread has not done by now it never does, as far as anybody else can see."""
        node = self._nodes[name]
        loop, transport = node._running_loop(), node.network
        assert transport is not None
        with self.network.lock:
            if self.network.attached(name) is transport:
                self.network.kill(clock(), name)

        def end() -> None:
            self.disks[name] = self.disks[name].image()
            loop.replica.end(error)

        transport.die()
        try:
            loop.call(end, _PATIENCE)
        except CoordError:
            # It has just ended by itself, or its thread hangs: whatever it has written is what is found.
            self.disks[name] = self.disks[name].image()
        node.stop(_PATIENCE)

    def pause(self, name: str) -> bool:
        transport = self._nodes[name].network
        assert transport is not None
        return transport.pause()

    def resume(self, name: str) -> None:
        transport = self._nodes[name].network
        assert transport is not None
        transport.resume()

    def cut(self, links: Collection[tuple[str, str]]) -> None:
        for source, target in sorted(links):
            self.network.cut(source, target)

    def partition(self, sides: Sequence[Collection[str]]) -> None:
        self.network.partition(*sides)

    def heal(self) -> None:
        self.network.heal()

    def set_conditions(self, *, loss: float, delay: float) -> None:
        self.network.set_faults(LinkFaults(delay=delay, loss=loss))

    def turned(self) -> None:
        """A member has done something. On its thread."""
        if self._waiting:
            with self._changed:
                self._turns += 1
                self._changed.notify_all()

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """`condition` is looked at without any lock held: it may ask a member's thread."""
        deadline = clock() + seconds
        with self._changed:
            self._waiting += 1
        try:
            while True:
                seen = self._turns
                if condition():
                    return True
                left = deadline - clock()
                if left <= 0:
                    return False
                with self._changed:
                    if self._turns == seen:
                        self._changed.wait(min(left, _LOOK_AGAIN_SECONDS))
        finally:
            with self._changed:
                self._waiting -= 1

    def close(self) -> None:
        """All at once, without goodbye: there is nobody left to say it to."""
        threads = []
        for name, node in self._nodes.items():
            if node.network is not None:
                node.network.resume()
            if node._loop is not None and node._loop.running:
                closed = ClosedError(f"the group of member {name!r} was closed")
                threads.append(threading.Thread(target=self._end, args=(name, closed), daemon=True))
        for thread in threads:
            thread.start()
        deadline = clock() + 4 * _PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - clock()))
