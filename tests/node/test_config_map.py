"""The config map of a group of one: what each method does, returns and raises."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import MutableMapping
from typing import Any, cast

import pytest

import coord
from coord.machine.commands import WINDOW
from node.group import until

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**63),
    2**64 - 1,
    0.1,
    -0.0,
    1e308,
    "",
    "ключ \U0001f511",
    b"",
    b"\x00\xff",
    [],
    {},
    [1, [2.5, None], "x", b"y", {"a": [True]}],
    {"nested": {"deep": [{"er": b"bytes"}]}, "": 0},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_exactly(cfg: coord.ConfigMap, value: Any) -> None:
    cfg["k"] = value
    assert repr(cfg["k"]) == repr(value)
    assert type(cfg["k"]) is type(value)
    assert repr(cfg.get("k", linearizable=True)) == repr(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ((1, 2), 'config["k"]: tuple'),
        ({"a": [1, {2, 3}]}, 'config["k"]["a"][1]: set'),
        ({1: 2}, "key of type int"),
        (float("nan"), "nan"),
        (2**64, "64 bits"),
        (object(), "object"),
    ],
    ids=repr,
)
def test_what_cannot_be_stored_is_refused_with_its_place(cfg: coord.ConfigMap, value: Any, path: str) -> None:
    with pytest.raises(ValueError, match="k") as caught:
        cfg["k"] = value
    assert path in str(caught.value)
    assert "k" not in cfg


@pytest.mark.parametrize(
    ("key", "error"),
    [("", ValueError), ("k" * 513, ValueError), ("\ud800", ValueError), (5, TypeError), (None, TypeError)],
)
def test_what_cannot_be_a_key_is_refused(cfg: coord.ConfigMap, key: Any, error: type[Exception]) -> None:
    for call in (
        lambda: cfg.put(key, 1),
        lambda: cfg.delete(key),
        lambda: cfg.compare_and_set(key, 1, revision=coord.ABSENT),
        lambda: cfg.transaction().put(key, 1),
        lambda: cfg.transaction().require_revision(key, 1),
        lambda: cfg.put_async(key, 1),
    ):
        with pytest.raises(error):
            call()
    assert key not in cfg


def test_nothing_aliases_the_replica(cfg: coord.ConfigMap) -> None:
    value: Any = {"list": [1, 2]}
    cfg["k"] = value
    value["list"].append(3)
    cfg["k"]["list"].append(4)
    cfg.items()[0][1]["list"].append(5)
    entry = cfg.entry("k")
    assert entry is not None
    entry.value["list"].append(6)
    watched = next(iter(cfg.watch("k")))
    watched.value["list"].append(7)
    assert cfg["k"] == cfg.get("k") == {"list": [1, 2]}


def test_it_is_a_mutable_mapping(cfg: coord.ConfigMap) -> None:
    assert isinstance(cfg, MutableMapping)
    cfg["b/2"], cfg["a/1"], cfg["b/1"] = 3, 1, 2
    assert len(cfg) == 3
    assert list(cfg) == ["a/1", "b/1", "b/2"] == cfg.keys()
    assert cfg.items() == [("a/1", 1), ("b/1", 2), ("b/2", 3)]
    assert cfg.values() == [1, 2, 3]
    assert cfg.items(prefix="b/") == [("b/1", 2), ("b/2", 3)]
    assert cfg.keys(prefix="b/") == ["b/1", "b/2"]
    assert cfg.values(prefix="b/") == [2, 3]
    assert cfg == {"a/1": 1, "b/1": 2, "b/2": 3}
    assert "a/1" in cfg and "nope" not in cfg and 5 not in cast(Any, cfg)
    del cfg["a/1"]
    assert "a/1" not in cfg
    with pytest.raises(KeyError, match="a/1"):
        del cfg["a/1"]
    with pytest.raises(KeyError, match="a/1"):
        cfg["a/1"]
    assert cfg.get("a/1") is None
    assert cfg.get("a/1", 7) == 7
    cfg["none"] = None
    assert cfg.get("none", 7) is None
    with pytest.raises(TypeError, match="everybody"):
        cfg.clear()
    assert len(cfg) == 3


def test_revision_created_version(cfg: coord.ConfigMap) -> None:
    assert cfg.revision == 0
    assert cfg.entry("k") is None
    first = cfg.put("k", 1)
    second = cfg.put("k", 2)
    other = cfg.put("other", 0)
    assert 0 < first < second < other == cfg.revision
    assert cfg.entry("k") == coord.Entry("k", 2, second, first, 2, 0)
    assert cfg.delete("k") is True
    assert cfg.delete("k") is False
    assert other < cfg.revision
    third = cfg.put("k", 3)
    assert cfg.entry("k", linearizable=True) == coord.Entry("k", 3, third, third, 1, 0)


def test_compare_and_set(cfg: coord.ConfigMap) -> None:
    first = cfg.compare_and_set("k", 1, revision=coord.ABSENT)
    with pytest.raises(coord.Conflict) as caught:
        cfg.compare_and_set("k", 2, revision=coord.ABSENT)
    assert caught.value.entry == cfg.entry("k")
    second = cfg.compare_and_set("k", 2, revision=first)
    with pytest.raises(coord.Conflict):
        cfg.compare_and_set("k", 3, revision=first)
    assert cfg["k"] == 2
    with pytest.raises(coord.Conflict):
        cfg.delete("k", revision=first)
    assert cfg.delete("k", revision=second) is True
    with pytest.raises(coord.Conflict) as caught:
        cfg.compare_and_set("k", 3, revision=second)
    assert caught.value.entry is None
    assert "k" not in cfg
    assert cfg.delete("k", revision=coord.ABSENT) is False
    for revision in (-1, 1.5, None, True, "1", 2**63):
        with pytest.raises(ValueError, match="revision"):
            cfg.compare_and_set("k", 1, revision=revision)  # type: ignore[arg-type]


def test_a_conflict_carries_the_entry_however_much_conflicts(cfg: coord.ConfigMap) -> None:
    """The group remembers replies, but not unlimited values with them; a conflict has its entry all the same."""
    value = b"v" * 60_000
    revision = cfg.put("k", value)
    futures = [cfg.compare_and_set_async("k", 1, revision=coord.ABSENT) for _ in range(60)]
    for future in futures:
        conflict = future.exception(20)
        assert isinstance(conflict, coord.Conflict)
        assert conflict.entry.value == value
        assert conflict.entry.revision == revision


def test_setdefault_and_pop(cfg: coord.ConfigMap) -> None:
    assert cfg.setdefault("k", 1) == 1
    assert cfg.setdefault("k", 2) == 1
    assert cfg.pop("k") == 1
    assert cfg.pop("k", 5) == 5
    with pytest.raises(KeyError):
        cfg.pop("k")
    with pytest.raises(TypeError):
        cfg.pop("k", 1, 2)
    cfg["b"], cfg["a"] = 2, 1
    assert [cfg.popitem(), cfg.popitem()] == [("a", 1), ("b", 2)]
    with pytest.raises(KeyError):
        cfg.popitem()


def test_pop_gives_each_value_to_one_caller(cfg: coord.ConfigMap) -> None:
    taken: list[int] = []

    def work() -> None:
        while True:
            try:
                taken.append(cfg.popitem()[1])
            except KeyError:
                return

    for number in range(50):
        cfg[f"job/{number}"] = number
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(50))


def test_update_loses_nothing(cfg: coord.ConfigMap) -> None:
    def work() -> None:
        for _ in range(25):
            cfg.update("count", lambda count: count + 1, default=0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cfg["count"] == 100
    assert cfg.update("count", lambda count: count * 2) == 200


def test_update_lets_the_functions_error_through(cfg: coord.ConfigMap) -> None:
    cfg["k"] = 1
    with pytest.raises(ZeroDivisionError):
        cfg.update("k", lambda value: value / 0)
    with pytest.raises(ValueError, match="tuple"):
        cfg.update("k", lambda value: cast(Any, (value,)))
    assert cfg["k"] == 1


def test_update_that_is_always_beaten_ends_at_its_deadline(cfg: coord.ConfigMap) -> None:
    def beaten(value: int) -> int:
        cfg["k"] = value + 1
        return -1

    cfg["k"] = 0
    with pytest.raises(coord.Unavailable, match="changed by others"):
        cfg.update("k", beaten, timeout=0.3)
    assert cfg["k"] > 0


def test_a_transaction_happens_at_one_revision(cfg: coord.ConfigMap) -> None:
    first = cfg.put("a", 1)
    cfg["c"] = 3
    with cfg.transaction() as t:
        t.require_revision("a", first)
        t.require_revision("b", coord.ABSENT)
        t.put("a", 2)
        t.put("b", 2)
        t.delete("c")
        t.delete("never there")
        assert t.revision is None
        assert cfg.snapshot() == {"a": 1, "c": 3}
    assert t.revision == cfg.revision
    assert cfg.snapshot() == {"a": 2, "b": 2}
    entries = [cfg.entry("a"), cfg.entry("b")]
    assert [entry and entry.revision for entry in entries] == [t.revision, t.revision]


def test_a_transaction_that_conflicts_changes_nothing(cfg: coord.ConfigMap) -> None:
    cfg["a"] = 1
    before = cfg.revision
    t = cfg.transaction()
    t.put("b", 1)
    t.require_revision("a", coord.ABSENT)
    with pytest.raises(coord.Conflict) as caught, t:
        assert len(cfg) == 1
    assert caught.value.entry == cfg.entry("a")
    assert cfg.snapshot() == {"a": 1}
    assert cfg.revision == before
    assert t.revision is None


def test_a_transaction_whose_block_raises_is_not_sent(cfg: coord.ConfigMap) -> None:
    with pytest.raises(ZeroDivisionError), cfg.transaction() as t:
        t.put("a", 1 // len(cfg))
    t = cfg.transaction()
    t.put("a", 1)
    with pytest.raises(ZeroDivisionError), t:
        t.put("b", 1 // len(cfg))
    assert len(cfg) == 0


def test_what_a_transaction_refuses(cfg: coord.ConfigMap) -> None:
    t = cfg.transaction()
    t.put("a", 1)
    with pytest.raises(ValueError, match="twice"):
        t.put("a", 2)
    with pytest.raises(ValueError, match="twice"):
        t.delete("a")
    for number in range(127):
        t.put(f"k{number}", number)
    with pytest.raises(ValueError, match="128"):
        t.put("one more", 1)
    for number in range(128):
        t.require_revision(f"k{number}", coord.ABSENT)
    with pytest.raises(ValueError, match="128"):
        t.require_revision("one more", coord.ABSENT)
    t.commit()
    assert len(cfg) == 128
    for late in (lambda: t.put("b", 1), lambda: t.delete("b"), lambda: t.require_revision("b", 1), t.commit):
        with pytest.raises(RuntimeError, match="committed"):
            late()


def test_an_empty_transaction_changes_nothing(cfg: coord.ConfigMap) -> None:
    cfg["a"] = 1
    before = cfg.revision
    with cfg.watch(initial=False, timeout=0.05) as watch:
        with cfg.transaction() as t:
            pass
        with cfg.transaction() as checked:
            checked.require_revision("a", before)
        assert list(watch) == []
    assert t.revision is not None and checked.revision is not None
    assert before < t.revision < checked.revision
    assert cfg.revision == before


def test_a_snapshot_never_changes(cfg: coord.ConfigMap) -> None:
    cfg["a"] = [1]
    snapshot = cfg.snapshot()
    cfg["a"], cfg["b"] = [2], 1
    assert snapshot == {"a": [1]}
    with pytest.raises(TypeError):
        snapshot["a"] = 5  # type: ignore[index]


def test_readers_never_see_half_a_transaction(cfg: coord.ConfigMap) -> None:
    keys = [f"k{number}" for number in range(40)]
    stop = threading.Event()
    torn: list[Any] = []

    def read() -> None:
        newest = -1
        while not stop.is_set():
            seen = set(cfg.snapshot().values()) | set(cfg.values("k"))
            if len(set(cfg.values())) > 1 or min(seen, default=newest) < newest:
                torn.append(seen)
            newest = max(seen, default=newest)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        with cfg.transaction() as t:
            for key in keys:
                t.put(key, number)
    stop.set()
    reader.join()
    assert torn == []


def test_a_ttl_ends_a_key(cfg: coord.ConfigMap) -> None:
    cfg.put("lives", 1, ttl=0.05)
    cfg["stays"] = 1
    cfg.put("cleared", 1, ttl=0.05)
    cfg.put("cleared", 2)
    until(lambda: "lives" not in cfg, "the end of a key")
    cfg.get("stays", linearizable=True)
    assert cfg.snapshot() == {"stays": 1, "cleared": 2}
    for ttl in (0, -1, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="ttl"):
            cfg.put("k", 1, ttl=ttl)  # type: ignore[arg-type]


def test_an_ephemeral_key_names_its_session(cfg: coord.ConfigMap) -> None:
    cfg.put("k", 1, ephemeral=True)
    entry = cfg.entry("k")
    assert entry is not None and entry.session != 0
    cfg["k"] = 2
    again = cfg.entry("k")
    assert again is not None and again.session == entry.session, "a plain put keeps the owner"


def test_quotas() -> None:
    options = coord.Options(max_value_bytes=1000, max_transaction_bytes=2000, max_keys=3, max_state_bytes=1 << 16)
    with coord.Node(options=options, registry=None) as node:
        cfg = node.config
        # The group learns its limits from its leader by an entry of its own.
        until(lambda: node._running_loop().replica.machine.limits.keys == 3, "limits")
        cfg["exact"] = b"x" * 997
        with pytest.raises(coord.QuotaExceeded, match="value_bytes=1000"):
            cfg["big"] = b"x" * 998
        t = cfg.transaction()
        for key in "abc":
            t.put(key, b"x" * 990)
        with pytest.raises(coord.QuotaExceeded, match="transaction_bytes=2000"):
            t.commit()
        with pytest.raises(coord.QuotaExceeded, match="max_batch_bytes"):
            cfg["huge"] = b"x" * 5_000_000
        with pytest.raises(coord.QuotaExceeded, match="max_batch_bytes"):
            cfg.put_async("huge", b"x" * 5_000_000)
        cfg["a"], cfg["b"] = 1, 2
        with pytest.raises(coord.QuotaExceeded, match="keys=3"):
            cfg["c"] = 3
        assert isinstance(cfg.put_async("c", 3).exception(20), coord.QuotaExceeded)
        del cfg["a"]
        cfg["c"] = 3
        assert cfg.keys() == ["b", "c", "exact"]


def test_timeouts_are_checked_and_zero_is_allowed(cfg: coord.ConfigMap) -> None:
    for timeout in (-1, float("nan"), "1", True):
        with pytest.raises(ValueError, match="timeout"):
            cfg.put("k", 1, timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            cfg.get("k", linearizable=True, timeout=timeout)  # type: ignore[arg-type]
    cfg["k"] = 0
    # Zero seconds are too short for some of these, and just enough for others; none may fail in any other way.
    for call in (
        lambda: cfg.update("k", lambda value: value + 1, timeout=0),
        lambda: cfg.get("k", linearizable=True, timeout=0),
        lambda: cfg.put("k", 5, timeout=0),
    ):
        with contextlib.suppress(coord.Unavailable, coord.OutcomeUnknown):
            call()
    assert cfg.get("k", linearizable=True) in (0, 1, 5)


def test_min_revision(cfg: coord.ConfigMap) -> None:
    revision = cfg.put("k", 1)
    assert cfg.get("k", min_revision=revision, timeout=0) == 1
    with pytest.raises(coord.Unavailable, match="had not arrived"):
        cfg.get("k", min_revision=revision + 1, timeout=0.05)
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(cfg.get("k", min_revision=revision + 1)))
    reader.start()
    cfg["k"] = 2
    reader.join()
    assert got == [2]
    for wrong in ("5", -1, 1.0):
        with pytest.raises(ValueError, match="revision"):
            cfg.get("k", min_revision=wrong)  # type: ignore[arg-type]
    assert cfg["k"] == 2, "the member lives on"


def test_age_of_a_group_of_one_is_no_age(cfg: coord.ConfigMap) -> None:
    cfg["k"] = 1
    assert 0.0 <= cfg.age() < 20.0
    assert cfg.get("k", max_age=60.0) == 1


def test_futures(cfg: coord.ConfigMap) -> None:
    puts = [cfg.put_async("k", number) for number in range(3 * WINDOW)]
    revisions = [future.result(20) for future in puts]
    assert revisions == sorted(set(revisions)), "in the order of the calls"
    assert cfg["k"] == 3 * WINDOW - 1
    assert cfg.compare_and_set_async("k", 1, revision=revisions[-1]).result(20) == cfg.revision
    assert isinstance(cfg.compare_and_set_async("k", 1, revision=coord.ABSENT).exception(20), coord.Conflict)
    assert cfg.delete_async("k").result(20) is True
    assert cfg.delete_async("k").result(20) is False
    assert not cfg.put_async("k", 1).cancel(), "on its way is on its way"


def test_callbacks_of_futures_run_elsewhere_and_in_order(cfg: coord.ConfigMap) -> None:
    threads: set[str] = set()
    order: list[int] = []
    done = threading.Event()

    def note(number: int) -> None:
        threads.add(threading.current_thread().name)
        order.append(number)
        if number == 99:
            done.set()
        raise ValueError("callbacks may raise")

    # Held up behind the first, so that none is done before its callback is added.
    gate = threading.Event()
    cfg.put_async("k", 0).add_done_callback(lambda _: gate.wait(20))
    for number in range(100):
        cfg.put_async("k", number).add_done_callback(lambda _, number=number: note(number))  # type: ignore[misc]
    gate.set()
    assert done.wait(20)
    assert order == list(range(100))
    assert threads == {"coord-callbacks-node"}


def test_a_callback_may_wait_for_anything(cfg: coord.ConfigMap) -> None:
    """A call from a callback must not wait for the thread it runs on."""
    results: list[Any] = []
    done = threading.Event()

    def work(_: object) -> None:
        cfg["a"] = 1
        results.append(cfg.put_async("b", 2).result(20))
        results.append(cfg.get("a", linearizable=True))
        done.set()

    cfg.put_async("k", 1).add_done_callback(work)
    assert done.wait(20)
    assert results == [cfg.revision, 1]


def test_many_threads_share_one_map(cfg: coord.ConfigMap) -> None:
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(50):
                cfg[name] = number
                assert cfg[name] == number, "reads its own writes"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert cfg.values() == [49] * 8
