"""Whether a built wheel would install what it should, and nothing else: `python tests/check_wheel.py DIRECTORY`.

What pip would leave in site-packages is what a host app shares its names with, so there must be only `coord`.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Where each package's sources are, in the repository.
FOLDERS = {"coord": ROOT / "coord", "coord/transports": ROOT / "transports", "coord/metrics": ROOT / "metrics"}


def expected() -> set[str]:
    """Every module of the repository, as the wheel should name it."""
    names = {"coord/py.typed"}
    for installed, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            names.add(f"{installed}/{path.relative_to(folder).as_posix()}")
    return names


def differences(wheel: Path) -> list[str]:
    """What is wrong with `wheel`, one line each; none when it is right."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = expected()
    return [f"missing: {name}" for name in sorted(wanted - names)] + [
        f"extra: {name}" for name in sorted(names - wanted)
    ]


def main(directory: str) -> int:
    wheels = sorted(Path(directory).glob("*.whl"))
    if len(wheels) != 1:
        print(f"expected one wheel in {directory}, found {len(wheels)}")
        return 1
    wrong = differences(wheels[0])
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
