"""Golden conversations: files of commands, each followed by what came back.

A block is any number of comment lines, a line with a command and its words, optional further input lines, a line of
dashes, and the expected output up to the next blank line. `pytest --rewrite` records what comes back now; then read
the diff as a reviewer would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DASHES = "----"


@dataclass(frozen=True)
class Block:
    """One command of a file."""

    #: Lines that begin with "#", before the command.
    comments: tuple[str, ...]
    #: The command line, split at blanks.
    words: tuple[str, ...]
    #: The lines between the command and the dashes.
    lines: tuple[str, ...]
    expected: str

    @property
    def head(self) -> str:
        return "\n".join((*self.comments, " ".join(self.words), *self.lines, DASHES))


#: Does what a block says and returns what to show for it; "" is shown as "ok".
Handler = Callable[[Block], str]


def blocks(text: str) -> list[Block]:
    """The blocks of a file; ValueError, with the block, for one without a command or dashes."""
    found = []
    for part in filter(None, (part.strip("\n") for part in text.split("\n\n"))):
        rows = part.split("\n")
        comments = tuple(row for row in rows if row.startswith("#"))
        rest = rows[len(comments) :]
        if not rest and part:
            raise ValueError(f"comments without a command: {part!r}")
        if DASHES not in rest[1:]:
            raise ValueError(f"no line of {DASHES} after the command: {part!r}")
        cut = rest.index(DASHES)
        found.append(Block(comments, tuple(rest[0].split()), tuple(rest[1:cut]), "\n".join(rest[cut + 1 :])))
    return found


def run(path: Path, handle: Handler, *, rewrite: bool) -> None:
    """Put every block of `path` to `handle`, and compare what comes back; or record it."""
    answered = [f"{block.head}\n{_shown(handle(block))}\n" for block in blocks(path.read_text())]
    actual = "\n".join(answered)
    if rewrite:
        path.write_text(actual)
    assert actual == path.read_text(), f"{path.name} has changed; see --rewrite"


def _shown(output: str) -> str:
    shown = output.strip("\n") or "ok"
    assert "\n\n" not in shown, "a blank line would end the block"
    return shown
