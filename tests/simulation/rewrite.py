"""Changing the product's functions for a while: a few words become others, wherever the function is known by.

If the words are no longer there, that is an error, so what is built on this cannot silently come to do nothing. The
code object is exchanged, not the function: so tables of handlers and names imported elsewhere all see the change.
What must not live here: which changes (`mutants`, `probes`).
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Edit:
    """In `owner.name`, `old`, which is there exactly once, becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str


@contextmanager
def rewritten(edits: Iterable[Edit], names: dict[str, Any] | None = None) -> Iterator[None]:
    """Within this context all `edits` hold. `names`: what the new words may use beside what the function knows."""
    places: dict[types.FunctionType, list[Edit]] = {}
    for edit in edits:
        places.setdefault(function_of(edit), []).append(edit)
    before = {function: function.__code__ for function in places}
    added = {}
    try:
        for function, some in places.items():
            function.__code__ = _compiled(function, some)
            scope = function.__globals__
            for name, value in (names or {}).items():
                assert scope.get(name, value) is value, f"{scope['__name__']} has a {name} of its own"
                scope[name] = value
                added[id(scope), name] = scope
        yield
    finally:
        for function, code in before.items():
            function.__code__ = code
        for (_, name), scope in added.items():
            scope.pop(name, None)


def function_of(edit: Edit) -> types.FunctionType:
    found = inspect.getattr_static(edit.owner, edit.name)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    assert isinstance(found, types.FunctionType), f"{edit.owner}.{edit.name} is no function"
    return found


def _compiled(function: types.FunctionType, edits: list[Edit]) -> types.CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    while source.startswith("@"):
        source = source.partition("\n")[2]
    for edit in edits:
        count = source.count(edit.old)
        assert count == 1, f"{edit.name} has {count} times: {edit.old}"
        source = source.replace(edit.old, edit.new)
    names = function.__code__.co_freevars
    if "__class__" in names:
        # `super()` needs a class around it.
        source = "class _Around:\n" + textwrap.indent(source, "    ")
    flags = __future__.annotations.compiler_flag
    module = compile(source, f"<rewritten {function.__qualname__}>", "exec", flags)
    code = _find(module, function.__code__.co_name)
    assert code.co_freevars == names, f"{function.__qualname__} needs {names}"
    return code


def _find(module: types.CodeType, name: str) -> types.CodeType:
    for constant in module.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_name == name:
                return constant
            if constant.co_name == "_Around":
                return _find(constant, name)
    raise AssertionError(f"no {name} in what was compiled")
