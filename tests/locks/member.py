"""A member process as in `processes.member`, whose threads contend for a lock, or try what a test wants to measure.

What must not live here: anything that judges what happened (`locks.judge`, the tests).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import coord
from coord.clock import clock
from faults.record import Recorder
from locks.contenders import LOCK, Contenders
from processes.member import Served, say, serve


class LockServed(Served):
    def __init__(self, node: coord.Node, record: str, process: str) -> None:
        super().__init__(node)
        self._record = record
        self._process = process
        self._contenders: Contenders | None = None
        self._hold: coord.Hold | None = None
        self._cycling = threading.Event()
        self._waiting: list[threading.Thread] = []
        self._waited: list[float] = []

    # -- Contending, under faults

    def begin_clients(self, threads: dict[str, int], **settings: Any) -> None:
        recorder = Recorder(self._record, self._process)
        number = threads.get(self._node.name, 0)
        self._contenders = Contenders(self._node, recorder, seed=self._process, threads=number, **settings)

    def end_clients(self, timeout: float) -> None:
        if self._contenders is not None:
            self._contenders.stop(timeout)

    def acknowledged(self) -> int:
        """Holds of this process that have come and gone."""
        return self._contenders.holds if self._contenders is not None else 0

    def busy(self) -> tuple[int, float]:
        """The token of a hold at work, and seconds for which it will be."""
        return self._contenders.busy() if self._contenders is not None else (0, 0.0)

    def linger(self, token: int, seconds: float) -> bool:
        """Have the hold with this token go on for so many seconds; False: it is through already."""
        return self._contenders is not None and self._contenders.linger(token, seconds)

    def over(self, token: int) -> bool:
        """Whether the hold with this token has come and gone."""
        return self._contenders is not None and self._contenders.over(token)

    def lock(self, name: str = LOCK) -> dict[str, Any]:
        """What this member's copy says of the lock."""
        info = self._node.lock(name).describe()
        return {
            "holders": [[holder.owner, holder.token] for holder in info.holders],
            "waiting": [waiter.owner for waiter in info.waiting],
        }

    def status(self) -> dict[str, Any]:
        status = self._node.status()
        return {**super().status(), "last_index": status.last_index, "commit_index": status.commit_index}

    def dump_log(self, path: str) -> int:
        """Write every batch of the log up to where it is applied; that index. No snapshot may have been taken."""
        loop = self._node._running_loop()

        def copy() -> tuple[list[bytes], int]:
            log, applied = loop.replica.core.log, loop.replica.machine.applied_index
            assert log.first_index == 1, "the log was cut"
            return [batch.data for batch in log.between(1, applied)], applied

        batches, applied = loop.call(copy, 30.0)
        with open(path, "wb") as file:
            for data in batches:
                file.write(data)
        return int(applied)

    # -- Measuring

    def hold(self, name: str) -> int:
        """Take the lock and keep it; the token."""
        hold = self._node.lock(name, lock_delay=0).acquire(timeout=30)
        assert hold is not None, f"{name} was not to be had"
        self._hold = hold
        return hold.token

    def let_go(self) -> None:
        assert self._hold is not None
        self._hold.release()

    def try_in_vain(self, name: str, tries: int, timeout: float) -> list[float]:
        """As many threads ask once, all at the same time; how long each took. None may get it."""
        took, problems = [], []
        gate = threading.Barrier(tries)

        def attempt() -> None:
            lock = self._node.lock(name)
            gate.wait()
            began = clock()
            hold = lock.acquire(timeout=timeout)
            took.append(clock() - began)
            if hold is not None:
                problems.append(f"granted after {took[-1]:.3f} s")

        _together([attempt] * tries)
        assert not problems, f"{name} was not to be had: {problems}"
        return took

    def cycles(self, name: str, count: int) -> list[float]:
        """Acquire and release so often, one after the other; seconds that each took."""
        lock, took = self._node.lock(name), []
        for _ in range(count):
            began = clock()
            hold = lock.acquire(timeout=30)
            assert hold is not None, f"{name} was not to be had"
            hold.release()
            took.append(clock() - began)
        return took

    def begin_cycles(self, name: str, threads: int) -> None:
        """So many threads acquire and release it, over and over, until `end_cycles`."""
        self._cycling.clear()

        def cycle() -> None:
            lock = self._node.lock(name)
            while not self._cycling.is_set():
                hold = lock.acquire(timeout=30)
                assert hold is not None, f"{name} was not to be had"
                hold.release()

        self._waiting = [threading.Thread(target=cycle, daemon=True) for _ in range(threads)]
        for thread in self._waiting:
            thread.start()

    def end_cycles(self) -> None:
        self._cycling.set()
        for thread in self._waiting:
            thread.join(30.0)
            assert not thread.is_alive(), "a contender hangs"

    def begin_waiting(self, name: str, threads: int) -> None:
        """So many threads wait for it; then each lets go of it at once."""
        self._waited = []

        def wait() -> None:
            lock = self._node.lock(name)
            used = time.thread_time()
            hold = lock.acquire()
            self._waited.append(time.thread_time() - used)
            assert hold is not None
            hold.release()

        self._waiting = [threading.Thread(target=wait, daemon=True) for _ in range(threads)]
        for thread in self._waiting:
            thread.start()

    def end_waiting(self) -> list[float]:
        """Processor time of each thread that waited, seconds."""
        for thread in self._waiting:
            thread.join(30.0)
            assert not thread.is_alive(), "a waiter hangs"
        return self._waited

    def counters(self) -> dict[str, int]:
        counters = self._node._running_loop().replica.counters
        return {
            "frames_sent": counters.frames_sent,
            "frames_received": counters.frames_received,
            "turns": counters.turns,
            "entries": counters.entries_applied,
        }


def _together(targets: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "an acquire hangs"


def main() -> None:
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(created).4f %(name)s %(message)s")
    options = coord.Options(**settings.pop("options"))
    record, process = settings.pop("record"), settings.pop("process")
    for unused in ("journal", "lies"):
        settings.pop(unused)
    try:
        node = coord.Node(**settings, options=options, registry=None).start()
    except coord.CoordError as error:
        say(error=type(error).__name__, text=str(error))
        return
    say(started=os.getpid())
    serve(LockServed(node, record, process))


if __name__ == "__main__":
    main()
