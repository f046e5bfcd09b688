"""Elections: who may ask, who grants, when nobody waits.

Pre-vote (dissertation 9.6) keeps a member that cannot win from disturbing a group that has a leader (trap 7). It is not
stickiness: that a voter refuses while it hears a leader is a rule of its own (4.2.3, trap 8), and check-quorum, in
`replication`, is the leader's half of it.

What must not live here: handing leadership over (`coord.raft.transfer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.raft.messages import VoteRequest, VoteResponse
from coord.raft.quorum import LOST, WON, vote_result
from coord.raft.roles import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE

if TYPE_CHECKING:
    from coord.raft.core import Core

#: Rounds of an election that are given up early once the leader is known to be gone.
HURRIED_ROUNDS = 7
#: A better-placed voter may hold up an election this often before it lets anybody win.
VETOES_MAX = 3


def reset_timer(core: Core) -> None:
    """Wait a whole election timeout from now, drawn anew (5.2)."""
    low, high = core.settings.election_timeout
    core.election_due = core.now + core.rng.uniform(low, high)


def found(core: Core) -> None:
    """This member has never heard of a leader, so most likely there is none to wait for: campaign as soon as the others
    may have started. If there is one, a pre-vote does it no harm."""
    core.election_due = core.now + core.settings.heartbeat * core.rng.uniform(1, 3)


def hurry(core: Core) -> None:
    """The leader is known to be gone: campaign soon, each survivor at its own moment so that votes do not split."""
    survivors = [name for name in core.voters if name not in core.gone]
    rank = survivors.index(core.name) if core.name in survivors else len(survivors)
    step = core.settings.heartbeat / 2
    core.election_due = min(core.election_due, core.now + step * rank + core.rng.uniform(0, step / 2))


def may_campaign(core: Core) -> bool:
    """A member that may have forgotten a promise, that prefers not to lead, whose disk stands still, or that is no
    voter, does not ask."""
    return (
        core.name in core.voters
        and not core.damage
        and core.settings.priority >= 0
        and core.pull is None
        and not core.disk_stalled()
    )


def timed_out(core: Core) -> None:
    """No leader for a whole timeout, or the campaign got no answer in time."""
    reset_timer(core)
    if not may_campaign(core):
        if core.role != FOLLOWER:
            core.become_follower(core.term, None, "may not campaign")
        return
    reason = "the leader's process is gone" if core.gone else "heard no leader in time"
    core.become_pre_candidate(reason)
    _retry_soon(core)
    if vote_result(core.voters, core.granted, core.refused) == WON:
        campaign(core, "alone", transfer=False)
    else:
        _ask(core, core.term + 1, pre=True, transfer=False)


def campaign(core: Core, reason: str, *, transfer: bool) -> None:
    """Stand for the next term. The requests ride on the own vote: were they sent first, a crash could forget entries
    the log held when somebody granted it."""
    core.become_candidate(reason)
    reset_timer(core)
    _retry_soon(core)
    _ask(core, core.term, pre=False, transfer=transfer)


def leader_gone(core: Core, peer: str) -> None:
    """Proof that `peer` is gone. If it led, the wait is over; if lease reads are on, its lease is waited out."""
    if core.role == LEADER or peer != core.leader:
        return
    core.become_follower(core.term, None, f"the process of leader {peer} is gone")
    core.haste = HURRIED_ROUNDS
    hurry(core)
    if core.settings.lease_reads:
        core.election_due = max(core.election_due, core.leader_contact + core.settings.election_timeout[0])


def on_vote_request(core: Core, sender: str, message: VoteRequest) -> None:
    if message.term < core.term:
        # Answered, not ignored: the sender learns the term it must pass (trap 9).
        core.send(sender, VoteResponse(core.term, False, message.pre))
        return
    if _hears_a_leader(core, message):
        # In our own term too: it may have reached us after we promised an older leader its lease.
        core.send(sender, VoteResponse(core.term, False, message.pre))
        return
    if message.term > core.term and not message.pre:
        core.become_follower(message.term, None, f"{sender} stands in a newer term")
    granted = _may_vote_for(core, sender, message)
    if granted and not message.pre:
        core.set_vote(sender)
        reset_timer(core)
    # A granted pre-vote speaks of the term asked for; everything else of our own (trap 10).
    term = message.term if granted else core.term
    core.send(sender, VoteResponse(term, granted, message.pre))
    if not granted and message.pre and _prefers_itself(core, message):
        core.vetoes += 1
        core.election_due = core.now


def on_vote_response(core: Core, sender: str, message: VoteResponse) -> None:
    if message.term > core.term and not (message.pre and message.granted):
        core.become_follower(message.term, None, f"{sender} is in a newer term")
        reset_timer(core)
        return
    asking = core.role == (PRE_CANDIDATE if message.pre else CANDIDATE)
    asked_for = core.term + 1 if message.pre else core.term
    # A refusal may come from a voter in an older term that hears a leader there.
    if asking and (message.term == asked_for if message.granted else message.term <= core.term):
        count_vote(core, sender, message.granted)


def count_vote(core: Core, voter: str, granted: bool) -> None:
    """A set, not a counter: a repeated answer counts once."""
    (core.granted if granted else core.refused).add(voter)
    result = vote_result(core.voters, core.granted, core.refused)
    if result == WON:
        if core.role == PRE_CANDIDATE:
            campaign(core, "a majority would vote", transfer=False)
        else:
            core.become_leader()
    elif result == LOST:
        core.become_follower(core.term, None, "lost the election")
        reset_timer(core)
        _retry_soon(core)


def _ask(core: Core, term: int, *, pre: bool, transfer: bool) -> None:
    request = VoteRequest(term, core.log.last_index, core.log.last_term, pre, transfer, core.settings.priority)
    for name in core.voters:
        if name != core.name:
            core.send(name, request)


def _retry_soon(core: Core) -> None:
    """With proof that the leader is gone, an unanswered or lost round need not cost a whole election timeout: most
    likely it came before the others had their proof. Each wait is twice the last, and they are few: where a round takes
    longer than the wait, hurrying for ever would mean electing nobody, ever."""
    if core.haste > 0:
        wait = core.settings.heartbeat / 8 * 2 ** (HURRIED_ROUNDS - core.haste)
        core.haste -= 1
        core.election_due = min(core.election_due, core.now + core.rng.uniform(wait, 2 * wait))


def _hears_a_leader(core: Core, message: VoteRequest) -> bool:
    """Stickiness: refuse while a leader is alive, unless it gave its blessing (a transfer)."""
    if message.transfer:
        return False
    patience = core.settings.election_timeout[0]
    if core.role == LEADER:
        return core.now - core.quorum_contact() < patience
    heard = core.now - core.leader_contact < patience
    if core.settings.lease_reads:
        return heard
    return heard and core.leader is not None


def _may_vote_for(core: Core, sender: str, message: VoteRequest) -> bool:
    # A learner votes when asked: the asker may know of its promotion before it does (trap 12).
    if core.damage or core.role == LEADER:
        return False
    if message.pre:
        free = message.term > core.term or core.vote in ("", sender)
        if _prefers_itself(core, message):
            return False
    else:
        # The same candidate asking again is granted again (trap 11).
        free = core.vote in ("", sender)
    return free and (message.last_term, message.last_index) >= (core.log.last_term, core.log.last_index)


def _prefers_itself(core: Core, message: VoteRequest) -> bool:
    """Election priority: this member would rather lead, and could: its log is as good. Never more than a few times
    without a leader, so that a preference cannot leave the group without one."""
    return (
        message.priority < core.settings.priority
        and core.vetoes < VETOES_MAX
        and core.role == FOLLOWER
        and may_campaign(core)
        and (core.log.last_term, core.log.last_index) >= (message.last_term, message.last_index)
    )
