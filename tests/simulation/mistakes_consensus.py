"""Mistakes in the consensus itself: terms, votes, the log, what commits, reads, leases, handing over.

"trap N" is the number under which a mistake is known in the code's own comments. What must not live here: disks
(`mistakes_storage`), the replicated state and whoever uses it (`mistakes_service`).
"""

from __future__ import annotations

from coord.raft import election, quorum, replication, snapshot, transfer
from coord.raft.core import Core
from coord.raft.progress import Progress
from coord.raft.read_index import ForwardedReads, PendingReads
from coord.replica import Replica
from simulation.mutation import (
    cut_off_leaders,
    late_answers,
    late_turns,
    leases,
    lost_proposals,
    mutant,
    narrow_windows,
    one_by_one,
    overtaken_snapshots,
    pulled_snapshots_get_lost,
    restarts,
    slow_disks,
    slow_rounds,
    stale_leaders,
)
from simulation.stories import (
    a_damaged_member_promises_nothing,
    a_leader_whose_disk_hangs,
    a_question_gets_lost,
    come_and_gone,
    late_word_to_take_over,
    late_word_when_the_lease_is_back,
    longest_log_in_the_oldest_term,
    refusals_do_not_multiply,
    rests_without_a_leader,
    the_membership_changes_one_step_at_a_time,
)
from simulation.stories_of_disks import a_snapshot_leaves_what_follows_it
from simulation.stories_of_members import (
    hands_over_to_nobody,
)

_UP_TO_DATE = "(message.last_term, message.last_index) >= (core.log.last_term, core.log.last_index)"
_ONE_VOTE = 'assert self.vote in ("", name), f"second vote in term {self.term}: {self.vote} then {name}"'

TERMS_AND_VOTES = [
    mutant(
        "terms and votes are told before they are durable",
        "trap 2, PySyncObj #84",
        (Core, "send", "if self._hard_state_in_doubt():", "if False:"),
    ),
    mutant(
        "the vote is forgotten on stepping down",
        "trap 3, Redpanda #19",
        (Core, "become_follower", "was_leader = ", 'self.vote = ""; was_leader = '),
    ),
    mutant(
        "a leader leads on after a restart",
        "trap 6, openraft enable_leader_restore",
        (
            Core,
            "__init__",
            "self.role = FOLLOWER",
            "self.role = LEADER if start.hard_state.vote == name else FOLLOWER",
        ),
        (Core, "found", "if self.term == 0", "if self.role != LEADER and self.term == 0"),
    ),
    mutant(
        "nobody asks before standing",
        "trap 7, dissertation 9.6",
        (
            election,
            "timed_out",
            "_ask(core, core.term + 1, pre=True, transfer=False)",
            'campaign(core, "", transfer=False)',
        ),
    ),
    mutant(
        "a leader is not protected",
        "trap 8, CockroachDB #104042",
        (election, "_hears_a_leader", "if message.transfer:", "if True:"),
        world=leases,
    ),
    mutant(
        "a leader without a quorum goes on",
        "trap 8, etcd at Cloudflare in 2020",
        (replication, "tick_leader", "if core.now - core.quorum_contact() >", "if 0 >"),
        world=cut_off_leaders,
    ),
    mutant(
        "a candidate of an older term gets no answer",
        "trap 9, etcd #8243",
        (
            election,
            "on_vote_request",
            "core.send(sender, VoteResponse(core.term, False, message.pre))\n        return\n    if _hears",
            "return\n    if _hears",
        ),
        story=longest_log_in_the_oldest_term,
    ),
    mutant(
        "a refused pre-vote teaches no newer term",
        "trap 9, openraft d6a6d562",
        (election, "on_vote_response", "not (message.pre and message.granted)", "not message.pre"),
        story=longest_log_in_the_oldest_term,
    ),
    mutant(
        "late pre-votes count after the election",
        "trap 9, openraft 511f33c7",
        (
            election,
            "on_vote_response",
            "asking = core.role == (PRE_CANDIDATE if message.pre else CANDIDATE)",
            "asking = True",
        ),
        (election, "on_vote_response", "message.term == asked_for if message.granted", "True if message.granted"),
    ),
    mutant(
        "a granted pre-vote names the voter's term",
        "trap 10, etcd",
        (election, "on_vote_request", "term = message.term if granted else core.term", "term = core.term"),
    ),
    mutant(
        "the log does not matter for a vote",
        "Raft 5.4.1",
        (election, "_may_vote_for", f"return free and {_UP_TO_DATE}", "return free"),
    ),
    mutant(
        "only the log's length matters for a vote",
        "Raft 5.4.1",
        (election, "_may_vote_for", _UP_TO_DATE, "message.last_index >= core.log.last_index"),
        world=slow_disks,
    ),
    mutant(
        "two votes in one term",
        "Raft 5.2",
        (
            election,
            "_may_vote_for",
            '# The same candidate asking again is granted again (trap 11).\n        free = core.vote in ("", sender)',
            "free = True",
        ),
        (Core, "set_vote", _ONE_VOTE, "pass"),
    ),
    mutant(
        "a vote is kept for the next term",
        "Raft 5.2",
        (Core, "set_term", 'self.vote = ""', "pass"),
        (Core, "set_vote", _ONE_VOTE, "pass"),
        (Core, "become_candidate", "self.set_vote(self.name)", "self.set_vote(self.vote or self.name)"),
    ),
    mutant(
        "votes of older terms count",
        "Raft 5.2",
        (election, "on_vote_response", "message.term == asked_for if message.granted", "True if message.granted"),
    ),
    mutant(
        "a damaged member acknowledges",
        "trap 40, Protocol-Aware Recovery",
        (Core, "_may_say", "not self.damage or", "True or"),
        story=a_damaged_member_promises_nothing,
    ),
    mutant(
        "a damaged member votes",
        "trap 40, LogCabin and ZooKeeper in Protocol-Aware Recovery",
        (election, "_may_vote_for", "core.damage or ", ""),
        story=a_damaged_member_promises_nothing,
    ),
    mutant(
        "elections are hurried for ever",
        "found here",
        (election, "_retry_soon", "core.haste -= 1", "pass"),
        world=slow_rounds,
    ),
    mutant(
        "without a leader a member looks for one without pause",
        "found here",
        (Replica, "_deadline", "if self.core.leader is not None:", "if True:"),
        story=rests_without_a_leader,
    ),
    mutant(
        "a leader whose disk hangs leads on",
        "trap 45, hashicorp/raft #503",
        (Core, "disk_stalled", "return bool(self._in_flight)", "return False"),
        story=a_leader_whose_disk_hangs,
    ),
]

THE_LOG = [
    mutant(
        "entries of older terms are committed by counting",
        "trap 1, LogCabin #44",
        (replication, "advance_commit", " and log.term_at(index) == core.term", ""),
    ),
    mutant(
        "entries are acknowledged before they are durable",
        "trap 39, etcd #14143",
        (Core, "send_when_durable", "self._riding.append(Send(to, message))", "self._out.append(Send(to, message))"),
    ),
    mutant(
        "a matching tail is cut off",
        "trap 13, CCF #5991",
        (replication, "_accept", "if log.term_at(batch.first) == batch.term:", "if False:"),
    ),
    mutant(
        "a conflicting tail is kept",
        "trap 15, openraft",
        (replication, "_accept", "if log.term_at(batch.first) == batch.term:", "if batch.last <= log.last_index:"),
    ),
    mutant(
        # With hints there is never a matching append before a conflicting one, so this alone would do no harm.
        "an acknowledgement names the end of the log",
        "trap 14, CCF #6016",
        (replication, "on_append", "batches[-1].last if batches else previous", "core.log.last_index"),
        (
            replication,
            "_refused",
            "index, _ = log.newest_not_above(message.hint_index, message.hint_term)",
            "index = log.base",
        ),
        world=one_by_one,
    ),
    mutant(
        "a heartbeat commits what the leader was not seen to share",
        "trap 17, etcd #13066",
        (replication, "on_heartbeat", "message.commit, core.verified)", "message.commit, core.log.last_index)"),
    ),
    mutant(
        "one fewer is a majority",
        "trap 18, async-raft",
        (quorum, "majority", "count // 2 + 1", "max(1, count // 2)"),
    ),
    mutant(
        "a refusal teaches nothing",
        "trap 19, etcd",
        (replication, "_refused", "progress.next = max(progress.match, index) + 1", "pass"),
    ),
    mutant(
        "a lost probe is never sent again",
        "trap 20, etcd #14633",
        (replication, "on_heartbeat_response", "progress.paused = False", "pass"),
    ),
    mutant(
        "a lost acknowledgement is never asked for again",
        "trap 20, hashicorp/raft #612",
        (replication, "on_heartbeat_response", "_ask_again(core, sender, progress, message)", "pass"),
        world=narrow_windows,
    ),
    mutant(
        "what is sent next may lie below what is acknowledged",
        "etcd/raft #149",
        (Progress, "acked", "self.next = max(self.next, self.match + 1)", "pass"),
    ),
    mutant(
        "the leader counts what its own disk has not kept",
        "trap 36, etcd #14370",
        (replication, "advance_commit", "log.persisted if", "log.last_index if"),
    ),
    mutant(
        "an older leader is followed",
        "Raft 5.1",
        (replication, "follow", "if term < core.term:\n        return False", "pass"),
    ),
    mutant(
        "an older leader hears of no newer term",
        "Raft 5.1",
        (replication, "_answered", "if term > core.term:", "if False:"),
        world=slow_disks,
    ),
    mutant(
        "answers to an older term count",
        "trap 16, openraft cecb5de8",
        (replication, "_answered", "core.role != LEADER or term < core.term", "core.role != LEADER"),
        world=late_answers,
    ),
    mutant(
        "acknowledgements wait in vain for their term",
        "trap 16",
        (Core, "persisted", "or send.message.term == self.term", "or True"),
        (replication, "_answered", "core.role != LEADER or term < core.term", "core.role != LEADER"),
        world=late_answers,
    ),
    mutant(
        "the commit index falls",
        "Raft figure 2",
        (replication, "_follow_commit", "if index > core.commit:", "if index:"),
    ),
    mutant(
        "what stands before an append is not compared",
        "Raft 5.3",
        (replication, "on_append", "if core.log.term_at(previous) != term:", "if core.log.term_at(previous) is None:"),
        (replication, "_fits", "return batch.first > core.verified", "return True"),
        world=slow_disks,
    ),
    mutant(
        "entries are applied before they have committed",
        "Raft 5.3",
        (
            Core,
            "_hand_over",
            "if self.handed < self.commit:\n"
            "        self._out.append(Apply(self.log.between(self.handed + 1, self.commit)))\n"
            "        self.handed = self.commit",
            "if self.handed < self.log.last_index:\n"
            "        self._out.append(Apply(self.log.between(self.handed + 1, self.log.last_index)))\n"
            "        self.handed = self.log.last_index",
        ),
    ),
    mutant(
        "a sync begun before a truncation counts for what came after",
        "etcd/raft async storage writes",
        (Core, "persisted", "if epoch == self.log.epoch:", "if True:"),
        world=late_turns,
    ),
    mutant(
        "what came and went within a turn is taken back from the disk",
        "found here",
        (Core, "truncate_from", "if index < unasked:", "if True:"),
        story=come_and_gone,
    ),
    mutant(
        "a probe ends with an answer to something older",
        "found here",
        (replication, "on_append_response", "and message.round >= progress.probe_round", ""),
        (replication, "_refused", " and message.round >= progress.probe_round", ""),
        story=refusals_do_not_multiply,
    ),
    mutant(
        "an older snapshot is installed",
        "trap 53, openraft",
        (snapshot, "install", "if meta.index <= core.commit or core.role == LEADER:", "if core.role == LEADER:"),
        world=overtaken_snapshots,
    ),
    mutant(
        "a snapshot is offered only once",
        "trap 53, openraft #1829",
        (snapshot, "tick", "core.now - progress.offered_at > patience", "False"),
        (
            snapshot,
            "tick",
            "if core.pull is not None and core.leader is not None and core.now >= core.pull.retry_at:",
            "if False:",
        ),
        (Core, "deadline", "if self.pull is not None and", "if False and"),
        world=pulled_snapshots_get_lost,
    ),
    mutant(
        "a snapshot drops what the log holds beyond it",
        "Raft section 7",
        (
            snapshot,
            "install",
            "if core.log.term_at(meta.index) != meta.term or not core.log.ends_batch(meta.index):",
            "if True:",
        ),
        story=a_snapshot_leaves_what_follows_it,
    ),
]

READS_AND_LEASES = [
    mutant(
        "reads before the first commit of the term",
        "trap 30, etcd #7331",
        (replication, "add_read", "parked=not core.leads_surely", "parked=False"),
    ),
    mutant(
        "reads asked for before the first commit of the term wait for ever",
        "trap 30",
        (PendingReads, "unpark", "self._gathering += self._parked", "pass"),
    ),
    mutant(
        "reads ride on a round already sent",
        "trap 31, etcd #20418",
        (replication, "replicate_all", "core.rounds.begin(core.now), core.commit", "core.rounds.newest, core.commit"),
        world=stale_leaders,
    ),
    mutant(
        "a follower numbers its reads anew with each process",
        "trap 31",
        (Core, "__init__", "ForwardedReads(rng.getrandbits(62))", "ForwardedReads(0)"),
        world=restarts,
    ),
    mutant(
        "a lost question for a read is not asked again",
        "trap 54, etcd #8975",
        (ForwardedReads, "ask", "elif not self._asked or now < self.asked_at + retry_after:", "else:"),
        (ForwardedReads, "retry_at", "if self._asked else", "if False else"),
        story=a_question_gets_lost,
    ),
    mutant(
        "reads are confirmed by nobody",
        "etcd 0.4, Jepsen 2014",
        (replication, "confirm_reads", "core.reads.confirmed(confirmed)", "core.reads.confirmed(newest)"),
        world=stale_leaders,
    ),
    mutant(
        "a former leader forgets the reads it was asked",
        "trap 54, etcd #5214",
        (Core, "become_follower", "self._drop_reads()", "pass"),
        world=stale_leaders,
    ),
    mutant(
        "the lease goes on while handing over",
        "trap 32, etcd #12704",
        (Core, "lease_until", " or self.transfer_state is not None", ""),
        world=leases,
    ),
    mutant(
        "the lease comes back at once after a failed handing over",
        "trap 32, TiKV #1595",
        (
            Core,
            "lease_until",
            "if self.now < self.lease_not_before or self.commit < self.lease_after_index:",
            "if False:",
        ),
        story=late_word_to_take_over,
    ),
    mutant(
        "a late word to take over is obeyed",
        "trap 32, raft-rs #234",
        (transfer, "on_timeout_now", "if core.log.last_index != message.last_index:", "if False:"),
        story=late_word_when_the_lease_is_back,
    ),
    mutant(
        "the lease counts from the answer",
        "trap 33, SOFAJRaft #25",
        (replication, "_note_round", "sent_at = core.rounds.sent_at(number)", "sent_at = core.now"),
        world=leases,
    ),
    mutant(
        "the lease allows for no drift and lasts a little longer",
        "trap 34",
        (Core, "lease_until", "(1 - 2 * self.settings.clock_drift)", "1.2"),
        world=leases,
    ),
    mutant(
        "a handing over is never given up",
        "trap 35, hashicorp/raft #581",
        (transfer, "tick", "core.now >= core.transfer_state.deadline", "False"),
        (Core, "deadline", "if self.transfer_state is not None:", "if False:"),
        story=hands_over_to_nobody,
    ),
]

MEMBERSHIP = [
    mutant(
        "the membership changes before the last change has committed",
        "trap 22, Copycat #23",
        (replication, "membership_to_pin", "if index > core.commit or core.transfer_state", "if core.transfer_state"),
        story=the_membership_changes_one_step_at_a_time,
    ),
]

PROPOSALS = [
    mutant(
        "proposals may skip some",
        "trap 51",
        (replication, "on_propose", "if message.number <= expected <", "if expected <"),
        (
            replication,
            "on_propose",
            "message.entries[expected - message.number :]",
            "message.entries[max(0, expected - message.number) :]",
        ),
    ),
    mutant(
        "a proposal that comes twice is taken twice",
        "trap 51, etcd #3587",
        (replication, "on_propose", "message.entries[expected - message.number :]", "message.entries"),
        world=lost_proposals,
    ),
]

CONSENSUS = [*TERMS_AND_VOTES, *THE_LOG, *READS_AND_LEASES, *MEMBERSHIP, *PROPOSALS]
