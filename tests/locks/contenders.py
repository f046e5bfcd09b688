"""Threads of a member that contend for one lock, and under it change a counter in a file that all processes share.

Each hold is one read-modify-write: the counter is read when the lock is got, and written, one more, when the work is
done. Both go through a guard, each in one transaction with the check of the token. A contender writes whether it still
holds or not: to refuse it is up to the guard. What must not live here: judging (`locks.judge`), faults.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3
import threading
from contextlib import closing
from typing import Any

import coord
from coord.clock import clock
from faults.record import Recorder

LOCK = "shared/file"
RESOURCE = "counter"
#: Seconds of a hold's work, of most and of some: those are long enough to be found at it.
QUICK_WORK = (0.001, 0.02)
SLOW_WORK = (0.3, 0.6)
SLOW_SHARE = 0.4
#: Seconds between two holds of one contender.
REST = (0.0, 0.1)
#: How often, while it works, it looks whether it holds.
LOOK_SECONDS = 0.05
#: Some do not wait for ever.
TIMEOUTS = (-1.0, -1.0, -1.0, 2.0, 0.3)
#: Seconds until a hold that does not stand must be known to be lost, the network being well.
LOST_SECONDS = 40.0


def create(path: str) -> None:
    """The shared file. Whoever dies in the middle of a transaction leaves one that the next rolls back."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE counter (value INTEGER NOT NULL)")
        database.execute("INSERT INTO counter VALUES (0)")
        database.execute(
            "CREATE TABLE writes (number INTEGER PRIMARY KEY, token INTEGER, contender TEXT, counter INTEGER, "
            "began REAL, written REAL)"
        )


class Contenders:
    """Those of one member."""

    def __init__(
        self,
        node: coord.Node,
        recorder: Recorder,
        *,
        seed: str,
        path: str,
        threads: int,
        lock_delay: float | None,
        guarded: bool,
    ) -> None:
        """`guarded`: False: they write without asking the guard, to see whether that is found out."""
        self._node = node
        self._recorder = recorder
        self._path = path
        self._lock_delay = lock_delay
        self._guarded = guarded
        self._ending = threading.Event()
        self._numbers = itertools.count()
        #: By contender: the token it is at work with, and until when.
        self._busy: dict[str, tuple[int, float]] = {}
        #: Tokens of holds that have come and gone.
        self._over: set[int] = set()
        self.holds = 0
        self._note_steps()
        self._threads = []
        for number in range(threads):
            name, rng = f"contender {number}", random.Random(f"{seed} {number}")
            self._threads.append(threading.Thread(target=self._run, args=(name, rng), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def busy(self) -> tuple[int, float]:
        """The token of a hold whose contender is at work, and for how many seconds more; zeros if there is none."""
        now = clock()
        found = [(token, until - now) for token, until in list(self._busy.values()) if until > now]
        return max(found, key=lambda one: one[1], default=(0, 0.0))

    def linger(self, token: int, seconds: float) -> bool:
        """Have the one with this token work for so many seconds from now on; False: it is through already."""
        for name, (own, until) in list(self._busy.items()):
            if own == token and until > clock():
                self._busy[name] = own, clock() + seconds
                return True
        return False

    def over(self, token: int) -> bool:
        """Whether the hold with this token is over, and all there was to note of it is noted."""
        return token in self._over

    def stop(self, timeout: float) -> None:
        """Let each end what it is at."""
        self._ending.set()
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def _note_steps(self) -> None:
        """Record when each entry was applied here, before anybody is told of what it did."""
        replica = self._node._running_loop().replica
        requests, publish, noted = replica.requests, replica.requests.publish, 0

        def note(events: Any) -> None:
            nonlocal noted
            if replica.machine.applied_index != noted:
                noted = replica.machine.applied_index
                self._recorder.note(applied=noted, at=clock())
            publish(events)

        vars(requests)["publish"] = note

    def _run(self, name: str, rng: random.Random) -> None:
        with closing(sqlite3.connect(self._path, timeout=60.0, isolation_level=None)) as database:
            # Processes are killed, not machines.
            database.execute("PRAGMA synchronous=OFF")
            try:
                while not self._ending.wait(rng.uniform(*REST)):
                    self._contend(name, rng, database)
            except coord.ClosedError:
                return
            except Exception as error:
                self._recorder.note(contender=name, failure=repr(error))
                raise

    def _contend(self, name: str, rng: random.Random, database: sqlite3.Connection) -> None:
        lock = self._node.lock(LOCK, lock_delay=self._lock_delay)
        timeout, asked = rng.choice(TIMEOUTS), clock()
        hold = lock.acquire(timeout=timeout)
        granted = clock()
        if hold is None:
            self._recorder.note(contender=name, gave_up=timeout, took=granted - asked)
            return
        number = next(self._numbers)
        try:
            sequencer = hold.sequencer.split(":")
        except coord.LockLost:
            # Before its first use.
            with contextlib.suppress(coord.NotHeld):
                hold.release()
            return
        token, request = int(sequencer[3]), [int(sequencer[4], 16), int(sequencer[5])]
        self._recorder.note(granted=number, contender=name, token=token, request=request, asked=asked, at=granted)
        hold.on_lost(lambda reason: self._recorder.note(hold=number, told=reason, at=clock()))
        self._work(name, rng, database, number, hold, token)
        self._release(number, hold)
        self._over.add(token)
        self.holds += 1

    def _look(self, number: int, hold: coord.Hold) -> None:
        at = clock()
        self._recorder.note(hold=number, held=hold.held(), at=at)

    def _work(
        self, name: str, rng: random.Random, database: sqlite3.Connection, number: int, hold: coord.Hold, token: int
    ) -> None:
        guard = coord.FenceGuard.sqlite(database)
        began = clock()
        seconds = rng.uniform(*(SLOW_WORK if rng.random() < SLOW_SHARE else QUICK_WORK))
        self._look(number, hold)
        outcome, counter, newest = "undone", 0, 0
        try:
            database.execute("BEGIN IMMEDIATE")
            if self._guarded:
                # Before it reads, or one with an older token might write yet.
                guard.check(RESOURCE, token)
            (counter,) = database.execute("SELECT value FROM counter").fetchone()
            database.execute("COMMIT")
            self._busy[name] = token, began + seconds
            while (left := self._busy[name][1] - clock()) > 0:
                self._pause(min(left, LOOK_SECONDS))
                self._look(number, hold)
            database.execute("BEGIN IMMEDIATE")
            if self._guarded:
                guard.check(RESOURCE, token)
            counter += 1
            database.execute("UPDATE counter SET value = ?", (counter,))
            database.execute(
                "INSERT INTO writes (token, contender, counter, began, written) VALUES (?, ?, ?, ?, ?)",
                (token, f"{self._node.name} {name}", counter, began, clock()),
            )
            database.execute("COMMIT")
            outcome = "written"
        except coord.StaleToken as refusal:
            outcome, newest = "stale", refusal.newest
        except (coord.Unavailable, sqlite3.OperationalError) as error:
            if "locked" not in str(error):
                raise
            # Somebody stands still in the middle of a transaction.
        finally:
            self._busy.pop(name, None)
            if database.in_transaction:
                database.execute("ROLLBACK")
        self._recorder.note(hold=number, write=outcome, counter=counter, newest=newest)
        self._look(number, hold)

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _release(self, number: int, hold: coord.Hold) -> None:
        deadline = clock() + LOST_SECONDS
        # Its session may yet come back, with all it held.
        while not hold.held() and not hold.lost.wait(LOOK_SECONDS) and clock() < deadline:
            pass
        if not hold.held():
            self._recorder.note(hold=number, lost=hold.lost.is_set(), at=clock())
        self._recorder.note(hold=number, releasing=True, at=clock())
        try:
            hold.release()
        except (coord.NotHeld, coord.OutcomeUnknown) as error:
            self._recorder.note(hold=number, release=type(error).__name__, at=clock())
        else:
            self._recorder.note(hold=number, release="ok", at=clock())
