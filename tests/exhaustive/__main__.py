"""Search a scope: ``PYTHONPATH=tests python -m exhaustive --terms 2 --entries 2 --crashes 1``.

Messages are lost, repeated and reordered without bound, so there are no options for that.
"""

from __future__ import annotations

import argparse
import sys

from exhaustive.scope import FREE, INSTANT, REAL, SLOW, Scope
from exhaustive.search import Outcome, Search
from exhaustive.story import Story


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m exhaustive", description=__doc__)
    parser.add_argument("--terms", type=int, default=2, help="nobody stands for a newer term (2)")
    parser.add_argument("--entries", type=int, default=2, help="nobody proposes to a log of this length (2)")
    parser.add_argument("--crashes", type=int, default=0, help="of all members together (0)")
    parser.add_argument("--rounds", type=int, default=1, help="of one leader; more than 1 allows heartbeats (1)")
    parser.add_argument("--reads", type=int, default=0, help="asked of anybody (0)")
    parser.add_argument("--pre-votes", choices=[REAL, FREE, INSTANT], default=INSTANT, help="see exhaustive.scope")
    parser.add_argument("--disks", choices=[SLOW, INSTANT], default=INSTANT, help="see exhaustive.scope")
    parser.add_argument("--stickiness", action="store_true", help="voters may also refuse because they hear a leader")
    parser.add_argument("--small-appends", action="store_true", help="one batch in each append")
    parser.add_argument("--joined", action="store_true", help="two messages may arrive within one turn")
    parser.add_argument(
        "--old-messages", action="store_true", help="they still arrive in newer terms; many more states"
    )
    parser.add_argument("--harm-only", action="store_true", help="look for harm, not for the broken promises before it")
    parser.add_argument("--opening", default="", help='what happens first: "a stands; a > b; b > a"')
    parser.add_argument("--states", type=int, default=1 << 62, help="stop after so many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many, of processor time")
    return parser.parse_args()


def scope_of(given: argparse.Namespace) -> Scope:
    return Scope(
        terms=given.terms,
        entries=given.entries,
        crashes=given.crashes,
        rounds=given.rounds,
        reads=given.reads,
        pre_votes=given.pre_votes,
        disk_answers=given.disks,
        stickiness=given.stickiness,
        small_appends=given.small_appends,
        joined=given.joined,
        old_messages=given.old_messages,
        harm_only=given.harm_only,
        opening=tuple(words.strip() for words in given.opening.split(";") if words.strip()),
    )


def report(outcome: Outcome) -> None:
    rate = outcome.states / max(outcome.seconds, 1e-9)
    print(
        f"depth {outcome.depth}: {outcome.states} states, {outcome.frontier} of them new, {outcome.transitions} "
        f"transitions, {outcome.seconds:.0f} s, {rate:.0f} states/s",
        flush=True,
    )


def main() -> int:
    given = options()
    scope = scope_of(given)
    print(f"3 members, {scope.describe()}")
    outcome = Search(scope).run(max_states=given.states, max_seconds=given.seconds, progress=report)
    print(outcome.describe())
    if not outcome.violation:
        return 0
    story = Story(scope)
    again = story.tell(outcome.story)
    print(story.text())
    print("told again by cores that live from the first step to the last: " + (again or "NOTHING WRONG"))
    return 1


if __name__ == "__main__":
    sys.exit(main())
