"""Asking the operating system whether anybody listens at a target: the evidence for GONE.

libzmq's monitor says that an attempt to connect ended, not why (the value of its CLOSED event is a file descriptor), so
a refusal looks like a time-out there. A plain connect of our own is unambiguous, and answers at once.
What must not live here: when to ask, and what follows (`coord.transports.link`).
"""

from __future__ import annotations

import errno
import socket

from coord.transports.address import Target

#: The answer is not there yet.
PENDING = "pending"
#: Nobody listens: the system of that host refused, or the socket's path is no more.
REFUSED = "refused"
#: Somebody listens, or nothing can be told (time-out, no route, no descriptor left here).
NO_EVIDENCE = "no evidence"

_REFUSALS = (errno.ECONNREFUSED, errno.ENOENT)


class Probe:
    """One attempt to connect, dropped as soon as it is decided. A listener sees a connection that says nothing."""

    def __init__(self, target: Target) -> None:
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(target.family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            code = self._socket.connect_ex(target.sockaddr)
        except OSError:
            self.verdict = NO_EVIDENCE
        else:
            self.verdict = PENDING if code == errno.EINPROGRESS else _judge(code)
        if self.verdict is not PENDING:
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a descriptor to watch; only a probe that begins PENDING has one."""
        return self._socket is not None

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def decide(self) -> None:
        """The descriptor is ready for writing: turn PENDING into an answer."""
        assert self._socket is not None
        self.verdict = _judge(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def somebody_listens(target: Target) -> bool:
    """Whether a Unix socket is served. Does not block."""
    assert target.family == socket.AF_UNIX
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dialler:
        dialler.setblocking(False)
        return dialler.connect_ex(target.sockaddr) in (0, errno.EAGAIN)


def _judge(code: int) -> str:
    return REFUSED if code in _REFUSALS else NO_EVIDENCE
