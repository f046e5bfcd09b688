"""Who is here: three processes join a party, one is killed, and comes back; the others are told.

This process is member `a`; `b` and `c` run in processes of their own, as they would on other machines. Sessions are
short here, so that the death of a process is noticed soon.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import coord

NAMES = ("a", "b", "c")
OPTIONS = coord.Options(heartbeat=0.05, election_timeout=(0.3, 0.6), session_ttl=2.0)
PATIENCE = 30.0


def member(name: str, folder: str) -> coord.Node:
    """How every process of the group makes its node; only `name` differs."""
    return coord.Node(
        name,
        bind=f"ipc://{folder}/{name}.sock",
        peers={peer: f"ipc://{folder}/{peer}.sock" for peer in NAMES},
        data_dir=f"{folder}/{name}",
        group="example",
        options=OPTIONS,
    )


def serve(name: str, folder: str) -> None:
    """What `b` and `c` do: run until the parent closes their stdin, by purpose or by dying."""
    with member(name, folder) as node:
        node.counter("started").add(1, timeout=PATIENCE)
        # Until it leaves or stops; if its session is lost, it joins again by itself.
        node.party("workers", value={"role": "worker"}).join(timeout=PATIENCE)
        sys.stdin.read()


def start(name: str, folder: str) -> subprocess.Popen[bytes]:
    """A list of arguments, no shell; the pipe is how a child notices that its parent is gone."""
    return subprocess.Popen([sys.executable, __file__, name, folder], stdin=subprocess.PIPE)


def wait_for(names: Iterable[str], told: queue.SimpleQueue[dict[str, Any]]) -> dict[str, Any]:
    """The members, once they are just these."""
    while list(members := told.get(timeout=PATIENCE)) != list(names):
        continue
    return members


def main(folder: str) -> None:
    others = {name: start(name, folder) for name in NAMES[1:]}
    try:
        with member("a", folder) as node:
            party = node.party("workers", value={"role": "parent"})
            told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
            party.watch(told.put)
            party.join(timeout=PATIENCE)
            for name, value in wait_for("abc", told).items():
                print(f"{name} is here, a {value['role']}")

            others["b"].kill()
            wait_for("ac", told)
            print("b was killed; when its session had ended, the others were told")

            others["b"].communicate()
            others["b"] = start("b", folder)
            wait_for("abc", told)
            print("b is back, by a new process")

            party.leave()
            print("a has left; still here:", ", ".join(party))
            print("workers were started", node.counter("started").value, "times")
    finally:
        for process in others.values():
            process.communicate(timeout=10)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(sys.argv[1], sys.argv[2])
    else:
        with tempfile.TemporaryDirectory(prefix="coord-") as folder:
            main(folder)
