"""One turn of one member: an input, what the real core makes of it, and what its driver then does.

A turn is a function of the member and the input, so each pair is tried once, however many states of the group it
occurs in. What holds of a member by itself is checked here, in the same breath; what it has to do with the others is
handed up as a `Turn`'s claims.

A turn is atomic, as in the driver: `take()` until nothing more comes, each command performed in order. A crash in the
middle of it brings nothing new: what was not sent is as if lost, what was not written is as if not kept.

What must not live here: the group (`exhaustive.search`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coord.raft.batch import Batch, encode_entry
from coord.raft.core import Core
from coord.raft.messages import (
    Append,
    AppendResponse,
    Apply,
    Halt,
    Heartbeat,
    HeartbeatResponse,
    Persist,
    ReadOk,
    ReadRequest,
    ReadResponse,
    Send,
    VoteRequest,
    VoteResponse,
)
from coord.raft.roles import CANDIDATE, LEADER, PRE_CANDIDATE
from exhaustive.frozen import (
    INCARNATIONS,
    LATE,
    NAMES,
    NOW,
    NUMBERS_OF_A_LIFE,
    FrozenDisk,
    FrozenMessage,
    FrozenSend,
    Local,
    forget_times,
    freeze,
    freeze_log,
    freeze_message,
    start,
    thaw,
    thaw_message,
)
from exhaustive.scope import FREE, INSTANT, REAL, Scope

#: ("timeout",), ("pre-vote",), ("beat",), ("propose",), ("read", id), ("sync", count), ("crash", kept),
#: ("deliver", late, (sender, message), ...), with more than one message when they arrive within one turn, or
#: ("cut short", input): the process ends with the turn, before the disk has done anything of what it was asked for.
Input = tuple[Any, ...]
#: (place of the member, input): one step of a story.
Step = tuple[int, Input]


class Violation(AssertionError):
    """Something that must never happen has."""


def require(condition: object, wrong: str) -> None:
    if not condition:
        raise Violation(wrong)


@dataclass
class Turn:
    """What came of an input."""

    local: Local
    sends: set[FrozenSend] = field(default_factory=set)
    #: It says so to `to`: (to, term, index, term of that entry); on its disk, or only in its log.
    acknowledged: set[tuple[str, int, int, int | None]] = field(default_factory=set)
    agreed: set[tuple[str, int, int, int | None]] = field(default_factory=set)
    #: (read, index)
    reads: set[tuple[int, int]] = field(default_factory=set)
    #: An index it answers another's read with.
    told: set[int] = field(default_factory=set)
    won: bool = False
    committed: bool = False
    log_changed: bool = False

    @property
    def claims(self) -> bool:
        """Is there anything that others could contradict?"""
        return bool(
            self.acknowledged
            or self.agreed
            or self.reads
            or self.told
            or self.won
            or self.committed
            or self.log_changed
        )


class Process:
    """A live core, its disk, and its driver. The search makes one for each turn; a story keeps them."""

    def __init__(self, core: Core, disk: FrozenDisk, scope: Scope) -> None:
        self.core = core
        self.disk = disk
        self._scope = scope
        #: Hard states that were durable at some moment of this turn.
        self._durable = [disk.hard_state]
        #: Votes told in this turn, by term.
        self._votes: dict[int, str] = {}
        self._made = Turn(None)  # type: ignore[arg-type]

    @classmethod
    def thawed(cls, local: Local, scope: Scope) -> Process:
        return cls(thaw(local, scope.settings()), local.disk, scope)

    def turn(self, given: Input) -> Turn:
        """Take `given` in. Raises Violation."""
        core = self.core
        forget_times(core)
        before = freeze(core, self.disk)
        self._durable, self._votes, self._made = [self.disk.hard_state], {}, Turn(before)
        restarted = given[0] in ("crash", "cut short")
        try:
            self._take_in(given[1] if given[0] == "cut short" else given)
            self._work()
            if given[0] == "cut short":
                self._restart()
            elif self._scope.disk_answers == INSTANT:
                while self.core._in_flight:
                    self.core.persisted(NOW, self._sync(len(self.core._in_flight)))
                    self._work()
        except Violation:
            raise
        except AssertionError as error:
            # The core states some of what must hold itself.
            raise Violation(f"the core's own assertion: {error}") from error
        core = self.core
        forget_times(core)
        made = self._made
        made.local = freeze(core, self.disk)
        if not self._scope.harm_only:
            _check_step(before, made.local, restarted=restarted)
        made.won = core.role == LEADER and (before.core.role, before.core.term) != (LEADER, core.term)
        made.committed = core.commit > before.core.commit or (restarted and core.commit > 0)
        made.log_changed = made.local.core.log != before.core.log
        return made

    def _take_in(self, given: Input) -> None:
        core, kind = self.core, given[0]
        if kind == "timeout":
            core.tick(NOW + LATE)
            if core.role == PRE_CANDIDATE and self._scope.pre_votes == INSTANT:
                self._take_in(("pre-vote",))
        elif kind == "beat":
            core.tick(NOW + core.settings.heartbeat)
        elif kind == "pre-vote":
            # Whose it is does not matter: with its own, it is a majority.
            other = next(name for name in NAMES if name != core.name)
            core.step(NOW, other, INCARNATIONS[other], VoteResponse(core.term + 1, True, True))
        elif kind == "propose":
            require(core.propose(NOW, [encode_entry(b"")]), "a leader refuses a proposal")
        elif kind == "read":
            core.read(NOW, given[1])
        elif kind == "sync":
            core.persisted(NOW, self._sync(given[1]))
        elif kind == "crash":
            self._sync(given[1])
            self._restart()
        else:
            assert kind == "deliver", f"unknown: {given!r}"
            _, late, *messages = given
            for sender, message in messages:
                core.step(NOW + late * LATE, sender, INCARNATIONS[sender], thaw_message(message))

    def _restart(self) -> None:
        core = self.core
        number = core.forwarded.number
        if self._scope.reads:
            number = (number // NUMBERS_OF_A_LIFE + 1) * NUMBERS_OF_A_LIFE
        self.core = start(core.name, self.disk, core.settings, number)

    def _sync(self, count: int) -> int:
        """The oldest `count` writes become durable; the last one's number."""
        seq = 0
        for persist, _, _, _ in list(self.core._in_flight)[:count]:
            self._write(persist)
            seq = persist.seq
        return seq

    def _keeps(self, term: int, vote: str) -> bool:
        """Can it never vote for another in `term`? So it is when the disk knows this vote; or a newer term, as when it
        heard of that within the turn of its vote."""
        before = self._votes.setdefault(term, vote)
        return before == vote and ((term, vote) in self._durable or self.disk.hard_state[0] > term)

    def _promise(self, condition: object, wrong: str) -> None:
        """Breaking it does no harm by itself."""
        require(condition or self._scope.harm_only, wrong)

    def _write(self, persist: Persist) -> None:
        (term, vote), log, _ = self.disk
        if persist.truncate_from is not None:
            log = tuple(batch for batch in log if batch[2] < persist.truncate_from)
        for batch in freeze_log(persist.batches):
            end = log[-1][2] + log[-1][3] if log else 1
            require(batch[2] == end, f"writes entry {batch[2]} after {end - 1}")
            log = (*log, batch)
        if persist.hard_state is not None:
            new = persist.hard_state
            self._promise(new.term >= term, f"term {new.term} is written over {term}")
            if new.term == term:
                self._promise(vote in ("", new.vote), f"voted for {vote} in term {term}, now for {new.vote!r}")
            term, vote = new.term, new.vote
        self.disk = FrozenDisk((term, vote), log, persist.commit)
        self._durable.append((term, vote))

    def _work(self) -> None:
        core = self.core
        while commands := core.take():
            for command in commands:
                if isinstance(command, Send):
                    self._send(command)
                elif isinstance(command, ReadOk):
                    self._made.reads |= {(number, command.index) for number in command.ids}
                elif isinstance(command, Apply):
                    self._apply(command.batches)
                elif isinstance(command, Halt):
                    raise Violation(f"halts: {command.reason}")

    def _apply(self, batches: list[Batch]) -> None:
        require(batches[0].first == self.core.applied + 1, f"applies {batches[0]!r} after {self.core.applied}")
        self.core.applied_to(batches[-1].last)

    def _send(self, send: Send) -> None:
        """A message may say no more than this member's disk would remember, and nothing it is not."""
        message, core, disk, made = send.message, self.core, self.disk, self._made
        free = self._scope.pre_votes != REAL and isinstance(message, VoteRequest | VoteResponse) and message.pre
        if free:
            return
        made.sends.add((send.to, freeze_message(message)))
        term = message.term
        if isinstance(message, VoteRequest | VoteResponse) and message.pre:
            return
        told = type(message).__name__
        self._promise(term <= disk.hard_state[0], f"{told} in term {term}, its disk knows {disk.hard_state[0]}")
        if isinstance(message, VoteRequest):
            self._promise(self._keeps(term, core.name), f"stands in term {term}, its disk says {self._durable}")
        elif isinstance(message, VoteResponse) and message.granted:
            self._promise(self._keeps(term, send.to), f"votes for {send.to} in {term}, its disk says {self._durable}")
        elif isinstance(message, Append | Heartbeat):
            self._promise(core.role == LEADER and core.term == term, f"{told} in term {term}, and does not lead in it")
        elif isinstance(message, AppendResponse) and message.success:
            held = log_term(disk.log, message.index)
            self._promise(held is not None, f"acknowledges {message.index}, its disk ends at {log_end(disk.log)}")
            if term == core.term:
                known = core.log.term_at(message.index)
                self._promise(
                    held == known, f"acknowledges {message.index} of term {known}, its disk has one of {held}"
                )
            made.acknowledged.add((send.to, term, message.index, held))
        elif isinstance(message, HeartbeatResponse) and message.verified:
            made.agreed.add((send.to, term, message.verified, core.log.term_at(message.verified)))
        elif isinstance(message, ReadResponse) and message.index:
            made.told.add(message.index)


def _check_step(before: Local, after: Local, *, restarted: bool) -> None:
    old, new = before.core, after.core
    disk = after.disk
    require(disk.hard_state[0] >= before.disk.hard_state[0], f"term {disk.hard_state[0]} on disk, was {before.disk}")
    require(new.commit <= log_end(new.log), f"committed {new.commit}, the log ends at {log_end(new.log)}")
    require(new.persisted <= log_end(new.log), f"durable {new.persisted}, the log ends at {log_end(new.log)}")
    for index in range(1, new.persisted + 1):
        held, known = log_term(disk.log, index), log_term(new.log, index)
        require(held == known, f"takes entry {index} of term {known} for durable, its disk has one of {held}")
    if restarted:
        require(new.role not in (PRE_CANDIDATE, CANDIDATE, LEADER), f"starts as {new.role}")
        return
    require(new.term >= old.term, f"term {new.term} after {old.term}")
    if new.term == old.term:
        require(old.vote in ("", new.vote), f"voted for {old.vote} in term {new.term}, now for {new.vote!r}")
    require(new.commit >= old.commit, f"commit {new.commit} after {old.commit}")
    for index in range(1, old.commit + 1):
        was, now = log_term(old.log, index), log_term(new.log, index)
        require(was == now, f"entry {index} was committed with term {was}, and is now of {now}")
        held, holds = log_term(before.disk.log, index), log_term(disk.log, index)
        require(held != was or holds == was, f"entry {index} of term {was} was committed; the disk drops it")
    if old.role == new.role == LEADER and old.term == new.term:
        require(new.log[: len(old.log)] == old.log, f"leads, and changes its log from {old.log} to {new.log}")


def log_end(log: tuple[tuple[int, int, int, int], ...]) -> int:
    return log[-1][2] + log[-1][3] - 1 if log else 0


def log_term(log: tuple[tuple[int, int, int, int], ...], index: int) -> int | None:
    """Term of the entry at `index`; 0 before the first; None: not there."""
    if index == 0:
        return 0
    for _, term, first, count in log:
        if first <= index < first + count:
            return term
    return None


def inputs(local: Local, scope: Scope, reads: int) -> list[Input]:
    """What may happen to this member besides messages and crashes; `reads` were asked before."""
    core = local.core
    found: list[Input] = []
    if core.role == LEADER or core.term < scope.terms:
        found.append(("timeout",))
    if core.role == PRE_CANDIDATE and scope.pre_votes == FREE:
        found.append(("pre-vote",))
    if core.reign is not None:
        if core.reign.rounds < scope.rounds:
            found.append(("beat",))
        if log_end(core.log) < scope.entries:
            found.append(("propose",))
    if reads < scope.reads:
        found.append(("read", reads + 1))
    waiting = len(core.in_flight)
    found += [("sync", count) for count in sorted({1, waiting}) if waiting]
    return found


def deliveries(local: Local, scope: Scope, sender: str, message: FrozenMessage) -> list[Input]:
    """In how many ways this message may arrive: at once, or late, where that can make a difference."""
    kind, reign = message[0], local.core.reign
    if reign is not None and kind is ReadRequest:
        # Each time it arrives it begins another round, or waits once more: without bound, but for this.
        full = reign.rounds >= scope.rounds or (sender, message[2]) in reign.parked
        return [] if full else [("deliver", False, (sender, message))]
    if kind is VoteRequest:
        return [("deliver", late, (sender, message)) for late in ((False, True) if scope.stickiness else (True,))]
    if kind is HeartbeatResponse:
        return [("deliver", late, (sender, message)) for late in (False, True)]
    return [("deliver", False, (sender, message))]
