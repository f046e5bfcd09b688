"""Recipes: what is often built on the config map. Party, Barrier, DoubleBarrier, Counter.

Their whole state is in keys under "coord/". What has to last longer than a call, such as being in a party, is the duty
of a keeper: it looks at this member's copy after each change, on the loop's thread, and does the next thing that
follows, so no recipe has a thread of its own, asks again and again, or depends on what a caller's thread is up to.

What must not live here: what the config map itself does (`coord.config_map`), how a session lives (`coord.session`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from coord.errors import AlreadyHeld, ConfigurationError, Conflict, CoordError, NotHeld, OutcomeUnknown, Unavailable
from coord.lock import check_name
from coord.logs import Log
from coord.loop import fresh
from coord.machine import commands, replies
from coord.machine.values import Value, decode_value, encode_value
from coord.proposals import Maker
from coord.watch import Event, Watch

if TYPE_CHECKING:
    from coord.coordinator import Coordinator
    from coord.loop import Loop
    from coord.machine.config_store import ConfigStore
    from coord.replica import Replica

_log = Log("coord.recipes")

#: Bytes of a recipe's name in UTF-8.
NAME_BYTES_MAX = 200
#: Participants of a double barrier: one transaction looks at all of them, and at the gate.
COUNT_MAX = commands.COMPARES_MAX - 1
INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 63) - 1

#: How long a keeper that was refused, for a full quota say, waits before it tries again; in seconds.
_REST_SECONDS = 1.0
_GATE = "gate"

#: What to give to `Replica.submit`.
_Command = tuple[Maker, tuple[Any, ...]]


class _Keeper:
    """Does what follows from what is wanted and what is there, on the loop's thread, one command after the other. Each
    is waited for however long it takes, so nothing that a caller gave up can come late."""

    def __init__(self, coordinator: Coordinator, prefix: str) -> None:
        self._coordinator = coordinator
        self._prefix = prefix
        #: Guards what is wanted, and these two: why it cannot be had, and why this member has stopped.
        self._condition = threading.Condition()
        self._refusal: CoordError | None = None
        self._ended: CoordError | None = None
        # The loop's thread alone touches these.
        self._watch: Watch | None = None
        self._busy = self._resting = False
        #: Revisions at which what was planned took effect last.
        self._written: deque[int] = deque(maxlen=16)
        #: Nothing is wanted, so nothing that may happen matters.
        self._idle = True

    def _plan(self, replica: Replica) -> _Command | None:
        """The next command; None: nothing to do as things stand. Holds the condition, and sets `_idle`."""
        raise AssertionError("a keeper says what")

    def _wake(self, loop: Loop) -> None:
        """What is wanted has changed."""
        loop.post(partial(self._begin, loop))

    def _wait(self, loop: Loop, condition: Callable[[], bool], deadline: float) -> bool:
        """False when it does not hold by `deadline`. Raises why this member has stopped."""
        with self._condition:
            left = _seconds_left(loop, deadline)
            loop.wait_for(self._condition, lambda: condition() or self._ended is not None, left)
            if not condition() and self._ended is not None:
                raise fresh(self._ended)
            return condition()

    # On the loop's thread.

    def _begin(self, loop: Loop) -> None:
        if self._watch is None:
            self._watch = watch = Watch(
                self._prefix,
                conflate=True,
                timeout=None,
                decode=lambda change: Event(change.kind, change.key, None, change.revision),
                notify=lambda: self._changed(loop, watch),
                on_close=loop.replica.watches.discard,
            )
            loop.replica.watches.add(watch)
        self._resting = False
        self._advance(loop)

    def _changed(self, loop: Loop, watch: Watch) -> None:
        try:
            while watch.take() is not None:
                pass
        except CoordError as error:
            with self._condition:
                self._ended = error
                self._condition.notify_all()
        else:
            # Not now: this step of the state is not over.
            loop.post(partial(self._advance, loop))

    def _advance(self, loop: Loop) -> None:
        replica = loop.replica
        if self._busy or self._resting or replica.failure is not None or replica.own.leaving:
            return
        with self._condition:
            command = self._plan(replica)
            self._condition.notify_all()
        if command is None:
            if self._idle and self._watch is not None:
                self._watch.close()
                self._watch = None
            return
        try:
            self._busy = replica.submit(*command, partial(self._answered, loop))
        except CoordError as error:
            self._refuse(loop, error)
            return
        if not self._busy:
            self._rest(loop)

    def _answered(self, loop: Loop, reply: Any) -> None:
        self._busy = False
        try:
            if isinstance(reply, CoordError):
                raise reply
            if reply[0] != replies.CONFLICT:
                self._written.append(self._coordinator.config._checked(reply)[1])
        except CoordError as error:
            if not isinstance(error, OutcomeUnknown):
                self._refuse(loop, error)
                return
        # Also when others were first, or nobody knows what has happened: what is there now shows what follows.
        self._advance(loop)

    def _refuse(self, loop: Loop, error: CoordError) -> None:
        if loop.replica.failure is None:
            _log.warning("%s: %s cannot be changed now: %s", loop.name, self._prefix, error)
        with self._condition:
            self._refusal = error
            self._condition.notify_all()
        self._rest(loop)

    def _rest(self, loop: Loop) -> None:
        self._resting = True
        loop.later(_REST_SECONDS, partial(self._begin, loop))


def _deadline(coordinator: Coordinator, loop: Loop, timeout: float | None) -> float:
    """By the loop's clock; -1: never."""
    return float("inf") if timeout == -1 else coordinator._deadline(loop, timeout)


def _seconds_left(loop: Loop, deadline: float) -> float | None:
    """For what waits for ever when told None."""
    return None if deadline == float("inf") else min(max(0.0, deadline - loop.clock()), threading.TIMEOUT_MAX)


class _Membership(_Keeper):
    """Of this coordinator in one party, for all its handles."""

    def __init__(self, coordinator: Coordinator, key: str) -> None:
        super().__init__(coordinator, key)
        self._key = key
        #: The handles that have joined, in that order, and their values.
        self.claims: dict[Party, bytes] = {}
        #: What is there is what is wanted.
        self._settled = False

    def join(self, loop: Loop, party: Party, value: bytes, deadline: float) -> bool:
        """False: not in time, and it is withdrawn."""
        is_new, joined = party not in self.claims, False
        try:
            with self._condition:
                self.claims.setdefault(party, value)
                self._settled, self._refusal = False, None
            self._wake(loop)
            self._wait(loop, lambda: self._settled or self._refusal is not None, deadline)
            joined, refusal = self._settled and party in self.claims, self._refusal
            if refusal is not None and not joined:
                raise fresh(refusal)
            return joined
        finally:
            if is_new and not joined:
                self._drop(loop, party)

    def leave(self, loop: Loop, party: Party, deadline: float) -> bool:
        """False: not in time, and it will be."""
        self._drop(loop, party)
        return self._wait(loop, lambda: self._settled or bool(self.claims), deadline)

    def _drop(self, loop: Loop, party: Party) -> None:
        with self._condition:
            if self.claims.pop(party, None) is None:
                return
            self._settled = False
        self._wake(loop)

    def _plan(self, replica: Replica) -> _Command | None:
        record = replica.machine.store.get(self._key)
        # One of an older session is not ours: it is about to go.
        present = record.value if record is not None and record.session == replica.numbering.session else None
        wanted = list(self.claims.values())[-1] if self.claims else None
        self._idle, self._settled = wanted is None, present == wanted
        if self._settled:
            return None
        if wanted is None:
            return commands.delete, (self._key,)
        return commands.put, (self._key, wanted, True)


class Party:
    """Who is here: a coordinator that has joined is a member until it leaves, stops, or loses its session; once it has
    a session again it joins again by itself.

    Members are called as their coordinators are, and each has a value, such as an address. A coordinator is one member,
    however many handles join: until the last of them has left, with the value of the one that joined last. In a `with`
    statement, it joins and leaves.

    What is read is this member's own copy, see `ConfigMap`: somebody who died is there until the session has ended, and
    to a member that is cut off nobody comes or goes.
    """

    def __init__(self, coordinator: Coordinator, name: str, value: Value = None) -> None:
        """value: anything the config map can hold. ConfigurationError for a name that is not 1 to 200 bytes in UTF-8.
        Asks nothing of the group."""
        check_name(name, "party", NAME_BYTES_MAX)
        self.name = name
        self._coordinator = coordinator
        self._prefix = f"coord/party/{name}/"
        self._value = encode_value(value)

    def join(self, timeout: float | None = None) -> None:
        """Become a member; on return it is one, in this member's copy and in all that are as new.

        OutcomeUnknown when that took too long: it is withdrawn, but others may see this member until the group has
        heard of that. QuotaExceeded; Conflict, if the key is somebody else's: by this handle, it is no member.
        """
        loop = self._coordinator._running_loop()
        loop.check()
        deadline = self._coordinator._deadline(loop, timeout)
        if not self._membership().join(loop, self, self._value, deadline):
            raise self._late(loop, "joined in time; it is withdrawn, but may be seen until the group has heard of that")

    def leave(self, timeout: float | None = None) -> None:
        """Be a member no longer, unless by another handle. Nothing if this one has not joined, or the coordinator has
        stopped. OutcomeUnknown when it took too long: this member will leave as soon as the group can be reached."""
        loop = self._coordinator._running_loop()
        deadline = self._coordinator._deadline(loop, timeout)
        try:
            left = not self.joined or self._membership().leave(loop, self, deadline)
        except CoordError:
            # Why it has stopped: its session has ended, or will.
            return
        if not left:
            raise self._late(loop, "left in time; it will as soon as the group can be reached")

    @property
    def joined(self) -> bool:
        """Whether this handle has joined and not left. True while the session is lost: it joins again."""
        return self in self._membership().claims

    def members(self, *, linearizable: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """The members' values by name, in order of the names, all at one revision. `linearizable`: as new as anything
        that finished before this call began; may block, Unavailable without a quorum."""
        if linearizable:
            self._coordinator._confirm_reads(timeout)
        return {member: decode_value(value) for member, value in self._present(self._coordinator.config._store())}

    def __contains__(self, member: object) -> bool:
        return member in self.members()

    def __iter__(self) -> Iterator[str]:
        """The members' names, in order."""
        return iter(self.members())

    def __len__(self) -> int:
        return len(self.members())

    def watch(self, callback: Callable[[dict[str, Any]], object]) -> Watch:
        """Have `callback(members)` called, now and whenever they have changed, on the thread for callbacks. Changes
        that come faster than it returns are told as one. An exception is logged, and it goes on. `close` ends it."""
        loop = self._coordinator._running_loop()
        told: list[list[tuple[str, bytes]]] = []

        def tell() -> None:
            present = self._present(loop.replica.machine.store)
            if told[-1:] != [present]:
                told[:] = [present]
                callback({member: decode_value(value) for member, value in present})

        watch = self._coordinator.config.watch(self._prefix, initial=False, callback=lambda event: tell())
        loop.dispatcher.run(lambda: None if watch.closed else tell())
        return watch

    def __enter__(self) -> Party:
        self.join()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.leave()
        except OutcomeUnknown:
            if exception[0] is None:
                raise

    def _late(self, loop: Loop, what: str) -> OutcomeUnknown:
        text = f"{self._coordinator.name!r} and party {self.name!r}: it has not {what}"
        return OutcomeUnknown(text, leader=loop.replica.core.leader)

    def _membership(self) -> _Membership:
        # Names of parties may hold slashes, so the last part must not.
        key = self._prefix + quote(self._coordinator.name, safe="")
        memberships: dict[str, _Membership] = self._coordinator._memberships
        return memberships.setdefault(key, _Membership(self._coordinator, key))

    def _present(self, store: ConfigStore) -> list[tuple[str, bytes]]:
        parts = [(key[len(self._prefix) :], record) for key, record in store.range(self._prefix)[1]]
        # A slash: of a party whose name begins like this one's. No session: somebody wrote it by hand.
        return sorted((unquote(part), record.value) for part, record in parts if "/" not in part and record.session)


class Barrier:
    """Where all wait until somebody lets them go on. It stands until it is removed, whatever becomes of its maker."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        """ConfigurationError for a name that is not 1 to 200 bytes in UTF-8. Asks nothing of the group."""
        check_name(name, "barrier", NAME_BYTES_MAX)
        self.name = name
        self._coordinator = coordinator
        self._key = f"coord/barrier/{name}"

    def create(self, timeout: float | None = None) -> bool:
        """Put it up; False if it was up already. Errors as for `ConfigMap.put`; harmless to repeat."""
        config, maker = self._coordinator.config, self._coordinator.name
        try:
            return config.compare_and_set(self._key, maker, revision=commands.ABSENT, timeout=timeout) > 0
        except Conflict:
            return False

    def remove(self, timeout: float | None = None) -> bool:
        """Let all go on who wait; False if it was not up. Errors as for `ConfigMap.delete`; harmless to repeat."""
        return self._coordinator.config.delete(self._key, timeout=timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is not up; True at once if it is not. -1: for ever. False when `timeout` seconds did not bring
        that, be it that nobody removed it or that the group cannot be asked."""
        config, loop = self._coordinator.config, self._coordinator._running_loop()
        deadline = _deadline(self._coordinator, loop, timeout)
        try:
            # Who was told that it is up must not find it down because this member has not heard of it yet.
            self._coordinator._confirm_reads(max(0.0, deadline - loop.clock()))
            while True:
                with config.watch(self._key, initial=False, timeout=_seconds_left(loop, deadline)) as watch:
                    if self._key not in config:
                        return True
                    if next(watch, None) is None:
                        return False
        except Unavailable:
            return False


_OUT, _ENTERING, _WITHDRAWING, _INSIDE, _LEAVING = "out", "entering", "withdrawing", "inside", "leaving"
#: Seats by name: the revision at which each was taken, and how many it waits for.
_Seats = dict[str, tuple[int, int]]


class DoubleBarrier(_Keeper):
    """Where `count` participants begin together, and end together. A participant is a handle: each takes one, and may
    use it again and again, for one round after the other.

    A round begins when `count` are there that live, all in one moment: then it has begun for every one of them, and for
    nobody else, who waits for the next round, which begins no sooner than everybody of this one has left. Whoever dies,
    or loses the session, before that moment was never there, and another may come in its place (a handle that waits
    comes again by itself); whoever does so later is let through with the others, and to them it has left.
    """

    # A handle's seat is a key that goes with the session. One more, the gate, names the seats it has let through last,
    # by revision: one that was lost and taken again is another. Writing it requires all of them to be taken just then.

    def __init__(self, coordinator: Coordinator, name: str, count: int) -> None:
        """ConfigurationError for a name that is not 1 to 200 bytes in UTF-8, or a count that is not 1 to 127. Asks
        nothing of the group."""
        check_name(name, "double barrier", NAME_BYTES_MAX)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= COUNT_MAX:
            raise ConfigurationError(f"count={count!r}: expected a whole number from 1 to {COUNT_MAX}")
        super().__init__(coordinator, f"coord/double-barrier/{name}/")
        self.name = name
        self.count = count
        number = next(coordinator._seats)
        self._seat = f"{quote(coordinator.name, safe='')}:{number}"
        self._mode = _OUT
        #: The seats that were let through together with this one; once it has left, those that have not.
        self._round: set[tuple[str, int]] = set()

    def enter(self, timeout: float | None = None) -> bool:
        """Wait until `count` participants have come; True: the round has begun. -1: for ever.

        False: it did not within `timeout` seconds; then it is certain that nobody began counting on this one. To be
        certain the group has to answer once more after the timeout, and if it does not within `default_timeout`,
        OutcomeUnknown: others may have begun, and to them this one has left.

        AlreadyHeld if this handle is inside, or on its way in; ConfigurationError if others, who came before, go by
        another count; QuotaExceeded. Whatever it raises, this one is not inside, unless it was already.
        """
        loop = self._coordinator._running_loop()
        loop.check()
        deadline = _deadline(self._coordinator, loop, timeout)
        try:
            self._come(loop)
            self._wait(loop, lambda: self._mode == _INSIDE or self._refusal is not None, deadline)
            # Whether others began counting on this one can only be known together with the group.
            self._set_mode(loop, _WITHDRAWING, unless=(_INSIDE,))
            until = loop.clock() + self._coordinator.default_timeout
            known = self._wait(loop, lambda: self._mode in (_INSIDE, _OUT), until)
            if self._mode == _INSIDE:
                return True
            if self._refusal is not None:
                raise fresh(self._refusal)
            if not known:
                text = f"whether double barrier {self.name!r} let this one in is not known; if so, it has left again"
                raise OutcomeUnknown(text, leader=loop.replica.core.leader)
            return False
        except BaseException as error:
            if not isinstance(error, AlreadyHeld):
                self._set_mode(loop, _LEAVING, unless=(_OUT,))
            raise

    def leave(self, timeout: float | None = None) -> bool:
        """Leave, and wait until all of this round have left or died; True: they have. -1: for ever. False: they did not
        within `timeout` seconds; this one has left all the same, or will as soon as the group can be reached.

        NotHeld if this handle is not inside.
        """
        loop = self._coordinator._running_loop()
        loop.check()
        deadline = _deadline(self._coordinator, loop, timeout)
        self._go(loop)
        try:
            return self._wait(loop, lambda: self._mode == _OUT and not self._round, deadline)
        finally:
            with self._condition:
                self._round = set()
            self._wake(loop)

    def __repr__(self) -> str:
        return f"<coord.DoubleBarrier {self.name!r} for {self.count}, {self._mode}>"

    def _come(self, loop: Loop) -> None:
        with self._condition:
            if self._mode not in (_OUT, _LEAVING):
                raise AlreadyHeld(f"this handle on double barrier {self.name!r} is {self._mode} already; use one each")
            self._mode, self._round, self._refusal = _ENTERING, set(), None
            self._written.clear()
        self._wake(loop)

    def _go(self, loop: Loop) -> None:
        with self._condition:
            if self._mode != _INSIDE:
                raise NotHeld(f"this handle on double barrier {self.name!r} is {self._mode}, not inside")
            self._mode = _LEAVING
        self._wake(loop)

    def _set_mode(self, loop: Loop, mode: str, *, unless: tuple[str, ...]) -> None:
        with self._condition:
            if self._mode not in unless:
                self._mode = mode
        self._wake(loop)

    # On the loop's thread, holding the condition.

    def _plan(self, replica: Replica) -> _Command | None:
        self._idle = False
        seats, gate, passed = self._look(replica.machine.store)
        key = self._prefix + self._seat
        record = replica.machine.store.get(key)
        # One of an older session is about to go.
        seated = record is not None and record.session == replica.numbering.session
        let_through = any((self._seat, revision) in passed for revision in self._written)
        if let_through and self._mode in (_ENTERING, _WITHDRAWING):
            self._mode, self._round = _INSIDE, passed
        if self._mode == _ENTERING:
            if not seated or seats[self._seat][0] not in self._written:
                return commands.put, (key, encode_value(self.count), True)
            return self._plan_gate(seats, gate, passed)
        if self._mode in (_WITHDRAWING, _LEAVING):
            if seated:
                # Who withdraws does so only unless the gate opens first.
                unless = (commands.compare_revision(self._prefix + _GATE, gate),) if self._mode == _WITHDRAWING else ()
                return commands.transaction, (unless, (commands.delete_operation(key),))
            self._mode = _OUT
        if self._mode == _OUT:
            self._round &= {(seat, revision) for seat, (revision, _) in seats.items()}
        self._idle = self._mode == _OUT and not self._round
        return None

    def _plan_gate(self, seats: _Seats, gate: int, passed: set[tuple[str, int]]) -> _Command | None:
        """Open it, if nobody is inside and enough wait, this one among the first."""
        mine = seats[self._seat][0]
        other = [count for revision, count in seats.values() if revision < mine and count != self.count]
        if other:
            self._refusal = ConfigurationError(
                f"count={self.count}, but double barrier {self.name!r} is in use with count={other[0]}; use the same"
            )
            return None
        taken = {(seat, revision) for seat, (revision, count) in seats.items() if count == self.count}
        first = sorted(taken, key=lambda seat: seat[1])[: self.count]
        if taken & passed or len(first) < self.count or (self._seat, mine) not in first:
            return None
        compares = [commands.compare_revision(self._prefix + seat, revision) for seat, revision in first]
        compares.append(commands.compare_revision(self._prefix + _GATE, gate))
        value = encode_value([list(seat) for seat in first])
        return commands.transaction, (tuple(compares), (commands.put_operation(self._prefix + _GATE, value),))

    def _look(self, store: ConfigStore) -> tuple[_Seats, int, set[tuple[str, int]]]:
        """The seats; the revision of the gate, and the seats it has let through last."""
        seats: _Seats = {}
        gate, passed = commands.ABSENT, set()
        for key, record in store.range(self._prefix)[1]:
            part, value = key[len(self._prefix) :], cast("Any", decode_value(record.value))
            if part == _GATE:
                # A list of pairs, unless somebody has set it by hand.
                pairs = [tuple(pair) for pair in value if type(pair) is list] if type(value) is list else []
                gate, passed = record.revision, {pair for pair in pairs if [type(x) for x in pair] == [str, int]}
            elif record.session and "/" not in part:
                seats[part] = record.revision, value
        return seats, gate, passed


class Counter:
    """A whole number of 64 bits that all may add to: `counter += 1`, and nothing is lost or counted twice."""

    def __init__(self, coordinator: Coordinator, name: str, default: int = 0) -> None:
        """default: what it is before anybody has added to it; all should say the same. ConfigurationError for one that
        is no whole number of 64 bits, or a name that is not 1 to 200 bytes in UTF-8. Asks nothing of the group."""
        check_name(name, "counter", NAME_BYTES_MAX)
        if type(default) is not int or not INTEGER_MIN <= default <= INTEGER_MAX:
            raise ConfigurationError(f"default={default!r}: expected a whole number of 64 bits, with its sign")
        self.name = name
        self.default = default
        self._coordinator = coordinator
        self._key = f"coord/counter/{name}"

    @property
    def value(self) -> int:
        """What it is as far as this member knows: everything that was added through it, and maybe not yet all that
        others have. Never blocks."""
        return self._checked(self._coordinator.config.get(self._key, self.default))

    def get(self, *, timeout: float | None = None) -> int:
        """What it is, with all that was added before this call began; may block, Unavailable without a quorum."""
        return self._checked(self._coordinator.config.get(self._key, self.default, linearizable=True, timeout=timeout))

    def add(self, n: int = 1, *, timeout: float | None = None) -> int:
        """Add `n`, which may be negative; returns what it came to, which no other call of anybody's came to in between.

        Unavailable: nothing was added, and it may be repeated. OutcomeUnknown: it was added once, or not at all, and
        may yet be; it is never tried again by itself, and who repeats it may count twice. OverflowError: it would take
        more than 64 bits, so nothing was added. TypeError for what is no int, or if the key holds something else.
        """
        if type(n) is not int:
            raise TypeError(f"a counter is added whole numbers to, not {n!r}")
        result: int = self._coordinator.config.update(
            self._key, lambda value: self._sum(value, n), default=self.default, timeout=timeout
        )
        return result

    def __iadd__(self, n: int) -> Counter:
        self.add(n)
        return self

    def __isub__(self, n: int) -> Counter:
        self.add(-n)
        return self

    def _sum(self, value: Any, n: int) -> int:
        total = self._checked(value) + n
        if not INTEGER_MIN <= total <= INTEGER_MAX:
            raise OverflowError(f"counter {self.name!r} would be {total}, which takes more than 64 bits; nothing added")
        return total

    def _checked(self, value: Any) -> int:
        if type(value) is not int:
            raise TypeError(f"counter {self.name!r} is no number: somebody has set {self._key!r} to {value!r}")
        return value
