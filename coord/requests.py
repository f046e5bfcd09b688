"""What this member asks of locks and what it holds, from the asking to the end of it: all on the loop's thread.

A request is one acquire. Whether it waits or holds is looked up in the replicated table, never remembered from a reply:
a grant may come in the same turn as the answer that it has to wait. What goes out for it goes through the numbering, so
it is done exactly once, whoever leads; and when a session ends, whatever still waits is asked again in the next one.
Nothing is ever left behind: who gives up says so, and the cancelling goes on until it is done or the session is over.

What must not live here: waiting and clocks (`coord.lock`), what a command means (`coord.machine`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from coord.errors import ConfigurationError, CoordError, OutcomeUnknown, QueueFull, QuotaExceeded
from coord.lease import LAPSED, Lease
from coord.machine import commands, replies
from coord.machine.lock_table import LockEvent

if TYPE_CHECKING:
    from coord.proposals import Maker
    from coord.replica import Replica

#: Where a request is on its way. LEAVING: its release, or its cancelling, is under way.
NEW, ASKED, WAITING, HELD, LEAVING, OVER = "new", "asked", "waiting", "held", "leaving", "over"
#: How it came out.
GRANTED, DENIED, REFUSED = "granted", "denied", "refused"

#: Told with a reply of the machine, or with an exception.
Done = Callable[[Any], None]

_NOT_HELD: replies.Reply = (replies.NOT_HELD,)


class Request:
    """One acquire, from the call to its end. Its fields belong to the loop's thread until `notify` is called.

    `claim` decides a race that must have one winner: the loop takes it before it tells how the request came out, the
    caller takes it when it gives up. So a caller that gives up is never told, and one that was told may rely on it.
    """

    __slots__ = (
        "claim",
        "delay",
        "done",
        "error",
        "holder",
        "id",
        "lease",
        "lost",
        "name",
        "notify",
        "outcome",
        "permits",
        "priority",
        "reclaim",
        "session",
        "shared",
        "slot",
        "state",
        "told",
        "token",
        "value",
        "wait",
    )

    def __init__(
        self,
        name: str,
        *,
        shared: bool = False,
        permits: int = 1,
        priority: int = 0,
        wait: bool = True,
        delay: int = 0,
        reclaim: bool = False,
        value: bytes = b"",
        notify: Callable[[Request], None],
        lost: Callable[[Request, str], None],
    ) -> None:
        """The arguments are those of `commands.acquire`; `delay` in nanoseconds.

        notify: called once, on the loop's thread, when `outcome` is known.
        lost: called once, on the loop's thread, when what was granted and told ends by anything but its own release;
            with the reason, one of `Lease.ended`, or "gone".
        """
        self.name = name
        self.shared = shared
        self.permits = permits
        self.priority = priority
        self.wait = wait
        self.delay = delay
        self.reclaim = reclaim
        self.value = value
        self.notify = notify
        self.lost = lost
        self.claim = [True]
        self.state = NEW
        #: Its name in the group, (session, id), once it was given a number; 0 before.
        self.session = 0
        self.id = 0
        #: "granted", "denied", or "refused", with `error`; "" until `notify` is called.
        self.outcome = ""
        self.error: CoordError | None = None
        #: Who has the lock instead, if denied; "" when that is nobody.
        self.holder = ""
        self.token = 0
        self.slot = 0
        self.lease: Lease | None = None
        #: The caller was told of the outcome.
        self.told = False
        #: Who waits for the end of its release.
        self.done: Done | None = None

    def make(self, session: int, sequence: int, low_water: int) -> bytes:
        """The command, as it is numbered; again if the session is renewed before it was answered."""
        self.session, self.id = session, sequence
        return commands.acquire(
            session,
            sequence,
            low_water,
            self.name,
            self.shared,
            self.permits,
            self.priority,
            self.wait,
            self.delay,
            self.reclaim,
            self.value,
        )

    def give_up(self) -> bool:
        """The caller waits no longer; from any thread. True: it will not be told, and owes `Requests.abandon` a call.
        False: it was told already, or is being told now, and every field is set."""
        try:
            self.claim.pop()
        except IndexError:
            return False
        return True


class Requests:
    """Those of one member.

    Invariant: `_named` has, by their names in the group, exactly the requests that are WAITING or HELD; each of them is
    of the present session.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        #: All that are not over, in the order in which they were first asked.
        self._live: dict[Request, None] = {}
        self._named: dict[tuple[int, int], Request] = {}
        #: What there was no room for yet: (request, maker, arguments, who is told the reply).
        self._backlog: deque[tuple[Request, Maker, tuple[Any, ...], Done]] = deque()
        #: By the lock's name: whom to call when anything has happened to it, whoever asked for it.
        self._observers: dict[str, list[Callable[[], object]]] = {}
        #: Why this member has stopped for good, or None.
        self._error: CoordError | None = None

    def __len__(self) -> int:
        """How many are not over."""
        return len(self._live)

    # ----------------------------------------------------------------------------------------------------------------
    # What callers want. On the loop's thread, through `Loop.post`.

    def ask(self, request: Request) -> None:
        """Put it on its way."""
        if request.state != NEW:
            return
        if self._error is not None:
            self._refuse(request, self._error)
            return
        self._live[request] = None
        self._acquire(request)

    def abandon(self, request: Request) -> None:
        """Nobody wants it any more, whatever has become of it: nothing is left behind. Harmless to repeat."""
        if request.state in (LEAVING, OVER):
            return
        if request.state == NEW or not request.id:
            # Not asked yet, or not in the present session; or there was no room for it.
            self._over(request)
        elif request.state == ASKED and self._withdrawn(request):
            self._over(request)
        else:
            self._cancel(request)

    def release(self, request: Request, done: Done, successor: str = "") -> None:
        """Give up what was granted. `done` is told (OK, ...), or (NOT_HELD,) when the session's end came first, or an
        exception. `successor`: the member whose first waiter is to be next."""
        if request.state != HELD:
            done(_NOT_HELD if self._error is None else self._error)
            return
        self._leave(request)
        request.done = done
        arguments = (request.name, request.id, request.token, successor)
        self._submit(request, commands.release, arguments, partial(self._released, request))

    def downgrade(self, request: Request, done: Done) -> None:
        """From exclusive to shared. `done` is told (GRANTED, token, slot), (NOT_HELD,), or an exception."""
        self._while_held(request, commands.downgrade, (request.name, request.id, request.token), done)

    def set_value(self, request: Request, value: bytes, done: Done) -> None:
        """Replace the value kept with the hold. `done` is told (OK, ...), (NOT_HELD,), or an exception."""
        self._while_held(request, commands.set_value, (request.name, request.id, request.token, value), done)

    def _while_held(self, request: Request, maker: Maker, arguments: tuple[Any, ...], done: Done) -> None:
        if request.state != HELD:
            done(_NOT_HELD if self._error is None else self._error)
        else:
            self._submit(request, maker, arguments, done)

    def observe(self, name: str, observer: Callable[[], object]) -> None:
        """Have `observer` called, on the loop's thread, whenever anything has happened to the lock `name`."""
        self._observers.setdefault(name, []).append(observer)

    def unobserve(self, name: str, observer: Callable[[], object]) -> None:
        """No more of that. Harmless to repeat."""
        observers = self._observers.get(name, [])
        if observer in observers:
            observers.remove(observer)
            if not observers:
                del self._observers[name]

    # ----------------------------------------------------------------------------------------------------------------
    # What happens to this member. On the loop's thread, called by the replica.

    def publish(self, events: Iterable[LockEvent]) -> None:
        """After each step of the replicated state: what happened to whom in the lock table."""
        if self._backlog:
            self._drain()
        named, observers = self._named, self._observers
        observed: dict[str, None] = {}
        for event in events:
            request = named.get((event.session, event.request))
            if request is not None:
                self._look(request, self._tell_later)
            if event.name in observers:
                observed[event.name] = None
        if observed:
            # After whoever was granted is told: who sees that this process leads finds it so.
            self._replica.defer(self._tell_observers, observed)

    def _tell_observers(self, names: Iterable[str]) -> None:
        for name in names:
            for observer in list(self._observers.get(name, ())):
                observer()

    def jumped(self) -> None:
        """A snapshot skipped entries: look again at everything."""
        for request in list(self._named.values()):
            # The end of a session is told by `session_over`, which knows why.
            if self._replica.machine.has_session(request.session):
                self._look(request, self._tell_later)
        self._tell_observers(list(self._observers))

    def session_over(self, lease: Lease) -> None:
        """What was held in that session is lost, and what waited is asked again in the next.

        An acquire that is not answered yet needs nothing: it is numbered anew and goes again, or its answer, or that
        there will be none, comes at the end of this turn.
        """
        for request in list(self._live):
            if request.session != lease.session:
                continue
            if request.state == HELD and request.told:
                self._lose(request, lease.ended)
            elif request.state in (WAITING, HELD):
                self._forget(request)
                self._replica.defer(self._ask_again, request)
            elif request.state == LEAVING:
                # The end of the session released it, or took it from the queue.
                done = self._over(request)
                if done is not None:
                    self._replica.defer(done, _NOT_HELD)

    def lease_state(self, state: str) -> None:
        """The lease stands again, or stands no more; or there is a new one."""
        for request in list(self._named.values()):
            lease = request.lease
            if request.state != HELD or lease is None:
                continue
            if not request.told:
                self._tell_later(request)
            elif lease.ended:
                # The leader has said so; the log will, and may take its time.
                self._lose(request, lease.ended)

    def housekeep(self) -> None:
        """Once a heartbeat."""
        self._drain()
        for request in self._named.values():
            if request.state == HELD and not request.told:
                self._tell_later(request)

    def end(self, error: CoordError) -> None:
        """This member stops for good. Releases and cancellings that are under way are answered like all proposals."""
        self._error = error
        for request in list(self._live):
            if request.state == HELD and request.told:
                ended = request.lease.ended if request.lease is not None else ""
                self._lose(request, ended or "stopped")
            elif request.state != LEAVING:
                self._over(request)
                self._replica.defer(self._refuse, request, error)
        while self._backlog:
            self._replica.defer(self._backlog.popleft()[3], error)
        self._tell_observers(list(self._observers))

    # ----------------------------------------------------------------------------------------------------------------
    # Acquiring.

    def _acquire(self, request: Request) -> None:
        request.state = ASKED
        self._submit(request, request.make, (), partial(self._answered, request))

    def _ask_again(self, request: Request) -> None:
        if request.state == NEW and self._error is None:
            self._acquire(request)

    def _answered(self, request: Request, reply: Any) -> None:
        """To the acquire; with the callers' answers, so what is told here is told at once."""
        if request.state != ASKED:
            return
        if isinstance(reply, OutcomeUnknown) and self._error is None:
            # It was sent in a session that is over; what came of it went with that.
            self._forget(request)
            self._ask_again(request)
        elif isinstance(reply, CoordError):
            self._over(request)
            self._refuse(request, reply)
        elif reply[0] in (replies.GRANTED, replies.WAITING):
            if request.session != self._replica.lease.session:
                # The session has ended since, in the same turn.
                self._forget(request)
                self._ask_again(request)
                return
            request.state = WAITING
            self._named[request.session, request.id] = request
            self._look(request, self._tell)
        elif reply[0] == replies.DENIED:
            self._over(request)
            request.holder = reply[1]
            self._announce(request, DENIED)
        else:
            self._over(request)
            self._refuse(request, refusal(request, reply))

    def _look(self, request: Request, tell: Callable[[Request], None]) -> None:
        """What the table says about a request that was WAITING or HELD."""
        locks = self._replica.machine.locks
        hold = locks.hold(request.session, request.id)
        if hold is not None:
            # Another token when it was downgraded.
            request.token, request.slot, request.shared = hold.token, hold.slot, hold.shared
            if request.state == WAITING:
                request.state = HELD
                request.lease = self._replica.lease
                tell(request)
        elif request.state == HELD and request.told:
            self._lose(request, "gone")
        elif request.state == HELD or locks.waiting(request.session, request.id) is None:
            self._forget(request)
            self._replica.defer(self._ask_again, request)

    def _tell_later(self, request: Request) -> None:
        """At the end of the turn: by then it is known whether the lease stands."""
        self._replica.defer(self._tell, request)

    def _tell(self, request: Request) -> None:
        """It is granted: tell so, if it can be relied on. If not, the lease may yet come back, and brings it here."""
        if request.state != HELD or request.told or request.lease is None:
            return
        if self._in_present_session(request):
            # The session may have another lease than when it was granted.
            request.lease = self._replica.lease
        if request.lease.stands(self._replica.now):
            self._announce(request, GRANTED)

    def _refuse(self, request: Request, error: CoordError) -> None:
        request.state = OVER
        request.error = error
        self._announce(request, REFUSED)

    def _announce(self, request: Request, outcome: str) -> None:
        """Tell the caller, unless it gave up; then its `abandon` is on its way."""
        request.outcome = outcome
        if request.give_up():
            request.told = True
            request.notify(request)

    # ----------------------------------------------------------------------------------------------------------------
    # Its end.

    def _withdrawn(self, request: Request) -> bool:
        """Nobody waits for the acquire's reply any more. True: it was never sent, and never will be."""
        proposal = self._replica.numbering.end(request.id)
        return proposal is not None and proposal.give_up()

    def _cancel(self, request: Request) -> None:
        self._leave(request)
        self._submit(request, commands.cancel, (request.name, request.id), partial(self._cancelled, request))

    def _cancelled(self, request: Request, reply: Any) -> None:
        if request.state == OVER:
            return
        if isinstance(reply, OutcomeUnknown) and self._error is None and self._in_present_session(request):
            self._cancel(request)
            return
        done = self._over(request)
        if done is not None:
            done(reply)

    def _released(self, request: Request, reply: Any) -> None:
        if request.state == OVER:
            return
        locks = self._replica.machine.locks
        if not isinstance(reply, Exception) and locks.hold(request.session, request.id) is not None:
            # It has another token: a downgrade was under way, and nobody waited for its answer.
            self._cancel(request)
            return
        done = self._over(request)
        if done is not None:
            done(reply)

    def _lose(self, request: Request, reason: str) -> None:
        if reason == LAPSED:
            # Nobody holds it here any more; the group may, as it may not have ended the session.
            self._cancel(request)
        else:
            self._over(request)
        request.lost(request, reason)

    def _leave(self, request: Request) -> None:
        """Its end is under way: whatever the table says, nobody is told any more."""
        request.state = LEAVING
        self._named.pop((request.session, request.id), None)

    def _forget(self, request: Request) -> None:
        """It is to be asked anew, in another session."""
        self._named.pop((request.session, request.id), None)
        request.state = NEW
        request.session = request.id = 0
        request.lease = None
        request.outcome = ""

    def _over(self, request: Request) -> Done | None:
        """Returns who waits for the end of its release."""
        self._named.pop((request.session, request.id), None)
        self._live.pop(request, None)
        request.state = OVER
        done, request.done = request.done, None
        return done

    # ----------------------------------------------------------------------------------------------------------------
    # Commands.

    def _in_present_session(self, request: Request) -> bool:
        return request.session == self._replica.lease.session

    def _submit(self, request: Request, maker: Maker, arguments: tuple[Any, ...], done: Done) -> None:
        """In order, one after the other; what there is no room for waits."""
        if self._backlog or not self._replica.submit(maker, arguments, done):
            self._backlog.append((request, maker, arguments, done))

    def _drain(self) -> None:
        backlog = self._backlog
        while backlog:
            request, maker, arguments, done = backlog[0]
            if request.state == OVER:
                self._replica.defer(done, _NOT_HELD)
            elif not self._replica.submit(maker, arguments, done):
                return
            backlog.popleft()


def refusal(request: Request, reply: replies.Reply) -> CoordError:
    """The exception that a reply to an acquire means."""
    status, name = reply[0], request.name
    if status == replies.PERMITS_DIFFER:
        return ConfigurationError(
            f"permits={request.permits} for lock {name!r}, which is in use with permits={reply[1]}; nothing was "
            "changed. Give the same number everywhere, or another name"
        )
    if status == replies.QUEUE_FULL:
        return QueueFull(f"{reply[1]} requests wait for lock {name!r} already (max_waiters); this one had no effect")
    if status == replies.QUOTA:
        return QuotaExceeded(f"lock {name!r} would exceed the limit {reply[1]}={reply[2]}; nothing was changed")
    return CoordError(f"the group refused to be asked for lock {name!r}: {reply}; nothing was changed")
