"""Tables, JSON and text as commands print them."""

from __future__ import annotations

import json

import pytest

from coord.cli.output import complain, print_json, printable, show_value, table


def test_a_table_has_columns_as_wide_as_they_need_be() -> None:
    rows = [["a", "1", "x"], ["longer", "1000", ""]]
    assert table(("NAME", "N", "NOTE"), rows, frozenset(("N",))) == [
        "NAME       N  NOTE",
        "a          1  x",
        "longer  1000",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("été", "été"), ("\x1b[2J", "\\x1b[2J"), ("a\nb", "a\\nb"), ("\u202ex", "\\u202ex")],
)
def test_nothing_that_a_terminal_acts_on_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("text", "text"), (None, "null"), ([1, b"\0"], '[1, {"$bytes": "AA=="}]'), ({"a": True}, '{"a": true}')],
)
def test_a_value_on_one_line(value: object, shown: str) -> None:
    assert show_value(value) == shown


def test_json_has_bytes_as_base64(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"value": b"\xff\x00"})
    assert json.loads(capsys.readouterr().out) == {"value": {"$bytes": "/wA="}}


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("first\nsecond\x07")
    assert capsys.readouterr().err == "coord: first second\\x07\n"
