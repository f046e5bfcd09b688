"""The value codec: what a user may keep in the config map, as bytes and back.

A value is None, bool, int, float, str, bytes, or a list or dict (with str keys) of values, and comes back as exactly
what went in. So subclasses are refused (an IntEnum would come back an int), and so is a tuple (it would come back a
list), NaN and the infinities (no equality, and not portable). Commands carry the bytes; the machine never looks inside.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack

#: Not spelled out within lists and dicts: a `dict[str, list[int]]` is a fine value, and would not be of such a type.
Value = None | bool | int | float | str | bytes | list[Any] | dict[str, Any]

#: How deep lists and dicts may nest. A list of plain values has depth 1.
DEPTH_MAX = 64
INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 64) - 1

_ADVICE: dict[type, str] = {
    tuple: "cannot be stored, it would come back as a list; use a list",
    set: "cannot be stored; use a sorted list",
    frozenset: "cannot be stored; use a sorted list",
    bytearray: "cannot be stored, it would come back as bytes; use bytes",
    memoryview: "cannot be stored, it would come back as bytes; use bytes",
}
_BUILTIN_ADVICE = "cannot be stored; use None, bool, int, float, str, bytes, list or dict"


class UnstorableValue(ValueError):
    """A value the config map cannot hold. The text begins with the path to it: `config["a"][3]: set ...`."""


def encode_value(value: Value, path: str = "value") -> bytes:
    """Return `value` as bytes for a command. `path` names it in the text of UnstorableValue."""
    if type(value) is str or type(value) is bytes:  # the common case: nothing inside to look at
        try:
            return _pack(value)
        except UnicodeEncodeError:
            pass
    found = _find_problem(value, 0)
    if found is not None:
        problem, steps = found
        raise UnstorableValue(f"{path}{''.join(reversed(steps))}: {problem}")
    return _pack(value)


def decode_value(data: bytes) -> Value:
    """Return a fresh value from `encode_value`'s bytes; UnstorableValue for bytes it cannot have made."""
    try:
        value: Value = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise UnstorableValue(f"these bytes are no stored value: {error}") from error
    if type(value) is str or type(value) is bytes:
        return value
    found = _find_problem(value, 0)
    if found is not None:
        raise UnstorableValue(f"these bytes are no stored value: {found[0]}")
    return value


def _pack(value: Value) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _find_problem(value: object, depth: int) -> tuple[str, list[str]] | None:
    """Return what keeps `value` from being stored and the steps that lead to it, innermost first; None if nothing."""
    kind = type(value)
    if value is None or kind is bool or kind is bytes:
        return None
    if isinstance(value, str) and kind is str:
        return _find_surrogate(value)
    if isinstance(value, int) and kind is int:
        return None if INTEGER_MIN <= value <= INTEGER_MAX else ("int outside 64 bits; use a str", [])
    if isinstance(value, float) and kind is float:
        return None if math.isfinite(value) else (f"float {value} cannot be stored; use None or a str", [])
    if kind is list or kind is dict:
        if depth >= DEPTH_MAX:
            return f"{kind.__name__} nested deeper than {DEPTH_MAX}, or inside itself; use a flatter value", []
        return _find_problem_in_list(value, depth) if isinstance(value, list) else _find_problem_in_dict(value, depth)
    return f"{kind.__name__} {_ADVICE.get(kind, _BUILTIN_ADVICE)}", []


def _find_problem_in_list(items: list[object], depth: int) -> tuple[str, list[str]] | None:
    for position, item in enumerate(items):
        found = _find_problem(item, depth + 1)
        if found is not None:
            found[1].append(f"[{position}]")
            return found
    return None


def _find_problem_in_dict(value: object, depth: int) -> tuple[str, list[str]] | None:
    assert isinstance(value, dict)
    for key, item in value.items():
        if type(key) is not str:
            return f"dict with a key of type {type(key).__name__}; use str keys", []
        if _find_surrogate(key) is not None:
            return f"dict with a key that has a lone surrogate, {_quoted(key)}; use one without", []
        found = _find_problem(item, depth + 1)
        if found is not None:
            found[1].append(f"[{_quoted(key)}]")
            return found
    return None


def _find_surrogate(text: str) -> tuple[str, list[str]] | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"str with a lone surrogate at {error.start}; use bytes", []
    return None


def _quoted(key: str) -> str:
    """`key` in double quotes, printable whatever it holds."""
    text = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if text.isprintable() else f'"{text.encode("unicode_escape").decode()}"'
