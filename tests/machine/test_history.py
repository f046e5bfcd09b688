"""What a watch can resume from, and where that ends."""

from __future__ import annotations

from coord.machine import commands
from coord.machine.history import History
from coord.machine.machine import Machine
from coord.machine.records import CHANGE_OVERHEAD_BYTES, Write, make_row


def put(key: str, revision: int, value: bytes = b"") -> Write:
    return key, None, make_row(key.encode(), value, revision, None, 0, 0)


def kept(history: History, revision: int) -> list[int] | None:
    found = history.since(revision)
    return None if found is None else [number for number, _ in found]


def test_a_watch_resumes_from_any_revision_still_known() -> None:
    history = History()
    for revision in (3, 7, 8):
        history.append(revision, [put("k", revision)])
    assert kept(history, 0) == kept(history, 2) == [3, 7, 8]
    assert kept(history, 3) == kept(history, 6) == [7, 8]
    assert kept(history, 8) == kept(history, 100) == []


def test_revisions_are_bounded_and_the_boundary_loses_nothing() -> None:
    history = History(revisions_max=2)
    history.append(3, [put("a", 3)])
    deletion: Write = ("a", put("a", 3)[2], None)
    history.append(5, [deletion])
    history.append(6, [put("b", 6)])
    # Compacted to 3: who has seen everything up to just there resumes, and gets the delete at 5.
    assert history.compacted == 3
    assert history.since(3) == [(5, [deletion]), (6, [put("b", 6)])]
    assert history.since(2) is None
    history.append(9, [put("c", 9)])
    assert history.compacted == 5
    assert history.since(5) == [(6, [put("b", 6)]), (9, [put("c", 9)])]
    assert history.since(4) is history.since(3) is None


def test_bytes_are_bounded_old_values_included() -> None:
    size = 1000
    history = History(bytes_max=3 * (size + CHANGE_OVERHEAD_BYTES + 1) + size // 2)
    for revision in (1, 2, 3):
        history.append(revision, [put("k", revision, bytes(size))])
    assert kept(history, 0) == [1, 2, 3]
    # A delete keeps the value it deleted alive.
    history.append(4, [("k", put("k", 3, bytes(size))[2], None)])
    assert kept(history, history.compacted) == [2, 3, 4]
    history.append(5, [put("k", 5, bytes(10 * size))])
    assert (kept(history, 5), kept(history, 4), history.compacted) == ([], None, 5)


def test_a_machine_keeps_as_much_as_it_is_told_and_gives_whole_revisions() -> None:
    machine = Machine(history_revisions=2)
    machine.apply(1, 1, 1, commands.open_session(7, "a", 1, 10))
    both = [commands.put_operation("a", b"1"), commands.put_operation("b", b"2")]
    machine.apply(2, 1, 1, commands.transaction(7, 1, 0, [], both))
    machine.apply(3, 1, 1, commands.delete(7, 2, 1, "none"))
    machine.apply(4, 1, 1, commands.transaction(7, 3, 2, [], [*map(commands.delete_operation, "ab")]))
    found = machine.changes_since(0)
    assert found is not None
    assert [(c.kind, c.key, c.revision, c.record and c.record.value) for c in found] == [
        ("put", "a", 2, b"1"),
        ("put", "b", 2, b"2"),
        ("delete", "a", 4, None),
        ("delete", "b", 4, None),
    ]
    assert machine.changes_since(2) == machine.changes_since(3) == found[2:]
    machine.apply(5, 1, 1, commands.put(7, 4, 3, "a", b"3"))
    assert machine.compacted == 2
    assert machine.changes_since(1) is None
    assert [change.revision for change in machine.changes_since(2) or []] == [4, 4, 5]
    # Taken independently of history, which the watch of the present never needs.
    assert len(machine.take_changes()) == 5
    assert machine.take_changes() == []


def test_no_history_at_all() -> None:
    machine = Machine(history_revisions=0)
    machine.apply(1, 1, 1, commands.open_session(7, "a", 1, 10))
    machine.apply(2, 1, 1, commands.put(7, 1, 0, "a", b"1"))
    assert machine.changes_since(1) is None
    assert machine.changes_since(2) == []
    assert len(machine.take_changes()) == 1
