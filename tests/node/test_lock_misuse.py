"""Locks held wrongly: every misuse gets the error that names it, at once, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import coord
from coord.lock import Hold
from node.group import PATIENCE, QUICK, until


def take(node: coord.Node, name: str = "lock", **options: Any) -> Hold:
    hold = node.lock(name, **options).acquire(timeout=PATIENCE)
    assert hold is not None
    return hold


# ---------------------------------------------------------------------------------------------------------------------
# Handles that cannot be.


@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128, "\ud800", "election:", "election:scheduler"])
def test_a_name_that_cannot_be(name: str) -> None:
    node = coord.Node(registry=None)
    with pytest.raises(coord.ConfigurationError, match="lock name"):
        node.lock(name)
    with pytest.raises(coord.ConfigurationError, match="lock name"):
        node.locked(name)


@pytest.mark.parametrize("name", [None, 1, b"lock", ("a", "b"), test_a_name_that_cannot_be], ids=repr)
def test_a_name_that_is_none(name: Any) -> None:
    node = coord.Node(registry=None)
    with pytest.raises(TypeError, match=f"a str, not {type(name).__name__}"):
        node.lock(name)
    with pytest.raises(TypeError, match="a str"):
        node.locked(name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"permits": 0}, "permits=0: .* 1 to 1000"),
        ({"permits": 1001}, "permits=1001"),
        ({"permits": True}, "permits=True"),
        ({"permits": 2.0}, "permits=2.0"),
        ({"permits": "2"}, "permits='2'"),
        ({"shared": True, "permits": 2}, "shared=True and permits=2"),
        ({"priority": 1001}, "priority=1001: .* -1000 to 1000"),
        ({"priority": 0.5}, "priority=0.5"),
        ({"lock_delay": -1}, "lock_delay=-1: .* 0 to 60"),
        ({"lock_delay": 60.1}, "lock_delay=60.1"),
        ({"lock_delay": float("nan")}, "lock_delay=nan"),
        ({"lock_delay": True}, "lock_delay=True"),
        ({"lock_delay": "1"}, "lock_delay='1'"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be(options: dict[str, Any], text: str) -> None:
    node = coord.Node(registry=None)
    with pytest.raises(coord.ConfigurationError, match=text):
        node.lock("lock", **options)
    with pytest.raises(ValueError, match=text):
        node.locked("lock", **options)


def test_permits_that_disagree(alone: coord.Node) -> None:
    hold = take(alone, permits=3)
    for lock in (alone.lock("lock", permits=5), alone.lock("lock"), alone.lock("lock", shared=True)):
        with pytest.raises(coord.ConfigurationError, match=rf"permits={lock.permits} .* permits=3"):
            lock.acquire(timeout=PATIENCE)
        assert lock.describe().why == f"it is in use with permits=3, and this handle has permits={lock.permits}"
    assert hold.held()
    hold.release()
    take(alone, permits=5).release()


# ---------------------------------------------------------------------------------------------------------------------
# Acquiring.


@pytest.mark.parametrize("timeout", [-2, -0.5, float("nan"), float("-inf"), "1", True, [1]], ids=repr)
def test_a_timeout_that_is_none(alone: coord.Node, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout="):
        alone.lock("lock").acquire(timeout=timeout)
    with pytest.raises(ValueError, match="timeout="):
        alone.locked("lock", timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 1.0, None])
def test_what_does_not_block_has_no_timeout(alone: coord.Node, timeout: float | None) -> None:
    with pytest.raises(ValueError, match="blocking=False"):
        alone.lock("lock").acquire(blocking=False, timeout=timeout)


def test_a_handle_holds_once(alone: coord.Node) -> None:
    lock = alone.lock("lock")
    hold = lock.acquire()
    assert hold is not None
    calls: list[Callable[[], object]] = [lock.acquire, lock.__enter__]
    calls += [lambda: lock.acquire(blocking=False), lambda: lock.acquire(timeout=PATIENCE)]
    for call in calls:
        with pytest.raises(coord.AlreadyHeld, match="holds it already"):
            call()
    assert hold.held()
    lock.release()


def test_two_threads_acquire_through_one_handle(alone: coord.Node) -> None:
    blocker, lock = take(alone), alone.lock("lock")
    granted: list[Hold | None] = []
    thread = threading.Thread(target=lambda: granted.append(lock.acquire()))
    thread.start()
    until(lambda: lock.describe().waiting, "it to wait")
    with pytest.raises(coord.AlreadyHeld, match="being acquired by another thread"):
        lock.acquire(timeout=PATIENCE)
    with pytest.raises(coord.NotHeld, match="does not hold"):
        lock.release()
    blocker.release()
    thread.join(PATIENCE)
    assert granted[0] is not None
    assert granted[0].held()


@pytest.mark.parametrize(
    ("outer", "inner"), [({}, {}), ({}, {"shared": True}), ({"shared": True}, {})], ids=["same", "shared", "upgrade"]
)
def test_waiting_for_oneself_is_an_error_and_no_deadlock(
    alone: coord.Node, outer: dict[str, Any], inner: dict[str, Any]
) -> None:
    with alone.lock("lock", **outer) as hold:
        for call in (alone.lock("lock", **inner).acquire, alone.lock("lock", **inner).__enter__):
            with pytest.raises(coord.AlreadyHeld, match="would wait for itself"):
                call()
        assert alone.lock("lock", **inner).acquire(timeout=0.02) is None, "with a timeout it is no deadlock"
        assert alone.lock("lock", **inner).acquire(blocking=False) is None
        assert hold.held()
    # Once outside, and in another lock's block, all is well.
    with alone.lock("other"), alone.lock("lock", **inner):
        pass


def test_what_can_succeed_inside_a_block_does(alone: coord.Node) -> None:
    with alone.lock("shared", shared=True), alone.lock("shared", shared=True):
        assert len(alone.lock("shared").describe().holders) == 2
    with alone.lock("several", permits=2), alone.lock("several", permits=2):
        assert alone.lock("several", permits=2).locked()
    with alone.lock("lock") as hold:
        hold.downgrade()
        with alone.lock("lock", shared=True):
            pass
    with alone.lock("lock") as hold:
        hold.release()
        with alone.lock("lock"):
            pass


def test_another_thread_may_wait_while_this_one_is_inside(alone: coord.Node) -> None:
    granted: list[Hold | None] = []
    thread = threading.Thread(target=lambda: granted.append(alone.lock("lock").acquire(timeout=PATIENCE)))
    with alone.lock("lock"):
        thread.start()
        until(lambda: alone.lock("lock").describe().waiting, "the other to wait")
    thread.join(PATIENCE)
    assert granted[0] is not None


def test_a_locked_function_that_calls_itself(alone: coord.Node) -> None:
    @alone.locked("lock")
    def work(times: int) -> None:
        if times:
            work(times - 1)

    work(0)
    with pytest.raises(coord.AlreadyHeld, match="not re-entrant"):
        work(1)
    assert not alone.lock("lock").locked()


# ---------------------------------------------------------------------------------------------------------------------
# Releasing, and using what is not held.


def test_released_twice(alone: coord.Node) -> None:
    lock = alone.lock("lock")
    hold = lock.acquire()
    assert hold is not None
    hold.release()
    other = take(alone)
    for release in (hold.release, lock.release):
        with pytest.raises(coord.NotHeld, match="released before"):
            release()
    assert other.held(), "it is another's by now"
    assert alone.lock("lock").locked()


def test_released_by_two_threads_at_once(alone: coord.Node) -> None:
    for _ in range(20):
        outcomes: list[str] = []
        hold, start = take(alone), threading.Barrier(2, timeout=PATIENCE)

        def release(hold: Hold = hold, outcomes: list[str] = outcomes, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                hold.release()
            except coord.NotHeld:
                outcomes.append("not held")
            else:
                outcomes.append("released")

        threads = [threading.Thread(target=release) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(outcomes) == ["not held", "released"]


def test_released_through_another_handle(alone: coord.Node) -> None:
    hold, other = take(alone), alone.lock("lock")
    with pytest.raises(coord.NotHeld, match="this handle does not hold it"):
        other.release()
    assert other.acquire(blocking=False) is None
    with pytest.raises(RuntimeError, match="this handle does not hold it"):
        other.release()
    assert hold.held()


def test_used_after_its_release(alone: coord.Node) -> None:
    hold = take(alone)
    hold.release()
    assert (hold.held(), hold.remaining()) == (False, 0.0)
    uses: list[Callable[[], object]] = [lambda: hold.token, lambda: hold.sequencer, hold.check, hold.__enter__]
    for use in uses:
        with pytest.raises(coord.LockLost, match="released before"):
            use()
    with pytest.raises(coord.NotHeld, match="released before"):
        hold.downgrade()


def test_downgraded_twice_or_with_permits(alone: coord.Node) -> None:
    hold = take(alone)
    hold.downgrade()
    with pytest.raises(coord.AlreadyHeld, match="shared already"):
        hold.downgrade()
    assert hold.held()
    with pytest.raises(coord.ConfigurationError, match="permits=2"):
        take(alone, "several", permits=2).downgrade()


def test_before_the_start_and_after_the_stop() -> None:
    node = coord.Node(options=QUICK, registry=None)
    lock = node.lock("lock")
    calls: list[Callable[[], object]] = [lock.acquire, lock.release, lock.locked, lock.describe, lock.__enter__]
    calls += [lambda: node.check_sequencer(f"v1:{'0' * 32}:x:1:1:1:lock"), node.locked("lock")(len)]
    for call in calls:
        with pytest.raises(coord.ClosedError, match="not started"):
            call()
    with node:
        hold = take(node)
        text = hold.sequencer
    calls[-2] = lambda: node.check_sequencer(text)
    for call in calls:
        with pytest.raises((coord.ClosedError, coord.NotHeld)):
            call()
    assert not hold.held()
    for release in (hold.release, hold.downgrade):
        with pytest.raises(coord.NotHeld, match="was lost, its member was stopped"):
            release()
    with pytest.raises(coord.LockLost, match="its member was stopped"):
        hold.check()


def test_a_stop_within_the_block(alone: coord.Node) -> None:
    def work() -> None:
        with alone.lock("lock"):
            alone.stop()

    with pytest.raises(coord.LockLost, match="its member was stopped"):
        work()


@pytest.mark.parametrize(
    "text",
    [
        *("", "v1", "lock", "v2:{c}:x:1:1:1:lock", "v1:{c}:x:1:1:1:", "v1:{c}:x:1:1:lock", "v1:{c}:y:1:1:1:lock"),
        *("v1:{c}:x:0:1:1:lock", "v1:{c}:x:-1:1:1:lock", "v1:{c}:x:1:g:1:lock", "v1:{c}:x:1:1:0:lock"),
        *("v1:12:x:1:1:1:lock", " v1:{c}:x:1:1:1:lock", "v1:{c}:x:\u0661:1:1:lock", "v1:{c}:x:1:1:1.0:lock"),
    ],
)
def test_a_text_that_is_no_sequencer(alone: coord.Node, text: str) -> None:
    text = text.replace("{c}", alone.status().cluster_id)
    with pytest.raises(ValueError, match="no sequencer"):
        alone.check_sequencer(text)
    assert not alone.check_sequencer(f"v1:{alone.status().cluster_id}:x:1:1:1:lock"), "nobody holds that"


# ---------------------------------------------------------------------------------------------------------------------
# The decorator.


def test_a_decorator_that_cannot_be(alone: coord.Node) -> None:
    with pytest.raises(coord.ConfigurationError, match='on_busy=\'ignore\': expected "wait", "skip" or "raise"'):
        alone.locked("lock", on_busy="ignore")  # type: ignore[arg-type]

    async def coroutine() -> None:
        """Never run."""

    def generator() -> Any:
        yield 1

    async def both() -> Any:
        yield 1

    for fn in (coroutine, generator, both):
        with pytest.raises(TypeError, match=f"{fn.__name__} is a coroutine or generator function"):
            alone.locked("lock")(fn)

    def positional(hold: object, /) -> None:
        """Never called."""

    def several(*hold: object) -> None:
        """Never called."""

    for function in (positional, several):
        with pytest.raises(TypeError, match="cannot be given by name"):
            alone.locked("lock")(function)
    with pytest.raises(TypeError, match="is no function"):
        alone.locked("lock")(3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# After a fork.

FORK = """
import coord, os, sys
node = coord.Node().start()
lock = node.lock("lock")
hold = lock.acquire(timeout=30)
child = os.fork()
if child == 0:
    if hold.held() or hold.remaining():
        os._exit(10)
    calls = [hold.release, hold.downgrade, lock.release, lock.acquire, lock.describe, lock.__enter__, hold.__enter__]
    for number, call in enumerate(calls):
        try:
            call()
        except coord.ForkedError:
            continue
        os._exit(20 + number)
    for use in (lambda: hold.token, hold.check, lambda: hold.sequencer):
        try:
            use()
        except coord.LockLost as error:
            if "forked child" in str(error):
                continue
        os._exit(30)
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, code
assert hold.held(), "the child took the parent's lock away"
assert lock.locked()
lock.release()
with lock:
    child = os.fork()
    if child == 0:
        try:
            lock.__exit__(None, None, None)
        except coord.ForkedError:
            os._exit(0)
        os._exit(40)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, code
node.stop()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing_and_takes_nothing_away() -> None:
    root = str(Path(coord.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
