"""Handing leadership over (dissertation 3.10), with a refusal that comes back (trap 35).

The leader stops taking entries, waits until the target holds all of its log, gives up its lease, and tells the target
to campaign at once. The message names the last index, so one entry appended after an abort makes it void (trap 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coord.raft import election
from coord.raft.batch import NOOP, encode_entry
from coord.raft.messages import TimeoutNow, TransferRefused
from coord.raft.progress import PROBE, REPLICATE
from coord.raft.roles import LEADER

if TYPE_CHECKING:
    from coord.raft.core import Core


@dataclass(slots=True)
class Transfer:
    target: str
    #: When it is given up: a leader that takes no entries must not last.
    deadline: float
    told: bool = False


def begin(core: Core, to: str | None) -> str:
    """Start handing over. "" when begun, else why not."""
    if core.role != LEADER:
        return "not the leader"
    if core.transfer_state is not None:
        return f"already handing over to {core.transfer_state.target}"
    target = to if to is not None else best_target(core)
    if target is None:
        return "no follower could lead"
    if target == core.name:
        return "already the leader"
    if target not in core.voters:
        return f"{target!r} is not a voter; voters are {', '.join(core.voters)}"
    core.transfer_failure = ""
    core.transfer_state = Transfer(target, core.now + core.settings.election_timeout[0])
    proceed(core)
    return ""


def best_target(core: Core) -> str | None:
    """The voter that holds most of the log, of those heard from lately and not slow; by name among equals."""
    patience = core.settings.election_timeout[0]
    fit = [
        name
        for name in core.voters
        if name != core.name
        and name not in core.gone
        and not core.progress[name].disk_slow
        and core.progress[name].state in (PROBE, REPLICATE)
        and core.progress[name].match > 0
        and core.now - core.progress[name].contact < patience
    ]
    return max(fit, key=lambda name: core.progress[name].match, default=None)


def proceed(core: Core) -> None:
    """Tell the target once it holds everything."""
    state = core.transfer_state
    if state is None or state.told or core.progress[state.target].match < core.log.last_index:
        return
    state.told = True
    _tell(core, state)


def tick(core: Core) -> None:
    if core.transfer_state is not None and core.now >= core.transfer_state.deadline:
        abort(core, f"{core.transfer_state.target} did not take over in time")


def repeat(core: Core) -> None:
    """The message may have been lost; say it again with each heartbeat."""
    if core.transfer_state is not None and core.transfer_state.told:
        _tell(core, core.transfer_state)


def abort(core: Core, reason: str) -> None:
    """Lead on. The entry makes a late TimeoutNow void; the lease waits until no election it started can succeed."""
    assert core.transfer_state is not None
    told, core.transfer_state = core.transfer_state.told, None
    core.transfer_failure = reason
    if told:
        core.lease_not_before = core.now + core.settings.election_timeout[1]
        core.append_entries(NOOP, [encode_entry(b"")])
        # Until a quorum holds it, a late TimeoutNow can still win an election behind the lease.
        core.lease_after_index = core.log.last_index


def on_timeout_now(core: Core, sender: str, message: TimeoutNow) -> None:
    if message.term != core.term or core.leader != sender:
        return
    if core.log.last_index != message.last_index:
        core.send(sender, TransferRefused(core.term, f"log ends at {core.log.last_index}, not {message.last_index}"))
    elif not election.may_campaign(core):
        core.send(sender, TransferRefused(core.term, "may not campaign now"))
    else:
        election.campaign(core, f"{sender} handed leadership over", transfer=True)


def on_transfer_refused(core: Core, sender: str, message: TransferRefused) -> None:
    state = core.transfer_state
    if core.role == LEADER and message.term == core.term and state is not None and state.target == sender:
        abort(core, f"{sender} refused: {message.reason}")


def _tell(core: Core, state: Transfer) -> None:
    core.send(state.target, TimeoutNow(core.term, core.log.last_index))
