"""A running node's side of `coord lock run` and `coord run-if-leader`: what it holds for other processes.

The node tells the asker until when nobody else can be granted what it holds, and keeps to that whatever becomes of the
asker: when a connection breaks, what its asker ran may be running still, so it is given back only once that time is up.
The same goes for the node itself: being stopped it first has all askers end what they run, and being started again
after a crash it waits until all the times it told before are up; else its new session would end the old one too soon.

What must not live here: frames (`coord.cli.control`), connections (`coord.cli.control_server`), what the asker does
with what it was told (`coord.cli.supervisor`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from coord.cli.control import (
    ENDING,
    HELD,
    ITEM,
    LEASE,
    LOST,
    RELEASE,
    WAITING,
    BadControlFrame,
    receive_frame,
    send_frame,
)
from coord.cli.output import FAILED, NO_QUORUM, TIMEOUT, CommandError
from coord.clock import clock
from coord.errors import ConfigurationError, CoordError, NotHeld, OutcomeUnknown
from coord.hold import Hold
from coord.leadership import encode
from coord.lock import ELECTION, Lock, check_delay, check_name, group_time, lock_delay
from coord.machine import commands
from coord.requests import GRANTED, REFUSED
from coord.storage.directory import boot_id

if TYPE_CHECKING:
    from coord.loop import Loop
    from coord.machine.lock_table import Hold as Granted
    from coord.node import Node
    from coord.options import Options
    from coord.replica import Replica

_log = logging.getLogger("coord.cli")

#: At a time; fewer than there may be connections, so that other commands are served still.
HOLDS_MAX = 48
#: How often one who waits looks who holds it instead.
_LOOK_SECONDS = 1.0
#: The rest of a frame has to come within this.
_FRAME_SECONDS = 1.0
#: A lease that ends only this much later is not worth telling.
_GAIN_SECONDS = 0.001
#: In the data directory: until when askers rely on this node.
_FILE = "control.leases"
_FILE_BYTES = 128
_STOPPING = "the node is being stopped"
_NANOSECONDS = 1_000_000_000


class Holds:
    """All that a node holds for others. Each has the thread of its connection."""

    def __init__(self, node: Node, directory: str | None) -> None:
        """directory: where to remember what was told to askers, for a process that comes after this; None: nowhere."""
        self._node = node
        self._ending = False
        self._changed = threading.Condition()
        self._all: set[_Held] = set()
        self._file = _Leases(directory) if directory is not None else None

    def serve(self, connection: socket.socket, arguments: dict[str, Any]) -> None:
        """From the asking to the release. Gone, BadControlFrame and OSError: of the connection, and all is done."""
        timeout = arguments.pop("timeout")
        held = _Held(self, self._node, connection, **arguments)
        try:
            with self._changed:
                if self._ending:
                    raise CommandError(_STOPPING)
                if len(self._all) >= HOLDS_MAX:
                    raise CommandError(f"{HOLDS_MAX} commands hold or wait for something already; try again later")
                self._all.add(held)
            held.serve(timeout)
        finally:
            with self._changed:
                self._all.discard(held)
                self._changed.notify_all()
            held.close()

    def end(self) -> None:
        """Hold nothing more for anybody. Waits until all askers have ended what they run, or must have; that is within
        `Options.lease` at the most. Idempotent."""
        with self._changed:
            self._ending = True
            for held in self._all:
                held.wake()
            # What is not given back by then hangs in its release, and nobody relies on it any more.
            self._changed.wait_for(lambda: not self._all, self._node.options.lease)
            if self._file is not None:
                self._file.close()

    @property
    def ending(self) -> bool:
        return self._ending

    def promised(self) -> None:
        """What was told to askers has changed."""
        if self._file is not None:
            with self._changed:
                self._file.write(max((held.promised for held in self._all), default=0.0))


class _Held:
    """One hold. All but `wake` is for the thread of its connection."""

    def __init__(
        self,
        holds: Holds,
        node: Node,
        connection: socket.socket,
        *,
        kind: str,
        name: str,
        shared: bool,
        permits: int,
        priority: int,
        lock_delay: float | None,
        value: Any,
        wait: bool,
    ) -> None:
        """ConfigurationError, ValueError or TypeError for what cannot be."""
        #: Until when the asker relies on it, of `clock`; 0: it was told nothing.
        self.promised = 0.0
        self._holds = holds
        self._node = node
        self._loop: Loop = node._running_loop()
        self._loop.check()
        self._connection = connection
        self._name = name
        self._election = kind == "election"
        arguments = _checked(node, self._loop, kind, name, shared, permits, priority, lock_delay, value)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._hold = Hold(node, self._loop, self._notify, wait=wait, **arguments)
        self._hold.on_lost(self._notify)

    def wake(self) -> None:
        """There is news for the thread; from any thread."""
        # Not taken: it is about to look anyway. Closed: it was the last news.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def close(self) -> None:
        self._wake_read.close()
        self._wake_write.close()

    def serve(self, timeout: float | None) -> None:
        self._loop.post(partial(self._loop.replica.requests.ask, self._hold._request))
        try:
            if not self._acquire(clock() + timeout if timeout is not None else float("inf")):
                return
            self._keep()
        finally:
            if not self._hold._ended:
                # The asker is gone, or a mistake of ours brought us here.
                self._outlast()
                self._hold._give_up()

    # -- before it is granted

    def _acquire(self, deadline: float) -> bool:
        """False: the asker wants it no more."""
        request, told = self._hold._request, ""
        while not request.outcome:
            now = clock()
            if self._holds.ending:
                raise CommandError(_STOPPING)
            if now >= deadline and request.give_up():
                raise self._not_granted()
            holder = self._holder()
            if holder and holder != told:
                told = holder
                self._send(WAITING, holder)
            if self._asker_is_done(min(_LOOK_SECONDS, max(0.0, deadline - now))):
                return False
        if request.outcome == REFUSED:
            assert request.error is not None
            raise request.error
        if request.outcome != GRANTED:
            raise self._not_granted()
        return True

    def _holder(self) -> str:
        """Who has it instead."""

        def look() -> str:
            holders = self._loop.replica.machine.locks.holders(self._hold.name)
            return repr(holders[0].owner) if holders else ""

        return str(self._loop.call(look, self._node.default_timeout))

    def _not_granted(self) -> CommandError:
        """It was not granted in time; why."""
        what = f"election {self._name!r}" if self._election else f"lock {self._name!r}"
        info: dict[str, Any] | None
        quorum, info = self._loop.call(partial(_look, self._loop.replica, self._hold.name), self._node.default_timeout)
        if not quorum:
            return CommandError(f"{what} was not granted in time: the group has no quorum", NO_QUORUM)
        if info is None:
            return CommandError(f"{what} was not granted in time, though nobody holds it any more", TIMEOUT)
        holders = ", ".join(
            f"{holder['owner']!r} (token {holder['token']}, for {holder['held_s']:.1f} s)" for holder in info["holders"]
        )
        waiting = f", and {info['waiting']} wait" if info["waiting"] else ""
        if holders:
            return CommandError(f"{what} was not granted in time: held by {holders}{waiting}", TIMEOUT)
        delayed = f"kept back for {info['delayed_s']:.1f} s more, as its holder was lost" if info["delayed_s"] else ""
        return CommandError(f"{what} was not granted in time: {delayed or 'others are first'}{waiting}", TIMEOUT)

    # -- while it is held

    def _keep(self) -> None:
        """Until the asker, or the group, is done with it."""
        hold, ending = self._hold, False
        options = self._loop.replica.options
        try:
            self._send(HELD, hold.token, hold.sequencer)
        except CoordError as error:
            raise CommandError(str(error), FAILED) from error
        while not hold.lost.is_set():
            if not self._holds.ending:
                self._tell_lease(options)
            elif not ending:
                ending = True
                self._send(ENDING, _STOPPING)
            elif clock() >= self.promised:
                return
            if self._asker_is_done(options.keepalive / 2):
                self._release()
                return
        self._send(LOST, hold._reason)

    def _tell_lease(self, options: Options) -> None:
        """Tell until when it is good, if that is later than what was told last."""
        # In this order: whatever comes between the two makes the time that is told earlier, and never later.
        now = clock()
        ends_at = now + self._hold.remaining()
        if ends_at > max(now, self.promised + _GAIN_SECONDS):
            self.promised = ends_at
            self._holds.promised()
            self._send(LEASE, ends_at - (options.lease - options.jeopardy), ends_at)

    def _release(self) -> None:
        self.promised = 0.0
        try:
            self._hold.release()
        except NotHeld:
            return  # lost in this moment, but it is not wanted any more
        except OutcomeUnknown as error:
            raise CommandError(str(error), TIMEOUT) from error
        finally:
            self._holds.promised()

    def _outlast(self) -> None:
        """Wait until the asker, which is not there to say so, must have ended what it ran."""
        while not self._hold.lost.is_set() and (left := self.promised - clock()) > 0:
            if select.select([self._wake_read], [], [], left)[0]:
                self._drain()
        self.promised = 0.0
        self._holds.promised()

    # -- within

    def _notify(self, news: object) -> None:
        self.wake()

    def _send(self, *item: object) -> None:
        send_frame(self._connection, [ITEM, list(item)])

    def _asker_is_done(self, seconds: float) -> bool:
        """Wait for news from anywhere. True: the asker wants it no more. Gone: there is no asker any more."""
        ready, _, _ = select.select([self._connection, self._wake_read], [], [], seconds)
        if self._wake_read in ready:
            self._drain()
        if self._connection not in ready:
            return False
        if receive_frame(self._connection, clock() + _FRAME_SECONDS) != [RELEASE]:
            raise BadControlFrame("something else than a release while something is held")
        return True

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(64):
                pass


def _checked(
    node: Node,
    loop: Loop,
    kind: str,
    name: str,
    shared: bool,
    permits: int,
    priority: int,
    delay: float | None,
    value: Any,
) -> dict[str, Any]:
    """The arguments of a `Hold`."""
    if kind == "election":
        check_name(name, "election", commands.LOCK_NAME_BYTES_MAX - len(ELECTION))
        data = encode(value)
        # A lock of a name that can be is checked in place of it.
        Lock(node, "x", shared=shared, permits=permits, priority=priority, lock_delay=delay)
        name = ELECTION + name
    elif kind == "lock":
        if value is not None:
            raise ConfigurationError("value: only an election has one")
        Lock(node, name, shared=shared, permits=permits, priority=priority, lock_delay=delay)
        data = b""
    else:
        raise ConfigurationError(f"kind={kind!r}: expected lock or election")
    check_delay(delay)
    return {
        "name": name,
        "shared": shared,
        "permits": permits,
        "priority": priority,
        "delay": lock_delay(delay, False, loop),
        "value": data,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Looking at locks.


def list_locks(node: Node, prefix: str, count: int) -> Iterator[list[dict[str, Any]]]:
    """Every lock whose name begins like that, in order, so many at a time, as this node knows them."""
    loop = node._running_loop()
    names: list[str] = loop.call(lambda: loop.replica.machine.locks.names(prefix), node.default_timeout)
    for start in range(0, len(names), count):
        wanted = names[start : start + count]
        found = loop.call(partial(_look_at_all, loop.replica, wanted), node.default_timeout)
        yield [info for info in found if info is not None]


def _look_at_all(replica: Replica, names: list[str]) -> list[dict[str, Any] | None]:
    return [_look(replica, name)[1] for name in names]


def _look(replica: Replica, name: str) -> tuple[bool, dict[str, Any] | None]:
    """On the loop's thread: whether there is a quorum, and the lock, if it is in use."""
    locks = replica.machine.locks
    quorum, permits = replica.quorum_ok(), locks.permits(name)
    if not permits:
        return quorum, None
    now = group_time(replica)
    holders, delays = locks.holders(name), locks.delayed(name)
    shared = bool(holders) and holders[0].shared
    return quorum, {
        "name": name,
        "mode": "semaphore" if permits > 1 else "shared" if shared else "exclusive",
        "permits": permits,
        "holders": [_describe(holder, now) for holder in holders],
        "waiting": len(locks.queue(name)),
        "delayed_s": max((max(0, times[0] - now) for times in delays.values()), default=0) / _NANOSECONDS,
    }


def _describe(holder: Granted, now: int) -> dict[str, Any]:
    return {
        "owner": holder.owner,
        "session": f"{holder.session:016x}",
        "token": holder.token,
        "slot": holder.slot,
        "held_s": max(0, now - holder.granted_at) / _NANOSECONDS,
    }


# ---------------------------------------------------------------------------------------------------------------------
# What outlives this process.


class _Leases:
    """The file that remembers until when askers rely on this node. It has to outlive the process, not the machine."""

    def __init__(self, directory: str) -> None:
        self._file = os.open(os.path.join(directory, _FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._written = -1.0
        self._failed = False
        self.write(0.0)

    def write(self, until: float) -> None:
        if until == self._written or self._file < 0:
            return
        try:
            os.pwrite(self._file, f"{_boot()} {until:.6f}".encode().ljust(_FILE_BYTES), 0)
            self._written = until
        except OSError as error:
            if not self._failed:
                _log.warning("control: what commands rely on cannot be remembered: %s", error)
            self._failed = True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def relied_on(directory: str, longest: float) -> float:
    """Seconds for which commands may still rely on the process that had this data directory before; 0 for none.
    `longest`: no lease is longer."""
    try:
        with open(os.path.join(directory, _FILE), "rb") as file:
            boot, until = file.read(_FILE_BYTES).decode().rsplit(maxsplit=1)
        left = float(until) - clock()
    except (OSError, ValueError):
        return 0.0
    # What began before the machine did has ended with it.
    return left if boot == _boot() and 0.0 < left <= longest else 0.0


def _boot() -> str:
    return boot_id().decode("ascii", "replace") or "-"
