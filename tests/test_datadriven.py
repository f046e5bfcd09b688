"""The golden-file runner itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from datadriven import Block, blocks, run

TEXT = "# who leads?\nleader now\n----\na\n\nappend\none\ntwo\n----\nok\n"


def answer(block: Block) -> str:
    return "a" if block.words == ("leader", "now") else ""


def test_a_file_is_read_into_blocks() -> None:
    assert blocks(TEXT) == [
        Block(("# who leads?",), ("leader", "now"), (), "a"),
        Block((), ("append",), ("one", "two"), "ok"),
    ]


def test_an_agreeing_file_passes_and_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(TEXT)
    run(path, answer, rewrite=False)
    assert path.read_text() == TEXT


def test_a_disagreement_fails_until_it_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(TEXT.replace("\na\n", "\nb\n"))
    with pytest.raises(AssertionError, match=r"story\.txt has changed"):
        run(path, answer, rewrite=False)
    run(path, answer, rewrite=True)
    assert path.read_text() == TEXT


@pytest.mark.parametrize("text", ["# only a comment\n", "leader\na\n", "----\na\n"])
def test_a_block_without_a_command_or_dashes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="command"):
        blocks(text)
