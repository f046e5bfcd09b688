"""A member process as in `processes.member`, with clients of its own and a disk that fails when told to.

What must not live here: anything that judges what happened (`faults.judge`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import threading
import time
from typing import Any

import coord
from coord.node import _mint
from coord.storage.directory import DataDirectory, open_directory
from faults.clients import Clients
from faults.disk import FaultyDisk
from faults.record import Recorder
from processes.member import Served, say, serve


class FaultyNode(coord.Node):
    """A node on a faulty disk. `lies`: it answers linearizable reads from its own copy, to see whether that is found
    out."""

    def __init__(self, *arguments: Any, disk: FaultyDisk, lies: bool, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._disk = disk
        self._lies = lies

    def _open_directory(self) -> DataDirectory | None:
        assert self._data_dir is not None
        return open_directory(
            self._data_dir,
            group=self.group,
            name=self.name,
            fingerprint=self._fingerprint,
            mint=_mint,
            files=self._disk,
        )

    def _confirm_reads(self, timeout: float | None) -> None:
        if not self._lies:
            super()._confirm_reads(timeout)


class FaultyServed(Served):
    def __init__(self, node: coord.Node, disk: FaultyDisk, record: str, process: str) -> None:
        super().__init__(node)
        self._disk = disk
        self._record = record
        self._process = process
        self._recorder: Recorder | None = None
        self._clients: Clients | None = None

    def begin_clients(self, **settings: Any) -> None:
        self._recorder = Recorder(self._record, self._process)
        self._clients = Clients(self._node, self._recorder, seed=self._process, **settings)

    def end_clients(self, timeout: float) -> None:
        if self._clients is not None:
            self._clients.stop(timeout)

    def acknowledged(self) -> int:
        """Writes of this process's clients that have returned."""
        return self._recorder.acknowledged if self._recorder is not None else 0

    def disk(self, mode: str, seconds: float = 0.0) -> None:
        self._disk.be(mode, seconds)

    def disk_figures(self) -> dict[str, int]:
        return {"faults": self._disk.faults, "syncs_after_failure": self._disk.syncs_after_failure}

    def figures(self) -> dict[str, Any]:
        """What the member has counted; answers whatever has become of it."""
        replica = self._node._running_loop().replica
        counters = replica.counters
        return {
            "elections": counters.elections,
            "step_downs": counters.step_downs,
            "dropped": counters.frames_dropped,
            "refusal": replica.refusal,
            "snapshots_installed": counters.snapshots_installed,
            "failure": None if replica.failure is None else type(replica.failure).__name__,
            "notes": [f"{note.at:.3f} {note.kind}: {note.text}" for note in counters.recent[-12:]],
        }

    def hog(self, threads: int, seconds: float) -> None:
        """Keep the interpreter busy with that many threads."""
        end = time.monotonic() + seconds

        def work() -> None:
            while time.monotonic() < end:
                sum(range(1000))

        working = [threading.Thread(target=work) for _ in range(threads)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()

    def hold_interpreter(self, seconds: float) -> None:
        """Do not let go of the interpreter, as a long call of some extension does not."""
        ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))

    def block_logs(self, seconds: float) -> None:
        """For so long whoever logs anything waits, as on a full pipe."""
        until = time.monotonic() + seconds

        def block(record: logging.LogRecord) -> bool:
            time.sleep(max(0.0, until - time.monotonic()))
            return True

        for handler in logging.getLogger().handlers:
            handler.addFilter(block)

    def local(self, key: str) -> Any:
        return self._node.config.get(key)


def main() -> None:
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(created).4f %(name)s %(message)s")
    options = coord.Options(**settings.pop("options"))
    record, process = settings.pop("record"), settings.pop("process")
    disk = FaultyDisk(settings.pop("journal"))
    try:
        node = FaultyNode(**settings, disk=disk, options=options, registry=None).start()
    except coord.CoordError as error:
        say(error=type(error).__name__, text=str(error))
        return
    say(started=os.getpid())
    serve(FaultyServed(node, disk, record, process))


if __name__ == "__main__":
    main()
