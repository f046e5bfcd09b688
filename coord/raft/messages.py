"""What members say to each other, and what the core asks its driver to do: plain typed values, nothing else.

They exist per batch or per round, never per entry, so clarity wins over speed here.
Bytes on the wire are `coord.wire`'s business; when and why a message is sent is `coord.raft.core`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coord.raft.batch import Batch
from coord.raft.membership import Membership

# ---------------------------------------------------------------------------------------------------------------------
# Between members. Every message carries the sender's term.


@dataclass(slots=True)
class VoteRequest:
    """A candidate asks for a vote in `term`; with `pre`, only asks whether it would get one (dissertation 9.6)."""

    term: int
    last_index: int
    last_term: int
    pre: bool = False
    #: Leadership was handed to this candidate, so voters set stickiness aside.
    transfer: bool = False
    priority: int = 0


@dataclass(slots=True)
class VoteResponse:
    """`term` is the requested one when a pre-vote is granted, the voter's own otherwise (trap 10)."""

    term: int
    granted: bool
    pre: bool = False


@dataclass(slots=True)
class Append:
    """Whole consecutive batches that follow (prev_index, prev_term); may carry none, as a probe."""

    term: int
    prev_index: int
    prev_term: int
    commit: int
    #: The leader's newest confirmation round; see `coord.raft.read_index`.
    round: int
    batches: list[Batch] = field(default_factory=list)


@dataclass(slots=True)
class AppendResponse:
    term: int
    success: bool
    #: Success: the index this very message proved (prev + its entries). Failure: the prev_index refused.
    index: int
    round: int
    #: Failure: where the leader may look next; the follower's newest entry of a term not above `prev_term`.
    hint_index: int = 0
    hint_term: int = 0
    disk_slow: bool = False


@dataclass(slots=True)
class Heartbeat:
    """The leader lives, and has committed this far. The follower takes of it what its log shares (trap 17)."""

    term: int
    commit: int
    round: int


@dataclass(slots=True)
class HeartbeatResponse:
    term: int
    round: int
    #: How far this follower's log is known to agree with the leader's, in this term, since it started.
    verified: int
    disk_slow: bool = False


@dataclass(slots=True)
class ReadRequest:
    """A follower asks for an index at which its reads `number` and earlier are linearizable."""

    term: int
    number: int


@dataclass(slots=True)
class ReadResponse:
    """`index` 0: refused; ask again (perhaps somebody else)."""

    term: int
    number: int
    index: int


@dataclass(slots=True)
class Propose:
    """A follower passes on what its callers proposed. `number` counts the entries of its `stream`, a random number it
    draws for each start over, so that the leader takes them in order and without a gap (first in, first out)."""

    term: int
    stream: int
    number: int
    #: Each as `encode_entry` made it.
    entries: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class ProposeResponse:
    """The leader has taken all entries of `stream` numbered below `expected`; `accepting` False: no more for now."""

    term: int
    stream: int
    expected: int
    accepting: bool


@dataclass(slots=True)
class TimeoutNow:
    """Leadership is handed over: campaign at once, provided your log ends exactly here."""

    term: int
    last_index: int


@dataclass(slots=True)
class TransferRefused:
    term: int
    reason: str


@dataclass(slots=True)
class SnapshotOffer:
    """Your log ends before mine begins: pull this snapshot."""

    term: int
    round: int
    meta: SnapshotMeta


@dataclass(slots=True)
class SnapshotPull:
    """Send me the bytes of snapshot `index` from `offset`. From its very end: I have them all, and they are not what
    was offered."""

    term: int
    index: int
    offset: int


@dataclass(slots=True)
class SnapshotChunk:
    term: int
    index: int
    offset: int
    data: bytes


@dataclass(slots=True)
class Unknown:
    """To a sender this member does not take for the one of that name: the reason, for its log and its user."""

    term: int
    reason: str


Message = (
    VoteRequest
    | VoteResponse
    | Append
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | ReadRequest
    | ReadResponse
    | Propose
    | ProposeResponse
    | TimeoutNow
    | TransferRefused
    | SnapshotOffer
    | SnapshotPull
    | SnapshotChunk
    | Unknown
)


# ---------------------------------------------------------------------------------------------------------------------
# Between the owner of a session and the leader. No part of Raft, and never given to the core.


@dataclass(slots=True)
class Keepalive:
    """Its owner lives: renew `session`. Not in the log; the answer comes once a quorum has confirmed the leader."""

    term: int
    session: int
    #: Counts the owner's keepalives; the answer repeats it, and the lease then runs from the sending of that one.
    number: int


@dataclass(slots=True)
class KeepaliveResponse:
    term: int
    session: int
    number: int
    #: Cluster time, nanoseconds. Who hears of it and leads next goes on from there: with elections more frequent than
    #: entries, time that is only in entries would never pass (etcd #9888).
    time: int
    #: False: the session is over.
    alive: bool


SessionMessage = Keepalive | KeepaliveResponse
#: Whatever travels between members.
AnyMessage = Message | SessionMessage

# ---------------------------------------------------------------------------------------------------------------------
# What is kept.


@dataclass(slots=True, frozen=True)
class HardState:
    """What a member must never forget (Raft, figure 2). Rides in the same stream as the entries (traps 2 to 5)."""

    term: int = 0
    #: Name of the member voted for in `term`, or "".
    vote: str = ""


@dataclass(slots=True, frozen=True)
class SnapshotMeta:
    """What a snapshot is of. Equal on every member that cut one at the same index."""

    index: int
    term: int
    #: Cluster time, nanoseconds, as of `index`.
    time: int
    #: The membership as of `index`, and the index of the entry that set it (trap 25).
    membership: Membership
    membership_index: int
    size: int
    sha256: bytes
    state_hash: int


# ---------------------------------------------------------------------------------------------------------------------
# What the core asks of its driver. The driver performs them in the order given.


@dataclass(slots=True)
class Send:
    """Send now; nothing need be on disk first. May be lost."""

    to: str
    message: Message


@dataclass(slots=True)
class Persist:
    """Make all of this durable, in order, with one sync; then call `core.persisted(seq)`.

    In order: replace everything by `reset`, a snapshot already durable in its own file; drop entries from
    `truncate_from` on; append `batches`; record `hard_state`. `responses` are true only then: the core hands them out,
    as Send, from `persisted`.
    """

    seq: int
    hard_state: HardState | None = None
    reset: SnapshotMeta | None = None
    truncate_from: int | None = None
    batches: list[Batch] = field(default_factory=list)
    #: Known committed when this was made; recovery may start applying up to here. Only ever a hint (trap 43).
    commit: int = 0
    responses: list[Send] = field(default_factory=list)


@dataclass(slots=True)
class Apply:
    """These batches are committed: apply them, in order, then call `core.applied(last index)`."""

    batches: list[Batch]


@dataclass(slots=True)
class ReadOk:
    """Reads `ids` are linearizable once the state includes `index`."""

    ids: list[int]
    index: int


@dataclass(slots=True)
class ReadFailed:
    """Nothing is known about reads `ids`; ask again."""

    ids: list[int]


@dataclass(slots=True)
class RoleChange:
    role: str
    term: int
    leader: str | None
    reason: str


@dataclass(slots=True)
class MembershipChange:
    """The membership in force changed (at append), or became certain (`committed`)."""

    membership: Membership
    index: int
    committed: bool


@dataclass(slots=True)
class SendSnapshot:
    """Read the bytes of the snapshot `index` at `offset` and send them to `to` as a SnapshotChunk."""

    to: str
    index: int
    offset: int


@dataclass(slots=True)
class RenewSnapshot:
    """The newest snapshot cannot be read, or is not what it should be, says one that pulled it: take another of the
    state as it is now, even if it is of the same index."""


@dataclass(slots=True)
class StoreSnapshot:
    """Bytes of a snapshot being pulled. Keep them; then call `core.snapshot_progress(index, bytes held)`, and once
    all are there, checked against `meta.sha256` and durable, `core.snapshot_stored(meta)`."""

    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(slots=True)
class InstallSnapshot:
    """Replace the applied state by this snapshot, which is durable here."""

    meta: SnapshotMeta


@dataclass(slots=True)
class ProposalsTaken:
    """The leader has taken this member's proposals of `stream` numbered below `expected`."""

    stream: int
    expected: int
    accepting: bool


@dataclass(slots=True)
class Refused:
    """Member `by` does not take this one for the member of its name, and says why."""

    by: str
    reason: str


@dataclass(slots=True)
class Halt:
    """Stop this member: going on would be unsafe."""

    reason: str


Command = (
    Send
    | Persist
    | Apply
    | ReadOk
    | ReadFailed
    | RoleChange
    | MembershipChange
    | SendSnapshot
    | RenewSnapshot
    | StoreSnapshot
    | InstallSnapshot
    | ProposalsTaken
    | Refused
    | Halt
)
