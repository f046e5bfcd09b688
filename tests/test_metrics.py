"""What Prometheus sees of nodes, and that a host's own page survives anything a node does."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coord import wire
from coord.events import Counters
from coord.metrics import collector
from coord.metrics.collector import register, unregister


@dataclass(frozen=True)
class FakeMember:
    name: str
    alive: bool = True
    lag: int = 0


@dataclass(frozen=True)
class FakeStatus:
    role: str = "follower"
    term: int = 7
    leader: str | None = "b"
    commit_index: int = 90
    applied_index: int = 89
    last_index: int = 95
    first_index: int = 11
    members: tuple[FakeMember, ...] = (FakeMember("a"), FakeMember("b", lag=3), FakeMember("c", alive=False, lag=90))
    quorum_ok: bool = True
    started_at: float = 1_700_000_000.0


@dataclass(eq=False)
class FakeNode:
    name: str = "a"
    group: str = "orders"
    counters: Counters = field(default_factory=Counters)
    shown: FakeStatus = field(default_factory=FakeStatus)
    failure: Exception | None = None

    def status(self) -> FakeStatus:
        if self.failure is not None:
            raise self.failure
        return self.shown


@pytest.fixture
def registry() -> CollectorRegistry:
    # As the default registry does: ask for the names when registering.
    return CollectorRegistry(auto_describe=True)


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample as Prometheus would read it; each may be there only once."""
    page = generate_latest(registry).decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            series = f"{sample.name}{{{labels}}}"
            assert series not in samples, series
            samples[series] = sample.value
    return samples


def test_a_node_is_shown(registry: CollectorRegistry) -> None:
    node = FakeNode()
    node.counters.role_changed(0.0, "candidate", 7, None, "timeout")
    node.counters.frames_sent = 12
    node.counters.bytes_written = 4096
    node.counters.dropped("cluster")
    node.counters.proposals_refused = 2
    node.counters.late(0.003)
    node.counters.late(100.0)
    register(node, registry)
    samples = scrape(registry)
    of_a = "{group=orders,node=a}"
    assert samples[f"coord_up{of_a}"] == 1
    assert samples[f"coord_raft_term{of_a}"] == 7
    assert samples[f"coord_raft_is_leader{of_a}"] == 0
    assert samples[f"coord_raft_has_leader{of_a}"] == 1
    assert samples[f"coord_raft_commit_index{of_a}"] == 90
    assert samples[f"coord_raft_applied_index{of_a}"] == 89
    assert samples[f"coord_raft_log_entries{of_a}"] == 85
    assert samples[f"coord_raft_elections_total{of_a}"] == 1
    assert samples[f"coord_messages_sent_total{of_a}"] == 12
    assert samples[f"coord_wal_written_bytes_total{of_a}"] == 4096
    assert samples["coord_messages_rejected_total{group=orders,node=a,reason=cluster}"] == 1
    assert samples["coord_raft_proposals_total{group=orders,node=a,result=refused}"] == 2
    assert samples["coord_raft_role{group=orders,node=a,role=follower}"] == 1
    assert samples["coord_raft_role{group=orders,node=a,role=leader}"] == 0
    assert samples["coord_peer_lag_entries{group=orders,node=a,peer=c}"] == 90
    assert samples["coord_peer_alive{group=orders,node=a,peer=c}"] == 0
    assert "coord_peer_alive{group=orders,node=a,peer=a}" not in samples
    assert samples[f"coord_loop_lag_seconds_count{of_a}"] == 2
    assert samples[f"coord_loop_lag_seconds_sum{of_a}"] == pytest.approx(100.003)
    assert samples["coord_loop_lag_seconds_bucket{group=orders,le=0.002,node=a}"] == 0
    assert samples["coord_loop_lag_seconds_bucket{group=orders,le=0.004,node=a}"] == 1
    assert samples["coord_loop_lag_seconds_bucket{group=orders,le=8.192,node=a}"] == 1
    assert samples["coord_loop_lag_seconds_bucket{group=orders,le=+Inf,node=a}"] == 2


def test_every_labelled_series_is_there_before_anything_happened(registry: CollectorRegistry) -> None:
    register(FakeNode(), registry)
    samples = scrape(registry)
    for reason in wire.REASONS:
        assert samples[f"coord_messages_rejected_total{{group=orders,node=a,reason={reason}}}"] == 0
    for result in ("taken", "installed", "failed"):
        assert samples[f"coord_snapshots_total{{group=orders,node=a,result={result}}}"] == 0
    assert not [series for series in samples if "_created" in series]


def test_names_keep_the_conventions(registry: CollectorRegistry) -> None:
    node = FakeNode()
    register(node, registry)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.name.startswith("coord_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_count", "_sum"))
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
            assert set(sample.labels) <= {"group", "node", "peer", "role", "reason", "result", "le"}


def test_describing_asks_no_node(registry: CollectorRegistry) -> None:
    node = FakeNode(failure=AssertionError("asked"))
    register(node, registry)
    described = {metric.name: metric for metric in collector.NodeCollector().describe()}
    assert not any(metric.samples for name, metric in described.items() if name != "coord_scrape_errors")
    node.failure = None
    assert {family.name for family in registry.collect()} == set(described)


def test_many_nodes_share_one_page_and_registering_twice_changes_nothing(registry: CollectorRegistry) -> None:
    nodes = [FakeNode(name) for name in "abc"]
    for node in nodes * 2:
        register(node, registry)
    up = [series for series in scrape(registry) if series.startswith("coord_up")]
    assert up == [f"coord_up{{group=orders,node={name}}}" for name in "abc"]
    unregister(nodes[1], registry)
    unregister(nodes[1], registry)
    assert len([series for series in scrape(registry) if series.startswith("coord_up")]) == 2


def test_the_last_node_takes_the_collector_along(registry: CollectorRegistry) -> None:
    node = FakeNode()
    for _ in range(3):
        register(node, registry)
        unregister(node, registry)
        unregister(node, registry)
        assert scrape(registry) == {}
    Counter("coord_up", "The host may use the name again.", registry=registry)


def test_two_nodes_of_one_name_do_not_spoil_the_page(registry: CollectorRegistry) -> None:
    older, newer = FakeNode(), FakeNode(shown=FakeStatus(term=8))
    register(older, registry)
    register(newer, registry)
    assert scrape(registry)["coord_raft_term{group=orders,node=a}"] == 8
    unregister(newer, registry)
    assert scrape(registry)["coord_raft_term{group=orders,node=a}"] == 7


def test_a_node_that_cannot_answer_is_counted_and_the_others_shown(registry: CollectorRegistry) -> None:
    Counter("orders_placed", "The host's own.", registry=registry).inc()
    register(FakeNode("a", failure=RuntimeError("stopped")), registry)
    register(FakeNode("b"), registry)
    samples = scrape(registry)
    assert samples["orders_placed_total{}"] == 1
    assert samples["coord_scrape_errors_total{}"] == 1
    assert "coord_up{group=orders,node=a}" not in samples
    assert samples["coord_up{group=orders,node=b}"] == 1
    assert scrape(registry)["coord_scrape_errors_total{}"] == 2


def test_a_name_the_host_has_taken_is_refused_and_nothing_registered(registry: CollectorRegistry) -> None:
    Counter("coord_raft_elections", "Somebody else's.", registry=registry)
    node = FakeNode()
    with pytest.raises(ValueError, match="coord_raft_elections"):
        register(node, registry)
    unregister(node, registry)
    assert [series for series in scrape(registry) if "orders" in series] == []


def test_two_registries_are_independent_and_none_is_kept_alive(registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    node = FakeNode()
    register(node, registry)
    register(node, other)
    unregister(node, registry)
    assert scrape(registry) == {}
    assert scrape(other)["coord_up{group=orders,node=a}"] == 1
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_a_collector_somebody_else_removed_does_no_harm(registry: CollectorRegistry) -> None:
    node = FakeNode()
    register(node, registry)
    registry.unregister(collector._collectors[registry])
    unregister(node, registry)
    register(node, registry)
    assert scrape(registry)["coord_up{group=orders,node=a}"] == 1
