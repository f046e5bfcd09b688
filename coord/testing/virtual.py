"""The world of a group in virtual time: the simulation, driven by whoever waits for something.

There is one thread. A call that waits lets the simulated members act, one event after the other, until it has its
answer or until its deadline has passed in virtual time; so no time is lost, and the same seed gives the same run.
What must not live here: the simulation itself (`coord.testing.simulation`), what users see (`coord.testing.group`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from coord.errors import ClosedError, CoordError, Unavailable
from coord.loop import Answer, Dispatcher, Loop, Waiter, attempt, fresh
from coord.node import Node
from coord.options import Options
from coord.proposals import Maker, Proposal
from coord.reads import Read
from coord.testing.chance import stream
from coord.testing.network import Conditions, between
from coord.testing.process import Process, Watcher
from coord.testing.simulation import Hardware, Simulation

#: Who waits without a deadline, for what nobody does within so long, has made a mistake.
_FOREVER_SECONDS = 600.0
#: How soon a member takes a turn that nothing from outside has caused.
_TURN_SECONDS = 0.001
#: A paused member is paused for so long, again and again, until it is resumed: what is planned for the end of a pause
#: then comes soon after it.
_PAUSE_SECONDS = 0.1


class VirtualWaiter(Waiter):
    """Waiting is driving."""

    __slots__ = ("_answered", "_loop")

    def __init__(self, loop: VirtualLoop) -> None:
        self.answer: Any = None
        self._answered = False
        self._loop = loop

    def done(self, answer: Any) -> None:
        self.answer = answer
        self._answered = True

    def wait(self, seconds: float) -> bool:
        limit = None if seconds == float("inf") else seconds
        return self._loop.world.wait(lambda: self._answered, limit, "this answer")


class VirtualAnswer(Answer):
    """`result` and `exception` let virtual time pass; what waits for several futures by real threads is refused."""

    def __init__(self, dispatcher: Dispatcher, world: VirtualWorld) -> None:
        super().__init__(dispatcher)
        self._world = world
        self._waiters = _Refusing()

    def result(self, timeout: float | None = None) -> Any:
        self._await(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await(timeout)
        return super().exception(0)

    def _await(self, timeout: float | None) -> None:
        self._world.wait(self.done, timeout, "this result")


class VirtualEvent(threading.Event):
    """Waiting for it is driving."""

    def __init__(self, world: VirtualWorld) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        return self._world.wait(self.is_set, timeout, "this event")


class _Refusing(list[Any]):
    """Where `concurrent.futures.wait` and `as_completed` would leave word for a thread that then sleeps."""

    def append(self, waiter: Any) -> NoReturn:
        raise RuntimeError(
            "this group's time is virtual, and passes only in calls to it; wait() and as_completed() would sleep for "
            "ever: ask each future for its result(), or add a callback"
        )


class VirtualDispatcher(Dispatcher):
    """Callbacks are events of their own, one at a time for each member, as with a thread for them."""

    def __init__(self, world: VirtualWorld) -> None:
        super().__init__("virtual")
        self._world = world
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False

    def run(self, task: Callable[[], None]) -> None:
        self._waiting.append(task)
        if self._closed:
            self._run_all()
        else:
            self._world.simulation.timeline.after(0.0, self._run_all)

    def close(self) -> None:
        self._closed = True
        self._run_all()

    def join(self, timeout: float) -> None:
        """`close` has done everything."""

    def _run_all(self) -> None:
        # A callback that waits lets time pass, and those queued behind it wait for it.
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                attempt(self._waiting.popleft())
        finally:
            self._busy = False


class _NoTransport:
    """What a loop without sockets has instead."""

    def abandon(self) -> None:
        """A forked child has a copy of everything, and disturbs nobody."""


class VirtualLoop(Loop):
    """What a node's calls go through. In place of the thread there is a process of the simulation, for its one life."""

    def __init__(self, world: VirtualWorld, name: str) -> None:
        super().__init__(name, _NoTransport(), _not_built_here)  # type: ignore[arg-type]
        self.world = world
        self.dispatcher = VirtualDispatcher(world)
        self._back_off = stream(world.simulation.seed, "back off", name)

    # How callers tell the time and wait.

    def clock(self) -> float:
        return self.world.simulation.local_time(self.name)

    def waiter(self) -> VirtualWaiter:
        return VirtualWaiter(self)

    def event(self) -> VirtualEvent:
        return VirtualEvent(self.world)

    def answer(self) -> VirtualAnswer:
        return VirtualAnswer(self.dispatcher, self.world)

    def wait_for(self, condition: threading.Condition, predicate: Callable[[], bool], seconds: float | None) -> None:
        self.world.wait(predicate, seconds, "this watch")

    def back_off(self, longest: float) -> None:
        self.world.wait(lambda: False, self._back_off.uniform(0, max(0.0, longest)))

    # What they want.

    def start(self, timeout: float) -> None:
        self.world.check_thread()
        simulation = self.world.simulation
        problem = simulation.start(self.name)
        if problem is not None:
            self._problem = problem
            self._ready.set()
            raise problem
        self.process = simulation.processes[self.name]
        self._replica = self.process.replica
        self.started_at = simulation.timeline.now
        self._ready.set()

    def check(self) -> None:
        self.world.check_thread()
        super().check()

    def propose(
        self,
        maker: Maker,
        arguments: tuple[Any, ...],
        done: Callable[[Any], None],
        patience: float,
        expires_at: float = float("inf"),
    ) -> Proposal | None:
        made: list[Proposal] = []

        def propose() -> bool:
            self.check()
            proposal = self.process.propose(maker, arguments, done, expires_at)
            if proposal is not None:
                made.append(proposal)
            return proposal is not None

        return made[0] if self.world.wait(propose, patience) else None

    def read(self, read: Read) -> None:
        self.check()
        self.process.read(read)

    def call(self, function: Callable[[], Any], timeout: float) -> Any:
        """Between two turns, as on the thread."""
        self.check()
        simulation, process = self.world.simulation, self.process
        if not self.world.wait(lambda: process.dead or process.paused_until <= simulation.timeline.now, timeout):
            raise Unavailable(f"member {self.name!r} did not answer within {timeout:g} s: it is paused")
        self.check()
        result = function()
        self._want_turn()
        return result

    def post(self, function: Callable[[], None]) -> None:
        """With its next turn; at once when it takes no more."""
        if self._closed or self.process.dead:
            function()
            return
        self.process.calls.append(function)
        self._want_turn()

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        simulation = self.world.simulation

        def act() -> None:
            if not self._closed and not self.process.dead:
                self.post(function)

        simulation.timeline.at(simulation.time_of(self.name, self.clock() + seconds), act)

    def executor(self, name: str) -> VirtualDispatcher:
        executor = VirtualDispatcher(self.world)
        self._executors.append(executor)
        return executor

    def when(self, condition: Callable[[], Any], deadline: float) -> Any:
        self.check()
        found: list[Any] = []

        def look() -> bool:
            value = condition()
            if value is not None:
                found.append(value)
            return value is not None or self.replica.failure is not None

        self.world.wait(look, deadline - self.clock())
        if not found and self.replica.failure is not None:
            raise fresh(self.replica.failure)
        return found[0] if found else None

    def stop(self, timeout: float, *, end_session: bool = True) -> None:
        if self._closed:
            return
        self.world.check_thread()
        self._closed = True
        self._end_session = end_session
        self._stop_deadline = self.clock() + timeout
        if self.replica.failure is None:
            self._leave()
        self.end(ClosedError(f"member {self.name!r} has been stopped"))

    def end(self, error: CoordError) -> None:
        """The process is no more; whoever waits for it is told."""
        self._closed = True
        process = self.process
        if not process.dead:
            self.world.simulation.kill(self.name, power=False)
        process.replica.end(error)
        for proposal in process.proposals:
            process.replica.numbering.end(proposal.sequence)
            proposal.done(error)
        for read in process.reads:
            read.done(error)
        process.proposals, process.reads = [], []
        for call in process.calls:
            call()
        process.calls.clear()
        for executor in [self.dispatcher, *self._executors]:
            executor.close()

    def _turn(self, longest: float = 0.0) -> None:
        """Let it have its next turn."""
        process, turns = self.process, self.replica.counters.turns
        self._want_turn()
        limit = max(longest, 2 * _TURN_SECONDS)
        self.world.wait(lambda: process.dead or self.replica.counters.turns != turns, limit)

    def _want_turn(self) -> None:
        """A little later: whoever asks again and again must not stop time."""
        simulation = self.world.simulation
        simulation.want_turn(self.process, simulation.timeline.now + _TURN_SECONDS)


def _not_built_here(loop: Loop, rng: object) -> NoReturn:
    raise AssertionError("the simulation builds its replicas")


class _DiskWatcher(Watcher):
    """Sees to it that a restart finds what was written."""

    def started(self, process: Process) -> None:
        recovered = process.storage.recovered
        assert recovered is not None
        wrong = process.disk.compare(recovered)
        assert not wrong, f"the disk of member {process.name!r} holds something else than was written: {wrong}"


class VirtualNode(Node):
    """A node whose member is simulated."""

    def __init__(self, world: VirtualWorld, name: str) -> None:
        simulation = world.simulation
        super().__init__(
            name,
            bind=simulation.addresses[name],
            peers=simulation.addresses,
            group=simulation.group,
            options=simulation.options[name],
            registry=None,
        )
        self._world = world

    def _make_loop(self, directory: object) -> VirtualLoop:
        return VirtualLoop(self._world, self.name)


class VirtualWorld:
    """Implements `coord.testing.group.World`."""

    virtual = True

    def __init__(
        self,
        names: Sequence[str],
        options: Mapping[str, Options],
        seed: int,
        trace: Callable[[str], None] | None,
    ) -> None:
        hardware = Hardware(sync_time=0.001, snapshot_time=0.005, segment_bytes=1 << 18)
        self.simulation = Simulation(
            seed, names, options, conditions=Conditions(), hardware=hardware, watcher=_DiskWatcher(), trace=trace
        )
        #: The newest of each name.
        self.processes = self.simulation.processes
        self._nodes: dict[str, VirtualNode] = {}
        self._thread = threading.get_ident()
        self._pauses: dict[str, Process] = {}

    def check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "this group's time is virtual, and passes only in calls of the thread that made it; this is another "
                "thread: test code that has threads of its own with a group in real time"
            )

    def now(self) -> float:
        return self.simulation.timeline.now

    def start(self, name: str) -> Node:
        self._nodes[name] = node = VirtualNode(self, name)
        node.start()
        return node

    def kill(self, name: str) -> None:
        loop = self._nodes[name]._running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.end(ClosedError(f"member {name!r} was killed by the test"))

    def pause(self, name: str) -> bool:
        self._pauses[name] = self.processes[name]
        self.simulation.say(name, "is paused")
        self._keep_paused(name, self.processes[name])
        return True

    def _keep_paused(self, name: str, process: Process) -> None:
        if self._pauses.get(name) is process and not process.dead:
            process.paused_until = self.now() + _PAUSE_SECONDS
            self.simulation.timeline.after(_PAUSE_SECONDS / 2, self._keep_paused, name, process)

    def resume(self, name: str) -> None:
        self._pauses.pop(name, None)
        self.simulation.say(name, "is resumed")
        self.simulation.resume(name)

    def cut(self, links: Collection[tuple[str, str]]) -> None:
        self.simulation.cut(sorted(links))

    def partition(self, sides: Sequence[Collection[str]]) -> None:
        self.simulation.heal()
        for number, side in enumerate(sides):
            for other in sides[number + 1 :]:
                self.simulation.cut(between(sorted(side), sorted(other)))

    def heal(self) -> None:
        self.simulation.heal()

    def set_conditions(self, *, loss: float, delay: float) -> None:
        conditions = self.simulation.network.conditions
        conditions.loss, conditions.delay = loss, delay

    def wait(self, condition: Callable[[], object], seconds: float | None, what: str = "this") -> bool:
        """Let things happen until it holds; False when `seconds` of virtual time pass without that."""
        self.check_thread()
        limit = _FOREVER_SECONDS if seconds is None else max(0.0, seconds)
        if self.simulation.run_until(condition, self.now() + limit):
            return True
        if seconds is None:
            raise RuntimeError(
                f"{what} was waited for without a timeout, and {_FOREVER_SECONDS:g} s of virtual time have passed: in "
                "one thread, nobody else is going to do it; plan it with after(), or give a timeout"
            )
        return False

    def close(self) -> None:
        for name, node in self._nodes.items():
            loop = node._loop
            if isinstance(loop, VirtualLoop) and loop.running:
                loop.end(ClosedError(f"the group of member {name!r} was closed"))
