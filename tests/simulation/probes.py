"""Rare situations, by name, and how often the simulation comes to them: what is never met is not tested.

Each probe stands before a statement of the product, which stays as it is on disk: the mark is put in while a simulation
runs (`rewrite`). If the statement is no longer there, that is an error. What must not live here: what may happen there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coord import config_map
from coord.duties import Duties
from coord.machine import lock_commands
from coord.machine.config_store import ConfigStore
from coord.machine.lock_table import LockTable
from coord.machine.machine import Machine
from coord.own_session import OwnSession
from coord.proposals import Numbering, Outbox, Proposal
from coord.raft import core, election, replication, snapshot, transfer
from coord.raft.core import Core
from coord.raft.log import Log
from coord.raft.progress import Progress
from coord.raft.read_index import ForwardedReads, PendingReads
from coord.replica import Replica
from coord.requests import Requests
from coord.snapshots import Snapshots
from coord.storage import directory, replay
from coord.storage.disk import DiskStorage
from coord.storage.snapshots import SnapshotStore
from coord.storage.wal import Reserve, WriteAheadLog
from coord.watch import Watch
from simulation.rewrite import Edit, rewritten

#: (name, where, function, the statement it stands before).
_PLACES: list[tuple[str, Any, str, str]] = [
    # Elections.
    (
        "a candidate of an older term is answered",
        election,
        "on_vote_request",
        "core.send(sender, VoteResponse(core.term, False, message.pre))\n        return\n    if _hears",
    ),
    (
        "a vote is refused while a leader is heard",
        election,
        "on_vote_request",
        "core.send(sender, VoteResponse(core.term, False, message.pre))\n        return\n    if message",
    ),
    ("a vote request ends a term", election, "on_vote_request", "core.become_follower("),
    ("a vote is given", election, "on_vote_request", "core.set_vote("),
    ("a better-placed voter objects", election, "on_vote_request", "core.vetoes "),
    ("an election is lost by refusals", election, "count_vote", "core.become_follower("),
    ("a refusal brings a newer term", election, "on_vote_response", "core.become_follower("),
    ("an election is hurried", election, "_retry_soon", "core.haste -"),
    ("the leader's process is known to be gone", election, "leader_gone", "core.haste ="),
    ("a lease is waited out before an election", election, "leader_gone", "core.election_due "),
    ("a campaigner may no longer campaign", election, "timed_out", "core.become_follower("),
    ("the leader refuses a vote while a quorum follows", election, "_hears_a_leader", "return core.now"),
    ("a vote is asked for with a leader's blessing", election, "_hears_a_leader", "return False"),
    # Leading.
    ("check-quorum ends a leader", replication, "tick_leader", 'core.become_follower(core.term, None, "heard'),
    ("a leader's disk stalls", replication, "tick_leader", "core.stall_handled = True"),
    (
        "a leader whose disk stalls finds nobody to hand over to",
        replication,
        "tick_leader",
        'core.become_follower(core.term, None, "its',
    ),
    ("an append is empty: a probe", replication, "_replicate", "progress.sent(last"),
    ("a follower is too far behind for the log", replication, "_replicate", "snapshot.offer("),
    ("a probe is freed by a heartbeat's answer", replication, "on_heartbeat_response", "progress.paused"),
    ("an append was lost", replication, "on_heartbeat_response", "progress.become_probe("),
    ("an acknowledgement was lost", replication, "_ask_again", "newest = core"),
    ("what was sent is compacted before it is acknowledged", replication, "_ask_again", "progress.become_probe("),
    ("a probe ends", replication, "on_append_response", "progress.become_replicate("),
    ("a read is asked for of one that does not lead", replication, "on_read_request", "core.send(sender"),
    (
        "a proposal reaches one that does not lead",
        replication,
        "on_propose",
        "core.send(sender, ProposeResponse(core.term, message.stream, 0",
    ),
    ("a leader forgets a stream of proposals", replication, "on_propose", "del streams[next("),
    ("a read is answered from the lease", replication, "add_read", "_answer_read("),
    ("a newer term ends a leader", replication, "_answered", "core.become_follower("),
    ("a whole window is refused at once", replication, "_refused", "progress.probe_round "),
    ("a follower refuses what it once acknowledged", replication, "_refused", "progress.match ="),
    ("a refusal leads below the log", replication, "_refused", "snapshot.offer("),
    ("a hint lands in another leader's tail", replication, "_refused", "index = log.batch_at("),
    ("the group's number and incarnations are pinned", replication, "advance_commit", "core.append_membership("),
    # Following.
    ("an append of an older leader", replication, "on_append", "core.send(sender"),
    ("an append begins below what is committed", replication, "on_append", "previous, term = core"),
    ("an append is refused: the logs differ", replication, "on_append", "hint_index, hint_term "),
    ("an append that no honest leader sends now", replication, "on_append", "return\n    _accept"),
    ("a heartbeat of an older leader", replication, "on_heartbeat", "core.send(sender, HeartbeatResponse(core.term, 0"),
    ("entries are sent again and match", replication, "_accept", "continue"),
    ("a conflicting tail is cut", replication, "_accept", "core.truncate_from("),
    ("the log catches up with a pull", replication, "_follow_commit", "core.pull = None"),
    ("a refused read tells its caller to ask again", replication, "on_read_response", "core.command("),
    ("what was cut had not reached the disk", Core, "truncate_from", "self._appended.pop("),
    ("what was cut had reached the disk", Core, "truncate_from", "self._truncate"),
    ("a membership is taken back", Core, "truncate_from", "self.command("),
    ("a snapshot takes the place of the log", Core, "reset_log", "self.verified"),
    ("reads are lost with the leadership", Core, "_drop_reads", "failed.append("),
    ("one that lost its disk is refused", Core, "_known", "reason = (\n "),
    ("word waits for the disk", Core, "_persist", "self._in_flight["),
    ("a candidate's own vote counts once it is durable", Core, "persisted", "election.count_vote("),
    ("a new leader takes over reads it had forwarded", Core, "become_leader", "self.reads.add("),
    ("a log begins before its snapshot", core, "_log_of", "return Log(base, 0"),
    # Handing over.
    ("a handing over is given up", transfer, "tick", "abort(core, f"),
    ("a handing over is refused", transfer, "on_transfer_refused", "abort(core, f"),
    (
        "a target's log is not the leader's",
        transfer,
        "on_timeout_now",
        "core.send(sender, TransferRefused(core.term, f",
    ),
    ("a target may not campaign", transfer, "on_timeout_now", 'core.send(sender, TransferRefused(core.term, "may'),
    ("leadership is handed over", transfer, "on_timeout_now", "election.campaign("),
    ("a lease waits for a failed handing over", transfer, "abort", "core.lease_not_before"),
    # Snapshots between members.
    ("a snapshot is offered before there is one", snapshot, "offer", "progress.become_probe("),
    ("an old offer reaches one that has caught up", snapshot, "on_offer", "core.send_when_durable("),
    ("a pull is of a snapshot no longer kept", snapshot, "on_pull", "offer(core, sender"),
    ("a rotten snapshot is to be renewed", snapshot, "on_pull", "progress.snapshot_index = 0"),
    ("a chunk that nobody waits for", snapshot, "on_chunk", "return\n    if not"),
    ("a snapshot is stored, and the log has caught up", snapshot, "install", "return\n    core"),
    ("a snapshot is installed", snapshot, "install", "core.snapshot"),
    ("a piece is asked for again", snapshot, "tick", "_ask(core)"),
    ("a snapshot is offered again", snapshot, "tick", "offer(core, name"),
    ("a pulled snapshot is not what was offered", Snapshots, "_finish_pull", "sink.abandon("),
    ("a snapshot could not be written", Snapshots, "_cut_failed", "self._cutting"),
    ("a pulled snapshot could not be kept", Snapshots, "_pull_failed", "self._counters"),
    ("a kept snapshot is gone", Snapshots, "read", 'return b""'),
    # Callers.
    ("a member's session ended", OwnSession, "renew", "self.is_open = False"),
    ("a snapshot skipped the answer to a proposal", OwnSession, "jumped", "replica.settle("),
    ("a session ended within a snapshot", OwnSession, "lose_sent", "replica.numbering.end("),
    ("a leader lost the thread of a stream", Replica, "_on_taken", "self.restart_outbox("),
    ("a proposal is sent again", Outbox, "remote", "self._on_the_way ="),
    ("what its caller gave up is not sent", Proposal, "may_be_sent", "return False\n    if"),
    ("a caller waits for room in the window", Numbering, "begin", "return None"),
    ("proposals are encoded anew in another session", Numbering, "renew", "proposal.encode("),
    ("reads ride together", PendingReads, "ride", "self._gathering "),
    ("reads are dropped without a leader", ForwardedReads, "drop", "self._asked.clear("),
    ("a frame is not believed", Replica, "_receive", "return\n    self"),
    ("a duplicate command is answered from memory", Machine, "_apply_in_session", "return id, sequence, remembered"),
    (
        "a duplicate command comes after its answer was taken",
        Machine,
        "_apply_in_session",
        "return id, sequence, replies.STALE_REPLY",
    ),
    ("a command of a session that is over", Machine, "_apply_in_session", "return id, sequence, replies.ENDED_REPLY"),
    ("an older session gives way", Machine, "_open_session", "self._end_session("),
    ("a silent member's session is ended", Machine, "_expire_session", "self._end_session("),
    ("an ephemeral key is another's", Machine, "_write", "return replies.OWNED_BY_OTHER"),
    ("keys fall due", Machine, "_tick", "writes: list"),
    ("a leader ends a session", Duties, "_expire", "self._expiring.add("),
    ("a session was renewed while its end was considered", Duties, "_expire", "return\n    if session in"),
    ("a renewal comes while its session's end is on its way", Duties, "_renewed", "return\n    found"),
    ("a renewal is of a session that is over", OwnSession, "_answered", 'lease.ended = "expired"'),
    ("a session is given up", OwnSession, "give_up_if_lapsed", "lease.ended = LAPSED"),
    ("a leader stood still", Duties, "expire_sessions", "self._due = {session: due + late"),
    ("a session that was given up comes back", OwnSession, "_answered", "self.lease = Lease(session"),
    ("a turn comes so late that its session is in doubt", Replica, "turn", "self.own.lease.late = True"),
    # Locks.
    ("a lock is granted from the queue", LockTable, "pump", "granted += 1"),
    ("somebody is made the successor", LockTable, "move_to_head", "lock.queue.insert(0"),
    ("a lost lock is closed for a while", LockTable, "_close", "until = min("),
    ("a lock opens again", LockTable, "tick", "lock.delays = {"),
    ("a snapshot changes what is held", LockTable, "_differences", "yield kind"),
    ("a lost lock is reclaimed", lock_commands, "_acquire", "table.lift_delay("),
    ("a lock is asked for with another number of permits", lock_commands, "_acquire", "return replies.PERMITS_DIFFER"),
    ("a lock is not to be waited for", lock_commands, "_acquire", "return replies.DENIED"),
    ("a request is cancelled before it came", lock_commands, "_cancel", "session.remember("),
    ("an exclusive hold becomes a shared one", lock_commands, "_downgrade", "shared = hold._replace("),
    ("a write is too late: its lock is gone", Machine, "_transaction", "return replies.HOLD_GONE"),
    ("a request is withdrawn before it was sent", Requests, "abandon", "self._over(request)\n    else"),
    ("a request is given up after it was sent", Requests, "abandon", "self._cancel(request)"),
    ("a cancelling in doubt is repeated", Requests, "_cancelled", "self._cancel(request)"),
    ("a release meets a token of its own that it does not know", Requests, "_released", "self._cancel(request)"),
    (
        "what came of a request went with its session",
        Requests,
        "_answered",
        "self._forget(request)\n        self._ask_again(request)\n    elif isinstance",
    ),
    ("a hold is lost with its session", Requests, "session_over", "self._lose("),
    ("a request is asked again in the next session", Requests, "session_over", "self._replica.defer(self._ask_again"),
    ("a session ends while its hold is being released", Requests, "session_over", "done = self._over("),
    ("a hold is lost before the log says so", Requests, "lease_state", "self._lose("),
    ("a grant waits for its lease to stand", Requests, "lease_state", "self._tell_later("),
    ("a command for a lock waits for room", Requests, "_submit", "self._backlog.append("),
    ("a difference is told below what a watch has seen", ConfigStore, "differences", "found.setdefault(last"),
    ("a watch resumes from what is still kept", config_map, "_begin_watch", "watch.put([change"),
    ("a watch is told again of a key it has not read", Watch, "put", "self._latest.pop("),
    # Disks.
    ("a torn tail is met", replay, "_judge", "reading.cut "),
    ("damage below what was durable is met", replay, "_judge", "reading.damage"),
    ("a segment rewritten by an earlier start is met", replay, "read_log", "reading.superseded"),
    ("the log is cut below a segment that is gone", replay.Replay, "_truncate", "self.base = ("),
    ("an unreadable snapshot is set aside", SnapshotStore, "set_aside", "self._files.rename("),
    ("a snapshot reaches beyond the log", DiskStorage, "_fit_together", "return (index"),
    ("unfinished files are removed", DiskStorage, "_remove_unfinished", "self._files.unlink("),
    ("a torn tail is kept for whoever wants to look", DiskStorage, "_keep_cut", "handle = self"),
    ("the disk fails", DiskStorage, "_fail", "self.failure ="),
    ("the log goes on in a new segment", WriteAheadLog, "_roll", "self._files.close("),
    ("a lonely mark is synced before a new segment", WriteAheadLog, "_roll", "self._files.sync("),
    ("a segment is dropped", WriteAheadLog, "compact", "del self._segments"),
    ("a segment prepared in advance is too small", WriteAheadLog, "_set_room_aside", "self._files.close("),
    ("a full disk makes the log wait", DiskStorage, "_write_group", "group, waiting = group[:at]"),
    ("a full disk costs the reserve", Reserve, "give_up", "self.held = False"),
    ("a directory is formatted", directory, "open_directory", "assert 0 < found"),
    ("a compaction begins inside a batch", Log, "compact", "count -= 1"),
    ("an answer comes after its append was written off", Progress, "lost_since", "return True"),
]

PROBES = [place[0] for place in _PLACES]


def _edit(place: tuple[str, Any, str, str]) -> Edit:
    name, owner, function, statement = place
    return Edit(owner, function, statement, f"_mark({name!r}); {statement}")


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Within this context, how often each probe was passed; all are there from the start."""
    passed = dict.fromkeys(PROBES, 0)

    def mark(name: str) -> None:
        passed[name] += 1

    with rewritten(map(_edit, _PLACES), {"_mark": mark}):
        yield passed
