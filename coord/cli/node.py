"""`coord node`: run one member until SIGTERM or SIGINT, then stop it cleanly, leadership handed over.

The process is ours, so signal handlers and log handlers are set here, which a library must not do.
What must not live here: settings (`coord.cli.settings`), what other commands may ask (`coord.cli.control_server`).
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading

from coord.cli.control import control_address
from coord.cli.control_server import ControlServer
from coord.cli.holds import relied_on
from coord.cli.output import FAILED, OK, complain, printable
from coord.cli.settings import NodeSettings, add_arguments, settings_of
from coord.errors import ClosedError, CoordError
from coord.node import Node

#: Seconds for stopping: handing leadership over, then for commands still under way.
_STOP_SECONDS, _ANSWER_SECONDS = 5.0, 1.0
#: No key is as long, so a watch of this prefix reports nothing but its end: the member's.
_NO_KEY = "x" * 8192


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "node",
        help="run a member of a group until SIGTERM or Ctrl-C",
        description="Run one member. A setting is taken from its flag, else from the environment, else from --config.",
        epilog="Prints a line when it runs and one for each change of role. Exit code 0 after SIGTERM or Ctrl-C, 1 "
        "when it had to stop, 2 when a setting is refused.",
    )
    add_arguments(parser)
    parser.set_defaults(func=node)


def node(args: argparse.Namespace) -> int:
    settings = settings_of(args, os.environ)
    address = control_address(settings.control, settings.data_dir)
    member = Node(
        settings.name,
        bind=settings.bind,
        advertise=settings.advertise,
        peers=settings.peers,
        data_dir=settings.data_dir,
        group=settings.group,
        options=settings.options,
        registry=None,
        insecure=settings.insecure,
    )
    endings = _catch_signals()
    _log_to_console()
    if not _outlast_predecessor(settings, endings):
        print(f"{member.name} has stopped", flush=True)
        return OK
    with member.start():
        server = ControlServer(member, address, settings.data_dir)
        try:
            _say_hello(member, settings, server)
            problem = _wait(member, endings)
            server.stop_accepting()
            # What was held for commands is released when the member stops, so they have to end first.
            server.end_holds()
            # Answers whoever still waits, so that the server's threads can end.
            member.stop(_STOP_SECONDS)
        finally:
            server.close(_ANSWER_SECONDS)
    if problem is not None:
        complain(problem)
        return FAILED
    print(f"{member.name} has stopped", flush=True)
    return OK


#: Why to end: None for a signal, else what made the member stop.
_Endings = queue.SimpleQueue[CoordError | None]


def _catch_signals() -> _Endings:
    """From here on SIGTERM and SIGINT ask for an orderly end; a second one ends at once."""
    endings: _Endings = queue.SimpleQueue()

    def ask(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        # The one queue whose put is safe in a signal handler.
        endings.put(None)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return endings


def _outlast_predecessor(settings: NodeSettings, endings: _Endings) -> bool:
    """If this member was killed, commands may still run because of what it held for them. They know for how long they
    may, and until then it has to stay held. False: a signal came instead."""
    seconds = relied_on(settings.data_dir, settings.options.lease)
    if not seconds:
        return True
    print(f"waits {seconds:.1f} s for the commands of the process before to end", flush=True)
    try:
        endings.get(timeout=seconds)
    except queue.Empty:
        return True
    return False


def _wait(member: Node, endings: _Endings) -> CoordError | None:
    """Until a signal comes or the member stops by itself; then why."""
    watch = member.config.watch(_NO_KEY, initial=False)

    def report_end() -> None:
        try:
            for event in watch:
                raise AssertionError(f"nobody can have written {event.key!r}")
        except CoordError as error:
            endings.put(error)

    threading.Thread(target=report_end, name="coord-end", daemon=True).start()
    ending = endings.get()
    watch.close()
    return None if isinstance(ending, ClosedError) else ending


def _say_hello(member: Node, settings: NodeSettings, server: ControlServer) -> None:
    status = member.status()
    listens = f"listens on {settings.bind}, " if settings.bind else ""
    print(
        f"{member.name} runs: group {printable(member.group)}, {len(status.members)} "
        f"member{'s' if len(status.members) > 1 else ''}, {listens}takes commands on {server.address.text}",
        flush=True,
    )


def _log_to_console() -> None:
    """Changes of role on stdout, as part of what the command says; everything that is wrong on stderr."""
    # A reader that has gone is no reason to write a traceback for every line.
    logging.raiseExceptions = False
    roles = logging.StreamHandler(sys.stdout)
    roles.addFilter(lambda record: record.levelno < logging.WARNING)
    logging.getLogger("coord.raft").addHandler(roles)
    logging.getLogger("coord.raft").setLevel(logging.INFO)
    problems = logging.StreamHandler(sys.stderr)
    problems.setLevel(logging.WARNING)
    problems.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("coord").addHandler(problems)
