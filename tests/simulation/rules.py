"""Rules: what may change inside a member, and when; and what all members together may never come to (reliability 3.2).

Looked at after every step, from outside and with knowledge no member has; each check looks only at what changed. What
must not live here: what messages promise (`promises`), what clients are told (`replies`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.raft.batch import COMMANDS, MEMBERSHIP, Batch
from coord.raft.core import Core
from coord.raft.membership import membership_in
from coord.raft.messages import (
    AnyMessage,
    Append,
    Apply,
    Command,
    Heartbeat,
    InstallSnapshot,
    Keepalive,
    KeepaliveResponse,
    Persist,
    Propose,
    ReadOk,
    SnapshotOffer,
    TimeoutNow,
    VoteRequest,
)
from coord.raft.progress import REPLICATE
from coord.raft.roles import CANDIDATE, LEADER
from coord.reads import Read
from coord.testing.process import Process
from simulation.promises import snapshot_of
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.world import World

#: So many of a member's streams a leader must know apart; a later one may push out the oldest.
_STREAMS_REMEMBERED = 4
_FROM_LEADERS = (Append, Heartbeat, SnapshotOffer)
#: How the command that ends somebody else's session begins.
_EXPIRE = b"\x93\x02"
_NANOSECONDS = 1_000_000_000
#: Seconds: what is lost where clocks are converted.
_ROUNDING = 1e-5


class FlooredRead(Read):
    """A linearizable read that knows how much was committed when it was invoked, and when that was."""

    __slots__ = ("floor", "invoked")

    floor: int
    invoked: float


class Seen:
    """A member as it was when last looked at."""

    __slots__ = ("applied", "commit", "last", "role", "term", "vote")

    def __init__(self, core: Core) -> None:
        self.term, self.vote, self.role = core.term, core.vote, core.role
        self.commit, self.applied, self.last = core.commit, core.applied, core.log.last_index


class Rules:
    def __init__(self, world: World, truth: Truth) -> None:
        self._world = world
        self._truth = truth
        self._require = truth.require
        #: (first index, term) to (the batch's bytes, term of the entry before it).
        self._appended: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        self._seen: dict[str, Seen] = {}
        #: When each member, by its clock, last followed somebody, or might have before it started.
        self._followed: dict[str, float] = {}
        #: Which term's leader each member last followed, and when, in the world's time.
        self._loyal: dict[str, tuple[int, float]] = {}
        #: (term, sender): of its newest streams of proposals, how many entries the leader has taken.
        self._taken: dict[tuple[int, str], dict[int, int]] = {}
        #: Before the present step: end of log, term, vote, and what a leader thought of the sender.
        self._before: tuple[int, int, int, str, tuple[int, int]] = (0, 0, 0, "", (0, 0))
        #: (term, member): when it last followed that term's leader, in the world's time.
        self._followed_in: dict[tuple[int, str], float] = {}
        #: (leader, session, number of a renewal): when the leader's process heard it, by its own clock and the world's.
        self._renewals: dict[tuple[str, int, int], tuple[float, float]] = {}
        #: (leader, session): when the newest renewal arrived that was acknowledged, by the leader's clock; and since
        #: when each leads.
        self._renewed: dict[tuple[str, int], float] = {}
        self._leads_since: dict[str, float] = {}
        #: (term, session): its end was proposed in that term.
        self._ending: set[tuple[int, int]] = set()

    # -----------------------------------------------------------------------------------------------------------------
    # A start.

    def started(self, process: Process) -> None:
        core = process.replica.core
        self._require(core.role not in (LEADER, CANDIDATE), "leads or stands from the start (trap 6)", process)
        if not self._world.atlas.harm(process.name):
            self._require(
                core.commit <= self._truth.committed, "starts with more committed than ever was (trap 43)", process
            )
            self._agrees(process, core.commit)
            self._same_state(process)
        if core.vote:
            self._truth.note("started with a vote")
        self._seen[process.name] = Seen(core)
        # One that knew no term has answered nobody.
        self._followed[process.name] = process.local() if core.term else float("-inf")

    def _same_state(self, process: Process) -> None:
        machine = process.replica.machine
        known = self._truth.hashes.get(machine.applied_index)
        self._require(known == machine.state_hash, f"I7: another state at {machine.applied_index}", process)

    # -----------------------------------------------------------------------------------------------------------------
    # Steps.

    def before_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        core = process.replica.core
        self._before = core.log.last_term, core.log.last_index, core.term, core.vote, _opinion(core, sender)
        if type(message) is Keepalive:
            key = process.name, message.session, message.number
            # The first copy counts: what was acknowledged is that its owner lived then.
            self._renewals.setdefault(key, (process.local(), self._world.timeline.now))

    def after_step(self, process: Process, sender: str, message: AnyMessage) -> None:
        core, kind = process.replica.core, type(message)
        last_term, last_index, term, vote, opinion = self._before
        if kind is VoteRequest and core.vote == sender and (core.term, core.vote) != (term, vote):
            assert isinstance(message, VoteRequest)
            self._require(
                (message.last_term, message.last_index) >= (last_term, last_index),
                f"votes for {sender}, whose log ends at {message.last_index}/{message.last_term}",
                process,
            )
            if not message.transfer:
                self._no_promise_broken(process)
        elif kind is Propose and core.role == LEADER and message.term == core.term:
            assert isinstance(message, Propose)
            self._took(process, sender, message, last_index)
        elif message.term < term and kind is not VoteRequest:
            self._require(
                (core.log.last_index, core.term, _opinion(core, sender)) == (last_index, term, opinion),
                f"R4: {kind.__name__} of term {message.term} from {sender} changes it",
                process,
            )
        elif core.vote == process.name and vote != process.name and kind is not TimeoutNow:
            self._no_promise_broken(process)
        if kind in _FROM_LEADERS and core.leader == sender and core.term == message.term:
            self._followed[process.name] = process.local()
            self._loyal[process.name] = core.term, self._world.timeline.now
            self._followed_in[core.term, process.name] = self._world.timeline.now
        self.after_input(process)

    def _no_promise_broken(self, process: Process) -> None:
        """Trap 32: a lease is a promise of every follower to elect nobody else for the shortest timeout."""
        settings = process.replica.core.settings
        if settings.lease_reads:
            silence = process.local() - self._followed[process.name]
            self._require(silence >= settings.election_timeout[0], f"votes {silence:.3f} after it followed", process)

    def _took(self, process: Process, sender: str, message: Propose, last_index: int) -> None:
        """A leader takes a member's entries in order, without a gap, and none twice within a stream it remembers."""
        core = process.replica.core
        streams = self._taken.setdefault((core.term, sender), {})
        taken = streams.get(message.stream, 0)
        count = core.log.last_index - last_index
        appended = [
            payload for batch in core.log.between(last_index + 1, core.log.last_index) for payload in batch.payloads()
        ]
        expected = [entry[4:] for entry in message.entries[taken - message.number :]] if message.number <= taken else []
        self._require(
            appended == expected[:count],
            f"took other entries of {sender}'s stream {message.stream:x} than those from {taken} on",
            process,
        )
        streams[message.stream] = taken + count
        if len(streams) > _STREAMS_REMEMBERED:
            del streams[next(iter(streams))]

    # -----------------------------------------------------------------------------------------------------------------
    # Commands.

    def before_command(self, process: Process, command: Command) -> None:
        self.after_input(process)
        kind = type(command)
        if kind is Persist:
            assert isinstance(command, Persist)
            self._on_persist(process, command)
        elif kind is ReadOk:
            assert isinstance(command, ReadOk)
            self._on_read_ok(process, command)
        elif kind is Apply:
            assert isinstance(command, Apply)
            self._require(
                command.batches[-1].last <= self._truth.committed, "I5: applies what is not committed", process
            )

    def _on_persist(self, process: Process, persist: Persist) -> None:
        core, log = process.replica.core, process.replica.core.log
        view = self._world.disks[process.name].view
        if persist.reset is not None:
            self._require(
                view.term_at(persist.reset.index) != persist.reset.term or view.last <= persist.reset.index,
                f"drops what its log holds beyond snapshot {persist.reset.index}",
                process,
            )
        if persist.truncate_from is not None:
            self._truth.note("truncated")
            self._require(core.role != LEADER, "I2: a leader takes back what it appended", process)
            index = persist.truncate_from
            held = view.term_at(index)
            if held is not None and index <= self._truth.committed:
                self._require(
                    held != self._truth.golden_at(index).term or index <= view.base,
                    f"R4: takes back entry {index} of term {held}, which is committed",
                    process,
                )
        for batch in persist.batches:
            before = log.term_at(batch.first - 1)
            known = self._appended.setdefault((batch.first, batch.term), (batch.data, before))
            self._require(
                known[0] == batch.data and (before is None or known[1] is None or before == known[1]),
                f"I3: two different batches are {batch!r}, or what stands before them differs",
                process,
            )
            if batch.first - 1 > log.base:
                earlier = log.batch_at(batch.first - 1)
                self._require(earlier.time <= batch.time, f"time falls from {earlier!r} to {batch!r}", process)
            if core.role == LEADER and batch.term == core.term:
                self._leader_appends(process, batch)

    def _leader_appends(self, process: Process, batch: Batch) -> None:
        core = process.replica.core
        if batch.kind == MEMBERSHIP and batch.first != core.term_start:
            self._require(
                core.commit >= core.term_start and process.replica.core.history.at(batch.first - 1)[0] <= core.commit,
                "R6: changes the membership before its term, or the last change, has committed",
                process,
            )
        if batch.kind == MEMBERSHIP:
            voters = set(membership_in(batch).voters)
            self._require(voters == set(self._world.names), f"the voters become {sorted(voters)}", process)
        elif batch.kind == COMMANDS:
            for payload in batch.payloads():
                if payload[:2] == _EXPIRE:
                    self._expires(process, payload)

    def _expires(self, process: Process, payload: bytes) -> None:
        """S1: a leader ends a session only when it has led, and acknowledged no renewal that reached it, for a whole
        ttl."""
        session = process.replica.machine.sessions.get(self._world.replies.session_in(payload))
        if session is None:
            return
        self._truth.note("session expired")
        now, own = process.local(), process.replica.own.lease
        renewed = self._renewed.get((process.name, session.id), float("-inf"))
        if own.session == session.id:
            renewed = own.confirmed_at
        silent, leads, ttl = now - renewed, now - self._leads_since[process.name], session.ttl / _NANOSECONDS
        self._require(
            min(silent, leads) >= ttl,
            f"S1: ends the session of {session.owner}, renewed {silent:.3f} ago, leading for {leads:.3f}, ttl {ttl:g}",
            process,
        )
        self._ending.add((process.replica.core.term, session.id))

    def acknowledges(self, process: Process, message: KeepaliveResponse) -> None:
        """S6: what the owner of a session may rely on for a whole ttl. Another leader may have been elected; an end of
        the session may be on its way, this leader's own or one that an older leader left behind."""
        if not message.alive:
            return
        core, session = process.replica.core, message.session
        local, heard = self._renewals[process.name, session, message.number]
        self._acknowledged(process, session, heard)
        self._require(core.role == LEADER, f"S6: renews session {session:x}, and does not lead", process)
        self._renewed[process.name, session] = max(local, self._renewed.get((process.name, session), local))

    def lease_confirmed(self, process: Process, session: int, sent: float) -> None:
        """S6: a leader's own session is renewed like any other; by what it `sent`, by its clock, while it led."""
        if process.replica.core.role == LEADER and sent > self._leads_since[process.name]:
            self._acknowledged(process, session, self._world.time_of(process.name, sent) - _ROUNDING)

    def _acknowledged(self, process: Process, session: int, since: float) -> None:
        core = process.replica.core
        self._require(core.leads_surely, f"S6: renews session {session:x} before it has committed in its term", process)
        self._require(
            (core.term, session) not in self._ending,
            f"S6: renews session {session:x}, whose end it has proposed",
            process,
        )
        if core.settings.lease_reads:
            # By its lease nobody can be elected yet, which is as good.
            since = min(
                since, self._world.timeline.now - core.settings.election_timeout[0] / max(self._world.knobs.rates)
            )
        following = {name for name in self._world.names if self._followed_in.get((core.term, name), -1.0) >= since}
        self._require(
            self._truth.is_majority(len(following | {process.name})),
            f"S6: renews session {session:x}, and only {sorted(following)} have followed it since it was asked",
            process,
        )

    # -----------------------------------------------------------------------------------------------------------------
    # What changed in a member.

    def after_input(self, process: Process) -> None:
        core, seen = process.replica.core, self._seen[process.name]
        if (core.term, core.vote, core.role, core.commit) == (seen.term, seen.vote, seen.role, seen.commit):
            return
        if core.term != seen.term:
            self._require(core.term > seen.term, f"I6: term falls from {seen.term}", process)
        elif core.vote != seen.vote:
            self._require(not seen.vote, f"trap 3: vote {seen.vote!r} becomes {core.vote!r} in its term", process)
        if core.role == LEADER and (seen.role != LEADER or core.term != seen.term):
            self._elected(process)
        if core.commit != seen.commit:
            self._require(core.commit > seen.commit, f"I6: commit falls from {seen.commit}", process)
            self._committed(process)
        self._seen[process.name] = Seen(core)

    def after_turn(self, process: Process) -> None:
        core, log = process.replica.core, process.replica.core.log
        self.after_input(process)
        seen, machine = self._seen[process.name], process.replica.machine
        self._require(core.applied >= seen.applied, f"I6: applied falls from {seen.applied}", process)
        order = core.applied, core.handed, core.commit, log.last_index
        self._require(
            list(order) == sorted(order) and machine.applied_index == core.applied,
            f"I6: applied {machine.applied_index}, handed, commit, last out of order: {order}",
            process,
        )
        seen.applied = core.applied
        if log.persisted > log.base:
            term, view = log.term_at(log.persisted), self._world.disks[process.name].view
            self._require(
                term is not None and (view.holds(log.persisted, term) or log.persisted <= snapshot_of(process)),
                f"thinks {log.persisted}/{term} is durable, its disk ends at {view.last}",
                process,
            )
        if core.role == LEADER:
            self._check_progress(process)
        elif core.leader is not None:
            self._check_verified(process)

    def _check_progress(self, process: Process) -> None:
        core = process.replica.core
        for name, progress in core.progress.items():
            self._require(
                progress.match < progress.next <= core.log.last_index + 1
                and (progress.state == REPLICATE or not progress.inflight)
                and not (progress.state == REPLICATE and progress.paused)
                and progress.acked_round <= core.rounds.newest
                and len(progress.inflight) <= core.settings.max_inflight_messages,
                f"its view of {name} is impossible: {progress.state} {progress.match} {progress.next}",
                process,
            )

    def _check_verified(self, process: Process) -> None:
        core = process.replica.core
        assert core.leader is not None
        leader = self._world.living(core.leader)
        if leader is None or leader.replica.core.role != LEADER or leader.replica.core.term != core.term:
            return
        log = leader.replica.core.log
        theirs, ours = log.term_at(core.verified), core.log.term_at(core.verified)
        self._require(
            core.verified <= log.last_index and (theirs == ours or None in (theirs, ours)),
            f"R3: takes {core.verified} for shared: {ours} here, {theirs} at its leader",
            process,
        )

    def _elected(self, process: Process) -> None:
        core, truth = process.replica.core, self._truth
        truth.note("elected")
        self._leads_since[process.name] = process.local()
        before = truth.leaders.setdefault(core.term, process.name)
        self._require(before == process.name, f"I1: {before} led term {core.term}", process)
        self._require(not self._world.atlas.is_wiped(process.name), "one that lost its disk leads", process)
        kept = self._world.disks[process.name].view.hard_state
        self._require((kept.term, kept.vote) == (core.term, process.name), f"R1: its own vote: {kept}", process)
        votes = {voter for (term, voter), who in truth.votes.items() if term == core.term and who == process.name}
        votes.add(process.name)
        self._require(truth.is_majority(len(votes)), f"R1: elected by {sorted(votes)} in term {core.term}", process)
        self._no_lease_of_another(process)
        # I4. Not "all committed so far": votes may be late, and an older leader may commit meanwhile. What was
        # committed in an older term is here.
        index = truth.golden_before(core.term)
        if index > core.log.base:
            self._require(
                core.log.term_at(index) == truth.golden_at(index).term,
                f"I4: elected without entry {index} of term {truth.golden_at(index).term}, committed before",
                process,
            )

    def _no_lease_of_another(self, process: Process) -> None:
        """Lease exclusivity: while a leader may answer reads alone, nobody is elected in a newer term. One that finds
        late votes of an older term leads nobody."""
        for other in self._world.alive():
            core = other.replica.core
            if other is not process and core.role == LEADER and core.term < process.replica.core.term:
                self._require(
                    core.lease_until() <= other.local(),
                    f"elected within the lease of {other.name}",
                    process,
                )

    # -----------------------------------------------------------------------------------------------------------------
    # What is committed.

    def _committed(self, process: Process) -> None:
        core = process.replica.core
        if core.role == LEADER:
            self._rule_of_commit(process)
            self._agrees(process, min(core.commit, self._truth.committed))
            self._truth.extend(core)
        else:
            self._require(
                core.commit <= self._truth.committed, f"R3: commits {core.commit}, its leader has not", process
            )
        self._agrees(process, core.commit)

    def _rule_of_commit(self, process: Process) -> None:
        core = process.replica.core
        term = core.log.term_at(core.commit)
        self._require(term == core.term, f"R2: commits {core.commit} of term {term} (trap 1)", process)
        assert term is not None
        world = self._world
        holders = [
            name for name in world.names if world.atlas.harm(name) or world.disks[name].view.holds(core.commit, term)
        ]
        self._require(
            self._truth.is_majority(len(holders)),
            f"R2: commits {core.commit}, which only {holders} hold on disk",
            process,
        )

    def _agrees(self, process: Process, index: int) -> None:
        log = process.replica.core.log
        if index > log.base:
            self._require(
                log.term_at(index) == self._truth.golden_at(index).term,
                f"I5: has {index} of term {log.term_at(index)} for committed, it is of another",
                process,
            )

    def applied(self, process: Process, batch: Batch) -> None:
        """I5, I7: everybody goes through the same states."""
        machine = process.replica.machine
        self._require(
            self._truth.hashes.get(batch.last) == machine.state_hash, f"I7: another state after {batch!r}", process
        )

    def installed(self, process: Process, command: InstallSnapshot) -> None:
        """I8."""
        self._truth.note("snapshot installed")
        if process.failure is not None:
            return
        meta, machine = command.meta, process.replica.machine
        self._require(
            machine.applied_index >= meta.index, f"I8: at {machine.applied_index} after snapshot {meta.index}", process
        )
        self._same_state(process)
        self._require(
            self._truth.golden_at(meta.index).term == meta.term, f"I8: snapshot {meta.index} of {meta.term}", process
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Reads.

    def _on_read_ok(self, process: Process, command: ReadOk) -> None:
        asked = process.replica._reads._asked
        for number in command.ids:
            for read in asked.get(number, ()):
                if isinstance(read, FlooredRead):
                    self._read_answered(process, read, command.index)

    def _read_answered(self, process: Process, read: FlooredRead, index: int) -> None:
        core, truth = process.replica.core, self._truth
        self._require(
            index >= read.floor, f"R5: read at {index}, {read.floor} was committed before it was asked for", process
        )
        leads, leases = core.role == LEADER, core.settings.lease_reads
        # A follower may have left that leader within this very turn: then any leader will do.
        terms = [core.term] if leads else sorted({term for term, _ in self._loyal.values()})
        confirmed = any(self._majority_followed(term, read.invoked) for term in terms) or len(self._world.names) == 1
        if leads and leases and not confirmed:
            # By its lease: a majority has promised not to elect anybody yet. Each counts by its own clock.
            patience = core.settings.election_timeout[0] / max(self._world.knobs.rates)
            confirmed = self._majority_followed(core.term, self._world.timeline.now - patience)
            truth.note("read answered within a lease")
        if leads or not leases:
            self._require(confirmed, "a read is answered, and no majority followed its leader since", process)
        truth.note("read answered by its leader" if leads else "read answered to a follower")

    def _majority_followed(self, term: int, since: float) -> bool:
        """Whatever answers were on their way before `since` prove nothing (trap 31)."""
        following = {name for name, (followed, at) in self._loyal.items() if followed == term and at >= since}
        leader = self._truth.leaders.get(term)
        return self._truth.is_majority(len(following | ({leader} if leader is not None else set())))

    def answered(self, process: Process, read: FlooredRead) -> None:
        """The caller is told that the local state is new enough."""
        index = process.replica.machine.applied_index
        self._require(
            index >= read.floor, f"R5: a caller reads at {index}, {read.floor} was committed when it asked", process
        )


def _opinion(core: Core, sender: str) -> tuple[int, int]:
    progress = core.progress.get(sender)
    return (progress.match, progress.acked_round) if progress is not None else (0, 0)
