"""Runs a command for as long as a node says that something is held for it: one hold, one command.

It trusts nobody to tell it in time. The node says until when nobody else can be granted what is held; from then on our
own clock decides, so that a node that hangs, is stopped or dies changes nothing: SIGTERM when that time gets short,
SIGKILL a margin before it is up. What is held is given back only once the command has ended.

Nothing here blocks while a command runs. What must not live here: how a command is started and killed
(`coord.cli.child`), what is asked for and when again (`coord.cli.lock`, `coord.cli.run`).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coord.cli.child import Child, Signals, wait_readable
from coord.cli.control import DONE, ENDING, HELD, LEASE, LOST, RELEASE, WAITING, ControlClient
from coord.cli.output import FAILED, OK, TIMEOUT, CommandError, printable
from coord.clock import clock

#: SIGKILL comes so many seconds before the lease ends, or a quarter of the time from SIGTERM on, if that is less.
_MARGIN_SECONDS = 0.5
#: Seconds to wait for a release to be acknowledged, and beyond what the node was asked to wait for.
_RELEASE_SECONDS = 5.0
#: A pipe takes so much in one piece.
_LINE_BYTES = select.PIPE_BUF

#: Why a command is ended: we are to end.
_ASKED = "asked to end"
#: Starts the command, given token and sequencer.
Start = Callable[[int, str], Child]


class Lost(Exception):
    """What was held is not any more, before the command was started."""


@dataclass(frozen=True)
class Outcome:
    """How it came out. Of a command that was never started, as we were asked to end, there is no code."""

    code: int | None
    #: Why the command was told to end; "" if it ended by itself.
    why: str = ""
    #: How long it ran.
    seconds: float = 0.0
    #: The hold did not last as long as it was wanted.
    lost: bool = False

    def exit_code(self, signals: Signals) -> int:
        """For the shell: the command's own, unless that says that all went well although it was told to end."""
        if self.code is None:
            return 128 + signals.number
        return self.code or (FAILED if self.lost else OK)


@dataclass
class _Hold:
    """What the node has said."""

    token: int = 0
    sequencer: str = ""
    #: Times of `coord.clock`.
    jeopardy_at: float = -math.inf
    ends_at: float = -math.inf
    #: Why it is to be given up; why it is gone.
    ending: str = ""
    lost: str = ""
    released: bool = False
    #: Why nothing more is heard.
    problem: CommandError | None = None

    def take(self, kind: str, value: Any) -> str:
        """One answer; returns whom it waits for, if it says so. ValueError or TypeError for what is none."""
        if kind == DONE:
            self.released = True
            return ""
        what, *rest = value
        if what == WAITING:
            (holder,) = rest
            return str(holder)
        if what == HELD:
            self.token, self.sequencer = int(rest[0]), str(rest[1])
        elif what == LEASE:
            # Each is a promise, whichever comes last.
            self.jeopardy_at = max(self.jeopardy_at, float(rest[0]))
            self.ends_at = max(self.ends_at, float(rest[1]))
        elif what == ENDING:
            self.ending = str(rest[0])
        elif what == LOST:
            self.lost = str(rest[0])
        else:
            raise ValueError(what)
        return ""

    @property
    def kill_at(self) -> float:
        return self.ends_at - min(_MARGIN_SECONDS, (self.ends_at - self.jeopardy_at) / 4)


class Supervisor:
    """One hold and one command, from the asking, which is under way, to the end of both."""

    def __init__(
        self,
        client: ControlClient,
        signals: Signals,
        start: Start,
        *,
        grace: float,
        patience: float = math.inf,
        waiting: Callable[[str], None] = lambda holder: None,
        holding: Callable[[int], None] = lambda token: None,
    ) -> None:
        """grace: seconds from SIGTERM to SIGKILL, if the lease allows it.
        patience: seconds in which the node has to answer.
        waiting, holding: called with who holds it instead, and with the token when the command has been started.
        """
        self._client = client
        self._signals = signals
        self._start = start
        self._grace = grace
        self._patience = patience
        self._waiting = waiting
        self._holding = holding
        self._hold = _Hold()
        self._child: Child | None = None
        #: Why the command was sent SIGTERM, and when it gets SIGKILL for not heeding it.
        self._why = ""
        self._grace_ends = math.inf
        self._killed = False

    def run(self) -> Outcome:
        """Raises CommandError if it never came to start the command, and Lost; nothing of it then goes on."""
        try:
            if not self._wait_for_it():
                return Outcome(None)
            self._child = child = self._start(self._hold.token, self._hold.sequencer)
        except CommandError:
            self._release()
            raise
        try:
            child.must_end_by(self._hold.kill_at)
            self._holding(self._hold.token)
            code = self._attend(child)
        finally:
            # Only a bug of ours leaves it running here.
            child.kill()
        now = clock()
        if not self._why and now >= self._hold.kill_at:
            # The guard was there before us: we were stopped.
            self._why = "this process was stopped"
        self._release()
        return Outcome(code, self._why, now - child.started_at, bool(self._why) and self._why != _ASKED)

    # -- before

    def _wait_for_it(self) -> bool:
        """Until there is a lease with time enough. False: we are asked to end."""
        hold = self._hold
        give_up_at = clock() + self._patience
        while True:
            now = clock()
            if self._signals.asked:
                self._release()
                return False
            if hold.problem is not None:
                raise hold.problem
            if hold.lost or hold.ending or hold.released:
                self._release()
                raise Lost(hold.lost or hold.ending or "the node has ended it")
            if hold.token and now < hold.jeopardy_at:
                return True
            if now >= give_up_at:
                hold.problem = CommandError("the node does not answer; it may be overloaded", TIMEOUT)
                continue
            self._listen(give_up_at)

    # -- meanwhile

    def _attend(self, child: Child) -> int:
        """Until the command has ended; its exit code."""
        while (code := child.ended()) is None:
            now = clock()
            if not self._why:
                self._why = self._reason_to_end(now)
                if self._why:
                    child.terminate()
                    self._grace_ends = now + self._grace
            if not self._killed and now >= self._kill_at:
                child.kill()
                self._killed = True
            self._listen(math.inf if self._killed else self._kill_at if self._why else self._hold.jeopardy_at)
            child.must_end_by(self._hold.kill_at)
        return code

    def _reason_to_end(self, now: float) -> str:
        hold = self._hold
        if self._signals.asked:
            return _ASKED
        if hold.lost or hold.released:
            return hold.lost or "the node has ended it"
        if hold.ending:
            return hold.ending
        if now >= hold.jeopardy_at:
            return "the lease was not renewed in time" if hold.problem is None else str(hold.problem)
        return ""

    @property
    def _kill_at(self) -> float:
        """When it is to be killed, as far as is known now."""
        if self._hold.lost or self._hold.released or self._signals.asked > 1:
            return -math.inf
        return min(self._grace_ends, self._hold.kill_at)

    # -- afterwards

    def _release(self) -> None:
        """Give back what is held, or the place in the queue, now that nothing runs because of it. Not to hear that it
        is done is no harm: once this connection is closed the node does it when the lease has ended."""
        hold = self._hold
        if hold.problem is not None or hold.lost or hold.released:
            return
        asked = self._signals.asked
        give_up_at = clock() + _RELEASE_SECONDS
        try:
            self._client.tell([RELEASE])
        except CommandError as error:
            hold.problem = error
        while not (hold.problem or hold.released) and clock() < give_up_at and self._signals.asked <= asked + 1:
            self._listen(give_up_at)

    # -- within

    def _listen(self, until: float) -> None:
        """Wait for news, from the node or by a signal, and take it in."""
        hold = self._hold
        sources = [self._signals.fileno()]
        if hold.problem is None and not hold.released:
            sources.append(self._client.fileno())
        wait_readable(sources, max(0.0, until - clock()))
        self._signals.drain()
        if len(sources) == 1:
            return
        try:
            for kind, value in self._client.arrived():
                holder = hold.take(kind, value)
                if holder:
                    self._waiting(holder)
        except CommandError as error:
            hold.problem = error
        except (TypeError, ValueError, IndexError):
            hold.problem = CommandError("the node said something of unknown form about a hold")


def say(text: str) -> None:
    """One line on stderr, at once or not at all: who does not read it must not keep us from killing in time."""
    line = f"coord: {printable(' '.join(text.split()))}"[: _LINE_BYTES // 4] + "\n"
    # A reader that has gone, or no stderr at all, is no reason to end a command.
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, line.encode(errors="replace"))
