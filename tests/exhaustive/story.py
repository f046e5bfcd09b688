"""The steps to a violation, told so that one can follow them; and told by other cores than those that found it.

Here three cores live from the first step to the last. They are never copied, nothing is looked up, and no names are
exchanged; only their memory of times is wiped before each turn, as for the search. So a violation that comes again
here is one of the real core and not of the search's tables.

What must not live here: looking for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from coord.raft.messages import Append, Heartbeat
from exhaustive.frozen import NAMES, FrozenLog, FrozenMessage, Local, freeze, start
from exhaustive.rules import History, judge
from exhaustive.scope import FREE, Scope
from exhaustive.turn import Input, Process, Step, Turn, Violation, deliveries, require

#: (sender, to, message)
Said = tuple[str, str, FrozenMessage]


@dataclass
class Line:
    """One step as it was told."""

    step: Step
    #: An answer that changed nobody: told only if somebody heard it.
    free: bool
    sent: set[Said]
    text: str


@dataclass
class Story:
    """Three living cores, and what was said and done so far."""

    scope: Scope
    group: list[Process] = field(default_factory=list)
    #: Each message ever sent, and the line in which it was first.
    said: dict[Said, int] = field(default_factory=dict)
    history: History = field(default_factory=History)
    lines: list[Line] = field(default_factory=list)
    violation: str = ""

    def __post_init__(self) -> None:
        for name, disk in zip(NAMES, self.scope.disks, strict=True):
            self.group.append(Process(start(name, disk, self.scope.settings()), disk, self.scope))
        for words in self.scope.opening:
            self._open(words)
            assert not self.violation, f"in the opening: {self.violation}"

    def _open(self, words: str) -> None:
        """One sentence of the scope's opening."""
        name, what, *more = words.split()
        if what == ">":
            (to,) = more
            heard = {
                line.step[1][2]
                for line in self.lines
                if line.step[0] == NAMES.index(to) and line.step[1][0] == "deliver"
            }
            for sender, receiver, message in list(self.said):
                if (sender, receiver) == (name, to) and (sender, message) not in heard:
                    self._step((NAMES.index(to), ("deliver", True, (sender, message))), free=False)
        else:
            place = NAMES.index(name)
            waiting = len(self.group[place].core._in_flight)
            given = {"stands": ("timeout",), "beats": ("beat",), "proposes": ("propose",), "syncs": ("sync", waiting)}[
                what
            ]
            self._step((place, given), free=False)
            if what == "stands" and self.scope.pre_votes == FREE:
                self._step((place, ("pre-vote",)), free=False)

    def tell(self, steps: Sequence[Step]) -> str:
        """What is wrong in the end, or "". A step that cannot be made raises."""
        for step in steps:
            if self.violation:
                raise AssertionError(f"goes on after: {self.violation}")
            self._step(step, free=False)
            if not self.violation:
                self._answer()
        return self.violation

    def text(self) -> str:
        """All that mattered, numbered."""
        kept = [self.lines[number] for number in sorted(self._mattered())]
        numbered = [f"{number:3}. {line.text}" for number, line in enumerate(kept, start=1)]
        return "\n".join([*numbered, f"     {self.violation or 'nothing is wrong'}"])

    def locals(self) -> list[Local]:
        return [freeze(process.core, process.disk) for process in self.group]

    def _step(self, step: Step, *, free: bool) -> None:
        place, given = step
        inner = given[1] if given[0] == "cut short" else given
        for sender, message in inner[2:] if inner[0] == "deliver" else ():
            assert (sender, NAMES[place], message) in self.said, f"nobody said that: {sender} {message}"
        process = self.group[place]
        try:
            turn = process.turn(given)
        except Violation as violation:
            self.violation = f"{NAMES[place]}: {violation}"
            self.lines.append(Line(step, free, set(), f"{NAMES[place]} {_describe_input(given)}"))
            return
        if given[0] in ("crash", "cut short"):
            self.history = self.history._replace(crashes=self.history.crashes + 1)
        elif given[0] == "read":
            self.history = self.history._replace(asked=(*self.history.asked, len(self.history.committed)))
        sent = {(NAMES[place], to, message) for to, message in turn.sends}
        self.lines.append(Line(step, free, sent, _describe_turn(given, turn)))
        try:
            if turn.won:
                self._nobody_else_led(NAMES[place], turn.local.core.term)
            self.history = judge(turn, self.locals(), self.history, harm_only=self.scope.harm_only)
        except Violation as violation:
            self.violation = str(violation)
        for one in sorted(sent, key=repr):
            self.said.setdefault(one, len(self.lines) - 1)

    def _nobody_else_led(self, name: str, term: int) -> None:
        for sender, _, message in self.said:
            leads = message[0] in (Append, Heartbeat) and message[1] == term
            require(sender == name or not leads, f"{sender} led term {term}, now {name} does")

    def _answer(self) -> None:
        """Every answer that changes nobody is given; see `exhaustive.search`."""
        again = True
        while again and not self.violation:
            again = False
            for sender, to, message in list(self.said):
                place = NAMES.index(to)
                local = self.locals()[place]
                for given in deliveries(local, self.scope, sender, message):
                    try:
                        turn = Process.thawed(local, self.scope).turn(given)
                    except Violation:
                        continue
                    news = {(to, *send) for send in turn.sends} - self.said.keys()
                    if turn.local == local and news and not self.violation:
                        self._step((place, given), free=True)
                        again = True

    def _mattered(self) -> set[int]:
        """The lines that are steps of their own, and those whose words such a line hears."""
        wanted: set[int] = set()
        for number in range(len(self.lines) - 1, -1, -1):
            line = self.lines[number]
            if line.free and number not in wanted and number != len(self.lines) - 1:
                continue
            wanted.add(number)
            place, given = line.step
            inner = given[1] if given[0] == "cut short" else given
            if inner[0] == "deliver":
                wanted.update(self.said[sender, NAMES[place], message] for sender, message in inner[2:])
        return wanted


def _describe_turn(given: Input, turn: Turn) -> str:
    local = turn.local
    core = local.core
    text = f"{local.name} {_describe_input(given)}\n       is {core.role} in term {core.term}"
    text += f", voted {core.vote}" if core.vote else ""
    text += f", log {_log(core.log)}, committed {core.commit}; on disk term {local.disk.hard_state[0]}"
    text += f", vote {local.disk.hard_state[1] or 'none'}, log {_log(local.disk.log)}"
    for to, message in sorted(turn.sends, key=repr):
        text += f"\n       to {to}: {_describe_message(message)}"
    return text


def _describe_input(given: Input) -> str:
    kind = given[0]
    if kind == "deliver":
        late = ", long after it last heard anything," if given[1] else ""
        return f"hears{late} " + " and ".join(f"from {sender}: {_describe_message(said)}" for sender, said in given[2:])
    if kind == "cut short":
        return f"{_describe_input(given[1])}, and crashes before its disk has done anything; starts again"
    return {
        "timeout": "waits in vain",
        "pre-vote": "is told that another would vote for it",
        "beat": "sends its heartbeats",
        "propose": "takes a proposal",
        "read": f"is asked for read {given[-1]}",
        "sync": f"has its oldest {given[-1]} writes on disk",
        "crash": f"crashes, the oldest {given[-1]} of the waiting writes being on disk; starts again",
    }[kind]


def _describe_message(message: FrozenMessage) -> str:
    kind, *values = message
    fields: list[Any] = list(kind.__dataclass_fields__)
    shown = [
        f"{name}={_log(value) if name == 'batches' else value}" for name, value in zip(fields, values, strict=True)
    ]
    return f"{kind.__name__}({', '.join(one for one in shown if not one.endswith('=False'))})"


def _log(log: FrozenLog) -> str:
    """The terms of its entries, as in the paper."""
    return (
        "[" + " ".join(f"{first}:t{term}" + ("" if count == 1 else f"x{count}") for _, term, first, count in log) + "]"
    )
