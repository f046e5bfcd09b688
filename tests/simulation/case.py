"""One world to run, written down in few words: a seed, and what is changed in what it draws.

So a failure can be named in one command, and made smaller. What must not live here: how it is made smaller (`shrink`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from simulation.knobs import Knobs, draw
from simulation.world import Blow, World

#: Knobs of parts of a world are named with the part.
_PARTS = ("conditions", "hardware")


@dataclass(frozen=True)
class Case:
    seed: int
    #: (knob, value), as `conditions.loss` and 0.0.
    changes: tuple[tuple[str, Any], ...] = ()
    #: The only blows that fall; None: all.
    kept: frozenset[Blow] | None = None

    def knobs(self) -> Knobs:
        knobs = draw(self.seed)
        for name, value in self.changes:
            part, _, inner = name.rpartition(".")
            setattr(getattr(knobs, part) if part in _PARTS else knobs, inner, value)
        return knobs

    def world(self, trace: Callable[[str], None] | None = None) -> World:
        return World(self.seed, self.knobs(), trace, kept=self.kept)

    def run(self, trace: Callable[[str], None] | None = None) -> World:
        """Raises what the world raises; an AssertionError says how to see it again."""
        world = self.world(trace)
        try:
            world.run()
        except AssertionError as error:
            error.args = (f"{error}\n  replay: {self.command()} --trace",)
            raise
        return world

    def command(self) -> str:
        words = [f"PYTHONPATH=tests:. python -m simulation --seed {self.seed}"]
        words += [f"--set {name}={value}" for name, value in self.changes]
        if self.kept is not None:
            blows = ",".join(f"{kind.replace(' ', '_')}:{number}" for kind, number in sorted(self.kept))
            words.append(f"--only '{blows}'")
        return " ".join(words)

    def with_change(self, name: str, value: Any) -> Case:
        changes = {**dict(self.changes), name: value}
        return replace(self, changes=tuple(sorted(changes.items())))

    def trace_hash(self) -> str:
        """Of every word of the trace: equal only if everything happened alike."""
        hashed = hashlib.sha256()
        self.run(lambda line: hashed.update(line.encode()))
        return hashed.hexdigest()


def read_case(seed: int, settings: list[str], only: str | None) -> Case:
    """The reverse of `Case.command`. ValueError for what is no knob or no blow."""
    case = Case(seed)
    for setting in settings:
        name, _, text = setting.partition("=")
        case = case.with_change(name, _read_value(name, text))
    if only is not None:
        blows = [blow.rpartition(":") for blow in only.split(",") if blow]
        case = replace(case, kept=frozenset((kind.replace("_", " "), int(number)) for kind, _, number in blows))
    return case


def _read_value(name: str, text: str) -> Any:
    usual: Any = Knobs()
    part, _, inner = name.rpartition(".")
    usual = getattr(usual, part) if part in _PARTS else usual
    if inner not in {field.name for field in fields(usual)}:
        raise ValueError(f"{name!r} is no knob")
    value = getattr(usual, inner)
    if isinstance(value, bool):
        return text == "True"
    if isinstance(value, int):
        return int(text)
    if isinstance(value, float):
        return float(text)
    raise ValueError(f"{name!r} cannot be set: it is a {type(value).__name__}")


def kind_of(error: AssertionError) -> str:
    """What went wrong, without who and when: a smaller case must fail in the same way."""
    said = str(error).partition("\n")[0]
    said = re.sub(r"^at [0-9.]+: (\w: )?", "", said)
    return f"{type(error).__name__} {re.sub(r'[0-9.]+|[abcde]', '#', said)[:40]}"
