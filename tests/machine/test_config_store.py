"""The store as other threads see it, its order of keys, and its times."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coord.machine import config_store
from coord.machine.config_store import ConfigStore
from coord.machine.expiry import Expiry
from coord.machine.key_index import KeyIndex
from coord.machine.records import Row, Write, make_row

CODE = config_store.__file__


def row(revision: int, key: str = "k") -> Row:
    return make_row(key.encode(), b"%d" % revision, revision, None, 0, 0)


def commit(store: ConfigStore, revision: int, keys: dict[str, bool]) -> None:
    """Put the keys that are True, delete the others."""
    writes: list[Write] = [(key, store.row(key), row(revision, key) if there else None) for key, there in keys.items()]
    store.commit(revision, writes, store.sizes_after(writes)[0])


def at_every_line(step: Callable[[], None], also: Callable[[], None], only: int | None = None) -> int:
    """Run `step`; before each line of the store's code in it (or only that number) run `also`. Return how many."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != CODE:
            return None
        if event == "line":
            lines += 1
            if only is None or only == lines:
                also()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(before)
    return lines


def three_keys() -> ConfigStore:
    store = ConfigStore()
    commit(store, 1, {"a": True, "b": True, "c": True})
    return store


def everything(store: ConfigStore) -> list[tuple[int, dict[str, bytes]]]:
    """What the store holds, read in every way there is; each is (revision of the youngest key, values)."""
    found: list[tuple[int, dict[str, bytes]]] = []
    revision, rows = store.view()
    found.append((revision, {key: row[0] for key, row in rows.items()}))
    revision, records = store.range("")
    found.append((revision, {key: record.value for key, record in records}))
    singly = {key: record.value for key in "abcd" if (record := store.get(key)) is not None}
    found.append((store.revision, singly))
    values = {key: value for key in "abcd" if (value := store.value(key)) is not None}
    found.append((store.revision, values))
    assert len(store) == len(values)
    return found


OLD = (1, {"a": b"1", "b": b"1", "c": b"1"})
NEW = (2, {"a": b"2", "c": b"2", "d": b"2"})


def test_a_change_is_seen_whole_whenever_a_reader_looks_during_it() -> None:
    store = three_keys()
    seen: list[tuple[int, dict[str, bytes]]] = []
    change = {"a": True, "b": False, "c": True, "d": True}
    lines = at_every_line(lambda: commit(store, 2, change), lambda: seen.extend(everything(store)))
    assert lines > 20
    assert everything(store) == [NEW] * 4
    # All of one, then all of the other: nobody goes back, whichever ways of reading are mixed.
    turn = seen.index(NEW) if NEW in seen else len(seen)
    assert seen[:turn] == [OLD] * turn
    assert seen[turn:] == [NEW] * (len(seen) - turn)
    assert turn > 20


def test_a_reader_sees_one_version_whenever_a_change_happens_during_its_read() -> None:
    reads: list[Callable[[ConfigStore], Any]] = [
        lambda store: (lambda found: (found[0], {key: row[0] for key, row in found[1].items()}))(store.view()),
        lambda store: (lambda found: (found[0], {key: r.value for key, r in found[1]}))(store.range("")),
    ]
    for read in reads:
        line = 0
        results = []
        while True:
            line += 1
            store = three_keys()
            found: list[Any] = []

            def change(store: ConfigStore = store) -> None:
                commit(store, 2, {"a": True, "b": False, "c": True, "d": True})

            lines = at_every_line(lambda: found.append(read(store)), change, only=line)  # noqa: B023
            results.append(found[0])
            if line > lines:
                break
        assert len(results) > 5
        assert all(result in (OLD, NEW) for result in results)
        assert NEW in results
        assert OLD in results


class PausedCommit:
    """A commit on a thread of its own that stops before a given line of the store's code until it is let go."""

    def __init__(self, store: ConfigStore, line: int) -> None:
        self._stopped = threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(store, line))
        self._thread.start()
        assert self._stopped.wait(30)

    def _run(self, store: ConfigStore, line: int) -> None:
        def pause() -> None:
            self._stopped.set()
            assert self._go.wait(30)

        at_every_line(lambda: commit(store, 2, {"c": True, "b": False, "a": True}), pause, only=line)
        self._stopped.set()

    def finish(self) -> None:
        self._go.set()
        self._thread.join(30)


def test_a_key_read_while_a_change_began_is_not_ahead_of_what_is_read_next() -> None:
    """A change begins during the read and stops half way: whoever saw its first key must not find the others as they
    were."""
    lines = at_every_line(lambda: commit(three_keys(), 2, {"c": True, "b": False, "a": True}), lambda: None)
    for writer_line in range(1, lines + 1):
        reader_line = 0
        while True:
            reader_line += 1
            store = three_keys()
            started: list[PausedCommit] = []
            found: list[bytes | None] = []

            def begin(store: ConfigStore = store, line: int = writer_line, to: list[PausedCommit] = started) -> None:
                to.append(PausedCommit(store, line))

            def read(store: ConfigStore = store, to: list[bytes | None] = found) -> None:
                to.append(store.value("c"))

            read_lines = at_every_line(read, begin, only=reader_line)
            after = store.view()[0], store.value("a"), store.value("b")
            for paused in started:
                paused.finish()
            assert after in ((1, b"1", b"1"), (2, b"2", None))
            assert found[0] == b"1" or after[0] == 2
            if reader_line > read_lines:
                break


def test_a_range_over_a_store_that_never_rests_still_ends() -> None:
    store = three_keys()
    revision = 1

    def change() -> None:
        nonlocal revision
        revision += 1
        commit(store, revision, {"a": True, "b": revision % 2 == 0 if store.row("b") else True})

    found: list[Any] = []
    for only in range(1, 60):
        # A change before each of the first lines, as long as `range` tries to read past them.
        at_every_line(lambda: found.append(store.range("")), change, only=only)
        number, records = found[-1]
        assert {record.value for key, record in records if key == "a"} == {b"%d" % number}


def test_readers_and_a_writer_on_threads_of_their_own() -> None:
    """A writer moves a token between keys; every reader always finds exactly one, and time only moves on."""
    store = ConfigStore()
    commit(store, 1, {"0": True, **{f"other{n}": True for n in range(50)}})
    stop = threading.Event()
    wrong: list[Any] = []
    counts = [0, 0, 0]

    def read(number: int, look: Callable[[], tuple[int, list[str]]]) -> None:
        last = 0
        while not stop.is_set() or not counts[number]:
            revision, tokens = look()
            if len(tokens) != 1 or revision < last:
                wrong.append((number, last, revision, tokens))
                return
            last = revision
            counts[number] += 1

    def by_view() -> tuple[int, list[str]]:
        revision, rows = store.view()
        return revision, [key for key in rows if not key.startswith("other")]

    def by_range() -> tuple[int, list[str]]:
        revision, records = store.range()
        return revision, [key for key, _ in records if not key.startswith("other")]

    def by_key() -> tuple[int, list[str]]:
        # What a view shows is gone from a later look at the key alone only if the store has moved on.
        revision, tokens = by_view()
        if store.value(tokens[0]) is None and store.revision <= revision:
            wrong.append(("by key", revision, tokens))
        return revision, tokens

    threads = [threading.Thread(target=read, args=pair) for pair in enumerate((by_view, by_range, by_key))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        commit(store, 2, {"0": False, "2": True})
        for revision in range(3, 5000):
            commit(store, revision, {str(revision - 1): False, str(revision): True})
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        sys.setswitchinterval(interval)
    assert wrong == []
    assert all(counts)


KEYS = st.text(st.sampled_from("ab/\ud7ff\ue000\U0010ffffé"), min_size=1, max_size=4)


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60), KEYS | st.just(""))
def test_a_range_is_what_a_search_through_everything_finds(steps: list[tuple[str, bool]], prefix: str) -> None:
    store = ConfigStore()
    for number, (key, there) in enumerate(steps):
        if there or store.row(key):
            commit(store, number + 1, {key: there})
    revision, found = store.range(prefix)
    _, rows = store.view()
    assert [key for key, _ in found] == sorted(key for key in rows if key.startswith(prefix))
    assert all(tuple(record) == rows[key] for key, record in found)
    assert revision == store.revision


def test_the_index_stays_right_and_small_through_many_merges() -> None:
    rng = random.Random(2)
    index = KeyIndex()
    existing: dict[str, None] = {}
    for _ in range(30_000):
        key = str(rng.randrange(4000))
        if key in existing:
            del existing[key]
            index.discard()
        else:
            existing[key] = None
            index.add(key, existing)
    assert [key for key in index.candidates() if key in existing] == sorted(existing)
    assert [key for key in index.candidates("12") if key in existing] == sorted(k for k in existing if k[:2] == "12")
    assert len(index.candidates()) <= 4000
    assert sum(map(len, index._order)) < 6000


def test_the_index_forgets_keys_that_came_and_went() -> None:
    index = KeyIndex()
    for number in range(10_000):
        index.add(str(number), {str(number): None})
        index.discard()
    assert len(index.candidates()) < 2100


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6), st.booleans()), max_size=60))
def test_expiry_is_a_sorted_list_of_what_is_due(steps: list[tuple[str, int, bool]]) -> None:
    expiry = Expiry()
    times: dict[str, int] = {}
    for key, time, take in steps:
        if take:
            due = sorted((due, name) for name, due in times.items() if due <= time)[:2]
            assert expiry.take_due(time, 2) == [name for _, name in due]
            for _, name in due:
                del times[name]
        else:
            expiry.set(key, time)
            times.pop(key, None)
            if time:
                times[key] = time
        assert expiry.next() == min(times.values(), default=None)


def test_a_key_renewed_for_ever_leaves_nothing_behind() -> None:
    expiry = Expiry()
    for time in range(1, 10_000):
        expiry.set("k", time)
    assert len(expiry._heap) < 100
    assert expiry.next() == 9_999
