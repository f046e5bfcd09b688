"""`coord get`, `put`, `delete`, `ls` and `watch`: the config map of a running node.

What must not live here: how the node is asked (`coord.cli.control`), what the map does (`coord.config_map`).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from coord.cli.control import add_node_arguments, add_timeout, client_of, seconds
from coord.cli.output import FAILED, OK, TIMEOUT, USAGE, CommandError, print_json, printable, show_value


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "get",
        help="print a key's value; exit code 1 if it is absent",
        description="Print a key's value: text and bytes as they are, the rest as JSON.",
    )
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("--linearizable", action="store_true", help="ask the quorum rather than this node's own copy")
    add_timeout(parser)
    add_node_arguments(parser)
    parser.set_defaults(func=get)

    parser = subparsers.add_parser("put", help="set a key; prints the revision")
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("value", metavar="VALUE", help="text; with --json, JSON; - reads it from stdin")
    parser.add_argument("--json", action="store_true", help="the value is JSON: a number, a list, an object, null ...")
    parser.add_argument("--if-revision", type=int, metavar="N", help="only if the key is at revision N; 0: if absent")
    parser.add_argument("--ttl", type=seconds, metavar="SECONDS", help="delete it at some time after so many seconds")
    add_timeout(parser)
    add_node_arguments(parser)
    parser.set_defaults(func=put)

    parser = subparsers.add_parser("delete", help="delete a key; exit code 1 if it was absent")
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("--if-revision", type=int, metavar="N", help="only if the key is at revision N")
    add_timeout(parser)
    add_node_arguments(parser)
    parser.set_defaults(func=delete)

    parser = subparsers.add_parser("ls", help="list the keys")
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    add_node_arguments(parser)
    parser.set_defaults(func=ls)

    parser = subparsers.add_parser("watch", help="print what is there, then every change, until Ctrl-C")
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    parser.add_argument("--from-revision", type=int, metavar="N", help="instead of what is there, the changes since N")
    parser.add_argument("--changes-only", action="store_true", help="do not print what is there already")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end after so many seconds")
    add_node_arguments(parser)
    parser.set_defaults(func=watch)


def get(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        entry = client.call("get", args.timeout, key=args.key, linearizable=args.linearizable)
    if entry is None:
        raise CommandError(f"{args.key!r} is absent", FAILED)
    value = entry["value"]
    if args.output == "json":
        print_json(entry)
    elif isinstance(value, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
    elif isinstance(value, str):
        print(value)
    else:
        print(show_value(value))
    return OK


def put(args: argparse.Namespace) -> int:
    value = _value(args)
    with client_of(args) as client:
        revision = client.call("put", args.timeout, key=args.key, value=value, revision=args.if_revision, ttl=args.ttl)
    if args.output == "json":
        print_json({"key": args.key, "revision": revision})
    else:
        print(revision)
    return OK


def _value(args: argparse.Namespace) -> Any:
    """What the command line says to put."""
    text = args.value
    if text == "-":
        if sys.stdin.isatty():
            raise CommandError("VALUE is -, so the value has to be piped into stdin", USAGE)
        data = sys.stdin.buffer.read()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            if args.json:
                raise CommandError("what came from stdin is not JSON: it is not UTF-8", USAGE) from None
            return data
    if not args.json:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"VALUE is not JSON: {error}; leave --json out to put it as text", USAGE) from error


def delete(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        existed = client.call("delete", args.timeout, key=args.key, revision=args.if_revision)
    if args.output == "json":
        print_json({"key": args.key, "deleted": existed})
    if not existed:
        raise CommandError(f"{args.key!r} was absent; nothing changed", FAILED)
    return OK


def ls(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        keys = [key for page in client.stream("ls", patience=60.0, prefix=args.prefix) for key in page]
    if args.output == "json":
        print_json(keys)
    else:
        for key in keys:
            print(printable(key))
    return OK


def watch(args: argparse.Namespace) -> int:
    arguments = {"prefix": args.prefix, "from_revision": args.from_revision, "initial": not args.changes_only}
    try:
        with client_of(args) as client:
            for event in client.stream("watch", patience=args.timeout, **arguments):
                if args.output == "json":
                    print_json(event)
                else:
                    shown = "" if event["kind"] == "delete" else f" = {show_value(event['value'])}"
                    print(f"{event['revision']}  {event['kind']}  {printable(event['key'])}{shown}", flush=True)
    except KeyboardInterrupt:
        return OK
    except CommandError as error:
        # The node ends no watch for being slow: this is our own --timeout.
        if error.code != TIMEOUT or args.timeout is None:
            raise
    return OK
