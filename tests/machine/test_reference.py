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
    }


def expected_contents(reference: Reference) -> dict[str, Any]:
    names = ("index", "time", "limits", "limits_index", "keys", "sessions")
    return {name: getattr(reference, name) for name in names}


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
    revision, found = machine.store.range()
    assert revision == machine.store.revision
    assert [key for key, _ in found] == sorted(rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_reply_and_every_state_is_the_references(seed: int) -> None:
    limits = SMALL if seed % 2 else WIDE
    machine, reference = Machine(limits), Reference(limits_as_dict(limits))
    seen: list[tuple[int, str, bytes | None]] = []
    for entry in Historian(random.Random(seed)).entries(400):
        outcome = machine.apply(entry.index, entry.term, entry.time, entry.payload)
        assert outcome == reference.apply(entry.index, entry.term, entry.time, entry.logical), entry
        assert contents(machine) == expected_contents(reference), entry
        assert machine.next_due() == reference.next_due()
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
        machine = Machine(SMALL if seed % 2 else WIDE)
        for entry in Historian(random.Random(seed)).entries(400):
            outcome = machine.apply(entry.index, entry.term, entry.time, entry.payload)
            if outcome is not None:
                seen.add(outcome[2][1] if outcome[2][0] == 6 else outcome[2][0])
            seen.update(event for _, event in machine.take_session_events())
    events = {"opened", "closed", "expired", "superseded"}
    quotas = {"value_bytes", "transaction_bytes", "state_bytes", "keys", "sessions"}
    assert seen >= {0, 2, 3, 4, 5, 7, 8} | events | quotas
