"""`coord status`, `members`, `leader` and `transfer`: ask running nodes about their group.

What must not live here: how they are asked (`coord.cli.control`).
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from coord.cli.control import ControlClient, add_node_arguments, add_timeout, addresses_of, client_of
from coord.cli.output import NO_QUORUM, OK, USAGE, CommandError, print_json, printable, table

_STATUS_HEADER = ("NAME", "ROLE", "TERM", "ALIVE", "MATCH", "LAG", "APPLIED", "HASH", "ADDRESS")
_NUMBERS = frozenset(("TERM", "MATCH", "LAG", "APPLIED"))
#: What the asked node cannot know.
_UNKNOWN = "-"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "status",
        help="the group as one or more running nodes see it",
        description="One line for each member. A node knows term, applied index and state hash of itself alone: name "
        "several nodes to compare them. Match and lag only the leader knows.",
    )
    add_node_arguments(parser, several=True)
    parser.set_defaults(func=status)

    parser = subparsers.add_parser("members", help="names and addresses of all members")
    add_node_arguments(parser)
    parser.set_defaults(func=members)

    parser = subparsers.add_parser("leader", help="the leader's name; exit code 3 while none is known")
    add_node_arguments(parser)
    parser.set_defaults(func=leader)

    parser = subparsers.add_parser("transfer", help="have the leader hand leadership over; ask the leader")
    parser.add_argument("to", metavar="NAME", nargs="?", help="the member to lead; default: the most up to date")
    add_node_arguments(parser)
    add_timeout(parser)
    parser.set_defaults(func=transfer)


def status(args: argparse.Namespace) -> int:
    replies = []
    for address in addresses_of(args.data_dir or [], args.control or []):
        with ControlClient(address) as client:
            replies.append(client.call("status"))
    groups = {(reply["group"], reply["cluster_id"][:16]) for reply in replies}
    if len(groups) > 1:
        raise CommandError(f"these nodes are not of one group: {', '.join(sorted(name for name, _ in groups))}", USAGE)
    if args.output == "json":
        for reply in replies:
            print_json(for_json(reply))
        return OK
    # The leader knows most of the others; the highest term, who leads.
    best = max(replies, key=lambda reply: (reply["term"], reply["role"] == "leader"))
    quorum = "yes" if best["quorum_ok"] else "NO"
    leader_name = best["leader"] or "none"
    print(f"group {printable(best['group'])}  leader {leader_name}  quorum {quorum}  commit {best['commit_index']}")
    own = {reply["name"]: reply for reply in replies}
    rows = [_status_row(member, best, own.get(member["name"])) for member in best["members"]]
    for line in table(_STATUS_HEADER, rows, _NUMBERS):
        print(line)
    return OK


def _status_row(member: dict[str, Any], seen_by: dict[str, Any], own: dict[str, Any] | None) -> list[str]:
    """One member as `seen_by` sees it, and as itself does, if it was asked."""
    name = member["name"]
    leads = seen_by["role"] == "leader"
    role = _UNKNOWN
    if own is not None:
        role = own["role"]
    elif name == seen_by["leader"]:
        role = "leader"
    elif seen_by["leader"] is not None:
        role = "follower" if member["voter"] else "learner"
    knows_life = leads or own is not None or name == seen_by["leader"]
    alive = "yes" if member["alive"] or own is not None else "NO"
    return [
        name,
        role,
        _UNKNOWN if own is None else str(own["term"]),
        alive if knows_life else _UNKNOWN,
        str(member["match_index"]) if leads else _UNKNOWN,
        str(member["lag"]) if leads else _UNKNOWN,
        _UNKNOWN if own is None else str(own["applied_index"]),
        _UNKNOWN if own is None else own["state_hash"],
        member["address"] or _UNKNOWN,
    ]


def members(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        reply = client.call("status")
    if args.output == "json":
        print_json(for_json(reply)["members"])
        return OK
    rows = [
        [member["name"], "yes" if member["voter"] else "no", member["address"] or _UNKNOWN]
        for member in reply["members"]
    ]
    for line in table(("NAME", "VOTES", "ADDRESS"), rows):
        print(line)
    return OK


def leader(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        reply = client.call("status")
    name = reply["leader"]
    if name is None:
        raise CommandError(
            f"no leader is known to {reply['name']!r}: its group has no quorum, or is electing", NO_QUORUM
        )
    if args.output == "json":
        print_json({"leader": name, "term": reply["term"]})
    else:
        print(name)
    return OK


def transfer(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        name = client.call("transfer", args.timeout, to=args.to)
    if args.output == "json":
        print_json({"leader": name})
    else:
        print(f"{name} leads" if name else "handed over")
    return OK


def for_json(reply: dict[str, Any]) -> dict[str, Any]:
    """A status as JSON can have it: infinite becomes null."""
    rows = [
        {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in member.items()}
        for member in reply["members"]
    ]
    return {**reply, "members": rows}
