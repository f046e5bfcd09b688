"""kill -9 while writes go on: nothing acknowledged is lost, nothing is read that was not written.

COORD_ROUNDS=20 runs the full form, 1000 acknowledged writes in each round.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from processes.harness import Group, MemberProcess
from processes.history import History
from processes.workload import Workload

ROUNDS = int(os.environ.get("COORD_ROUNDS", "4"))
WRITES = 1000 if ROUNDS >= 20 else 300
LOOK_SECONDS = 0.002


def victims(round_number: int, group: Group, rng: random.Random) -> list[MemberProcess]:
    """In turn: the leader, everybody, a follower, anybody."""
    kind = round_number % 4
    if kind == 1:
        return list(group.members.values())
    leader = group.leader()
    if kind == 0:
        return [leader]
    return [rng.choice([member for member in group.alive if kind == 3 or member is not leader])]


def look(members: list[MemberProcess], workload: Workload) -> None:
    """Let these members read their own copies from now on."""
    for member in members:
        member.on_seen = workload.saw
        member.call("look", keys=workload.keys, every=LOOK_SECONDS)


def run_round(number: int, group: Group, history: History, rng: random.Random) -> str:
    with Workload(group, history, seed=number) as workload:
        look(group.alive, workload)
        before = history.acknowledged
        workload.wait(before + rng.randrange(WRITES // 5, WRITES // 2))
        chosen = victims(number, group, rng)
        killed_at = time.monotonic()
        at_kill = history.acknowledged
        for member in chosen:
            member.kill()
        if len(chosen) == 1:
            # The others go on without it.
            workload.wait(at_kill + WRITES // 5)
        resumed = time.monotonic() - killed_at
        group.start(*(member.name for member in chosen))
        look(chosen, workload)
        workload.wait(max(before + WRITES, history.acknowledged + WRITES // 5))
    workload.check()
    for member in group.alive:
        history.check_end(member.call("everything"))
    return (
        f"{number}: killed {''.join(member.name for member in chosen)}, {WRITES // 5} writes on after {resumed:.2f} s"
    )


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    history, rng = History(), random.Random(1)
    with Group(tmp_path) as group:
        for number in range(ROUNDS):
            print(run_round(number, group, history, rng))
        group["a"].call("put", key="end", value="end")
        settled = group.settled()
        assert len({status["state_hash"] for status in settled}) == 1, settled
    assert history.acknowledged >= ROUNDS * WRITES
    print(
        f"{history.acknowledged} acknowledged, {history.unknown} unknown, {history.refused} refused, "
        f"{history.seen} reads checked; states equal at {settled[0]['applied_index']}"
    )


def test_a_member_dies_with_its_parent(tmp_path: Path) -> None:
    """No test leaves a process behind, whatever becomes of it."""
    with Group(tmp_path) as group:
        assert group["a"].orphan() == 0
