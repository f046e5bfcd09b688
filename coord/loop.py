"""The background thread: the only place that reads the clock and drives transport, disk and replica.

Other threads hand it work and wait with a deadline; nobody else touches what it owns. Its life: set up, report, turn
after turn until told to stop, hand leadership over, let go of everything. It ends by itself when the disk fails.
How those other threads tell the time and wait is here too: all of it goes through the loop, so that a test can have a
loop whose time is virtual (`coord.testing.virtual`).

What must not live here: what a turn does (`coord.replica`), what users see (`coord.node`).
"""

from __future__ import annotations

import copy
import heapq
import itertools
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from coord import logs
from coord.clock import clock
from coord.errors import ClosedError, CoordError, Unavailable
from coord.proposals import Maker, Proposal
from coord.raft.roles import LEADER
from coord.reads import Read
from coord.replica import Replica
from coord.transports.base import Transport
from coord.watch import WaitFor

_log = logs.Log("coord.loop")

#: Frames taken in one turn.
_FRAMES_PER_TURN = 256
#: However quiet it is, a turn comes this often.
_IDLE_SECONDS = 60.0
#: How long `stop` waits at most for a log handler to take what was said.
_FLUSH_SECONDS = 0.5
#: While stopping, how long a turn may sleep at most.
_LEAVING_SECONDS = 0.05
#: Epochs count minutes from here, 2025-01-01: a group that forgot everything gets a later one when it is founded anew.
_EPOCH_BEGAN = 1_735_689_600
#: A turn that starts later than this after it was due says that the host starves this thread.
_LATE_SECONDS = 0.5


class Waiter:
    """One caller waiting for one answer. A bare lock is the cheapest thing a thread can sleep on."""

    __slots__ = ("_lock", "answer")

    def __init__(self) -> None:
        self.answer: Any = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def done(self, answer: Any) -> None:
        self.answer = answer
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """False: no answer within `seconds`."""
        return self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))


def fresh(error: CoordError) -> CoordError:
    """A copy to raise. One object raised again and again would gather the frames of every caller it was raised to."""
    return copy.copy(error).with_traceback(None)


class Dispatcher:
    """Runs users' callbacks, in order, on a thread of their own: never on the loop's. Started by the first callback."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self, task: Callable[[], None]) -> None:
        """After `close`, in the caller's thread: late is better than never."""
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    self._thread.start()
                self._tasks.put(task)
                return
        attempt(task)

    def close(self) -> None:
        """The thread ends after what is queued. Does not wait: a callback may be what called `stop`."""
        with self._lock:
            self._closed = True
            if self._thread is not None:
                self._tasks.put(None)

    @property
    def closed(self) -> bool:
        return self._closed

    def join(self, timeout: float) -> None:
        """After `close`: wait for the thread, unless this is it."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            attempt(task)


def attempt(task: Callable[[], None]) -> None:
    try:
        task()
    except KeyboardInterrupt:
        raise
    except BaseException:
        # SystemExit and asyncio.CancelledError, too: one callback must not end the thread of all.
        _log.exception("a callback raised; it will be called again for the next event")


class Answer(Future[Any]):
    """Completed by the loop's thread, which must never run users' code: callbacks run on the thread for callbacks. It
    is not that thread which completes it, so that a callback may wait for another future."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        def call() -> None:
            fn(self)

        super().add_done_callback(lambda _: self._dispatcher.run(call))


class Loop:
    """Owns a transport and a replica; lets other threads in through three small queues."""

    def __init__(self, name: str, transport: Transport, build: Callable[[Loop, random.Random], Replica]) -> None:
        self.name = name
        self.transport = transport
        self.dispatcher = Dispatcher(f"coord-callbacks-{name}")
        self.started_at = 0.0
        #: Seconds by which the last turn came after it was due.
        self.lag = 0.0
        self._build = build
        self._replica: Replica | None = None
        self._proposals: deque[Proposal] = deque()
        self._reads: deque[Read] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        #: What `when` waits for; the loop's thread alone touches the first.
        self._conditions: list[tuple[Callable[[], Any], Waiter]] = []
        self._abandoned: deque[tuple[Callable[[], Any], Waiter]] = deque()
        #: (when, a number to tell equals apart, what): the loop's thread alone touches it.
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._executors: list[Dispatcher] = []
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._problem: BaseException | None = None
        self._stop_deadline: float | None = None
        self._closed = False
        self._end_session = True
        self._workers: set[threading.Thread] = set()
        self._sweeping = threading.RLock()
        self._thread = threading.Thread(target=self._run, name=f"coord-{name}", daemon=True)

    # ----------------------------------------------------------------------------------------------------------------
    # How other threads tell the time and wait.

    clock = staticmethod(clock)
    #: Sleeps on a condition, which the caller holds, until a predicate is true or so many seconds have passed. Neither
    #: of these two holds on to the loop.
    wait_for: WaitFor = staticmethod(threading.Condition.wait_for)

    def waiter(self) -> Waiter:
        return Waiter()

    def event(self) -> threading.Event:
        return threading.Event()

    def answer(self) -> Answer:
        return Answer(self.dispatcher)

    def back_off(self, longest: float) -> None:
        """Let others go first, for a random time up to `longest` seconds."""
        time.sleep(random.uniform(0, max(0.0, longest)))

    # ----------------------------------------------------------------------------------------------------------------
    # For other threads.

    def start(self, timeout: float) -> None:
        """Set up, and return once the member runs. Raises what went wrong; Unavailable when it took too long."""
        self._thread.start()
        if not self._ready.wait(timeout):
            self.stop(0.0)
            raise Unavailable(f"member {self.name!r} was not ready within {timeout:g} s: a slow disk, or a long log")
        if self._problem is not None:
            self._thread.join()
            raise self._problem

    @property
    def replica(self) -> Replica:
        assert self._replica is not None, "not started"
        return self._replica

    @property
    def running(self) -> bool:
        return self._ready.is_set() and not self._closed and self._problem is None

    def check(self) -> None:
        """Raise why nothing can be asked any more, if so."""
        replica = self._replica
        if replica is not None and replica.failure is not None:
            raise fresh(replica.failure)
        if self._closed or replica is None:
            raise ClosedError(f"member {self.name!r} has been stopped; start a new one")

    def propose(
        self,
        maker: Maker,
        arguments: tuple[Any, ...],
        done: Callable[[Any], None],
        patience: float,
        expires_at: float = float("inf"),
    ) -> Proposal | None:
        """Put a command on its way; None when there is no room for more within `patience` seconds. See `Proposal` for
        `done` and `expires_at`."""
        self.check()
        replica = self.replica
        options = replica.options
        proposal = replica.numbering.begin(
            maker,
            arguments,
            done,
            most=options.max_pending,
            max_bytes=options.max_batch_bytes,
            patience=patience,
            expires_at=expires_at,
        )
        if proposal is not None:
            self._proposals.append(proposal)
            self.transport.wake()
            if self._ended.is_set():
                self._sweep()
        return proposal

    def give_up(self, proposal: Proposal) -> bool:
        """The caller stops waiting. True: the command certainly never happens."""
        unsent = proposal.give_up()
        self.replica.numbering.end(proposal.sequence)
        return unsent

    def read(self, read: Read) -> None:
        self.check()
        self._reads.append(read)
        self.transport.wake()
        if self._ended.is_set():
            self._sweep()

    def call(self, function: Callable[[], Any], timeout: float) -> Any:
        """Run `function` on the loop thread and return its result, or raise what it raised."""
        self.check()
        if threading.current_thread() is self._thread:
            return function()
        waiter = Waiter()

        def run() -> None:
            try:
                waiter.done((function(), None))
            except Exception as error:
                waiter.done((None, error))

        self._calls.append(run)
        self.transport.wake()
        if self._ended.is_set():
            self._sweep()
        if not waiter.wait(timeout):
            raise Unavailable(f"member {self.name!r} did not answer within {timeout:g} s: its thread is starved")
        result, error = waiter.answer
        if error is not None:
            raise error
        return result

    def when(self, condition: Callable[[], Any], deadline: float) -> Any:
        """Wait until `condition`, looked at after each turn on the loop's thread, is not None; return that. None when
        `deadline` has passed. Raises why the member stopped, if it does meanwhile."""
        waiter = Waiter()
        entry = (condition, waiter)
        self.call(lambda: self._conditions.append(entry), max(0.0, deadline - self.clock()))
        if not waiter.wait(deadline - self.clock()):
            self._abandoned.append(entry)
            return None
        if isinstance(waiter.answer, CoordError):
            raise fresh(waiter.answer)
        return waiter.answer

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop's thread soon, and wait for nothing. After the end it runs all the same."""
        self._calls.append(function)
        self.transport.wake()
        if self._ended.is_set():
            self._sweep()

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """`post`, so many seconds from now; never, if the loop ends before."""
        entry = (self.clock() + seconds, next(self._timer_numbers), function)
        self.post(lambda: heapq.heappush(self._timers, entry))

    def executor(self, name: str) -> Dispatcher:
        """Something that runs users' code one after the other, on a thread of its own from the first on."""
        executor = Dispatcher(f"coord-{name}")
        self._executors = [other for other in self._executors if not other.closed]
        self._executors.append(executor)
        return executor

    def stop(self, timeout: float, *, end_session: bool = True) -> None:
        """Hand leadership over, end the session, let go of everything. Returns within about `timeout` whatever happens;
        a thread that hangs in the disk is left behind, powerless. Without `end_session` it is left to its ttl."""
        if not self._closed:
            self._end_session = end_session
            self._closed = True
            self._stop_deadline = self.clock() + timeout
            self.transport.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout + 2.0)
            if self._thread.is_alive():
                _log.warning("%s: its thread is still busy after %g s and is left behind", self.name, timeout + 2.0)
        if self._stop_deadline is not None:
            self.dispatcher.join(max(0.0, self._stop_deadline - self.clock()))
        logs.flush(_FLUSH_SECONDS)

    def background(self, task: Callable[[], Callable[[], None]]) -> None:
        """Run `task` on a thread of its own, then what it returns on the loop's. A task that raises ends the member."""

        def work() -> None:
            try:
                finish = task()
            except Exception as error:
                finish = partial(_raise, error)
            self._calls.append(finish)
            self._workers.discard(threading.current_thread())
            self.transport.wake()

        thread = threading.Thread(target=work, name=f"coord-snapshot-{self.name}", daemon=True)
        self._workers.add(thread)
        thread.start()

    # ----------------------------------------------------------------------------------------------------------------
    # The thread.

    def _run(self) -> None:
        try:
            self._set_up()
        except BaseException as error:
            self._problem = error if isinstance(error, Exception) else CoordError(f"start was interrupted: {error!r}")
            self._let_go()
            self._ready.set()
            return
        self._ready.set()
        try:
            while self._stop_deadline is None and self.replica.failure is None:
                self._turn()
            if self.replica.failure is None:
                self._leave()
        except Exception as error:
            # A bug, ours or below: better a dead member than a half-alive one that still answers heartbeats.
            _log.exception("%s: stopped by an internal error", self.name)
            self.replica.end(CoordError(f"member stopped by an internal error, please report it: {error!r}"))
        finally:
            self._let_go()

    def _set_up(self) -> None:
        # Not seeded from anything shared: two members must not draw the same timeouts.
        rng = random.Random(int.from_bytes(random.SystemRandom().randbytes(16), "little"))
        self.transport.start()
        self._replica = self._build(self, rng)
        self.started_at = time.time()
        self._turn(0.0)

    def _turn(self, longest: float = _IDLE_SECONDS) -> None:
        """One turn of the replica, then sleep until there is something to do, `longest` seconds at most."""
        replica, transport = self.replica, self.transport
        while self._calls:
            count = len(self._calls)
            # A thread that first began a write, and then posted a call, has the write before what the call submits.
            replica.enqueue(_drain(self._proposals))
            for _ in range(count):
                self._calls.popleft()()
                if replica.failure is not None:
                    return
        timers = self._timers
        while timers and timers[0][0] <= clock():
            heapq.heappop(timers)[2]()
        frames = transport.receive(_FRAMES_PER_TURN)
        due = replica.turn(clock(), frames, transport.events(), _drain(self._proposals), _drain(self._reads))
        if self._conditions:
            self._look()
        if len(frames) == _FRAMES_PER_TURN or self._proposals or self._reads or self._calls:
            return
        if timers:
            due = min(due, timers[0][0])
        now = clock()
        transport.poll(min(max(0.0, due - now), longest))
        self.lag = lag = max(0.0, clock() - max(due, now))
        if lag > 0.0:
            replica.counters.late(lag)
        if lag > _LATE_SECONDS:
            _log.warning("%s: woke %.2f s late; the host keeps its interpreter or processor busy", self.name, lag)

    def _look(self) -> None:
        """Tell those whose condition has come true."""
        gone = [self._abandoned.popleft() for _ in range(len(self._abandoned))]
        waiting = []
        for entry in self._conditions:
            value = entry[0]()
            if value is not None:
                entry[1].done(value)
            elif entry not in gone:
                waiting.append(entry)
        self._conditions = waiting

    def _leave(self) -> None:
        """End the session and hand leadership over, as long as there is time."""
        assert self._stop_deadline is not None
        replica, deadline = self.replica, self._stop_deadline
        # What callers handed over before goes first.
        self._turn(0.0)
        while self._end_session and replica.close_session() and replica.may_decide() and self.clock() < deadline:
            self._turn(_LEAVING_SECONDS)
        if replica.core.role == LEADER and not replica.transfer(None):
            while not self._handed_over() and replica.may_decide() and self.clock() < deadline:
                self._turn(_LEAVING_SECONDS)

    def _handed_over(self) -> bool:
        """The successor is known, so it has our vote; or the handing over failed."""
        core = self.replica.core
        if core.role == LEADER:
            return core.transfer_state is None
        return core.leader is not None

    def _let_go(self) -> None:
        self._closed = True
        replica = self._replica
        if replica is not None:
            replica.end(ClosedError(f"member {self.name!r} has been stopped"))
        # From here on callers' threads run what they post themselves.
        self._ended.set()
        for worker in list(self._workers):
            worker.join(2.0)
        self._sweep()
        self.transport.close()
        if replica is not None:
            replica.storage.close()
        for executor in [self.dispatcher, *self._executors]:
            executor.close()

    def _sweep(self) -> None:
        """Answer what came too late. Nothing of it was sent."""
        error = (self._replica and self._replica.failure) or ClosedError(f"member {self.name!r} has been stopped")
        # The loop's thread and late callers may come here at the same time.
        with self._sweeping:
            for proposal in _drain(self._proposals):
                self.replica.numbering.end(proposal.sequence)
                proposal.done(error)
            for read in _drain(self._reads):
                read.done(error)
            while self._calls:
                self._calls.popleft()()
            conditions, self._conditions = self._conditions, []
            for _, waiter in conditions:
                waiter.done(error)


def founding_epoch() -> int:
    """Minutes since 2025: the epoch of a group founded now."""
    return max(1, int(time.time() - _EPOCH_BEGAN) // 60)


def _raise(error: Exception) -> None:
    raise error


def _drain(items: deque[Any]) -> list[Any]:
    """Everything queued now; what other threads add meanwhile waits for the next turn."""
    return [items.popleft() for _ in range(len(items))]
