"""`coord.testing.Group`: a group of members in this process, and what may befall it.

What must not live here: how its members run and how time passes, which are two worlds: `coord.testing.realtime` with
threads, `coord.testing.virtual` without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from coord.errors import CoordError
from coord.machine import commands
from coord.node import Node
from coord.options import Options
from coord.raft.batch import encode_entry
from coord.raft.core import Core
from coord.raft.roles import LEADER
from coord.replica import Replica
from coord.testing.realtime import QUICK, RealWorld
from coord.testing.virtual import VirtualWorld

#: How long the group's own waiting lasts unless told otherwise, in seconds of its time.
PATIENCE = 30.0
_VIRTUAL_DELAY = 0.001

__all__ = ["PATIENCE", "QUICK", "Group", "World"]

Link = tuple[str, str]


class World(Protocol):
    """Where members live. Whatever is asked of one about a member makes sense: `Group` sees to that."""

    virtual: bool

    def now(self) -> float:
        """Seconds since it began."""
        ...

    def start(self, name: str) -> Node:
        """A new node on the member's disk."""
        ...

    def kill(self, name: str) -> None: ...

    def pause(self, name: str) -> bool: ...

    def resume(self, name: str) -> None: ...

    def cut(self, links: Collection[Link]) -> None:
        """These too."""
        ...

    def partition(self, sides: Sequence[Collection[str]]) -> None:
        """These sides, and no other cut."""
        ...

    def heal(self) -> None: ...

    def set_conditions(self, *, loss: float, delay: float) -> None: ...

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Until it holds; False when it does not within so many seconds."""
        ...

    def close(self) -> None: ...


class Group:
    """Members of one group in this process: real nodes, with the network and the disks between and below them made up.

    `group["a"]` is the `coord.Node` of member `a`; hand it to the code you test, then have something go wrong. State is
    durable across `kill` and `restart`, and touches neither your disk nor any port.

    In real time (the default) every node has its background thread, and elections are quick (`coord.testing.QUICK`). In
    virtual time there is one thread, yours: calls to the group and its nodes let simulated time pass until they have
    their answer, so nothing takes long, and the same `seed` gives the same run.

    Members can be given as a `coord.Node` or by name. Misuse raises KeyError (no such member), RuntimeError (not as
    things stand) or ValueError, and says what to do; waiting in vain raises TimeoutError with the state of the group.
    """

    def __init__(
        self,
        names: Iterable[str] | None = None,
        *,
        members: int | None = None,
        options: Options | Mapping[str, Options] | None = None,
        seed: int = 0,
        virtual: bool = False,
        loss: float = 0.0,
        delay: float | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """names: of the members; or `members`: how many, named a, b, c and so on. An odd number; 3.
        options: `coord.Options` of all members, or of each by name; None: `QUICK` in real time, else the defaults.
        seed: where all chance comes from; in real time only that of lost messages.
        virtual: whether time is.
        loss, delay: see the properties; None: no delay in real time, a millisecond in virtual time.
        trace: called with a line for everything that happens, in virtual time only.
        """
        self.names = _names(names, members)
        self.seed = seed
        each = _options(options, self.names, virtual)
        self._world: World
        if virtual:
            self._world = VirtualWorld(self.names, each, seed, trace)
        elif trace is not None:
            raise ValueError("trace: what happens in real time happens in several threads; only with virtual=True")
        else:
            self._world = RealWorld(self.names, each, seed)
        self._nodes: dict[str, Node] = {}
        self._lock = threading.RLock()
        self._killed: set[str] = set()
        self._paused: set[str] = set()
        self._cuts: set[Link] = set()
        #: Who led when it was last looked for.
        self._found = ""
        self._loss, self._delay = 0.0, 0.0
        self._state = "not started; call start(), or use it in a with statement"
        self._condition(loss, _VIRTUAL_DELAY if delay is None and virtual else delay or 0.0)

    # -- life

    def start(self) -> Group:
        """Start all members; returns this group. They may not have a leader yet: calls wait for one."""
        if self._nodes or self._state == _CLOSED:
            raise RuntimeError(f"this group was {'closed' if self._state else 'started already'}; make another")
        self._state = ""
        try:
            for name in self.names:
                self._nodes[name] = self._world.start(name)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all members, as if all were killed. Idempotent; always returns."""
        if self._state != _CLOSED:
            self._state = _CLOSED
            self._world.close()

    def __enter__(self) -> Group:
        if not self._nodes:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Node:
        """The member's present node; after `restart`, another."""
        return self._nodes[self._known(name)]

    def __repr__(self) -> str:
        kind = "virtual" if self._world.virtual else "real"
        return f"coord.testing.Group({', '.join(self.names)}; {kind} time, seed {self.seed})"

    @property
    def now(self) -> float:
        """Seconds, of its own time, since the group was made."""
        return self._world.now()

    # -- who is who

    @property
    def running(self) -> list[Node]:
        """The nodes that run, paused ones among them."""
        self._check_open()
        return [self._nodes[name] for name in self.names if self._runs(name)]

    def leader(self, timeout: float = PATIENCE) -> Node:
        """The leader, once there is one that can serve, and that every member follows which it can reach."""
        self.wait_until(self._find_leader, timeout, "a leader")
        # It may have gone again by now; then the last one found is as good an answer as any.
        return self._nodes[self._found]

    def followers(self, timeout: float = PATIENCE) -> list[Node]:
        """The members that follow the `leader`, once there is one."""
        leader = self.leader(timeout)
        return [self._nodes[name] for name in self._awake() if self._core(name).leader == leader.name != name]

    # -- what may befall it

    def kill(self, member: str | Node) -> None:
        """Its process dies: no goodbye, no session ended, no leadership handed over. The others have proof at once,
        unless they are cut off from it. Calls that wait for it raise; its disk stays."""
        with self._lock:
            name = self._must_run(member, "killed")
            self._world.kill(name)
            self._killed.add(name)
            self._paused.discard(name)

    def restart(self, member: str | Node) -> Node:
        """Start a member again that was killed, was stopped, or has stopped itself, on the disk it had. Returns its
        new node, and so does `group[name]` from now on."""
        with self._lock:
            name = self._known(member)
            if self._runs(name):
                raise RuntimeError(f"member {name!r} runs, so it cannot be started again; kill() or stop() it first")
            self._paused.discard(name)
            self._nodes[name] = node = self._world.start(name)
            self._killed.discard(name)
            return node

    def pause(self, member: str | Node) -> None:
        """It stands still, as with SIGSTOP, until `resume`: messages to it queue, calls to its node wait and time out.
        Your own code does not stand still, and local reads go on."""
        with self._lock:
            name = self._must_run(member, "paused")
            if name in self._paused:
                raise RuntimeError(f"member {name!r} is paused already; resume() it first")
            if not self._world.pause(name):
                self._world.resume(name)
                raise RuntimeError(f"member {name!r} could not be paused: its thread hangs, or has just ended")
            self._paused.add(name)

    def resume(self, member: str | Node) -> None:
        """It goes on after `pause`, with all that has piled up."""
        with self._lock:
            name = self._must_run(member, "resumed")
            if name not in self._paused:
                raise RuntimeError(f"member {name!r} is not paused, so it cannot be resumed")
            self._paused.discard(name)
            self._world.resume(name)

    def partition(self, *sides: Iterable[str | Node] | str) -> None:
        """Only members of one side reach each other. Whoever is not named is on one more side: so `partition(["a"])`
        cuts off `a`. Takes the place of all earlier cuts."""
        with self._lock:
            named = [[self._known(member) for member in ([side] if isinstance(side, str) else side)] for side in sides]
            flat = [name for side in named for name in side]
            twice = sorted({name for name in flat if flat.count(name) > 1})
            if twice:
                raise ValueError(f"member {twice[0]!r} is named twice; each is on one side")
            groups = [side for side in (*named, [name for name in self.names if name not in flat]) if side]
            if len(groups) < 2:
                raise ValueError("all members are on one side, so nothing would be cut; heal() ends cuts")
            self._world.partition(groups)
            side_of = {name: number for number, side in enumerate(groups) for name in side}
            self._cuts = {(one, other) for one in self.names for other in self.names if side_of[one] != side_of[other]}

    def cut(self, source: str | Node, target: str | Node) -> None:
        """Nothing that `source` sends arrives at `target`; the other way goes on. In addition to earlier cuts."""
        with self._lock:
            link = self._known(source), self._known(target)
            if link[0] == link[1]:
                raise ValueError(f"member {link[0]!r} sends itself nothing; name two members")
            self._world.cut([link])
            self._cuts.add(link)

    def heal(self) -> None:
        """End all cuts. Paused members stay paused, killed ones stay killed."""
        with self._lock:
            self._check_open()
            self._world.heal()
            self._cuts.clear()

    @property
    def loss(self) -> float:
        """The share of messages that are lost, from 0 to 1. May be set at any time."""
        return self._loss

    @loss.setter
    def loss(self, share: float) -> None:
        self._condition(share, self._delay)

    @property
    def delay(self) -> float:
        """How long a message is on its way, in seconds. May be set at any time."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._condition(self._loss, seconds)

    def lose_lock_now(self, member: str | Node, timeout: float = PATIENCE) -> None:
        """The group ends the member's session at once, so that it loses its locks, leaderships and ephemeral keys.

        Nothing else happens to the member: if it lives, it soon has another session. Returns when the leader and
        every member it can reach know; the member itself, if it is cut off or paused, does not.
        """
        name = self._known(member)
        deadline = self.now + timeout
        while True:
            leader = self.leader(max(0.0, deadline - self.now))
            replica = leader._running_loop().replica
            index = _on_its_thread(leader, partial(_end_session, replica, name))
            if index and self._everywhere(replica, index, max(0.0, deadline - self.now)):
                return
            if index is None and not self._runs(name):
                raise RuntimeError(f"member {name!r} does not run and has no session any more; it holds nothing")
            moved = partial(_has_moved, replica, replica.machine.applied_index, refused=index == 0)
            self.wait_until(moved, max(0.0, deadline - self.now), f"a session of {name!r} to end")

    # -- time

    def wait_until(self, condition: Callable[[], Any], timeout: float = PATIENCE, what: str = "") -> Any:
        """Wait until `condition()` is true; returns what it returned. It is looked at whenever a member has done
        something, and need not be quick. TimeoutError, with the state of the group, after `timeout` seconds."""
        self._check_open()
        found: list[Any] = []

        def look() -> bool:
            found[:] = [condition()]
            return bool(found[0])

        if not self._world.wait(look, timeout):
            raise TimeoutError(f"{what or 'the condition'} did not come within {timeout:g} s\n{self.describe()}")
        return found[0]

    def wait_converged(self, timeout: float = PATIENCE) -> str:
        """Wait until every member that runs has applied everything its leader has. Returns their common state hash."""
        state_hash: str = self.wait_until(self._find_hash, timeout, "an equal state on all members that run")
        return state_hash

    def run(self, seconds: float) -> None:
        """Let so much virtual time pass. Can take the place of `time.sleep` in the code you test."""
        self._virtual_only("run()", "wait for what you mean, with wait_until()")
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds!r}: time passes in one direction only")
        self._world.wait(lambda: False, seconds)

    def after(self, seconds: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Plan `action(*arguments)` for a later moment of virtual time, such as the middle of a call that waits:
        `group.after(0.5, group.kill, "a")`. What it raises, the call that let the time pass raises."""
        self._virtual_only("after()", "use a threading.Timer, or a thread for the call that waits")
        assert isinstance(self._world, VirtualWorld)
        self._world.simulation.timeline.after(seconds, action, *arguments)

    def describe(self) -> str:
        """Several lines that say how things stand. Never waits."""
        lines = [f"{self!r}, {self.now:.3f} s after its start{f': {self._state}' if self._state else ''}"]
        lines += [f"  {name}: {self._describe(name)}" for name in self._nodes]
        if self._cuts:
            lines.append("  cut: " + ", ".join(f"{source} -> {target}" for source, target in sorted(self._cuts)))
        if self._loss or self._delay:
            lines.append(f"  the network loses {self._loss:.0%} and takes {1000 * self._delay:g} ms")
        return "\n".join(lines)

    # -- within

    def _describe(self, name: str) -> str:
        if not self._runs(name):
            return self._why_not(name)
        core = self._core(name)
        role = "leads" if core.role == LEADER else f"follows {core.leader}" if core.leader else "knows no leader"
        applied = self._replica(name).machine.applied_index
        return f"{'paused; ' if name in self._paused else ''}{role}, term {core.term}, applied {applied}"

    def _condition(self, loss: float, delay: float) -> None:
        if not 0 <= loss <= 1:
            raise ValueError(f"loss={loss!r}: expected a share, from 0 to 1")
        if not 0 <= delay < float("inf"):
            raise ValueError(f"delay={delay!r}: expected seconds, 0 or more")
        self._world.set_conditions(loss=loss, delay=delay)
        self._loss, self._delay = loss, delay

    def _check_open(self) -> None:
        if self._state:
            raise RuntimeError(f"this group is {self._state}")

    def _virtual_only(self, what: str, instead: str) -> None:
        self._check_open()
        if not self._world.virtual:
            raise RuntimeError(f"{what} is for virtual time; in real time it passes by itself: {instead}")

    def _known(self, member: str | Node) -> str:
        self._check_open()
        name = member.name if isinstance(member, Node) else member
        if name not in self.names:
            raise KeyError(f"no member {name!r} in this group; its members are {', '.join(self.names)}")
        return name

    def _must_run(self, member: str | Node, done: str) -> str:
        name = self._known(member)
        if not self._runs(name):
            raise RuntimeError(
                f"member {name!r} cannot be {done}, it does not run: {self._why_not(name)}; restart({name!r}) first"
            )
        return name

    def _runs(self, name: str) -> bool:
        loop = self._nodes[name]._loop
        return loop is not None and loop.running and loop.replica.failure is None

    def _why_not(self, name: str) -> str:
        if name in self._killed:
            return "it was killed"
        loop = self._nodes[name]._loop
        failure = loop.replica.failure if loop is not None and loop._replica is not None else None
        return str(failure) if failure is not None else "it was stopped"

    def _replica(self, name: str) -> Replica:
        loop = self._nodes[name]._loop
        assert loop is not None
        return loop.replica

    def _core(self, name: str) -> Core:
        return self._replica(name).core

    def _awake(self) -> list[str]:
        return [name for name in self.names if self._runs(name) and name not in self._paused]

    def _reached_by(self, source: str) -> list[str]:
        """Whoever it can talk with, itself included."""
        return [name for name in self._awake() if (name, source) not in self._cuts and (source, name) not in self._cuts]

    def _find_leader(self) -> bool:
        """Keeps in `_found` who leads a majority, when everybody it can talk with agrees."""
        awake = self._awake()
        leading = [name for name in awake if self._core(name).leads_surely]
        if not leading:
            return False
        leader = max(leading, key=lambda name: self._core(name).term)
        term = self._core(leader).term
        self._found = leader
        reached = self._reached_by(leader)
        # Who is cut off from it may not have noticed yet.
        agree = all((self._core(name).leader, self._core(name).term) == (leader, term) for name in reached)
        return agree and len(reached) > len(self.names) // 2

    def _find_hash(self) -> str:
        """The state hash of all that run, or "" while they differ."""
        if not self._find_leader():
            return ""
        last = self._core(self._found).log.last_index
        running = [name for name in self.names if self._runs(name)]
        if any(name in self._paused or self._replica(name).machine.applied_index != last for name in running):
            return ""
        found = {}
        for name in running:
            try:
                found[name] = self._nodes[name].status()
            except CoordError:
                return ""
        hashes = {status.state_hash for status in found.values() if status.applied_index == last}
        if len({status.applied_index for status in found.values()}) != 1:
            return ""
        assert len(hashes) == 1, f"members differ at index {last}: { {n: s.state_hash for n, s in found.items()} }"
        return hashes.pop()

    def _everywhere(self, replica: Replica, index: int, timeout: float) -> bool:
        """Wait until the leader, and whoever it can reach, has applied `index`; False when it leads no more."""
        name = replica.identity.name

        def known() -> bool:
            return not _leads(replica) or all(
                self._replica(other).machine.applied_index >= index for other in self._reached_by(name)
            )

        self.wait_until(known, timeout, f"the end of a session, at index {index}, on all members")
        return replica.machine.applied_index >= index


_CLOSED = "closed; make another"


def _names(names: Iterable[str] | None, members: int | None) -> tuple[str, ...]:
    if names is None:
        count = 3 if members is None else members
        if not isinstance(count, int) or not 1 <= count <= 25 or count % 2 == 0:
            raise ValueError(f"members={count!r}: expected an odd number, from 1 to 25")
        return tuple("abcdefghijklmnopqrstuvwxyz"[:count])
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: expected several, as ('a', 'b', 'c')")
    given = tuple(names)
    if len(set(given)) != len(given) or len(given) % 2 == 0:
        raise ValueError(f"names={given!r}: expected an odd number of different names")
    if members is not None and members != len(given):
        raise ValueError(f"members={members}, but there are {len(given)} names; give one of the two")
    return given


def _options(
    options: Options | Mapping[str, Options] | None, names: Sequence[str], virtual: bool
) -> dict[str, Options]:
    usual = Options() if virtual else QUICK
    if options is None or isinstance(options, Options):
        return dict.fromkeys(names, options or usual)
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"options names {unknown[0]!r}, which is no member; the members are {', '.join(names)}")
    return {name: options.get(name, usual) for name in names}


def _leads(replica: Replica) -> bool:
    return replica.failure is None and replica.core.leads_surely


def _has_moved(replica: Replica, applied: int, *, refused: bool) -> bool:
    """Something may be different now."""
    return not _leads(replica) or replica.machine.applied_index != applied or (refused and replica.core.accepting)


def _end_session(replica: Replica, owner: str) -> int | None:
    """On the leader's thread: end that member's session, through the log. The index; 0: refused; None: it has none."""
    core = replica.core
    for session, (name, _) in replica.machine.session_ttls().items():
        if name == owner:
            return core.propose(core.now, [encode_entry(commands.expire_session(session, core.term))])
    return None


def _on_its_thread(node: Node, function: Callable[[], int | None]) -> int | None:
    """0 when the member has just stopped."""
    try:
        done: int | None = node._running_loop().call(function, PATIENCE)
    except CoordError:
        return 0
    return done
