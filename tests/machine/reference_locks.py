"""A second opinion on the lock table: the rules of locks, written a second time, with plain dicts and lists.

Slow and literal on purpose. It shares no code with what it judges; only the numbers of the replies are the same. What
must not live here: sessions, sequences and remembered replies (`machine.reference`).
"""

from __future__ import annotations

from typing import Any

OK, QUOTA = 0, 6
GRANTED, WAITING, DENIED, NOT_HELD, PERMITS_DIFFER, QUEUE_FULL = 9, 10, 11, 12, 13, 14
#: A token is the epoch in front of a generation of this many bits.
GENERATION_BITS = 39
NEVER = (1 << 63) - 1

Request = dict[str, Any]


class Locks:
    """`at` in every call: (index, cluster time) of the entry being applied."""

    def __init__(self) -> None:
        self.epoch = 0
        #: By name: {"permits": int, "holders": [...], "queue": [...], "delays": {slot: {"x", "s", "owner"}}}.
        #: Holders stand in the order in which they were granted, the queue in the order in which it is served. "x" is
        #: the time before which nobody has the slot alone, "s" the time before which nobody shares it; 0: any time.
        self.locks: dict[str, dict[str, Any]] = {}
        #: What happened since `take_events`: (kind, name, session, request).
        self.events: list[tuple[str, str, int, int]] = []

    # -- commands

    def set_epoch(self, at: tuple[int, int], epoch: int) -> None:
        if epoch > self.epoch:
            self.epoch = epoch
            for name in sorted(self.locks):
                self._serve(at, name)

    def acquire(
        self,
        at: tuple[int, int],
        limits: dict[str, int],
        who: tuple[int, int, str],
        name: str,
        shared: bool,
        permits: int,
        priority: int,
        wait: bool,
        delay: int,
        reclaim: bool,
        value: bytes,
    ) -> Any:
        """`who`: session, request and owner."""
        lock = self.locks.get(name, {"permits": permits, "holders": [], "queue": [], "delays": {}})
        if lock["permits"] != permits:
            return (PERMITS_DIFFER, lock["permits"])
        request: Request = {
            "session": who[0],
            "request": who[1],
            "owner": who[2],
            "shared": shared,
            "priority": priority,
            "delay": delay,
            "value": value,
            "asked_at": at[1],
            "asked": at[0],
        }
        slot = self._reclaimable(lock, who[2], at[1]) if reclaim else None
        free = self._free_slot(lock, request, at[1])
        if slot is None and not wait and (lock["queue"] or free is None):
            return (DENIED, lock["holders"][0]["owner"] if lock["holders"] else "")
        place = self._place(lock["queue"], priority)
        if slot is None and len(lock["queue"]) >= limits["waiters"] and (lock["queue"] or free is None):
            # Also one who would be served at once, before all who wait: the queue is looked at first.
            return (QUEUE_FULL, limits["waiters"])
        if sum(len(found["holders"]) + len(found["queue"]) for found in self.locks.values()) >= limits["lock_requests"]:
            return (QUOTA, "lock_requests", limits["lock_requests"])
        self.locks[name] = lock
        if slot is None:
            lock["queue"].insert(place, request)
        else:
            del lock["delays"][slot]
            self._grant(at, name, request, slot)
        self._serve(at, name)
        for hold in lock["holders"]:
            if (hold["session"], hold["request"]) == who[:2]:
                return (GRANTED, hold["token"], hold["slot"])
        return (WAITING,)

    def release(
        self, at: tuple[int, int], session: int, name: str, request: int, token: int, successor: str
    ) -> tuple[int, ...]:
        if self.held(name, session, request, token) is None:
            return (NOT_HELD,)
        self._take_out(name, "holders", session, request)
        queue = self.locks[name]["queue"]
        first = next((waiter for waiter in queue if waiter["owner"] == successor), None)
        if first is not None:
            queue.remove(first)
            queue.insert(0, first)
        self._serve(at, name)
        return (OK, at[0], 1)

    def cancel(self, at: tuple[int, int], session: int, name: str, request: int) -> tuple[int, ...]:
        removed = self._take_out(name, "queue", session, request) or self._take_out(name, "holders", session, request)
        if removed:
            self._serve(at, name)
        return (OK, at[0], 1 if removed else 0)

    def set_value(
        self, at: tuple[int, int], session: int, name: str, request: int, token: int, value: bytes
    ) -> tuple[int, ...]:
        hold = self.held(name, session, request, token)
        if hold is None:
            return (NOT_HELD,)
        hold["value"] = value
        self.events.append(("changed", name, session, request))
        return (OK, at[0], 1)

    def downgrade(self, at: tuple[int, int], session: int, name: str, request: int, token: int) -> tuple[int, ...]:
        hold = self.held(name, session, request, token)
        if hold is None or hold["shared"] or self.locks[name]["permits"] != 1:
            return (NOT_HELD,)
        hold["shared"] = True
        hold["generation"] = at[0]
        hold["token"] = self._token(at[0])
        self.events.append(("changed", name, session, request))
        reply = (GRANTED, hold["token"], hold["slot"])
        self._serve(at, name)
        return reply

    def tick(self, at: tuple[int, int]) -> None:
        for name in sorted(self.locks):
            delays = self.locks[name]["delays"]
            over = [slot for slot, times in delays.items() if max(times["x"], times["s"]) <= at[1]]
            for slot in over:
                del delays[slot]
            if over:
                self._serve(at, name)

    def end_session(self, at: tuple[int, int], session: int, lost: bool) -> None:
        """All its waiters go, then its holders, then those locks are served. `lost`: it may not know, so the locks
        stay closed for as long as it asked."""
        touched = set()
        for list_name in ("queue", "holders"):
            for name, lock in sorted(self.locks.items()):
                for found in [one for one in lock[list_name] if one["session"] == session]:
                    touched.add(name)
                    self._take_out(name, list_name, session, found["request"])
                    if list_name == "holders" and lost and found["delay"]:
                        self._close_for_a_while(lock, found, at[1])
        for name in sorted(touched):
            self._serve(at, name)

    def held(self, name: str, session: int, request: int, token: int) -> Request | None:
        for hold in self.locks[name]["holders"] if name in self.locks else []:
            if (hold["session"], hold["request"], hold["token"]) == (session, request, token):
                found: Request = hold
                return found
        return None

    def next_due(self) -> int | None:
        """When the first delay of a slot is over. Of its two times the earlier is never the one that is waited for:
        while it lies ahead nobody shares the slot, so nobody who does can be lost and move only the other."""
        delays = [times for lock in self.locks.values() for times in lock["delays"].values()]
        return min((max(times["x"], times["s"]) for times in delays), default=None)

    def take_events(self) -> list[tuple[str, str, int, int]]:
        events, self.events = self.events, []
        return events

    def view(self) -> dict[str, dict[str, Any]]:
        """All of it as plain tuples: of each lock, permits; (session, request, owner, shared, slot, token, delay,
        value, granted_at, granted) of who holds; (session, request, owner, shared, priority, delay, value, asked_at,
        asked) of who waits; (x, s, owner) of each closed slot."""
        holder = ("session", "request", "owner", "shared", "slot", "token", "delay", "value", "granted_at", "granted")
        waiter = ("session", "request", "owner", "shared", "priority", "delay", "value", "asked_at", "asked")
        return {
            name: {
                "permits": lock["permits"],
                "holders": [tuple(one[field] for field in holder) for one in lock["holders"]],
                "queue": [tuple(one[field] for field in waiter) for one in lock["queue"]],
                "delays": {slot: (times["x"], times["s"], times["owner"]) for slot, times in lock["delays"].items()},
            }
            for name, lock in self.locks.items()
        }

    # -- rules

    def first_free_slot(self, name: str, now: int) -> int | None:
        """Where the head of the queue of `name` could be granted this moment; None: nowhere, or nobody waits."""
        lock = self.locks[name]
        return self._free_slot(lock, lock["queue"][0], now) if lock["queue"] else None

    def _free_slot(self, lock: dict[str, Any], request: Request, now: int) -> int | None:
        """The lowest slot that `request` could have if it were first; None if there is none."""
        if self.epoch == 0:
            return None
        for slot in range(lock["permits"]):
            holders = [hold for hold in lock["holders"] if hold["slot"] == slot]
            if holders and not (request["shared"] and all(hold["shared"] for hold in holders)):
                continue
            times = lock["delays"].get(slot, {"x": 0, "s": 0})
            if (times["s"] if request["shared"] else max(times["x"], times["s"])) <= now:
                return slot
        return None

    def _reclaimable(self, lock: dict[str, Any], owner: str, now: int) -> int | None:
        """The lowest slot that is closed because `owner` was lost, with nobody in it."""
        if self.epoch == 0:
            return None
        for slot in range(lock["permits"]):
            times = lock["delays"].get(slot)
            closed = times is not None and max(times["x"], times["s"]) > now
            if closed and times["owner"] == owner and not any(hold["slot"] == slot for hold in lock["holders"]):
                return slot
        return None

    @staticmethod
    def _place(queue: list[Request], priority: int) -> int:
        """Behind all that came earlier, but for those of lower priority at the end of the queue."""
        place = len(queue)
        while place and queue[place - 1]["priority"] < priority:
            place -= 1
        return place

    def _serve(self, at: tuple[int, int], name: str) -> None:
        """While the head of the queue can be granted, grant it."""
        lock = self.locks[name]
        while (slot := self.first_free_slot(name, at[1])) is not None:
            self._grant(at, name, lock["queue"].pop(0), slot)
        if not lock["holders"] and not lock["queue"] and not lock["delays"]:
            del self.locks[name]

    def _grant(self, at: tuple[int, int], name: str, request: Request, slot: int) -> None:
        holders = self.locks[name]["holders"]
        others = [hold for hold in holders if hold["slot"] == slot]
        generation = others[0]["generation"] if others else at[0]
        # Who joins has the token of the group: with a greater one, a reader would fence those who read already.
        names = ("session", "request", "owner", "shared", "delay", "value")
        holders.append(
            {
                **{name: request[name] for name in names},
                "slot": slot,
                "generation": generation,
                "token": others[0]["token"] if others else self._token(generation),
                "granted_at": at[1],
                "granted": at[0],
            }
        )
        self.events.append(("granted", name, request["session"], request["request"]))

    def _token(self, generation: int) -> int:
        return self.epoch << GENERATION_BITS | generation

    def _take_out(self, name: str, list_name: str, session: int, request: int) -> bool:
        """Remove it from the "queue" or the "holders"; False if it is not there."""
        found = self.locks[name][list_name] if name in self.locks else []
        for one in found:
            if (one["session"], one["request"]) == (session, request):
                found.remove(one)
                self.events.append(("gone", name, session, request))
                return True
        return False

    @staticmethod
    def _close_for_a_while(lock: dict[str, Any], lost: Request, now: int) -> None:
        times = lock["delays"].get(lost["slot"], {"x": 0, "s": 0, "owner": lost["owner"]})
        if max(times["x"], times["s"]) <= now:
            times["owner"] = lost["owner"]
        elif times["owner"] != lost["owner"]:
            # Closed because of two: neither may lift what is there for fear of the other.
            times["owner"] = ""
        until = min(now + lost["delay"], NEVER)
        times["x"] = max(times["x"], until)
        if not lost["shared"]:
            times["s"] = max(times["s"], until)
        lock["delays"][lost["slot"]] = times
