"""What an election gives its users to hold: a leadership, who leads, and the news of who does.

What must not live here: how one comes to lead, and how that ends (`coord.election`); what a hold is (`coord.lock`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from coord.errors import ConfigurationError, CoordError, LeadershipLost, NotHeld, OutcomeUnknown, QuotaExceeded
from coord.hold import RELEASED, Hold
from coord.lock import group_time
from coord.logs import Log
from coord.loop import fresh
from coord.machine import replies
from coord.machine.commands import LOCK_VALUE_BYTES_MAX
from coord.machine.values import UnstorableValue, decode_value, encode_value

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.loop import Loop
    from coord.replica import Replica
    from coord.requests import Request

_log = Log("coord.election")

_NANOSECONDS = 1_000_000_000
#: Why a leadership ended, besides what ends any hold: its lease ran out, though its session may come back.
SUSPENDED = "suspended"


@dataclass(slots=True, frozen=True)
class Leader:
    """Who leads an election, as one member knows it."""

    #: The member's name.
    name: str
    #: The leadership's fencing token.
    token: int
    #: What the leader published of itself; yours to keep.
    value: Any
    #: Seconds since it was elected, by the group's own clock, when this was looked up. A member that does not lead the
    #: group knows that clock as of the last thing it was told.
    since: float


class Leadership(Hold):
    """One term of office. It ends by itself, at once and for good, when its session's lease does; `held()` then says so
    whatever else hangs.

    `stopping` is set when its work is to stop: it was lost, or the election was resigned, or closed. In the latter two
    cases it is held until the work has stopped. `lost` is set when it is over, however that came.
    """

    _lost_error = LeadershipLost
    _kind = "leadership"

    def __init__(
        self,
        coordinator: Coordinator,
        loop: Loop,
        election: str,
        notify: Callable[[Request], None],
        ended: Callable[[str], None],
        give_up: Callable[[], None],
        **arguments: Any,
    ) -> None:
        """Stood for by nobody yet. `ended`: told on the loop's thread when the hold is no more."""
        super().__init__(coordinator, loop, notify, **arguments)
        self._election_name = election
        self._on_end = ended
        self._on_release = give_up
        self.stopping: threading.Event = loop.event()

    @property
    def name(self) -> str:
        """The election's."""
        return self._election_name

    @property
    def value(self) -> Any:
        """What others see of this leader; a copy."""
        return decode(self._request.value)

    def update_value(self, value: Any) -> None:
        """Publish another value, for this term of office. Blocks for `default_timeout` at most.

        LeadershipLost when it is not held; OutcomeUnknown if no answer came in time; QuotaExceeded for more than 4096
        bytes, ValueError for what cannot be stored.
        """
        self._check_process()
        data = encode_value(value)
        if len(data) > LOCK_VALUE_BYTES_MAX:
            raise QuotaExceeded(f"a value of {len(data)} bytes, more than {LOCK_VALUE_BYTES_MAX}; nothing was changed")
        self.check()
        requests = self._loop.replica.requests
        answer = self._ask("update", lambda request, done: requests.set_value(request, data, done))
        if answer is None:
            raise OutcomeUnknown(
                f"nobody has acknowledged within {self._coordinator.default_timeout:g} s the new value of leadership "
                f"{self.name!r}; it may come to be seen"
            )
        if answer[0] != replies.OK:
            raise LeadershipLost(f"leadership {self.name!r} was lost before its value was changed")
        self._request.value = data

    def release(self) -> None:
        """Resign: as `Election.resign()`."""
        self._check_process()
        if self.stopping.is_set():
            raise NotHeld(f"leadership {self.name!r} cannot be resigned: that is under way, or it is over")
        self._on_release()

    def downgrade(self) -> int:
        raise TypeError(f"leadership {self.name!r} cannot be shared")

    # -- within

    def _was_lost(self, request: Request, reason: str) -> None:
        super()._was_lost(request, reason)
        self._on_end(reason)

    def _lapse(self) -> None:
        """Its lease ran out: it is over, though the group may not know yet."""
        super()._was_lost(self._request, SUSPENDED)

    def _retire(self) -> None:
        """It is about to be released."""
        with self._mutex:
            self._ended = self._ended or RELEASED
        self.lost.set()

    def _what_became_of_it(self) -> str:
        if self._reason == SUSPENDED:
            return "its lease ran out, because the group acknowledged no renewal. Somebody else may lead now"
        return super()._what_became_of_it()


# ---------------------------------------------------------------------------------------------------------------------
# Who leads.


class Sighting(NamedTuple):
    """A leader as it is in the replicated state."""

    name: str
    token: int
    value: bytes
    since: float

    def read(self) -> Leader:
        return Leader(self.name, self.token, decode(self.value), self.since)


def sight(replica: Replica, lock: str) -> Sighting | None:
    """Who leads, by the local state; on the loop's thread."""
    machine = replica.machine
    holders = machine.locks.holders(lock)
    if not holders:
        return None
    now = group_time(replica)
    hold = holders[0]
    return Sighting(hold.owner, hold.token, hold.value, max(0, now - hold.granted_at) / _NANOSECONDS)


class Observation:
    """News of who leads: `Leader`, or None for nobody. First how it is, then each change; who reads slowly gets the
    newest only. By the local state, which may be late: to send requests to, not to rely on.

    Without a callback, iterate: it blocks until there is news, stops after `close`, and raises what stopped its member.
    """

    def __init__(self, loop: Loop, lock: str, callback: Callable[[Leader | None], object] | None) -> None:
        self._loop = loop
        self._callback = callback
        self._condition = threading.Condition()
        self._latest: Sighting | None = None
        #: What was put last, and what is yet to be read.
        self._known: tuple[str, int, bytes] | str | None = "nothing yet"
        self._news = False
        #: A task for the callback is on its way.
        self._notified = False
        self._error: CoordError | None = None
        self._closed = False
        # Without a callback it is only as good as its iterator, so it is not kept alive.
        self._feed = feed = _Feed(loop, lock, (lambda: self) if callback is not None else weakref.ref(self))
        weakref.finalize(self, _end_feed, loop, feed).atexit = False
        loop.post(self._feed.begin)

    def __iter__(self) -> Observation:
        return self

    def __next__(self) -> Leader | None:
        if self._callback is not None:
            raise TypeError("this observation has a callback, which is given the news; there is none to iterate")
        with self._condition:
            self._loop.wait_for(self._condition, self._is_over_or_new, None)
            if self._closed:
                raise StopIteration
            if self._news:
                return self._take()
            assert self._error is not None
            raise fresh(self._error)

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more news. Idempotent; never blocks."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._loop.post(self._feed.end)

    @property
    def closed(self) -> bool:
        return self._closed

    # -- within

    def _is_over_or_new(self) -> bool:
        return self._news or self._closed or self._error is not None

    def _take(self) -> Leader | None:
        self._news = False
        return None if self._latest is None else self._latest.read()

    def _put(self, sighting: Sighting | None) -> None:
        """On the loop's thread."""
        known = None if sighting is None else sighting[:3]
        with self._condition:
            if known == self._known or self._closed:
                return
            self._known, self._latest, self._news = known, sighting, True
            self._condition.notify_all()
            if self._callback is None or self._notified:
                return
            self._notified = True
        self._loop.dispatcher.run(self._deliver)

    def _end(self, error: CoordError) -> None:
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()

    def _deliver(self) -> None:
        """On the thread for callbacks."""
        assert self._callback is not None
        while True:
            with self._condition:
                if self._closed or not self._news:
                    self._notified = False
                    return
                leader = self._take()
            try:
                self._callback(leader)
            except KeyboardInterrupt:
                raise
            except BaseException:
                _log.exception("a callback for a change of leader raised; it will be called again for the next")


class _Feed:
    """What puts news into an observation. On the loop's thread."""

    def __init__(self, loop: Loop, lock: str, find: Callable[[], Observation | None]) -> None:
        self._replica = loop.replica
        self._lock = lock
        self._find = find

    def begin(self) -> None:
        self._replica.requests.observe(self._lock, self.look)
        self.look()

    def look(self) -> None:
        observation, replica = self._find(), self._replica
        if observation is None:
            self.end()
        elif replica.failure is not None:
            observation._end(replica.failure)
            self.end()
        else:
            observation._put(sight(replica, self._lock))

    def end(self) -> None:
        self._replica.requests.unobserve(self._lock, self.look)


def _end_feed(loop: Loop, feed: _Feed) -> None:
    if loop.running:
        loop.post(feed.end)


# ---------------------------------------------------------------------------------------------------------------------
# Values.


def encode(value: Any) -> bytes:
    """What a candidate publishes, for a command. ConfigurationError for too much, ValueError for what has no bytes."""
    data = encode_value(value)
    if len(data) > LOCK_VALUE_BYTES_MAX:
        raise ConfigurationError(
            f"value: takes {len(data)} bytes, more than {LOCK_VALUE_BYTES_MAX}; publish where to find it instead"
        )
    return data


def decode(data: bytes) -> Any:
    """None for what no election has written."""
    try:
        return decode_value(data) if data else None
    except UnstorableValue:
        return None
