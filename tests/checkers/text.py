"""Histories as text, one operation a line: `client[@process] invoked-[returned] what -> answer`.

    a 0-1 put k 1 -> @5                      at revision 5; without "@5": it returned
    b 2-3 get k -> 1@5                       also `1`, `absent`, `1@5 created 3 version 2`, `1@5 up to 8`; look: as get
    a 4-5 delete k -> yes @6                 also `no`
    a 6-7 cas k 2 if 5 -> conflict 1@6       also `@7`, `conflict absent`, `conflict`
    a 8-9 txn a=1 b=2 no c if d=5 -> @9      also `conflict d 1@6`
    a 10- put k 3 -> unknown                 also `failed`
    a 0-1 acquire l -> #5                    also try (`held`), holder (`nobody`), release l #5 (`yes`, `no`), expire

Changes of the log: `5 k=1, 6 no k`. What must not live here: which histories are good (`checkers.hand_made`).
"""

from __future__ import annotations

import re
from typing import Any

from coord.testing.history import UNSAID, Change, Found, History, Operation, _Unsaid

_KINDS = {"cas": "compare_and_set", "txn": "transaction", "try": "try_acquire"}
_LINE = re.compile(r"(\S+) ([\d.]+)-([\d.]*) (\w+) (.*?) ?-> ?(.*)")


def history(text: str) -> list[Operation]:
    recorder = History()
    ends: list[tuple[float, Operation, str]] = []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in sorted(lines, key=lambda line: float(line.split()[1].split("-")[0])):
        match = _LINE.fullmatch(line)
        assert match, f"not an operation: {line}"
        who, invoked, returned, kind, what, answer = match.groups()
        client, _, process = who.partition("@")
        kind = _KINDS.get(kind, kind)
        for end in [end for end in ends if end[0] < float(invoked)]:
            ends.remove(end)
            _end(recorder, *end)
        operation = recorder.begin(float(invoked), client, kind, process=process, **_asked(kind, what))
        ends.append((float(returned or "inf"), operation, answer))
    for end in ends:
        _end(recorder, *end)
    return recorder.operations


def changes(text: str) -> list[Change]:
    found = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        revision, _, what = item.partition(" ")
        if what.startswith("no "):
            found.append(Change(int(revision), what[3:], deleted=True))
        else:
            key, _, value = what.partition("=")
            found.append(Change(int(revision), key, _value(value)))
    return found


def _value(text: str) -> Any:
    return int(text) if text.isdigit() else text


def _asked(kind: str, what: str) -> dict[str, Any]:
    words = what.split()
    if kind == "transaction":
        asked: dict[str, Any] = {"puts": {}, "deletes": [], "requires": {}}
        position = 0
        while position < len(words):
            if words[position] == "no":
                asked["deletes"].append(words[position + 1])
            elif words[position] == "if":
                key, _, revision = words[position + 1].partition("=")
                asked["requires"][key] = int(revision)
            else:
                key, _, value = words[position].partition("=")
                asked["puts"][key] = _value(value)
            position += 1 if "=" in words[position] else 2
        return asked
    asked = {"key": words[0]}
    if kind in ("put", "compare_and_set"):
        asked["value"] = _value(words[1])
    if "if" in words:
        asked["revision"] = int(words[words.index("if") + 1])
    if words[-1].startswith("#"):
        asked["token"] = int(words[-1][1:])
    return asked


def _found(words: list[str]) -> Found | _Unsaid | None:
    if not words:
        return UNSAID
    if words[0] == "absent":
        return None
    value, _, revision = words[0].partition("@")
    numbers = {name: int(words[words.index(name) + 1]) for name in ("created", "version") if name in words}
    return Found(_value(value), int(revision or 0), **numbers)


def _end(recorder: History, returned: float, operation: Operation, answer: str) -> None:
    words = answer.split()
    if words[:1] == ["unknown"]:
        recorder.unknown(operation)
    elif words[:1] == ["failed"]:
        recorder.failed(operation)
    elif words[:1] == ["conflict"]:
        key = words.pop(1) if operation.kind == "transaction" and len(words) > 1 else ""
        recorder.conflict(returned, operation, key=key, found=_found(words[1:]))
    elif operation.kind in ("get", "look"):
        at = int(words[words.index("up") + 2]) if "up" in words else 0
        recorder.ok(returned, operation, found=_found(words), at=at)
    else:
        marks = {word[0]: int(word[1:]) for word in words if word[0] in "@#"}
        existed = True if "yes" in words else False if "no" in words else None
        recorder.ok(returned, operation, revision=marks.get("@", 0), token=marks.get("#", 0), existed=existed)
