"""`coordinator.config`: the replicated map, as a user holds it.

Reads look into this member's own copy, in the caller's thread. Writes become commands, encoded here, once.
What must not live here: what a command does (`coord.machine`), how it travels (`coord.coordinator` and below).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from coord.errors import (
    ClosedError,
    Compacted,
    Conflict,
    CoordError,
    LeadershipLost,
    LockLost,
    OutcomeUnknown,
    QuotaExceeded,
    TooStale,
    Unavailable,
)
from coord.loop import Dispatcher
from coord.machine import commands, replies
from coord.machine.config_store import ConfigStore
from coord.machine.records import Change, Record
from coord.machine.values import Value, decode_value, encode_value
from coord.replica import Replica
from coord.watch import PUT, Event, Watch

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.hold import Hold

_log = logging.getLogger("coord.config")

#: As `revision` of `compare_and_set` or `require_revision`: only if the key is absent.
ABSENT = commands.ABSENT

_NANOSECONDS = 1_000_000_000
#: `update` waits up to this long before it tries again, doubled each time up to the second.
_UPDATE_PAUSE_SECONDS, _UPDATE_PAUSE_SECONDS_MAX = 0.001, 0.1
#: Events one watch's callback gets before those of other watches have their turn.
_EVENTS_PER_TASK = 100


@dataclass(slots=True, frozen=True)
class Entry:
    """What a key holds. `value` is the caller's to change; the map does not see it."""

    key: str
    value: Any
    #: Revision of its last write: the log index of the entry that did it.
    revision: int
    #: Revision of the write that created it.
    created: int
    #: 1 when created, one more with each write; starts again after a delete.
    version: int
    #: The session it ends with, or 0.
    session: int


class ConfigMap(MutableMapping[str, Any]):
    """A replicated dict: str keys; values None, bool, int, float, str, bytes, and lists and dicts of them.

    Plain reads are local: they never block, never go back in time, always see what this member wrote, and may lag the
    group by `age()` seconds. With `linearizable=True` a read first asks the quorum. Writes block until a majority of
    the members has them on disk.

    Writes raise `Unavailable` (no answer in time, certainly no effect), `OutcomeUnknown` (no answer in time, may have
    happened), `QuotaExceeded`, `QueueFull`; all calls may raise `ClosedError`, `ForkedError`, `StorageError`.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    # -- reading

    def __getitem__(self, key: str) -> Any:
        encoded = self._store().value(key)
        if encoded is None:
            raise KeyError(key)
        return decode_value(encoded)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._store().value(key) is not None

    def __len__(self) -> int:
        return len(self._store())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def get(
        self,
        key: str,
        default: Any = None,
        *,
        linearizable: bool = False,
        timeout: float | None = None,
        max_age: float | None = None,
        min_revision: int | None = None,
    ) -> Any:
        """The value of `key`, or `default`.

        Local unless told otherwise. `linearizable`: as new as any write that finished before this call began; may
        block, Unavailable without a quorum. `max_age`: TooStale if the local copy may be older than so many seconds.
        `min_revision`: wait until the local copy includes that revision; Unavailable if it does not in time.
        """
        encoded = self._store_as_of(linearizable, timeout, max_age, min_revision).value(key)
        return default if encoded is None else decode_value(encoded)

    def entry(
        self,
        key: str,
        *,
        linearizable: bool = False,
        timeout: float | None = None,
        max_age: float | None = None,
        min_revision: int | None = None,
    ) -> Entry | None:
        """Value, revision and the rest of `key`; None when absent. Arguments as for `get`."""
        record = self._store_as_of(linearizable, timeout, max_age, min_revision).get(key)
        return None if record is None else _entry(key, record)

    def keys(self, prefix: str = "") -> list[str]:  # type: ignore[override]
        """The keys that start with `prefix`, in order."""
        return [key for key, _ in self._store().range(prefix)[1]]

    def items(self, prefix: str = "") -> list[tuple[str, Any]]:  # type: ignore[override]
        """The keys that start with `prefix` and their values, in order, all at one revision."""
        return [(key, decode_value(record.value)) for key, record in self._store().range(prefix)[1]]

    def values(self, prefix: str = "") -> list[Any]:  # type: ignore[override]
        """The values of the keys that start with `prefix`, in order of the keys."""
        return [value for _, value in self.items(prefix)]

    def snapshot(self) -> Mapping[str, Any]:
        """The whole map at one revision, as a mapping of its own that never changes."""
        return MappingProxyType(dict(self.items()))

    @property
    def revision(self) -> int:
        """The revision of the newest change in the local copy; 0 while there was none. Never falls."""
        return self._store().revision

    def age(self) -> float:
        """Seconds since the local copy was last known to be up to date; infinite if it never was."""
        loop = self._coordinator._running_loop()
        loop.check()
        return loop.replica.age(loop.clock())

    # -- writing

    def __setitem__(self, key: str, value: Value) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def put(
        self, key: str, value: Value, *, ephemeral: bool = False, ttl: float | None = None, timeout: float | None = None
    ) -> int:
        """Set `key`; returns the revision. `ephemeral`: it goes when this member's session ends. `ttl`: it goes at some
        time after so many seconds, of the group's own clock. A put without `ttl` clears an earlier one.

        Conflict if the key is ephemeral and belongs to another live session.
        """
        return self._write(commands.put, self._put_arguments(key, value, ephemeral, ttl), timeout)[1]

    def compare_and_set(
        self,
        key: str,
        value: Value,
        *,
        revision: int,
        ephemeral: bool = False,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Set `key` if its revision is `revision` (`coord.ABSENT`: if there is none); returns the new revision. Else
        Conflict, with the entry found."""
        arguments = (*self._put_arguments(key, value, ephemeral, ttl), _check_revision(revision))
        return self._write(commands.put, arguments, timeout)[1]

    def delete(self, key: str, *, revision: int | None = None, timeout: float | None = None) -> bool:
        """Delete `key`; True if it was there. With `revision`, only if it is at that one, else Conflict."""
        return bool(self._write(commands.delete, _delete_arguments(key, revision), timeout)[2])

    def update(  # type: ignore[override]
        self, key: str, fn: Callable[[Any], Value], *, default: Any = None, timeout: float | None = None
    ) -> Any:
        """Set `key` to `fn(value)`, where `value` is what it holds (`default` if absent); returns the new value.

        `fn` may be called more than once, when somebody else writes in between; it must have no other effect.
        Unavailable if that goes on until the timeout.
        """
        loop = self._coordinator._running_loop()
        deadline = self._coordinator._deadline(loop, timeout)
        pause = _UPDATE_PAUSE_SECONDS
        self._coordinator._confirm_reads(timeout)
        record = self._store().get(key)
        while True:
            value = fn(default if record is None else decode_value(record.value))
            revision = ABSENT if record is None else record.revision
            left = deadline - loop.clock()
            if left <= 0:
                raise Unavailable(f"{key!r} was changed by others each time before it could be updated; try again")
            try:
                self.compare_and_set(key, value, revision=revision, timeout=left)
                return value
            except Conflict:
                # Whoever got in first is in our copy too: the conflict was found by applying it.
                record = self._store().get(key)
                if record is not None and record.revision == revision:
                    # Nobody did: the key is another session's, and stays that.
                    raise
                loop.back_off(min(pause, deadline - loop.clock()))
                pause = min(2 * pause, _UPDATE_PAUSE_SECONDS_MAX)

    def transaction(self, *, timeout: float | None = None) -> Transaction:
        """Collect changes and have them all happen at one revision, or none: `with cfg.transaction() as t: ...`."""
        return Transaction(self, timeout)

    def pop(self, key: str, *default: Any) -> Any:
        """Delete `key` and return what it held; `default` if it is absent, or KeyError. Nobody else gets the same."""
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        while (entry := self.entry(key) or self.entry(key, linearizable=True)) is not None:
            try:
                self.delete(key, revision=entry.revision)
                return entry.value
            except Conflict:
                continue
        if default:
            return default[0]
        raise KeyError(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """What `key` holds; if it is absent, set it to `default` and return that."""
        try:
            self.compare_and_set(key, default, revision=ABSENT)
            return default
        except Conflict as conflict:
            return self[key] if conflict.entry is None else conflict.entry.value

    def popitem(self) -> tuple[str, Any]:
        """Delete the first key and return it with what it held; KeyError when there is none."""
        while keys := self.keys():
            try:
                return keys[0], self.pop(keys[0])
            except KeyError:
                continue
        raise KeyError("the config map is empty")

    def clear(self) -> None:
        """Refused: nobody means to empty a shared configuration by this. Delete what you know by key."""
        raise TypeError("clear() would delete everybody's configuration; delete keys one by one, or in a transaction")

    # -- writing, without waiting

    def put_async(
        self, key: str, value: Value, *, ephemeral: bool = False, ttl: float | None = None, timeout: float | None = None
    ) -> Future[int]:
        """As `put`; returns at once, with a future of the revision. Calls of one thread take effect in order. Blocks
        only while too many are under way."""
        return self._write_async(commands.put, self._put_arguments(key, value, ephemeral, ttl), timeout, 1)

    def compare_and_set_async(
        self,
        key: str,
        value: Value,
        *,
        revision: int,
        ephemeral: bool = False,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Future[int]:
        """As `compare_and_set`, with a future of the new revision."""
        arguments = (*self._put_arguments(key, value, ephemeral, ttl), _check_revision(revision))
        return self._write_async(commands.put, arguments, timeout, 1)

    def delete_async(self, key: str, *, revision: int | None = None, timeout: float | None = None) -> Future[bool]:
        """As `delete`, with a future of whether it was there."""
        return self._write_async(commands.delete, _delete_arguments(key, revision), timeout, 2)

    # -- watching

    def watch(
        self,
        prefix: str = "",
        *,
        from_revision: int | None = None,
        initial: bool = True,
        conflate: bool = True,
        timeout: float | None = None,
        callback: Callable[[Event], object] | None = None,
    ) -> Watch:
        """Watch the keys that start with `prefix`: an iterator of events in order of revision, without a gap.

        First what is there now, as puts (`initial=False`: nothing), then every change. `conflate`: a slow reader gets
        the latest change of each key, and a member that fell so far behind that it was given a snapshot tells the
        difference that made; False: all changes, or `Compacted` where that cannot be. `from_revision`:
        instead of what is there now, the changes since that revision, itself included; `Compacted` if they are no
        longer kept. `timeout`: the iteration ends after so many seconds without an event. `callback`: called with
        each event, on a thread for callbacks, one at a time; an exception is logged and the watch goes on.
        """
        loop = self._coordinator._running_loop()
        if from_revision is not None and (type(from_revision) is not int or from_revision < 1):
            raise ValueError(f"from_revision={from_revision!r}: expected a revision, 1 or more")
        watch = Watch(
            prefix,
            conflate=conflate,
            timeout=timeout,
            decode=_event,
            notify=None if callback is None else lambda: _deliver_soon(loop.dispatcher, watch, callback),
            on_close=loop.replica.watches.discard,
            wait_for=loop.wait_for,
        )
        # On the loop's thread, so that nothing can change between what is there and what is told next.
        begin = partial(_begin_watch, loop.replica, watch, from_revision, initial)
        try:
            loop.call(begin, self._coordinator.default_timeout)
        except BaseException:
            # It may yet begin, with nobody to read it.
            watch.close()
            raise
        return watch

    # -- within

    def _store(self) -> ConfigStore:
        loop = self._coordinator._running_loop()
        loop.check()
        return loop.replica.machine.store

    def _store_as_of(
        self, linearizable: bool, timeout: float | None, max_age: float | None, min_revision: int | None
    ) -> ConfigStore:
        loop = self._coordinator._running_loop()
        deadline = self._coordinator._deadline(loop, timeout)
        store = self._store()
        if linearizable:
            self._coordinator._confirm_reads(timeout)
        if min_revision is not None:
            _check_revision(min_revision)
            machine = loop.replica.machine
            if machine.applied_index < min_revision and not loop.when(
                lambda: machine.applied_index >= min_revision or None, deadline
            ):
                raise Unavailable(
                    f"revision {min_revision} had not arrived in time; the local copy is at {machine.applied_index}"
                )
        if max_age is not None and (age := self.age()) > max_age:
            raise TooStale(f"the local copy may be {age:.3f} s old, more than max_age={max_age:g}; nothing was read")
        return store

    def _put_arguments(
        self, key: str, value: Value, ephemeral: bool, ttl: float | None
    ) -> tuple[str, bytes, bool, int]:
        commands.check_key(key)
        if ttl is not None and not (isinstance(ttl, int | float) and 0 < ttl < 1e9):
            raise ValueError(f"ttl={ttl!r}: expected seconds, more than 0 and less than a billion, or None")
        encoded = encode_value(value, f'config["{key}"]')
        return key, encoded, bool(ephemeral), 0 if ttl is None else max(1, int(ttl * _NANOSECONDS))

    def _write(
        self, maker: Callable[..., bytes], arguments: tuple[Any, ...], timeout: float | None
    ) -> tuple[int, int, int]:
        """(OK, revision, keys changed)."""
        return self._checked(self._coordinator._propose(maker, arguments, timeout))

    def _write_async(
        self, maker: Callable[..., bytes], arguments: tuple[Any, ...], timeout: float | None, position: int
    ) -> Future[Any]:
        kind = bool if position == 2 else int
        return self._coordinator._propose_async(
            maker, arguments, timeout, lambda reply: kind(self._checked(reply)[position])
        )

    def _checked(self, reply: Any) -> tuple[int, int, int]:
        """The machine's reply if it is good news, else the exception it means."""
        status = reply[0]
        if status == replies.OK:
            return (status, reply[1], reply[2])
        if status == replies.CONFLICT:
            _, key, current = reply
            if current is None:
                raise Conflict(f"{key!r} is absent, not at the revision asked for; nothing was changed", entry=None)
            value, revision, created, version, session, _ = current
            found: Entry | None
            if value is not None:
                found = Entry(key, decode_value(value), revision, created, version, session)
            else:
                # Too large for the group to remember with the reply. Our own copy has it, or something newer.
                record = self._coordinator._running_loop().replica.machine.store.get(key)
                found = None if record is None else _entry(key, record)
            raise Conflict(
                f"{key!r} is at revision {revision}, not the one asked for; nothing was changed", entry=found
            )
        if status == replies.OWNED_BY_OTHER:
            raise Conflict(f"{reply[1]!r} is ephemeral and belongs to another live session; nothing was changed")
        if status == replies.QUOTA:
            raise QuotaExceeded(f"the write would exceed the limit {reply[1]}={reply[2]}; nothing was changed")
        if status == replies.HOLD_GONE:
            lost = LeadershipLost if reply[1].startswith("election:") else LockLost
            raise lost(f"the hold of {reply[1]!r} that the transaction requires has ended; nothing was changed")
        if status == replies.STALE:
            raise OutcomeUnknown("the group no longer remembers this request; read before repeating it")
        raise CoordError(f"the group refused the command: {reply[1:]}; nothing was changed")


class Transaction:
    """Changes that happen all at one revision, or not at all. A key at most once among the changes; at most 128.

    In a `with` statement it is committed at the end, unless the block raised. Conflict if a revision that was required
    is another; LockLost or LeadershipLost if a hold that was required has ended.
    """

    def __init__(self, config: ConfigMap, timeout: float | None) -> None:
        self._config = config
        self._timeout = timeout
        self._compares: list[Any] = []
        self._operations: dict[str, Any] = {}
        #: Once committed, the revision at which everything happened.
        self.revision: int | None = None
        self._done = False

    def require_revision(self, key: str, revision: int) -> None:
        """Only if `key` is at `revision`; `coord.ABSENT`: only if it is absent."""
        self._check_open()
        commands.check_key(key)
        self._check_room()
        self._compares.append(commands.compare_revision(key, _check_revision(revision)))

    def require(self, hold: Hold) -> None:
        """Only while `hold`, a lock's or a leadership, stands: the group itself decides, in the moment of the change.
        Then no holder that was paused or cut off can change anything any more. LockLost, or LeadershipLost, now or at
        the commit, if it does not."""
        self._check_open()
        self._check_room()
        self._compares.append(hold._compare())

    def put(self, key: str, value: Value, *, ephemeral: bool = False, ttl: float | None = None) -> None:
        """Set `key`, as `ConfigMap.put`."""
        arguments = self._config._put_arguments(key, value, ephemeral, ttl)
        self._add(key, commands.put_operation(*arguments))

    def delete(self, key: str) -> None:
        """Delete `key`, if it is there."""
        commands.check_key(key)
        self._add(key, commands.delete_operation(key))

    def commit(self) -> int:
        """Have it happen; returns the revision. Errors as for `ConfigMap.put`, and Conflict; LockLost or LeadershipLost
        if a hold that was required has ended."""
        self._check_open()
        self._done = True
        arguments = (tuple(self._compares), tuple(self._operations.values()))
        self.revision = self._config._write(commands.transaction, arguments, self._timeout)[1]
        return self.revision

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._done:
            self.commit()

    def _add(self, key: str, operation: Any) -> None:
        self._check_open()
        if key in self._operations:
            raise ValueError(f"transaction changes {key!r} twice; each key at most once")
        if len(self._operations) >= commands.OPERATIONS_MAX:
            raise ValueError(f"a transaction has at most {commands.OPERATIONS_MAX} changes; use several")
        self._operations[key] = operation

    def _check_room(self) -> None:
        if len(self._compares) >= commands.COMPARES_MAX:
            raise ValueError(f"a transaction has at most {commands.COMPARES_MAX} requirements")

    def _check_open(self) -> None:
        if self._done:
            raise RuntimeError("this transaction has been committed; begin another")


def _begin_watch(replica: Replica, watch: Watch, from_revision: int | None, initial: bool) -> None:
    """Tell what there is to tell already, and then all that comes."""
    machine, prefix = replica.machine, watch.prefix
    if from_revision is not None:
        watch.begin_at(from_revision)
        changes = machine.changes_since(from_revision - 1)
        if changes is None:
            raise Compacted(
                f"changes since revision {from_revision} are no longer kept, only those after {machine.compacted}; "
                "read the present state, then watch from its revision",
                revision=machine.compacted,
            )
        watch.put([change for change in changes if change.key.startswith(prefix)])
    elif initial:
        records = machine.store.range(prefix)[1]
        found = [Change(PUT, key, record, record.revision, False) for key, record in records]
        watch.put(sorted(found, key=lambda change: change.revision), bounded=False)
    replica.watches.add(watch)


def _deliver_soon(dispatcher: Dispatcher, watch: Watch, callback: Callable[[Event], object]) -> None:
    dispatcher.run(lambda: _deliver(dispatcher, watch, callback))


def _deliver(dispatcher: Dispatcher, watch: Watch, callback: Callable[[Event], object]) -> None:
    """Give a callback what is there, on the thread for callbacks; after so many events others have their turn."""
    for _ in range(_EVENTS_PER_TASK):
        try:
            event = watch.take()
        except ClosedError:
            watch.close()
            return
        except CoordError as error:
            _log.warning("the watch of %r has ended: %s", watch.prefix, error)
            watch.close()
            return
        if event is None:
            return
        try:
            callback(event)
        except KeyboardInterrupt:
            raise
        except BaseException:
            _log.exception("the callback of the watch of %r raised; the watch goes on", watch.prefix)
    _deliver_soon(dispatcher, watch, callback)


def _delete_arguments(key: str, revision: int | None) -> tuple[Any, ...]:
    commands.check_key(key)
    return (key,) if revision is None else (key, _check_revision(revision))


def _check_revision(revision: int) -> int:
    if type(revision) is not int or not 0 <= revision <= commands.SIGNED_MAX:
        raise ValueError(f"revision={revision!r}: expected a revision, or coord.ABSENT")
    return revision


def _entry(key: str, record: Record) -> Entry:
    return Entry(key, decode_value(record.value), record.revision, record.created, record.version, record.session)


def _event(change: Change) -> Event:
    value = None if change.record is None else decode_value(change.record.value)
    return Event(change.kind, change.key, value, change.revision)
