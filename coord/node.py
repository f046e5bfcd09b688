"""`coord.Node`: a member of a group, in this process.

What must not live here: what the background thread does (`coord.loop`), what handles offer (`coord.coordinator` and the
files it names).
"""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from coord.clock import clock
from coord.cluster import Cluster
from coord.config_map import ConfigMap
from coord.coordinator import Coordinator, Member, Status
from coord.election import close_all
from coord.errors import ConfigurationError, Unavailable
from coord.events import Counters
from coord.loop import Loop, founding_epoch
from coord.options import Options
from coord.raft.roles import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from coord.replica import Replica
from coord.session import Session
from coord.storage.base import Storage
from coord.storage.directory import DataDirectory, boot_id, open_directory
from coord.storage.disk import DiskStorage
from coord.storage.volatile import VolatileStorage
from coord.transports.address import is_local, parse_bind, parse_peer
from coord.transports.base import Transport
from coord.transports.zeromq import ZeroMQTransport
from coord.wire import Identity, fingerprint, is_name

if TYPE_CHECKING:
    from coord.metrics.collector import Registry

#: The member's name and the group's when none are given: a group of one.
ALONE = "node"

_ROLES = {FOLLOWER: "follower", PRE_CANDIDATE: "candidate", CANDIDATE: "candidate", LEADER: "leader"}


class _Unset:
    def __repr__(self) -> str:
        return "the global registry"


GLOBAL_REGISTRY = _Unset()


class Node(Coordinator):
    """A member of a group: it votes, keeps the data, and offers `config` and `cluster`.

    Making one starts nothing; `start`, or a `with` statement, does. `coord.Node()` is a group of one that forgets
    everything when it stops.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        bind: str | None = None,
        advertise: str | None = None,
        peers: Mapping[str, str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        group: str = "coord",
        options: Options | None = None,
        keys: None = None,
        registry: Registry | _Unset | None = GLOBAL_REGISTRY,
        insecure: bool = False,
        healthcheck: Callable[[], object] | None = None,
    ) -> None:
        """Settings are checked here; ConfigurationError names the one that is wrong and what would do.

        name: stable name of this member; None: a group of one, volatile unless `data_dir` is given, with no port.
        bind: where it listens, `tcp://address:port` or `ipc://path`; needed when there are other members.
        advertise: what the others dial, when that differs from `bind`.
        peers: names and addresses of all members, this one included. All members start with the same names.
        data_dir: directory for log and snapshots, this member's alone; None: volatile.
        group: name of the group; members of different groups never mix.
        options: see `coord.Options`.
        keys: encryption and authentication; not yet there, so only None.
        registry: a prometheus_client registry; None: no metrics.
        insecure: allow to listen beyond this machine without encryption or authentication.
        healthcheck: called every now and then, on a thread of its own; what this process holds it keeps only as long as
            that returns something true, in time. See also `session.beat()`.
        """
        super().__init__()
        self.name = name if name is not None else ALONE
        self.group = group
        self.options = options if options is not None else Options()
        self.default_timeout = self.options.default_timeout
        self.config = ConfigMap(self)
        self.cluster = Cluster(self)
        self.session = Session(self)
        self._bind = bind
        self._data_dir = os.fspath(data_dir) if data_dir is not None else None
        self._registry = registry
        self._healthcheck = healthcheck
        self._addresses = _check_members(name, bind, advertise, peers, group)
        if keys is not None:
            raise ConfigurationError("keys: not supported by this version; listen on 127.0.0.1 or ipc:// instead")
        _check_exposure(bind, insecure)
        self._unexpose: Callable[[], None] = _nothing
        self._release_storage: Callable[[], None] = _nothing

    # -- life

    def start(self, timeout: float = 30.0) -> Node:
        """Open the data directory, recover, listen, and run the background thread; returns this node.

        Does not wait for other members: calls do, each for its own timeout. A group of one is ready to serve on return.
        Raises what went wrong: ConfigurationError, IdentityError, StorageError; Unavailable after `timeout` seconds.
        """
        if self._loop is not None:
            # Raises when it was stopped, or is started in a forked child as well.
            self._running_loop().check()
            raise ConfigurationError(f"node {self.name!r} is started already; a second member takes a second Node")
        # Made before a fork and started after it is as it should be.
        self._pid = os.getpid()
        directory = self._open_directory()
        try:
            loop = self._make_loop(directory)
        except BaseException:
            if directory is not None:
                directory.close()
            raise
        self._loop = loop
        _mind_forks(self)
        try:
            loop.start(timeout)
        except BaseException:
            self._loop = None
            if directory is not None:
                directory.close()
            raise
        try:
            # A damaged log has stopped the member by now, whatever the rest of the group does.
            loop.check()
            if len(self._addresses) == 1 and not loop.when(
                lambda: loop.replica.session_open or None, loop.clock() + timeout
            ):
                raise Unavailable(f"member {self.name!r} runs, but could not write within {timeout:g} s: a slow disk?")
            self._expose(loop)
            if self._healthcheck is not None:
                self.session._watch_health(self._healthcheck)
            self._begin(loop)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """Resign from elections, end the session, hand leadership of the group over, and let go of everything.
        Idempotent; always returns, in about `timeout` seconds at the most. Calls that are waiting raise; later ones
        raise `ClosedError`. Locks still held are released: stop first what they protect."""
        if os.getpid() != self._pid or self._loop is None:
            return
        deadline = self._loop.clock() + timeout
        stopped = not self._elections or self._end_elections(timeout)
        self.session._stop()
        self._unexpose()
        self._unexpose = _nothing
        # Work that has not stopped keeps its lock, until that lapses: nobody else shall begin meanwhile.
        if not stopped:
            _left_at_work.add(self._place())
        self._loop.stop(max(0.0, deadline - self._loop.clock()), end_session=stopped)
        _started.discard(self)

    def _end_elections(self, timeout: float) -> bool:
        """False: the work of a leader goes on after `timeout`."""
        return close_all(self, timeout)

    def _let_go_in_child(self) -> None:
        """Just forked: the child has no background thread, but all descriptors. It must not keep the data directory
        locked, or the port taken, after the parent's end."""
        if self._loop is not None:
            self._loop.transport.abandon()
            self._release_storage()

    def __enter__(self) -> Node:
        if self._loop is None:
            self.start()
        self._running_loop().check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"coord.Node({self.name!r}, group={self.group!r})"

    # -- what it knows

    def status(self) -> Status:
        loop = self._running_loop()
        loop.check()
        status: Status = loop.call(lambda: self._status(loop, loop.replica.machine.state_hash), self.default_timeout)
        return status

    def _status(self, loop: Loop, state_hash: int) -> Status:
        replica = loop.replica
        core, identity = replica.core, replica.identity
        return Status(
            name=self.name,
            group=self.group,
            cluster_id=f"{identity.fingerprint:016x}{identity.group_number:016x}",
            role=_ROLES[core.role],
            term=core.term,
            leader=core.leader,
            commit_index=core.commit,
            applied_index=replica.machine.applied_index,
            last_index=core.log.last_index,
            first_index=core.log.first_index,
            state_hash=f"{state_hash:016x}",
            members=tuple(self._member(replica, name) for name in core.membership.members),
            quorum_ok=replica.quorum_ok(),
            loop_lag=loop.lag,
            started_at=loop.started_at,
        )

    def _member(self, replica: Replica, name: str) -> Member:
        core = replica.core
        record = core.membership.members[name]
        progress = core.progress.get(name)
        own = name == self.name
        last_index = core.log.last_index
        if own:
            match = core.log.persisted if core.role == LEADER else 0
        else:
            match = progress.match if progress is not None else 0
        silence = 0.0 if own else replica.silence(name)
        return Member(
            name=name,
            address=self._addresses.get(name, record.address),
            voter=record.voter,
            alive=silence <= self.options.election_timeout[1],
            match_index=match,
            lag=last_index - match if core.role == LEADER else 0,
            last_contact=silence,
            incarnation=record.incarnation,
        )

    # -- starting

    def _open_directory(self) -> DataDirectory | None:
        if self._data_dir is None:
            return None
        return open_directory(
            self._data_dir, group=self.group, name=self.name, fingerprint=self._fingerprint, mint=_mint
        )

    @property
    def _fingerprint(self) -> int:
        return fingerprint(self.group, list(self._addresses))

    def _make_loop(self, directory: DataDirectory | None) -> Loop:
        return Loop(self.name, self._transport(), lambda loop, rng: self._build(loop, rng, directory))

    def _transport(self) -> Transport:
        return ZeroMQTransport(self._bind, max_frame_bytes=self.options.max_frame_bytes, clock=clock)

    def _build(self, loop: Loop, rng: random.Random, directory: DataDirectory | None) -> Replica:
        options = self.options
        storage: Storage
        if directory is None:
            storage = volatile = VolatileStorage()
            self._release_storage = volatile.release_in_child
            identity = Identity(self.name, _mint(), self._fingerprint)
            keep: Callable[[int], None] = _forget
        else:
            storage = disk = DiskStorage(
                directory, mint=_mint, fsync=options.fsync, segment_bytes=options.wal_segment_bytes
            )
            self._release_storage = disk.release_in_child
            storage.on_progress(loop.transport.wake)
            identity = Identity(self.name, directory.incarnation, self._fingerprint, directory.group_number)
            keep = directory.set_group_number
        try:
            return Replica(
                identity,
                self._addresses,
                options,
                storage,
                send=loop.transport.send,
                set_peers=loop.transport.set_peers,
                keep_group_number=keep,
                background=loop.background,
                rng=rng,
                now=clock(),
                epoch=founding_epoch(),
                alone=self._is_alone(directory),
            )
        except BaseException:
            storage.close()
            raise

    def _is_alone(self, directory: DataDirectory | None) -> bool:
        """Whether nothing that an earlier process of this member had begun can still be at work. The lock on the data
        directory says so, if that was last used on this machine; work that an earlier node of this process left behind
        is another matter."""
        if directory is None:
            return False
        try:
            same_machine = directory.note_boot(boot_id())
        except OSError as error:
            raise ConfigurationError(
                f"data_dir {directory.path!r} cannot be written ({error}); nothing was started; fix its mount or space"
            ) from error
        return same_machine and self._place() not in _left_at_work

    def _place(self) -> str:
        return os.path.realpath(self._data_dir) if self._data_dir is not None else ""

    def _expose(self, loop: Loop) -> None:
        """Register with Prometheus, if wanted. Imported only here: who wants no metrics does not pay for them."""
        if self._registry is None:
            return
        from coord.metrics import collector

        registry = collector.GLOBAL if isinstance(self._registry, _Unset) else self._registry
        source = _Source(self, loop)
        collector.register(source, registry)
        self._unexpose = lambda: collector.unregister(source, registry)


#: Data directories of nodes that were stopped in this process while the work of a leader went on.
_left_at_work: set[str] = set()
#: Nodes started in this process.
_started: weakref.WeakSet[Node] = weakref.WeakSet()


def _mind_forks(node: Node) -> None:
    """Have a forked child let go of `node`. Registered with the first node: importing changes nothing."""
    global _minding_forks
    if not _minding_forks and hasattr(os, "register_at_fork"):
        _minding_forks = True
        os.register_at_fork(after_in_child=_let_go_in_child)
    _started.add(node)


_minding_forks = False


def _let_go_in_child() -> None:
    nodes = list(_started)
    _started.clear()
    for node in nodes:
        node._let_go_in_child()


class _Source:
    """A node as the metrics see it. Answers at once whatever the loop is doing: it reads what the loop last wrote, so
    two figures of one scrape may be a moment apart."""

    def __init__(self, node: Node, loop: Loop) -> None:
        self._node = node
        self._loop = loop
        self.name = node.name
        self.group = node.group

    @property
    def counters(self) -> Counters:
        return self._loop.replica.counters

    def status(self) -> Status:
        return self._node._status(self._loop, 0)


def _nothing() -> None:
    """Not registered, so nothing to take back."""


def _mint() -> int:
    return random.SystemRandom().getrandbits(64) or 1


def _forget(number: int) -> None:
    """A volatile member forgets its group's number with everything else."""


def _check_members(
    name: str | None, bind: str | None, advertise: str | None, peers: Mapping[str, str] | None, group: str
) -> dict[str, str]:
    """All members' addresses by name, this one's as the others dial it."""
    if not isinstance(group, str) or not group or len(group.encode(errors="replace")) > 255:
        raise ConfigurationError(f"group={group!r}: expected a name of 1 to 255 bytes")
    own = name if name is not None else ALONE
    if not isinstance(own, str) or not is_name(own):
        raise ConfigurationError(f"name={name!r}: expected 1 to 63 visible ASCII characters without space, as 'a'")
    if bind is not None:
        parse_bind(bind, "bind")
    if advertise is not None:
        parse_peer(advertise, "advertise")
    if not peers:
        return {own: advertise or bind or ""}
    if not isinstance(peers, Mapping):
        raise ConfigurationError(
            f"peers={peers!r}: expected names and addresses, as {{'a': 'tcp://10.0.0.1:7400', ...}}"
        )
    if name is None:
        raise ConfigurationError(f"name is missing: say which of the peers {_list(peers)} this member is")
    for peer, address in peers.items():
        if not isinstance(peer, str) or not is_name(peer):
            raise ConfigurationError(f"peers: {peer!r} is no member's name; use 1 to 63 visible ASCII characters")
        parse_peer(address, f"peers[{peer!r}]")
    if own not in peers:
        raise ConfigurationError(
            f"peers does not name this member, {own!r}; it names {_list(peers)}: give all members, this one included"
        )
    if len(set(peers.values())) != len(peers):
        twice = sorted({address for address in peers.values() if list(peers.values()).count(address) > 1})
        raise ConfigurationError(f"peers gives {twice[0]!r} to more than one member; each needs its own address")
    if len(peers) > 1 and bind is None:
        raise ConfigurationError(f"bind is missing: the other members must reach this one; try bind={peers[own]!r}")
    if len(peers) % 2 == 0:
        raise ConfigurationError(
            f"peers names {len(peers)} members: an even number survives no more failures than {len(peers) - 1}, and "
            "needs a larger majority; use an odd number"
        )
    return {**peers, own: advertise or peers[own]}


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _check_exposure(bind: str | None, insecure: bool) -> None:
    if bind is not None and not insecure and not is_local(bind):
        raise ConfigurationError(
            f"bind={bind!r} can be reached from other machines, and there are no keys: anybody who can connect could "
            "write; bind to 127.0.0.1 or ipc://, or say insecure=True if the network itself is closed to others"
        )
