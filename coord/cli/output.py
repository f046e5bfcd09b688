"""How commands speak: exit codes, tables, JSON, colours, and the one kind of error they end with.

What must not live here: what any one command prints.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from coord.errors import ConfigurationError, CoordError, OutcomeUnknown, Unavailable

OK, FAILED, USAGE, NO_QUORUM, NOT_LEADER, TIMEOUT = range(6)
#: What a shell says of a process ended by Ctrl-C.
INTERRUPTED = 130

EXIT_CODES = """exit codes: 0 done, 1 failed, 2 wrong usage, 3 no quorum, 4 not the leader, 5 not in time
(a write may then have happened or not; the text on stderr says which)"""


class CommandError(Exception):
    """A command ends here: one line for stderr, and the exit code."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: CoordError) -> int:
    """What an operating error means to a shell."""
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, Unavailable):
        return NO_QUORUM
    return TIMEOUT if isinstance(error, OutcomeUnknown) else FAILED


def complain(text: object) -> None:
    """One line on stderr, whatever the text holds."""
    line = " ".join(str(text).split("\n"))
    print(f"coord: {printable(line)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` with every character a terminal would act on, rather than show, written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def print_json(value: object) -> None:
    """One line of JSON. Bytes become {"$bytes": BASE64}; JSON has none."""
    print(json.dumps(value, default=_for_json, ensure_ascii=False), flush=True)


def show_value(value: Any) -> str:
    """A value for people, on one line: text as it is, the rest as JSON."""
    return printable(value if isinstance(value, str) else json.dumps(value, default=_for_json, ensure_ascii=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> list[str]:
    """Lines of columns as wide as they need be; those named in `right` are set to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ).rstrip()
        for line in [header, *rows]
    ]


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user has not said otherwise (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _for_json(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} has no JSON form")
