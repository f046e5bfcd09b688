"""Put every mistake of the table back in, one at a time, and see how many seeds it takes until it is caught.

``python -m tests.simulation.mutants`` prints the table; ``--tries`` starts from several seeds and gives the median.
What must not live here: which mistakes (`mistakes`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

#: So many seeds without catching it, and it is missed.
BUDGET = 2000
#: Far enough apart that no two tries share a seed.
_APART = 100_000


class Hunt(NamedTuple):
    """One mistake, looked for from one seed on."""

    name: str
    #: How many seeds it took; 0: missed.
    seeds: int
    #: What caught it: the first words of what the oracle said.
    caught: str
    seconds: float


def hunt(name: str, start: int = 1, budget: int = BUDGET) -> Hunt:
    """Try seed after seed until an oracle, or an invariant stated in the code itself, sees the mistake."""
    from simulation.mistakes import MUTANTS, applied

    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    began = time.perf_counter()
    with applied(mutant):
        for number in range(budget):
            try:
                mutant.try_seed(start + number)
            except AssertionError as error:
                said = str(error).partition("\n")[0]
                kind = type(error).__name__
                return Hunt(name, number + 1, f"{kind}: {said}"[:100], time.perf_counter() - began)
    return Hunt(name, 0, "missed", time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--budget", type=int, default=BUDGET, help="seeds at most for each mistake and try")
    parser.add_argument("--tries", type=int, default=1, help="how many times, each from another seed")
    parser.add_argument("--only", default="", help="those with these words in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    from simulation.mistakes import MUTANTS

    names = [mutant.name for mutant in MUTANTS if options.only in mutant.name]
    tries = range(options.tries)
    missed, medians = [], []
    print(f"| mistake | seeds (median of {options.tries}) | caught by | seconds |\n|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = {
            name: [pool.submit(hunt, name, 1 + number * _APART, options.budget) for number in tries] for name in names
        }
        for name in names:
            found = [future.result() for future in futures[name]]
            if any(not one.seeds for one in found):
                missed.append(name)
            median = statistics.median(one.seeds or options.budget for one in found)
            medians.append(median)
            seconds = sum(one.seconds for one in found)
            print(f"| {name} | {median:g} | {found[0].caught.replace('|', '/')} | {seconds:.1f} |", flush=True)
    print(f"\n{len(names) - len(missed)} of {len(names)} caught; median of the medians: {statistics.median(medians):g}")
    for name in missed:
        print(f"missed: {name}")
    return bool(missed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
