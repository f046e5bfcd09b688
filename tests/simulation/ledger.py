"""The ledger: what every long run came to, by commit; the totals stand at its end. Only added to.

What must not live here: how seeds are run (`run`).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from simulation.run import Totals

LEDGER = Path(__file__).with_name("LEDGER.md")
_HEAD = """# Ledger of simulated runs

One row for each long run without a failure, on a checkout without changes; the last row adds them up:
`PYTHONPATH=tests:. python -m simulation --seed FIRST --count SEEDS --jobs 2 --ledger`

"""
_COLUMNS = (
    "commit",
    "first seed",
    "seeds",
    "events",
    "simulated hours",
    "crashes",
    "partitions",
    "disk troubles",
    "entries committed",
    "operations",
    "probes met",
)
_DISKS = ("disk error", "full disk", "rot", "misdirected write", "wiped disk", "stall")


def rows() -> list[list[str]]:
    if not LEDGER.exists():
        return []
    lines = [line for line in LEDGER.read_text().splitlines() if line.startswith("| ")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in table if row[0] not in ("commit", "---", "all")]


def add_row(first: int, totals: Totals) -> None:
    root = LEDGER.parents[2]
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if changed.stdout.strip():
        raise SystemExit("the checkout has changes, so no commit says what was run; the ledger is as it was")
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    met = len(totals.probes) - len(totals.never_met())
    numbers = [
        first,
        totals.seeds,
        totals.events,
        round(totals.seconds / 3600, 2),
        totals.crashes,
        totals.troubles.get("partition", 0),
        sum(totals.troubles.get(kind, 0) for kind in _DISKS),
        totals.committed,
        totals.operations,
    ]
    table = [*rows(), [commit, *map(str, numbers), f"{met} of {len(totals.probes)}"]]
    sums = [sum(float(row[column]) for row in table) for column in range(2, 10)]
    last = ["all", "", *(f"{value:g}" if value % 1 else f"{value:.0f}" for value in sums), ""]
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *table, last]
    LEDGER.write_text(_HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines))
