"""A member in a process of its own, told what to do by lines of JSON on its standard input.

It answers on standard output, each line whole before the next begins: what the process said before it was killed is
there to be read afterwards. It ends with its input, so it never outlives the test that started it.
What must not live here: anything that judges what happened (`processes.history`, the tests).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import coord

#: Requests served at a time. Each may block for as long as its timeout says.
THREADS = 64

_speaking = threading.Lock()


def say(**line: Any) -> None:
    data = json.dumps(line).encode() + b"\n"
    with _speaking:
        while data:
            data = data[os.write(1, data) :]


class Served:
    """What a test may ask of the member: each method is one request."""

    def __init__(self, node: coord.Node) -> None:
        self._node = node
        self._rest = threading.Event()

    def put(self, key: str, value: Any, timeout: float | None = None, ttl: float | None = None) -> int:
        return self._node.config.put(key, value, timeout=timeout, ttl=ttl)

    def entry(self, key: str, linearizable: bool = False, timeout: float | None = None) -> list[Any] | None:
        entry = self._node.config.entry(key, linearizable=linearizable, timeout=timeout)
        return None if entry is None else [entry.value, entry.revision]

    def everything(self, timeout: float | None = None) -> dict[str, list[Any]]:
        """Every key's value and revision, no older than this call."""
        config = self._node.config
        config.get("-", linearizable=True, timeout=timeout)
        entries = ((key, config.entry(key)) for key in config)
        return {key: [entry.value, entry.revision] for key, entry in entries if entry is not None}

    def arrive(self, revision: int, timeout: float) -> None:
        """Wait until the local copy includes `revision`."""
        self._node.config.get("-", min_revision=revision, timeout=timeout)

    def status(self) -> dict[str, Any]:
        status = self._node.status()
        return {
            "role": status.role,
            "leader": status.leader,
            "term": status.term,
            "applied_index": status.applied_index,
            "state_hash": status.state_hash,
            "quorum_ok": status.quorum_ok,
        }

    def transfer(self, to: str | None, timeout: float | None = None) -> None:
        self._node.cluster.transfer_leadership(to, timeout=timeout)

    def pace(self, key: str, every: float) -> dict[str, Any]:
        """Write `key` again each `every` seconds, until `rest`. Returns when each write was acknowledged (seconds of
        the clock all processes share), and what went wrong. A write waits for the one before it, not for its turn
        when that is past."""
        acknowledged, errors, number = [], [], 0
        due = time.monotonic()
        while not self._rest.wait(max(0.0, due - time.monotonic())):
            due = max(due + every, time.monotonic())
            number += 1
            try:
                self._node.config.put(key, number, timeout=60.0)
            except coord.CoordError as error:
                errors.append(f"{type(error).__name__}: {error}")
            else:
                acknowledged.append(time.monotonic())
        self._rest.clear()
        return {"acknowledged": acknowledged, "errors": errors}

    def rest(self) -> None:
        self._rest.set()

    def look(self, keys: list[str], every: float) -> None:
        """Read `keys` from the local copy over and over, until the process ends; tell each change seen."""
        threading.Thread(target=self._look, args=(keys, every), daemon=True).start()

    def _look(self, keys: list[str], every: float) -> None:
        known: dict[str, int] = {}
        pause = threading.Event()
        while not pause.wait(every):
            for key in keys:
                entry = self._node.config.entry(key)
                revision = 0 if entry is None else entry.revision
                if revision != known.get(key, 0):
                    known[key] = revision
                    say(seen=[key, revision, None if entry is None else entry.value])

    def fill_disk(self) -> None:
        """From now on every write to a file fails, as on a full disk."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def stop(self, timeout: float = 5.0) -> None:
        self._node.stop(timeout)


def serve(served: Served) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin:
            request = json.loads(line)
            method: Callable[..., Any] = getattr(served, request["do"])
            pool.submit(answer, request["call"], method, request["arguments"])
        # The parent is gone, or wants this process gone. Its requests need no answer now.
        os._exit(0)


def answer(call: int, method: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        result = method(**arguments)
    except coord.CoordError as error:
        say(call=call, error=type(error).__name__, text=str(error))
    except Exception as error:
        say(call=call, error="", text=repr(error))
    else:
        say(call=call, result=result)


def main() -> None:
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(created).4f %(name)s %(message)s")
    options = coord.Options(**settings.pop("options"))
    try:
        node = coord.Node(**settings, options=options, registry=None).start()
    except coord.CoordError as error:
        say(error=type(error).__name__, text=str(error))
        return
    say(started=os.getpid())
    serve(Served(node))


if __name__ == "__main__":
    main()
