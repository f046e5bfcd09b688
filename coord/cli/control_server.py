"""What a running `coord node` does for other commands: the operations, their arguments, the threads that serve them.

Each connection has a thread, as most operations wait for the group; there are at most CONNECTIONS_MAX. Every byte that
comes in is checked; what is malformed ends its connection, is counted, and does nothing else.

What must not live here: frames and addresses (`coord.cli.control`), printing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from coord.cli.control import (
    DONE,
    ERROR,
    ITEM,
    VERSION,
    BadControlFrame,
    Gone,
    receive_frame,
    send_frame,
    target_of,
)
from coord.cli.holds import Holds, list_locks
from coord.cli.output import FAILED, NO_QUORUM, NOT_LEADER, TIMEOUT, USAGE, CommandError, exit_code
from coord.clock import clock
from coord.errors import ConfigurationError, CoordError, Unavailable
from coord.node import Node
from coord.transports.address import Address
from coord.transports.ipc import PathClaim

_log = logging.getLogger("coord.cli")

CONNECTIONS_MAX = 64
#: Seconds a connection may say nothing, or not read, before it is closed.
_PATIENCE_SECONDS = 30.0
#: No request may keep a thread longer.
_TIMEOUT_MAX = 3600.0
#: How often a watch without events looks whether its reader is still there.
_LOOK_SECONDS = 1.0
_KEYS_PER_ITEM = 100
_LOCKS_PER_ITEM = 20

_NUMBER = (int, float)
_NONE = type(None)
#: Every operation's arguments, all needed, with the types each may have. `object` is for values of the map: the map
#: itself checks those.
ARGUMENTS: dict[str, dict[str, tuple[type, ...]]] = {
    "status": {},
    "get": {"key": (str,), "linearizable": (bool,), "timeout": _NUMBER},
    "put": {
        "key": (str,),
        "value": (object,),
        "revision": (int, _NONE),
        "ttl": (*_NUMBER, _NONE),
        "timeout": _NUMBER,
    },
    "delete": {"key": (str,), "revision": (int, _NONE), "timeout": _NUMBER},
    "ls": {"prefix": (str,)},
    "watch": {"prefix": (str,), "from_revision": (int, _NONE), "initial": (bool,)},
    "transfer": {"to": (str, _NONE), "timeout": _NUMBER},
    "locks": {"prefix": (str,)},
    "hold": {
        "kind": (str,),
        "name": (str,),
        "shared": (bool,),
        "permits": (int,),
        "priority": (int,),
        "lock_delay": (*_NUMBER, _NONE),
        "value": (object,),
        "wait": (bool,),
        "timeout": (*_NUMBER, _NONE),
    },
}
#: These may wait for as long as the asker lives.
_ENDLESS = frozenset(("hold",))


class ControlServer:
    """Serves one node's control address, from construction to `close`. ConfigurationError if it cannot listen there."""

    def __init__(self, node: Node, address: Address, directory: str | None = None) -> None:
        """directory: the node's, for what a process that comes after this one has to know."""
        self.address = address
        #: Requests answered, and connections ended because of what they sent.
        self.served = 0
        self.dropped = 0
        self._node = node
        self._closing = False
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._claim = _claim(address)
        try:
            self._listener = _listen(address)
        except BaseException:
            if self._claim is not None:
                self._claim.release()
            raise
        if self._claim is not None:
            self._claim.bound()
        self._holds = Holds(node, directory)
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._accept, name="coord-control", daemon=True)
        self._thread.start()

    def stop_accepting(self) -> None:
        """Take no more requests; those under way go on. Idempotent."""
        if not self._closing:
            self._closing = True
            os.write(self._wake_write, b"x")
            self._thread.join()
            self._listener.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            if self._claim is not None:
                self._claim.release()

    def end_holds(self) -> None:
        """Have everything that is held for other processes given back, and what they run because of it ended. Returns
        after `Options.lease` at the most. To be called while the node runs: when it stops, all is released. Idempotent.
        """
        self._holds.end()

    def close(self, timeout: float) -> None:
        """Let requests under way be answered for `timeout` seconds, then end their connections."""
        self.stop_accepting()
        self.end_holds()
        deadline = clock() + timeout
        with self._lock:
            connections = list(self._connections.items())
        for connection, thread in connections:
            # Whoever waits for a next request is woken by this; whoever still answers is not disturbed.
            _shut(connection, socket.SHUT_RD)
            thread.join(max(0.0, deadline - clock()))
            _shut(connection, socket.SHUT_RDWR)

    # -- threads

    def _accept(self) -> None:
        while True:
            sources: list[Any] = [self._listener, self._wake_read]
            ready, _, _ = select.select(sources, [], [])
            if self._closing:
                return
            if self._listener in ready:
                try:
                    connection, _ = self._listener.accept()
                except OSError as error:
                    # Gone before it was taken, or no descriptor left: the latter must not turn into a busy loop.
                    _log.debug("control: a connection could not be taken: %s", error)
                    select.select([self._wake_read], [], [], 0.1)
                    continue
                self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE_SECONDS)
        thread = threading.Thread(target=self._serve, args=(connection,), name="coord-control-request", daemon=True)
        with self._lock:
            full = len(self._connections) >= CONNECTIONS_MAX
            if not full:
                self._connections[connection] = thread
        if full:
            self._reply(connection, ERROR, FAILED, f"{CONNECTIONS_MAX} commands are under way already; try again later")
            connection.close()
        else:
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """All requests of one connection, one after the other."""
        try:
            while not self._closing:
                operation, arguments = _check(receive_frame(connection))
                self._answer(connection, operation, arguments)
                self.served += 1
        except (Gone, TimeoutError, ConnectionError):
            pass
        except BadControlFrame as error:
            self.dropped += 1
            if self.dropped == 1:
                # Whoever sends such bytes can send many: the log must not fill with them. `coord status` counts on.
                _log.warning("control: dropped a connection: %s (the first; those that follow are only counted)", error)
        except OSError as error:
            _log.debug("control: a connection broke: %s", error)
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()

    def _answer(self, connection: socket.socket, operation: str, arguments: dict[str, Any]) -> None:
        try:
            result = _OPERATIONS[operation](self, connection, **arguments)
            send_frame(connection, [DONE, result])
        except CommandError as error:
            self._reply(connection, ERROR, error.code, str(error))
        except CoordError as error:
            self._reply(connection, ERROR, self._code(error), str(error))
        except (Gone, OSError, BadControlFrame):
            raise
        except (ValueError, TypeError) as error:
            # What a dict or function would raise for such a key or value: the asker's mistake.
            self._reply(connection, ERROR, USAGE, str(error))
        except Exception as error:
            _log.exception("control: %s failed", operation)
            self._reply(connection, ERROR, FAILED, f"the node could not do this, please report it: {error!r}")

    def _code(self, error: CoordError) -> int:
        """A group without a quorum is told apart from one that was merely too slow."""
        if isinstance(error, Unavailable) and self._node._running_loop().replica.quorum_ok():
            return TIMEOUT
        return exit_code(error)

    @staticmethod
    def _reply(connection: socket.socket, *message: object) -> None:
        try:
            send_frame(connection, list(message))
        except OSError as error:
            _log.debug("control: an answer was not taken: %s", error)

    # -- operations, by the names in ARGUMENTS

    def _status(self, connection: socket.socket) -> dict[str, Any]:
        status = dataclasses.asdict(self._node.status())
        return {**status, "control": {"address": self.address.text, "served": self.served, "dropped": self.dropped}}

    def _get(self, connection: socket.socket, key: str, linearizable: bool, timeout: float) -> dict[str, Any] | None:
        entry = self._node.config.entry(key, linearizable=linearizable, timeout=timeout)
        return None if entry is None else dataclasses.asdict(entry)

    def _put(
        self,
        connection: socket.socket,
        key: str,
        value: Any,
        revision: int | None,
        ttl: float | None,
        timeout: float,
    ) -> int:
        config = self._node.config
        if revision is None:
            return config.put(key, value, ttl=ttl, timeout=timeout)
        return config.compare_and_set(key, value, revision=revision, ttl=ttl, timeout=timeout)

    def _delete(self, connection: socket.socket, key: str, revision: int | None, timeout: float) -> bool:
        return self._node.config.delete(key, revision=revision, timeout=timeout)

    def _ls(self, connection: socket.socket, prefix: str) -> None:
        keys = self._node.config.keys(prefix)
        for start in range(0, len(keys), _KEYS_PER_ITEM):
            send_frame(connection, [ITEM, keys[start : start + _KEYS_PER_ITEM]])

    def _watch(self, connection: socket.socket, prefix: str, from_revision: int | None, initial: bool) -> None:
        watch = self._node.config.watch(prefix, from_revision=from_revision, initial=initial, timeout=_LOOK_SECONDS)
        with watch:
            # Its reader has nothing more to say: whatever can be read is its end, or `close`.
            while not select.select([connection], [], [], 0)[0]:
                for event in watch:
                    send_frame(connection, [ITEM, dataclasses.asdict(event)])
        raise Gone

    def _transfer(self, connection: socket.socket, to: str | None, timeout: float) -> str | None:
        status = self._node.status()
        if status.role != "leader":
            known = f"ask {status.leader!r}, which does" if status.leader else "nobody known does"
            raise CommandError(f"{status.name!r} does not lead, so it cannot hand leadership over; {known}", NOT_LEADER)
        if to is not None and to not in {member.name for member in status.members}:
            raise CommandError(f"{to!r} is no member of the group; see coord members", USAGE)
        try:
            self._node.cluster.transfer_leadership(to, timeout)
        except Unavailable as error:
            code = self._code(error)
            raise CommandError(str(error), code if code == NO_QUORUM else FAILED) from error
        return self._node.cluster.leader()

    def _locks(self, connection: socket.socket, prefix: str) -> None:
        for locks in list_locks(self._node, prefix, _LOCKS_PER_ITEM):
            send_frame(connection, [ITEM, locks])

    def _hold(self, connection: socket.socket, **arguments: Any) -> None:
        self._holds.serve(connection, arguments)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "status": ControlServer._status,
    "get": ControlServer._get,
    "put": ControlServer._put,
    "delete": ControlServer._delete,
    "ls": ControlServer._ls,
    "watch": ControlServer._watch,
    "transfer": ControlServer._transfer,
    "locks": ControlServer._locks,
    "hold": ControlServer._hold,
}
assert _OPERATIONS.keys() == ARGUMENTS.keys()


def _check(request: object) -> tuple[str, dict[str, Any]]:
    """Operation and arguments of a well-formed request."""
    if not isinstance(request, list) or len(request) != 3:
        raise BadControlFrame("a request of unknown form")
    version, operation, arguments = request
    if version != VERSION:
        raise BadControlFrame(f"a request of version {version!r}, where {VERSION} is spoken")
    if not isinstance(operation, str) or operation not in ARGUMENTS:
        raise BadControlFrame("a request for an unknown operation")
    wanted = ARGUMENTS[operation]
    if not isinstance(arguments, dict) or arguments.keys() != wanted.keys():
        raise BadControlFrame(f"{operation} with other arguments than {', '.join(wanted) or 'none'}")
    for name, kinds in wanted.items():
        value = arguments[name]
        # A bool is an int to python, but not to us.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            raise BadControlFrame(f"{operation} with a {name} of type {type(value).__name__}")
    timeout, longest = arguments.get("timeout"), float("inf") if operation in _ENDLESS else _TIMEOUT_MAX
    if timeout is not None and not 0 <= timeout <= longest:
        raise BadControlFrame(f"{operation} with a timeout outside 0 to {longest:g}")
    return operation, arguments


def _claim(address: Address) -> PathClaim | None:
    """The sole right to a Unix socket's path."""
    if not address.path:
        return None
    try:
        return PathClaim(address)
    except ConfigurationError as error:
        raise ConfigurationError(f"control: {str(error).removeprefix('bind: ')}") from error


def _listen(address: Address) -> socket.socket:
    target = target_of(address)
    listener = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        if not address.path:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif not address.path.startswith("@") and os.path.lexists(address.path):
            # What a killed node left behind: the claim has made sure that nobody listens there.
            os.unlink(address.path)
        listener.bind(target.sockaddr)
        if address.path and not address.path.startswith("@"):
            # Before `listen`, so nobody else gets in meanwhile.
            os.chmod(address.path, 0o600)
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"control: cannot listen on {address.text}: {error.strerror or error}; choose another with --control"
        ) from error
    return listener


def _shut(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        return  # it has ended by itself
