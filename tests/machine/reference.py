"""A second opinion on the replicated state: the same rules, written a second time, with plain dicts and lists.

Slow and literal on purpose. It takes commands as tuples of (name, field, ...), never bytes, and shares no code with
what it judges; only the numbers of the replies are the same. What must not live here: who has which lock
(`machine.reference_locks`).
"""

from __future__ import annotations

from typing import Any

from machine.reference_locks import Locks

OK, SESSION_ENDED, STALE, CONFLICT, OWNED_BY_OTHER, QUOTA, ID_IN_USE, OWNER_IN_USE = 0, 2, 3, 4, 5, 6, 7, 8
HOLD_GONE, CANCELLED = 15, 16
OVERHEAD = 256
ENDED_MAX = 10_000
REPLY_VALUES = 1 << 20
TICK_KEYS = 1000
NEVER = (1 << 63) - 1

Command = tuple[Any, ...]


class Reference:
    def __init__(self, limits: dict[str, int]) -> None:
        self.index = 0
        self.time = 0
        self.limits = dict(limits)
        self.limits_index = 0
        self.keys: dict[str, dict[str, Any]] = {}
        self.sessions: dict[int, dict[str, Any]] = {}
        self.ended: list[tuple[int, int]] = []
        self.locks = Locks()
        #: Every change ever: (revision, key, value or None).
        self.changes: list[tuple[int, str, bytes | None]] = []

    def apply(self, index: int, term: int, time: int, command: Command | None) -> Any:
        """`command` None: bytes that are no command."""
        self.index = index
        self.time = min(max(self.time, time), NEVER)
        if command is None:
            return None
        name, *fields = command
        return getattr(self, f"_{name}")(term, *fields)

    @property
    def at(self) -> tuple[int, int]:
        return self.index, self.time

    # -- no session needed

    def _open(self, term: int, session: int, owner: str, instance: int, ttl: int, replaces: int, gone: bool) -> Any:
        if session in self.sessions:
            found = self.sessions[session]
            if found["owner"] != owner or found["instance"] != instance:
                return (session, 0, (ID_IN_USE,))
            return (session, 0, (OK, found["opened"], 0))
        if session in [ended for ended, _ in self.ended[-ENDED_MAX:]]:
            return (session, 0, (SESSION_ENDED,))
        older = [number for number, found in self.sessions.items() if found["owner"] == owner]
        if older and older[0] != replaces:
            return (session, 0, (OWNER_IN_USE, older[0]))
        if len(self.sessions) - len(older) + 1 > self.limits["sessions"]:
            return (session, 0, (QUOTA, "sessions", self.limits["sessions"]))
        for number in older:
            self._end(number, lost=not gone)
        self.sessions[session] = {
            "owner": owner,
            "instance": instance,
            "ttl": ttl,
            "opened": self.index,
            "low": 0,
            "replies": {},
        }
        return (session, 0, (OK, self.index, 0))

    def _expire(self, term: int, session: int, proposer_term: int) -> None:
        if proposer_term == term and session in self.sessions:
            self._end(session, lost=True)

    def _tick(self, term: int) -> None:
        due = sorted((r["expires_at"], key) for key, r in self.keys.items() if 0 < r["expires_at"] <= self.time)
        for _, key in due[:TICK_KEYS]:
            self._remove(key)
        self.locks.tick(self.at)

    def _epoch(self, term: int, epoch: int) -> None:
        self.locks.set_epoch(self.at, epoch)

    def _limits(self, term: int, replaces: int, limits: dict[str, int]) -> None:
        if replaces == self.limits_index:
            self.limits = dict(limits)
            self.limits_index = self.index

    # -- in a session

    def _in_session(self, session: int, sequence: int, low: int, work: Any) -> Any:
        found = self.sessions.get(session)
        if found is None:
            return (session, sequence, (SESSION_ENDED,))
        if sequence in found["replies"]:
            return (session, sequence, found["replies"][sequence])
        if sequence <= found["low"]:
            return (session, sequence, (STALE,))
        found["low"] = max(found["low"], low)
        found["replies"] = {n: reply for n, reply in found["replies"].items() if n > found["low"]}
        reply = work(found)
        found["replies"][sequence] = reply
        return (session, sequence, reply)

    def _close(self, term: int, session: int, sequence: int, low: int) -> Any:
        def work(found: dict[str, Any]) -> Any:
            return (OK, self.index, self._end(session, lost=False))

        return self._in_session(session, sequence, low, work)

    def _write(
        self, term: int, session: int, sequence: int, low: int, compares: list[Any], operations: list[Any], whole: bool
    ) -> Any:
        """compares: (key, revision) or ("hold", name, session, request, token); operations: ("put", key, value,
        ephemeral, ttl) or ("delete", key)."""

        def work(found: dict[str, Any]) -> Any:
            for compare in compares:
                if len(compare) == 5:
                    if self.locks.held(*compare[1:]) is None:
                        return (HOLD_GONE, compare[1])
                    continue
                key, revision = compare
                record = self.keys.get(key)
                if (record["revision"] if record else 0) != revision:
                    return self._conflict(found, key, record)
            return self._do(session, operations, whole)

        return self._in_session(session, sequence, low, work)

    def _conflict(self, session: dict[str, Any], key: str, record: dict[str, Any] | None) -> Any:
        if record is None:
            return (CONFLICT, key, None)
        held = sum(
            len(reply[2][0])
            for reply in session["replies"].values()
            if reply[0] == CONFLICT and reply[2] is not None and reply[2][0] is not None
        )
        value = record["value"] if held + len(record["value"]) <= REPLY_VALUES else None
        names = ("revision", "created", "version", "session", "expires_at")
        return (CONFLICT, key, (value, *(record[name] for name in names)))

    def _do(self, session: int, operations: list[Any], whole: bool) -> Any:
        size = sum(len(op[1].encode()) + (len(op[2]) if op[0] == "put" else 0) for op in operations)
        if whole and size > self.limits["transaction_bytes"]:
            return (QUOTA, "transaction_bytes", self.limits["transaction_bytes"])
        wanted = {key: dict(record) for key, record in self.keys.items()}
        changed: list[tuple[int, str, bytes | None]] = []
        for op in operations:
            key = op[1]
            record = wanted.get(key)
            if op[0] == "delete":
                if record is not None:
                    del wanted[key]
                    changed.append((self.index, key, None))
                continue
            _, _, value, ephemeral, ttl = op
            if record is not None and record["session"] not in (0, session):
                return (OWNED_BY_OTHER, key, record["session"])
            if len(value) > self.limits["value_bytes"]:
                return (QUOTA, "value_bytes", self.limits["value_bytes"])
            wanted[key] = {
                "value": value,
                "revision": self.index,
                "created": record["created"] if record else self.index,
                "version": record["version"] + 1 if record else 1,
                "session": session if ephemeral else record["session"] if record else 0,
                "expires_at": min(self.time + ttl, NEVER) if ttl else 0,
            }
            changed.append((self.index, key, value))
        if any(op[0] == "put" for op in operations):
            if (
                sum(len(key.encode()) + len(r["value"]) + OVERHEAD for key, r in wanted.items())
                > self.limits["state_bytes"]
            ):
                return (QUOTA, "state_bytes", self.limits["state_bytes"])
            if len(wanted) > self.limits["keys"]:
                return (QUOTA, "keys", self.limits["keys"])
        self.keys = wanted
        self.changes += changed
        return (OK, self.index, len(changed))

    # -- locks, in a session

    def _acquire(self, term: int, session: int, sequence: int, low: int, *fields: Any) -> Any:
        """fields: name, shared, permits, priority, wait, delay, reclaim, value."""

        def work(found: dict[str, Any]) -> Any:
            return self.locks.acquire(self.at, self.limits, (session, sequence, found["owner"]), *fields)

        return self._in_session(session, sequence, low, work)

    def _release(self, term: int, session: int, sequence: int, low: int, *fields: Any) -> Any:
        """fields: name, request, token, successor."""
        return self._in_session(session, sequence, low, lambda _: self.locks.release(self.at, session, *fields))

    def _cancel(self, term: int, session: int, sequence: int, low: int, name: str, request: int) -> Any:
        def work(found: dict[str, Any]) -> Any:
            reply = self.locks.cancel(self.at, session, name, request)
            if request > found["low"] and request not in found["replies"]:
                found["replies"][request] = (CANCELLED,)
            return reply

        return self._in_session(session, sequence, low, work)

    def _set_value(self, term: int, session: int, sequence: int, low: int, *fields: Any) -> Any:
        """fields: name, request, token, value."""
        return self._in_session(session, sequence, low, lambda _: self.locks.set_value(self.at, session, *fields))

    def _downgrade(self, term: int, session: int, sequence: int, low: int, *fields: Any) -> Any:
        """fields: name, request, token."""
        return self._in_session(session, sequence, low, lambda _: self.locks.downgrade(self.at, session, *fields))

    # -- ends

    def _end(self, session: int, lost: bool) -> int:
        owned = sorted(key for key, record in self.keys.items() if record["session"] == session)
        for key in owned:
            self._remove(key)
        del self.sessions[session]
        self.ended.append((session, self.index))
        self.locks.end_session(self.at, session, lost)
        return len(owned)

    def _remove(self, key: str) -> None:
        del self.keys[key]
        self.changes.append((self.index, key, None))

    def next_due(self) -> int | None:
        due = [r["expires_at"] for r in self.keys.values() if r["expires_at"]]
        locks = self.locks.next_due()
        return min(due if locks is None else [*due, locks], default=None)
