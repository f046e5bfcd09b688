"""`coord demo`: three members on this machine, one killed while all write; what happens is shown, and checked.

What must not live here: processes (`coord.cli.demo_processes`), drawing (`coord.cli.demo_screen`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise

from coord.cli.demo_processes import Group
from coord.cli.demo_screen import BOLD, CYAN, DRAW_SECONDS, GREEN, RED, YELLOW, Screen
from coord.cli.output import FAILED, OK, CommandError
from coord.clock import clock

NAMES = ("a", "b", "c")
#: The whole story takes some 10 seconds; after so many it has failed.
LIMIT_SECONDS = 30.0
#: How long all is left to work before the kill, before the restart, and after it.
_BEFORE_KILL, _BEFORE_RESTART, _AFTER_RESTART = 2.0, 1.5, 1.0
#: A folder's name this long leaves room for a socket's in 107 bytes.
_FOLDER_BYTES_MAX = 90


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="three members on this machine; the leader is killed while you watch",
        description="Start three members on this machine, each in a process of its own, all writing. Kill the leader, "
        "see another take over, start the dead one again, and check that no acknowledged write is missing and that all "
        "three hold the same. Takes some 10 seconds and leaves nothing behind.",
    )
    parser.add_argument("--keep", action="store_true", help="go on working until Ctrl-C, then check again")
    parser.set_defaults(func=demo)


def demo(args: argparse.Namespace) -> int:
    # Whoever ends us politely wants the members gone too: the same way out as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = _make_folder()
    screen, group = Screen(), Group(folder, NAMES)
    try:
        problems = Demo(screen, group, folder).play(keep=args.keep)
    finally:
        screen.finish()
        group.end()
        shutil.rmtree(folder, ignore_errors=True)
    return FAILED if problems else OK


class Demo:
    """The story, told once."""

    def __init__(self, screen: Screen, group: Group, folder: str) -> None:
        self._screen = screen
        self._group = group
        self._folder = folder
        self._deadline = clock() + LIMIT_SECONDS
        #: Members killed and not started again.
        self._killed: set[str] = set()
        self._applied_at_kill = 0

    def play(self, *, keep: bool) -> list[str]:
        """Returns what went wrong, if anything; CommandError when the story could not be told to its end."""
        screen = self._screen
        screen.say(f"{screen.style('coord demo', BOLD)}: three members, three processes, data in {self._folder}")
        screen.say()
        self._begin()
        old = self._group.leader()
        assert old is not None
        pause = self._lose(old)
        self._bring_back(old)
        problems = self._check()
        if keep and not problems:
            problems = self._keep()
        self._conclude(problems, pause)
        return problems

    # -- the chapters

    def _begin(self) -> None:
        group, screen = self._group, self._screen
        for name in NAMES:
            group.start(name)
        screen.tell("three members started; none leads yet")
        group.order("work")
        self._until(lambda: group.leader() is not None and all(group.counts.values()), "no leader was elected")
        screen.tell(f"{self._leads()}; the worker in each process writes every 20 ms", GREEN)
        self._go_on(_BEFORE_KILL)

    def _lose(self, old: str) -> float:
        """Kill the leader; returns for how many seconds writes stood still."""
        group, screen = self._group, self._screen
        others = [name for name in NAMES if name != old]
        self._applied_at_kill = self._applied(old)
        at = clock()
        group.kill(old)
        self._killed.add(old)
        screen.tell(f"{old}, the leader, is killed (SIGKILL)", RED)

        def recovered() -> bool:
            return group.leader() in others and all(self._wrote_since(name, at) for name in others)

        self._until(recovered, "the others did not recover")
        screen.tell(f"{self._leads()}; nobody told it to", GREEN)
        # One heartbeat and some, so that every pause that follows from the kill has ended.
        self._go_on(_BEFORE_RESTART)
        pauses = {name: _longest_pause(group.times[name], at) for name in others}
        shown = ", ".join(f"{seconds * 1000:.0f} ms at {name}" for name, seconds in pauses.items())
        screen.tell(f"longest time between two successful writes around the kill: {shown}", CYAN)
        return max(pauses.values())

    def _bring_back(self, old: str) -> None:
        group, screen = self._group, self._screen
        at = clock()
        group.start(old)
        group.members[old].order("work")
        self._killed.discard(old)
        screen.tell(f"{old} is started again, with the data it had on disk", YELLOW)
        self._until(lambda: group.status(old) is not None, f"{old} did not start")
        target = self._commit()
        self._until(lambda: self._applied(old) >= target, f"{old} did not catch up")
        self._until(lambda: self._wrote_since(old, at), f"{old} did not write again")
        missed = target - self._applied_at_kill
        screen.tell(
            f"{old} has caught up on {missed} entries and writes again, {clock() - at:.1f} s after its start", GREEN
        )
        self._go_on(_AFTER_RESTART)

    def _check(self) -> list[str]:
        """Let all come to rest, then compare what the members hold, with each other and with what was acknowledged."""
        group, screen = self._group, self._screen
        group.resting.clear()
        group.order("rest")
        self._until(lambda: len(group.resting) == len(NAMES), "the workers did not come to rest")
        group.held.clear()
        group.order("tell")
        self._until(self._all_hold_the_newest, "the members did not come to the same index")
        held = group.held
        index, hashes = held[NAMES[0]]["applied"], {name: held[name]["hash"] for name in NAMES}
        problems = missing_writes(group.written, {name: held[name]["values"] for name in NAMES})
        if len(set(hashes.values())) > 1:
            problems.append(f"the state hashes differ at index {index}: {hashes}")
        if not problems:
            screen.tell(f"all three hold the same at index {index}: state hash {hashes[NAMES[0]]}", GREEN)
            screen.tell(f"all {sum(group.counts.values())} acknowledged writes are there, on all three", GREEN)
        return problems

    def _keep(self) -> list[str]:
        screen = self._screen
        try:
            screen.tell("going on until Ctrl-C", BOLD)
            self._deadline = float("inf")
            self._group.order("work")
            self._until(lambda: False, "")
        except KeyboardInterrupt:
            self._deadline = clock() + LIMIT_SECONDS
            screen.tell("checking once more")
        return self._check()

    def _conclude(self, problems: list[str], pause: float) -> None:
        group, screen = self._group, self._screen
        rows, _ = self._view()
        screen.finish(erase=True)
        print()
        for line in screen.table_lines(rows):
            print(line)
        print()
        for problem in problems:
            print(f"  {screen.style('wrong', RED)}  {problem}")
        if not problems:
            unknown = f"; {group.unknown} of unknown outcome" if group.unknown else ""
            print(
                f"  {screen.style('ok', GREEN)}  {sum(group.counts.values())} writes acknowledged, none lost{unknown}; "
                f"the leader's death held writes up for {pause * 1000:.0f} ms"
            )
        sys.stdout.flush()

    # -- waiting, and what is seen meanwhile

    def _go_on(self, seconds: float) -> None:
        until = clock() + seconds
        while clock() < until:
            self._group.hear(min(DRAW_SECONDS, max(0.0, until - clock())))
            self._screen.show(*self._view())

    def _until(self, condition: Callable[[], bool], failure: str) -> None:
        """Listen and draw until `condition` holds."""
        while not condition():
            if clock() >= self._deadline:
                raise CommandError(f"the demo failed: {failure} within {LIMIT_SECONDS:g} s of its beginning")
            self._group.hear(DRAW_SECONDS)
            self._screen.show(*self._view())

    def _view(self) -> tuple[list[list[str]], str]:
        """The table's rows, and the line below it."""
        group, rows = self._group, []
        for name in NAMES:
            status, writes = group.status(name), str(group.counts[name])
            if status is None:
                rows.append([name, "killed" if name in self._killed else "starting", "", "", "", writes, "", ""])
                continue
            behind = max(0, self._commit() - status["applied"])
            note = f"{behind} behind" if behind > _ORDINARY_LAG else ""
            numbers = [str(status[key]) for key in ("term", "commit", "applied")]
            rows.append([name, status["role"], *numbers, writes, status["hash"], note])
        keys = max((status["keys"] for name in NAMES if (status := group.status(name)) is not None), default=0)
        return rows, f"{sum(group.counts.values())} writes acknowledged, {keys} keys in the config map"

    def _leads(self) -> str:
        name = self._group.leader()
        status = self._group.status(name) if name is not None else None
        assert status is not None, "asked only while somebody leads"
        return f"{name} leads, in term {status['term']}"

    def _commit(self) -> int:
        """The highest commit index anybody has told."""
        return max((status["commit"] for name in NAMES if (status := self._group.status(name)) is not None), default=0)

    def _applied(self, name: str) -> int:
        status = self._group.status(name)
        return 0 if status is None else int(status["applied"])

    def _wrote_since(self, name: str, at: float) -> bool:
        times = self._group.times[name]
        return bool(times) and times[-1] > at

    def _all_hold_the_newest(self) -> bool:
        """All are at one index. Nobody writes any more and every writer has applied what it was told is written, so
        that index is none older than any acknowledged write. Else ask again."""
        held = self._group.held
        if len(held) < len(NAMES):
            return False
        if len({said["applied"] for said in held.values()}) == 1:
            return True
        held.clear()
        self._group.order("tell")
        return False


#: Statuses are told one after the other, so a member that keeps up seems to be this far behind at times.
_ORDINARY_LAG = 50


def missing_writes(written: dict[str, dict[str, int]], held: dict[str, dict[str, int]]) -> list[str]:
    """What was acknowledged and is not there: one line for each member that lacks any. A key may hold a later number
    than the last one acknowledged: a write of unknown outcome that did happen."""
    problems = []
    for name, values in sorted(held.items()):
        lost = [key for keys in written.values() for key, number in keys.items() if values.get(key, -1) < number]
        if lost:
            problems.append(f"{name} lacks {len(lost)} acknowledged writes, among them {min(lost)}")
    return problems


def _longest_pause(times: list[float], at: float) -> float:
    """The longest time between two writes of which the later came after `at`."""
    return max((later - earlier for earlier, later in pairwise(times) if later > at), default=0.0)


def _make_folder() -> str:
    """A fresh folder whose sockets' paths are short enough."""
    folder = tempfile.mkdtemp(prefix="coord-demo-")
    if len(os.fsencode(folder)) <= _FOLDER_BYTES_MAX:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="coord-demo-", dir="/tmp")
