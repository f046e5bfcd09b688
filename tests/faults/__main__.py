"""Run all faults, or those named, and print the table: ``PYTHONPATH=tests python -m faults [--quick] [WORD ...]``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from faults.scenarios import HEAD, Scenario, network_for, run, scenarios, table


def attempt(one: Scenario, directory: Path) -> tuple[bool, list[str]]:
    """Run one; whether it went well, and its row."""
    print(f"... {one.name} ({network_for(one.network) or 'not permitted here'})", flush=True)
    if not network_for(one.network):
        return True, [one.name, "not permitted here", *([""] * (len(HEAD) - 2))]
    try:
        row = run(one, directory)
    except Exception as error:
        traceback.print_exc()
        first = str(error).split("\n")[0][:300].replace("|", "/")
        print(f"    failed; what it left is in {directory}", flush=True)
        return False, [one.name, network_for(one.network), *([""] * (len(HEAD) - 3)), f"FAILED: {first}"]
    print(
        "    " + ", ".join(f"{name}: {cell}" for name, cell in zip(HEAD[2:], row.cells()[2:], strict=True)), flush=True
    )
    return not row.problems, row.cells()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults with all of these in their names")
    parser.add_argument("--quick", action="store_true", help="only those that run every time")
    parser.add_argument("--keep", action="store_true", help="keep the files of those that went well too")
    options = parser.parse_args()
    chosen = [one for one in scenarios(options.quick) if all(word in one.name for word in options.words)]
    rows, failed = [], []
    for one in chosen:
        place = Path(tempfile.mkdtemp(prefix="coord-faults-"))
        well, cells = attempt(one, place)
        rows.append(cells)
        if not well:
            failed.append(one.name)
        elif not options.keep:
            shutil.rmtree(place)
    print(table(rows))
    print(f"{len(rows) - len(failed)} of {len(rows)} went as demanded" + (f"; not: {failed}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
