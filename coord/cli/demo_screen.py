"""What `coord demo` looks like: a story told in lines, and on a terminal a table below it that is drawn over and over.

What must not live here: the story itself (`coord.cli.demo`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence

from coord.cli.output import table, wants_colour
from coord.clock import clock

BOLD, DIM, GREEN, RED, YELLOW, CYAN = "1", "2", "32", "31", "33", "36"
#: Seconds between two drawings.
DRAW_SECONDS = 0.1
_HEADER = ("member", "role", "term", "commit", "applied", "writes", "state hash", "")
_RIGHT = frozenset(("term", "commit", "applied", "writes"))
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """Prints the story. `live`: stdout is a terminal that can be drawn on; else only lines are printed."""

    def __init__(self) -> None:
        self._began = clock()
        self._colour = wants_colour(sys.stdout)
        # Colours are taste; drawing takes a terminal that understands.
        self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._drawn = 0
        self._rows: Sequence[Sequence[str]] = ()
        self._footer = ""

    def tell(self, text: str, colour: str = "") -> None:
        """One line of the story, with the seconds since the beginning."""
        self._erase()
        self._print(f"{self.style(f'{clock() - self._began:5.1f} s', DIM)}  {self.style(text, colour)}")
        self._draw()

    def say(self, text: str = "") -> None:
        """One line outside of time."""
        self._erase()
        self._print(text)
        self._draw()

    def show(self, rows: Sequence[Sequence[str]], footer: str) -> None:
        """The table below the story, as it is now."""
        self._rows, self._footer = rows, footer
        if self.live:
            self._erase()
            self._draw()

    def table_lines(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """The table with its colours."""
        plain = table(_HEADER, rows, _RIGHT)
        colours = [DIM, *(_ROLE_COLOURS.get(row[1], "") for row in rows)]
        return [f"  {self.style(line, colour)}" for line, colour in zip(plain, colours, strict=True)]

    def finish(self, *, erase: bool = False) -> None:
        """Draw no more; leave the last table where it is, or not. Idempotent."""
        if erase:
            self._erase()
        if self.live:
            sys.stdout.write("\x1b[?25h")
        self._drawn = 0
        self._rows = ()
        sys.stdout.flush()

    def style(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._colour else text

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self.live or not self._rows:
            return
        lines = ["", *self.table_lines(self._rows), "", f"  {self.style(self._footer, DIM)}"]
        size = shutil.get_terminal_size()
        # A line that wraps, or a table higher than the screen, could not be erased again.
        lines = [_cut(line, size.columns - 1) for line in lines][: max(0, size.lines - 2)]
        sys.stdout.write("\x1b[?25l" + "\n".join(lines) + "\n")
        sys.stdout.flush()
        self._drawn = len(lines)

    @staticmethod
    def _print(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


_ROLE_COLOURS = {"leader": f"{BOLD};{GREEN}", "killed": RED, "starting": DIM, "candidate": YELLOW}


def _cut(line: str, width: int) -> str:
    """`line` with at most `width` characters to be seen."""
    if len(_ESCAPE.sub("", line)) <= width:
        return line
    shown, cut = 0, []
    for part in re.split(f"({_ESCAPE.pattern})", line):
        if _ESCAPE.fullmatch(part):
            cut.append(part)
        else:
            cut.append(part[: width - shown])
            shown += len(cut[-1])
    return "".join(cut)
