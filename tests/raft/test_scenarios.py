"""Golden conversations of a small group: `scenarios/*.txt` hold what to do and everything the members then say and do.

A line "a -> b ..." is a message as it arrives; "LOST" marks one that does not. The indented lines below are what its
receiver does about it. After an intended change: `pytest --rewrite`, then read the diff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import datadriven
from cluster import Cluster, Disk, Member, log_of
from coord.raft.describe import describe_command, describe_core, describe_log, describe_progress, describe_send
from coord.raft.messages import Command, HardState, Heartbeat, HeartbeatResponse, Persist, Send
from coord.raft.settings import Settings

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


class Stage:
    """Does what a scenario says, and keeps what there is to show for it."""

    def __init__(self) -> None:
        self.cluster = Cluster("a")
        self.shown: list[str] = []
        #: While time runs, the heartbeats of a healthy group are not worth showing.
        self.hide_heartbeats = False
        self.commands: dict[str, Callable[..., None]] = {
            "members": self.members,
            "log": self.log,
            "status": self.status,
            "elect": self.elect,
            "campaign": self.campaign,
            "tick": self.tick,
            "run": self.run,
            "deliver": self.deliver,
            "drop": self.drop,
            "stabilize": lambda: self.cluster.settle(),
            "propose": self.propose,
            "read": self.read,
            "transfer": self.transfer,
            "snapshot": self.snapshot,
            "gone": self.gone,
            "hold-disk": lambda name: setattr(self.member(name), "hold_disk", True),
            "sync-disk": self.sync_disk,
            "partition": lambda *names: self.cluster.partition(*names),
            "deafen": lambda name: self.cluster.deafen(name),
            "heal": lambda: self.cluster.heal(),
            "crash": lambda name: self.cluster.crash(name),
            "restart": lambda name: self.cluster.restart(name),
        }

    def handle(self, block: datadriven.Block) -> str:
        self.shown = []
        command, *arguments = block.words
        if command == "members":
            self.members(arguments, block.lines)
        else:
            self.commands[command](*arguments)
        return "\n".join(self.shown)

    def member(self, name: str) -> Member:
        member = self.cluster[name]
        member.now = self.cluster.now
        return member

    def members(self, arguments: list[str], logs: tuple[str, ...]) -> None:
        """`members a b c max_inflight_messages=2`, then "a: 1 1 2" for who starts with entries of these terms."""
        names = [argument for argument in arguments if "=" not in argument]
        knobs = dict(argument.split("=") for argument in arguments if "=" in argument)
        values: dict[str, Any] = {name: int(value) for name, value in knobs.items()}
        self.cluster = Cluster(*names, settings=replace(Settings(), **values))
        self.cluster.on_message = self.show_message
        self.cluster.on_command = self.show_command
        for line in logs:
            name, terms = line.split(":")
            entries = log_of(*map(int, terms.split()))
            newest = max(int(term) for each in logs for term in each.split(":")[1].split())
            self.cluster.restart(name, Disk(hard_state=HardState(newest), batches=entries))

    def show_message(self, sender: str, send: Send, arrives: bool) -> None:
        if not (self.hide_heartbeats and isinstance(send.message, Heartbeat | HeartbeatResponse)):
            self.shown.append(describe_send(sender, send) + ("" if arrives else " LOST"))

    def show_command(self, name: str, command: Command) -> None:
        held = " (held)" if isinstance(command, Persist) and self.cluster[name].hold_disk else ""
        self.shown.append(f"  {name} {describe_command(command)}{held}")

    def log(self, *names: str) -> None:
        for name in names or self.cluster.names:
            self.shown.append(f"{name}: {describe_log(self.cluster[name].core.log)}")

    def status(self, *names: str) -> None:
        for name in names or self.cluster.names:
            core = self.cluster[name].core
            self.shown.append(describe_core(core))
            self.shown += [f"  {peer}: {describe_progress(progress)}" for peer, progress in core.progress.items()]

    def elect(self, name: str) -> None:
        """The usual beginning, which `election.txt` shows once."""
        self.cluster.elect(name)
        self.shown = [describe_core(self.cluster[name].core)]

    def campaign(self, name: str) -> None:
        """Its election timeout passes; for the others, no time does."""
        member = self.cluster[name]
        self.cluster.now = max(self.cluster.now, member.core.election_due)
        self.member(name).wait(0.0)

    def tick(self, name: str, seconds: str) -> None:
        self.cluster.now += float(seconds)
        self.member(name).wait(0.0)

    def run(self, seconds: str) -> None:
        self.hide_heartbeats = True
        self.cluster.run(float(seconds))
        self.hide_heartbeats = False

    def deliver(self, count: str = "1") -> None:
        for _ in range(int(count)):
            self.cluster.deliver()

    def drop(self, sender: str, to: str) -> None:
        """Lose what `sender` has on its way to `to`."""
        self.cluster.collect()
        for passing in list(self.cluster.network):
            if (passing[0], passing[1].to) == (sender, to):
                self.cluster.network.remove(passing)
                self.show_message(*passing, False)

    def propose(self, name: str, *payloads: str) -> None:
        first = self.member(name).propose(*payloads)
        self.shown.append(f"{name} takes it at {first}" if first else f"{name} refuses it")

    def transfer(self, name: str, to: str) -> None:
        member = self.member(name)
        refused = member.core.transfer_leadership(member.now, to)
        member.work()
        if refused:
            self.shown.append(f"{name} refuses: {refused}")

    def read(self, name: str, number: str) -> None:
        self.member(name).read(int(number))

    def snapshot(self, name: str) -> None:
        self.member(name).snapshot()

    def gone(self, name: str, peer: str) -> None:
        member = self.member(name)
        member.core.peer_gone(member.now, peer)
        member.work()

    def sync_disk(self, name: str) -> None:
        member = self.member(name)
        member.hold_disk = False
        member.sync()


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 9


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, rewrite: bool) -> None:
    datadriven.run(path, Stage().handle, rewrite=rewrite)
