"""Put every mistake of the tables back in, one at a time, and see how many seeds it takes to catch it.

``python -m tests.simulation.mutants`` prints the table in Markdown; ``--tries`` starts from several seeds and gives the
median. What must not live here: which mistakes (`mistakes`), or what catches them (`rules` and its like).
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

#: So many seeds without catching it, and it is missed.
BUDGET = 2000
#: Far enough apart that no two tries share a seed.
_APART = 100_000
MISSED, BROKEN = "missed", "the harness broke"
LIVENESS, LINEARIZABILITY, STORY, INVARIANT = "liveness", "linearizability", "story", "stated invariant"
#: Oracles by what they say, where that does not begin with a code as in "R2: ...".
_BY_WORDS = {
    "what its disk had kept": "recovery",
    "calls its disk damaged": "recovery",
    "cannot start": "recovery",
    "has stopped itself": "self-check",
    "told that it never would": "fate",
    "first in, first out": "fate",
}
_CODE = re.compile(r"\b[A-Z]\d\b(?=:)")
#: Whatever other rule it was.
_RULE = "rules"


class Hunt(NamedTuple):
    """One mistake, looked for from one seed on."""

    name: str
    #: How many seeds it took; 0: not caught.
    seeds: int
    #: The kind of oracle that caught it first; or MISSED, or BROKEN.
    oracle: str
    #: The first words of what that said.
    said: str
    seconds: float


def hunt(name: str, start: int = 1, budget: int = BUDGET) -> Hunt:
    """Try seed after seed until an oracle, or an invariant stated in the code itself, sees the mistake."""
    from simulation.mistakes import MUTANTS, applied

    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    began, number, oracle, said = time.perf_counter(), 0, MISSED, ""
    # What members warn of is no news here.
    logging.disable(logging.CRITICAL)
    try:
        with applied(mutant):
            for number in range(1, budget + 1):
                try:
                    mutant.try_seed(start + number - 1)
                except AssertionError as error:
                    oracle, said = oracle_of(error), str(error).partition("\n")[0]
                    break
    except Exception as error:
        # Whoever only looks must not fail over what it sees: this counts as not caught.
        where = traceback.extract_tb(error.__traceback__)[-1]
        oracle, said = BROKEN, f"{error!r} in {where.name}, seed {start + number - 1}"
    finally:
        logging.disable(logging.NOTSET)
    seeds = 0 if oracle in (MISSED, BROKEN) else number
    return Hunt(name, seeds, oracle, said, time.perf_counter() - began)


def oracle_of(error: AssertionError) -> str:
    """The kind of oracle that raised it."""
    from coord.testing.anomalies import HistoryViolation
    from simulation.truth import Violation
    from simulation.world import Stuck

    said = str(error).partition("\n")[0]
    if isinstance(error, Stuck):
        return LIVENESS
    if isinstance(error, HistoryViolation):
        return LINEARIZABILITY
    if isinstance(error, Violation):
        code = _CODE.search(said)
        by_words = [oracle for words, oracle in _BY_WORDS.items() if words in said]
        return by_words[0] if by_words else code.group() if code else _RULE
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return STORY if where.name.startswith("stories") else INVARIANT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--budget", type=int, default=BUDGET, help="seeds at most for each mistake and try")
    parser.add_argument("--tries", type=int, default=1, help="how many times, each from another seed")
    parser.add_argument("--only", default="", help="those with these words in their name or origin")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    from simulation.mistakes import MUTANTS

    mutants = [mutant for mutant in MUTANTS if options.only in f"{mutant.name} {mutant.origin}"]
    if not mutants:
        parser.error(f"no mistake has {options.only!r} in its name or origin")
    hunts: dict[str, list[Hunt]] = {}
    print(f"| mistake | where from | seeds, median of {options.tries} | caught by | seconds |\n|---|---|--:|---|--:|")
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = {
            mutant.name: [
                pool.submit(hunt, mutant.name, 1 + number * _APART, options.budget) for number in range(options.tries)
            ]
            for mutant in mutants
        }
        for mutant in mutants:
            found = hunts[mutant.name] = [future.result() for future in futures[mutant.name]]
            print(_row(mutant.name, mutant.origin, found, options.budget), flush=True)
    print()
    for line in summary(hunts, options.budget):
        print(line)
    return any(not one.seeds for found in hunts.values() for one in found)


def _row(name: str, origin: str, found: list[Hunt], budget: int) -> str:
    oracles = list(dict.fromkeys(one.oracle for one in found))
    seconds = statistics.mean(one.seconds for one in found)
    return f"| {name} | {origin} | {_median(found, budget):g} | {', '.join(oracles)} | {seconds:.1f} |"


def _median(found: list[Hunt], budget: int) -> float:
    return statistics.median(one.seeds or budget for one in found)


def summary(hunts: dict[str, list[Hunt]], budget: int) -> Iterator[str]:
    """What it all comes to, in Markdown."""
    missed = [one for found in hunts.values() for one in found if not one.seeds]
    caught = len(hunts) - len({one.name for one in missed})
    medians = {name: _median(found, budget) for name, found in hunts.items()}
    worst = max((one.seeds, one.name) for found in hunts.values() for one in found)
    yield f"{caught} of {len(hunts)} caught. Median of the medians: {statistics.median(medians.values()):g} seeds; "
    yield f"worst of all tries: {worst[0]} seeds ({worst[1]})."
    for one in missed:
        yield f"\nNot caught: {one.name}: {one.oracle} {one.said}"
    yield "\n| kind of oracle | caught it first, in some try | in every try |\n|---|--:|--:|"
    kinds = {name: {one.oracle for one in found} for name, found in hunts.items()}
    for kind in sorted({kind for some in kinds.values() for kind in some}):
        first = sum(kind in some for some in kinds.values())
        alone = sum(some == {kind} for some in kinds.values())
        yield f"| {kind} | {first} | {alone} |"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
