"""The judge of locks: a story it must let pass, and one change to it for each thing it must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coord.clock import clock
from coord.machine import commands
from coord.raft.batch import COMMANDS, NOOP, encode_entry, make_batch
from locks import judge
from locks.judge import File, Written
from locks.lab import Fault
from locks.record import Held, Records, read_records
from locks.truth import Grant, Truth, replay


@dataclass(slots=True)
class Story:
    truth: Truth
    file: File
    records: Records
    faults: list[Fault]

    def check(self) -> dict[str, int]:
        return judge.check_all(self.truth, self.file, self.records, self.faults)


def held(process: str, number: int, token: int, asked: float, granted: float, **more: Any) -> Held:
    return Held(process, "contender 0", (number, 1), token, asked, granted, **more)


@pytest.fixture
def story() -> Story:
    """`a` holds, writes and releases. `b` gets it at 20, is stopped from 3.0 to 6.0, and is refused. `c`, who waits
    since 12, gets it at 40, and has not released it before `a` waits again."""
    grants = [
        Grant((1, 1), "a", 110, granted=10, gone=20),
        Grant((2, 1), "b", 120, granted=20, gone=35, asked=11),
        Grant((3, 1), "c", 140, granted=40, gone=50, asked=12),
        Grant((1, 2), "a", 150, granted=50, gone=51, asked=45),
    ]
    holds = [
        held("a/1", 1, 110, 0.5, 1.0, looks=[(1.1, True), (1.9, True)], write="written", counter=1, released=2.0,
             release="ok", end=2.1),
        held("b/1", 2, 120, 1.1, 2.1, looks=[(2.2, True), (6.1, False)], write="stale", counter=2, newest=140, told=6.2,
             lost=6.25,
             released=6.3, release="NotHeld", end=6.4),
        held("c/1", 3, 140, 1.2, 5.6, looks=[(5.7, True)], write="written", counter=2, released=7.0, release="ok",
             end=7.1),
        Held("a/1", "contender 0", (1, 2), 150, 6.5, 7.2, [(7.3, True)], "written", 3, released=7.4, release="ok"),
    ]  # fmt: skip
    applied = [(10, 1.0), (11, 1.2), (12, 1.3), (20, 2.05), (35, 5.0), (40, 5.5), (45, 6.6), (50, 7.05), (51, 7.5)]
    records = Records({hold.request: hold for hold in holds}, applied={"a/1": applied})
    file = File(
        [Written(110, "a contender 0", 1), Written(140, "c contender 0", 2), Written(150, "a contender 0", 3)], 3
    )
    return Story(Truth(grants, "", 1, 51), file, records, [Fault("stop holder", "b", 3.0, 6.0, 120, True)])


def test_what_must_pass(story: Story) -> None:
    checked = story.check()
    assert checked == {"holds": 4, "writes": 3, "refusals": 1, "records": 4, "looks": 5, "stopped": 1}


def change(story: Story, number: int, **values: Any) -> None:
    hold = list(story.records.holds.values())[number]
    for name, value in values.items():
        setattr(hold, name, value)


def forget_last(file: File) -> None:
    file.writes.pop()
    file.counter -= 1


def look_late(story: Story) -> None:
    """`b` finds that it holds once it goes on, and nobody can say when others were granted it."""
    change(story, 1, looks=[(6.1, True)])
    story.records.applied.clear()


#: What is changed, and what must be said of it.
MISTAKES: dict[str, tuple[Callable[[Story], Any], str]] = {
    "two hold at once": (lambda story: setattr(story.truth, "most", 2), "2 held the lock at once"),
    "one is granted before the other is gone": (lambda s: setattr(s.truth.grants[1], "gone", 41), "overlaps"),
    "one is never gone": (lambda s: setattr(s.truth.grants[3], "gone", 0), "is held still"),
    "a token that goes down": (lambda s: setattr(s.truth.grants[2], "token", 115), "tokens do not rise"),
    "a stale write in the file": (
        lambda s: s.file.writes.append(Written(120, "b contender 0", 4)),
        "write 4 has token 120 after 150",
    ),
    "a lost change of the counter": (lambda s: setattr(s.file.writes[1], "counter", 1), "one was lost"),
    "a counter that nobody wrote": (lambda s: setattr(s.file, "counter", 4), "the counter is 4 after 3"),
    "a write by somebody else": (lambda s: setattr(s.file.writes[1], "contender", "b contender 0"), "is not of"),
    "a write without a hold": (
        lambda s: s.file.writes.append(Written(160, "b contender 0", 4)),
        "nobody was granted",
    ),
    "a write that is gone": (lambda s: forget_last(s.file), "does not show it"),
    "a refusal of one who held": (lambda s: change(s, 1, newest=110), "while it held"),
    "a refusal for nobody": (lambda s: change(s, 1, newest=99), "nobody was granted"),
    "a release of what was lost": (lambda s: change(s, 1, release="ok"), "told that it was released"),
    "a hold that the log has not": (lambda s: s.truth.grants.pop(0), "the log has not|nobody was granted"),
    "another token than in the log": (lambda s: change(s, 3, token=151), "no contender|in the log"),
    "told that it holds when another does": (
        lambda s: change(s, 0, looks=[(2.06, True)]),
        "was told at 2.0600 that it holds",
    ),
    "told so after it was stopped": (look_late, "after it had been stopped"),
    "not told that it was lost": (lambda s: change(s, 1, lost=None), "was not told that it was lost"),
    "a contender that failed": (lambda s: s.records.failures.append("oh"), "contenders failed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_must_not_pass(story: Story, mistake: str) -> None:
    make, said = MISTAKES[mistake]
    make(story)
    with pytest.raises(AssertionError, match=said):
        story.check()


def test_how_long_it_was_free(story: Story) -> None:
    """From the release, from the moment somebody was stopped, or from when the next asked."""
    waits = judge.find_waits(story.truth, story.records, story.faults)
    assert [(round(wait.seconds, 3), wait.why) for wait in waits] == [
        (0.05, "released"),
        (2.5, "stop holder"),
        (0.05, "released"),
    ]
    assert [round(seconds, 3) for seconds in judge.find_lost(story.records, story.faults, "stop")] == [0.2]
    assert judge.find_lost(story.records, story.faults, "cut") == []
    assert [round(seconds, 3) for seconds in judge.find_told(story.records, story.truth, story.faults)] == [
        *(0.0, 0.05, 0.1, 0.15),
    ]


def test_a_hold_whose_end_nobody_explains(story: Story) -> None:
    story.faults.clear()
    assert judge.find_waits(story.truth, story.records, story.faults)[1].why == ""


def test_the_truth_is_in_the_log() -> None:
    """Two contend; the first is expired, with a lock-delay, and the second is granted it when that is over."""
    second = 1_000_000_000

    def ask(session: int, sequence: int) -> bytes:
        return commands.acquire(session, sequence, 0, "x", False, 1, 0, True, second, False, b"")

    steps = [
        (0, [commands.set_epoch(1), commands.open_session(7, "a", 1, second)]),
        (0, [commands.open_session(8, "b", 1, second), ask(7, 1), ask(8, 1)]),
        (second, [commands.expire_session(7, 1)]),
        (3 * second, [commands.tick()]),
        (3 * second, [commands.release(8, 2, 0, "x", 1, (1 << 39) + 8, ""), commands.tick()]),
    ]
    batches = [make_batch(NOOP, 1, 1, 0, [encode_entry(b"")], 1)]
    for time, payloads in steps:
        entries = [encode_entry(payload) for payload in payloads]
        batches.append(make_batch(COMMANDS, 1, batches[-1].last + 1, time, entries, len(entries)))
    truth = replay(batches, "x")
    assert truth.most == 1
    assert [(grant.owner, grant.granted, grant.gone, grant.asked) for grant in truth.grants] == [
        ("a", 5, 7, 0),
        ("b", 8, 9, 6),
    ]
    assert replay(batches, "y").grants == []


def test_what_a_killed_process_noted(tmp_path: Path) -> None:
    path = tmp_path / "a-001.history"
    path.write_bytes(
        b'{"process": "a/1", "at": 1}\n{"applied": 5, "at": 1.5}\n{"applied": 9, "at": 2.5}\n'
        b'{"granted": 0, "contender": "one", "token": 12, "request": [3, 4], "asked": 2.0, "at": 2.6}\n'
        b'{"hold": 0, "held": true, "at": 2.7}\n{"hold": 0, "rele'
    )
    records = read_records([path])
    hold = records.holds[3, 4]
    assert (hold.member, hold.looks, hold.write, hold.released) == ("a", [(2.7, True)], "", None)
    assert (records.time_of(5), records.time_of(6), records.time_of(10)) == (1.5, 2.5, float("inf"))
    assert hold.granted < clock(), "the clock of this machine counts from long ago"
