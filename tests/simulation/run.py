"""Running seeds one after the other, and what they add up to.

What must not live here: what happens in one world (`world`).
"""

from __future__ import annotations

import hashlib

from simulation.knobs import draw
from simulation.world import World


class Totals:
    """Of many worlds: so that one sees what was tried, not only that nothing was found."""

    def __init__(self) -> None:
        self.seeds = self.events = self.sent = self.lost = self.doubled = self.crashes = self.committed = 0
        self.operations = 0
        self.seconds = 0.0
        self.struck: dict[str, int] = {}
        self.happened: dict[str, int] = {}

    def add(self, world: World) -> None:
        self.seeds += 1
        self.events += world.timeline.count
        self.seconds += world.timeline.now
        self.sent += world.network.sent
        self.lost += world.network.lost
        self.doubled += world.network.doubled
        self.crashes += world.crashes
        self.committed += world.truth.committed
        for mine, theirs in ((self.happened, world.truth.happened), (self.struck, world.faults.struck)):
            for what, count in theirs.items():
                mine[what] = mine.get(what, 0) + count

    def describe(self, elapsed: float) -> str:
        rare = ", ".join(f"{what} {count}" for what, count in sorted(self.happened.items()))
        blows = ", ".join(f"{what} {count}" for what, count in sorted(self.struck.items()))
        return (
            f"{self.seeds} seeds, {self.events} events, {self.events / elapsed:.0f} a second; "
            f"{self.seconds:.0f} virtual seconds, {self.sent} messages ({self.lost} lost, {self.doubled} doubled), "
            f"{self.crashes} crashes, {self.committed} entries committed\n  troubles: {blows}\n  seen: {rare}"
        )


def run_seed(seed: int, totals: Totals | None = None) -> None:
    """Raises what the world raises; an AssertionError says how to see it again."""
    world = World(seed, draw(seed))
    try:
        world.run()
    except AssertionError as error:
        error.args = (f"{error}\n  replay: PYTHONPATH=tests python -m simulation --seed {seed} --trace",)
        raise
    finally:
        if totals is not None:
            totals.add(world)


def trace_hash(seed: int) -> str:
    """Of every word of the trace: equal only if everything happened alike."""
    hashed = hashlib.sha256()
    World(seed, trace=lambda line: hashed.update(line.encode())).run()
    return hashed.hexdigest()
