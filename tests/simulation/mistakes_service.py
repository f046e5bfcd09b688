"""Mistakes around the replicated state: the machine, sessions and exactly-once, replies, watches, frames, identities.

"trap N" is the number under which a mistake is known in the code's own comments. What must not live here: which entries
are committed (`mistakes_consensus`).
"""

from __future__ import annotations

from coord import wire
from coord.duties import Duties
from coord.machine.config_store import ConfigStore
from coord.machine.expiry import Expiry
from coord.machine.history import History
from coord.machine.machine import Machine
from coord.machine.sessions import Session
from coord.machine.snapshot import Cut
from coord.own_session import OwnSession
from coord.proposals import Numbering, Outbox, Proposal
from coord.raft import batch, replication, snapshot
from coord.raft.core import Core
from coord.reads import Reads
from coord.replica import Replica
from coord.snapshots import Snapshots
from coord.storage.snapshots import SnapshotFile
from coord.watch import Watch
from simulation.mutation import (
    damaged_frames,
    fickle_leaders,
    impatient_callers,
    late_pieces,
    many_terms,
    moving_watches,
    mutant,
    narrow_windows,
    pulled_snapshots,
    restarts,
    silent_members,
    snapshots,
    watched_snapshots,
    wiped_disks,
)
from simulation.stories import (
    a_watch_after_a_restart,
    falls_due_in_an_idle_group,
)
from simulation.stories_of_members import (
    a_delete_of_nothing,
    a_session_ends_while_its_member_is_away,
    a_session_lost_in_a_snapshot,
    a_stranger_at_a_members_address,
    frames_go_astray,
    waits_for_its_first_commit,
)

EXACTLY_ONCE = [
    mutant(
        "a command that comes twice is done twice",
        "trap 51, curvine #676",
        (Machine, "_apply_in_session", "if remembered is not None:", "if False:"),
        world=fickle_leaders,
    ),
    mutant(
        "snapshots leave out the replies that are remembered",
        "trap 51, dissertation 6.3",
        (Cut, "__init__", "session.replies.copy()", "{}"),
        (Session, "compute_digest", "sorted(self.replies.items())", "[]"),
        world=pulled_snapshots,
    ),
    mutant(
        "every leader is given the writes under new numbers",
        "trap 51, etcd #4691",
        (
            Replica,
            "_flush",
            "self.restart_outbox()",
            'self.own.renew("expired")',
        ),
        world=fickle_leaders,
    ),
    mutant(
        "a session says it took replies it still waits for",
        "trap 51",
        (Numbering, "_advance", "next(iter(self._open), self._next) - 1", "self._next - 1"),
        world=fickle_leaders,
    ),
    mutant(
        "a new leader is not given what the old one lost",
        "trap 54, etcd #8975",
        (
            Replica,
            "_flush",
            "if self._outbox_term != core.term:",
            "if self._outbox_term != core.term and (not self._outbox_term or core.role == LEADER):",
        ),
    ),
    mutant(
        "what was lost on the way to the leader is not sent again",
        "trap 54, etcd #5214",
        (Outbox, "remote", "if now >= self._retry_at:", "if False:"),
        (Outbox, "deadline", "return self._retry_at", 'return float("inf")'),
        world=narrow_windows,
    ),
    mutant(
        "a member whose session was ended does not open another",
        "trap 51, atomix #466",
        (OwnSession, "applied", "self.renew(ended[-1] if ended else sessions.ENDED)", "self.is_open = False"),
        story=a_session_ends_while_its_member_is_away,
    ),
    mutant(
        "nobody looks for replies in a snapshot",
        "trap 54",
        (OwnSession, "jumped", "if reply is not None:", "if False:"),
        world=pulled_snapshots,
    ),
]

OUTCOMES = [
    mutant(
        "a withdrawn write is sent all the same",
        "trap 54",
        (Proposal, "may_be_sent", "if self.abandoned:\n        return False", "pass"),
        (Proposal, "may_be_sent", "return False\n        self.sent = True", "pass\n        self.sent = True"),
        world=impatient_callers,
    ),
    mutant(
        "a write whose time is up is said never to happen",
        "trap 54",
        (
            Replica,
            "_housekeep",
            "answer = WITHDRAWN if proposal.give_up() else EXPIRED",
            "answer = WITHDRAWN; proposal.give_up()",
        ),
        world=impatient_callers,
    ),
    mutant(
        "what was sent in a lost session is sent again in the next",
        "trap 51",
        (OwnSession, "lose_sent", "if proposal.sent:", "if False:"),
        story=a_session_lost_in_a_snapshot,
    ),
    mutant(
        "a member that stops calls its unanswered writes failed",
        "trap 54, openraft #2096",
        (Replica, "end", "unknown if proposal.sent else error", "error"),
    ),
    mutant(
        "reads are answered before the state is as new as they need",
        "Raft section 8",
        (Reads, "applied", "and self._ready[0][0] <= index", ""),
    ),
    mutant(
        "reads that nobody could confirm are forgotten",
        "trap 54, etcd #5214",
        (Reads, "refused", "self._gathered.append(read)", "pass"),
    ),
]

SESSIONS = [
    mutant(
        "a new leader counts silence from before its election",
        "dissertation 6.3",
        (
            Duties,
            "expire_sessions",
            "self._due[session] = core.now + found.ttl / _NANOSECONDS",
            "self._due[session] = core.now",
        ),
        world=silent_members,
    ),
    mutant(
        "a session lasts half its time",
        "dissertation 6.3",
        (Duties, "_renewed", "received_at + found.ttl / _NANOSECONDS", "received_at + found.ttl / 2 / _NANOSECONDS"),
        world=silent_members,
    ),
    mutant(
        "ephemeral keys outlive their session",
        "ZooKeeper ZOOKEEPER-1208",
        (Machine, "_end_session", "for key in sorted(session.keys)", "for key in ()"),
        (Machine, "_commit", "if owned_before:", "if owned_before in self._sessions.live:"),
        world=restarts,
    ),
    mutant(
        "a new leader looks without pause at what it may not yet act on",
        "found here",
        (Duties, "deadline", " or not self._core.leads_surely", ""),
        story=waits_for_its_first_commit,
    ),
    mutant(
        "what falls due is looked at by a clock that stands still",
        "found here",
        (Replica, "turn", "self.now = self.core.now = now", "self.now = now"),
        story=falls_due_in_an_idle_group,
    ),
]

THE_MACHINE = [
    mutant(
        "compare-and-set does not compare",
        "textbook",
        (
            Machine,
            "_put",
            "if expected != commands.ANY and",
            "if False and",
        ),
    ),
    mutant(
        "a transaction does its first write before it compares",
        "Redis MULTI",
        (
            Machine,
            "_transaction",
            "return self._conflict(session, key, before)",
            "first = operations[0]; row = self.store.row(first[1])\n"
            "            if first[0] == commands.PUT and len(operations) > 1:\n"
            "                self._write(index, session, [self._plan_put(index, session, first[1], row, *first[2:])])\n"
            "            return self._conflict(session, key, before)",
        ),
    ),
    mutant(
        "a delete of nothing makes a revision",
        "textbook",
        (Machine, "_commit", "if not writes:\n        return", "pass"),
        story=a_delete_of_nothing,
    ),
    mutant(
        "a plain put keeps the old time to live",
        "textbook",
        (Machine, "_plan_put", "if ttl else 0\n", "if ttl else 0 if before is None else before[5]\n"),
    ),
    mutant(
        "a key that was written again falls due when it first was to",
        "textbook",
        (ConfigStore, "commit", "if before[5] != after[5]:", "if not before[5] and after[5]:"),
    ),
    mutant(
        "keys end a little early",
        "textbook",
        (Expiry, "take_due", "due > now:", "due > now + 200_000_000:"),
    ),
    mutant(
        "the time to live is counted by each member's own clock",
        "trap 52, etcd #12535",
        (
            Machine,
            "_plan_put",
            "self._clock.after(ttl) if ttl",
            '__import__("time").monotonic_ns() + ttl if ttl',
        ),
    ),
    mutant(
        "entries are stamped by the leader's own clock",
        "trap 52, dissertation 6.3",
        (
            Core,
            "cluster_time",
            "return max(self.clock_base + running, self.log.last_time)",
            "return int(self.now * _NANOSECONDS)",
        ),
        world=many_terms,
    ),
    mutant(
        "an installed snapshot does not set the clock",
        "trap 44",
        (Machine, "install", "ClusterClock(state.time)", "ClusterClock(self._clock.now)"),
        world=snapshots,
    ),
]

WATCHES = [
    mutant(
        "a watch is told twice what a restarted member began with",
        "found here",
        (Replica, "__init__", "self.machine.take_changes()", "pass"),
        story=a_watch_after_a_restart,
    ),
    mutant(
        "a watch resumes across what is forgotten",
        "etcd #18089",
        (History, "since", "if revision < self.compacted:", "if False:"),
        world=moving_watches,
    ),
    mutant(
        "a watch resumes a change too late",
        "off by one",
        (History, "since", "if entry[0] <= revision:", "if entry[0] <= revision + 1:"),
        world=moving_watches,
    ),
    mutant(
        "a watch that resumes at a member that lags is told again",
        "etcd #15271",
        (Watch, "put", "if change.revision < self.first_revision:", "if False:"),
        world=moving_watches,
    ),
    mutant(
        "a watch is not told what a snapshot changed",
        "etcd's watch guarantees: reliable",
        (Machine, "install", "self._pending.extend(", "list("),
        world=watched_snapshots,
    ),
    mutant(
        "a watch is not told what a snapshot deleted",
        "etcd's watch guarantees: reliable",
        (ConfigStore, "differences", "if key not in newer._rows:", "if False:"),
        world=watched_snapshots,
    ),
    mutant(
        "a watch resumes across what a snapshot skipped",
        "etcd #18089",
        (Machine, "install", "self._history.begin_anew(max(self.store.revision, state.store.revision))", "pass"),
        world=pulled_snapshots,
    ),
    mutant(
        "a watch of newest values tells an old change before a new one",
        "etcd's watch guarantees: ordered",
        (Watch, "put", "self._latest.pop(change.key, None)", "pass"),
    ),
]

FRAMES_AND_IDENTITIES = [
    mutant(
        "checksums of frames cover their headers only",
        "Amazon S3 in 2008",
        (wire, "encode", "crc = zlib.crc32(summed, _PREAMBLE_CRC)", "crc = zlib.crc32(rest + names, _PREAMBLE_CRC)"),
        (wire, "encode", "crc = zlib.crc32(tail[0], crc)", "pass"),
        (wire, "_check_crc", "memoryview(frame)[_CRC_END:end]", "memoryview(frame)[_CRC_END:body]"),
        world=damaged_frames,
    ),
    mutant(
        "checksums of batches are not checked",
        "Amazon S3 in 2008",
        (batch, "read_batch", "!= crc:", "!= crc and False:"),
        world=damaged_frames,
    ),
    mutant(
        "frames for another member are taken in",
        "trap 48, CockroachDB #37907",
        (wire, "_check_parties", "recipient != receiver.name or ", ""),
        story=frames_go_astray,
    ),
    mutant(
        "frames of another group are taken in",
        "trap 48, openziti/fabric #576",
        (wire, "same_cluster", "one.group_number == other.group_number or", "True or"),
        story=a_stranger_at_a_members_address,
    ),
    mutant(
        "a member that lost its disk is believed",
        "trap 46, CockroachDB #10266",
        (Core, "_known", "if expected == incarnation:", "if True:"),
        (Replica, "_send", "ANY if member is None or type(message) is Unknown else member.incarnation", "ANY"),
        world=wiped_disks,
    ),
    mutant(
        "members are known by the leader's incarnation",
        "trap 46",
        (
            replication,
            "membership_to_pin",
            "with_incarnation(name, incarnation)",
            "with_incarnation(name, core.incarnation)",
        ),
    ),
    mutant(
        "any piece of a snapshot is taken for the next, and the whole is not checked",
        "trap 53, openraft #1829",
        (snapshot, "on_chunk", " or message.offset != pull.held", ""),
        (snapshot, "on_chunk", "message.index != pull.meta.index", "False"),
        (Snapshots, "_finish_pull", "if sink.finish() != (meta.size, meta.sha256):", "if not sink.finish():"),
        (SnapshotFile, "describe", "if (meta.size, meta.sha256) != self._finished:", "if not self._finished:"),
        world=late_pieces,
    ),
]

SERVICE = [*EXACTLY_ONCE, *OUTCOMES, *SESSIONS, *THE_MACHINE, *WATCHES, *FRAMES_AND_IDENTITIES]
