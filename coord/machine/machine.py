"""The machine: takes committed commands one at a time, and is the same on every member after each.

The way in for drivers. What a command looks like is in `coord.machine.commands`, what it is answered with in
`coord.machine.replies`. One thread calls; only what `store` and `locks` offer to any thread is for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coord.machine import commands, lock_commands, replies
from coord.machine.cluster_clock import ClusterClock
from coord.machine.commands import BadCommand, Command
from coord.machine.config_store import ConfigStore, key_bytes
from coord.machine.history import BYTES_MAX, REVISIONS_MAX, History
from coord.machine.limits import Limits, read_limits
from coord.machine.lock_table import LockEvent, LockTable
from coord.machine.records import Change, Row, Write, changes_of, make_row
from coord.machine.replies import Reply
from coord.machine.sessions import CLOSED, EXPIRED, REPLY_VALUE_BYTES_MAX, SUPERSEDED, Session, SessionTable
from coord.machine.snapshot import Cut, State, read_state

#: How many keys one tick removes at most, so that none holds up the driver; `next_due` then asks for another at once.
TICK_KEYS_MAX = 1000
#: The same for locks whose delay has passed.
TICK_LOCKS_MAX = 1000

#: How many indexes hash reports are kept for.
HASH_REPORTS_MAX = 4

#: (session, sequence, reply): who waits, and for what. Sequence 0: the open of the session.
Outcome = tuple[int, int, Reply]


class Machine:
    """The replicated state.

    Invariant: everything here is a function of the commands applied so far, their indexes, terms and times; except
    `hash_reports`, `_history`, `_pending` and the events, which are about what this member saw happen.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        history_revisions: int = REVISIONS_MAX,
        history_bytes: int = BYTES_MAX,
    ) -> None:
        """Start empty. `limits` must be equal on all members of a group, so leave them out: `commands.set_limits` sets
        them for all. How much history is kept is each member's own affair."""
        #: Index of the last entry whose effect is in the state: changed together with it, in one thread (trap 44).
        self.applied_index = 0
        self.limits = Limits() if limits is None else limits
        #: Index of the entry that set the limits, 0 before the first.
        self.limits_index = 0
        #: Index: the state hash each member reported for it. The newest few; for comparing, not part of the state.
        self.hash_reports: dict[int, dict[str, int]] = {}
        self.hash_report_count = 0
        self.store = ConfigStore()
        self.locks = LockTable()
        self._clock = ClusterClock()
        self._sessions = SessionTable()
        self._history = History(history_revisions, history_bytes)
        self._pending: list[tuple[int, Sequence[Write], bool]] = []

    # -- what a driver asks

    @property
    def time(self) -> int:
        """Cluster time, nanoseconds."""
        return self._clock.now

    @property
    def epoch(self) -> int:
        """What every token begins with; 0 before the first is set, and until then no lock is granted."""
        return self.locks.epoch

    @property
    def sessions(self) -> dict[int, Session]:
        """The live sessions by id. Not to be changed."""
        return self._sessions.live

    def has_session(self, session: int) -> bool:
        """Tell whether `session` is live."""
        return session in self._sessions.live

    def session_ttls(self) -> dict[int, tuple[str, int]]:
        """Return the (owner, ttl in nanoseconds) of each live session."""
        return {session.id: (session.owner, session.ttl) for session in self._sessions.live.values()}

    def session_of(self, owner: str) -> int:
        """The live session of `owner`; 0: it has none."""
        return self._sessions.owners.get(owner, 0)

    def remembered_reply(self, session: int, sequence: int) -> Reply | None:
        """Return the reply to that command: None if it was not applied, or taken, or its session is over."""
        found = self._sessions.live.get(session)
        return None if found is None else found.replies.get(sequence)

    @property
    def state_hash(self) -> int:
        """64 bits that are equal on all members at an index, unless one has gone astray (trap 52)."""
        return self._state().digest()

    def next_due(self) -> int | None:
        """The cluster time at which a tick is wanted, or None."""
        keys, locks = self.store.next_due(), self.locks.next_due()
        return keys if locks is None else locks if keys is None else min(keys, locks)

    @property
    def compacted(self) -> int:
        """`changes_since` knows everything above this revision."""
        return self._history.compacted

    def changes_since(self, revision: int) -> list[Change] | None:
        """Return the changes above `revision`, oldest first; None if some are no longer known (`compacted`)."""
        found = self._history.since(revision)
        if found is None:
            return None
        return [change for number, writes in found for change in changes_of(number, writes, False)]

    def take_changes(self) -> list[Change]:
        """Return the changes since the last call, oldest first. Call it every turn: they are kept until then."""
        pending, self._pending = self._pending, []
        return [change for number, writes, resync in pending for change in changes_of(number, writes, resync)]

    def take_session_events(self) -> list[tuple[int, str]]:
        """Return (session, sessions.OPENED, CLOSED, EXPIRED or SUPERSEDED) since the last call. Call it every turn."""
        return self._sessions.take_events()

    def take_lock_events(self) -> list[LockEvent]:
        """Return what happened to requests for locks since the last call, oldest first. Call it every turn."""
        return self.locks.take_events()

    # -- applying

    def apply(self, index: int, term: int, time: int, payload: bytes) -> Outcome | None:
        """Apply the command of the entry at `index`, whose leader stamped it with `time`, nanoseconds of cluster time.

        Returns who waits for what, or None if nobody can. Never raises, whatever the bytes; a bad command changes
        nothing but index and clock. `index` must be the one after the last.
        """
        assert index == self.applied_index + 1, f"entry {index} after {self.applied_index}"
        self.applied_index = index
        if time > self._clock.now:
            self._clock.advance(time)
        try:
            command = commands.decode(payload)
        except BadCommand as error:
            waiter = commands.sender(payload)
            return None if waiter is None else (*waiter, (replies.BAD_COMMAND, str(error)))
        operation = command[0]
        if operation >= commands.CLOSE_SESSION:
            return self._apply_in_session(index, command)
        if operation == commands.OPEN_SESSION:
            return command[1], 0, self._open_session(index, command)
        if operation == commands.EXPIRE_SESSION:
            self._expire_session(index, term, command)
        elif operation == commands.TICK:
            self._tick(index)
        elif operation == commands.SET_EPOCH:
            self._set_epoch(index, command)
        elif operation == commands.REPORT_HASH:
            self._report_hash(command)
        else:
            assert operation == commands.SET_LIMITS, f"operation {operation} is decoded but not applied"
            self._set_limits(index, command)
        return None

    def skip(self, index: int, time: int) -> None:
        """Pass over entries up to `index` that carry no command (no-ops, memberships)."""
        assert index >= self.applied_index, f"entry {index} after {self.applied_index}"
        self.applied_index = index
        self._clock.advance(time)

    def _apply_in_session(self, index: int, command: Command) -> Outcome:
        """Exactly once: a duplicate is answered from memory, or told that its answer has been taken (trap 51)."""
        operation, id, sequence, low_water = command[0], command[1], command[2], command[3]
        session = self._sessions.live.get(id)
        if session is None:
            return id, sequence, replies.ENDED_REPLY
        remembered = session.replies.get(sequence)
        if remembered is not None:
            return id, sequence, remembered
        if sequence <= session.low_water:
            return id, sequence, replies.STALE_REPLY
        if low_water > session.low_water:
            session.acknowledge(low_water)
        if operation == commands.PUT:
            reply = self._put(index, session, command)
        elif operation == commands.DELETE:
            reply = self._delete(index, session, command)
        elif operation == commands.TRANSACTION:
            reply = self._transaction(index, session, command)
        elif operation >= commands.ACQUIRE:
            reply = lock_commands.apply(self.locks, session, self.limits, index, self._clock.now, command)
        else:
            assert operation == commands.CLOSE_SESSION, f"operation {operation} is decoded but not applied"
            return id, sequence, (replies.OK, index, self._end_session(index, session, CLOSED))
        session.remember(sequence, reply)
        self._sessions.touch(session)
        return id, sequence, reply

    # -- sessions, clock, limits

    def _open_session(self, index: int, command: Command) -> Reply:
        _, id, owner, instance, ttl, replaces, gone = command
        table = self._sessions
        session = table.live.get(id)
        if session is not None:
            if (session.owner, session.instance) != (owner, instance):
                return (replies.SESSION_ID_IN_USE,)
            return replies.OK, session.opened, 0
        if id in table.ended:
            return replies.ENDED_REPLY
        older = table.live.get(table.owners.get(owner, 0))
        if older is not None and older.id != replaces:
            return replies.OWNER_IN_USE, older.id
        if len(table.live) - (older is not None) >= self.limits.sessions:
            return replies.QUOTA, "sessions", self.limits.sessions
        if older is not None:
            self._end_session(index, older, SUPERSEDED, gone)
        table.add(Session(id, owner, instance, ttl, index))
        return replies.OK, index, 0

    def _expire_session(self, index: int, term: int, command: Command) -> None:
        _, id, proposer_term = command
        session = self._sessions.live.get(id)
        if session is not None and proposer_term == term:
            self._end_session(index, session, EXPIRED)

    def _end_session(self, index: int, session: Session, event: str, gone: bool = True) -> int:
        """End it, and its ephemeral keys in the same revision: deleted, never adopted. Return how many. In the same
        entry its locks go to the next; with delay, if its process may still be at work: `gone` says it is not."""
        writes: list[Write] = [(key, self.store.row(key), None) for key in sorted(session.keys)]
        self._commit(index, writes, self.store.sizes_after(writes)[0])
        if session.requests:
            delayed = event == EXPIRED or not gone
            self.locks.end_session(session.id, session.requests.items(), delayed, index, self._clock.now)
            session.requests.clear()
        self._sessions.end(session, index, event)
        return len(writes)

    def _tick(self, index: int) -> None:
        due = self.store.take_due(self._clock.now, TICK_KEYS_MAX)
        writes: list[Write] = [(key, self.store.row(key), None) for key in due]
        self._commit(index, writes, self.store.sizes_after(writes)[0])
        self.locks.tick(index, self._clock.now, TICK_LOCKS_MAX)

    def _set_epoch(self, index: int, command: Command) -> None:
        _, epoch = command
        if epoch > self.locks.epoch:
            self.locks.epoch = epoch
            self.locks.pump_all(index, self._clock.now)

    def _report_hash(self, command: Command) -> None:
        _, owner, index, state_hash = command
        reports = self.hash_reports
        self.hash_report_count += 1
        reports.setdefault(index, {})[owner] = state_hash
        if len(reports) > HASH_REPORTS_MAX:
            del reports[min(reports)]

    def _set_limits(self, index: int, command: Command) -> None:
        _, replaces, row = command
        if replaces == self.limits_index:
            self.limits = read_limits(row)
            self.limits_index = index

    # -- config writes

    def _put(self, index: int, session: Session, command: Command) -> Reply:
        _, _, _, _, key, value, ephemeral, ttl, expected = command
        before = self.store.row(key)
        if expected != commands.ANY and (0 if before is None else before[1]) != expected:
            return self._conflict(session, key, before)
        write = self._plan_put(index, session, key, before, value, ephemeral, ttl)
        return self._write(index, session, [write])

    def _delete(self, index: int, session: Session, command: Command) -> Reply:
        _, _, _, _, key, expected = command
        before = self.store.row(key)
        if expected != commands.ANY and (0 if before is None else before[1]) != expected:
            return self._conflict(session, key, before)
        return self._write(index, session, [] if before is None else [(key, before, None)])

    def _transaction(self, index: int, session: Session, command: Command) -> Reply:
        _, _, _, _, compares, operations = command
        for compare in compares:
            if compare[0] == commands.COMPARE_HOLD:
                if not self.locks.stands(*compare[1:]):
                    return replies.HOLD_GONE, compare[1]
                continue
            _, key, expected = compare
            before = self.store.row(key)
            if (0 if before is None else before[1]) != expected:
                return self._conflict(session, key, before)
        writes: list[Write] = []
        size = 0
        for operation in operations:
            key = operation[1]
            before = self.store.row(key)
            size += key_bytes(key)
            if operation[0] == commands.PUT:
                _, _, value, ephemeral, ttl = operation
                size += len(value)
                writes.append(self._plan_put(index, session, key, before, value, ephemeral, ttl))
            elif before is not None:
                writes.append((key, before, None))
        if size > self.limits.transaction_bytes:
            return replies.QUOTA, "transaction_bytes", self.limits.transaction_bytes
        return self._write(index, session, writes)

    def _plan_put(
        self, index: int, session: Session, key: str, before: Row | None, value: bytes, ephemeral: bool, ttl: int
    ) -> Write:
        """A plain put keeps an ephemeral key its owner's; only a delete makes an end of that. A time to live does not
        outlast the put it came with."""
        owner = session.id if ephemeral else 0 if before is None else before[4]
        expires_at = self._clock.after(ttl) if ttl else 0
        return key, before, make_row(key.encode(), value, index, before, owner, expires_at)

    def _write(self, index: int, session: Session, writes: list[Write]) -> Reply:
        """Do `writes`, all or nothing, unless one of the rules every write is under forbids it."""
        limits = self.limits
        puts = False
        for key, before, after in writes:
            if after is None:
                continue
            puts = True
            if before is not None and before[4] and before[4] != session.id:
                return replies.OWNED_BY_OTHER, key, before[4]
            if len(after[0]) > limits.value_bytes:
                return replies.QUOTA, "value_bytes", limits.value_bytes
        size, keys = self.store.sizes_after(writes)
        if puts and size > limits.state_bytes:
            return replies.QUOTA, "state_bytes", limits.state_bytes
        if puts and keys > limits.keys:
            return replies.QUOTA, "keys", limits.keys
        self._commit(index, writes, size)
        return replies.OK, index, len(writes)

    def _commit(self, index: int, writes: Sequence[Write], size: int) -> None:
        """Do `writes`, which nothing forbids; no writes make no revision and no event."""
        if not writes:
            return
        self.store.commit(index, writes, size)
        for key, before, after in writes:
            owned_before = 0 if before is None else before[4]
            owned_after = 0 if after is None else after[4]
            if owned_before != owned_after:
                if owned_before:
                    self._sessions.live[owned_before].keys.discard(key)
                if owned_after:
                    self._sessions.live[owned_after].keys.add(key)
        self._history.append(index, writes)
        self._pending.append((index, writes, False))

    def _conflict(self, session: Session, key: str, current: Row | None) -> Reply:
        """The reply holds the value as long as the session's replies together do not hold too much."""
        if current is None:
            return replies.CONFLICT, key, None
        value, *rest = current[:6]
        if session.reply_value_bytes + len(value) > REPLY_VALUE_BYTES_MAX:
            return replies.CONFLICT, key, (None, *rest)
        return replies.CONFLICT, key, (value, *rest)

    # -- snapshots

    def _state(self) -> State:
        return State(
            self.applied_index,
            self._clock.now,
            self.limits,
            self.limits_index,
            self._sessions,
            self.store,
            self.locks,
        )

    def cut(self) -> Cut:
        """Return the state as it is now, to be encoded later and elsewhere. Takes about 25 ns for each key, and 150 for
        each lock."""
        return Cut(self._state())

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Become the state in a snapshot; ValueError, and nothing changed, if it is damaged or older than this one.

        For a large state call `snapshot.read_state` in another thread, and `install` with what it returns.
        """
        self.install(read_state(chunks))

    def install(self, state: State) -> None:
        """Become `state`, which is this machine's from now on; ValueError if it is older than this one.

        Watches see the difference as changes with `resync` set: puts at the revision that made them, and deletes, whose
        own revisions are lost, at the new state's. None is below what they have seen. History begins anew.
        """
        if state.index < self.applied_index:
            raise ValueError(
                f"snapshot of index {state.index} is older than the state, which is at {self.applied_index}; "
                "watches and readers would go back. Restore it into a fresh machine instead"
            )
        self._pending.extend((number, writes, True) for number, writes in self.store.differences(state.store))
        state.sessions.follow(self._sessions)
        self._history.begin_anew(max(self.store.revision, state.store.revision))
        self._sessions = state.sessions
        self._clock = ClusterClock(state.time)
        self.limits, self.limits_index = state.limits, state.limits_index
        self.applied_index = state.index
        self.store.become(state.store)
        self.locks.become(state.locks)
