"""`coord lock ls` and `coord lock run`: who holds which lock, and a command that runs while it holds one.

What must not live here: how the node is asked (`coord.cli.control`), how a command is run (`coord.cli.supervisor`).
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from coord.cli.child import Child, Signals, find
from coord.cli.control import add_node_arguments, client_of, seconds
from coord.cli.output import FAILED, OK, CommandError, complain, print_json, printable, table
from coord.cli.supervisor import Lost, Supervisor, say

#: The node answers so much later than it was to wait, at most.
_MARGIN_SECONDS = 5.0
#: Not to wait for the lock is to wait for an answer still.
_ANSWER_SECONDS = 10.0
#: Seconds from SIGTERM to SIGKILL when this command is told to end.
GRACE_SECONDS = 10.0

HOW_IT_ENDS = """\
The command has a process group of its own. When the lock, or the leadership, may soon be lost, as the node or its group
does not answer any more, the whole group is sent SIGTERM, and SIGKILL before anybody else can be granted it. Ctrl-C,
SIGTERM and SIGHUP to this command send SIGTERM to the group, and SIGKILL after a grace; a second one kills at once;
Ctrl-Z does nothing, as the lease would not stop. What the command leaves running in its group is killed when it ends.
If this command itself is killed or stopped, the group is killed in time by a second process that watches; on Linux, and
there alone, the command itself is in any case killed with it. Beyond reach is what leaves the process group, or becomes
another user. The command may use the terminal, but has no job control there."""

_DESCRIPTION = """\
Wait for the lock, run the command, release the lock; like flock(1), but for a group of hosts. The command finds
COORD_LOCK_NAME, COORD_LOCK_TOKEN (a number that grows from hold to hold: give it to what the lock protects, to refuse
whoever comes late) and COORD_SEQUENCER in its environment."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("lock", help="list locks, or run a command that holds one")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    parser = commands.add_parser(
        "ls",
        help="list the locks that are held, waited for, or not yet given again",
        description="List the locks as this node knows them, elections too: theirs are named election:NAME.",
    )
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    add_node_arguments(parser)
    parser.set_defaults(func=ls)

    parser = commands.add_parser(
        "run",
        help="wait for a lock, run a command, release",
        usage="coord lock run [options] NAME -- COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=f"{HOW_IT_ENDS}\n\nexit code: the command's, or 128 and the number of the signal that ended it; 1 if "
        "the lock was lost; 2 wrong\nusage; 3 no quorum; 5 not granted in time; 126, 127 the command cannot be run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("command", metavar="COMMAND", nargs="+")
    parser.add_argument("--shared", action="store_true", help="together with other shared holders")
    parser.add_argument("--permits", type=int, default=1, metavar="N", help="up to N hold it at a time; default: 1")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher is granted first; default: 0")
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--timeout", type=seconds, metavar="SECONDS", help="how long to wait; default: for ever")
    waiting.add_argument("--no-wait", action="store_true", help="do not wait at all")
    parser.add_argument(
        "--lock-delay",
        type=seconds,
        metavar="SECONDS",
        help="nobody is granted it for so long if it is lost, 0 to 60; default: as long as a session lasts unheard",
    )
    parser.add_argument(
        "--term-grace",
        type=seconds,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"from SIGTERM to SIGKILL; default: {GRACE_SECONDS:g}",
    )
    add_node_arguments(parser)
    parser.set_defaults(func=run)


def ls(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        locks = [lock for page in client.stream("locks", patience=60.0, prefix=args.prefix) for lock in page]
    if args.output == "json":
        print_json(locks)
        return OK
    rows = [row for lock in locks for row in _rows(lock)]
    numbers = frozenset(("PERMITS", "TOKEN", "SLOT", "HELD", "WAITING", "DELAYED"))
    header = ("NAME", "MODE", "PERMITS", "OWNER", "TOKEN", "SLOT", "HELD", "WAITING", "DELAYED")
    for line in table(header, rows, numbers):
        print(line)
    return OK


def _rows(lock: dict[str, Any]) -> list[list[str]]:
    """A line for each holder; what concerns the lock as a whole on the first."""
    delayed = f"{lock['delayed_s']:.1f}s" if lock["delayed_s"] else "-"
    rest = [[str(lock["waiting"]), delayed]]
    holders = [
        [printable(holder["owner"]), str(holder["token"]), str(holder["slot"]), f"{holder['held_s']:.1f}s"]
        for holder in lock["holders"]
    ] or [["-"] * 4]
    first = [printable(lock["name"]), lock["mode"], str(lock["permits"])]
    return [
        [*(first if number == 0 else [""] * 3), *holder, *(rest[0] if number == 0 else [""] * 2)]
        for number, holder in enumerate(holders)
    ]


def run(args: argparse.Namespace) -> int:
    find(args.command[0])
    timeout = _ANSWER_SECONDS if args.no_wait else args.timeout

    def start(token: int, sequencer: str) -> Child:
        names = {"COORD_LOCK_NAME": args.name, "COORD_LOCK_TOKEN": str(token), "COORD_SEQUENCER": sequencer}
        return Child(args.command, names)

    with Signals() as signals, client_of(args) as client:
        client.begin(
            "hold",
            kind="lock",
            name=args.name,
            shared=args.shared,
            permits=args.permits,
            priority=args.priority,
            lock_delay=args.lock_delay,
            value=None,
            wait=not args.no_wait,
            timeout=timeout,
        )
        supervisor = Supervisor(
            client,
            signals,
            start,
            grace=args.term_grace,
            patience=math.inf if timeout is None else timeout + _MARGIN_SECONDS,
            waiting=_show_holder(args.name),
        )
        try:
            outcome = supervisor.run()
        except Lost as error:
            raise CommandError(f"lock {args.name!r} was lost before the command was run: {error}", FAILED) from error
    if outcome.lost:
        complain(f"lock {args.name!r} was at risk, so the command was told to end: {outcome.why}")
    return outcome.exit_code(signals)


def _show_holder(name: str) -> Any:
    """Tell a person, but not a log, why nothing happens."""

    def show(holder: str) -> None:
        if sys.stderr.isatty():
            say(f"waiting for lock {name!r}, held by {holder}")

    return show
