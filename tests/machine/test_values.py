"""The value codec: exact both ways, or refused with the path to what is wrong."""

from __future__ import annotations

import enum
import math
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.machine.values import DEPTH_MAX, UnstorableValue, Value, decode_value, encode_value

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.binary()
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down: True is not 1, 1 is not 1.0, 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, float):
        return bool(a == b) and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


@given(VALUES)
def test_what_goes_in_comes_out(value: Value) -> None:
    assert same(decode_value(encode_value(value)), value)


def test_what_comes_out_is_the_callers_own() -> None:
    data = encode_value({"a": [1]})
    first, second = decode_value(data), decode_value(data)
    assert first is not second
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["a"] is not second["a"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1, 2}, 'config["a"]: set cannot be stored'),
        ([0, 1, 2, {3}], 'config["a"][3]: set cannot be stored'),
        ({"b": [(1,)]}, 'config["a"]["b"][0]: tuple cannot be stored, it would come back as a list'),
        ({'q"\\': {"x": object()}}, 'config["a"]["q\\"\\\\"]["x"]: object cannot be stored'),
        ({"line\n": b"", "\n": {0}}, 'config["a"]["\\n"]: set cannot be stored'),
        ({"ключ": {0}}, 'config["a"]["ключ"]: set cannot be stored'),
        ({1: 2}, 'config["a"]: dict with a key of type int'),
        ([{b"k": 2}], 'config["a"][0]: dict with a key of type bytes'),
        ({Text("k"): 2}, 'config["a"]: dict with a key of type Text'),
        (1 << 64, 'config["a"]: int outside 64 bits'),
        ([-(1 << 63) - 1], 'config["a"][0]: int outside 64 bits'),
        (math.nan, 'config["a"]: float nan cannot be stored'),
        ([math.inf], 'config["a"][0]: float inf cannot be stored'),
        ("\ud800", 'config["a"]: str with a lone surrogate at 0'),
        (["ok", "é\udfff"], 'config["a"][1]: str with a lone surrogate at 1'),
        ({"\ud800": 1}, 'config["a"]: dict with a key that has a lone surrogate, "\\ud800"'),
        (Color.RED, 'config["a"]: Color cannot be stored'),
        (Text("x"), 'config["a"]: Text cannot be stored'),
        (bytearray(b"x"), 'config["a"]: bytearray cannot be stored, it would come back as bytes'),
        ([memoryview(b"x")], 'config["a"][0]: memoryview cannot be stored'),
        (msgpack.ExtType(1, b""), 'config["a"]: ExtType cannot be stored'),
        (msgpack.Timestamp(1), 'config["a"]: Timestamp cannot be stored'),
        (1j, 'config["a"]: complex cannot be stored'),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_path(value: Any, text: str) -> None:
    with pytest.raises(UnstorableValue) as caught:
        encode_value(value, 'config["a"]')
    assert str(caught.value).startswith(text)


def test_nesting_is_bounded_and_a_value_inside_itself_is_refused() -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX):
        value = [value]
    assert same(decode_value(encode_value(value)), value)
    with pytest.raises(UnstorableValue, match="nested deeper than 64"):
        encode_value([value])
    with pytest.raises(UnstorableValue, match="nested deeper than 64"):
        decode_value(msgpack.packb([value]))
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    with pytest.raises(UnstorableValue, match="inside itself"):
        encode_value(ring)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        msgpack.packb({1: 2}),
        msgpack.packb({b"k": 2}),
        msgpack.packb(math.nan),
        msgpack.packb([math.inf]),
        b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\x91\xd4\x05x",  # an extension type
        msgpack.packb(1) + b"\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xd6\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
    ],
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(UnstorableValue):
        decode_value(data)


def test_decoding_any_bytes_gives_a_value_or_the_named_error() -> None:
    rng = random.Random(1)
    samples: list[Value] = [[1, "two", b"3", {"four": [5.0, None]}], "text", {"a": {"b": [True]}}]
    good = [encode_value(sample) for sample in samples]
    values = 0
    for _ in range(20_000):
        data = bytearray(rng.choice(good) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 30)))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            value = decode_value(bytes(data))
        except UnstorableValue:
            continue
        values += 1
        assert same(decode_value(encode_value(value)), value)
    assert values > 1000
