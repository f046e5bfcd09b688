"""Running seeds one after the other, in several processes, and what they add up to.

What must not live here: what happens in one world (`world`), or how a failure is named (`case`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from simulation.case import Case
from simulation.probes import PROBES, watched
from simulation.world import World

#: Seeds one process runs before it reports.
_CHUNK = 50


@dataclass
class Failure:
    seed: int
    kind: str
    said: str


@dataclass
class Totals:
    """Of many worlds: so that one sees what was tried, not only that nothing was found."""

    seeds: int = 0
    events: int = 0
    #: Simulated.
    seconds: float = 0.0
    #: Of one core, while they ran.
    cpu_seconds: float = 0.0
    messages: int = 0
    crashes: int = 0
    committed: int = 0
    operations: int = 0
    #: Troubles by kind, rare things seen by the oracles, and probes passed.
    troubles: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    probes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBES, 0))
    failures: list[Failure] = field(default_factory=list)

    def add_world(self, world: World) -> None:
        network = world.network
        self.seeds += 1
        self.events += world.timeline.count
        self.seconds += world.timeline.now
        self.messages += network.sent
        self.crashes += world.crashes
        self.committed += world.truth.committed
        self.operations += world.clients.histories.count
        _add(self.troubles, world.faults.struck)
        links = {"frame lost": network.lost, "frame doubled": network.doubled, "frame damaged": network.damaged}
        _add(self.troubles, links)
        _add(self.seen, world.truth.happened)

    def add(self, other: Totals) -> None:
        for name in ("seeds", "events", "seconds", "cpu_seconds", "messages", "crashes", "committed", "operations"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        _add(self.troubles, other.troubles)
        _add(self.seen, other.seen)
        _add(self.probes, other.probes)
        self.failures += other.failures

    def never_met(self) -> list[str]:
        return [name for name, count in self.probes.items() if not count]

    def describe(self) -> str:
        rate = self.events / self.cpu_seconds if self.cpu_seconds else 0.0
        lines = [
            f"{self.seeds} seeds, {self.events} events, {rate:.0f} a second and core; {self.seconds / 3600:.2f} "
            f"simulated hours, {self.messages} messages, {self.crashes} crashes, {self.operations} operations of "
            f"clients, {self.committed} entries committed",
            f"  troubles: {_listed(self.troubles)}",
            f"  seen: {_listed(self.seen)}",
            f"  probes: {len(self.probes) - len(self.never_met())} of {len(self.probes)} met",
        ]
        return "\n".join(lines)


def _add(mine: dict[str, int], theirs: dict[str, int]) -> None:
    for what, count in theirs.items():
        if count or what in mine:
            mine[what] = mine.get(what, 0) + count


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


def run_chunk(seeds: range) -> Totals:
    """These seeds, whatever each comes to; in a process of its own, or here."""
    logging.disable(logging.CRITICAL)
    totals = Totals()
    began = time.process_time()
    with watched() as passed:
        for seed in seeds:
            case = Case(seed)
            world: World | None = None
            try:
                world = case.world()
                world.run()
            except Exception as error:
                totals.failures.append(Failure(seed, type(error).__name__, str(error)))
            if world is not None:
                totals.add_world(world)
            else:
                totals.seeds += 1
        totals.probes = dict(passed)
    totals.cpu_seconds = time.process_time() - began
    logging.disable(logging.NOTSET)
    return totals


def run_seeds(first: int, count: int, jobs: int) -> Iterator[Totals]:
    """Totals of one chunk after the other, as they come."""
    chunks = [range(start, min(start + _CHUNK, first + count)) for start in range(first, first + count, _CHUNK)]
    if jobs <= 1:
        yield from map(run_chunk, chunks)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_chunk, chunks)
