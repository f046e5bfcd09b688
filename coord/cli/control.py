"""How commands talk to a running `coord node`: the frames, and the side that asks.

A Unix socket, or a loopback port; one frame to ask, one or more in answer: four bytes of length, then msgpack. A
request is [VERSION, operation, arguments]; an answer is any number of [ITEM, value], then [DONE, value] or
[ERROR, exit code, text]. Of all operations only a hold is told something meanwhile: [RELEASE], once, to end it.
Whoever may open the socket may do everything: a data directory's is open to its owner alone.

Plain sockets, as the asker must learn at once when nobody listens, and the node when an asker has gone.
What must not live here: what the operations are (`coord.cli.control_server`).
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgpack

from coord.cli.output import FAILED, TIMEOUT, USAGE, CommandError
from coord.clock import clock
from coord.errors import ConfigurationError
from coord.transports.address import Address, Target, is_local, look_up, parse_bind, parse_peer

VERSION = 1
ITEM, DONE, ERROR = "item", "done", "error"
RELEASE = "release"
#: What a hold's items begin with: it waits, for this holder; it is held, with this token and sequencer; nobody else is
#: granted it before the second of these times, and it is to be wound up from the first on (of `coord.clock`, which all
#: processes of a machine share); it is to be ended now, though it stands; it is lost.
WAITING, HELD, LEASE, ENDING, LOST = "waiting", "held", "lease", "ending", "lost"
#: No frame is larger: it holds the largest value a map may be set to take, and what goes with it.
FRAME_BYTES_MAX = 2 << 20
#: The answer comes this much later than the timeout of what was asked, at most.
_MARGIN_SECONDS = 5.0
#: A node that does not tell its status within so many seconds is starved.
_STATUS_SECONDS = 10.0
_LENGTH = struct.Struct(">I")
_CHUNK_BYTES = 1 << 16


class BadControlFrame(Exception):
    """Bytes that are no frame of this protocol."""


class Gone(Exception):
    """The other side closed the connection between two frames."""


def control_address(text: str | None, data_dir: str | None) -> Address:
    """Where a node's commands are taken: as told, else in its data directory. ConfigurationError says what is wrong."""
    if text is None:
        if data_dir is None:
            raise ConfigurationError("which node? give --data-dir DIR or --control ADDRESS, or set COORD_CONTROL")
        path = os.path.join(os.path.abspath(data_dir), "control.sock")
        try:
            return parse_bind(f"ipc://{path}", "control")
        except ConfigurationError:
            raise ConfigurationError(
                f"control: {path} is too long for a Unix socket; give the node and its commands one shorter place, for "
                "example --control ipc:///run/app/coord-control.sock"
            ) from None
    address = parse_bind(text, "control")
    if not is_local(text):
        raise ConfigurationError(
            f"control: {text!r} can be reached from other machines, and whoever reaches it may do everything; "
            "use ipc:// or a loopback address"
        )
    return address


def target_of(address: Address) -> Target:
    """The numeric address to listen on, or to dial. Loopback names only, so no name server is waited for."""
    try:
        return look_up(address)[0]
    except (OSError, IndexError) as error:
        raise ConfigurationError(f"control: {address.text!r} cannot be looked up: {error}") from error


def send_frame(connection: socket.socket, message: object) -> None:
    """Blocks as long as the socket's timeout allows; OSError when the other side has gone or does not read."""
    data: bytes = msgpack.packb(message)
    if len(data) > FRAME_BYTES_MAX:
        raise BadControlFrame(f"a message of {len(data)} bytes, more than the {FRAME_BYTES_MAX} allowed")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(connection: socket.socket, deadline: float | None = None) -> Any:
    """The next frame's content. Gone at a clean end, BadControlFrame for any other bytes, TimeoutError after `deadline`
    (of `coord.clock`; None: as the socket has it)."""
    head = _receive(connection, _LENGTH.size, deadline, starting=True)
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= FRAME_BYTES_MAX:
        raise BadControlFrame(f"a frame said to have {length} bytes")
    return _unpack(_receive(connection, length, deadline, starting=False))


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadControlFrame(f"no msgpack: {error}") from error


def _receive(connection: socket.socket, length: int, deadline: float | None, *, starting: bool) -> bytes:
    """Exactly `length` bytes. Room is taken as they come, not as they are announced."""
    data = bytearray()
    while len(data) < length:
        if deadline is not None:
            left = deadline - clock()
            if left <= 0:
                raise TimeoutError("no answer in time")
            connection.settimeout(left)
        part = connection.recv(min(_CHUNK_BYTES, length - len(data)))
        if not part:
            if starting and not data:
                raise Gone
            raise BadControlFrame(f"it ends after {len(data)} of {length} bytes")
        data += part
    return bytes(data)


class FrameReader:
    """Frames out of bytes as they come, for those who must not wait for the rest of one."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The frames that end in `data`. BadControlFrame; nothing can be fed after that."""
        self._data += data
        frames = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if not 0 < length <= FRAME_BYTES_MAX:
                raise BadControlFrame(f"a frame said to have {length} bytes")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            frames.append(_unpack(bytes(self._data[_LENGTH.size : end])))
            del self._data[:end]
        return frames

    @property
    def partial(self) -> bool:
        """Part of a frame has come."""
        return bool(self._data)


class Unreachable(CommandError):
    """Nobody takes commands there, or the connection broke: another attempt may find the node again."""


class ControlClient:
    """One connection to a running node, closed by a `with` statement. CommandError for all that goes wrong."""

    def __init__(self, address: Address) -> None:
        self._address = address
        if not address.path:
            parse_peer(address.text, "control")
        target = target_of(address)
        self._socket = socket.socket(target.family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_MARGIN_SECONDS)
            self._socket.connect(target.sockaddr)
        except OSError as error:
            self._socket.close()
            raise Unreachable(self._nobody(error)) from error
        self._reader = FrameReader()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, operation: str, timeout: float = _STATUS_SECONDS, **arguments: Any) -> Any:
        """Ask, and return the one answer. `timeout`: seconds the node may take; it is told if it is to wait."""
        if operation != "status":
            arguments["timeout"] = timeout
        *_, (kind, value) = self._ask(operation, arguments, timeout + _MARGIN_SECONDS)
        assert kind == DONE
        return value

    def stream(self, operation: str, *, patience: float | None = None, **arguments: Any) -> Iterator[Any]:
        """Ask, and yield item after item. `patience`: seconds after which it ends; None: never."""
        for kind, value in self._ask(operation, arguments, patience):
            if kind == ITEM:
                yield value

    # -- for those who must not wait: they poll `fileno`, and take what is there

    def begin(self, operation: str, **arguments: Any) -> None:
        """Ask, without waiting for an answer. From here on nothing blocks."""
        with self._explained():
            send_frame(self._socket, [VERSION, operation, arguments])
        self._socket.setblocking(False)

    def tell(self, message: object) -> None:
        with self._explained():
            send_frame(self._socket, message)

    def arrived(self) -> list[tuple[str, Any]]:
        """The answers that have come since. CommandError when the node refused, Unreachable when it is gone."""
        with self._explained():
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return []
            if not data:
                if self._reader.partial:
                    raise BadControlFrame("it ends within a frame")
                raise Gone
            return [_answer_of(frame) for frame in self._reader.feed(data)]

    def fileno(self) -> int:
        return self._socket.fileno()

    def _ask(self, operation: str, arguments: dict[str, Any], patience: float | None) -> Iterator[tuple[str, Any]]:
        deadline = None if patience is None else clock() + patience
        with self._explained():
            send_frame(self._socket, [VERSION, operation, arguments])
            if deadline is None:
                self._socket.settimeout(None)
            while True:
                kind, value = _answer_of(receive_frame(self._socket, deadline))
                yield kind, value
                if kind == DONE:
                    return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever goes wrong within, as one line for the user."""
        try:
            yield
        except TimeoutError as error:
            raise CommandError(
                f"the node at {self._address.text} does not answer; it may be overloaded", TIMEOUT
            ) from error
        except Gone as error:
            raise Unreachable(f"the node at {self._address.text} has closed the connection; was it stopped?") from error
        except BadControlFrame as error:
            raise CommandError(f"the exchange with {self._address.text} failed: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise CommandError(f"this cannot be sent: {error}", USAGE) from error
        except OSError as error:
            raise Unreachable(f"the connection to {self._address.text} broke: {error}") from error

    def _nobody(self, error: OSError) -> str:
        why = error.strerror or error
        return f"no node takes commands at {self._address.text}: {why}; is it running, and as this user?"


def _answer_of(answer: object) -> tuple[str, Any]:
    """Kind and value of a well-formed answer. CommandError if it is the node's refusal."""
    if isinstance(answer, list) and answer:
        if answer[0] in (ITEM, DONE) and len(answer) == 2:
            return answer[0], answer[1]
        if answer[0] == ERROR and len(answer) == 3 and _is_code(answer[1]) and isinstance(answer[2], str):
            raise CommandError(answer[2], answer[1])
    raise BadControlFrame("an answer of unknown form")


def _is_code(value: object) -> bool:
    return isinstance(value, int) and FAILED <= value <= TIMEOUT


# --------------------------------------------------------------------------------------------------------------------
# What every asking command has in common.


def add_node_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which node to ask, and how to print what it says."""
    action = "append" if several else "store"
    more = "; may be repeated" if several else ""
    parser.add_argument(
        "-d", "--data-dir", metavar="DIR", action=action, help=f"the node's data directory (COORD_DATA_DIR){more}"
    )
    parser.add_argument(
        "--control",
        metavar="ADDRESS",
        action=action,
        help=f"where the node takes commands, ipc:// or loopback tcp:// (COORD_CONTROL){more}",
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="how long to wait for the group; default: 10"
    )


def seconds(text: str) -> float:
    """A duration as argparse takes it."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value


def addresses_of(data_dirs: list[str], controls: list[str]) -> list[Address]:
    """The nodes named by flags; if none is, the one named by the environment."""
    if not data_dirs and not controls:
        return [control_address(os.environ.get("COORD_CONTROL") or None, os.environ.get("COORD_DATA_DIR") or None)]
    return [control_address(None, data_dir) for data_dir in data_dirs] + [control_address(c, None) for c in controls]


def client_of(args: argparse.Namespace) -> ControlClient:
    """A connection to the one node named."""
    addresses = addresses_of([args.data_dir] if args.data_dir else [], [args.control] if args.control else [])
    if len(addresses) > 1:
        raise CommandError("give --data-dir or --control, not both", USAGE)
    return ControlClient(addresses[0])
