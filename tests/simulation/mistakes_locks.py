"""Mistakes around locks, sessions and leases, each breaking one rule of their specification.

Where a system is named it ships the mistake, or once did; "rule" is one of ours that nobody we know of has broken in
public. What must not live here: mistakes of what is below (the tables beside this one).
"""

from __future__ import annotations

from coord.duties import Duties
from coord.lease import Lease
from coord.machine import lock_commands
from coord.machine.lock_table import LockRecord, LockTable
from coord.machine.machine import Machine
from coord.options import Options
from coord.own_session import OwnSession
from coord.replica import Replica
from coord.requests import Requests
from simulation.mutation import (
    contended_locks,
    delayed_locks,
    held_locks,
    late_acknowledgements,
    locks_in_snapshots,
    mutant,
    old_leaders_and_locks,
    semaphores,
)
from simulation.stories_of_locks import (
    a_cancel_overtakes_its_acquire,
    a_dead_process_opens_its_session_late,
    a_member_that_leaves_holds_nothing,
    a_renewal_comes_while_the_end_is_on_its_way,
    a_session_that_was_given_up_comes_back,
    an_old_leader_acknowledges_late,
    an_uncommitted_end_is_committed_by_the_next_leader,
    granted_while_the_lease_was_over,
)

_RENEW = "self._confirm([Confirmation(partial(self._renewed, session, received_at, answer))])"

LEASES = [
    mutant(
        "a renewal is acknowledged though nobody follows any more",
        "etcd #15247",
        (Duties, "renew", _RENEW, "self._renewed(session, received_at, answer, None)"),
        story=an_old_leader_acknowledges_late,
    ),
    mutant(
        "an old leader's acknowledgements keep its friends' sessions",
        "etcd #12528",
        (Duties, "renew", _RENEW, "self._renewed(session, received_at, answer, None)"),
        world=old_leaders_and_locks,
    ),
    mutant(
        "a leader renews before it has applied an entry of its term",
        "rule",
        (
            Duties,
            "renew",
            _RENEW,
            f"{_RENEW} if self._core.leads_surely else self._renewed(session, received_at, answer, None)",
        ),
        (Duties, "_in_office", "self._core.leads_surely and ", ""),
        story=an_uncommitted_end_is_committed_by_the_next_leader,
    ),
    mutant(
        "a session is renewed while its end is on its way",
        "etcd PR 20616",
        (Duties, "_renewed", " or session in self._expiring", ""),
        story=a_renewal_comes_while_the_end_is_on_its_way,
    ),
    mutant(
        "a lease counts from when its acknowledgement arrived",
        "etcd client/v3/lease.go",
        (OwnSession, "_answered", "self.lease.confirm(sent_at)", "self.lease.confirm(self._replica.now)"),
        world=late_acknowledgements,
    ),
    mutant(
        "a lease lasts longer than its session",
        "Curator",
        (Options, "lease", "self.session_ttl * (1 - 2 * self.clock_drift)", "self.session_ttl * 4 / 3"),
        world=held_locks,
    ),
    mutant(
        "a leader renews its own session by itself",
        "rule",
        (
            OwnSession,
            "_renew",
            "replica.renew(session, partial(self._answered, session, self._number))",
            "self._answered(session, self._number, True)",
        ),
        world=old_leaders_and_locks,
    ),
    mutant(
        "a new leader counts on where the old one stopped",
        "rule",
        (
            Duties,
            "expire_sessions",
            "self._due[session] = core.now + found.ttl / _NANOSECONDS",
            "self._due[session] = core.now + 0.3 * found.ttl / _NANOSECONDS",
        ),
        world=held_locks,
    ),
    mutant(
        "renewals do not count",
        "rule",
        (Duties, "_renewed", "self._due[session] = max(due, self._due.get(session, due))", "pass"),
        world=held_locks,
    ),
    mutant(
        "a session is never in jeopardy",
        "client-go",
        (Lease, "state", "return JEOPARDY if age < self._length else SUSPENDED", "return SUSPENDED"),
        world=held_locks,
    ),
    mutant(
        "a lease that was given up comes back",
        "rule",
        (OwnSession, "_answered", "self.lease = Lease(session, self._options)", 'lease.ended = ""'),
        world=held_locks,
    ),
]

GRANTS = [
    mutant(
        "a waiter that leaves wakes nobody",
        "rule",
        (lock_commands, "_remove", "table.pump(lock, index, now)", "hold and table.pump(lock, index, now)"),
        world=contended_locks,
    ),
    mutant(
        "the end of a session wakes nobody",
        "rule",
        (LockTable, "end_session", "self.pump(lock, index, now)", "pass"),
        world=held_locks,
    ),
    mutant(
        "the end of a lock-delay wakes nobody",
        "rule",
        (LockTable, "tick", "self.pump(lock, index, now)", "pass"),
        world=delayed_locks,
    ),
    mutant(
        "waiters outlive their session",
        "etcd #11456",
        (LockTable, "end_session", "self._drop_waiters(lock, session, numbers)", "pass"),
        world=held_locks,
    ),
    mutant(
        "holds outlive their session",
        "rule",
        (Machine, "_end_session", "if session.requests:", "if False:"),
        world=held_locks,
    ),
    mutant(
        "the newest is served first",
        "rule",
        (LockTable, "enqueue", "queue.insert(place, waiting)", "queue.insert(0, waiting)"),
        world=contended_locks,
    ),
    mutant(
        "priorities do not matter",
        "rule",
        (LockTable, "enqueue", "while place and queue[place - 1].priority < priority:", "while False:"),
        world=contended_locks,
    ),
    mutant(
        "those who share overtake whoever waits",
        "rule",
        (lock_commands, "_acquire", "if slot < 0 and not lock.queue:", "if slot < 0 and (shared or not lock.queue):"),
        world=contended_locks,
    ),
    mutant(
        "two get one permit",
        "rule",
        (LockTable, "grant", "lock.taken |= 1 << slot", "lock.taken |= 1"),
        world=semaphores,
    ),
    mutant(
        "a permit is not given back",
        "rule",
        (LockTable, "remove_hold", "lock.permits > 1 or not lock.holders", "not lock.holders"),
        world=semaphores,
    ),
    mutant(
        "a successor is not remembered",
        "rule",
        (LockTable, "move_to_head", "if waiting.owner == owner:", "if False:"),
        world=contended_locks,
    ),
    mutant(
        "a lock is released by its name",
        "etcd #22082",
        (
            lock_commands,
            "_release",
            "if not table.stands(name, id, request, token):\n        return replies.NOT_HELD_REPLY",
            "held = [hold.request for hold in table.holders(name) if hold.session == id]\n"
            "    if not held:\n        return replies.NOT_HELD_REPLY\n    request = held[0]",
        ),
        world=contended_locks,
    ),
    mutant(
        "a release does not look at the token",
        "rule",
        (
            lock_commands,
            "_release",
            "if not table.stands(name, id, request, token):",
            "hold = table.hold(id, request)\n    if hold is None or hold.name != name:",
        ),
        world=contended_locks,
    ),
    mutant(
        "what was cancelled before it came is granted",
        "rule",
        (lock_commands, "_cancel", "session.remember(request, replies.CANCELLED_REPLY)", "pass"),
        story=a_cancel_overtakes_its_acquire,
    ),
]

TOKENS = [
    mutant(
        "a token is the index of the request",
        "etcd and Hazelcast",
        (LockTable, "grant", "(self.epoch << EPOCH_SHIFT) + index", "(self.epoch << EPOCH_SHIFT) + asked.asked"),
        world=contended_locks,
    ),
    mutant(
        "each who shares gets a token of its own",
        "rule",
        (LockTable, "grant", "joins = shared and lock.holders", "joins = False"),
        world=contended_locks,
    ),
    mutant(
        "tokens are without an epoch",
        "rule",
        (LockTable, "grant", "(self.epoch << EPOCH_SHIFT) + index", "index"),
        world=contended_locks,
    ),
    mutant(
        "a downgrade keeps its token",
        "rule",
        (lock_commands, "_downgrade", "token=(table.epoch << EPOCH_SHIFT) + index", "token=token"),
        world=contended_locks,
    ),
    mutant(
        "a write under a lock does not look at the token",
        "rule",
        (Machine, "_transaction", "self.locks.stands(*compare[1:])", "self.locks.hold(*compare[2:4])"),
        world=contended_locks,
    ),
    mutant(
        "a write under a lock does not look at the lock",
        "rule",
        (Machine, "_transaction", "if not self.locks.stands(*compare[1:]):", "if False:"),
        world=contended_locks,
    ),
]

DELAYS = [
    mutant(
        "lock-delays are not in snapshots",
        "Consul",
        (LockTable, "copy", "for lock in locks],", "for lock in locks if lock.holders or lock.queue],"),
        (LockTable, "copy", "for lock in locks if lock.delays", "for lock in ()"),
        (LockRecord, "compute_digest", "sorted(self.delays.items())", "[]"),
        (
            LockRecord,
            "compute_digest",
            "return lock_digest(",
            "return 0 if not (self.holders or self.queue) else lock_digest(",
        ),
        world=locks_in_snapshots,
    ),
    mutant(
        "a lock-delay is counted by each member's own clock",
        "PySyncObj ReplLockManager",
        (LockTable, "_close", "min(now + hold.delay, TIME_MAX)", '__import__("time").monotonic_ns() + hold.delay'),
        world=delayed_locks,
    ),
    mutant(
        "there is no lock-delay",
        "rule",
        (Machine, "_end_session", "delayed = event == EXPIRED or not gone", "delayed = False"),
        world=delayed_locks,
    ),
    mutant(
        "there is a lock-delay even after an orderly end",
        "Consul",
        (Machine, "_end_session", "delayed = event == EXPIRED or not gone", "delayed = True"),
        world=delayed_locks,
    ),
    mutant(
        "anybody reclaims what another lost",
        "rule",
        (LockRecord, "reclaimable_slot", "lost == owner and ", ""),
        world=delayed_locks,
    ),
    mutant(
        "those who share are let in during the delay of an exclusive hold",
        "rule",
        (LockTable, "_close", "if not hold.shared:", "if False:"),
        world=delayed_locks,
    ),
]

CALLERS = [
    mutant(
        "waiting requests are not looked up after a snapshot",
        "etcd's watches",
        (LockTable, "become", "self._events.extend(self._differences(other))", "pass"),
        (Replica, "_on_install", "self.requests.jumped()", "pass"),
        world=locks_in_snapshots,
    ),
    mutant(
        "what is given up while its answer is on its way is not cancelled",
        "etcd #21128",
        (Requests, "abandon", "and self._withdrawn(request):", "and (self._withdrawn(request) or True):"),
        world=contended_locks,
    ),
    mutant(
        "what is given up while it waits is not cancelled",
        "Curator's guaranteed delete",
        (
            Requests,
            "_cancel",
            "self._submit(request, commands.cancel, (request.name, request.id), partial(self._cancelled, request))",
            "self._over(request)",
        ),
        world=contended_locks,
    ),
    mutant(
        "a grant is told though the lease does not stand",
        "etcd's phantom leaders",
        (Requests, "_tell", "if request.lease.stands(self._replica.now):", "if True:"),
        world=held_locks,
    ),
    mutant(
        "what waits is not asked for again in the next session",
        "python-etcd #181",
        (Requests, "session_over", "self._replica.defer(self._ask_again, request)", "pass"),
        world=held_locks,
    ),
    mutant(
        "a grant in the same turn as its answer is overlooked",
        "found here",
        (
            Requests,
            "_answered",
            "self._look(request, self._tell)",
            "reply[0] == replies.WAITING or self._look(request, self._tell)",
        ),
        (Requests, "publish", "request = named.get((event.session, event.request))", "request = None"),
        world=contended_locks,
    ),
    mutant(
        "a release is forgotten if nobody answers",
        "etcd #22123",
        (
            Requests,
            "release",
            "self._submit(request, commands.release, arguments, partial(self._released, request))",
            "self._replica.core.leader and self._submit(\n"
            "        request, commands.release, arguments, partial(self._released, request))",
        ),
        world=old_leaders_and_locks,
    ),
    mutant(
        "who holds is not told that its session is over",
        "etcd #6127",
        (OwnSession, "renew", "replica.requests.session_over(lease)", "pass"),
        (Requests, "lease_state", "elif lease.ended:", "elif False:"),
        (Requests, "_look", "elif request.state == HELD and request.told:", "elif False:"),
        world=held_locks,
    ),
    mutant(
        "what was released is told to be lost",
        "client-go",
        (
            Requests,
            "session_over",
            "elif request.state == LEAVING:",
            "elif False:",
        ),
        (Requests, "session_over", "if request.state == HELD and request.told:", "if request.told:"),
        world=held_locks,
    ),
]

FOUND_HERE = [
    mutant(
        "a hold that was given up with its lease stays the group's",
        "found here",
        (Requests, "_lose", "if reason == LAPSED:", "if False:"),
        story=a_session_that_was_given_up_comes_back,
    ),
    mutant(
        "a grant is told by the lease that its session had then",
        "found here",
        (Requests, "_tell", "if self._in_present_session(request):", "if False:"),
        story=granted_while_the_lease_was_over,
    ),
    mutant(
        "a member that stops holds on until it hears of the end of its session",
        "found here",
        (OwnSession, "close", 'self.lease.ended = self.lease.ended or "closed"', "pass"),
        (OwnSession, "close", "self._tell(self.lease, EXPIRED)", "pass"),
        story=a_member_that_leaves_holds_nothing,
    ),
    mutant(
        "an open of a session ends whichever its owner has",
        "found here",
        (Machine, "_open_session", "older.id != replaces", "False"),
        story=a_dead_process_opens_its_session_late,
    ),
]

LOCKS = [*LEASES, *GRANTS, *TOKENS, *DELAYS, *CALLERS, *FOUND_HERE]
