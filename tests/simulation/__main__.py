"""Replay one seed, make a failure smaller, or run many.

``PYTHONPATH=tests:. python -m simulation --seed 7 --trace`` tells all that happens in the world of seed 7.
"""

from __future__ import annotations

import argparse
import sys

from simulation.case import Case, read_case
from simulation.ledger import add_row
from simulation.run import Totals, run_seeds
from simulation.shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of several")
    parser.add_argument("--count", type=int, default=0, help="how many seeds from there on")
    parser.add_argument("--trace", action="store_true", help="print all that happens in one seed")
    parser.add_argument("--shrink", action="store_true", help="one seed that fails: make it smaller, for a minute")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="one seed: with this changed")
    parser.add_argument("--only", metavar="KIND:NUMBER,...", help="one seed: no other blows fall")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--ledger", action="store_true", help="add what a clean run comes to, to the ledger")
    options = parser.parse_args()
    if options.count:
        return many(options)
    case = read_case(options.seed, options.set, options.only)
    if options.shrink:
        smaller = shrink(case)
        print(f"{smaller.command()}\n  {smaller.knobs().describe()}")
        return 0
    if options.trace:
        print(case.knobs().describe())
    world = case.run(print if options.trace else None)
    print(f"seed {case.seed}: {world.timeline.count} events, {world.truth.committed} entries committed, all is well")
    return 0


def many(options: argparse.Namespace) -> int:
    totals = Totals()
    for part in run_seeds(options.seed, options.count, options.jobs):
        totals.add(part)
        for failure in part.failures:
            print(
                f"seed {failure.seed}: {failure.kind}: {failure.said}\n  replay: {Case(failure.seed).command()} --trace"
            )
        print(f"{totals.seeds} seeds, {len(totals.failures)} failed", file=sys.stderr, flush=True)
        if totals.failures and not options.keep_going:
            break
    print(totals.describe())
    for name in totals.never_met():
        print(f"  never met: {name}")
    if totals.failures:
        print(f"{len(totals.failures)} of {totals.seeds} seeds failed: {[failure.seed for failure in totals.failures]}")
    elif options.ledger:
        add_row(options.seed, totals)
    return bool(totals.failures)


if __name__ == "__main__":
    sys.exit(main())
