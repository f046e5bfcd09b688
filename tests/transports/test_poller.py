"""The sleep and the wake-up, with an eventfd and, as on systems without one, with a pipe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from coord.transports.poller import Poller
from transport_lab import PATIENCE


@pytest.fixture(params=["eventfd", "pipe"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd")
    made = Poller()
    yield made
    made.close()


def test_a_handler_runs_when_its_descriptor_is_ready(poller: Poller) -> None:
    read_fd, write_fd = os.pipe()
    seen: list[bytes] = []
    poller.watch(read_fd, lambda: seen.append(os.read(read_fd, 100)))
    poller.poll(0.0)
    assert seen == []
    os.write(write_fd, b"x")
    poller.poll(PATIENCE)
    assert seen == [b"x"]
    poller.forget(read_fd)
    poller.forget(read_fd)
    os.write(write_fd, b"y")
    poller.poll(0.0)
    assert seen == [b"x"]
    os.close(read_fd)
    os.close(write_fd)


def test_a_handler_forgotten_by_an_earlier_one_does_not_run(poller: Poller) -> None:
    pipes = [os.pipe() for _ in range(2)]
    ran: list[int] = []

    def forget_the_other(me: int) -> None:
        ran.append(me)
        poller.forget(pipes[1 - me][0])

    for number, (read_fd, write_fd) in enumerate(pipes):
        poller.watch(read_fd, lambda number=number: forget_the_other(number))  # type: ignore[misc]
        os.write(write_fd, b"x")
    poller.poll(PATIENCE)
    assert len(ran) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_no_wake_is_lost_and_many_are_one(poller: Poller) -> None:
    rounds = 3000
    turn = [0]
    done = threading.Semaphore(0)

    def waker() -> None:
        for number in range(rounds):
            turn[0] = number + 1
            poller.wake()
            if number % 3 == 0:
                assert done.acquire(timeout=PATIENCE)

    thread = threading.Thread(target=waker)
    thread.start()
    seen = 0
    polls = 0
    while seen < rounds:
        poller.poll(PATIENCE * 3)
        polls += 1
        for number in range(seen, turn[0]):
            if number % 3 == 0:
                done.release()
        seen = turn[0]
    thread.join()
    assert polls <= rounds + 1


class WokenWhileParking(Poller):
    """Somebody calls `wake` in the very moment before the owner says that it is parked."""

    @property
    def _parked(self) -> bool:
        return self._is_parked

    @_parked.setter
    def _parked(self, parked: bool) -> None:
        if parked:
            self.wake()
        self._is_parked = parked

    _is_parked = False


def test_a_wake_in_the_worst_moment() -> None:
    poller = WokenWhileParking()
    begun = time.monotonic()
    poller.poll(PATIENCE * 3)
    assert time.monotonic() - begun < PATIENCE
    poller.close()


def test_waking_a_sleeper_that_is_full_of_wake_ups(poller: Poller) -> None:
    """The descriptor takes so many; those that no longer fit are not needed."""
    poller._parked = True
    for _ in range(70_000 // 8 + 10):
        poller.wake()
    poller._parked = False
    poller._woken = False
    begun = time.monotonic()
    poller.poll(PATIENCE * 3)
    assert time.monotonic() - begun < PATIENCE


def test_a_wake_after_close_writes_nowhere(poller: Poller) -> None:
    """Its descriptor may be somebody's file by now."""
    poller.close()
    poller.close()
    read_fd, write_fd = os.pipe()
    poller._parked = True
    poller.wake()
    os.set_blocking(read_fd, False)
    with pytest.raises(BlockingIOError):
        os.read(read_fd, 1)
    os.close(read_fd)
    os.close(write_fd)
