"""The right to a Unix socket's path. libzmq would take the path from whoever listens there, without a word.

What must not live here: the socket itself (`coord.transports.zeromq`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from coord.errors import ConfigurationError
from coord.transports.address import Address, look_up
from coord.transports.probe import somebody_listens


class PathClaim:
    """Holds `path` for this process, by a lock on the file `path`.lock, from construction to `release`.

    Raises ConfigurationError: another process holds or serves the path, something that is no socket lies there, or the
    directory does not let us.
    """

    def __init__(self, address: Address) -> None:
        self._path = address.path
        self._lock_path = f"{address.path}.lock"
        self._bound: tuple[int, int] | None = None
        self._lock_fd = -1
        try:
            self._lock_fd = self._take_lock()
            self._refuse_foreign(address)
        except OSError as error:
            self._let_go()
            raise ConfigurationError(_explain(address, error)) from error
        except ConfigurationError:
            self._let_go()
            raise

    def bound(self) -> None:
        """The socket is there now: remember it, so that `release` removes this one and no other."""
        found = os.lstat(self._path)
        self._bound = (found.st_dev, found.st_ino)

    def release(self) -> None:
        """Remove the socket, which libzmq leaves behind, and give up the path. Call it once nobody listens any more."""
        if self._bound is not None and self._identify(self._path) == self._bound:
            _unlink(self._path)
        self._let_go()

    def abandon(self) -> None:
        """In a forked child: close our copy of the lock. The parent still holds it."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> int:
        while True:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(fd)
            except OSError:
                os.close(fd)
                raise
            # Whoever had it before may have removed the file after we opened it: then we locked what nobody will see.
            if self._identify(self._lock_path) == (held.st_dev, held.st_ino):
                return fd
            os.close(fd)

    def _refuse_foreign(self, address: Address) -> None:
        """Not everybody locks: a program that does not know of the lock, or a file of the user's, may be there."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigurationError(
                f"bind: {self._path} exists and is not a socket, so it is left alone; remove it or choose another path"
            )
        if somebody_listens(look_up(address)[0]):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def _let_go(self) -> None:
        if self._lock_fd < 0:
            return
        # Only an empty file is ours. It goes before the lock does, so nobody can lock it and then lose it.
        if os.fstat(self._lock_fd).st_size == 0:
            _unlink(self._lock_path)
        os.close(self._lock_fd)
        self._lock_fd = -1

    @staticmethod
    def _identify(path: str) -> tuple[int, int] | None:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # gone already, or a directory that has become read-only: the next start copes with it


def _explain(address: Address, error: OSError) -> str:
    if error.errno in (errno.EWOULDBLOCK, errno.EADDRINUSE):
        return (
            f"bind: another process listens on {address.text}; stop it, or choose another path, "
            "for example one for each process: ipc:///run/app/coord-2.sock"
        )
    if error.errno == errno.ENOENT:
        return f"bind: the directory of {address.text} does not exist; create it, or choose another path"
    return f"bind: cannot use {address.text}: {error.strerror}; choose a path in a directory this process may write to"
