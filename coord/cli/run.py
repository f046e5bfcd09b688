"""`coord run-if-leader`: a command that runs only while this host leads an election, started again whenever it does.

What must not live here: how a command is kept within its lease (`coord.cli.supervisor`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from coord.cli.child import NOT_RUNNABLE, Child, Signals, find
from coord.cli.control import add_node_arguments, client_of, seconds
from coord.cli.lock import GRACE_SECONDS, HOW_IT_ENDS
from coord.cli.output import OK, USAGE, CommandError
from coord.cli.supervisor import Lost, Outcome, Supervisor, say

#: Seconds a command must have run for its end to be no sign of trouble.
_STEADY_SECONDS = 10.0


@dataclass
class Pauses:
    """How long to wait before the next attempt: twice as long each time, until one went well."""

    first: float
    longest: float
    _last: float = 0.0

    def next(self) -> float:
        self._last = min(self.longest, self._last * 2 or self.first)
        return self._last

    def went_well(self) -> None:
        self._last = 0.0


_DESCRIPTION = f"""\
Stand for election, and run the command while elected: on one host of the group at a time. When it ends, or leadership
is lost, stand again; after a command that ran for less than {_STEADY_SECONDS:g} s a pause comes first, which grows to a
minute. The command finds COORD_ELECTION, COORD_TOKEN (a number that grows from leader to leader: give it to what the
leader writes to, to refuse whoever comes late) and COORD_SEQUENCER in its environment."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run-if-leader",
        help="run a command while this host leads an election",
        usage="coord run-if-leader [options] -- COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=f"{HOW_IT_ENDS}\n\nexit code: 0 after SIGTERM or Ctrl-C; 1 no node; 2 wrong usage; 126, 127 the command "
        "cannot be run; with --once\nthe command's, or 128 and the number of the signal that ended it, or 1 if "
        "leadership was lost",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", nargs="+")
    parser.add_argument("--election", default="leader", metavar="NAME", help="default: leader")
    parser.add_argument("--value", metavar="TEXT", help="published while it leads; see Election.leader()")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher is elected first; default: 0")
    parser.add_argument("--once", action="store_true", help="run the command once, and exit with its exit code")
    parser.add_argument(
        "--term-grace",
        type=seconds,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"from SIGTERM to SIGKILL; default: {GRACE_SECONDS:g}, and never beyond the lease's end",
    )
    add_node_arguments(parser)
    parser.set_defaults(func=run_if_leader)


def run_if_leader(args: argparse.Namespace) -> int:
    find(args.command[0])
    # Once for the sake of its complaint: later a node may be away for a while, but it must have been there.
    with client_of(args):
        pass
    after_runs, after_failures = Pauses(1.0, 60.0), Pauses(0.2, 5.0)
    complaint = ""
    with Signals() as signals:
        while True:
            try:
                outcome = _stand(args, signals)
            except (CommandError, Lost) as error:
                if isinstance(error, CommandError) and (error.code == USAGE or args.once):
                    raise
                if str(error) != complaint:
                    say(complaint := str(error))
                cannot_run = isinstance(error, CommandError) and error.code >= NOT_RUNNABLE
                pause = (after_runs if cannot_run else after_failures).next()
            else:
                after_failures.went_well()
                complaint = ""
                if outcome.code is not None:
                    say(_describe(args, outcome))
                if args.once:
                    return outcome.exit_code(signals)
                if outcome.seconds >= _STEADY_SECONDS:
                    after_runs.went_well()
                pause = after_runs.next()
            if signals.wait(pause):
                return 128 + signals.number if args.once else OK


def _stand(args: argparse.Namespace, signals: Signals) -> Outcome:
    """Be elected once, and run the command."""

    def start(token: int, sequencer: str) -> Child:
        names = {"COORD_ELECTION": args.election, "COORD_TOKEN": str(token), "COORD_SEQUENCER": sequencer}
        return Child(args.command, names)

    with client_of(args) as client:
        client.begin(
            "hold",
            kind="election",
            name=args.election,
            shared=False,
            permits=1,
            priority=args.priority,
            lock_delay=None,
            value=args.value,
            wait=True,
            timeout=None,
        )
        return Supervisor(
            client,
            signals,
            start,
            grace=args.term_grace,
            waiting=lambda holder: say(f"{holder} leads {args.election!r}; waiting"),
            holding=lambda token: say(f"leads {args.election!r} with token {token}: running {args.command[0]}"),
        ).run()


def _describe(args: argparse.Namespace, outcome: Outcome) -> str:
    why = f", told to end: {outcome.why}" if outcome.why else ""
    return f"{args.command[0]} has ended after {outcome.seconds:.1f} s with exit code {outcome.code}{why}"
