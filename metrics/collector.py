"""Shows nodes to Prometheus: one collector for each registry, however many nodes report to it.

The only module that imports prometheus_client. Nothing here runs unless somebody scrapes: nodes count in plain numbers
(`coord.events`) and a scrape reads them, so the host's `/metrics` answers even while a node's loop is stuck.
What must not live here: a port, a thread, or a label whose values nobody bounds (keys, lock names, clients).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coord.events import BOUNDS, Counters, Durations

#: The registry an app that already serves prometheus_client's metrics shows.
GLOBAL = REGISTRY
Registry = CollectorRegistry

logger = logging.getLogger("coord.metrics")

ROLES = ("leader", "follower", "candidate", "learner", "client")


class MemberView(Protocol):
    """What is read of one member; `coord.Member` is one."""

    @property
    def name(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def lag(self) -> int: ...


class StatusView(Protocol):
    """What is read of a node's status; `coord.Status` is one."""

    @property
    def role(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def members(self) -> Sequence[MemberView]: ...
    @property
    def quorum_ok(self) -> bool: ...
    @property
    def started_at(self) -> float: ...


class Source(Protocol):
    """A node, as far as it is shown. `status` must answer at once, from any thread, whatever the loop is doing."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def counters(self) -> Counters: ...
    def status(self) -> StatusView: ...


_NODE = ("group", "node")

#: Name, help, how to read it from a status.
_GAUGES: tuple[tuple[str, str, Callable[[StatusView], float]], ...] = (
    ("coord_raft_is_leader", "1 if this member leads.", lambda s: s.role == "leader"),
    ("coord_raft_has_leader", "1 if this member knows a leader.", lambda s: s.leader is not None),
    ("coord_raft_quorum_ok", "1 if this member believes that a quorum is within reach.", lambda s: s.quorum_ok),
    ("coord_raft_term", "Current term.", lambda s: s.term),
    ("coord_raft_commit_index", "Last log index known committed.", lambda s: s.commit_index),
    ("coord_raft_applied_index", "Last log index applied to the replicated state.", lambda s: s.applied_index),
    ("coord_raft_last_index", "Last index of this member's log.", lambda s: s.last_index),
    ("coord_raft_log_entries", "Entries in this member's log.", lambda s: s.last_index - s.first_index + 1),
    ("coord_raft_members", "Members of the group.", lambda s: len(s.members)),
    ("coord_start_timestamp_seconds", "When this node started, seconds since the epoch.", lambda s: s.started_at),
)

#: Name without `_total`, help, how to read it from the counters.
_COUNTERS: tuple[tuple[str, str, Callable[[Counters], float]], ...] = (
    ("coord_raft_elections", "Elections this member stood for.", lambda c: c.elections),
    ("coord_raft_leader_changes", "Changes of leader seen.", lambda c: c.leader_changes),
    ("coord_raft_entries_applied", "Entries applied to the replicated state.", lambda c: c.entries_applied),
    ("coord_raft_step_downs", "Times this member led and stopped leading.", lambda c: c.step_downs),
    ("coord_messages_sent", "Messages for other members.", lambda c: c.frames_sent),
    ("coord_messages_unsent", "Messages the transport could not take.", lambda c: c.frames_unsent),
    ("coord_messages_received", "Frames that arrived.", lambda c: c.frames_received),
    ("coord_wal_writes", "Writes handed to the log.", lambda c: c.persists),
    ("coord_wal_written_bytes", "Bytes handed to the log.", lambda c: c.bytes_written),
    ("coord_wal_full", "Times the disk was too full for the log to go on.", lambda c: c.disk_full),
    ("coord_loop_turns", "Times round the background loop.", lambda c: c.turns),
)

#: Name without `_total`, help, label, how to read its values from the counters. Every value is there from the start.
_LABELLED: tuple[tuple[str, str, str, Callable[[Counters], dict[str, int]]], ...] = (
    ("coord_messages_rejected", "Frames that arrived and were dropped.", "reason", lambda c: dict(c.frames_dropped)),
    (
        "coord_raft_proposals",
        "Entries proposed here, by result.",
        "result",
        lambda c: {"accepted": c.proposals_accepted, "refused": c.proposals_refused},
    ),
    (
        "coord_snapshots",
        "Snapshots, by what became of them.",
        "result",
        lambda c: {"taken": c.snapshots_taken, "installed": c.snapshots_installed, "failed": c.snapshots_failed},
    ),
)

_DURATIONS: tuple[tuple[str, str, Callable[[Counters], Durations]], ...] = (
    ("coord_loop_lag_seconds", "How late the background loop was at its timers.", lambda c: c.loop_lag),
    ("coord_wal_fsync_seconds", "From handing over to the log until on disk.", lambda c: c.fsync),
    ("coord_raft_commit_seconds", "From proposing until committed, on the leader.", lambda c: c.commit),
)

_Reading = tuple[list[str], StatusView, Counters]


class NodeCollector(Collector):
    """Renders all nodes of one registry."""

    def __init__(self) -> None:
        self._sources: tuple[Source, ...] = ()
        self._errors = 0

    @property
    def sources(self) -> tuple[Source, ...]:
        return self._sources

    def add(self, source: Source) -> None:
        self._sources = (*(kept for kept in self._sources if kept is not source), source)

    def remove(self, source: Source) -> None:
        self._sources = tuple(kept for kept in self._sources if kept is not source)

    def describe(self) -> Iterable[Metric]:
        """The families without samples. Without it, registering would scrape."""
        return list(_families([], 0))

    def collect(self) -> Iterable[Metric]:
        readings = self._read()
        return _families(readings, self._errors)

    def _read(self) -> list[_Reading]:
        # Two series of one name and labels would spoil the whole page, the host's own metrics included: the newest
        # node of a name is shown, and of one that cannot answer the failure is counted instead.
        newest = {(source.group, source.name): source for source in self._sources}
        readings = []
        for (group, name), source in newest.items():
            try:
                readings.append(([group, name], source.status(), source.counters))
            except Exception:
                self._errors += 1
                logger.debug("node %s of group %s could not be read for a scrape", name, group, exc_info=True)
        return readings


def _families(readings: list[_Reading], errors: int) -> Iterator[Metric]:
    up = GaugeMetricFamily("coord_up", "1 for each running node of this process.", labels=_NODE)
    for labels, _, _ in readings:
        up.add_metric(labels, 1)
    yield up
    yield CounterMetricFamily("coord_scrape_errors", "Nodes that could not be read for a scrape.", value=errors)
    for name, text, read_gauge in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_NODE)
        for labels, status, _ in readings:
            gauge.add_metric(labels, float(read_gauge(status)))
        yield gauge
    yield from _role_and_peers(readings)
    for name, text, read_counter in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_NODE)
        for labels, _, counters in readings:
            counter.add_metric(labels, read_counter(counters))
        yield counter
    for name, text, label, read_values in _LABELLED:
        counter = CounterMetricFamily(name, text, labels=(*_NODE, label))
        for labels, _, counters in readings:
            for value, count in read_values(counters).items():
                counter.add_metric([*labels, value], count)
        yield counter
    for name, text, read_durations in _DURATIONS:
        histogram = HistogramMetricFamily(name, text, labels=_NODE)
        for labels, _, counters in readings:
            durations = read_durations(counters)
            histogram.add_metric(labels, _cumulative(durations), durations.total)
        yield histogram


def _role_and_peers(readings: list[_Reading]) -> Iterator[Metric]:
    role = GaugeMetricFamily("coord_raft_role", "1 for the role this node has, 0 for others.", labels=(*_NODE, "role"))
    alive = GaugeMetricFamily("coord_peer_alive", "1 if that member was heard of lately.", labels=(*_NODE, "peer"))
    lag = GaugeMetricFamily("coord_peer_lag_entries", "Entries that member lacks.", labels=(*_NODE, "peer"))
    for labels, status, _ in readings:
        for name in ROLES:
            role.add_metric([*labels, name], float(status.role == name))
        for member in status.members:
            if member.name != labels[1]:
                alive.add_metric([*labels, member.name], float(member.alive))
                lag.add_metric([*labels, member.name], member.lag)
    yield role
    yield alive
    yield lag


def _cumulative(durations: Durations) -> list[tuple[str, float]]:
    # One copy, so that a bucket counted meanwhile cannot make the sums fall.
    counts = tuple(durations.buckets)
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True))


_lock = threading.Lock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, NodeCollector] = weakref.WeakKeyDictionary()


def register(source: Source, registry: CollectorRegistry) -> None:
    """Show `source` in `registry` from now on. Repeating it changes nothing. ValueError when the registry already has
    metrics of these names from somebody else."""
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = NodeCollector()
            registry.register(collector)
            _collectors[registry] = collector
        collector.add(source)


def unregister(source: Source, registry: CollectorRegistry) -> None:
    """Show `source` no longer; the last one takes the collector with it. Not registered: nothing happens."""
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            return
        collector.remove(source)
        if not collector.sources:
            del _collectors[registry]
            try:
                registry.unregister(collector)
            except KeyError:
                logger.debug("somebody else had already unregistered the collector")
