"""One member of `coord demo`, in a process of its own: a node, and a worker that writes at a steady pace.

It tells its parent what happens by lines of JSON on stdout and does what lines on stdin say; when stdin ends, its
parent is gone, and so is it. What must not live here: what the demo does with members (`coord.cli.demo`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from typing import Any

from coord.cli.output import FAILED, OK, complain
from coord.clock import clock
from coord.errors import CoordError, OutcomeUnknown
from coord.node import Node

#: Seconds between two writes of one worker, and between two reports of what the member knows.
PACE_SECONDS, REPORT_SECONDS = 0.02, 0.1
#: A worker's keys; after as many writes it begins to overwrite, so that the demo may run for ever.
SLOTS = 1000
WRITE_TIMEOUT_SECONDS = 10.0


def key_of(name: str, number: int) -> str:
    """Where worker `name` writes its write number `number`."""
    return f"demo/{name}/{number % SLOTS:04d}"


def log_path(directory: str) -> str:
    """Where a member's stderr goes, by its data directory."""
    return f"{directory}.stderr"


class DemoMember:
    def __init__(self, name: str, directory: str, peers: dict[str, str], first_number: int) -> None:
        self._node = Node(name, bind=peers[name], peers=peers, data_dir=directory, group="demo", registry=None)
        self._directory = directory
        self._number = first_number
        self._write_lock = threading.Lock()
        #: Set: the worker writes. Set for ever: everything ends.
        self._working = threading.Event()
        self._ending = threading.Event()
        #: Held during each write.
        self._turn = threading.Lock()

    def run(self) -> int:
        with self._node:
            threads = [threading.Thread(target=self._work), threading.Thread(target=self._report)]
            for thread in threads:
                thread.start()
            try:
                ordered = self._obey()
            finally:
                self._ending.set()
                self._working.set()
        for thread in threads:
            thread.join()
        if not ordered:
            self._clean_up()
        return OK

    def _obey(self) -> bool:
        """Do what the parent says until it says stop; False when it has gone without a word."""
        for line in sys.stdin:
            order = line.strip()
            if order == "work":
                self._working.set()
            elif order == "rest":
                self._working.clear()
                with self._turn:
                    self._say(kind="resting")
            elif order == "tell":
                status = self._node.status()
                values = dict(self._node.config.items("demo/"))
                self._say(kind="held", applied=status.applied_index, hash=status.state_hash, values=values)
            elif order == "stop":
                return True
        return False

    def _work(self) -> None:
        while self._working.wait() and not self._ending.is_set():
            began = clock()
            with self._turn:
                # Looked at once more: who orders a rest waits for this turn only.
                if self._working.is_set():
                    self._write()
            self._ending.wait(max(0.0, began + PACE_SECONDS - clock()))

    def _write(self) -> None:
        number = self._number
        self._number += 1
        try:
            self._node.config.put(key_of(self._node.name, number), number, timeout=WRITE_TIMEOUT_SECONDS)
            self._say(kind="written", number=number, at=clock())
        except CoordError as error:
            if not self._ending.is_set():
                self._say(kind="unknown" if isinstance(error, OutcomeUnknown) else "failed", text=str(error))

    def _report(self) -> None:
        while not self._ending.wait(REPORT_SECONDS):
            try:
                status = self._node.status()
            except CoordError as error:
                if not self._ending.is_set():
                    self._say(kind="failed", text=str(error))
                continue
            self._say(
                kind="status",
                role=status.role,
                term=status.term,
                leader=status.leader,
                commit=status.commit_index,
                applied=status.applied_index,
                hash=status.state_hash,
                keys=len(self._node.config),
            )

    def _say(self, **message: Any) -> None:
        """One line for the parent; lines of different threads never mix."""
        try:
            with self._write_lock:
                sys.stdout.write(json.dumps(message) + "\n")
                sys.stdout.flush()
        except OSError:
            # The parent has gone; the end of stdin says so too, and ends this process.
            self._ending.set()

    def _clean_up(self) -> None:
        """The parent was killed, so nobody else removes what is on disk."""
        shutil.rmtree(self._directory, ignore_errors=True)
        try:
            os.unlink(log_path(self._directory))
            os.rmdir(os.path.dirname(self._directory))
        except OSError:
            return  # another member's is still there; the last one removes the folder


def main(arguments: list[str]) -> int:
    name, directory, peers, first_number = arguments
    try:
        return DemoMember(name, directory, json.loads(peers), int(first_number)).run()
    except CoordError as error:
        complain(error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
