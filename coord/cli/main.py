"""The `coord` command: finds the subcommand, runs it, and turns whatever goes wrong into one line and an exit code.

A subcommand's module is imported only when it is called, so that each starts quickly. What must not live here: what any
subcommand does.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from coord import __version__
from coord.cli.output import EXIT_CODES, FAILED, INTERRUPTED, CommandError, complain, exit_code
from coord.errors import CoordError

#: Where each subcommand lives. Such a module's `add_parser` adds all of its own, each with a `func` that takes the
#: parsed arguments and returns the exit code.
COMMANDS = {
    "demo": "coord.cli.demo",
    "node": "coord.cli.node",
    "status": "coord.cli.group",
    "members": "coord.cli.group",
    "leader": "coord.cli.group",
    "transfer": "coord.cli.group",
    "get": "coord.cli.config",
    "put": "coord.cli.config",
    "delete": "coord.cli.config",
    "ls": "coord.cli.config",
    "watch": "coord.cli.config",
    "lock": "coord.cli.lock",
    "run-if-leader": "coord.cli.run",
    "wal": "coord.cli.wal",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage and `--help` end in SystemExit, as argparse has it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser(arguments).parse_args(arguments)
    try:
        code: int = args.func(args)
        # Here, not at exit: a reader that has gone must be noticed where it can be handled.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `coord ls | head`. What python would flush at exit must not complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except CommandError as error:
        complain(error)
        return error.code
    except CoordError as error:
        complain(error)
        return exit_code(error)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser: of the command asked for alone where that is plain, else of all."""
    parser = argparse.ArgumentParser(
        prog="coord",
        description="Locks, elections and a config map, replicated inside Python processes: try it, run a member, "
        "ask one.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coord {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    first = arguments[0] if arguments else ""
    modules = [COMMANDS[first]] if first in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        importlib.import_module(module).add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
