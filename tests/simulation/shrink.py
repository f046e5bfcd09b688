"""Making a failing case smaller: fewer blows, less of everything, and it still fails in the same way.

Every part has its own stream of chance, so what is taken away moves nothing else. What must not live here: what a case
is (`case`).
"""

from __future__ import annotations

import time
from dataclasses import replace

from simulation.case import Case, kind_of
from simulation.knobs import NEVER
from simulation.world import Blow

#: (knob, what would be simpler).
_SIMPLER: list[tuple[str, float | int | bool]] = [
    ("watches", False),
    ("lock_clients", 0),
    ("acknowledgements_late", 0.0),
    ("stay_dead", 0),
    ("local_reads", 0),
    ("reads", 0),
    ("clients", 1),
    ("crash_at_start", 0.0),
    ("burst_every", NEVER),
    ("false_evidence", 0.0),
    ("kill_new_leader", 0.0),
    ("deaf_on_transfer", 0.0),
    ("conditions.damage", 0.0),
    ("conditions.loss", 0.0),
    ("conditions.duplicate", 0.0),
    ("conditions.late", 0.0),
    ("conditions.jitter", 0.0),
    ("conditions.hold", False),
    ("hardware.timer_delay", 0.0),
    ("hardware.turn_delay", 0.0),
    ("hardware.snapshot_time", 0.0),
    ("hardware.sync_time", 0.0),
]


class Shrinker:
    def __init__(self, case: Case, seconds: float) -> None:
        self._best = case
        self._until = time.monotonic() + seconds
        self.tries = 0
        self._kind = ""

    def run(self) -> Case:
        """The smallest case found in the time given; the case itself must fail."""
        world = self._best.world()
        try:
            world.run()
        except AssertionError as error:
            self._kind = kind_of(error)
        else:
            raise ValueError(f"nothing goes wrong: {self._best.command()}")
        end = world.timeline.now
        if end < world.knobs.chaos:
            # What was to come after the failure is no part of it; peace begins where it happened.
            self._try(self._best.with_change("chaos", round(end + 0.001, 3)))
        self._fewer_blows(world.blows)
        for name, value in _SIMPLER:
            self._try(self._best.with_change(name, value))
        self._fewer_blows(sorted(self._best.kept or ()))
        return self._best

    def _try(self, case: Case) -> bool:
        """Does it still fail in the same way? Then it is the best so far."""
        if case == self._best or time.monotonic() > self._until:
            return False
        self.tries += 1
        try:
            case.world().run()
        except AssertionError as error:
            if kind_of(error) == self._kind:
                self._best = case
                return True
        except Exception:
            # Smaller, and broken in another way: not what is looked for.
            return False
        return False

    def _fewer_blows(self, blows: list[Blow]) -> None:
        """Delta debugging: leave out ever smaller parts."""
        if not self._try(replace(self._best, kept=frozenset(blows))) and self._best.kept is None:
            return
        size = max(1, len(blows) // 2)
        while size:
            at = 0
            while at < len(blows):
                fewer = blows[:at] + blows[at + size :]
                if self._try(replace(self._best, kept=frozenset(fewer))):
                    blows = fewer
                else:
                    at += size
            size //= 2


def shrink(case: Case, seconds: float = 60.0) -> Case:
    return Shrinker(case, seconds).run()
