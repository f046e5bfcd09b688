"""Locks on real processes under real faults: a part of it every time, all of it with COORD_FAULTS=all.

`PYTHONPATH=tests:. python -m locks` runs all of it and prints the tables. Of what took how long, only that is asserted
which a busy machine does not break: bounds in seconds have some room here, and are counted exactly there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coord.clock import clock
from locks.campaign import UNGUARDED, Campaign, campaigns, run
from locks.figures import ALL, Measurement

FULL = os.environ.get("COORD_FAULTS") == "all"
#: What a machine that others use too may add to a bound in seconds.
NOISE_SECONDS = 10.0


@pytest.mark.parametrize("campaign", campaigns(FULL), ids=lambda campaign: campaign.name)
def test_campaign(campaign: Campaign, tmp_path: Path) -> None:
    row = run(campaign, tmp_path)
    # A holder that is killed, stopped or cut off loses its hold; nobody else does.
    of_holders = sum(count for kind, count in row.kinds.items() if "holder" in kind)
    assert row.hit >= of_holders / 2, f"of {of_holders} faults of holders only {row.hit} took a hold"
    longest = max(wait.seconds for wait in row.waits)
    assert longest <= campaign.bound + NOISE_SECONDS, f"somebody waited {longest:.1f} s for a lock that was free"
    if any("stop holder" in kind or "cut holder" in kind for kind in row.kinds):
        assert row.checked["refusals"], "nobody came too late, so nothing was refused"
    if any("stop holder" in kind for kind in row.kinds):
        assert row.checked["stopped"], "no holder was stopped while it was at work"


def test_a_file_without_a_guard_is_found_out(tmp_path: Path) -> None:
    """A holder is stopped, and writes when it goes on: so the fault is one, and the judge does bite."""
    with pytest.raises(AssertionError, match=r"write \d+ has token \d+ after \d+"):
        run(UNGUARDED, tmp_path)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_figures(one: Measurement, tmp_path: Path) -> None:
    figures = one.measure(tmp_path, not FULL)
    assert figures.lines
    late = [seconds for seconds in figures.times if seconds > 1.0 + NOISE_SECONDS]
    assert not late, f"acquire(timeout=1) returned after {late} s"


#: A member's end of a connection, that does not get round to reading for a while; its peer sends much, and dies.
_FULL_QUEUE = """
import sys, threading
from coord.transports.zeromq import ZeroMQTransport
role, address = sys.argv[1:]
pause = threading.Event()
if role == "peer":
    end = ZeroMQTransport(None)
    end.start()
    end.set_peers({"other": address})
    while not end.send("other", b"first"):
        end.poll(0.05)
    for _ in range(400):
        end.send("other", bytes(100))
        pause.wait(0.001)
    print("sent", flush=True)
    pause.wait()
end = ZeroMQTransport("tcp://127.0.0.1:0", heartbeat_interval=0.2, heartbeat_timeout=3.0)
end.start()
print(end.address, flush=True)
sys.stdin.readline()
pause.wait(2.0)
while end.receive(64):
    pass
print("alive", flush=True)
"""


def test_a_peer_that_dies_while_nobody_reads_takes_nobody_with_it() -> None:
    """As after a SIGSTOP: libzmq has a full queue, its connection ends, and a heartbeat of its own is due. Its
    assertion would end the whole process."""
    with subprocess.Popen(
        [sys.executable, "-c", _FULL_QUEUE, "own", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as own:
        assert own.stdin is not None
        assert own.stdout is not None
        address = own.stdout.readline().strip()
        peer = subprocess.Popen([sys.executable, "-c", _FULL_QUEUE, "peer", address], stdout=subprocess.PIPE, text=True)
        with peer:
            assert peer.stdout is not None
            assert peer.stdout.readline() == "sent\n", "the peer could not send"
            peer.send_signal(signal.SIGKILL)
        began = clock()
        own.stdin.write("\n")
        own.stdin.flush()
        said = own.stdout.readline()
    assert said == "alive\n", f"the process ended with {own.returncode} {clock() - began:.1f} s after its peer"
