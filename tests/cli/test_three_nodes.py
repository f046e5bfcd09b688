"""Three real `coord node` processes: who leads, what survives, and the exit codes without a quorum."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cli.lab import PATIENCE, QUICK, Process, StartNode, complaint, output, parsed, run

NAMES = ("a", "b", "c")


class Trio:
    """Three nodes that can be ended and started again."""

    def __init__(self, folder: Path, start_node: StartNode) -> None:
        self._folder = folder
        self._start_node = start_node
        self.nodes: dict[str, Process] = {}
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        peers = ",".join(f"{peer}=ipc://{self._folder}/{peer}.sock" for peer in NAMES)
        self.nodes[name] = self._start_node(
            *("--name", name, "--bind", f"ipc://{self._folder}/{name}.sock", "--group", "trio"),
            COORD_PEERS=peers,
            COORD_DATA_DIR=self.directory(name),
            COORD_OPTIONS=QUICK,
        )

    def directory(self, name: str) -> str:
        return str(self._folder / name)

    def at(self, *names: str) -> list[str]:
        """The arguments that name these nodes."""
        return [argument for name in names for argument in ("-d", self.directory(name))]

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = parsed("status", *self.at(name))
        return status

    def leader(self, *asked: str) -> str:
        """Whom all those asked follow, once they do."""
        deadline = time.monotonic() + PATIENCE
        while True:
            leaders = {self.status(name)["leader"] for name in asked or NAMES}
            if len(leaders) == 1 and (leader := leaders.pop()) in (asked or NAMES):
                return str(leader)
            assert time.monotonic() < deadline, "no leader"

    def without(self, name: str) -> list[str]:
        return [other for other in NAMES if other != name]


@pytest.fixture
def trio(folder: Path, start_node: StartNode) -> Trio:
    return Trio(folder, start_node)


def test_one_group_through_all_its_members(trio: Trio) -> None:
    leader = trio.leader()
    follower, other = trio.without(leader)
    trio.nodes[leader].wait_for(f"{leader}: leader in term ")
    watch = Process("watch", "k/", *trio.at(other))
    output("put", "k/1", "written through a follower", *trio.at(follower))
    watch.wait_for("put  k/1 = written through a follower")
    assert watch.end(signal.SIGINT) == 0
    for name in NAMES:
        assert output("get", "k/1", "--linearizable", *trio.at(name)) == "written through a follower\n"

    # No user writes, but members may still be opening their sessions: asked until all are at one index, with one hash.
    deadline = time.monotonic() + PATIENCE
    while True:
        lines = output("status", *trio.at(*NAMES)).splitlines()
        assert lines[0].startswith(f"group trio  leader {leader}  quorum yes  commit ")
        rows = {row[0]: row for row in (line.split() for line in lines[2:])}
        if len({(row[2], row[6], row[7]) for row in rows.values()}) == 1:
            break
        assert time.monotonic() < deadline, lines
    assert [rows[name][1] for name in NAMES] == ["leader" if name == leader else "follower" for name in NAMES]
    assert {row[3] for row in rows.values()} == {"yes"}
    assert rows["b"][8].endswith("/b.sock")
    # A follower knows little of the others, and does not pretend to.
    seen = {row[0]: row for row in (line.split() for line in output("status", *trio.at(follower)).splitlines()[2:])}
    assert seen[other][1:8] == ["follower", "-", "-", "-", "-", "-", "-"]
    assert seen[leader][1:4] == ["leader", "-", "yes"]


def test_leadership_is_handed_over(trio: Trio) -> None:
    leader = trio.leader()
    follower, _ = trio.without(leader)
    text = complaint(4, "transfer", *trio.at(follower))
    assert text == (f"coord: {follower!r} does not lead, so it cannot hand leadership over; ask {leader!r}, which does")
    assert output("transfer", follower, *trio.at(leader)) == f"{follower} leads\n"
    assert trio.leader() == follower
    # Being stopped it hands over too, and the others need not wait for a timeout.
    assert trio.nodes[follower].end() == 0
    assert trio.nodes[follower].lines[-1] == f"{follower} has stopped"
    assert trio.leader(*trio.without(follower)) != follower


def test_without_a_quorum_and_back(trio: Trio) -> None:
    leader = trio.leader()
    output("put", "k", "kept", *trio.at(leader))
    survivor, other = trio.without(leader)
    output("get", "k", "--linearizable", *trio.at(survivor))
    for name in (leader, other):
        assert trio.nodes[name].end(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while trio.status(survivor)["leader"] is not None:
        assert time.monotonic() < deadline, "it still believes in its leader"

    assert "knows no leader" in complaint(3, "get", "k", "--linearizable", "--timeout", "0.2", *trio.at(survivor))
    assert "it had no effect" in complaint(3, "put", "k", "lost", "--timeout", "0.2", *trio.at(survivor))
    assert "no leader is known" in complaint(3, "leader", *trio.at(survivor))
    assert "nobody known does" in complaint(4, "transfer", *trio.at(survivor))
    assert "quorum NO" in output("status", *trio.at(survivor))
    # Its own copy is there to read all the same.
    assert output("get", "k", *trio.at(survivor)) == "kept\n"

    trio.start(other)
    trio.leader(survivor, other)
    assert output("get", "k", "--linearizable", *trio.at(survivor)) == "kept\n"
    trio.start(leader)
    assert output("get", "k", "--linearizable", *trio.at(leader)) == "kept\n"


def test_an_acknowledgement_that_does_not_come(trio: Trio) -> None:
    leader = trio.leader()
    followers = trio.without(leader)
    for name in followers:
        # Stopped, not ended: to the leader they are merely slow.
        trio.nodes[name].process.send_signal(signal.SIGSTOP)
    try:
        done = run("put", "k", "v", "--timeout", "0.2", *trio.at(leader))
    finally:
        for name in followers:
            trio.nodes[name].process.send_signal(signal.SIGCONT)
    assert done.returncode == 5
    assert "it may have happened or may not" in done.stderr


def test_nodes_of_two_groups_are_not_compared(folder: Path, start_node: StartNode) -> None:
    for name in ("one", "two"):
        start_node("--data-dir", str(folder / name), "--group", name)
    both = ("-d", str(folder / "one"), "-d", str(folder / "two"))
    assert complaint(2, "status", *both) == "coord: these nodes are not of one group: one, two"
