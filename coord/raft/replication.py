"""Replication: the leader's appends, heartbeats and rounds, the follower's answers, and what commits (5.3, 5.4).

What must not live here: one follower's bookkeeping (`coord.raft.progress`), quorum arithmetic (`coord.raft.quorum`),
snapshots (`coord.raft.snapshot`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.raft import election, snapshot, transfer
from coord.raft.batch import MEMBERSHIP, Batch
from coord.raft.membership import Membership, membership_in
from coord.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    ProposalsTaken,
    Propose,
    ProposeResponse,
    ReadFailed,
    ReadOk,
    ReadRequest,
    ReadResponse,
)
from coord.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from coord.raft.quorum import held_by_quorum
from coord.raft.read_index import Reader
from coord.raft.roles import FOLLOWER, LEADER

if TYPE_CHECKING:
    from coord.raft.core import Core

#: Streams of proposals remembered for each member.
_STREAMS_KEPT = 4

# ---------------------------------------------------------------------------------------------------------------------
# The leader.


def tick_leader(core: Core) -> None:
    if core.now >= core.heartbeat_due:
        core.rounds.begin(core.now)
        core.heartbeat_due = core.now + core.settings.heartbeat
        transfer.repeat(core)
    if core.now - core.quorum_contact() > core.settings.election_timeout[1]:
        # Check-quorum: without it a leader that can be heard but hears nobody leads for ever (trap 8).
        core.become_follower(core.term, None, "heard from no quorum for an election timeout")
    elif not core.disk_stalled():
        core.stall_handled = False
    elif len(core.voters) > 1 and core.transfer_state is None:
        # Heartbeats go on while a disk hangs, so only the leader itself can end this (trap 45).
        if core.stall_handled or transfer.begin(core, None):
            core.become_follower(core.term, None, "its disk has stalled")
        core.stall_handled = True


def replicate_all(core: Core) -> None:
    """Send every follower what it lacks, and the newest round to whom nothing else carries it."""
    if core.reads.gathering:
        core.reads.ride(core.rounds.begin(core.now), core.commit)
    if len(core.voters) == 1:
        confirm_reads(core)
    built: dict[tuple[int, int], Append] = {}
    for name, progress in core.progress.items():
        _replicate(core, name, progress, built)
        commit = min(progress.match, core.commit)
        if progress.sent_round < core.rounds.newest or progress.sent_commit < commit:
            core.send(name, Heartbeat(core.term, core.commit, core.rounds.newest))
            progress.sent_round = core.rounds.newest
            progress.sent_commit = max(progress.sent_commit, commit)


def _replicate(core: Core, name: str, progress: Progress, built: dict[tuple[int, int], Append]) -> None:
    log, settings = core.log, core.settings
    while progress.may_send(settings.max_inflight_messages, settings.max_inflight_bytes):
        previous = progress.next - 1
        if previous == log.last_index and progress.state != PROBE:
            return
        term = log.term_at(previous)
        if term is None:
            snapshot.offer(core, name, progress)
            return
        batches = log.from_index(progress.next, settings.max_append_bytes) if previous < log.last_index else []
        last = batches[-1].last if batches else previous
        message = built.get((previous, last))
        if message is None:
            # The same object for every follower at the same place, so that it is encoded once.
            message = Append(core.term, previous, term, core.commit, core.rounds.newest, batches)
            built[previous, last] = message
        core.send(name, message)
        progress.sent(last, sum(len(batch.data) for batch in batches), core.rounds.newest)
        progress.sent_round = core.rounds.newest
        progress.sent_commit = max(progress.sent_commit, min(core.commit, last))


def on_append_response(core: Core, sender: str, message: AppendResponse) -> None:
    progress = _answered(core, sender, message.term)
    if progress is None:
        return
    progress.disk_slow = message.disk_slow
    _note_round(core, progress, message.round)
    if not message.success:
        _refused(core, sender, progress, message)
    elif _ends_a_batch(core, message.index):
        if progress.acked(message.index):
            advance_commit(core)
            transfer.proceed(core)
        # A probe ends with its own answer, not with a late one to what was sent before it.
        probed = progress.state == PROBE and message.round >= progress.probe_round
        if probed or (progress.state == SNAPSHOT and core.log.term_at(progress.match) is not None):
            # Also after an older snapshot than the newest, if the log reaches back to it: were a member to begin
            # again with each new one, it might never end.
            progress.become_replicate()


def on_heartbeat_response(core: Core, sender: str, message: HeartbeatResponse) -> None:
    progress = _answered(core, sender, message.term)
    if progress is None:
        return
    progress.disk_slow = message.disk_slow
    _note_round(core, progress, message.round)
    if progress.state == PROBE and progress.probe_round < message.round:
        progress.paused = False
    elif progress.state == REPLICATE and progress.lost_since(message.round, message.verified):
        progress.become_probe(progress.match + 1)
    elif progress.state == REPLICATE and progress.inflight:
        _ask_again(core, sender, progress, message)


def _ask_again(core: Core, name: str, progress: Progress, message: HeartbeatResponse) -> None:
    """What was sent has arrived and is not acknowledged. Either the answer waits for the disk, or it was lost, and then
    nothing else would ever bring it (trap 20). An empty append asks for it, at most once a heartbeat."""
    last, size, round_number = progress.inflight[0]
    sent_at = core.rounds.sent_at(round_number)
    if message.disk_slow or message.verified < last or sent_at is None:
        return
    if core.now - sent_at < core.settings.heartbeat:
        return
    term = core.log.term_at(last)
    if term is None:
        progress.become_probe(progress.match + 1)
        return
    newest = core.rounds.newest
    progress.inflight[0] = (last, size, newest)
    core.send(name, Append(core.term, last, term, core.commit, newest))


def on_read_request(core: Core, sender: str, message: ReadRequest) -> None:
    if core.role == LEADER and message.term == core.term:
        add_read(core, (sender, message.number))
    else:
        core.send(sender, ReadResponse(core.term, message.number, 0))


def on_propose(core: Core, sender: str, message: Propose) -> None:
    """Take a member's entries in order and without a gap, whatever was lost or repeated on the way."""
    if core.role != LEADER or message.term != core.term:
        core.send(sender, ProposeResponse(core.term, message.stream, 0, False))
        return
    # The last few streams: a late message of an older one must not make the leader forget the newest.
    streams = core.proposed.setdefault(sender, {})
    expected = streams.get(message.stream, 0)
    if message.number <= expected < message.number + len(message.entries):
        fresh = message.entries[expected - message.number :]
        # No honest member sends an entry too large for a batch; taken in, it could be sent to nobody, for ever.
        fitting = [entry for entry in fresh if len(entry) <= core.settings.max_batch_bytes]
        if not fitting or core.propose(core.now, fitting):
            expected += len(fresh)
    streams[message.stream] = expected
    if len(streams) > _STREAMS_KEPT:
        del streams[next(iter(streams))]
    core.send(sender, ProposeResponse(core.term, message.stream, expected, core.accepting))


def add_read(core: Core, reader: Reader) -> None:
    if core.now < core.lease_until():
        _answer_read(core, core.commit, [reader])
    else:
        core.reads.add(reader, parked=not core.leads_surely)


def confirm_reads(core: Core) -> None:
    newest = core.rounds.newest
    confirmed = held_by_quorum(
        core.voters, lambda name: newest if name == core.name else core.progress[name].acked_round
    )
    for index, readers in core.reads.confirmed(confirmed):
        _answer_read(core, index, readers)


def advance_commit(core: Core) -> None:
    """Commit what a quorum holds on disk, if it is of this term (5.4.2, trap 1). This member's own disk counts like any
    other: not before it is durable, and alone it is the quorum (trap 36)."""
    log = core.log
    index = held_by_quorum(core.voters, lambda name: log.persisted if name == core.name else core.progress[name].match)
    if index > core.commit and log.term_at(index) == core.term:
        core.commit = index
        core.reads.unpark()
        pin = membership_to_pin(core)
        if pin is not None:
            core.append_membership(pin)


def membership_to_pin(core: Core) -> Membership | None:
    """The membership in force with what this leader has learned since: the group's number, and the incarnation of each
    member heard. None when it is all known, when the last change has not committed yet, or while handing over, since
    one more entry would make the target's log too short."""
    index, membership = core.history.latest_index, core.membership
    if index > core.commit or core.transfer_state is not None:
        return None
    pinned = membership
    if not pinned.group_number:
        pinned = Membership(pinned.members, core.rng.getrandbits(64) | 1)
    for name, incarnation in [*core.seen.items(), (core.name, core.incarnation)]:
        record = pinned.members.get(name)
        if record is not None and not record.incarnation:
            pinned = pinned.with_incarnation(name, incarnation)
    return pinned if pinned is not membership else None


def _answered(core: Core, sender: str, term: int) -> Progress | None:
    """The leader's view of `sender`, if an answer of that term is for this leader; a newer term ends it."""
    if term > core.term:
        core.become_follower(term, None, f"{sender} is in a newer term")
        return None
    if core.role != LEADER or term < core.term:
        return None
    return core.progress.get(sender)


def _ends_a_batch(core: Core, index: int) -> bool:
    """An honest acknowledgement names an index this leader sent as the end of a batch, or one long committed."""
    return index < core.log.base or core.log.ends_batch(index)


def _refused(core: Core, sender: str, progress: Progress, message: AppendResponse) -> None:
    """Our logs differ at `message.index`. Find an earlier place in one step with the follower's hint (5.3)."""
    if progress.state == REPLICATE:
        # Not for one sent before the present attempt began: when messages overtake each other, each of a whole window
        # is refused, and every such answer would cost another window.
        if message.index >= progress.match and message.round >= progress.probe_round:
            progress.become_probe(progress.match + 1)
            progress.probe_round = core.rounds.begin(core.now)
        return
    if progress.state != PROBE or message.index != progress.next - 1:
        return
    progress.paused = False
    if message.index <= progress.match:
        # It acknowledged this once, and lost it: a damaged disk. It no longer counts for what it does not hold.
        progress.match = 0
    log = core.log
    if message.index <= log.base or message.hint_index < log.base:
        snapshot.offer(core, sender, progress)
        return
    index, _ = log.newest_not_above(message.hint_index, message.hint_term)
    if index >= message.index:
        index = log.batch_at(message.index).first - 1
    progress.next = max(progress.match, index) + 1


def _note_round(core: Core, progress: Progress, number: int) -> None:
    if progress.acked_round < number <= core.rounds.newest:
        progress.acked_round = number
        sent_at = core.rounds.sent_at(number)
        if sent_at is not None:
            progress.contact = max(progress.contact, sent_at)
        confirm_reads(core)


def _answer_read(core: Core, index: int, readers: list[Reader]) -> None:
    local = []
    for reader in readers:
        if isinstance(reader, int):
            local.append(reader)
        else:
            follower, number = reader
            core.send(follower, ReadResponse(core.term, number, index))
    if local:
        core.command(ReadOk(local, index))


# ---------------------------------------------------------------------------------------------------------------------
# The follower.


def follow(core: Core, sender: str, term: int) -> bool:
    """A message from a leader of `term`. False: it is an old one, to be told."""
    if term < core.term:
        return False
    if term == core.term and core.leader not in (None, sender):
        core.halt(f"{core.leader} and {sender} both lead term {term}: two members share a name or a vote was forgotten")
        return False
    if core.role != FOLLOWER or core.leader != sender or term > core.term:
        core.become_follower(term, sender, f"{sender} leads")
        # What an older leader said is not this one's: it may be behind, and have stamped entries since.
        core.clock_base = 0
        core.vetoes = 0
    core.leader_contact = core.now
    election.reset_timer(core)
    return True


def on_append(core: Core, sender: str, message: Append) -> None:
    if not follow(core, sender, message.term):
        if not core.halted:
            core.send(sender, AppendResponse(core.term, False, message.prev_index, 0))
        return
    batches, previous, term = message.batches, message.prev_index, message.prev_term
    if previous < core.commit:
        # What is committed is the same in every leader's log; only what follows can be news.
        batches = [batch for batch in batches if batch.first > core.commit]
        previous, term = core.commit, core.log.term_at(core.commit) or 0
    if not _well_formed(batches, previous, term, message.term):
        return
    if core.log.term_at(previous) != term:
        hint_index, hint_term = core.log.newest_not_above(previous, term)
        stalled = core.disk_stalled()
        core.send(
            sender,
            AppendResponse(core.term, False, message.prev_index, message.round, hint_index, hint_term, stalled),
        )
        return
    if not _fits(core, batches, previous):
        return
    _accept(core, batches)
    # Exactly what this message proved, not where the log happens to end (trap 14).
    index = batches[-1].last if batches else previous
    core.verified = max(core.verified, index)
    _follow_commit(core, message.commit, index)
    core.send_when_durable(sender, AppendResponse(core.term, True, index, message.round, disk_slow=core.disk_stalled()))


def on_heartbeat(core: Core, sender: str, message: Heartbeat) -> None:
    if not follow(core, sender, message.term):
        if not core.halted:
            core.send(sender, HeartbeatResponse(core.term, 0, 0))
        return
    _follow_commit(core, message.commit, core.verified)
    if message.round > core.answered_round:
        core.answered_round = message.round
        core.send(sender, HeartbeatResponse(core.term, message.round, core.verified, core.disk_stalled()))


def on_read_response(core: Core, sender: str, message: ReadResponse) -> None:
    if message.term != core.term or core.leader != sender:
        return
    ids = core.forwarded.answered(message.number)
    if ids:
        core.command(ReadOk(ids, message.index) if message.index else ReadFailed(ids))


def on_propose_response(core: Core, sender: str, message: ProposeResponse) -> None:
    if message.term > core.term:
        core.become_follower(message.term, None, f"{sender} is in a newer term")
    elif message.term == core.term and core.leader == sender:
        core.command(ProposalsTaken(message.stream, message.expected, message.accepting))


def forward_reads(core: Core) -> None:
    """Ask the leader on behalf of all local reads of this turn, or again if it did not answer."""
    assert core.leader is not None
    number = core.forwarded.ask(core.now, core.read_retry)
    if number is not None:
        core.send(core.leader, ReadRequest(core.term, number))


def _accept(core: Core, batches: list[Batch]) -> None:
    """Append what is new; drop our own tail only where it truly conflicts, not because it is longer (trap 13)."""
    log = core.log
    for batch in batches:
        if log.term_at(batch.first) == batch.term:
            continue
        if batch.first <= log.last_index:
            core.truncate_from(batch.first)
        core.append(batch)


def _follow_commit(core: Core, committed: int, verified: int) -> None:
    """Never past what this leader was seen to share with us, whatever it claims (trap 17), and never into a batch."""
    index = min(committed, verified)
    if committed <= max(index, core.commit):
        core.fresh_at = core.now
    if index > core.commit:
        core.commit, _ = core.log.newest_not_above(index, core.term)
        if core.pull is not None and core.pull.meta.index <= core.commit:
            # The log has caught up by itself; a pull nobody serves any more must not keep us from campaigning.
            core.pull = None


def _fits(core: Core, batches: list[Batch], previous: int) -> bool:
    """Could an honest leader whose log shares `previous` with ours have sent these? Members share whole batches, and a
    leader never takes back what it has itself shown us in its term."""
    log = core.log
    if not log.ends_batch(previous):
        return False
    for batch in batches:
        if batch.first > log.last_index:
            break
        held = log.batch_at(batch.first)
        if held.term != batch.term:
            return batch.first > core.verified
        if held.last != batch.last:
            return False
    return True


def _well_formed(batches: list[Batch], previous: int, term: int, leader_term: int) -> bool:
    """Does the run follow on from (previous, term), and could a leader of `leader_term` have sent it?"""
    for batch in batches:
        if batch.first != previous + 1 or not term <= batch.term <= leader_term:
            return False
        if batch.kind == MEMBERSHIP:
            try:
                membership_in(batch)
            except ValueError:
                return False
        previous, term = batch.last, batch.term
    return True
