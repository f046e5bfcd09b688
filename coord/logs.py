"""Log messages of threads that must not wait: who says something goes on at once, another thread hands it to logging.

A handler may block for as long as it likes: on a full pipe, a slow disk, a socket. Raft's thread must not (etcd's reads
once all hung on a blocked stderr). The thread that writes lives only while there is something to write.
What must not live here: handlers, levels, formats: they are the host's.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque

#: Messages that wait at most; later ones are dropped, and counted.
WAITING_MAX = 1000


class Log:
    """As `logging.getLogger(name)`, without waiting. Give it values that do not change."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, message: str, *args: object) -> None:
        self._say(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        self._say(logging.WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        self._say(logging.ERROR, message, args)

    def exception(self, message: str, *args: object) -> None:
        """An error, with the exception that is being handled."""
        self._say(logging.ERROR, message, args, with_exception=True)

    def _say(self, level: int, message: str, args: tuple[object, ...], *, with_exception: bool = False) -> None:
        logger = self._logger
        if not logger.isEnabledFor(level):
            return
        caller = sys._getframe(2)
        raised = sys.exc_info() if with_exception else None
        place = (caller.f_code.co_filename, caller.f_lineno)
        record = logger.makeRecord(logger.name, level, *place, message, args, raised, caller.f_code.co_name)
        _writer.take(logger, record)


class _Writer:
    """The lock is never held while a handler runs."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[logging.Logger, logging.LogRecord]] = deque()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def take(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        if self._pid != os.getpid():
            # Forked: the thread is not here, and the lock may have been held.
            self._reset()
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                self._dropped += 1
                return
            self._waiting.append((logger, record))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._write, name="coord-log", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            # Within it: a thread that is seen here was started.
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _write(self) -> None:
        while True:
            with self._lock:
                dropped, self._dropped = self._dropped, 0
                if not self._waiting and not dropped:
                    self._thread = None
                    return
                logger, record = self._waiting.popleft() if self._waiting else (None, None)
            if dropped:
                logging.getLogger("coord").warning("%d messages were dropped: a log handler was too slow", dropped)
            if logger is not None and record is not None:
                logger.handle(record)


_writer = _Writer()


def flush(timeout: float) -> None:
    """Wait until everything said so far has reached the handlers, `timeout` seconds at most."""
    _writer.flush(timeout)
