"""Addresses as users write them: parsed, checked, and turned into what a socket takes.

What must not live here: sockets and threads. `look_up` may block on a name server; whoever may not wait for one asks
`coord.transports.resolver`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Any

from coord.errors import ConfigurationError

#: sockaddr_un holds 108 bytes, the last a zero.
IPC_PATH_BYTES_MAX = 107
_EXAMPLE = "write for example tcp://10.0.0.1:7400 or ipc:///run/app/coord.sock"
_TCP = re.compile(r"tcp://(?:\[(?P<v6>[^\[\]\s/]+)\]|(?P<host>[^:\[\]\s/]+)):(?P<port>[0-9]{1,5})")


@dataclass(slots=True, frozen=True)
class Address:
    """A checked address: a host and port, or the path of a Unix socket."""

    text: str
    host: str = ""
    port: int = 0
    #: Not empty: an ipc address. Begins with "@" for Linux's abstract names.
    path: str = ""

    @property
    def numeric(self) -> bool:
        """Whether no name server is needed to reach it."""
        return bool(self.path) or _is_numeric(self.host)


@dataclass(slots=True, frozen=True)
class Target:
    """One numeric way to reach an address."""

    #: As libzmq takes it.
    endpoint: str
    family: socket.AddressFamily
    #: As `socket.connect` takes it.
    sockaddr: Any

    @property
    def needs_ipv6(self) -> bool:
        return self.family == socket.AF_INET6


def parse_bind(text: str, field: str = "bind") -> Address:
    """Check an address to listen on. Port 0 asks for any free one, host `*` for every IPv4 interface."""
    return _parse(text, field)


def parse_peer(text: str, field: str = "peers") -> Address:
    """Check an address to dial: it names one host and one port."""
    address = _parse(text, field)
    if address.path:
        return address
    if address.port == 0:
        raise ConfigurationError(f"{field}: {text!r} has port 0, which nobody can dial; {_EXAMPLE}")
    if address.host == "*" or (_is_numeric(address.host) and _ip(address.host).is_unspecified):
        raise ConfigurationError(
            f"{field}: {text!r} means every interface, which can be listened on but not dialled; {_EXAMPLE}"
        )
    return address


def is_local(text: str) -> bool:
    """Whether only this host can reach `text`: ipc, or a loopback address, or localhost. Any other name counts as not
    local: finding out would mean asking a name server. Malformed: ConfigurationError."""
    address = parse_bind(text, "address")
    if address.path:
        return True
    if _is_numeric(address.host):
        return _ip(address.host).is_loopback
    return address.host.lower() in ("localhost", "localhost.")


def look_up(address: Address) -> list[Target]:
    """Every numeric way to reach `address`, IPv4 first, as libzmq tries them. May block unless `address.numeric`.
    Raises OSError (socket.gaierror) when the name is not known."""
    if address.path:
        path = "\0" + address.path[1:] if address.path.startswith("@") else address.path
        return [Target(address.text, socket.AF_UNIX, path)]
    flags = socket.AI_NUMERICHOST if address.numeric else 0
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    targets: dict[str, Target] = {}
    for family, _, _, _, sockaddr in sorted(found, key=lambda row: row[0] != socket.AF_INET):
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        # A scope ("fe80::1%eth0") is not always in the sockaddr's text, but is in what the user wrote.
        host = address.host if address.numeric else str(sockaddr[0])
        endpoint = endpoint_of(host, address.port)
        targets.setdefault(endpoint, Target(endpoint, family, sockaddr))
    return list(targets.values())


def endpoint_of(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _parse(text: str, field: str) -> Address:
    if not isinstance(text, str):
        raise ConfigurationError(f"{field}: {text!r} is not text; {_EXAMPLE}")
    if text.startswith("ipc://"):
        return _parse_ipc(text, field)
    if not text.startswith("tcp://"):
        raise ConfigurationError(f"{field}: {text!r} begins with neither tcp:// nor ipc://; {_EXAMPLE}")
    match = _TCP.fullmatch(text)
    if match is None:
        wrong = "has no port" if ":" not in text[len("tcp://") :] else "is not a host and a port"
        raise ConfigurationError(f"{field}: {text!r} {wrong}; {_EXAMPLE}, and an IPv6 address as tcp://[::1]:7400")
    host, port = match["v6"] or match["host"], int(match["port"])
    if match["v6"] and not (_is_numeric(host) and _ip(host).version == 6):
        raise ConfigurationError(
            f"{field}: {host!r} in {text!r} is not an IPv6 address; write for example tcp://[::1]:7400"
        )
    if port > 65535:
        raise ConfigurationError(f"{field}: port {port} in {text!r} is above 65535; {_EXAMPLE}")
    return Address(text, host=host, port=port)


def _parse_ipc(text: str, field: str) -> Address:
    path = text[len("ipc://") :]
    if path in ("", "@", "*") or "\0" in path:
        raise ConfigurationError(f"{field}: {text!r} names no path; {_EXAMPLE}")
    length = len(os.fsencode(path))
    if length > IPC_PATH_BYTES_MAX:
        raise ConfigurationError(
            f"{field}: the path in {text!r} has {length} bytes and the system takes {IPC_PATH_BYTES_MAX}; "
            "use a shorter one, for example ipc:///run/app/coord.sock"
        )
    return Address(text, path=path)


def _is_numeric(host: str) -> bool:
    try:
        _ip(host)
    except ValueError:
        return False
    return True


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host)
