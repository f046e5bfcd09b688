"""Watches: changes of the config map, told to whoever wants them, in order, without a gap.

The loop's thread puts events into each watch and never waits for a reader. So what a watch holds is bounded: one event
for each key when it conflates, a fixed number when it does not. A reader that falls behind a watch that does not
conflate is told so (`Compacted`), never silently skipped.

What must not live here: where changes come from (`coord.machine.history`), threads that run callbacks (`coord.loop`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from coord.errors import Compacted, CoordError

PUT, DELETE = "put", "delete"

#: Events a watch that does not conflate holds for its reader.
BACKLOG = 10_000


@dataclass(slots=True, frozen=True)
class Event:
    """One key changed. `value` is None for a delete, and yours to keep."""

    #: "put" or "delete".
    kind: str
    key: str
    value: Any
    #: The revision of the change; for what was there when the watch began, that of its last write.
    revision: int


#: How a reader's thread waits: (condition it holds, until when, seconds at most).
WaitFor = Callable[[threading.Condition, Callable[[], bool], "float | None"], object]


class Change(Protocol):
    """What the replicated state says of one change."""

    @property
    def key(self) -> str: ...
    @property
    def revision(self) -> int: ...


class Watch:
    """An iterator of events, and a context manager; `close` ends it, also from another thread.

    Without a callback, iterate: it blocks until there is an event, and stops after `close`, or after `timeout` seconds
    without one. It raises `Compacted` when it does not conflate and fell too far behind, `ClosedError` when its member
    was stopped. With a callback there is nothing to iterate: each event is passed to it, on a thread for callbacks.
    """

    def __init__(
        self,
        prefix: str,
        *,
        conflate: bool,
        timeout: float | None,
        decode: Callable[[Any], Event],
        notify: Callable[[], None] | None,
        on_close: Callable[[Watch], None],
        wait_for: WaitFor = threading.Condition.wait_for,
    ) -> None:
        self.prefix = prefix
        self._conflate = conflate
        self._timeout = timeout
        self._decode = decode
        self._notify = notify
        self._on_close = on_close
        self._wait_for = wait_for
        self._condition = threading.Condition()
        self._latest: dict[str, Any] = {}
        self._backlog: deque[Any] = deque()
        self._error: CoordError | None = None
        self._closed = False
        #: `notify` was called, and `take` has not yet found everything taken.
        self._notified = False
        #: It tells nothing older; 0: whatever comes.
        self.first_revision = 0

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        change = self._wait()
        if change is None:
            raise StopIteration
        return self._decode(change)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch. Idempotent; never blocks."""
        with self._condition:
            self._closed = True
            self._latest.clear()
            self._backlog.clear()
            self._condition.notify_all()
        self._on_close(self)

    @property
    def closed(self) -> bool:
        return self._closed

    # For the loop's side.

    def begin_at(self, revision: int) -> None:
        """Tell nothing older, even if it is still to happen."""
        self.first_revision = revision

    def would_miss(self, before: int) -> bool:
        """Would the difference between `before` and something later leave it in the dark?"""
        return not self._conflate or before + 1 < self.first_revision

    def put(self, changes: Iterable[Any], *, bounded: bool = True) -> None:
        """Add changes, oldest first. Not `bounded`: what is there when the watch begins, however much."""
        with self._condition:
            if self._closed or self._error is not None:
                return
            for change in changes:
                if change.revision < self.first_revision:
                    continue
                if self._conflate:
                    # Moved to the end, so that revisions never fall.
                    self._latest.pop(change.key, None)
                    self._latest[change.key] = change
                elif bounded and len(self._backlog) >= BACKLOG:
                    self._error = Compacted(
                        f"the watch of {self.prefix!r} fell more than {BACKLOG} events behind; read the present state, "
                        "then watch from its revision",
                        revision=change.revision,
                    )
                    break
                else:
                    self._backlog.append(change)
            self._condition.notify_all()
        self._tell()

    def end(self, error: CoordError) -> None:
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()
        self._tell()

    @property
    def has_callback(self) -> bool:
        return self._notify is not None

    def take(self) -> Event | None:
        """The next event, for a callback; None when there is none now, and `notify` will tell of more. Raises what
        ended the watch, once nothing is left."""
        with self._condition:
            change = self._next()
            if change is None:
                self._notified = False
                if self._error is not None and not self._closed:
                    raise self._error
                return None
        return self._decode(change)

    def _tell(self) -> None:
        """Once until everything is taken: however slow the callback, there is one task for it."""
        with self._condition:
            if self._notify is None or self._notified:
                return
            self._notified = True
        self._notify()

    def _wait(self) -> Any:
        with self._condition:
            self._wait_for(self._condition, self._has_news, self._timeout)
            change = self._next()
            if change is None and self._error is not None and not self._closed:
                raise self._error
            return change

    def _has_news(self) -> bool:
        return bool(self._backlog or self._latest or self._closed or self._error)

    def _next(self) -> Any:
        """The oldest change not yet read. Order of reading is order of revision."""
        with self._condition:
            if self._backlog:
                return self._backlog.popleft()
            if self._latest:
                key = next(iter(self._latest))
                return self._latest.pop(key)
            return None


class Watches:
    """All watches of one member; touched by the loop's thread only, save for `discard`.

    One without a callback is only as good as its iterator, so it is not kept alive: `for event in cfg.watch(): break`
    leaves nothing behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[Callable[[], Watch | None]] = []
        self._error: CoordError | None = None

    def add(self, watch: Watch) -> None:
        with self._lock:
            if self._error is None:
                if not watch.closed:
                    self._purge()
                    self._watches.append((lambda: watch) if watch.has_callback else weakref.ref(watch))
                return
        watch.end(self._error)

    def discard(self, watch: Watch) -> None:
        with self._lock:
            self._purge(watch)

    def publish(self, changes: list[Any]) -> None:
        """Give each watch what falls under its prefix."""
        for look_up in tuple(self._watches):
            watch = look_up()
            if watch is None:
                continue
            prefix = watch.prefix
            wanted = [change for change in changes if change.key.startswith(prefix)] if prefix else changes
            if wanted:
                watch.put(wanted)

    def jumped(self, before: int, after: int) -> None:
        """A snapshot took the state from revision `before` to `after`. What it changed is told as the difference from
        `before`, which is no good to a watch that wants every change; nor to one that was to begin later than `before`:
        it knows of keys this member never had, and would never hear that they are gone."""
        for look_up in tuple(self._watches):
            watch = look_up()
            if watch is not None and watch.first_revision <= after and watch.would_miss(before):
                self.discard(watch)
                watch.end(
                    Compacted(
                        f"not all changes since revision {max(before + 1, watch.first_revision)} are known: this "
                        f"member had fallen behind, and a snapshot took it to {after}; read the present state, then "
                        "watch from its revision",
                        revision=after,
                    )
                )

    def end(self, error: CoordError) -> None:
        with self._lock:
            self._error = error
            watches = [look_up() for look_up in self._watches]
            self._watches = []
        for watch in watches:
            if watch is not None:
                watch.end(error)

    def __len__(self) -> int:
        return len(self._watches)

    def _purge(self, ended: Watch | None = None) -> None:
        self._watches = [look_up for look_up in self._watches if look_up() not in (None, ended)]
