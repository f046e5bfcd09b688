"""One member as a value: its real `Core` and its disk, taken apart into tuples (`freeze`) and built again (`thaw`).

Equal members are equal tuples, so a search visits each once; and a member that was thawed is a copy, so inputs can be
tried on it without harm to anybody. Nothing of a core is left out silently: a field either is in the tuple, or follows
from others, or is constant here and asserted to be so, or is a time. `KNOWN_FIELDS` lists them all, and a test holds
that list against the classes: a field added to the core fails it until somebody decides which of these it is.

What is abstracted:

- *Time.* A frozen core remembers no times: thawed, everything it ever noted happened just now. What it does about time
  passed, an input says: it comes at once, or "late", after more than every timeout. So whether a timer has run out is a
  free choice at each input, which allows more than any clock would. Batches all bear the cluster time 0.
- *Chance.* Election timeouts are all the shortest: late is late. The number a follower's reads begin with is one
  thousand more with each life, for what is random there only has to differ.
- *Order* of what is sent at once: there is none, the network has none either.

What must not live here: which inputs there are (`exhaustive.turn`), what must hold (`exhaustive.rules`).
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any, NamedTuple

from coord.raft.batch import Batch, encode_entry, make_batch
from coord.raft.core import Core, Start
from coord.raft.membership import MemberRecord, Membership
from coord.raft.messages import (
    Append,
    AppendResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Persist,
    ReadRequest,
    ReadResponse,
    Send,
    VoteRequest,
    VoteResponse,
)
from coord.raft.progress import Progress
from coord.raft.read_index import Reader
from coord.raft.roles import CANDIDATE, LEADER, PRE_CANDIDATE
from coord.raft.settings import Settings

NAMES = ("a", "b", "c")
#: What every thawed core takes for the present.
NOW = 1000.0
#: Longer than every timeout.
LATE = 10.0
#: Of one life of a follower's reads to the next.
NUMBERS_OF_A_LIFE = 1000
#: The group knows itself: no membership entry is ever written, a leader's first entry is a no-op.
MEMBERSHIP = Membership({name: MemberRecord(f"ipc://{name}", position) for position, name in enumerate(NAMES, 1)}, 7)
INCARNATIONS = {name: record.incarnation for name, record in MEMBERSHIP.members.items()}

#: (kind, term, first, count)
FrozenBatch = tuple[int, int, int, int]
FrozenLog = tuple[FrozenBatch, ...]
#: (class, field, ...)
FrozenMessage = tuple[Any, ...]
#: To whom, and what.
FrozenSend = tuple[str, FrozenMessage]


class FrozenPersist(NamedTuple):
    """A write asked of the disk and not yet durable. `current`: no truncation has come since."""

    hard_state: tuple[int, str] | None
    truncate_from: int | None
    batches: FrozenLog
    commit: int
    responses: frozenset[FrozenSend]
    current: bool
    last_index: int


class FrozenProgress(NamedTuple):
    """A leader's view of one follower."""

    state: str
    match: int
    next: int
    paused: bool
    probe_round: int
    inflight: tuple[tuple[int, int, int], ...]
    inflight_bytes: int
    sent_commit: int
    sent_round: int
    acked_round: int


class FrozenReign(NamedTuple):
    """What only a leader has."""

    term_start: int
    rounds: int
    progress: frozenset[tuple[str, FrozenProgress]]
    parked: tuple[Reader, ...]
    gathering: tuple[Reader, ...]
    confirming: tuple[tuple[int, int, tuple[Reader, ...]], ...]


class FrozenCore(NamedTuple):
    """All of a core between two turns that its future depends on."""

    term: int
    vote: str
    role: str
    leader: str | None
    log: FrozenLog
    persisted: int
    commit: int
    granted: frozenset[str]
    refused: frozenset[str]
    verified: int
    answered_round: int
    reign: FrozenReign | None
    #: (number, gathering, asked)
    forwarded: tuple[int, tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]
    saved: tuple[int, str]
    in_flight: tuple[FrozenPersist, ...]


class FrozenDisk(NamedTuple):
    """What is durable."""

    hard_state: tuple[int, str]
    log: FrozenLog
    commit: int


class Local(NamedTuple):
    """One member."""

    name: str
    core: FrozenCore
    disk: FrozenDisk


#: Every field of these classes, and that it is thought of here.
KNOWN_FIELDS: dict[type, set[str]] = {
    Core: {
        *("name", "incarnation", "settings", "rng", "now", "damage", "term", "vote", "role", "leader", "snapshot"),
        *("older_snapshot", "log", "commit", "handed", "applied", "history", "membership_committed", "seen", "gone"),
        *("granted", "refused", "haste", "vetoes", "progress", "rounds", "reads", "forwarded", "proposed"),
        *("term_start", "clock_base", "_clock_start", "transfer_state", "transfer_failure", "fresh_at"),
        *("stall_handled", "verified", "answered_round", "lease_not_before", "lease_after_index", "pull"),
        *("leader_contact", "heartbeat_due", "election_due", "lone", "_out", "_seq", "_in_flight", "_saved"),
        *("_reset", "_truncate", "_appended", "_riding", "_told", "_reason", "halted"),
    },
    Progress: {*FrozenProgress._fields, "contact", "disk_slow", "snapshot_index", "offered_at"},
}
KNOWN_PARTS = {
    "log": {"base", "base_term", "base_time", "_batches", "_firsts", "bytes", "persisted", "epoch"},
    "rounds": {"newest", "_numbers", "_times"},
    "reads": {"_parked", "_gathering", "_confirming"},
    "forwarded": {"number", "_gathering", "_asked", "asked_at"},
    "history": {"_entries"},
}


class FixedChance:
    """In place of a random source."""

    def __init__(self, number: int) -> None:
        self._number = number

    def uniform(self, low: float, high: float) -> float:
        return low

    def getrandbits(self, bits: int) -> int:
        return self._number


# ---------------------------------------------------------------------------------------------------------------------
# Batches and messages.


@cache
def thaw_batch(frozen: FrozenBatch) -> Batch:
    kind, term, first, count = frozen
    return make_batch(kind, term, first, 0, [encode_entry(b"")] * count, count)


def freeze_log(batches: list[Batch]) -> FrozenLog:
    return tuple((batch.kind, batch.term, batch.first, batch.last - batch.first + 1) for batch in batches)


def thaw_log(frozen: FrozenLog) -> list[Batch]:
    return [thaw_batch(batch) for batch in frozen]


def freeze_message(message: Message) -> FrozenMessage:
    kind = type(message)
    if isinstance(message, Append):
        fields = (message.term, message.prev_index, message.prev_term, message.commit, message.round)
        return (kind, *fields, freeze_log(message.batches))
    assert kind in _FIELDS, f"not in the scope of this search: {message!r}"
    return (kind, *(getattr(message, field) for field in _FIELDS[kind]))


def thaw_message(frozen: FrozenMessage) -> Message:
    kind, *fields = frozen
    if kind is Append:
        term, index, of_term, commit, number, batches = fields
        return Append(term, index, of_term, commit, number, thaw_log(batches))
    message: Message = kind(*fields)
    return message


_FIELDS = {
    kind: tuple(kind.__dataclass_fields__)
    for kind in (VoteRequest, VoteResponse, AppendResponse, Heartbeat, HeartbeatResponse, ReadRequest, ReadResponse)
}


# ---------------------------------------------------------------------------------------------------------------------
# Cores.


def freeze(core: Core, disk: FrozenDisk) -> Local:
    """`core`, between two turns, and what is durable of it."""
    _check_constants(core)
    electing = core.role in (PRE_CANDIDATE, CANDIDATE)
    forwarded = core.forwarded
    asked = tuple((number, tuple(readers)) for number, readers in forwarded._asked)
    frozen = FrozenCore(
        core.term,
        core.vote,
        core.role,
        core.leader,
        freeze_log(core.log._batches),
        core.log.persisted,
        core.commit,
        # Nobody else looks at them, and they begin anew with each election.
        frozenset(core.granted) if electing else frozenset(),
        frozenset(core.refused) if electing else frozenset(),
        core.verified,
        core.answered_round,
        _freeze_reign(core) if core.role == LEADER else None,
        (forwarded.number, tuple(forwarded._gathering), asked),
        (core._saved.term, core._saved.vote),
        tuple(_freeze_persist(core, *waiting) for waiting in core._in_flight),
    )
    return Local(core.name, frozen, disk)


def _check_constants(core: Core) -> None:
    """What this search does not bring about; were it to happen, it would get lost."""
    log = core.log
    unused = (core.seen, core.gone, core.haste, core.vetoes, core.proposed, core.transfer_state, core.pull)
    assert not any(unused), f"not in the scope of this search: {unused}"
    assert core.snapshot is None and core.older_snapshot is None and log.base == 0, "a snapshot"
    assert core.history.latest is MEMBERSHIP and core.membership_committed == 0, "a membership"
    assert core.lease_after_index == 0 and not core.damage and not core.lone, "a lease or damage"
    assert core.handed == core.applied == core.commit, "not between two turns"
    pending = (core._out, core._reset, core._truncate, core._appended, core._riding)
    assert not any(pending), f"not between two turns: {pending}"
    for progress in core.progress.values():
        assert not progress.disk_slow and not progress.snapshot_index, "a slow disk or a snapshot"


def _freeze_persist(core: Core, persist: Persist, made: float, epoch: int, last_index: int) -> FrozenPersist:
    assert persist.reset is None, "a snapshot"
    state = persist.hard_state
    responses = frozenset((send.to, freeze_message(send.message)) for send in persist.responses)
    return FrozenPersist(
        None if state is None else (state.term, state.vote),
        persist.truncate_from,
        freeze_log(persist.batches),
        persist.commit,
        responses,
        epoch == core.log.epoch,
        last_index,
    )


def _freeze_reign(core: Core) -> FrozenReign:
    return FrozenReign(
        core.term_start,
        core.rounds.newest,
        frozenset((name, _freeze_progress(progress)) for name, progress in core.progress.items()),
        tuple(core.reads._parked),
        tuple(core.reads._gathering),
        tuple((number, index, tuple(readers)) for number, index, readers in core.reads._confirming),
    )


def _freeze_progress(progress: Progress) -> FrozenProgress:
    values = {name: getattr(progress, name) for name in FrozenProgress._fields}
    return FrozenProgress(**{**values, "inflight": tuple(progress.inflight)})


def thaw(local: Local, settings: Settings) -> Core:
    """A core that goes on from `local`; see `freeze`."""
    frozen = local.core
    number, gathering, asked = frozen.forwarded
    core = start(local.name, FrozenDisk(frozen.saved, frozen.log, frozen.commit), settings, number)
    core.term, core.vote, core.role, core.leader = frozen.term, frozen.vote, frozen.role, frozen.leader
    core.log.persisted, core.log.epoch = frozen.persisted, 1
    core.handed = core.applied = core.commit = frozen.commit
    core.granted, core.refused = set(frozen.granted), set(frozen.refused)
    core.verified, core.answered_round = frozen.verified, frozen.answered_round
    core.forwarded._gathering = list(gathering)
    core.forwarded._asked = deque((number, list(readers)) for number, readers in asked)
    core._told = (frozen.role, frozen.term, frozen.leader)
    for seq, persist in enumerate(frozen.in_flight, start=1):
        core._in_flight.append((_thaw_persist(seq, persist), NOW, int(persist.current), persist.last_index))
    core._seq = len(frozen.in_flight)
    if frozen.reign is not None:
        _thaw_reign(core, frozen.reign)
    forget_times(core)
    return core


def start(name: str, disk: FrozenDisk, settings: Settings, number: int = 0) -> Core:
    """A process that begins with this on its disk."""
    begin = Start(MEMBERSHIP, 0, HardState(*disk.hard_state), None, thaw_log(disk.log), disk.commit)
    core = Core(name, INCARNATIONS[name], settings, FixedChance(number), begin, NOW)  # type: ignore[arg-type]
    # The state is rebuilt by applying again what is known to be committed, which changes nothing outside.
    core.handed = core.applied = core.commit
    return core


def _thaw_persist(seq: int, frozen: FrozenPersist) -> Persist:
    state = None if frozen.hard_state is None else HardState(*frozen.hard_state)
    responses = [Send(to, thaw_message(message)) for to, message in sorted(frozen.responses, key=repr)]
    batches = thaw_log(frozen.batches)
    return Persist(seq, state, None, frozen.truncate_from, batches, frozen.commit, responses)


def _thaw_reign(core: Core, reign: FrozenReign) -> None:
    core.term_start = reign.term_start
    core.progress = {}
    for name, frozen in sorted(reign.progress):
        core.progress[name] = progress = Progress(frozen.next, NOW)
        for field, value in frozen._asdict().items():
            setattr(progress, field, value)
        progress.inflight = deque(frozen.inflight)
    for _ in range(reign.rounds):
        core.rounds.begin(NOW)
    core.reads._parked, core.reads._gathering = list(reign.parked), list(reign.gathering)
    core.reads._confirming = deque((number, index, list(readers)) for number, index, readers in reign.confirming)


def forget_times(core: Core) -> None:
    """All that this core noted the time of, it now takes to have happened at `NOW`, and it is `NOW`."""
    core.now = core.leader_contact = core._clock_start = core.forwarded.asked_at = NOW
    core.clock_base = 0
    core.heartbeat_due = NOW + core.settings.heartbeat if core.role == LEADER else float("inf")
    core.election_due = NOW + core.settings.election_timeout[0]
    core.rounds._times = [NOW] * len(core.rounds._times)
    for progress in core.progress.values():
        progress.contact = NOW
    core._in_flight = deque((persist, NOW, epoch, last) for persist, _, epoch, last in core._in_flight)


# ---------------------------------------------------------------------------------------------------------------------
# Other names.


def rename(value: Any, names: dict[str, str]) -> Any:
    """`value`, which is frozen, with the members' names changed. No other text in it is a member's name."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, tuple):
        changed = [rename(part, names) for part in value]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if isinstance(value, frozenset):
        return frozenset(rename(part, names) for part in value)
    return value


def swap_names(order: tuple[int, ...]) -> dict[str, str]:
    """The names of those members that stand in the places `order` says: the first takes the place `order[0]`."""
    return {name: NAMES[place] for name, place in zip(NAMES, order, strict=True)}
