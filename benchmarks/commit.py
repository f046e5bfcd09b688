"""How fast a group of three commits, on this machine, with everything on disk: `python benchmarks/commit.py`.

Three member processes with directories of their own; what makes the load are threads inside the members, as in an
application that embeds the library. Beside the figures stands the floor, measured in the same run: one fdatasync, and
one round trip over the loopback. `--json` prints the figures as JSON. It ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What lies beside this file is measured, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import coord

NAMES = ("a", "b", "c")
VALUE = b"v" * 100
KEYS = 256
#: Asynchronous writes under way at a time.
WINDOW = 512


@dataclass
class Figure:
    """One line of the table: calls per second, seconds at three quantiles, and the members' processor time."""

    name: str
    rate: float
    median: float
    p99: float
    worst: float
    #: Seconds of processor time for each call, in all three processes together; None where it means nothing.
    processor: float | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Inside a member.


def put(node: coord.Node, number: int) -> None:
    node.config.put(f"key/{number % KEYS}", VALUE)


def read_linearizable(node: coord.Node, number: int) -> None:
    node.config.get(f"key/{number % KEYS}", linearizable=True)


def read_local(node: coord.Node, number: int) -> None:
    node.config.get(f"key/{number % KEYS}")


CALLS: dict[str, Callable[[coord.Node, int], None]] = {
    "put": put,
    "read_linearizable": read_linearizable,
    "read_local": read_local,
}


def run_threads(node: coord.Node, call: str, threads: int, seconds: float) -> list[float]:
    """Have `threads` callers call for so long; how long each call took."""
    function = CALLS[call]
    took: list[list[float]] = [[] for _ in range(threads)]
    problems: list[BaseException] = []
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        try:
            ready.wait()
            mine, clock, count = took[number], time.perf_counter, number
            end = clock() + seconds
            before = clock()
            while before < end:
                function(node, count)
                now = clock()
                mine.append(now - before)
                before, count = now, count + threads
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]
    return [duration for mine in took for duration in mine]


def run_pipelined(node: coord.Node, seconds: float) -> list[float]:
    """One thread that never waits for the answer to its last write, only for room."""
    took: list[float] = []
    problems: list[BaseException] = []
    room = threading.Semaphore(WINDOW)
    clock = time.perf_counter

    def begin(number: int) -> None:
        began = clock()

        def finished(future: Future[int]) -> None:
            problem = future.exception()
            if problem is None:
                took.append(clock() - began)
            else:
                problems.append(problem)
            room.release()

        node.config.put_async(f"key/{number % KEYS}", VALUE).add_done_callback(finished)

    end, number = clock() + seconds, 0
    while clock() < end and not problems:
        room.acquire()
        begin(number)
        number += 1
    for _ in range(WINDOW):
        room.acquire()
    if problems:
        raise problems[0]
    return took


def summarise(took: list[float], seconds: float) -> dict[str, float]:
    took.sort()
    return {
        "calls": len(took),
        "rate": len(took) / seconds,
        "median": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
        "worst": took[-1],
    }


def serve_member(settings: dict[str, Any]) -> None:
    """A member in its own process: answers lines of JSON until its input ends."""
    node = coord.Node(**settings, registry=None).start()
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        if order["do"] == "leads":
            answer: Any = node.status().role == "leader"
        elif order["do"] == "processor":
            answer = time.process_time()
        else:
            if order["do"] == "pipelined":
                took = run_pipelined(node, order["seconds"])
            else:
                took = run_threads(node, order["do"], order["threads"], order["seconds"])
            answer = summarise(took, time.perf_counter() - began)
        print(json.dumps(answer), flush=True)
    # Its input has ended: nobody needs the group any more, and a hand-over would be wasted.
    os._exit(0)


# ---------------------------------------------------------------------------------------------------------------------
# The parent.


class MemberProcess:
    def __init__(self, name: str, peers: dict[str, str], directory: Path) -> None:
        settings = {"name": name, "bind": peers[name], "peers": peers, "data_dir": str(directory / name)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--member", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a member process died; what it said is above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def find_leader(members: list[MemberProcess]) -> MemberProcess:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for member in members:
            if member.ask("leads"):
                return member
        time.sleep(0.05)
    raise RuntimeError("the members elected no leader within 30 s; is the machine overloaded?")


def measure(members: list[MemberProcess], caller: MemberProcess, name: str, do: str, **order: Any) -> Figure:
    before = sum(member.ask("processor") for member in members)
    found = caller.ask(do, **order)
    processor = sum(member.ask("processor") for member in members) - before
    return Figure(name, found["rate"], found["median"], found["p99"], found["worst"], processor / found["calls"])


def free_addresses() -> dict[str, str]:
    """Loopback ports nobody listens on, below those that a system gives to whoever dials."""
    addresses: dict[str, str] = {}
    while len(addresses) < len(NAMES):
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and f"tcp://127.0.0.1:{port}" not in addresses.values():
                addresses[NAMES[len(addresses)]] = f"tcp://127.0.0.1:{port}"
    return addresses


def sync_floor(directory: Path) -> Figure:
    """Write 512 bytes into a preallocated file and fdatasync, over and over."""
    took, block = [], b"x" * 512
    descriptor = os.open(directory / "floor", os.O_RDWR | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    try:
        os.write(descriptor, bytes(1 << 20))
        os.fsync(descriptor)
        for number in range(1000):
            began = time.perf_counter()
            os.pwrite(descriptor, block, number * len(block))
            sync(descriptor)
            took.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
    return _floor("floor: fdatasync of 512 bytes", took)


def round_trip_floor() -> Figure:
    """One byte there and back between two threads, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def echo() -> None:
                while data := far.recv(1):
                    far.sendall(data)

            thread = threading.Thread(target=echo)
            thread.start()
            took = []
            for _ in range(2000):
                began = time.perf_counter()
                near.sendall(b"x")
                near.recv(1)
                took.append(time.perf_counter() - began)
            near.shutdown(socket.SHUT_WR)
            thread.join()
    return _floor("floor: loopback round trip", took)


def _floor(name: str, took: list[float]) -> Figure:
    found = summarise(took, sum(took))
    return Figure(name, found["rate"], found["median"], found["p99"], found["worst"])


def run(seconds: float) -> list[Figure]:
    # The current directory, or TMPDIR, decides which disk is measured.
    with tempfile.TemporaryDirectory(prefix="coord-benchmark-") as name:
        directory = Path(name)
        figures = [sync_floor(directory), round_trip_floor()]
        peers = free_addresses()
        members = [MemberProcess(member, peers, directory) for member in NAMES]
        try:
            leader = find_leader(members)
            follower = next(member for member in members if member is not leader)
            leader.ask("put", threads=16, seconds=0.5)
            for title, caller, do, order in (
                ("put, 1 caller, in the leader", leader, "put", {"threads": 1}),
                ("put, 1 caller, in a follower", follower, "put", {"threads": 1}),
                ("put, 16 threads", leader, "put", {"threads": 16}),
                ("put, 64 threads", leader, "put", {"threads": 64}),
                ("put, 64 threads, in a follower", follower, "put", {"threads": 64}),
                (f"put_async, 1 thread, {WINDOW} under way", leader, "pipelined", {}),
                ("linearizable read, 1 caller, in the leader", leader, "read_linearizable", {"threads": 1}),
                ("linearizable read, 1 caller, in a follower", follower, "read_linearizable", {"threads": 1}),
                ("linearizable read, 16 threads", leader, "read_linearizable", {"threads": 16}),
                ("local read, 1 caller", follower, "read_local", {"threads": 1}),
            ):
                figures.append(measure(members, caller, title, do, seconds=seconds, **order))
        finally:
            for member in members:
                member.close()
    return figures


def show(figures: list[Figure]) -> str:
    lines = [f"{'':44}{'per second':>12}{'median':>11}{'p99':>11}{'worst':>11}{'processor':>12}"]
    for figure in figures:
        processor = "" if figure.processor is None else f"{1e6 * figure.processor:.0f} us"
        times = "".join(f"{1e3 * value:>8.3f} ms" for value in (figure.median, figure.p99, figure.worst))
        lines.append(f"{figure.name:44}{figure.rate:>12,.0f}{times}{processor:>12}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, times in seconds")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each line (default: 3)")
    parser.add_argument("--member", metavar="SETTINGS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member:
        serve_member(json.loads(arguments.member))
        return
    figures = run(arguments.seconds)
    machine = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    if arguments.json:
        print(json.dumps({"machine": machine, "figures": [vars(figure) for figure in figures]}, indent=2))
    else:
        print(f"{machine}\n{show(figures)}")


if __name__ == "__main__":
    main()
