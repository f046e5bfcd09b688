"""`python -m coord.cli`: the `coord` command, where the script is not on the path. Nothing else lives here."""

import sys

from coord.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
