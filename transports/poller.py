"""Sleeping until a file descriptor is ready, and being woken by other threads, cheaply.

Plain `poll(2)` over descriptors, libzmq's included, costs a fifth of `zmq_poll` over sockets. The price: libzmq's are
edge-triggered, so each handler must drain its socket before the next sleep.
What must not live here: sockets of any kind.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

_ONE = (1).to_bytes(8, sys.byteorder)
#: poll(2) takes an int of milliseconds.
_TIMEOUT_MAX = 3600.0


class Poller:
    """One thread sleeps in `poll`; any thread may `wake` it.

    A wake-up is a system call only while the owner is parked. No wake-up is lost: the waker raises `_woken` and then
    looks at `_parked`, the owner raises `_parked` and then looks at `_woken`, so at least one of them sees the other.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._parked = False
        self._woken = False
        # Held around use and close of the descriptor, else a late wake-up could write into a file that took over its
        # number. Re-entrant: a signal handler may wake while it interrupts a wake-up in the same thread.
        self._lock = threading.RLock()
        self._read_fd, self._write_fd = _open_wake_fds()
        self.watch(self._read_fd, self._swallow)

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call `handler` from `poll` whenever `fd` is ready."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """End the watch, if there is one. Call it before `fd` is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def poll(self, timeout: float) -> None:
        """Sleep until something is ready or `wake`, at most `timeout` seconds; then run the handlers."""
        self._parked = True
        if self._woken or timeout < 0.0:
            timeout = 0.0
        ready = self._poll.poll(min(timeout, _TIMEOUT_MAX) * 1000.0)
        self._parked = False
        self._woken = False
        for fd, _ in ready:
            # An earlier handler may have ended this one's watch.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

    def wake(self) -> None:
        """End the current or next `poll` at once. From any thread or signal handler, also after `close`."""
        self._woken = True
        if self._parked:
            with self._lock:
                if self._write_fd >= 0:
                    try:
                        os.write(self._write_fd, _ONE)
                    except BlockingIOError:
                        return  # as full as it gets: the sleeper cannot miss it

    def close(self) -> None:
        """Let go of the descriptors. Idempotent."""
        self._parked = False
        with self._lock:
            fds, self._read_fd, self._write_fd = {self._read_fd, self._write_fd}, -1, -1
            self._handlers.clear()
            for fd in fds - {-1}:
                os.close(fd)

    def abandon(self) -> None:
        """`close` in a forked child, where the lock may for ever be held by a thread that exists no more."""
        self._lock = threading.RLock()
        self.close()

    def _swallow(self) -> None:
        try:
            os.read(self._read_fd, 4096)
        except BlockingIOError:
            return


def _open_wake_fds() -> tuple[int, int]:
    """The ends to read from and to write to: one eventfd where there is one, a pipe elsewhere. Raises OSError."""
    if sys.platform == "linux" and hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return read_fd, write_fd
