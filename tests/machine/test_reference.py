"""The machine against the reference, over random histories; and against itself, by other routes to the same state."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coord.machine.limits import Limits
from coord.machine.machine import Machine
from coord.machine.snapshot import read_state
from machine.histories import SMALL, WIDE, Historian, limits_as_dict
from machine.reference import Reference

ROOT = Path(__file__).parents[2]
SEEDS = range(60)


def contents(machine: Machine) -> dict[str, Any]:
    """All of the state, as the reference has it."""
    revision, rows = machine.store.view()
    names = ("value", "revision", "created", "version", "session", "expires_at")
    sessions = {
        session.id: {
            "owner": session.owner,
            "instance": session.instance,
            "ttl": session.ttl,
            "opened": session.opened,
            "low": session.low_water,
            "replies": session.replies,
        }
        for session in machine.sessions.values()
    }
    assert revision == machine.store.revision
    return {
        "index": machine.applied_index,
        "time": machine.time,
        "limits": limits_as_dict(machine.limits),
        "limits_index": machine.limits_index,
        "keys": {key: dict(zip(names, row[:6], strict=True)) for key, row in rows.items()},
        "sessions": sessions,
        "epoch": machine.epoch,
        "locks": locks_of(machine),
    }


def locks_of(machine: Machine) -> dict[str, dict[str, Any]]:
    """All locks, as the reference's view has them."""
    locks = machine.locks
    return {
        name: {
            "permits": locks.permits(name),
            "holders": [hold[1:] for hold in locks.holders(name)],
            "queue": [waiter[1:] for waiter in locks.queue(name)],
            "delays": locks.delayed(name),
        }
        for name in locks.names()
    }


def expected_contents(reference: Reference) -> dict[str, Any]:
    names = ("index", "time", "limits", "limits_index", "keys", "sessions")
    return {
        **{name: getattr(reference, name) for name in names},
        "epoch": reference.locks.epoch,
        "locks": reference.locks.view(),
    }


class Invariants:
    """What must be true of the reference's locks after every step, whatever the rules make of the commands."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        #: The highest token that any hold of a lock and slot had in earlier steps.
        self.highest: dict[tuple[str, int], int] = {}
        #: (session, request): the token, while it holds.
        self.tokens: dict[tuple[int, int], int] = {}

    def check(self) -> None:
        seen: list[tuple[int, int]] = []
        for name, lock in self.reference.locks.view().items():
            assert lock["holders"] or lock["queue"] or lock["delays"], f"{name} is kept for nothing"
            for x, s, _ in lock["delays"].values():
                assert s in (0, x) or s <= self.reference.time, f"{name} opens for some at {s}, for the rest at {x}"
            seen += [one[:2] for one in lock["holders"] + lock["queue"]]
            for slot in {hold[4] for hold in lock["holders"]}:
                assert 0 <= slot < lock["permits"], f"{name} has no slot {slot}"
                self._check_slot(name, slot, [hold for hold in lock["holders"] if hold[4] == slot])
            due = self.reference.next_due()
            if due is None or due > self.reference.time:
                free = self.reference.locks.first_free_slot(name, self.reference.time)
                assert free is None, f"lost wake-up: {lock['queue'][0]} waits for slot {free} of {name}, which is free"
        assert len(seen) == len(set(seen)), f"a request is in two places: {sorted(seen)}"
        assert {session for session, _ in seen} <= set(self.reference.sessions), "a dead session holds or waits"
        self._note()

    def _check_slot(self, name: str, slot: int, holders: list[Any]) -> None:
        shared = [hold[3] for hold in holders]
        assert len(holders) == 1 or all(shared), f"slot {slot} of {name} has {holders}"
        highest = self.highest.get((name, slot), 0)
        news = [hold for hold in holders if self.tokens.get(hold[:2]) != hold[5]]
        for hold in news:
            joins = hold[3] and len(news) < len(holders)
            assert hold[5] >= highest if joins else hold[5] > highest, f"{hold} of {name} after token {highest}"

    def _note(self) -> None:
        self.tokens = {}
        for name, lock in self.reference.locks.view().items():
            for hold in lock["holders"]:
                self.tokens[hold[:2]] = hold[5]
                self.highest[name, hold[4]] = max(self.highest.get((name, hold[4]), 0), hold[5])


def recomputed(machine: Machine) -> int:
    """The state hash, from nothing but a snapshot's bytes."""
    return read_state(machine.cut().chunks()).digest()


def check_inside(machine: Machine) -> None:
    """The invariants written beside the fields."""
    _, rows = machine.store.view()
    assert machine.store.state_bytes == sum(len(key.encode()) + len(row[0]) + 256 for key, row in rows.items())
    owned: dict[int, set[str]] = {id: set() for id in machine.sessions}
    for key, row in rows.items():
        if row[4]:
            owned[row[4]].add(key)
    assert {session.id: session.keys for session in machine.sessions.values()} == owned
    for session in machine.sessions.values():
        assert all(session.low_water < sequence for sequence in session.replies)
        kept = [reply[2][0] for reply in session.replies.values() if reply[0] == 4 and reply[2] is not None]
        assert session.reply_value_bytes == sum(len(value) for value in kept if value is not None)
    for name in machine.locks.names():
        for hold in machine.locks.holders(name):
            assert machine.locks.hold(hold.session, hold.request) == hold
            assert machine.locks.waiting(hold.session, hold.request) is None
        for waiting in machine.locks.queue(name):
            assert machine.locks.waiting(waiting.session, waiting.request) == waiting
            assert machine.locks.hold(waiting.session, waiting.request) is None
    revision, found = machine.store.range()
    assert revision == machine.store.revision
    assert [key for key, _ in found] == sorted(rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_reply_and_every_state_is_the_references(seed: int) -> None:
    compare(seed, 400, locks=1 if seed % 3 else 10)


def compare(seed: int, count: int, locks: float) -> Machine:
    """Run one history through both; the machine at its end."""
    limits = SMALL if seed % 2 else WIDE
    machine, reference = Machine(limits), Reference(limits_as_dict(limits))
    invariants = Invariants(reference)
    seen: list[tuple[int, str, bytes | None]] = []
    for entry in Historian(random.Random(seed), limits, locks).entries(count):
        outcome = machine.apply(entry.index, entry.term, entry.time, entry.payload)
        expected = reference.apply(entry.index, entry.term, entry.time, entry.logical)
        assert outcome == expected, f"seed {seed}, {entry}: the machine says {outcome}, the reference {expected}"
        invariants.check()
        assert contents(machine) == expected_contents(reference), f"seed {seed}, {entry}"
        assert machine.next_due() == reference.next_due(), f"seed {seed}, {entry}"
        for kind, _, session, request in reference.locks.events:
            if kind == "gone":
                assert machine.locks.hold(session, request) is None
                assert machine.locks.waiting(session, request) is None
        events = [(kind.lower(), *rest) for kind, *rest in machine.take_lock_events()]
        assert sorted(events) == sorted(reference.locks.take_events()), f"seed {seed}, {entry}"
        changes = machine.take_changes()
        assert not any(change.resync for change in changes)
        seen += [(c.revision, c.key, None if c.record is None else c.record.value) for c in changes]
        assert seen == reference.changes
        if entry.index % 20 == 0:
            check_inside(machine)
            assert machine.state_hash == recomputed(machine)
    since = machine.changes_since(0)
    assert since is not None
    assert [(c.revision, c.key, None if c.record is None else c.record.value) for c in since] == reference.changes
    return machine


@pytest.mark.parametrize("seed", range(100, 112))
def test_a_snapshot_anywhere_and_the_rest_is_the_same_as_everything(seed: int) -> None:
    entries = list(Historian(random.Random(seed)).entries(150))
    whole = Machine(WIDE)
    cuts = []
    for entry in entries:
        cuts.append(whole.cut())
        whole.apply(entry.index, entry.term, entry.time, entry.payload)
    final = b"".join(whole.cut().chunks())
    for number, cut in enumerate(cuts):
        # Encoded only now: what was applied since must not show.
        restored = Machine(SMALL)
        restored.restore(cut.chunks())
        assert (restored.applied_index, restored.state_hash) == (cut.index, cut.state_hash)
        if number % 5 == 0:
            for entry in entries[number:]:
                restored.apply(entry.index, entry.term, entry.time, entry.payload)
            assert restored.state_hash == whole.state_hash
            assert b"".join(restored.cut().chunks()) == final
            assert restored.next_due() == whole.next_due()
            check_inside(restored)


def digest_of_runs() -> str:
    """A digest of all replies, hashes and snapshot bytes of a few histories."""
    digest = hashlib.sha256()
    for seed in range(5):
        machine = Machine(Limits())
        for entry in Historian(random.Random(seed)).entries(300):
            digest.update(repr(machine.apply(entry.index, entry.term, entry.time, entry.payload)).encode())
            digest.update(repr(machine.take_changes()).encode())
            if entry.index % 50 == 0:
                digest.update(repr((machine.state_hash, machine.take_session_events())).encode())
                digest.update(b"".join(machine.cut().chunks()))
    return digest.hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_trap_52_nothing_depends_on_the_hash_seed(hash_seed: str) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; from machine.test_reference import digest_of_runs as d; print(d())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests")],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == digest_of_runs()


def test_trap_52_a_difference_anywhere_shows_in_the_state_hash() -> None:
    """One wrong bit in any row of a table, and the hash differs."""
    machine = Machine(WIDE)
    for entry in Historian(random.Random(3)).entries(200):
        machine.apply(entry.index, entry.term, entry.time, entry.payload)
    original = machine.state_hash
    state = read_state(machine.cut().chunks())
    session = next(iter(state.sessions.live.values()))
    hashes = {original}
    for name in ("ttl", "opened", "low_water", "instance"):
        setattr(session, name, getattr(session, name) + 1)
        state.sessions.touch(session)
        hashes.add(state.digest())
    session.replies[1 << 40] = (0, 1, 1)
    state.sessions.touch(session)
    hashes.add(state.digest())
    state.time += 1
    hashes.add(state.digest())
    state.index += 1
    hashes.add(state.digest())
    state.limits_index += 1
    hashes.add(state.digest())
    state.sessions.remember_ended(5, 1)
    hashes.add(state.digest())
    assert len(hashes) == 10


def test_the_histories_reach_every_reply_and_end() -> None:
    """A random test that never gets anywhere proves nothing."""
    seen: set[Any] = set()
    for seed in SEEDS:
        limits = SMALL if seed % 2 else WIDE
        machine = Machine(limits)
        for entry in Historian(random.Random(seed), limits, 1 if seed % 3 else 10).entries(400):
            granted = {name for name in machine.locks.names() if machine.locks.holders(name)}
            delayed = {name for name in machine.locks.names() if machine.locks.delayed(name)}
            outcome = machine.apply(entry.index, entry.term, entry.time, entry.payload)
            if outcome is not None:
                seen.add(outcome[2][1] if outcome[2][0] == 6 else outcome[2][0])
            seen.update(event for _, event in machine.take_session_events())
            seen.update(rarities(entry.logical, outcome, granted, delayed, machine))
    events = {"opened", "closed", "expired", "superseded"}
    quotas = {"value_bytes", "transaction_bytes", "state_bytes", "keys", "sessions", "lock_requests"}
    rare = {"joined", "reclaimed", "closed for a while", "opened again", "served after a wait", "removed by cancel"}
    assert seen >= {0, 2, 3, 4, 5, *range(7, 17)} | events | quotas | rare


def rarities(logical: Any, outcome: Any, granted: set[str], delayed: set[str], machine: Machine) -> set[str]:
    """What happened to locks just now; `granted` and `delayed`: which locks were so before."""
    found = set()
    name = logical[0] if logical else ""
    reply: tuple[Any, ...] = outcome[2] if outcome else (None,)
    if name == "acquire" and reply[0] == 9:
        lock, shared, reclaim = logical[4], logical[5], logical[10]
        found.add("joined" if shared and lock in granted else "granted")
        if reclaim and lock in delayed and not machine.locks.delayed(lock):
            found.add("reclaimed")
    elif name == "cancel" and reply[0] == 0 and reply[2] == 1:
        found.add("removed by cancel")
    now = {lock for lock in machine.locks.names() if machine.locks.delayed(lock)}
    if now - delayed:
        found.add("closed for a while")
    if name == "tick" and delayed - now:
        found.add("opened again")
    events = machine.take_lock_events()
    if name != "acquire" and any(kind.lower() == "granted" for kind, *_ in events):
        found.add("served after a wait")
    return found
