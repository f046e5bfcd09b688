"""What `coord node` is told: by flags, by the environment, by a TOML file, in this order of precedence.

What must not live here: what the settings mean and most of their checks (`coord.node`, `coord.options`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from coord.errors import ConfigurationError
from coord.options import Options

#: Settings of one text each: by name, the help of their flag. COORD_NAME and so on in the environment.
TEXTS = {
    "name": "this member's name; default: a group of one",
    "bind": "where it listens for the others, tcp://ADDRESS:PORT or ipc://PATH",
    "advertise": "what the others dial, when that differs from --bind",
    "data_dir": "directory for its log and snapshots, its alone",
    "group": "name of the group; default: coord",
    "control": "where it takes commands, ipc://PATH or loopback tcp://; default: control.sock in the data directory",
}
_KEYS = {*TEXTS, "insecure", "peers", "options"}


@dataclass(frozen=True)
class NodeSettings:
    """Everything `coord node` needs; not yet checked by `coord.Node`."""

    data_dir: str
    options: Options
    name: str | None = None
    bind: str | None = None
    advertise: str | None = None
    peers: dict[str, str] | None = None
    group: str = "coord"
    control: str | None = None
    insecure: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting. None has a default here: what is not given is looked for elsewhere."""
    for name, text in TEXTS.items():
        flags = [f"--{name.replace('_', '-')}"]
        if name == "data_dir":
            flags.insert(0, "-d")
        metavar = {"data_dir": "DIR", "name": "NAME", "group": "NAME"}.get(name, "ADDRESS")
        parser.add_argument(*flags, dest=name, metavar=metavar, help=f"{text} (COORD_{name.upper()})")
    parser.add_argument(
        "--peers", metavar="LIST", help="all members, this one included: a=tcp://..,b=tcp://..,c=.. (COORD_PEERS)"
    )
    parser.add_argument(
        "--option",
        dest="options",
        metavar="NAME=VALUE",
        action="append",
        help="a field of coord.Options, its value as JSON: heartbeat=0.1, election_timeout=[1,2]; may be repeated "
        "(COORD_OPTIONS, separated by spaces)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="allow to listen beyond this machine, unencrypted and open to all (COORD_INSECURE=1)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="TOML with the same names, and tables [peers] and [options] (COORD_CONFIG)"
    )


def settings_of(args: argparse.Namespace, environment: Mapping[str, str]) -> NodeSettings:
    """The settings; ConfigurationError says what is wrong, and where it was read."""
    path = args.config or environment.get("COORD_CONFIG")
    found = _read_file(path) if path else {}
    found.update(_from_environment(environment))
    found.update(_from_flags(args))
    if not found.get("data_dir"):
        raise ConfigurationError(
            "data_dir is missing: give --data-dir DIR, or set COORD_DATA_DIR; the log is kept there"
        )
    options = found.pop("options", {})
    known = {field.name for field in fields(Options)}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"there is no option {name!r}; there are {', '.join(sorted(known))}")
    return NodeSettings(options=Options(**options), **found)


def _from_flags(args: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(args, name) for name in (*TEXTS, "insecure") if getattr(args, name) is not None}
    if args.peers is not None:
        found["peers"] = parse_peers(args.peers, "--peers")
    if args.options:
        found["options"] = _parse_options(args.options, "--option")
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """An empty variable counts as none, as a container's template may leave it."""
    found: dict[str, Any] = {}
    for name in TEXTS:
        if value := environment.get(f"COORD_{name.upper()}"):
            found[name] = value
    if peers := environment.get("COORD_PEERS"):
        found["peers"] = parse_peers(peers, "COORD_PEERS")
    if options := environment.get("COORD_OPTIONS"):
        found["options"] = _parse_options(options.split(), "COORD_OPTIONS")
    if insecure := environment.get("COORD_INSECURE"):
        if insecure not in ("0", "1"):
            raise ConfigurationError(f"COORD_INSECURE={insecure!r}: expected 0 or 1")
        found["insecure"] = insecure == "1"
    return found


def parse_peers(text: str, where: str) -> dict[str, str]:
    """`a=tcp://..,b=tcp://..` as a dict. A name given twice is refused: one of the two would be lost."""
    peers: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, address = part.partition("=")
        if not separator or not name or not address:
            raise ConfigurationError(f"{where}: {part!r} is not NAME=ADDRESS; write a=tcp://10.0.0.1:7400,b=...")
        if name in peers:
            raise ConfigurationError(f"{where}: {name!r} is named twice; each member needs a name of its own")
        peers[name] = address
    if not peers:
        raise ConfigurationError(f"{where} names no member; write a=tcp://10.0.0.1:7400,b=...")
    return peers


def _parse_options(parts: Iterable[str], where: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in parts:
        name, separator, text = part.partition("=")
        if not separator:
            raise ConfigurationError(f"{where}: {part!r} is not NAME=VALUE; write for example heartbeat=0.1")
        if name in options:
            raise ConfigurationError(f"{where}: {name!r} is given twice")
        try:
            options[name] = json.loads(text)
        except ValueError:
            # A word, as in fsync=inline.
            options[name] = text
    return options


def _read_file(path: str) -> dict[str, Any]:
    """What the TOML file says, with the types it must have."""
    found = _load_toml(path)
    for name, value in found.items():
        if name not in _KEYS:
            raise ConfigurationError(f"{path}: there is no setting {name!r}; there are {', '.join(sorted(_KEYS))}")
        wanted = bool if name == "insecure" else str if name in TEXTS else dict
        if type(value) is not wanted:
            raise ConfigurationError(f"{path}: {name} is a {type(value).__name__}; expected {_KINDS[wanted]}")
    return found


_KINDS: dict[type, str] = {bool: "true or false", str: "text", dict: "a table"}


def _load_toml(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib

        try:
            with open(path, "rb") as file:
                return tomllib.load(file)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from error
    raise ConfigurationError("--config needs Python 3.11 or later; give flags or environment variables instead")
