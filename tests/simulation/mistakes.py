"""Mistakes put back in, one at a time: the proof that the simulation would see them.

Each is what some known system once shipped, or what this one had before it was found. A mutant rewrites a few words of
one function; if the words are no longer there, applying it fails, so the table cannot silently come to test nothing.
What must not live here: how many seeds it takes (`test_mutants`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coord.duties import Duties
from coord.raft import election, quorum, replication, snapshot, transfer
from coord.raft.core import Core
from coord.replica import Replica
from coord.storage.wal import WriteAheadLog
from simulation.knobs import NEVER, Knobs, draw
from simulation.rewrite import Edit, rewritten
from simulation.stories import (
    a_watch_after_a_restart,
    falls_due_in_an_idle_group,
    power_lost_after_a_lonely_mark,
    rests_without_a_leader,
    a_damaged_member_promises_nothing,
    come_and_gone,
    late_word_to_take_over,
    longest_log_in_the_oldest_term,
)
from simulation.world import World


def _as_drawn(knobs: Knobs) -> None:
    """No help needed."""


@dataclass(frozen=True)
class Mutant:
    name: str
    edits: tuple[Edit, ...]
    #: Makes the worlds in which it shows more likely.
    world: Callable[[Knobs], None] = _as_drawn
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


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Within this context the mistake is made, by every member."""
    with rewritten(mutant.edits):
        yield


def _stale_leaders(knobs: Knobs) -> None:
    """Leaders that do not know that others lead, and are asked."""
    knobs.partition_every, knobs.kill_new_leader = 0.7, 0.7
    knobs.clients, knobs.reads, knobs.think, knobs.keys = 6, 12, 0.02, 2
    knobs.conditions.hold, knobs.conditions.late, knobs.notice = True, 0.05, 1.0
    knobs.hardware.sync_time = min(knobs.hardware.sync_time, 0.01)


def _leases(knobs: Knobs) -> None:
    _stale_leaders(knobs)
    knobs.options |= {"lease_reads": True, "clock_drift": 0.01}
    knobs.jump_every = NEVER
    knobs.rates = tuple(1 + (rate - 1) % 0.01 for rate in knobs.rates)
    knobs.false_evidence, knobs.transfer_every, knobs.deaf_on_transfer = 1.0, 1.0, 1.0


def _many_terms(knobs: Knobs) -> None:
    """Leaders that end before they have done anything."""
    knobs.members, knobs.stay_dead = 3, 0
    knobs.rot_every = knobs.misdirect_every = knobs.wipe_every = NEVER
    knobs.priorities, knobs.rates = (0,) * knobs.members, (1.0,) * knobs.members
    knobs.kill_new_leader, knobs.crash_every, knobs.partition_every, knobs.conditions.loss = 1.0, 0.7, 1.5, 0.0


def _slow_disks(knobs: Knobs) -> None:
    _many_terms(knobs)
    knobs.hardware.sync_time, knobs.conditions.loss = 0.1, 0.02


def _overtaking(knobs: Knobs) -> None:
    """Whole windows arrive in any order."""
    knobs.options |= {"max_inflight_messages": 64, "heartbeat": 0.15, "election_timeout": (1.5, 3.0), "session_ttl": 6.0}
    conditions = knobs.conditions
    conditions.in_order, conditions.delay, conditions.jitter = False, 0.005, 0.05
    conditions.late, conditions.loss = 0.02, 0.02
    knobs.think, knobs.clients, knobs.burst_every, knobs.burst = 0.05, 6, 0.3, 10
    knobs.hardware.sync_time = knobs.hardware.turn_delay = 0.0


def _snapshots(knobs: Knobs) -> None:
    """Taken all the time, slow to write, and often overtaken by the log."""
    knobs.options["snapshot_entries"], knobs.hardware.snapshot_time = 6, 1.0
    knobs.think, knobs.conditions.hold = 0.05, True
    knobs.partition_every, knobs.kill_new_leader, knobs.crash_every = 0.7, 0.7, 3.0


def _restarts(knobs: Knobs) -> None:
    """Members come back at once, and find what was meant for their former selves."""
    knobs.crash_every, knobs.kill_new_leader, knobs.notice = 0.5, 0.0, 0.0
    knobs.clients, knobs.reads, knobs.think = 6, 12, 0.02
    knobs.conditions.late, knobs.conditions.late_by, knobs.conditions.loss = 0.3, 1.5, 0.0
    knobs.partition_every, knobs.hardware.sync_time, knobs.hardware.turn_delay = NEVER, 0.0, 0.0


def _mutant(
    name: str,
    *edits: tuple[Any, str, str, str],
    world: Callable[[Knobs], None] = _as_drawn,
    story: Callable[[int], None] | None = None,
) -> Mutant:
    return Mutant(name, tuple(Edit(*edit) for edit in edits), world, story)


_UP_TO_DATE = "(message.last_term, message.last_index) >= (core.log.last_term, core.log.last_index)"

MUTANTS = [
    _mutant(
        "trap 1: entries of older terms are committed by counting",
        (replication, "advance_commit", " and log.term_at(index) == core.term", ""),
    ),
    _mutant(
        "trap 2: terms and votes are told before they are durable",
        (Core, "send", "if self._hard_state_in_doubt():", "if False:"),
    ),
    _mutant(
        "trap 3: the vote is forgotten on stepping down",
        (Core, "become_follower", "was_leader = ", 'self.vote = ""; was_leader = '),
    ),
    _mutant(
        "entries are acknowledged before they are durable",
        (Core, "send_when_durable", "self._riding.append(Send(to, message))", "self._out.append(Send(to, message))"),
    ),
    _mutant(
        "trap 13: a matching tail is cut off",
        (replication, "_accept", "if log.term_at(batch.first) == batch.term:", "if False:"),
    ),
    _mutant(
        "a conflicting tail is kept",
        (replication, "_accept", "if log.term_at(batch.first) == batch.term:", "if batch.last <= log.last_index:"),
    ),
    _mutant(
        # With hints there is never a matching append before a conflicting one, so this alone would do no harm.
        "trap 14: an acknowledgement names the end of the log",
        (replication, "on_append", "batches[-1].last if batches else previous", "core.log.last_index"),
        (
            replication,
            "_refused",
            "index, _ = log.newest_not_above(message.hint_index, message.hint_term)",
            "index = log.base",
        ),
    ),
    _mutant(
        "trap 17: a heartbeat commits what the leader was not seen to share",
        (replication, "on_heartbeat", "message.commit, core.verified)", "message.commit, core.log.last_index)"),
    ),
    _mutant("trap 18: one fewer is a majority", (quorum, "majority", "count // 2 + 1", "max(1, count // 2)")),
    _mutant(
        "trap 20: a lost probe is never sent again",
        (replication, "on_heartbeat_response", "progress.paused = False", "pass"),
    ),
    _mutant(
        "trap 20: a lost acknowledgement is never asked for again",
        (replication, "on_heartbeat_response", "_ask_again(core, sender, progress, message)", "pass"),
    ),
    _mutant(
        "trap 30: reads before the first commit of the term",
        (replication, "add_read", "parked=not core.leads_surely", "parked=False"),
    ),
    _mutant(
        "trap 31: reads ride on a round already sent",
        (replication, "replicate_all", "core.rounds.begin(core.now), core.commit", "core.rounds.newest, core.commit"),
        world=_stale_leaders,
    ),
    _mutant(
        "trap 31, at the follower: numbers of reads begin anew with the process",
        (Core, "__init__", "ForwardedReads(rng.getrandbits(62))", "ForwardedReads(0)"),
        world=_restarts,
    ),
    _mutant(
        "reads are confirmed by nobody",
        (replication, "confirm_reads", "core.reads.confirmed(confirmed)", "core.reads.confirmed(newest)"),
        world=_stale_leaders,
    ),
    _mutant(
        "trap 32: the lease goes on while handing over",
        (Core, "lease_until", " or self.transfer_state is not None", ""),
        world=_leases,
    ),
    _mutant(
        "trap 32: the lease comes back at once after a failed handing over",
        (
            Core,
            "lease_until",
            "if self.now < self.lease_not_before or self.commit < self.lease_after_index:",
            "if False:",
        ),
        story=late_word_to_take_over,
    ),
    _mutant(
        "trap 33: the lease counts from the answer",
        (replication, "_note_round", "sent_at = core.rounds.sent_at(number)", "sent_at = core.now"),
        world=_leases,
    ),
    _mutant(
        "trap 34: the lease allows for no drift and lasts a little longer",
        (Core, "lease_until", "(1 - 2 * self.settings.clock_drift)", "1.2"),
        world=_leases,
    ),
    _mutant(
        "trap 36: the leader counts what its own disk has not kept",
        (replication, "advance_commit", "log.persisted if", "log.last_index if"),
    ),
    _mutant(
        "trap 8: a leader is not protected",
        (election, "_hears_a_leader", "if message.transfer:", "if True:"),
        world=_leases,
    ),
    _mutant(
        "trap 8: a leader without a quorum goes on",
        (replication, "tick_leader", "if core.now - core.quorum_contact() >", "if 0 >"),
    ),
    _mutant(
        "trap 9: a candidate of an older term gets no answer",
        (
            election,
            "on_vote_request",
            "core.send(sender, VoteResponse(core.term, False, message.pre))\n        return\n    if _hears",
            "return\n    if _hears",
        ),
        story=longest_log_in_the_oldest_term,
    ),
    _mutant(
        "trap 7: nobody asks before standing",
        (
            election,
            "timed_out",
            "_ask(core, core.term + 1, pre=True, transfer=False)",
            'campaign(core, "", transfer=False)',
        ),
    ),
    _mutant(
        "the log does not matter for a vote",
        (election, "_may_vote_for", f"return free and {_UP_TO_DATE}", "return free"),
    ),
    _mutant(
        "only the log's length matters for a vote",
        (election, "_may_vote_for", _UP_TO_DATE, "message.last_index >= core.log.last_index"),
        world=_slow_disks,
    ),
    _mutant(
        "two votes in one term",
        (
            election,
            "_may_vote_for",
            '# The same candidate asking again is granted again (trap 11).\n        free = core.vote in ("", sender)',
            "free = True",
        ),
        (
            Core,
            "set_vote",
            'assert self.vote in ("", name), f"second vote in term {self.term}: {self.vote} then {name}"',
            "pass",
        ),
    ),
    _mutant(
        "a vote is kept for the next term",
        (Core, "set_term", 'self.vote = ""', "pass"),
        (
            Core,
            "set_vote",
            'assert self.vote in ("", name), f"second vote in term {self.term}: {self.vote} then {name}"',
            "pass",
        ),
        (Core, "become_candidate", "self.set_vote(self.name)", "self.set_vote(self.vote or self.name)"),
    ),
    _mutant(
        "votes of older terms count",
        (election, "on_vote_response", "message.term == asked_for if message.granted", "True if message.granted"),
    ),
    _mutant(
        "a damaged member acknowledges",
        (Core, "_may_say", "not self.damage or", "True or"),
        story=a_damaged_member_promises_nothing,
    ),
    _mutant("a damaged member votes", (election, "_may_vote_for", "core.damage or ", ""), story=a_damaged_member_promises_nothing),
    _mutant(
        "an older leader is followed",
        (replication, "follow", "if term < core.term:\n        return False", "pass"),
    ),
    _mutant(
        "an older leader hears of no newer term",
        (replication, "_answered", "if term > core.term:", "if False:"),
        world=_slow_disks,
    ),
    _mutant(
        "answers to an older term count",
        (replication, "_answered", "core.role != LEADER or term < core.term", "core.role != LEADER"),
    ),
    _mutant("the commit index falls", (replication, "_follow_commit", "if index > core.commit:", "if index:")),
    _mutant(
        "what stands before an append is not compared",
        (replication, "on_append", "if core.log.term_at(previous) != term:", "if core.log.term_at(previous) is None:"),
        (replication, "_fits", "return batch.first > core.verified", "return True"),
        world=_slow_disks,
    ),
    _mutant(
        "an older snapshot is installed",
        (snapshot, "install", "if meta.index <= core.commit or core.role == LEADER:", "if core.role == LEADER:"),
        world=_snapshots,
    ),
    _mutant(
        "a sync begun before a truncation counts for what came after",
        (Core, "persisted", "if epoch == self.log.epoch:", "if True:"),
        world=_slow_disks,
    ),
    _mutant(
        "trap 16: acknowledgements wait in vain for their term",
        (Core, "persisted", "or send.message.term == self.term", "or True"),
        (replication, "_answered", "core.role != LEADER or term < core.term", "core.role != LEADER"),
    ),
    _mutant(
        "what came and went within a turn is taken back from the disk",
        (Core, "truncate_from", "if index < unasked:", "if True:"),
        story=come_and_gone,
    ),
    _mutant(
        "a probe ends with an answer to something older",
        (replication, "on_append_response", "and message.round >= progress.probe_round", ""),
        (replication, "_refused", " and message.round >= progress.probe_round", ""),
        world=_overtaking,
    ),
    _mutant(
        "a snapshot is offered only once",
        (snapshot, "tick", "core.now - progress.offered_at > patience", "False"),
        (
            snapshot,
            "tick",
            "if core.pull is not None and core.leader is not None and core.now >= core.pull.retry_at:",
            "if False:",
        ),
    ),
    _mutant(
        "proposals may skip some",
        (replication, "on_propose", "if message.number <= expected <", "if expected <"),
        (
            replication,
            "on_propose",
            "message.entries[expected - message.number :]",
            "message.entries[max(0, expected - message.number) :]",
        ),
    ),
    _mutant(
        "without a leader a member looks for one without pause",
        (Replica, "_deadline", "if self.core.leader is not None:", "if True:"),
        story=rests_without_a_leader,
    ),
    _mutant(
        "what falls due is looked at by a clock that stands still",
        (Replica, "turn", "self.now = self.core.now = now", "self.now = now"),
        story=falls_due_in_an_idle_group,
    ),
    _mutant(
        "a new leader looks without pause at what it may not yet act on",
        (Duties, "deadline", " or not self._core.leads_surely", ""),
        world=_many_terms,
    ),
    _mutant(
        "a watch is told twice what a restarted member began with",
        (Replica, "__init__", "self.machine.take_changes()", "pass"),
        story=a_watch_after_a_restart,
    ),
    _mutant(
        "a lost mark reads as corruption",
        (WriteAheadLog, "_roll", "if self._mark_unsynced:", "if False:"),
        story=power_lost_after_a_lonely_mark,
    ),
    _mutant("elections are hurried for ever", (election, "_retry_soon", "core.haste -= 1", "pass")),
    _mutant(
        "a handing over is never given up",
        (transfer, "tick", "core.now >= core.transfer_state.deadline", "False"),
    ),
    _mutant(
        "trap 19: a refusal teaches nothing",
        (replication, "_refused", "progress.next = max(progress.match, index) + 1", "pass"),
    ),
]
