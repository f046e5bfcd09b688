"""Replay one seed, or run many: ``PYTHONPATH=tests python -m simulation --seed 7 --trace``."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from simulation.knobs import draw
from simulation.run import Totals, run_seed
from simulation.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of several")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args()
    if options.trace:
        print(draw(options.seed).describe())
        World(options.seed, trace=print).run()
        return 0
    totals, began, failures = Totals(), time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.count):
        try:
            run_seed(seed, totals)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(seed)
            print(
                f"seed {seed}: {type(error).__name__} in {where.name}: {error}\n  {draw(seed).describe()}", flush=True
            )
            if not options.keep_going:
                break
    print(totals.describe(time.perf_counter() - began))
    if failures:
        print(f"{len(failures)} of {totals.seeds} seeds failed: {failures}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
