"""What a scenario is, how one is run, and the row it makes in the table.

A scenario is a function that does something bad to a group under load, and says what must go on meanwhile. Before it
the group works; after it the network is mended, all members that may serve must serve again, and the whole history is
judged. What must not live here: single faults (`process_faults`, `network_faults`, `disk_faults`, `identity_faults`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coord.clock import clock
from faults import judge, second_opinion
from faults.lab import QUICK, Lab, Measured, measure
from faults.network import namespaces_allowed
from faults.record import CONFLICT, OK, REFUSED, UNKNOWN

#: Checks of what need not come up in every run: watches that no snapshot interrupted, conflicts.
MAY_BE_FEW = {"watched too", "conflicts"}
#: Before the fault, and after all serve again.
CALM_SECONDS = 0.4


@dataclass(slots=True, frozen=True)
class Scenario:
    """One fault."""

    name: str
    act: Callable[[Lab], None]
    members: str = "abc"
    #: "plain"; "cut": whatever can cut; "proxies" or "namespaces": that.
    network: str = "plain"
    options: dict[str, Any] = field(default_factory=dict)
    #: Changes to what clients do.
    clients: dict[str, Any] = field(default_factory=dict)
    #: Among those that run every time.
    quick: bool = False


@dataclass(slots=True)
class Row:
    """What came of one scenario."""

    scenario: Scenario
    network: str
    seconds: float
    measured: Measured
    checked: dict[str, int]
    notes: list[str]
    #: What must not be, found only after everything else was in order.
    problems: list[str]

    def cells(self) -> list[str]:
        measured, outcomes = self.measured, self.measured.outcomes
        failed = outcomes.get(REFUSED, 0) + outcomes.get(CONFLICT, 0)
        return [
            self.scenario.name,
            self.network,
            str(measured.leader_changes),
            str(measured.terms),
            f"{1000 * measured.gap_during:.0f}",
            f"{1000 * measured.gap_after:.0f}",
            f"{outcomes.get(OK, 0)} / {outcomes.get(UNKNOWN, 0)} / {failed}",
            str(sum(self.checked.values())),
            f"{self.seconds:.1f}",
            "; ".join([*self.notes, *(f"FAILED: {problem}" for problem in self.problems)]),
        ]


HEAD = [
    *("fault", "network", "leader changes", "terms", "gap during, ms", "gap after, ms", "ok / unknown / failed"),
    *("checks", "s", "notes"),
]

_SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    members: str = "abc",
    network: str = "plain",
    options: dict[str, Any] = QUICK,
    quick: bool = False,
    **clients: Any,
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Register the function as a scenario."""

    def register(act: Callable[[Lab], None]) -> Callable[[Lab], None]:
        assert name not in _SCENARIOS, f"two scenarios are called {name!r}"
        _SCENARIOS[name] = Scenario(name, act, members, network, options, clients, quick)
        return act

    return register


def scenarios(quick: bool = False) -> list[Scenario]:
    """All, or only those that run every time."""
    # They register themselves.
    from faults import disk_faults, identity_faults, network_faults, process_faults

    assert disk_faults and identity_faults and network_faults and process_faults
    return [one for one in _SCENARIOS.values() if one.quick or not quick]


_allowed: list[bool] = []


def network_for(wanted: str) -> str:
    """The network to use for what a scenario wants; "" when that is not permitted here."""
    if not _allowed:
        _allowed.append(namespaces_allowed())
    if wanted == "cut":
        return "namespaces" if _allowed[0] else "proxies"
    if wanted == "namespaces" and not _allowed[0]:
        return ""
    return wanted


def run(one: Scenario, directory: Path) -> Row:
    """Run it on what is permitted. Raises AssertionError at the first thing that must not be."""
    began = time.monotonic()
    network = network_for(one.network)
    assert network, "not permitted here"
    with Lab(directory, network, one.members, **one.options) as lab:
        lab.clients.update(one.clients)
        lab.begin(*one.members)
        lab.progress(one.members)
        lab.hold(CALM_SECONDS)
        lab.fault_began = clock()
        one.act(lab)
        lab.network.mend()
        serving = "".join(member.name for member in lab.alive)
        lab.progress(serving)
        lab.hold(CALM_SECONDS)
        recorded, everything = lab.finish()
    checked = judge.check_all(recorded)
    checked.update(second_opinion.check_shared(recorded))
    checked["end"] = judge.check_end(recorded, everything)
    # Nothing of this can fail to be found for want of anything to look at.
    assert all(checked[name] for name in checked.keys() - MAY_BE_FEW), f"something was not looked at: {checked}"
    measured = measure(recorded, lab.fault_began, lab.fault_ended or clock())
    problems = judge.find_silent_gaps(recorded)
    return Row(one, network, time.monotonic() - began, measured, checked, lab.notes, problems)


def table(rows: Iterable[list[str]]) -> str:
    """The rows as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
