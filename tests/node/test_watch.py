"""Watches: everything is told, in order, once, without a gap; whatever the reader, the writers and the group do."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import coord
from coord.watch import BACKLOG, Watch, Watches
from node.group import Group, until


def take(watch: coord.Watch, count: int) -> list[coord.Event]:
    return [next(watch) for _ in range(count)]


def test_first_what_is_there_then_what_happens(cfg: coord.ConfigMap) -> None:
    b, a = cfg.put("db/b", 1), cfg.put("db/a", 2)
    cfg["other"] = 0
    with cfg.watch("db/") as watch:
        assert take(watch, 2) == [coord.Event("put", "db/b", 1, b), coord.Event("put", "db/a", 2, a)]
        cfg["other"] = 1
        c = cfg.put("db/c", 3)
        cfg.delete("db/a")
        assert take(watch, 2) == [coord.Event("put", "db/c", 3, c), coord.Event("delete", "db/a", None, cfg.revision)]


def test_without_initial_only_what_happens(cfg: coord.ConfigMap) -> None:
    cfg["a"] = 1
    with cfg.watch(initial=False) as watch:
        cfg["a"] = 2
        assert next(watch).value == 2


def test_there_is_no_gap_between_initial_state_and_updates(cfg: coord.ConfigMap) -> None:
    """Watches begun at any moment of a stream of writes end up with the same map."""
    writer = threading.Thread(target=lambda: [cfg.put(f"k{number % 7}", number) for number in range(300)])
    writer.start()
    watches: list[coord.Watch] = []
    while writer.is_alive():
        watches.append(cfg.watch(conflate=len(watches) % 2 == 0))
    writer.join()
    watches.append(cfg.watch())
    last = cfg.put("last", True)
    for watch in watches:
        seen: dict[str, Any] = {}
        revisions = []
        for event in watch:
            seen[event.key] = event.value
            revisions.append(event.revision)
            if event.revision == last:
                break
        assert seen == cfg.snapshot()
        assert revisions == sorted(set(revisions))


def test_conflating_keeps_the_newest_of_each_key(cfg: coord.ConfigMap) -> None:
    with cfg.watch() as conflating, cfg.watch(conflate=False) as complete:
        for number in range(20):
            cfg[f"k{number % 2}"] = number
        del cfg["k0"]
        assert [(event.key, event.value) for event in take(conflating, 2)] == [("k1", 19), ("k0", None)]
        events = take(complete, 21)
        assert [event.value for event in events] == [*range(20), None]
        assert [event.revision for event in events] == sorted({event.revision for event in events})


def test_a_transaction_is_told_with_one_revision(cfg: coord.ConfigMap) -> None:
    with cfg.watch(conflate=False) as watch:
        with cfg.transaction() as t:
            t.put("a", 1)
            t.put("b", 2)
        assert [(event.key, event.revision) for event in take(watch, 2)] == [("a", t.revision), ("b", t.revision)]


def test_from_revision_is_inclusive(cfg: coord.ConfigMap) -> None:
    revisions = [cfg.put("k", number) for number in range(5)]
    with cfg.watch(from_revision=revisions[2], conflate=False) as watch:
        assert [event.value for event in take(watch, 3)] == [2, 3, 4]
        cfg["k"] = 5
        assert next(watch).value == 5


def test_a_future_revision_is_waited_for(cfg: coord.ConfigMap) -> None:
    revision = cfg.put("k", 0)
    with cfg.watch(from_revision=revision + 2, conflate=False) as watch:
        for number in range(1, 4):
            cfg["k"] = number
        assert [event.value for event in take(watch, 2)] == [2, 3]


@pytest.mark.parametrize("revision", [0, -1, "1", 1.0, True])
def test_what_is_no_revision(cfg: coord.ConfigMap, revision: Any) -> None:
    with pytest.raises(ValueError, match="from_revision"):
        cfg.watch(from_revision=revision)


def test_compacted() -> None:
    options = coord.Options(history_revisions=5)
    with coord.Node(options=options, registry=None) as node:
        revisions = [node.config.put("k", number) for number in range(10)]
        with pytest.raises(coord.Compacted) as caught:
            node.config.watch(from_revision=revisions[4])
        oldest = caught.value.revision + 1
        assert oldest == revisions[5]
        with node.config.watch(from_revision=oldest, conflate=False) as watch:
            assert [event.value for event in take(watch, 5)] == [5, 6, 7, 8, 9]
        assert len(node._running_loop().replica.watches) == 0


def test_falling_behind_is_told(cfg: coord.ConfigMap) -> None:
    with cfg.watch(conflate=False) as watch:
        for number in range(0, BACKLOG + 128, 128):
            with cfg.transaction() as t:
                for key in range(128):
                    t.put(f"k{key}", number)
        take(watch, BACKLOG)
        with pytest.raises(coord.Compacted):
            next(watch)


def test_a_timeout_ends_the_iteration_and_another_goes_on(cfg: coord.ConfigMap) -> None:
    with cfg.watch(timeout=0.05) as watch:
        assert list(watch) == []
        cfg["k"] = 1
        assert [event.value for event in watch] == [1]


def test_close_ends_the_iteration_of_another_thread(cfg: coord.ConfigMap) -> None:
    watch = cfg.watch()
    seen: list[coord.Event] = []
    reader = threading.Thread(target=lambda: seen.extend(watch))
    reader.start()
    cfg["k"] = 1
    until(lambda: seen, "the event")
    watch.close()
    watch.close()
    reader.join(20)
    assert not reader.is_alive()
    assert [event.value for event in seen] == [1]
    cfg["k"] = 2
    assert list(watch) == []
    assert watch.closed


def test_stop_ends_watches_with_closed_error(alone: coord.Node) -> None:
    watch, ended = alone.config.watch(), []

    def read() -> None:
        try:
            list(watch)
        except coord.ClosedError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    alone.stop()
    reader.join(20)
    assert len(ended) == 1
    with pytest.raises(coord.ClosedError):
        next(watch)
    with pytest.raises(coord.ClosedError):
        alone.config.watch()


def test_a_watch_begun_while_its_member_stops_ends_too() -> None:
    for _ in range(20):
        node = coord.Node(registry=None).start()
        begun = threading.Event()
        ended: list[BaseException] = []

        def watch_for_ever(node: coord.Node = node, begun: threading.Event = begun, ended: list[Any] = ended) -> None:
            try:
                while True:
                    begun.set()
                    for _ in node.config.watch(timeout=0.001):
                        pass
            except coord.ClosedError as error:
                ended.append(error)

        reader = threading.Thread(target=watch_for_ever)
        reader.start()
        begun.wait(20)
        node.stop()
        reader.join(20)
        assert len(ended) == 1


def test_a_watch_begun_after_the_end_is_told_of_it() -> None:
    """Its beginning may have been on its way to the background thread when that ended."""
    watches = Watches()
    watches.end(coord.ClosedError("stopped"))
    watch = Watch("", conflate=True, timeout=5.0, decode=pytest.fail, notify=None, on_close=watches.discard)
    watches.add(watch)
    with pytest.raises(coord.ClosedError):
        next(watch)
    assert len(watches) == 0


def test_an_abandoned_watch_is_let_go(cfg: coord.ConfigMap) -> None:
    """`for event in cfg.watch(): break` is the common way to wait for something; nobody closes it."""
    cfg["k"] = 1
    for _ in range(50):
        for event in cfg.watch():
            assert event.key == "k"
            break
    gc.collect()
    with cfg.watch():
        assert len(cfg._coordinator._running_loop().replica.watches) == 1


def test_a_callback_gets_every_event_in_order_on_its_own_thread(cfg: coord.ConfigMap) -> None:
    seen: list[Any] = []
    threads: set[str] = set()
    cfg["k"] = 0

    def callback(event: coord.Event) -> None:
        threads.add(threading.current_thread().name)
        seen.append(event.value)
        if event.value == 3:
            raise ValueError("callbacks may raise")

    watch = cfg.watch("k", callback=callback, conflate=False)
    for number in range(1, 300):
        cfg["k"] = number
    until(lambda: len(seen) == 300, "all events")
    assert seen == list(range(300))
    assert threads == {"coord-callbacks-node"}
    watch.close()
    cfg["k"] = -1
    marker: list[int] = []
    cfg.watch("k", callback=lambda event: marker.append(event.value))
    until(lambda: marker == [-1], "another watch's event")
    assert seen[-1] == 299


def test_a_watch_closed_by_its_callback_calls_it_no_more(cfg: coord.ConfigMap) -> None:
    for number in range(10):
        cfg[f"k{number}"] = number
    seen: list[str] = []
    told = threading.Event()
    held: list[coord.Watch] = []

    def callback(event: coord.Event) -> None:
        assert told.wait(20)
        seen.append(event.key)
        held[0].close()

    held.append(cfg.watch(callback=callback))
    told.set()
    done: list[int] = []
    cfg.watch("k9", callback=lambda event: done.append(event.value))
    until(lambda: done, "a later watch's event")
    assert seen == ["k0"]


def test_a_slow_callback_costs_no_memory(alone: coord.Node) -> None:
    cfg, gate, seen = alone.config, threading.Event(), []

    def callback(event: coord.Event) -> None:
        seen.append(event.value)
        assert gate.wait(20)

    cfg["k"] = -1
    watch = cfg.watch(callback=callback)
    until(lambda: seen, "the first event")
    for number in range(500):
        cfg["k"] = number
    assert alone._running_loop().dispatcher._tasks.qsize() <= 1
    gate.set()
    until(lambda: seen[-1] == 499, "the newest value")
    assert seen == [-1, 499]
    watch.close()


def test_a_callback_may_block_in_any_call(cfg: coord.ConfigMap) -> None:
    results: list[Any] = []

    def callback(event: coord.Event) -> None:
        cfg["copy"] = event.value
        with cfg.transaction() as t:
            t.put("more", 1)
        results.append(cfg.put_async("later", 2).result(20))
        results.append(cfg.get("copy", linearizable=True))

    cfg.watch("k", callback=callback)
    cfg["k"] = 5
    until(lambda: len(results) == 2, "the callback's end")
    assert results == [cfg.revision, 5]


def test_no_busy_watch_starves_another(cfg: coord.ConfigMap) -> None:
    """One whose callback makes its own next event, for ever, beside one that waits for a single event."""
    done = threading.Event()

    def busy(event: coord.Event) -> None:
        if not done.is_set():
            cfg["busy"] = event.value + 1

    cfg["busy"] = 0
    with cfg.watch("busy", callback=busy, conflate=False), cfg.watch("quiet", callback=lambda _: done.set()):
        cfg["quiet"] = 1
        assert done.wait(20)


def test_a_callbacks_watch_that_falls_behind_says_so(cfg: coord.ConfigMap, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    with caplog.at_level(logging.WARNING, "coord.config"):
        watch = cfg.watch(callback=lambda _: gate.wait(20), conflate=False)
        for number in range(0, BACKLOG + 256, 128):
            with cfg.transaction() as t:
                for key in range(128):
                    t.put(f"k{key}", number)
        gate.set()
        until(lambda: watch.closed, "the end of the watch")
    assert "events behind" in caplog.text


def test_many_watches(cfg: coord.ConfigMap) -> None:
    watches = [cfg.watch(f"k{number}/") for number in range(200)]
    for number in range(200):
        cfg[f"k{number}/x"] = number
    assert [next(watch).value for watch in watches] == list(range(200))
    for watch in watches:
        watch.close()
    assert len(cfg._coordinator._running_loop().replica.watches) == 0


def test_a_watch_outlives_a_change_of_leader_and_the_restart_of_others(make_group: Callable[..., Group]) -> None:
    group = make_group(durable=True)
    group.start()
    leader, follower = group.leader().name, group.followers()[0]
    with follower.config.watch("k", conflate=False) as watch:
        follower.config["k1"] = 1
        group.stop(leader)
        group.leader()
        follower.config["k2"] = 2
        group.start(leader)
        group.nodes[leader].config["k3"] = 3
        assert [event.value for event in take(watch, 3)] == [1, 2, 3]


def test_a_watch_goes_on_over_an_installed_snapshot(make_group: Callable[..., Group]) -> None:
    """A member that missed more than the log keeps gets a snapshot. Its watches see the difference, never the past; one
    that wants every change ends, for it cannot have them."""
    group = make_group(snapshot_entries=20, history_revisions=1000)
    group.start()
    late = group.followers()[0]
    others = [name for name in group.nodes if name != late.name]
    writer = group.leader().config
    writer["gone"], writer["changed"], writer["kept"] = 1, 1, 1
    watch, complete = late.config.watch(), late.config.watch(conflate=False)
    before = take(watch, 3)
    assert take(complete, 3) == before
    late.cut_off()
    group.leader(among=others)
    writer = group.nodes[others[0]].config
    del writer["gone"]
    for number in range(200):
        writer["changed"] = number
    leader = group.leader(among=others)
    until(lambda: leader.status().first_index > 100, "a shorter log")
    late.reconnect()
    until(lambda: late.config.get("changed") == 199, "the late member")
    assert late._running_loop().replica.counters.snapshots_installed == 1
    writer["after"] = 1
    events = []
    for event in watch:
        events.append(event)
        if event.key == "after":
            break
    seen = {event.key: (event.kind, event.value) for event in [*before, *events]}
    assert seen == {"gone": ("delete", None), "changed": ("put", 199), "kept": ("put", 1), "after": ("put", 1)}
    revisions = [event.revision for event in [*before, *events]]
    assert revisions == sorted(revisions)
    with pytest.raises(coord.Compacted, match="a snapshot took it to"):
        next(complete)
