"""Processes that die, and processes that stand still.

What must not live here: networks that are cut, disks that fail.
"""

from __future__ import annotations

import random

from faults.disk import cut_power
from faults.lab import DEFAULTS, QUICK, SMALL, Lab
from faults.scenarios import scenario
from processes.harness import PATIENCE

#: As long as the longest election timeout of QUICK, several times.
LONG_PAUSE = 2.5
#: Of a sync of a disk that is about to lose its power; below the election timeout.
SYNC_SECONDS = 0.1


@scenario("kill -9 of the leader", quick=True)
def kill_the_leader(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.kill(leader)
        lab.progress(lab.others(leader))
        lab.hold(0.5)
    lab.again(leader)


@scenario("kill -9 of a follower")
def kill_a_follower(lab: Lab) -> None:
    follower = lab.others(lab.leads())[0]
    with lab.fault():
        lab.kill(follower)
        lab.progress(lab.others(follower))
        lab.hold(0.5)
    lab.again(follower)


@scenario("kill -9 of all, and restart", quick=True, options=SMALL)
def kill_all(lab: Lab) -> None:
    for _ in range(2):
        with lab.fault():
            lab.kill(*lab.names)
        lab.again(*lab.names)
        lab.progress(lab.names)


@scenario("kill -9 of all, restart one after the other")
def kill_all_staggered(lab: Lab) -> None:
    with lab.fault():
        lab.kill(*lab.names)
        lab.again("a")
        lab.hold(1.0)
        lab.again("b")
        lab.progress("ab")
    lab.again("c")


@scenario("kill -9 of each leader in turn, 6 times", options=SMALL, members="abcde", pace=0.02, writers=1, readers=1)
def kill_leaders(lab: Lab) -> None:
    with lab.fault():
        for _ in range(6):
            leader = lab.leads()
            lab.kill(leader)
            lab.progress(lab.others(leader))
            lab.again(leader)
            lab.progress(leader)


@scenario("kill -9 of a minority of 5, the leader in it", members="abcde", pace=0.02, writers=1)
def kill_a_minority(lab: Lab) -> None:
    leader = lab.leads()
    dead = leader + lab.others(leader)[0]
    with lab.fault():
        lab.kill(*dead)
        lab.progress(lab.others(*dead))
    lab.again(*dead)


@scenario("kill -9 of a majority: nothing is written, local reads go on")
def kill_a_majority(lab: Lab) -> None:
    left = lab.others(lab.leads())[0]
    with lab.fault():
        lab.kill(*lab.others(left))
        # What was on its way may still be acknowledged.
        lab.hold(0.1)
        before = lab[left].call("acknowledged")
        lab.hold(2.0)
        assert lab[left].call("acknowledged") == before, f"{left} alone had writes acknowledged"
        assert lab[left].call("status")["role"] != "leader"
        lab[left].call("local", key="k/0/0")
    lab.again(*lab.others(left))


@scenario("kill -9 of the leader, default options", options=DEFAULTS)
def kill_the_leader_by_default(lab: Lab) -> None:
    kill_the_leader(lab)


@scenario("kill -9 of all, power cut: what no sync covered is gone", quick=True, options={**SMALL, "fsync": "thread"})
def power_cut(lab: Lab) -> None:
    rng, lost = random.Random(1), 0
    for _ in range(3):
        with lab.fault():
            # So slow that something is always written and not yet synced.
            for name in lab.names:
                lab[name].call("disk", mode="slow", seconds=SYNC_SECONDS)
            lab.progress("a", 3)
            lab.kill(*lab.names)
            for member in lab.members.values():
                lost += cut_power(member.data_dir, member.journal, rng)
        lab.again(*lab.names)
        lab.progress(lab.names)
    assert lost, "nothing was lost, so nothing was tested"
    lab.notes.append(f"{lost} bytes lost")


@scenario("power cut of one member at a time, 6 times", options={**SMALL, "fsync": "thread"})
def power_cuts(lab: Lab) -> None:
    rng, lost = random.Random(2), 0
    with lab.fault():
        for number in range(6):
            name = lab.leads() if number % 2 else rng.choice(lab.names)
            lab[name].call("disk", mode="slow", seconds=SYNC_SECONDS)
            lab.progress(lab.others(name), 3)
            lab.kill(name)
            lost += cut_power(lab[name].data_dir, lab[name].journal, rng)
            lab.progress(lab.others(name), 3)
            lab.again(name)
            lab.progress(name, 3)
    assert lost, "nothing was lost, so nothing was tested"
    lab.notes.append(f"{lost} bytes lost")


def _pause(lab: Lab, name: str, seconds: float, others_go_on: bool) -> None:
    with lab.fault():
        lab.pause(name)
        if others_go_on:
            lab.progress(lab.others(name))
        lab.hold(seconds)
        # Its clients read linearizably at once, and would find what was there before the pause.
        lab.resume(name)
        lab.progress(name)


@scenario("SIGSTOP of the leader beyond the election timeout", quick=True, readers=4, pace=0.004)
def pause_the_leader(lab: Lab) -> None:
    _pause(lab, lab.leads(), LONG_PAUSE, True)


@scenario("SIGSTOP of the leader for 0.1 to 0.7 s, 8 times", readers=4, pace=0.004)
def pause_the_leader_often(lab: Lab) -> None:
    rng = random.Random(3)
    with lab.fault():
        for _ in range(8):
            name = lab.leads()
            lab.pause(name)
            lab.hold(rng.choice([0.1, 0.3, 0.5, 0.7]))
            lab.resume(name)
            lab.progress(name, 3)


@scenario("SIGSTOP of a follower beyond the election timeout")
def pause_a_follower(lab: Lab) -> None:
    _pause(lab, lab.others(lab.leads())[0], LONG_PAUSE, True)


@scenario("SIGSTOP of the leader for 0.5 s, default options", options=DEFAULTS)
def pause_the_leader_shortly(lab: Lab) -> None:
    _pause(lab, lab.leads(), 0.5, False)


@scenario("SIGSTOP of the leader for 6 s, default options", options=DEFAULTS, readers=4)
def pause_the_leader_by_default(lab: Lab) -> None:
    _pause(lab, lab.leads(), 6.0, True)


@scenario("SIGSTOP of a follower until it needs a snapshot", options=SMALL, quick=True)
def pause_until_snapshot(lab: Lab) -> None:
    leader = lab.leads()
    follower = lab.others(leader)[0]
    with lab.fault():
        before = lab[leader].call("status")["applied_index"]
        lab.pause(follower)
        enough = before + 3 * SMALL["snapshot_entries"]
        lab.until(lambda: lab[leader].call("status")["applied_index"] > enough, "a log cut short")
        lab.resume(follower)
        lab.progress(follower)
    assert lab[follower].call("figures")["snapshots_installed"], f"{follower} caught up without a snapshot"


@scenario("rolling restart: each stopped, then started again", options=SMALL)
def rolling_restart(lab: Lab) -> None:
    with lab.fault():
        for name in lab.names:
            lab.leads()
            lab.out.add(name)
            lab[name].call("stop")
            lab.kill(name)
            lab.progress(lab.others(name), 3)
            lab.again(name)
            lab.progress(name, 3)


@scenario("16 threads keep the leader's interpreter busy for 5 s, default options", options=DEFAULTS)
def hog(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        busy = lab[leader].ask("hog", threads=16, seconds=5.0)
        lab.progress(lab.others(leader))
        busy.result(PATIENCE)


@scenario("a call that holds the leader's interpreter for 5 s, default options", options=DEFAULTS)
def hold_the_interpreter(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.out.add(leader)
        busy = lab[leader].ask("hold_interpreter", seconds=5.0)
        lab.progress(lab.others(leader))
        busy.result(PATIENCE)
        lab.out.discard(leader)


@scenario("SIGSTOP of all for 2.5 s", options=QUICK)
def pause_all(lab: Lab) -> None:
    with lab.fault():
        for name in lab.names:
            lab.pause(name)
        lab.hold(LONG_PAUSE)
        for name in lab.names:
            lab.resume(name)


@scenario("SIGSTOP of one after the other, overlapping", members="abcde", pace=0.02, writers=1, readers=1)
def pause_in_turn(lab: Lab) -> None:
    rng = random.Random(4)
    with lab.fault():
        for _ in range(4):
            first, second = rng.sample(lab.names, 2)
            lab.pause(first)
            lab.hold(0.4)
            lab.pause(second)
            lab.hold(0.5)
            lab.resume(first)
            lab.hold(0.4)
            lab.resume(second)
        lab.progress(lab.names, 3)
