"""What a lock costs, measured on real processes: commands, hand-offs, waiting, and how punctual a timeout is.

What is a matter of counting is asserted here; what is a matter of time is returned, for whoever asked to judge.
What must not live here: faults of holders (`locks.campaign`).
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from faults.lab import DEFAULTS, QUICK
from locks.judge import check_order, percentile
from locks.lab import LockLab
from locks.truth import replay
from processes.harness import PATIENCE, MemberProcess

#: `acquire(timeout=1)` returns within so many seconds.
TIMEOUT, PUNCTUAL = 1.0, 1.1
TRIES, TRIES_AT_A_TIME = 100, 10
NAME = "measured"

HEAD = ["measured", "result"]


class Figures(NamedTuple):
    """Lines of the table, and the times that somebody may want to judge."""

    lines: list[list[str]]
    times: list[float]


class Measurement(NamedTuple):
    name: str
    #: Given the directory, and whether it has to be quick.
    measure: Callable[[Path, bool], Figures]


def table(head: list[str], rows: list[list[str]]) -> str:
    """The rows as Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def measure_all(chosen: list[Measurement], *, quick: bool) -> tuple[list[list[str]], int]:
    """Their lines, and how many failed."""
    lines, failed = [], 0
    for one in chosen:
        print(f"... {one.name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="coord-locks-") as place:
            try:
                figures = one.measure(Path(place), quick)
            except Exception:
                traceback.print_exc()
                failed += 1
                continue
        for line in figures.lines:
            print("    " + ": ".join(line), flush=True)
        lines += figures.lines
    return lines, failed


def _group(directory: Path, options: dict[str, Any]) -> LockLab:
    return LockLab(directory, "plain", "abc", {}, lock_delay=0.0, **options)


# ---------------------------------------------------------------------------------------------------------------------
# What it costs.


def cost(directory: Path, quick: bool) -> Figures:
    """Alone, acquire and release are two entries of the log, and nothing else happens; how long they take."""
    count, lines = 100 if quick else 1000, []
    with _group(directory, DEFAULTS) as lab:
        lab.start(*lab.names)
        leader = lab.leads()
        for name, where in ((leader, "the leader"), (lab.others(leader)[0], "a follower")):
            lab[name].call("cycles", name=NAME, count=20)
            took = _two_entries_each(lab, name, count)
            lines.append(
                [
                    f"acquire + release, alone, group of three on one disk, on {where}",
                    f"p50 {1000 * percentile(took, 0.5):.2f} ms, p99 {1000 * percentile(took, 0.99):.2f} ms; "
                    f"{2 * count} entries for {count}",
                ]
            )
    return Figures(lines, [])


def _two_entries_each(lab: LockLab, name: str, count: int) -> list[float]:
    def state() -> dict[str, Any]:
        settled: dict[str, Any] = lab.settled()[0]
        return settled

    for _ in range(5):
        before = state()
        took: list[float] = lab[name].call("cycles", name=NAME, count=count)
        after = state()
        if after["term"] == before["term"]:
            entries = after["last_index"] - before["last_index"]
            assert entries == 2 * count, f"{count} times acquire and release were {entries} entries"
            return took
    raise AssertionError("the group has elected leaders all the time")


def idle(directory: Path, quick: bool) -> Figures:
    """Who waits does nothing: no entries, no more messages and turns than without them, no processor time."""
    seconds = 2.0 if quick else 5.0
    with _group(directory, DEFAULTS) as lab:
        lab.start(*lab.names)
        leader = lab.leads()
        lab[lab.others(leader)[0]].call("hold", name=NAME)
        without = _counted(lab, seconds)
        for name, threads in zip(lab.names, (6, 5, 5), strict=True):
            lab[name].call("begin_waiting", name=NAME, threads=threads)
        lab.until(lambda: len(lab[leader].call("lock", name=NAME)["waiting"]) == 16, "16 that wait")
        lab.settled()
        during = _counted(lab, seconds)
        lab[lab.others(leader)[0]].call("let_go")
        used = [time for name in lab.names for time in lab[name].call("end_waiting")]
    assert during["entries"] == 0, f"{during['entries']} entries while 16 did nothing but wait"
    # What a leader and two followers do by the clock, with room for a quarter more: 16 that asked once a second would
    # be 160 messages in 5 s, there and back.
    for what in ("frames_sent", "turns"):
        most = without[what] * 1.25 + 20
        assert during[what] <= most, f"{during[what]} {what} while 16 waited for {seconds} s, {without[what]} without"
    assert len(used) == 16
    text = (
        f"{during['frames_sent']} frames and {during['turns']} turns in three members in {seconds:g} s, without them "
    )
    text += f"{without['frames_sent']} and {without['turns']}; no entries; at most "
    text += f"{1000 * max(used):.1f} ms of processor time in the thread of a waiter"
    return Figures([["16 that wait", text]], [])


def _counted(lab: LockLab, seconds: float) -> dict[str, int]:
    """What all members together did in that time."""
    before = [lab[name].call("counters") for name in lab.names]
    lab.hold(seconds)
    after = [lab[name].call("counters") for name in lab.names]
    return {what: sum(late[what] - early[what] for early, late in zip(before, after, strict=True)) for what in after[0]}


def hand_over(directory: Path, quick: bool) -> Figures:
    """16 contenders in 3 processes: each release is the next one's grant, in the same entry."""
    seconds = 3.0 if quick else 10.0
    with _group(directory, QUICK) as lab:
        lab.start(*lab.names)
        lab.leads()
        for name, threads in zip(lab.names, (6, 5, 5), strict=True):
            lab[name].call("begin_cycles", name=NAME, threads=threads)
        lab.hold(1.0)
        first = lab["a"].call("status")["applied_index"]
        lab.hold(seconds)
        last = lab["a"].call("status")["applied_index"]
        ending = [lab[name].ask("end_cycles") for name in lab.names]
        for answer in ending:
            answer.result(PATIENCE)
        outcome = lab.judged()
    truth = replay(outcome.batches, NAME)
    assert truth.state_hash == outcome.state_hash
    check_order(truth)
    pairs = [(one, two) for one, two in pairwise(truth.grants) if first < two.granted <= last]
    waited = [(one, two) for one, two in pairs if two.asked]
    for one, two in waited:
        assert one.gone == two.granted, f"{two} was granted {two.granted - one.gone} entries after the lock was free"
    assert len(waited) > len(pairs) / 2, f"only {len(waited)} of {len(pairs)} had to wait for it"
    text = (
        f"{len(pairs) / seconds:.0f} a second; {len(waited)} of {len(pairs)} to one who waited, each of these in the "
    )
    text += f"entry of the release; {(last - first) / len(pairs):.2f} entries each (the release, and the next request)"
    return Figures([["hand-offs among 16 contenders in 3 processes", text]], [])


# ---------------------------------------------------------------------------------------------------------------------
# Timeouts.


def _tell(what: str, times: list[float]) -> Figures:
    late = sum(time > PUNCTUAL for time in times)
    assert min(times) >= TIMEOUT, f"an acquire gave up after {min(times):.3f} s, before its time"
    text = f"p50 {percentile(times, 0.5):.3f} s, max {max(times):.3f} s; {late} of {len(times)} after {PUNCTUAL} s"
    return Figures([[f"acquire(timeout=1) {what}", text]], times)


def _tries(lab: LockLab, name: str, tries: int) -> list[float]:
    took: list[float] = lab[name].call("try_in_vain", name=NAME, tries=tries, timeout=TIMEOUT)
    return took


def _rounds(quick: bool) -> int:
    return 2 if quick else TRIES // TRIES_AT_A_TIME


def _nothing_left(lab: LockLab) -> None:
    """Those who gave up are in nobody's way."""
    idle_lock: dict[str, Any] = {"holders": [], "waiting": []}
    for member in lab.members.values():
        lab.until(partial(_is, member, idle_lock), f"a lock that {member.name} knows to be idle")


def _is(member: MemberProcess, lock: dict[str, Any]) -> bool:
    return bool(member.call("lock", name=NAME) == lock)


def contended(directory: Path, quick: bool) -> Figures:
    times = []
    with _group(directory, DEFAULTS) as lab:
        lab.start(*lab.names)
        leader = lab.leads()
        holder, other = tuple(lab.others(leader))
        lab[holder].call("hold", name=NAME)
        for number in range(_rounds(quick)):
            times += _tries(lab, (leader, other)[number % 2], TRIES_AT_A_TIME)
        lab[holder].call("let_go")
        _nothing_left(lab)
    return _tell("of what another holds", times)


def without_quorum(directory: Path, quick: bool) -> Figures:
    times = []
    with _group(directory, DEFAULTS) as lab:
        lab.start(*lab.names)
        left = lab.others(lab.leads())[0]
        for name in lab.others(left):
            lab.pause(name)
        for _ in range(_rounds(quick)):
            times += _tries(lab, left, TRIES_AT_A_TIME)
        for name in lab.others(left):
            lab.resume(name)
        lab.leads()
        _nothing_left(lab)
    return _tell("without quorum", times)


def paused_leader(directory: Path, quick: bool) -> Figures:
    """With the default options nobody else comes to lead within a second."""
    times = []
    with _group(directory, DEFAULTS) as lab:
        lab.start(*lab.names)
        for _ in range(_rounds(quick)):
            leader = lab.leads()
            lab.pause(leader)
            times += _tries(lab, lab.others(leader)[0], TRIES_AT_A_TIME)
            lab.resume(leader)
            lab.leads()
            _nothing_left(lab)
    return _tell("with a leader that is stopped", times)


ALL = [
    Measurement("cost", cost),
    Measurement("idle", idle),
    Measurement("hand-over", hand_over),
    Measurement("timeout, contended", contended),
    Measurement("timeout, no quorum", without_quorum),
    Measurement("timeout, paused leader", paused_leader),
]
