"""Run everything there is about locks on real processes, or what has all WORDs in its name, and print the tables.

``PYTHONPATH=tests:. python -m locks [--quick] [WORD ...]``
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from faults.scenarios import network_for
from locks import figures
from locks.campaign import HEAD, Campaign, Row, campaigns, run


def attempt(campaign: Campaign) -> Row | None:
    """Run one and print its row; None if it failed, and then what it left is there to be looked at."""
    place = Path(tempfile.mkdtemp(prefix="coord-locks-"))
    print(f"... {campaign.name}, {campaign.faults} faults ({network_for(campaign.network)})", flush=True)
    try:
        row = run(campaign, place)
    except Exception:
        traceback.print_exc()
        print(f"    failed; what it left is in {place}", flush=True)
        return None
    shutil.rmtree(place)
    print(
        "    " + ", ".join(f"{name}: {cell}" for name, cell in zip(HEAD[1:], row.cells()[1:], strict=True)), flush=True
    )
    print(f"    {dict(row.kinds)}", flush=True)
    for wait in row.exceeded:
        print(f"    exceeded: {wait}", flush=True)
    for wait in row.unexplained:
        print(f"    lost for no reason given: {wait}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m locks", description=__doc__)
    parser.add_argument("words", nargs="*", help="only what has all of these in its name")
    parser.add_argument("--quick", action="store_true", help="only what runs every time")
    options = parser.parse_args()
    chosen = [one for one in campaigns(not options.quick) if all(word in one.name for word in options.words)]
    rows = [attempt(campaign) for campaign in chosen]
    measured = [one for one in figures.ALL if all(word in one.name for word in options.words)]
    lines, failed = figures.measure_all(measured, quick=options.quick)
    if rows:
        print(figures.table(HEAD, [row.cells() for row in rows if row is not None]))
    if lines:
        print(figures.table(figures.HEAD, lines))
    well = [row for row in rows if row is not None]
    print(
        f"{sum(sum(row.kinds.values()) for row in well)} faults, {sum(row.hit for row in well)} of a holder at work; "
        f"{sum(len(row.exceeded) for row in well)} waited too long; {len(rows) - len(well)} groups and {failed} "
        "measurements failed"
    )
    return int(len(well) < len(rows) or failed > 0)


if __name__ == "__main__":
    sys.exit(main())
