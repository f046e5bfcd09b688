"""A command run for as long as something is held: started, signalled, and killed in time whatever happens to us.

The command has a session, and so a process group, of its own: what is sent to it goes to all it has started, and what a
terminal sends reaches us alone. Two things outlive us: a guard, a second process that kills the group when its time is
up or we are gone, and on Linux the kernel, which kills the command itself, but not what it started, in the same moment.

What must not live here: when a command may run (`coord.cli.supervisor`).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType

from coord.cli.output import CommandError
from coord.clock import clock

#: What shells say of a command that is not there, and of one that cannot be run.
NOT_FOUND, NOT_RUNNABLE = 127, 126
#: Signals that ask us to end. One that is ignored when we start stays so: nohup, or a shell's background.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: To the guard: when to kill which group.
_ORDER = struct.Struct("<dq")
_PR_SET_PDEATHSIG = 1


class Signals:
    """Those that concern who runs a command, as something to poll. For the main thread, by a `with` statement."""

    def __init__(self) -> None:
        #: How many times we were asked to end, and by which signal last.
        self.asked = 0
        self.number = 0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        # The first only has to wake us. The second would stop us, but not the command, nor the clock of its lease.
        for number in (signal.SIGCHLD, signal.SIGTSTP):
            self._before[number] = signal.signal(number, _do_nothing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._read

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 512):
                pass

    def wait(self, seconds: float) -> bool:
        """Until we are asked to end, for so many seconds at most. True: we are."""
        deadline = clock() + seconds
        while not self.asked and (left := deadline - clock()) > 0:
            wait_readable([self._read], left)
            self.drain()
        return self.asked > 0

    def _ask(self, number: int, frame: object) -> None:
        self.asked += 1
        self.number = number


def _do_nothing(number: int, frame: object) -> None:
    """Waking up is all."""


def wait_readable(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Those that can be read, or have ended; none after so many seconds (infinite: for ever)."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    # Rounded up: to wake just before the time, again and again, would be to busy oneself.
    timeout = None if seconds == math.inf else max(0, math.ceil(min(seconds, 1e6) * 1000))
    return [descriptor for descriptor, _ in poll.poll(timeout)]


def find(command: str) -> None:
    """CommandError if there is no such command: better told before anything is waited for."""
    if shutil.which(command) is None:
        if os.path.dirname(command) and os.path.exists(command):
            raise CommandError(f"{command}: cannot be run: no execute permission, or a directory", NOT_RUNNABLE)
        raise CommandError(f"{command}: command not found", NOT_FOUND)


class Child:
    """A command that runs. CommandError when it cannot be started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.started_at = clock()
        self._group = 0
        self._code: int | None = None
        self._told = math.inf
        try:
            self._guard = _Guard()
            try:
                self._process = subprocess.Popen(
                    command,
                    env={**os.environ, **environment},
                    start_new_session=True,
                    preexec_fn=_dying_with(os.getpid()),
                )
            except OSError:
                self._guard.dismiss()
                raise
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
            raise CommandError(f"{command[0]}: cannot be run: {error.strerror}", code) from error
        self._group = self._process.pid

    def must_end_by(self, at: float) -> None:
        """It is killed at that time of `coord.clock`, even if we are stopped, until another time is told."""
        if at != self._told:
            self._guard.order(at, self._group)
            self._told = at

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def ended(self) -> int | None:
        """Its exit code, 128 and more for a signal, once it has ended; None before. What it has left running in its
        group is killed then."""
        if self._code is None and _has_ended(self._process.pid):
            # While it is not yet waited for, no other group can have its number.
            self.kill()
            self._guard.dismiss()
            code = self._process.wait()
            self._code = 128 - code if code < 0 else code
        return self._code

    def _signal(self, number: int) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # The latter from macOS, of a group in which all have ended.
                os.killpg(self._group, number)


def _has_ended(pid: int) -> bool:
    """Without taking notice of it, so that its number stays its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _dying_with(parent: int) -> Callable[[], None] | None:
    """What the child does before it becomes the command, on Linux: have the kernel kill it when we end."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            # We ended before that could be arranged.
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


class _Guard:
    """A process that does nothing but kill a group when its time has come, or when we are gone."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _watch_over(read)
            finally:
                os._exit(0)
        os.close(read)

    def order(self, at: float, group: int) -> None:
        # A guard that was killed, or stopped for so long that its pipe is full, is missed only if we fail as well.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._write, _ORDER.pack(at, group))

    def dismiss(self) -> None:
        """Once this has returned it kills nobody any more."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._write)


def _watch_over(orders: int) -> None:
    """The guard's life."""
    signal.set_wakeup_fd(-1)
    for number in (*_ENDING, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    # Nothing of its parent's may stay open here: others wait to see it closed.
    for name in os.listdir("/dev/fd"):
        if int(name) != orders:
            with contextlib.suppress(OSError):
                os.close(int(name))
    at, group = math.inf, 0
    while True:
        if wait_readable([orders], max(0.0, at - clock())):
            data = os.read(orders, _ORDER.size)
            if len(data) == _ORDER.size:
                at, group = _ORDER.unpack(data)
                continue
        if group:
            os.killpg(group, signal.SIGKILL)
        return
