"""A mistake that can be put back in, and the kinds of worlds in which mistakes show sooner.

What must not live here: which mistakes there are (`mistakes` and its tables), how they are hunted (`mutants`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from simulation.knobs import NEVER, Knobs, draw
from simulation.rewrite import Edit, rewritten
from simulation.world import World


def as_drawn(knobs: Knobs) -> None:
    """No help needed."""


@dataclass(frozen=True)
class Mutant:
    name: str
    #: Who shipped it, or the number of the trap.
    origin: str
    edits: tuple[Edit, ...]
    #: Makes the worlds in which it shows more likely.
    world: Callable[[Knobs], None] = as_drawn
    #: Told instead, where chance would take too long.
    story: Callable[[int], None] | None = None

    def try_seed(self, seed: int) -> None:
        """Raises when the mistake shows; it must have been `applied`."""
        if self.story is not None:
            self.story(seed)
            return
        knobs = draw(seed)
        self.world(knobs)
        World(seed, knobs).run()


def mutant(
    name: str,
    origin: str,
    *edits: tuple[Any, str, str, str],
    world: Callable[[Knobs], None] = as_drawn,
    story: Callable[[int], None] | None = None,
) -> Mutant:
    return Mutant(name, origin, tuple(Edit(*edit) for edit in edits), world, story)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Within this context the mistake is made, by every member."""
    with rewritten(mutant.edits):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Worlds. Each leaves alone what its mistakes do not need.


def stale_leaders(knobs: Knobs) -> None:
    """Leaders that do not know that others lead, and are asked."""
    knobs.partition_every, knobs.kill_new_leader = 0.7, 0.7
    knobs.clients, knobs.reads, knobs.think, knobs.keys = 6, 12, 0.02, 2
    knobs.conditions.hold, knobs.conditions.late, knobs.notice = True, 0.05, 1.0
    knobs.hardware.sync_time = min(knobs.hardware.sync_time, 0.01)


def leases(knobs: Knobs) -> None:
    stale_leaders(knobs)
    knobs.options |= {"lease_reads": True, "clock_drift": 0.01}
    knobs.jump_every = NEVER
    knobs.rates = tuple(1 + (rate - 1) % 0.01 for rate in knobs.rates)
    knobs.false_evidence, knobs.transfer_every, knobs.deaf_on_transfer = 1.0, 1.0, 1.0


def three_members(knobs: Knobs, count: int = 3) -> None:
    """Three that are alike, all of them needed, on disks that neither fail nor rot."""
    knobs.members, knobs.stay_dead, knobs.chaos = count, 0, min(knobs.chaos, 10.0)
    knobs.rot_every = knobs.misdirect_every = knobs.wipe_every = knobs.disk_error_every = knobs.full_every = NEVER
    knobs.priorities, knobs.rates = (0,) * knobs.members, (1.0,) * knobs.members


def many_terms(knobs: Knobs) -> None:
    """Leaders that end before they have done anything."""
    three_members(knobs)
    knobs.kill_new_leader, knobs.crash_every, knobs.partition_every, knobs.conditions.loss = 1.0, 0.7, 1.5, 0.0


def slow_disks(knobs: Knobs) -> None:
    many_terms(knobs)
    knobs.hardware.sync_time, knobs.conditions.loss = 0.1, 0.02


def late_answers(knobs: Knobs) -> None:
    """The same member leads again before all has arrived that was said to it in an older term."""
    three_members(knobs)
    knobs.transfer_every, knobs.kill_new_leader, knobs.crash_every, knobs.partition_every = 0.4, 0.3, NEVER, 2.0
    knobs.conditions.late, knobs.conditions.late_by, knobs.conditions.loss, knobs.think = 0.3, 3.0, 0.0, 0.05


def cut_off_leaders(knobs: Knobs) -> None:
    """Leaders that nobody answers, for long."""
    three_members(knobs)
    _fast_timers(knobs)
    knobs.partition_every, knobs.kill_new_leader = 1.5, 1.0
    knobs.crash_every = knobs.pause_every = knobs.transfer_every = knobs.clog_every = knobs.jump_every = NEVER
    knobs.conditions.delay, knobs.conditions.jitter, knobs.conditions.late, knobs.conditions.duplicate = (
        0.002,
        0.0,
        0.0,
        0.0,
    )


def slow_rounds(knobs: Knobs) -> None:
    """An election takes longer than it takes to lose patience with it."""
    three_members(knobs)
    _fast_timers(knobs)
    knobs.crash_every, knobs.notice, knobs.hardware.sync_time, knobs.stay_dead = 2.0, 1.0, 0.15, 1


def late_turns(knobs: Knobs) -> None:
    """What arrived and what the disk has done meanwhile are found together."""
    many_terms(knobs)
    knobs.hardware.sync_time, knobs.hardware.turn_delay, knobs.pause_every = 0.1, 0.1, 1.0


def _fast_timers(knobs: Knobs) -> None:
    """And hardware that is fast enough for them."""
    knobs.options |= {
        "heartbeat": 0.05,
        "election_timeout": (0.45, 0.9),
        "session_ttl": 1.8,
        "disk_stall_timeout": 0.45,
    }
    conditions, hardware = knobs.conditions, knobs.hardware
    conditions.delay, conditions.jitter = min(conditions.delay, 0.005), min(conditions.jitter, 0.02)
    hardware.sync_time, hardware.turn_delay = min(hardware.sync_time, 0.05), min(hardware.turn_delay, 0.015)
    hardware.timer_delay = min(hardware.timer_delay, 0.005)


def one_by_one(knobs: Knobs) -> None:
    """Logs that differ are brought together one batch at a time."""
    slow_disks(knobs)
    knobs.options |= {"max_append_bytes": 1, "max_batch_bytes": 300, "max_uncommitted_bytes": 64 << 20}
    knobs.burst_every, knobs.burst, knobs.think = 0.5, 10, 0.05


def narrow_windows(knobs: Knobs) -> None:
    """One append to each follower at a time, and much of what is said gets lost."""
    three_members(knobs)
    knobs.options |= {"max_inflight_messages": 1, "max_uncommitted_bytes": 64 << 20}
    knobs.crash_every = knobs.partition_every = knobs.pause_every = knobs.clog_every = NEVER
    knobs.kill_new_leader, knobs.conditions.loss, knobs.think, knobs.false_evidence = 0.0, 0.3, 0.1, 0.0
    knobs.transfer_every = knobs.stall_every = NEVER


def snapshots(knobs: Knobs) -> None:
    """Taken all the time, slow to write, and often overtaken by the log."""
    knobs.options["snapshot_entries"], knobs.hardware.snapshot_time = 6, 1.0
    knobs.think, knobs.conditions.hold = 0.05, True
    knobs.partition_every, knobs.kill_new_leader, knobs.crash_every = 0.7, 0.7, 3.0


def pulled_snapshots(knobs: Knobs) -> None:
    """Members are often so far behind that only a snapshot helps, and soon after lose power."""
    three_members(knobs)
    knobs.options |= {"snapshot_entries": 6, "snapshot_chunk_bytes": 400, "history_revisions": 40}
    knobs.hardware.snapshot_time, knobs.hardware.sync_time = 0.05, 0.01
    knobs.think, knobs.clients, knobs.burst_every, knobs.burst = 0.05, 6, 0.5, 10
    knobs.crash_every, knobs.kill_new_leader, knobs.partition_every, knobs.conditions.loss = 0.7, 0.0, NEVER, 0.0


def pulled_snapshots_get_lost(knobs: Knobs) -> None:
    pulled_snapshots(knobs)
    knobs.conditions.loss, knobs.crash_every = 0.2, 2.0


def pulled_snapshots_in_one_segment(knobs: Knobs) -> None:
    """So that no segment is dropped, whose name would be synced with that of the snapshot."""
    pulled_snapshots(knobs)
    knobs.hardware.segment_bytes, knobs.options["snapshot_entries"], knobs.burst = 64 << 10, 20, 20


def overtaken_snapshots(knobs: Knobs) -> None:
    """They take so long to come that the log is there before them."""
    three_members(knobs)
    _fast_timers(knobs)
    knobs.options |= {"snapshot_entries": 6, "snapshot_chunk_bytes": 4096}
    knobs.hardware.snapshot_time, knobs.hardware.sync_time, knobs.conditions.hold = 1.0, 0.0, True
    knobs.think, knobs.clients, knobs.burst_every, knobs.burst = 0.05, 6, 0.5, 10
    knobs.partition_every, knobs.kill_new_leader, knobs.crash_every, knobs.transfer_every = 0.5, 0.7, NEVER, 0.5


def late_pieces(knobs: Knobs) -> None:
    """Pieces of one snapshot arrive while another is pulled."""
    pulled_snapshots(knobs)
    knobs.options["snapshot_chunk_bytes"], knobs.notice = 100, 0.0
    knobs.conditions.late, knobs.conditions.late_by, knobs.conditions.duplicate = 0.3, 1.0, 0.3
    knobs.hardware.snapshot_time = knobs.hardware.sync_time = 0.0


def restarts(knobs: Knobs) -> None:
    """Members come back at once, and find what was meant for their former selves."""
    knobs.crash_every, knobs.kill_new_leader, knobs.notice = 0.5, 0.0, 0.0
    knobs.clients, knobs.reads, knobs.think = 6, 12, 0.02
    knobs.conditions.late, knobs.conditions.late_by, knobs.conditions.loss = 0.3, 1.5, 0.0
    knobs.partition_every, knobs.hardware.sync_time, knobs.hardware.turn_delay = NEVER, 0.0, 0.0


def power_cuts(knobs: Knobs) -> None:
    """Machines lose power in the middle of writes, and again while they start."""
    three_members(knobs)
    knobs.crash_every, knobs.crash_at_start, knobs.kill_new_leader = 0.4, 0.3, 0.5
    knobs.hardware.sync_time, knobs.hardware.segment_bytes = 0.02, 2048
    knobs.think, knobs.clients, knobs.value_bytes = 0.05, 4, 150


def power_cuts_at_start(knobs: Knobs) -> None:
    """Hardly a start is let come to its end."""
    power_cuts(knobs)
    knobs.crash_every, knobs.crash_at_start, knobs.chaos = 0.3, 1.0, 10.0


def rotting_disks(knobs: Knobs) -> None:
    """Bits change on one of the disks, which are read again soon after."""
    power_cuts(knobs)
    knobs.rot_every, knobs.crash_every, knobs.kill_new_leader, knobs.crash_at_start = 0.4, 0.7, 0.0, 0.0
    knobs.options["snapshot_entries"] = 1 << 30


def failing_disks(knobs: Knobs) -> None:
    """Syncs fail, and power is lost soon after."""
    power_cuts(knobs)
    knobs.disk_error_every, knobs.crash_every, knobs.kill_new_leader = 0.2, 0.7, 0.0


def wiped_disks(knobs: Knobs) -> None:
    """A member loses everything and comes back under its old name."""
    three_members(knobs, 5)
    knobs.wipe_every, knobs.crash_every, knobs.kill_new_leader, knobs.transfer_every = 1.0, 2.0, 0.3, 0.5
    knobs.pause_every = knobs.clog_every = knobs.partition_every = knobs.stall_every = NEVER
    knobs.conditions.late, knobs.conditions.jitter, knobs.hardware.sync_time = 0.0, 0.0, 0.005
    knobs.conditions.loss, knobs.conditions.damage = 0.0, 0.0


def damaged_frames(knobs: Knobs) -> None:
    """Bits change on the way."""
    knobs.conditions.damage, knobs.think, knobs.clients, knobs.value_bytes = 0.05, 0.05, 6, 150


def lost_proposals(knobs: Knobs) -> None:
    """Leaders stay, and much of what they and the others say to each other gets lost."""
    narrow_windows(knobs)
    knobs.options["max_inflight_messages"], knobs.burst_every, knobs.burst = 64, 0.1, 10


def impatient_callers(knobs: Knobs) -> None:
    """The leader's disk is slow and takes one write at a time; its callers do not wait for long."""
    three_members(knobs)
    knobs.options |= {"max_uncommitted_bytes": 1, "max_inflight_messages": 64}
    knobs.hardware.sync_time, knobs.client_timeout, knobs.think, knobs.clients = 0.1, 0.1, 0.02, 6


def fickle_leaders(knobs: Knobs) -> None:
    """Leaders change all the time while there is much to write, so that most of it is sent twice."""
    three_members(knobs)
    knobs.partition_every, knobs.kill_new_leader, knobs.crash_every, knobs.transfer_every = 0.7, 0.7, 3.0, 1.0
    knobs.think, knobs.clients, knobs.burst_every, knobs.burst, knobs.client_timeout = 0.02, 6, 0.5, 10, 6.0


def silent_members(knobs: Knobs) -> None:
    """Members are out of reach for longer than their session lasts."""
    three_members(knobs)
    _fast_timers(knobs)
    knobs.partition_every, knobs.pause_every, knobs.crash_every, knobs.kill_new_leader = 1.0, 1.0, 2.0, 0.3
    knobs.think, knobs.clients = 0.05, 6


def watched_snapshots(knobs: Knobs) -> None:
    """Members that live fall so far behind that they skip what happened; and what is watched changes all the time."""
    three_members(knobs)
    _fast_timers(knobs)
    knobs.options |= {"snapshot_entries": 6, "snapshot_chunk_bytes": 4096, "history_revisions": 10_000}
    knobs.hardware.snapshot_time, knobs.hardware.sync_time = 0.0, 0.0
    knobs.partition_every, knobs.kill_new_leader, knobs.crash_every, knobs.pause_every = 0.7, 0.0, NEVER, 1.0
    knobs.think, knobs.clients, knobs.keys, knobs.writes, knobs.reads, knobs.local_reads = 0.02, 6, 12, 10, 0, 0
    knobs.burst_every, knobs.conditions.hold, knobs.client_timeout = NEVER, False, 0.5


def moving_watches(knobs: Knobs) -> None:
    """Watches go on at another member again and again."""
    three_members(knobs)
    knobs.crash_every, knobs.partition_every, knobs.kill_new_leader = 0.5, 1.0, 0.0
    knobs.think, knobs.clients, knobs.burst_every = 0.02, 6, NEVER
    knobs.writes, knobs.reads, knobs.local_reads, knobs.keys = 10, 0, 0, 4
    knobs.options["history_revisions"] = 5


# Locks.


def contended_locks(knobs: Knobs) -> None:
    """Nothing goes wrong but that leaders change; many want few locks, and soon want something else."""
    three_members(knobs)
    knobs.lock_clients, knobs.locks, knobs.lock_think, knobs.lock_hold = 8, 2, 0.05, 0.1
    knobs.crash_every = knobs.pause_every = knobs.clog_every = knobs.stall_every = knobs.jump_every = NEVER
    knobs.clients, knobs.conditions.loss, knobs.client_timeout = 1, 0.0, 2.0
    knobs.hardware.sync_time = min(knobs.hardware.sync_time, 0.01)


def semaphores(knobs: Knobs) -> None:
    contended_locks(knobs)
    knobs.locks = 3


def held_locks(knobs: Knobs) -> None:
    """Some of five, holders or waiters, are cut off or stand still for longer than their sessions last."""
    three_members(knobs, 5)
    _fast_timers(knobs)
    knobs.lock_clients, knobs.locks, knobs.lock_think, knobs.lock_hold, knobs.lock_delay = 6, 2, 0.1, 0.3, 0.0
    knobs.options |= {"session_grace": 0.5, "max_uncommitted_bytes": 64 << 20}
    knobs.partition_every, knobs.pause_every, knobs.stop_every, knobs.conditions.loss = 3.0, 2.5, 6.0, 0.0
    knobs.crash_every = knobs.transfer_every = knobs.clog_every = knobs.stall_every = knobs.jump_every = NEVER
    knobs.clients, knobs.client_timeout, knobs.kill_new_leader, knobs.chaos = 1, 6.0, 0.0, 10.0


def delayed_locks(knobs: Knobs) -> None:
    """And what they lose stays closed for a while."""
    held_locks(knobs)
    knobs.lock_delay, knobs.options["session_grace"] = 3.0, 45.0


def old_leaders_and_locks(knobs: Knobs) -> None:
    """Leaders hold locks, are cut off, and do not know that others lead."""
    held_locks(knobs)
    knobs.pause_every, knobs.crash_every, knobs.kill_new_leader = NEVER, NEVER, 0.7
    knobs.partition_every, knobs.conditions.hold, knobs.conditions.late, knobs.notice = 0.7, True, 0.05, 0.0


def late_acknowledgements(knobs: Knobs) -> None:
    """Nothing is late but the acknowledgements of renewals."""
    held_locks(knobs)
    knobs.acknowledgements_late, knobs.conditions.loss = 0.7, 0.0


def locks_in_snapshots(knobs: Knobs) -> None:
    """Members live, and are so far behind that a snapshot takes them past what was granted and lost; then they lead."""
    delayed_locks(knobs)
    knobs.options |= {"snapshot_entries": 6, "snapshot_chunk_bytes": 4096}
    knobs.hardware.snapshot_time, knobs.hardware.sync_time = 0.0, 0.0
    knobs.clients, knobs.think, knobs.conditions.hold, knobs.transfer_every = 3, 0.05, False, 0.7
