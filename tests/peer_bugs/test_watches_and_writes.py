"""Bugs of etcd's watches, and of its clients' retries, that must not happen here: one test for each.

What must not live here: what else watches do (`tests/node/test_watch.py`), locks.
"""

from __future__ import annotations

import pytest

import coord
from coord.machine import commands
from coord.machine.machine import Machine
from coord.testing import Group
from peer_bugs.lab import followers


def machine_with(history: int) -> Machine:
    machine = Machine(history_revisions=history)
    machine.apply(1, 1, 1, commands.open_session(1, "a", 1, 10**9))
    return machine


def test_18089_and_19179_a_delete_at_the_revision_of_a_compaction_is_lost() -> None:
    """Whatever is above `compacted` is known, and what is not is refused: a watch that resumes anywhere either gets the
    delete, or is told that it cannot."""
    machine = machine_with(history=2)
    for sequence in range(1, 6):
        made = commands.put(1, sequence, 0, "k", b"v") if sequence % 2 else commands.delete(1, sequence, 0, "k")
        machine.apply(1 + sequence, 1, 1, made)
    # Revisions 2 to 6: put, delete, put, delete, put; the newest two are kept.
    assert machine.compacted == 4
    assert [(change.kind, change.revision) for change in machine.changes_since(4) or ()] == [("delete", 5), ("put", 6)]
    assert machine.changes_since(3) is None


def test_pr_15274_and_15515_a_watch_repeats_itself_or_goes_back_across_a_snapshot() -> None:
    options = coord.Options(snapshot_entries=20)
    with Group(virtual=True, seed=15515, options=options) as group:
        leader, lone = group.leader(), followers(group)[0]
        seen: list[tuple[str, int]] = []
        watch = lone.config.watch("k", callback=lambda event: seen.append((event.key, event.revision)))
        leader.config["k0"] = 0
        group.wait_until(lambda: seen, 10)
        group.partition([lone])
        leader = group.leader()
        for number in range(200):
            leader.config[f"k{number % 5}"] = number
        group.heal()
        group.wait_converged(60)
        group.run(0.1)
        watch.close()
        assert lone._running_loop().replica.counters.snapshots_installed, "it was not taken past anything"
        for key in {key for key, _ in seen}:
            revisions = [revision for name, revision in seen if name == key]
            assert revisions == sorted(set(revisions)), f"{key} went back, or came twice: {revisions}"
        newest = {key: entry.revision for key in lone.config if (entry := lone.config.entry(key)) is not None}
        assert {key: max(r for name, r in seen if name == key) for key in newest} == newest


def test_20262_a_watch_that_cannot_resume_says_where_it_could() -> None:
    with Group(virtual=True, seed=20262, options=coord.Options(history_revisions=5)) as group:
        config = group.leader().config
        for number in range(20):
            config["k"] = number
        with pytest.raises(coord.Compacted) as caught:
            next(config.watch("k", from_revision=1))
        resumed = config.watch("k", from_revision=caught.value.revision + 1, conflate=False, timeout=1.0)
        assert [event.value for event in resumed] == [15, 16, 17, 18, 19]


def test_jetcd_0_8_2_a_write_without_an_answer_is_repeated_and_overwrites_a_newer_one(group: Group) -> None:
    """Its caller is told that the outcome is not known; what goes on in the background happens once, in its place."""
    lone = followers(group)[0]
    key = "k"
    lone.config[key] = "first"
    group.cut(group.leader(), lone)
    with pytest.raises(coord.OutcomeUnknown):
        lone.config.put(key, "second", timeout=0.5)
    group.run(1.0)
    other = next(node for node in followers(group) if node is not lone)
    other.config[key] = "newer"
    version = other.config.entry(key)
    group.heal()
    group.run(20.0)
    after = group.leader().config.entry(key, linearizable=True)
    assert version is not None
    assert after is not None
    assert (after.value, after.version) == ("newer", version.version), "the old write was done again"
