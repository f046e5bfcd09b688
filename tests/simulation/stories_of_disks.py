"""Stories of disks and snapshots: what is lost with the power, rots, fails or arrives too late.

As in `stories`: nothing else goes wrong in them; each raises when the oracles do, or when the group does not recover.
What must not live here: stories of which disks are no part.
"""

from __future__ import annotations

import errno
from functools import partial

from coord.machine import commands
from coord.raft.membership import membership_of
from coord.raft.messages import Append, SnapshotMeta
from coord.storage.snapshots import snapshot_name
from coord.testing.disk import DATA, View
from coord.testing.process import Crash, Process
from simulation.stories import NAMES, batch, follower, leader_of, let_pass, persists, quiet, until
from simulation.world import World


def one_snapshot_rots(seed: int) -> None:
    """The newest snapshot can no longer be read. The one before it and the log still give everything, so its member
    starts as if nothing had happened."""
    knobs = quiet()
    knobs.options["snapshot_entries"], knobs.hardware.segment_bytes = 5, 1024
    world = World(seed, knobs)
    process = leader_of(world)
    for _ in range(8):
        world.write(process, 6)
        let_pass(world, 0.5)
    core, name = process.replica.core, process.name
    newest = core.snapshot
    assert newest is not None and core.older_snapshot is not None and process.storage.segment_count > 1
    world.kill(name, power=False)
    world.disks[name].flip(f"{DATA}/{snapshot_name(newest.index)}", 16 + seed * 7 % newest.size)
    world.revive(name)
    let_pass(world, 5)
    assert world.process(name).replica.machine.applied_index == world.truth.committed, "it does not keep up"


def one_snapshot_fails(seed: int) -> None:
    """For a moment there is no room for a snapshot. The next one succeeds."""
    knobs = quiet()
    knobs.options["snapshot_entries"] = 5
    world = World(seed, knobs)
    process = leader_of(world)
    world.disks[process.name].fail("create", 1, errno.ENOSPC)
    for _ in range(3):
        world.write(process, 6)
        let_pass(world, 0.5)
    counters = process.replica.counters
    assert counters.snapshots_failed == 1 and counters.snapshots_taken, "no snapshot after one that failed"


def a_snapshot_knows_what_its_index_knew(seed: int) -> None:
    """While a snapshot is taken the newest membership may not have committed, and may still be taken back: it is not
    that of the snapshot (trap 25)."""
    knobs = quiet()
    knobs.options |= {"snapshot_entries": 1, "heartbeat": 0.05, "election_timeout": (0.5, 1.0)}
    world = World(seed, knobs)
    world.stay_dead.add("c")
    world.kill("c")
    leader = leader_of(world)
    before = leader.replica.core.history.latest_index
    world.stay_dead.discard("c")
    world.revive("c")
    # What the group learns of c is a new membership, soon after.
    while leader.replica.core.membership_committed == before and world.timeline.step(60.0):
        for process in world.alive():
            meta = process.replica.core.snapshot
            assert meta is None or meta.membership_index <= meta.index, f"{process.name}: {meta}"
    assert leader.replica.core.membership_committed > before and leader.replica.core.snapshot is not None


def a_snapshot_leaves_what_follows_it(seed: int) -> None:
    """A snapshot has arrived, and meanwhile the log as well, with more. What was acknowledged of it is not dropped."""
    core, view = follower(), View()
    core.step(1.0, "a", 1, Append(1, 0, 0, 0, 1, [batch(1, 1), batch(2, 1), batch(3, 1)]))
    core.snapshot_stored(1.1, SnapshotMeta(2, 1, 0, membership_of(NAMES), 0, 1, b"", 0))
    for persist in persists(core.take()):
        view.apply(persist)
    assert core.commit == 2 and view.last == 3, f"the log ends at {view.last}"


def one_snapshot_rots_where_it_is_pulled_from(seed: int) -> None:
    """What a leader hands out of its snapshot is not what it wrote. Nobody takes that for the state, or comes to harm
    by it; and sooner or later there is a good one."""
    knobs = quiet()
    knobs.options["snapshot_entries"] = 5
    world = World(seed, knobs)
    leader = leader_of(world)
    name = next(name for name in world.names if name != leader.name)
    world.stay_dead.add(name)
    world.kill(name, power=False)
    for _ in range(6):
        world.write(leader, 6)
        let_pass(world, 0.5)
    newest = leader.replica.core.snapshot
    assert newest is not None and leader.replica.core.log.base > 0
    for meta in (newest, leader.replica.core.older_snapshot):
        assert meta is not None
        world.disks[leader.name].flip(f"{DATA}/{snapshot_name(meta.index)}", 16 + seed * 7 % meta.size)
    world.stay_dead.discard(name)
    world.revive(name)
    let_pass(world, 3.0)
    for _ in range(6):
        world.write(leader, 6)
        let_pass(world, 0.5)
    let_pass(world, 5.0)
    assert world.process(name).replica.machine.applied_index == world.truth.committed, "it was never brought up to date"


def power_lost_in_the_middle_of_writes(seed: int) -> None:
    """One member after the other loses power when what it wrote is not yet synced: some of it is there, some is not."""
    world = World(seed, quiet(sync_time=0.001))

    def crash(kind: str) -> None:
        if kind == "sync":
            raise Crash

    for number in range(9):
        leader, name = leader_of(world), world.names[number % 3]
        until(world, lambda: len(world.alive()) == len(world.names), "all are back")
        let_pass(world, 0.2)
        world.disks[name].before = crash
        for key in range(5):
            leader.propose(commands.put, (f"w{key}", b"x" * 300), lambda reply: None)
        process = world.process(name)
        until(world, partial(getattr, process, "dead"), "it loses power")


def _left_behind(seed: int) -> tuple[World, str, str]:
    """A leader whose log begins with a snapshot, and a member that is down and will need it: world and both names."""
    knobs = quiet()
    knobs.options |= {"snapshot_entries": 20, "max_batch_bytes": 300, "snapshot_chunk_bytes": 400}
    world = World(seed, knobs)
    leader = leader_of(world)
    let_pass(world, 1)
    behind = next(name for name in world.names if name != leader.name)
    world.stay_dead.add(behind)
    world.kill(behind)
    for _ in range(30):
        world.write(leader, 3)
        let_pass(world, 0.2)
    return world, leader.name, behind


def _comes_back(world: World, behind: str) -> Process:
    world.stay_dead.discard(behind)
    world.revive(behind)
    let_pass(world, 20)
    process = world.process(behind)
    assert process.replica.machine.applied_index == world.truth.committed, "it does not catch up"
    return process


def a_rotten_snapshot_is_not_handed_on_for_ever(seed: int) -> None:
    """A member that fell behind pulls a snapshot whose bytes have rotted on the leader's disk. Nothing more is written,
    so none would be taken in its place; the leader must take one all the same."""
    world, leader, behind = _left_behind(seed)
    disk = world.disks[leader]
    newest = [name for name in disk.names(DATA) if name.startswith("snapshot-")][-1]
    world.atlas.harmed(leader, "rot")
    disk.flip(f"{DATA}/{newest}", 100)
    assert _comes_back(world, behind).replica.counters.snapshots_failed, "nobody noticed"


def a_lost_snapshot_is_not_offered_for_ever(seed: int) -> None:
    """A leader's snapshot files are gone, and a member needs one. It gets another, though nothing is written."""
    world, leader, behind = _left_behind(seed)
    disk = world.disks[leader]
    for name in disk.names(DATA):
        if name.startswith("snapshot-"):
            disk.unlink(f"{DATA}/{name}")
    world.atlas.harmed(leader, "its snapshots are gone")
    _comes_back(world, behind)


DISK_STORIES = [
    a_rotten_snapshot_is_not_handed_on_for_ever,
    a_lost_snapshot_is_not_offered_for_ever,
    one_snapshot_rots,
    one_snapshot_fails,
    a_snapshot_knows_what_its_index_knew,
    a_snapshot_leaves_what_follows_it,
    one_snapshot_rots_where_it_is_pulled_from,
    power_lost_in_the_middle_of_writes,
]
