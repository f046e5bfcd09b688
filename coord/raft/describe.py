"""One notation for messages, commands and states: in logs, in error texts, and in the tests' golden conversations.

Entries are written index/term, runs first-last/term: "4/2" is the entry at index 4 of term 2. Nothing here decides
anything, and nothing parses this text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coord.raft.batch import COMMANDS, MEMBERSHIP, NOOP, Batch
from coord.raft.log import Log
from coord.raft.membership import Membership
from coord.raft.messages import (
    AnyMessage,
    Append,
    AppendResponse,
    Apply,
    Command,
    Halt,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Keepalive,
    KeepaliveResponse,
    MembershipChange,
    Persist,
    ProposalsTaken,
    Propose,
    ProposeResponse,
    ReadFailed,
    ReadOk,
    ReadRequest,
    ReadResponse,
    Refused,
    RenewSnapshot,
    RoleChange,
    Send,
    SendSnapshot,
    SnapshotChunk,
    SnapshotOffer,
    SnapshotPull,
    StoreSnapshot,
    TimeoutNow,
    TransferRefused,
    Unknown,
    VoteRequest,
    VoteResponse,
)
from coord.raft.progress import PROBE, REPLICATE, Progress
from coord.raft.roles import LEADER

if TYPE_CHECKING:
    from coord.raft.core import Core

_KINDS = {COMMANDS: "", NOOP: " noop", MEMBERSHIP: " membership"}


def describe_batch(batch: Batch) -> str:
    span = f"{batch.first}" if batch.count == 1 else f"{batch.first}-{batch.last}"
    return f"{span}/{batch.term}{_KINDS[batch.kind]}"


def describe_log(log: Log) -> str:
    """The whole log, and how far it is known durable if that is not all of it."""
    start = [] if log.base == 0 else [f"(from {log.base}/{'?' if log.base_term is None else log.base_term})"]
    batches = [describe_batch(batch) for batch in log.between(log.first_index, log.last_index)]
    pending = [] if log.persisted == log.last_index else [f"(durable to {log.persisted})"]
    return " ".join([*start, *batches, *pending]) or "empty"


def describe_membership(membership: Membership) -> str:
    members = ", ".join(
        name + ("" if member.voter else " (learner)") + ("" if member.incarnation else " (not yet seen)")
        for name, member in membership.members.items()
    )
    return members if membership.group_number else f"{members}; no group number yet"


def describe_progress(progress: Progress) -> str:
    """A leader's view of one follower."""
    text = f"{progress.state} match {progress.match} next {progress.next}"
    if progress.state == PROBE and progress.paused:
        text += " paused"
    if progress.state == REPLICATE and progress.inflight:
        text += f" inflight {len(progress.inflight)}"
    return text + (" disk-slow" if progress.disk_slow else "")


def describe_core(core: Core) -> str:
    """One line: who it is, whom it follows, how far it is."""
    text = f"{core.name} {core.role} term {core.term}"
    if core.role != LEADER and core.leader is not None:
        text += f" of {core.leader}"
    if core.vote:
        text += f" vote {core.vote}"
    text += f" commit {core.commit} last {core.log.last_index}/{core.log.last_term}"
    return text + (f" HALTED: {core.halted}" if core.halted else "")


def describe_message(message: AnyMessage) -> str:
    return f"{type(message).__name__} term {message.term} {_MESSAGES[type(message)](message)}".rstrip()


def describe_send(sender: str, send: Send) -> str:
    return f"{sender} -> {send.to} {describe_message(send.message)}"


def describe_command(command: Command) -> str:
    """What a core asked its driver to do. A message is described without its sender, which the driver knows."""
    return _COMMANDS[type(command)](command)


def _batches(batches: list[Batch]) -> str:
    return " ".join(describe_batch(batch) for batch in batches) or "nothing"


def _flags(**flags: bool) -> str:
    return "".join(f" {name}" for name, up in flags.items() if up)


def _vote_request(m: VoteRequest) -> str:
    priority = f" priority {m.priority}" if m.priority else ""
    return f"log to {m.last_index}/{m.last_term}{priority}{_flags(pre=m.pre, transfer=m.transfer)}"


def _vote_response(m: VoteResponse) -> str:
    return ("granted" if m.granted else "refused") + _flags(pre=m.pre)


def _append(m: Append) -> str:
    return f"after {m.prev_index}/{m.prev_term} commit {m.commit} round {m.round}: {_batches(m.batches)}"


def _append_response(m: AppendResponse) -> str:
    answer = f"holds {m.index}" if m.success else f"not after {m.index}, hint {m.hint_index}/{m.hint_term}"
    return f"{answer} round {m.round}" + (" disk-slow" if m.disk_slow else "")


def _heartbeat_response(m: HeartbeatResponse) -> str:
    return f"round {m.round} verified {m.verified}" + (" disk-slow" if m.disk_slow else "")


def _read_response(m: ReadResponse) -> str:
    return f"number {m.number} " + (f"index {m.index}" if m.index else "refused")


def _propose_response(m: ProposeResponse) -> str:
    return f"stream {m.stream} expects {m.expected}" + ("" if m.accepting else " not accepting")


def _offer(m: SnapshotOffer) -> str:
    return f"snapshot {m.meta.index}/{m.meta.term} of {m.meta.size} bytes round {m.round}"


def _persist(p: Persist) -> str:
    parts = []
    if p.reset is not None:
        parts.append(f"reset to {p.reset.index}/{p.reset.term}")
    if p.truncate_from is not None:
        parts.append(f"drop from {p.truncate_from}")
    if p.batches:
        parts.append(_batches(p.batches))
    if p.hard_state is not None:
        parts.append(f"term {p.hard_state.term} vote {p.hard_state.vote or 'none'}")
    return f"persist {p.seq}: " + ", ".join(parts)


def _role(r: RoleChange) -> str:
    followed = f" of {r.leader}" if r.leader is not None and r.role != LEADER else ""
    return f"{r.role} term {r.term}{followed}: {r.reason}"


def _membership_change(m: MembershipChange) -> str:
    return f"membership {m.index} {'committed' if m.committed else 'in force'}: {describe_membership(m.membership)}"


_MESSAGES: dict[type, Callable[[Any], str]] = {
    VoteRequest: _vote_request,
    VoteResponse: _vote_response,
    Append: _append,
    AppendResponse: _append_response,
    Heartbeat: lambda m: f"commit {m.commit} round {m.round}",
    HeartbeatResponse: _heartbeat_response,
    ReadRequest: lambda m: f"number {m.number}",
    ReadResponse: _read_response,
    Propose: lambda m: f"stream {m.stream} from {m.number}: {len(m.entries)} entries",
    ProposeResponse: _propose_response,
    TimeoutNow: lambda m: f"log to {m.last_index}",
    TransferRefused: lambda m: m.reason,
    SnapshotOffer: _offer,
    SnapshotPull: lambda m: f"snapshot {m.index} from byte {m.offset}",
    SnapshotChunk: lambda m: f"snapshot {m.index} from byte {m.offset}: {len(m.data)} bytes",
    Unknown: lambda m: m.reason,
    Keepalive: lambda m: f"session {m.session:x} number {m.number}",
    KeepaliveResponse: lambda m: f"session {m.session:x} number {m.number}{'' if m.alive else ', which is over'}",
}

_COMMANDS: dict[type, Callable[[Any], str]] = {
    Send: lambda c: f"send {c.to} {describe_message(c.message)}",
    Persist: _persist,
    Apply: lambda c: f"apply {_batches(c.batches)}",
    ReadOk: lambda c: f"reads {c.ids} ok at {c.index}",
    ReadFailed: lambda c: f"reads {c.ids} failed",
    RoleChange: _role,
    MembershipChange: _membership_change,
    RenewSnapshot: lambda c: "take another snapshot",
    SendSnapshot: lambda c: f"send {c.to} snapshot {c.index} from byte {c.offset}",
    StoreSnapshot: lambda c: f"store snapshot {c.meta.index} from byte {c.offset}: {len(c.data)} bytes",
    InstallSnapshot: lambda c: f"install snapshot {c.meta.index}/{c.meta.term}",
    ProposalsTaken: lambda c: f"proposals of stream {c.stream} taken below {c.expected}",
    Refused: lambda c: f"refused by {c.by}: {c.reason}",
    Halt: lambda c: f"HALT: {c.reason}",
}
