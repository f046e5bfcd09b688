"""Nodes used at the wrong time, twice, from the wrong place, or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import coord
from inputs.conftest import PATIENCE, Nodes, until

USES: dict[str, Callable[[coord.Node], Any]] = {
    "put": lambda node: node.config.put("k", 2),
    "put_async": lambda node: node.config.put_async("k", 2),
    "delete": lambda node: node.config.delete("k"),
    "update": lambda node: node.config.update("k", lambda value: 2),
    "read": lambda node: node.config["k"],
    "linearizable": lambda node: node.config.get("k", linearizable=True),
    "contains": lambda node: "k" in node.config,
    "items": lambda node: node.config.items(),
    "age": lambda node: node.config.age(),
    "watch": lambda node: node.config.watch(),
    "status": lambda node: node.status(),
    "members": lambda node: node.cluster.members(),
    "leader": lambda node: node.cluster.leader(),
    "transfer": lambda node: node.cluster.transfer_leadership(),
}


def in_child(function: Callable[[], object]) -> str:
    """What `function` returned in a forked child, as text."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork with threads about: just what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(function()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


def outcome(use: Callable[[coord.Node], Any], node: coord.Node) -> str:
    try:
        use(node)
    except Exception as error:
        return type(error).__name__
    return "nothing was raised"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_before_start(use: Callable[[coord.Node], Any]) -> None:
    with pytest.raises(coord.ClosedError, match="not started"):
        use(coord.Node(registry=None))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_after_stop(use: Callable[[coord.Node], Any]) -> None:
    with coord.Node(registry=None) as node:
        node.config["k"] = 1
    with pytest.raises(coord.ClosedError, match="has been stopped"):
        use(node)


def test_use_in_a_forked_child(node: coord.Node) -> None:
    node.config["k"] = 1
    began = time.monotonic()
    found = in_child(lambda: {name: outcome(use, node) for name, use in USES.items()})
    assert found == repr(dict.fromkeys(USES, "ForkedError"))
    # At once: nothing waited for an answer that cannot come.
    assert time.monotonic() - began < node.default_timeout
    # Nor does the child's stop touch the parent's node.
    assert in_child(lambda: node.stop()) == "None"
    assert node.config.put("k", 3) > 0
    assert node.config["k"] == 3


def test_a_node_made_before_a_fork_and_started_after() -> None:
    node = coord.Node(registry=None)

    def use() -> Any:
        with node:
            node.config["k"] = 1
            return node.config["k"]

    assert in_child(use) == "1"


def test_the_child_of_a_dead_member_keeps_nothing_of_it(nodes: Nodes) -> None:
    """A forked child outlives its parent: neither the directory nor the port stays taken, or the member could not be
    started again."""
    script = (
        "import os, sys, time, coord\n"
        f"node = coord.Node('a', bind={nodes.peers['a']!r}, data_dir={str(nodes.directory / 'a')!r}, registry=None)\n"
        "node.start()\n"
        "node.config['k'] = 1\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print('born', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "born\n"
        # Only its own death ends the child's turn at the pipes, so this is the parent's exit.
        assert parent.wait(PATIENCE) == -signal.SIGKILL
        again = nodes.make("a", peers=None).start()
        assert again.config["k"] == 1
        parent.communicate()


def test_start_twice(node: coord.Node) -> None:
    with pytest.raises(coord.CoordError, match="started already"):
        node.start()
    node.config["k"] = 1
    node.stop()
    with pytest.raises(coord.ClosedError, match="has been stopped"):
        node.start()


def test_stop_twice_and_without_a_start(node: coord.Node) -> None:
    node.stop()
    node.stop()
    coord.Node(registry=None).stop()


def test_stop_from_the_callback_of_a_watch(node: coord.Node) -> None:
    stopped = threading.Event()

    def stop(event: coord.Event) -> None:
        node.stop()
        stopped.set()

    node.config.watch("k", callback=stop)
    node.config.put_async("k", 1)
    assert stopped.wait(PATIENCE)
    with pytest.raises(coord.ClosedError):
        node.config.put("k", 2)


def test_stop_from_the_callback_of_a_future(node: coord.Node) -> None:
    stopped = threading.Event()

    def stop(future: object) -> None:
        node.stop()
        stopped.set()

    node.config.put_async("k", 1).add_done_callback(stop)
    assert stopped.wait(PATIENCE)


def test_stop_ends_calls_that_wait(nodes: Nodes) -> None:
    """Two of three are not there, so nothing is ever answered; nobody is left waiting."""
    (alone,) = nodes.start("a")
    found: list[str] = []
    uses = [USES["put"], USES["linearizable"], lambda node: list(node.config.watch()), USES["transfer"]]
    threads = [threading.Thread(target=lambda use=use: found.append(outcome(use, alone))) for use in uses]
    for thread in threads:
        thread.start()
    future = alone.config.put_async("k", 1, timeout=PATIENCE)
    until(lambda: alone._running_loop().replica.unanswered == 2, "both writes wait")
    alone.stop()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(found) == ["ClosedError", "ClosedError", "ClosedError", "Unavailable"]
    assert isinstance(future.exception(PATIENCE), coord.ClosedError)


def test_a_write_without_a_majority_certainly_never_happens(nodes: Nodes) -> None:
    (alone,) = nodes.start("a")
    with pytest.raises(coord.Unavailable, match="nothing heard from b, c"):
        alone.config.put("k", "never", timeout=0.2)
    with pytest.raises(coord.Unavailable):
        alone.config.put_async("k", "never", timeout=0.2).result(PATIENCE)
    b, _ = nodes.start("b", "c")
    assert b.config.put("other", 1, timeout=PATIENCE) > 0
    assert b.config.get("k", linearizable=True) is None


@contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C as soon as this thread waits for an answer."""
    me = threading.get_ident()

    def waits() -> bool:
        code = sys._current_frames()[me].f_code
        return code.co_name == "wait" and Path(code.co_filename).name == "loop.py"

    def interrupt() -> None:
        until(waits, "the call waits")
        signal.pthread_kill(me, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


def test_an_interrupted_write_leaves_nothing_behind(nodes: Nodes) -> None:
    (alone,) = nodes.start("a")
    with interrupted():
        alone.config.put("k", "interrupted", timeout=PATIENCE)
    assert alone._running_loop().replica.unanswered == 0
    b, _ = nodes.start("b", "c")
    assert alone.config.put("other", 1, timeout=PATIENCE) > 0
    assert b.config.get("k", linearizable=True) is None


def test_an_interrupted_linearizable_read_leaves_nothing_behind(nodes: Nodes) -> None:
    (alone,) = nodes.start("a")
    with interrupted():
        alone.config.get("k", linearizable=True, timeout=PATIENCE)
    reads = alone._running_loop().replica._reads
    until(lambda: not len(reads), "the read is forgotten")
    nodes.start("b", "c")
    assert alone.config.put("k", 1, timeout=PATIENCE) > 0
    assert alone.config.get("k", linearizable=True) == 1


def test_an_exit_without_stop_ends_the_process(tmp_path: Path) -> None:
    """A script that forgets to stop its node still ends, with its own exit code."""
    script = (
        "import coord, sys\n"
        f"node = coord.Node('a', data_dir={str(tmp_path / 'a')!r}).start()\n"
        "node.config['k'] = 1\n"
        "sys.exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (7, b"")
