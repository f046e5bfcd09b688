"""`coordinator.lock(...)`: the handle, the decorator, and what can be asked about a lock.

A caller waits here, with one absolute deadline; everything else happens on the loop's thread.

What must not live here: what a hold is (`coord.hold`), how a request goes on its way (`coord.requests`), who is granted
what (`coord.machine`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from coord.errors import (
    AlreadyHeld,
    ConfigurationError,
    LockTimeout,
    NotHeld,
    Unavailable,
)
from coord.hold import GIVEN_UP, blocks_inside
from coord.hold import Hold as Hold
from coord.loop import fresh
from coord.machine import commands
from coord.raft.roles import LEADER
from coord.requests import GRANTED, REFUSED

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.loop import Loop
    from coord.replica import Replica

T = TypeVar("T")

_NANOSECONDS = 1_000_000_000
#: Seconds of lock-delay at most.
DELAY_SECONDS_MAX = 60.0
#: Names that begin like this are those of elections.
ELECTION = "election:"


# ---------------------------------------------------------------------------------------------------------------------
# What can be asked.


@dataclass(slots=True, frozen=True)
class Holder:
    """Who holds a lock."""

    #: The member's name.
    owner: str
    session: int
    shared: bool
    #: Which of the permits; 0 unless the lock has several.
    slot: int
    token: int
    #: Seconds since it was granted.
    age: float


@dataclass(slots=True, frozen=True)
class WaiterInfo:
    """Who waits for a lock."""

    #: The member's name.
    owner: str
    session: int
    shared: bool
    priority: int
    #: Seconds since it was asked for.
    age: float


@dataclass(slots=True, frozen=True)
class LockInfo:
    """A lock as one member sees it at one moment. Ages and delays are those of the group's own clock, which a member
    that does not lead knows as of the last thing it was told."""

    name: str
    #: How many may hold it at a time; 0 while nobody has asked for it.
    permits: int
    holders: tuple[Holder, ...]
    #: Next first.
    waiting: tuple[WaiterInfo, ...]
    #: Seconds until what was lost may be granted again; 0 when nothing is kept back.
    delay: float
    #: Why the handle that was asked could not be granted it now; "" if it could.
    why: str


class Lock:
    """A handle on a lock. Makes no request before `acquire`, and works before the coordinator is started.

    The owner is the handle, not the thread: whoever has it may release, and two handles exclude each other, also within
    a process. It holds once at a time. Waiting is in order of arrival, unless priorities differ.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        *,
        shared: bool = False,
        permits: int = 1,
        priority: int = 0,
        lock_delay: float | None = None,
        fenced: bool = False,
        reclaim: bool = False,
    ) -> None:
        """See `Coordinator.lock`."""
        check_name(name, "lock", commands.LOCK_NAME_BYTES_MAX)
        if name.startswith(ELECTION):
            raise ConfigurationError(f"lock name {name!r}: names that begin with {ELECTION!r} are those of elections")
        check_number("permits", permits, 1, commands.PERMITS_MAX)
        check_number("priority", priority, -commands.PRIORITY_MAX, commands.PRIORITY_MAX)
        if shared and permits != 1:
            raise ConfigurationError(f"shared=True and permits={permits}: a lock is shared, or has permits; use one")
        check_delay(lock_delay)
        self.name = name
        self.shared = bool(shared)
        self.permits = permits
        self.priority = priority
        self.fenced = bool(fenced)
        self._lock_delay = lock_delay
        self._reclaim = bool(reclaim)
        self._coordinator = coordinator
        self._mutex = threading.Lock()
        #: The newest, which may not be granted yet.
        self._hold: Hold | None = None

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> Hold | None:
        """Get the lock; None when it could not be had in time, and then nothing is left in its queue.

        timeout: seconds, of one deadline for everything; -1: for ever; None: `default_timeout`. When they are over it
        returns, whatever hangs. `blocking=False`, or 0, asks once and does not wait in the queue; Unavailable if there
        is no answer within `default_timeout`.

        AlreadyHeld if this handle holds, or is being acquired, already; or if this thread is inside a `with` of the
        same lock, so that waiting for ever would be just that. ConfigurationError if others use the lock with another
        number of permits; QueueFull, QuotaExceeded. Whatever it raises, nothing is left behind.
        """
        seconds = patience(timeout, self._coordinator.default_timeout)
        if not blocking and timeout != -1:
            raise ValueError(f"timeout={timeout!r} with blocking=False: what does not wait has no timeout")
        waits = bool(blocking) and seconds != 0
        if not waits:
            seconds = self._coordinator.default_timeout
        loop = self._coordinator._running_loop()
        loop.check()
        if seconds == _FOR_EVER:
            self._check_not_inside()
        deadline, hold, over = loop.clock() + seconds, None, False
        try:
            while not over:
                hold, over = self._try(loop, waits, deadline)
            return hold
        except BaseException:
            if hold is not None:
                hold._give_up()
            raise

    def release(self) -> None:
        """Release what this handle holds; as `Hold.release`."""
        self._coordinator._running_loop()
        hold = self._hold
        if hold is None or not hold._request.told or hold._ended == GIVEN_UP:
            raise NotHeld(f"lock {self.name!r} cannot be released: this handle does not hold it")
        hold.release()

    def locked(self) -> bool:
        """Whether this handle would have to wait for somebody to release, as far as this member knows. May block for a
        turn of the background thread."""
        info = self.describe()
        if self.shared:
            return any(not holder.shared for holder in info.holders)
        return len(info.holders) >= self.permits

    def describe(self) -> LockInfo:
        """Who holds it, who waits, and why this handle could not have it now; as far as this member knows. May block
        for a turn of the background thread; Unavailable when that hangs."""
        loop = self._coordinator._running_loop()
        info: LockInfo = loop.call(partial(_describe, loop.replica, self), self._coordinator.default_timeout)
        return info

    def __enter__(self) -> Hold:
        hold = None
        try:
            hold = self.acquire()
            if hold is None:
                raise LockTimeout(f"lock {self.name!r} was not granted")
            hold._enter(self)
            return hold
        except BaseException:
            if hold is not None:
                hold._give_up()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold = self._hold
        try:
            # Within this block it may have been lost, and acquired again. None: another thread has entered it.
            entered = [hold for by, hold in blocks_inside(self._coordinator) if by is self]
            hold = entered[-1] if entered else hold
        finally:
            assert hold is not None, "left without having been entered"
            hold._exit(self, error)

    def __repr__(self) -> str:
        hold = self._hold
        return f"<coord.Lock {self.name!r}, {'held' if hold is not None and hold.held() else 'not held'}>"

    # -- within

    def _try(self, loop: Loop, wait: bool, deadline: float) -> tuple[Hold | None, bool]:
        """One request: what came of it, and whether that was all. It was not if it was granted and lost again before
        anybody knew."""
        waiter = loop.waiter()
        hold = Hold(
            self._coordinator,
            loop,
            waiter.done,
            self.name,
            shared=self.shared,
            permits=self.permits,
            priority=self.priority,
            wait=wait,
            delay=lock_delay(self._lock_delay, self.fenced, loop),
            reclaim=self._reclaim,
        )
        request = hold._request
        over = True
        try:
            self._occupy(hold)
            loop.post(partial(loop.replica.requests.ask, request))
            if not waiter.wait(deadline - loop.clock()) and request.give_up():
                if not wait:
                    raise self._coordinator._no_answer(loop, True, None)
            elif request.outcome == REFUSED:
                assert request.error is not None
                raise fresh(request.error)
            elif request.outcome == GRANTED:
                over = not self._stands(loop, hold, deadline)
                if hold.held():
                    return hold, True
            hold._give_up()
            return None, over
        except BaseException:
            # KeyboardInterrupt, too, even in the midst of giving up.
            hold._give_up()
            raise

    def _stands(self, loop: Loop, hold: Hold, deadline: float) -> bool:
        """Granted, but this process may have been paused since: then wait until it is known whether that still holds.
        False: there is no time for that."""
        lease = hold._lease()
        if lease.stands(loop.clock()):
            return True
        try:
            known = loop.when(lambda: bool(lease.ended or lease.stands(loop.clock())) or None, deadline)
        except Unavailable:
            return False
        return known is not None

    def _occupy(self, hold: Hold) -> None:
        """This handle is busy from here on, until that has ended."""
        with self._mutex:
            other = self._hold
            if other is not None and not other._ended:
                what = "holds it already" if other._request.told else "is being acquired by another thread"
                raise AlreadyHeld(
                    f"this handle on lock {self.name!r} {what}; locks are not re-entrant. Use one handle per holder"
                )
            self._hold = hold

    def _check_not_inside(self) -> None:
        for _, hold in blocks_inside(self._coordinator):
            if (
                hold._request.name == self.name
                and not hold._ended
                and self.permits == 1
                and not (self.shared and hold.shared)
            ):
                raise AlreadyHeld(
                    f"this thread is inside a `with` of lock {self.name!r} and would wait for itself; locks are not "
                    "re-entrant, and a shared one cannot be made exclusive. Leave that first, or use a timeout"
                )


# ---------------------------------------------------------------------------------------------------------------------
# Functions around a lock.


def locked(
    coordinator: Coordinator, name: str, *, timeout: float | None = -1, on_busy: str = "wait", **options: Any
) -> Callable[[Callable[..., T]], Callable[..., T | None]]:
    """See `Coordinator.locked`."""
    if on_busy not in ("wait", "skip", "raise"):
        raise ConfigurationError(f'on_busy={on_busy!r}: expected "wait", "skip" or "raise"')
    patience(timeout, 0.0)
    # What is wrong shall be found here, and not by the first call.
    Lock(coordinator, name, **options)

    def acquire() -> Hold | None:
        lock = Lock(coordinator, name, **options)
        if on_busy != "wait" and timeout == -1:
            return lock.acquire(blocking=False)
        return lock.acquire(timeout=timeout)

    def decorate(fn: Callable[..., T]) -> Callable[..., T | None]:
        _check_plain(fn)
        wants_hold = _wants_hold(fn)

        @wraps(fn)
        def call(*arguments: Any, **keywords: Any) -> T | None:
            hold = acquire()
            if hold is None:
                if on_busy == "skip":
                    return None
                raise LockTimeout(f"lock {name!r} was not granted in time, so {fn.__qualname__} was not called")
            with hold:
                if wants_hold:
                    keywords["hold"] = hold
                return fn(*arguments, **keywords)

        return call

    return decorate


_SEQUENCER = re.compile(
    r"v1:([0-9a-f]{32}):([xs]):([1-9]\d{0,18}):([0-9a-f]{1,16}):([1-9]\d{0,18}):(.+)", re.DOTALL | re.ASCII
)


def check_sequencer(
    coordinator: Coordinator, text: str, *, linearizable: bool = True, timeout: float | None = None
) -> bool:
    """See `Coordinator.check_sequencer`."""
    found = _SEQUENCER.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no sequencer of a hold; those begin with 'v1:' and come from Hold.sequencer")
    cluster, mode, token, session, request, name = found.groups()
    loop = coordinator._running_loop()
    loop.check()
    replica = loop.replica
    if cluster[:16] != f"{replica.identity.fingerprint:016x}":
        return False
    if linearizable:
        coordinator._confirm_reads(timeout)
    if cluster[16:] != f"{replica.identity.group_number:016x}":
        return False
    hold = replica.machine.locks.hold(int(session, 16), int(request))
    return hold is not None and (hold.name, hold.token, hold.shared) == (name, int(token), mode == "s")


# ---------------------------------------------------------------------------------------------------------------------
# Checks, and small things; elections use them too.

_FOR_EVER = float("inf")


def check_name(name: object, kind: str, most: int) -> None:
    """Raise for what cannot be the name of a lock or an election."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} is a str, not {type(name).__name__}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{kind} name has a lone surrogate at {error.start}; it has no UTF-8") from error
    if not 0 < length <= most:
        raise ConfigurationError(f"{kind} name of {length} bytes in UTF-8; it must have 1 to {most}")


def check_delay(lock_delay: object) -> None:
    if lock_delay is None:
        return
    if (
        not isinstance(lock_delay, int | float)
        or isinstance(lock_delay, bool)
        or not 0 <= lock_delay <= DELAY_SECONDS_MAX
    ):
        raise ConfigurationError(
            f"lock_delay={lock_delay!r}: expected seconds from 0 to {DELAY_SECONDS_MAX:g}, or None for session_ttl"
        )


def lock_delay(given: float | None, fenced: bool, loop: Loop) -> int:
    """Nanoseconds: what was given, or what stands for None."""
    if given is None:
        given = 0.0 if fenced else min(loop.replica.options.session_ttl, DELAY_SECONDS_MAX)
    return int(given * _NANOSECONDS)


def group_time(replica: Replica) -> int:
    """Cluster time as this member knows it now, nanoseconds; who does not lead may be a keepalive behind."""
    core = replica.core
    return max(replica.machine.time, core.cluster_time() if core.role == LEADER else core.clock_base)


def check_number(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{name}={value!r}: expected a whole number from {low} to {high}")


def patience(timeout: object, default: float) -> float:
    """Seconds; infinite for -1."""
    if timeout is None:
        return default
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not (timeout >= 0 or timeout == -1):
        raise ValueError(f"timeout={timeout!r}: expected seconds, 0 or more, -1 for ever, or None for the default")
    return _FOR_EVER if timeout == -1 else timeout


def _check_plain(fn: Callable[..., Any]) -> None:
    if not callable(fn):
        raise TypeError(f"{fn!r} is no function; write @coordinator.locked(name) above one")
    if iscoroutinefunction(fn) or isgeneratorfunction(fn) or isasyncgenfunction(fn):
        raise TypeError(
            f"{fn.__qualname__} is a coroutine or generator function: calling it only makes one, and the lock would be "
            "released before its body has run. Use `with` inside of it"
        )


def _wants_hold(fn: Callable[..., Any]) -> bool:
    parameter = signature(fn).parameters.get("hold")
    if parameter is not None and parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL):
        raise TypeError(f"{fn.__qualname__}: its parameter `hold` cannot be given by name")
    return parameter is not None and parameter.kind != Parameter.VAR_KEYWORD


def _describe(replica: Replica, lock: Lock) -> LockInfo:
    """On the loop's thread."""
    machine, name = replica.machine, lock.name
    now = group_time(replica)
    holders = tuple(
        Holder(hold.owner, hold.session, hold.shared, hold.slot, hold.token, _seconds(now - hold.granted_at))
        for hold in machine.locks.holders(name)
    )
    waiting = tuple(
        WaiterInfo(other.owner, other.session, other.shared, other.priority, _seconds(now - other.asked_at))
        for other in machine.locks.queue(name)
    )
    taken = {holder.slot for holder in holders}
    left = {
        slot: _seconds((not_before_s if lock.shared else max(not_before_x, not_before_s)) - now)
        for slot, (not_before_x, not_before_s, _) in machine.locks.delayed(name).items()
        if slot not in taken
    }
    delay = min((seconds for seconds in left.values() if seconds), default=0.0)
    permits = machine.locks.permits(name)
    if machine.epoch == 0:
        why = "the group is not ready to grant anything yet"
    elif permits not in (0, lock.permits):
        why = f"it is in use with permits={permits}, and this handle has permits={lock.permits}"
    else:
        why = _why(lock, holders, waiting, left)
    return LockInfo(name, permits, holders, waiting, delay, why)


def _why(lock: Lock, holders: tuple[Holder, ...], waiting: tuple[WaiterInfo, ...], left: dict[int, float]) -> str:
    joins = lock.shared and holders and all(holder.shared for holder in holders)
    if not joins and len(holders) >= lock.permits:
        return "held by " + ", ".join(repr(holder.owner) for holder in holders)
    if waiting:
        return f"{len(waiting)} wait for it already"
    free = lock.permits - len(holders)
    kept = sum(1 for seconds in left.values() if seconds)
    if not joins and kept >= free:
        return f"kept back for {min(seconds for seconds in left.values() if seconds):.1f} s more: a holder was lost"
    return ""


def _seconds(nanoseconds: int) -> float:
    return max(0.0, nanoseconds / _NANOSECONDS)
