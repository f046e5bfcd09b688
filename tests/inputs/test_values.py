"""What the config map refuses: before anything is sent, naming the place in the value."""

from __future__ import annotations

import math
from typing import Any

import pytest

import coord


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, 2, 3, {4}], r'^config\["a"\]\[3\]: set cannot be stored; use a sorted list$'),
        ({"x": [{"y": (1,)}]}, r'^config\["a"\]\["x"\]\[0\]\["y"\]: tuple '),
        (object(), r'^config\["a"\]: object cannot be stored'),
        ({1: 2}, r'^config\["a"\]: dict with a key of type int'),
        (math.nan, r'^config\["a"\]: float nan'),
        (1 << 64, r'^config\["a"\]: int outside 64 bits'),
        ("\ud800", r'^config\["a"\]: str with a lone surrogate'),
    ],
)
def test_a_value_that_cannot_be_stored(node: coord.Node, value: Any, text: str) -> None:
    before = node.config.put("other", 1)
    with pytest.raises(ValueError, match=text):
        node.config["a"] = value
    with pytest.raises(ValueError, match=text):
        node.config.put_async("a", value)
    with pytest.raises(ValueError, match=text):
        node.config.compare_and_set("a", value, revision=coord.ABSENT)
    transaction = node.config.transaction()
    transaction.put("b", 1)
    with pytest.raises(ValueError, match=text):
        transaction.put("a", value)
    assert node.config.snapshot() == {"other": 1}
    assert node.config.put("other", 2) == before + 1


def test_a_value_inside_itself(node: coord.Node) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="inside itself"):
        node.config["a"] = value


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        ("", ValueError, "1 to 512"),
        ("k" * 513, ValueError, "513 bytes"),
        ("ä" * 257, ValueError, "514 bytes"),
        ("\udcff", ValueError, "lone surrogate"),
        (7, TypeError, "not int"),
        (b"k", TypeError, "not bytes"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_what_is_no_key(node: coord.Node, key: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        node.config[key] = 1
    with pytest.raises(error, match=text):
        node.config.delete(key)
    with pytest.raises(error, match=text), node.config.transaction() as transaction:
        transaction.delete(key)
    # A dict does not mind being asked for what it cannot hold.
    assert key not in node.config
    assert node.config.get(key, "absent") == "absent"
    with pytest.raises(KeyError):
        node.config[key]


def test_a_value_too_large(node: coord.Node) -> None:
    with pytest.raises(coord.QuotaExceeded, match="65536"):
        node.config["k"] = b"x" * 70_000
    # Larger than any frame or batch may be: refused before it is sent.
    with pytest.raises((coord.QuotaExceeded, ValueError), match="bytes"):
        node.config["k"] = b"x" * (8 << 20)
    assert "k" not in node.config
    assert node.config.put("k", b"x" * 60_000) > 0


@pytest.mark.parametrize("timeout", ["1", math.nan, -1, True])
def test_what_is_no_timeout(node: coord.Node, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout="):
        node.config.put("k", 1, timeout=timeout)
    assert "k" not in node.config


@pytest.mark.parametrize("ttl", ["1", 0, -1, math.nan, math.inf])
def test_what_is_no_ttl(node: coord.Node, ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl="):
        node.config.put("k", 1, ttl=ttl)


@pytest.mark.parametrize("revision", ["1", -1, 1.0, True, 1 << 64])
def test_what_is_no_revision(node: coord.Node, revision: Any) -> None:
    with pytest.raises(ValueError, match="revision="):
        node.config.compare_and_set("k", 1, revision=revision)
    with pytest.raises(ValueError, match="revision="):
        node.config.delete("k", revision=revision)
