"""A member whose state went astray stops itself; the others go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import coord
from coord.machine.records import make_row
from node.group import Group, until


def _corrupt(node: coord.Node, key: str, value: bytes) -> None:
    """What a bug in apply, or a flipped bit in memory, could do: another value than was written."""
    loop = node._running_loop()
    store = loop.replica.machine.store

    def change() -> None:
        before = store.row(key)
        assert before is not None
        after = make_row(key.encode(), value, before[1], before, 0, 0)
        store.commit(store.revision, [(key, before, after)], 0)

    loop.call(change, 20.0)


def _write(node: coord.Node, count: int) -> None:
    for number in range(count):
        node.config.put("count", number)


@pytest.mark.parametrize("astray_leads", [False, True], ids=["follower", "leader"])
def test_trap_52_the_odd_one_stops_itself(make_group: Callable[..., Group], astray_leads: bool) -> None:
    group = make_group(snapshot_entries=50)
    group.start()
    leader = group.leader()
    leader.config["key"] = "right"
    astray = leader if astray_leads else group.followers()[0]
    _write(leader, 60)
    _corrupt(astray, "key", b"\xa5wrong")
    assert astray.config["key"] == "wrong"
    others = [node for node in group.nodes.values() if node is not astray]

    def stopped() -> bool:
        others[0].config.put("more", 1)
        try:
            astray.status()
        except coord.StorageError:
            return True
        return False

    until(stopped, "the odd one to notice at the next index where all compare")
    assert all(node.config.get("key", linearizable=True) == "right" for node in others)
    with pytest.raises(coord.StorageError, match="astray"):
        astray.config.put("key", "worse")
    del group.nodes[astray.name]
    astray.stop()


def test_members_that_agree_go_on(make_group: Callable[..., Group]) -> None:
    group = make_group(snapshot_entries=20)
    group.start()
    _write(group.leader(), 100)
    reports = until(
        lambda: [
            found
            for node in group.nodes.values()
            if len(found := max(node._running_loop().replica.machine.hash_reports.items(), default=(0, {}))[1]) == 3
        ],
        "reports of all three",
    )
    assert all(len(set(found.values())) == 1 for found in reports)
