"""Recording, writing down and loading."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from checkers.text import history
from coord.testing.anomalies import STALE_READ, HistoryViolation
from coord.testing.history import (
    CONFLICT,
    FAILED,
    OK,
    UNKNOWN,
    UNSAID,
    Change,
    Found,
    History,
    HistoryError,
    Operation,
    Watched,
    identity,
)
from coord.testing.linearizability import UNDECIDED, check, check_config
from coord.testing.models import ConfigKeys, Lock, Register
from coord.testing.revisions import check_revisions

VALUES: list[Any] = [None, True, 0, 1.5, "text", b"\x00\xff", [1, b"x", {"$bytes": "00"}], {"$$a": {"b": b""}}, {}]


def shown(operations: list[Operation]) -> list[str]:
    return [f"{operation} {operation.at} {operation.process}" for operation in operations]


def recorded(recorder: History) -> None:
    """Everything that can be recorded."""
    for number, value in enumerate(VALUES):
        operation = recorder.begin(number, "a", "put", f"k{number}", value=value)
        recorder.ok(number + 0.5, operation, revision=number + 3)
        read = recorder.begin(number + 0.6, "a", "get", f"k{number}")
        recorder.ok(number + 0.7, read, found=Found(value, number + 3, number + 3, 1), at=number + 3)
    recorder.ok(51, recorder.begin(50, "b", "delete", "k1"), revision=60, existed=False)
    recorder.conflict(53, recorder.begin(52, "b", "compare_and_set", "k2", value=1, revision=7), found=None)
    transaction = recorder.begin(54, "b", "transaction", puts={"x": 1}, deletes=["y"], requires={"z": 3, "w": 0})
    recorder.conflict(55, transaction, key="z", found=Found(9, 4))
    recorder.conflict(57, recorder.begin(56, "b", "transaction", requires={"z": 3, "w": 0}))
    recorder.failed(recorder.begin(58, "b", "put", "k", value=1))
    recorder.unknown(recorder.begin(59, "b", "put", "k", value=2))
    recorder.ok(61, recorder.begin(60, "c", "look", "k", process="other"), found=None, at=12)
    recorder.ok(63, recorder.begin(62, "d", "acquire", "lock"), token=5)
    recorder.ok(65, recorder.begin(64, "d", "release", "lock", token=5), existed=True)
    recorder.begin(66, "d", "put", "k", value="never ended")
    watched = recorder.watch("w", prefix="k", from_revision=3)
    recorder.told(watched, Change(3, "k0", b"v"))
    recorder.told(watched, Change(4, "k0", deleted=True))


def test_what_is_dumped_is_loaded(tmp_path: Path) -> None:
    recorder = History(process="p")
    recorded(recorder)
    recorder.dump(tmp_path / "history")
    loaded = History.load(tmp_path / "history")
    assert shown(loaded.operations) == shown(recorder.operations)
    for one, other in zip(recorder.operations, loaded.operations, strict=True):
        for name in Operation.__slots__:
            assert getattr(one, name) == getattr(other, name), f"{name} of {one}"
    (watch,), same = recorder.watches, loaded.watches
    assert watch.events == same[0].events
    assert str(watch) == str(same[0]) == "watch w of 'k' in p"
    for name in Watched.__slots__:
        assert getattr(watch, name) == getattr(same[0], name), name
    assert {op.outcome for op in loaded.operations} == {OK, CONFLICT, FAILED, UNKNOWN}
    with pytest.raises(FileExistsError):
        recorder.dump(tmp_path / "history")


def test_what_is_written_through_is_what_is_dumped(tmp_path: Path) -> None:
    recorder = History(process="p", path=tmp_path / "through")
    recorded(recorder)
    recorder.close()
    recorder.dump(tmp_path / "dumped")
    through, dumped = (History.load(tmp_path / name) for name in ("through", "dumped"))
    assert shown(through.operations) == shown(dumped.operations) == shown(recorder.operations)
    assert through.watches[0].events == dumped.watches[0].events
    assert all(json.loads(line) for line in (tmp_path / "through").read_text().splitlines())


def test_of_a_killed_process_what_was_under_way_is_known(tmp_path: Path) -> None:
    recorder = History(process="p", path=tmp_path / "p")
    recorder.ok(1, recorder.begin(0, "a", "put", "k", value=1), revision=5)
    recorder.begin(2, "a", "put", "k", value=2)
    with (tmp_path / "p").open("ab") as file:
        file.write(b'{"line": "begin", "num')
    other = History(process="q", path=tmp_path / "q")
    other.ok(4, other.begin(3, "a", "get", "k"), found=Found(2, 6))
    loaded = History.load(tmp_path / "p", tmp_path / "q")
    put, doubtful, get = loaded.operations
    assert (put.outcome, doubtful.outcome, get.outcome) == (OK, UNKNOWN, OK)
    assert doubtful.returned == float("inf")
    assert [op.process for op in loaded.operations] == ["p", "p", "q"]
    assert len({op.number for op in loaded.operations}) == 3, "numbers of two files are taken for each other"
    check_revisions(loaded.operations).require_ok()
    check_config(loaded.operations).require_ok()
    recorder.close()
    other.close()


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    for text in ("no json", '{"line": "end", "number": 3}', '{"line": "what"}', "[]", '{"line": "begin", "number": 1}'):
        (tmp_path / "broken").write_text(f"{text}\n")
        with pytest.raises(HistoryError, match="line 1"):
            History.load(tmp_path / "broken")


def test_a_client_has_one_operation_at_a_time() -> None:
    recorder = History()
    first = recorder.begin(0, "a", "put", "k", value=1)
    with pytest.raises(HistoryError, match="before the end of"):
        recorder.begin(1, "a", "get", "k")
    recorder.ok(2, first, revision=3)
    with pytest.raises(HistoryError, match="has ended"):
        recorder.ok(3, first, revision=3)
    second = recorder.begin(4, "a", "get", "k")
    with pytest.raises(HistoryError, match="cannot have returned"):
        recorder.ok(3, second, found=None)


def test_after_an_unknown_outcome_a_client_has_another_name() -> None:
    recorder = History()
    assert recorder.name_for("a") == "a"
    recorder.unknown(recorder.begin(0, "a", "put", "k", value=1))
    with pytest.raises(HistoryError, match="name_for"):
        recorder.begin(1, "a", "get", "k")
    assert recorder.name_for("a") == "a'1"
    recorder.unknown(recorder.begin(2, "a'1", "get", "k"))
    assert recorder.name_for("a") == "a'1", "a read without an answer leaves nothing open"
    recorder.unknown(recorder.begin(3, "a'1", "delete", "k"))
    assert recorder.name_for("a") == "a'2"
    assert recorder.name_for("b") == "b"


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("dance", {"key": "k"}),
        ("put", {"key": "k"}),
        ("get", {}),
        ("compare_and_set", {"key": "k", "value": 1}),
        ("transaction", {}),
        ("transaction", {"puts": {"k": 1}, "deletes": ["k"]}),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, asked: dict[str, Any]) -> None:
    recorder = History()
    with pytest.raises(HistoryError):
        recorder.begin(0, "a", kind, **asked)
    assert recorder.operations == []


def test_answers_that_make_no_sense_are_refused() -> None:
    recorder = History()
    get = recorder.begin(0, "a", "get", "k")
    put = recorder.begin(0, "b", "put", "k", value=1)
    compare = recorder.begin(0, "c", "compare_and_set", "k", value=1, revision=3)
    acquire = recorder.begin(0, "d", "acquire", "l")
    with pytest.raises(HistoryError, match="found something, or nothing"):
        recorder.ok(1, get)
    with pytest.raises(HistoryError, match="required nothing"):
        recorder.conflict(1, put)
    with pytest.raises(HistoryError, match="required nothing"):
        recorder.conflict(1, compare, key="x", found=None)
    with pytest.raises(HistoryError, match="has a token"):
        recorder.ok(1, acquire)
    with pytest.raises(HistoryError, match="not negative"):
        recorder.ok(1, put, revision=-1)
    with pytest.raises(HistoryError, match="taken"):
        recorder.watch(recorder.watch("w").name)


def test_many_threads_record_at_once(tmp_path: Path) -> None:
    recorder = History(path=tmp_path / "through")

    def work(client: str) -> None:
        for number in range(200):
            operation = recorder.begin(number, client, "put", "k", value=f"{client} {number}")
            recorder.ok(number + 0.5, operation, revision=1)

    threads = [threading.Thread(target=work, args=(f"c{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    for operations in (recorder.operations, History.load(tmp_path / "through").operations):
        assert len(operations) == 1600
        assert len({operation.number for operation in operations}) == 1600
        assert all(operation.outcome == OK for operation in operations)


def test_values_that_differ_are_told_apart() -> None:
    values = [*VALUES, 1, 1.0, False, "1", [], {"a": 1, "b": 2}, "text\x00"]
    assert len({identity(value) for value in values}) == len(values)
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity([1, 2]) != identity([2, 1])


# What the checkers say, and to whom.


def test_what_fails_raises_and_shows_the_operations() -> None:
    operations = history("a 0-1 put k 1 -> @5\na 2-3 put k 2 -> @6\nb 4-5 get k -> 1@5\nb 6-7 get x -> absent")
    with pytest.raises(HistoryViolation, match=r"(?s)stale read.*put k = 2 -> revision 6.*get k -> 1 at 5"):
        check_revisions(operations).require_ok()
    judgement = check_config(operations)
    with pytest.raises(HistoryViolation, match=r"(?s)not linearizable: k;.*put k = 2.*> \[4, 5\] b: get k -> 1 at 5"):
        judgement.require_ok()
    assert judgement.partition == ("k",), "the other key has nothing to do with it"


def test_the_window_leaves_out_what_is_not_needed() -> None:
    lines = [f"a {2 * n}-{2 * n + 1} put k {n} -> @{n + 5}\nb {2 * n}-{2 * n + 1.5} get k -> {n}" for n in range(100)]
    operations = history("\n".join([*lines, "c 300-301 get k -> 98", "d 302-303 get k -> 99"]))
    judgement = check_config(operations)
    assert not judgement.ok
    assert len(judgement.window) == 3, f"two writes and a read would do: {judgement}"
    assert judgement.stuck is judgement.window[-1]


def test_over_the_limit_nothing_is_decided_and_that_is_a_failure() -> None:
    lines = [f"c{n} 0-9 put k {n} ->" for n in range(12)]
    lines += ["r 10-11 get k -> 0", "r 12-13 get k -> 1"]
    judgement = check_config(history("\n".join(lines)), steps_max=1000)
    assert judgement.verdict == UNDECIDED
    assert not judgement.ok
    with pytest.raises(HistoryViolation, match="undecided: k"):
        judgement.require_ok()


def test_keys_are_judged_apart_unless_transactions_tie_them() -> None:
    lines = "a 0-1 put x 1 -> @5\na 2-3 put y 1 -> @4\na 4-5 put z 1 -> @9"
    assert check_config(history(lines)).ok, "no key by itself shows that the order is wrong"
    tied = check_config(history(f"{lines}\nb 6-7 txn x=2 y=2 -> @10"))
    assert not tied.ok
    assert tied.partition == ("x", "y")


def test_a_write_that_changes_nothing_now_may_matter_later() -> None:
    """Both orders of the two in the middle must be tried, though the first of them writes what is there already."""
    again = "a 0-1 put k 1 ->\nb 2-9 put k 1 ->\nc 3-9 put k 2 ->\nd 10-11 get k -> 1"
    assert check(history(again), Register()).ok
    assert check(history(again.replace("get k -> 1", "get k -> 2")), Register()).ok
    assert not check(history(again.replace("get k -> 1", "get k -> 3")), Register()).ok


def test_operations_of_two_recorders_are_not_taken_for_each_other() -> None:
    """Each counts from 0."""
    one = history("a 0-1 put k 1 -> @5")
    other = history("b 2-3 put k 2 -> @6")
    reads = history("c 4-5 get k -> 2@6")
    assert [op.number for op in one + other + reads] == [0, 0, 0]
    assert check_revisions(one + other + reads).ok
    assert check_revisions(one + other + history("c 4-5 get k -> 1@5")).names == {STALE_READ}


def test_nothing_is_nothing_wrong() -> None:
    assert check_config([]).ok
    assert check_config([]).checked == 0
    assert check_revisions([]).ok
    assert check_revisions([]).checked == 0


def test_models_refuse_what_they_do_not_know() -> None:
    (put, compare, acquire) = history("a 0-1 put k 1 -> @5\nb 0-1 cas k 2 if 0 -> @5\nc 0-1 acquire k -> #1")
    with pytest.raises(ValueError, match="no operation of a lock"):
        Lock().prepare(put)
    with pytest.raises(ValueError, match="no conditions"):
        Register().prepare(compare)
    with pytest.raises(ValueError, match="no operation of a register"):
        Register().prepare(acquire)
    with pytest.raises(ValueError, match="no operation of a config map"):
        ConfigKeys(["k"]).prepare(acquire)


def test_what_nobody_said_is_not_nothing() -> None:
    recorder = History()
    silent = recorder.begin(0, "a", "compare_and_set", "k", value=1, revision=3)
    recorder.conflict(1, silent)
    absent = recorder.begin(2, "a", "compare_and_set", "k", value=1, revision=3)
    recorder.conflict(3, absent, found=None)
    assert silent.found is UNSAID
    assert absent.found is None
    assert str(silent) == "[0, 1] a: compare_and_set k = 1 if k at 3 -> conflict"
    assert str(absent).endswith("-> conflict, k: absent")
