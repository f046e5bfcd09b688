"""What callers want of locks: to hold them a while, to give up waiting, to hand on, to write under their protection.

Each client has one request at a time, at a member that lives; what users do in several threads, several clients do.
Locks named l0, l1, ... are few, so that there is always somebody in the way; every third is a semaphore. What must not
live here: what the answers must be (`leases`, `lock_rules`, `replies`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from coord.errors import QuotaExceeded
from coord.machine import commands
from coord.machine.replies import GRANTED as GRANTED_REPLY
from coord.raft.roles import LEADER
from coord.requests import GRANTED
from coord.testing.chance import stream
from coord.testing.process import Process
from simulation.leases import Asked

if TYPE_CHECKING:
    from simulation.world import World

_NANOSECONDS = 1_000_000_000
_PERMITS = 2
#: (name, session, request, token) of a hold that is over.
_Stale = tuple[str, int, int, int]


def permits_of(number: int) -> int:
    return _PERMITS if number % 3 == 2 else 1


class LockClients:
    def __init__(self, world: World) -> None:
        self._world = world
        self._clients = [LockClient(world, number) for number in range(world.knobs.lock_clients)]

    def begin(self) -> None:
        for client in self._clients:
            client.rest()

    def died(self, process: Process) -> None:
        for client in self._clients:
            client.process_died(process)

    def make_peace(self) -> None:
        """Everybody gives back what it has and waits for what it asked; then every member gets every lock once more."""
        world = self._world
        for process in world.alive():
            if world.atlas.is_wiped(process.name):
                self.died(process)
        for client in self._clients:
            client.hurry()
        if not self._clients:
            return
        for process in world.healthy():
            client = LockClient(world, len(self._clients))
            self._clients.append(client)
            client.last_wishes(process)

    def unfinished(self) -> list[str]:
        return [f"somebody has still to do with {client.asked}" for client in self._clients if client.asked is not None]


class LockClient:
    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._rng = stream(world.seed, "lock client", number)
        self._process: Process | None = None
        #: Its one request, until all is done that it leads to.
        self.asked: Asked | None = None
        self._last: list[partial[None]] = []
        #: A hold of the past: nothing can be done with it any more.
        self._stale: _Stale | None = None
        self._values = 0

    # -----------------------------------------------------------------------------------------------------------------
    # One request after the other.

    def rest(self) -> None:
        if self._last:
            self._world.timeline.after(0.01, self._last.pop(0))
        elif not self._world.calm:
            self._world.timeline.after(self._rng.expovariate(1 / self._world.knobs.lock_think), self._want)

    def last_wishes(self, process: Process) -> None:
        self._last = [partial(self._acquire_once, process, number) for number in range(self._world.knobs.locks)]
        self.rest()

    def _acquire_once(self, process: Process, number: int) -> None:
        if not process.dead and process.failure is None:
            self._ask(Asked(self._world.leases, process, f"l{number}", self._told, self._lost, **_plain(number)))

    def _want(self) -> None:
        world, rng, knobs = self._world, self._rng, self._world.knobs
        if world.calm or self.asked is not None:
            return
        process = self._somebody()
        number, odd = rng.randrange(knobs.locks), rng.random()
        shared, wait, reclaim = rng.random() < 0.4, rng.random() < 0.8, rng.random() < 0.5
        priority, delay = rng.choice((0, 0, 0, 1, -1)), rng.choice((0.0, 0.3, 1.0)) * knobs.lock_delay
        patience, value = rng.choice((0.0, 0.1, 1.0, float("inf"))) * knobs.client_timeout, rng.random() < 0.2
        if process is None:
            self.rest()
            return
        permits = permits_of(number) if odd > 0.02 else 3
        asked = Asked(
            world.leases,
            process,
            f"l{number}",
            self._told,
            self._lost,
            shared=shared and permits == 1,
            permits=permits,
            priority=priority,
            wait=wait,
            delay=int(delay * _NANOSECONDS),
            reclaim=reclaim,
            value=self._value() if value else b"",
        )
        self._ask(asked)
        if patience < float("inf"):
            world.timeline.after(patience, self._lose_patience, asked)

    def _ask(self, asked: Asked) -> None:
        self.asked, self._process = asked, asked.process
        self._world.truth.note("lock asked for")
        self._say("asks for", asked)
        asked.ask()

    def _somebody(self) -> Process | None:
        """Mostly the same member; often whoever believes that it leads."""
        world, rng = self._world, self._rng
        leaders = [process for process in world.alive() if process.replica.core.role == LEADER]
        stays, asks_leader, other = rng.random() < 0.6, rng.random() < 0.3, rng.choice(world.names)
        process = self._process
        if process is None or process.dead or not stays:
            process = rng.choice(leaders) if leaders and asks_leader else world.living(other)
        if process is None or process.paused_until > world.timeline.now or process.failure is not None:
            return None
        return process

    def _is_awake(self, asked: Asked, call: partial[None]) -> bool:
        """What threads of a process do they do when it runs."""
        if asked is not self.asked or asked.process.dead or asked.process.failure is not None:
            return False
        if asked.process.paused_until > self._world.timeline.now:
            self._world.timeline.at(asked.process.paused_until, call)
            return False
        return True

    def _lose_patience(self, asked: Asked) -> None:
        if self._is_awake(asked, partial(self._lose_patience, asked)) and not asked.outcome and asked.give_up():
            self._world.truth.note("lock given up")
            self._over("gives up", asked)

    # -----------------------------------------------------------------------------------------------------------------
    # What it is told.

    def _told(self, asked: Asked) -> None:
        if asked.outcome != GRANTED:
            self._over(f"is told {asked.outcome} {asked.request.error or ''}", asked)
            return
        self._say("has", asked)
        self._go_on(asked)

    def _go_on(self, asked: Asked) -> None:
        world = self._world
        pause = 0.01 if world.calm else self._rng.expovariate(1 / world.knobs.lock_hold)
        world.timeline.after(pause, self._use, asked)

    def hurry(self) -> None:
        asked = self.asked
        if asked is not None and asked.outcome == GRANTED and not asked.ended:
            self._world.timeline.after(0.01, self._use, asked)

    def _lost(self, asked: Asked, reason: str) -> None:
        self._world.truth.note(f"lock lost: {reason}")
        self._over(f"loses ({reason})", asked)

    def process_died(self, process: Process) -> None:
        if self.asked is not None and self.asked.process is process:
            self.asked = None
            self.rest()

    # -----------------------------------------------------------------------------------------------------------------
    # What it does with what it has.

    def _use(self, asked: Asked) -> None:
        if not self._is_awake(asked, partial(self._use, asked)) or asked.ended:
            return
        rng, request = self._rng, asked.request
        does = rng.random()
        if self._world.calm or does < 0.4:
            self._release(asked)
        elif does < 0.45:
            # As when its thread is interrupted.
            self._keep_stale(asked)
            asked.abandon()
            self._over("throws away", asked)
        elif does < 0.55 and not request.shared and request.permits == 1:
            self._keep_stale(asked)
            asked.downgrade(partial(self._downgraded, asked, request.token))
            self._go_on(asked)
        elif does < 0.63:
            asked.set_value(self._value())
            self._go_on(asked)
        elif does < 0.77:
            # For longer than a session lasts, if that is not renewed.
            seconds = 2 * rng.random() * self._world.options[asked.process.name].session_ttl
            self._world.timeline.after(seconds, self._use, asked)
        else:
            hold = (request.name, request.session, request.id, request.token)
            self._write_under(asked.process, hold if rng.random() < 0.8 else self._stale or hold)
            self._go_on(asked)

    def _release(self, asked: Asked) -> None:
        successor = self._rng.choice(self._world.names) if self._rng.random() < 0.2 else ""
        if self._rng.random() < 0.5:
            self._keep_stale(asked)
        self._say("releases", asked)
        asked.release(partial(self._released, asked), successor)

    def _released(self, asked: Asked, reply: Any) -> None:
        if asked is not self.asked:
            return
        stale, process = self._stale, asked.process
        late = self._rng.random() < 0.3
        if late and stale is not None and stale[1] == process.replica.numbering.session:
            # A release that comes late, and a second time. In another session its numbers could mean another's.
            self._propose(process, commands.release, (stale[0], stale[2], stale[3], ""))
        self._over(f"has released ({reply})", asked)

    def _downgraded(self, asked: Asked, token: int, reply: Any) -> None:
        """A release that was meant for what it had before comes too late."""
        request = asked.request
        if reply == (GRANTED_REPLY, request.token, request.slot) and self._rng.random() < 0.3:
            self._propose(asked.process, commands.release, (request.name, request.id, token, ""))

    def _keep_stale(self, asked: Asked) -> None:
        request = asked.request
        self._stale = (request.name, request.session, request.id, request.token)

    def _write_under(self, process: Process, hold: _Stale) -> None:
        value = self._value()
        compares, operations = [commands.compare_hold(*hold)], [commands.put_operation(f"g{hold[0]}", value)]
        self._propose(process, commands.transaction, (compares, operations))

    def _propose(self, process: Process, maker: Any, arguments: tuple[Any, ...]) -> None:
        try:
            process.propose(maker, arguments, lambda reply: None)
        except QuotaExceeded:
            self._world.truth.note("a write under a lock was too large")

    def _value(self) -> bytes:
        self._values += 1
        return b"%d" % self._values

    # -----------------------------------------------------------------------------------------------------------------
    # Its end.

    def _over(self, what: str, asked: Asked) -> None:
        self._say(what, asked)
        if asked is self.asked:
            self.asked = None
            self.rest()

    def _say(self, what: str, asked: Asked) -> None:
        if self._world.trace is not None:
            self._world.say(asked.process.name, f"somebody {what} {asked}")


def _plain(number: int) -> dict[str, Any]:
    return {"permits": permits_of(number)}
