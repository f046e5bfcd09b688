"""The public names and signatures: a contract, so a change shows here. What must not live here: what calls do."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import MutableMapping
from typing import Any

import pytest

import coord

EMPTY = inspect.Parameter.empty


def shape(function: Any) -> str:
    """A signature without types: `(self, key, default=None, *, timeout=None)`."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=EMPTY) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert sorted(coord.__all__) == coord.__all__
    for name in coord.__all__:
        value = getattr(coord, name)
        if name != "ABSENT":
            assert inspect.getdoc(value), name


def test_absent_is_zero() -> None:
    assert coord.ABSENT == 0


READS = "*, linearizable=False, timeout=None, max_age=None, min_revision=None"

CONFIG = {
    "get": f"(self, key, default=None, {READS})",
    "entry": f"(self, key, {READS})",
    "keys": "(self, prefix='')",
    "items": "(self, prefix='')",
    "put": "(self, key, value, *, ephemeral=False, ttl=None, timeout=None)",
    "put_async": "(self, key, value, *, ephemeral=False, ttl=None, timeout=None)",
    "compare_and_set": "(self, key, value, *, revision, ephemeral=False, ttl=None, timeout=None)",
    "compare_and_set_async": "(self, key, value, *, revision, ephemeral=False, ttl=None, timeout=None)",
    "delete": "(self, key, *, revision=None, timeout=None)",
    "delete_async": "(self, key, *, revision=None, timeout=None)",
    "update": "(self, key, fn, *, default=None, timeout=None)",
    "transaction": "(self, *, timeout=None)",
    "watch": "(self, prefix='', *, from_revision=None, initial=True, conflate=True, timeout=None, callback=None)",
    "snapshot": "(self)",
    "age": "(self)",
    "pop": "(self, key, *default)",
    "setdefault": "(self, key, default=None)",
}


@pytest.mark.parametrize("name", CONFIG)
def test_config_map(name: str) -> None:
    assert shape(getattr(coord.ConfigMap, name)) == CONFIG[name]


def test_the_config_map_is_a_mutable_mapping() -> None:
    assert issubclass(coord.ConfigMap, MutableMapping)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (coord.Transaction.require_revision, "(self, key, revision)"),
        (coord.Transaction.put, "(self, key, value, *, ephemeral=False, ttl=None)"),
        (coord.Transaction.delete, "(self, key)"),
        (coord.Transaction.commit, "(self)"),
        (coord.Watch.close, "(self)"),
        (coord.Node.start, "(self, timeout=30.0)"),
        (coord.Node.stop, "(self, timeout=5.0)"),
        (coord.Node.status, "(self)"),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_signatures(function: Any, expected: str) -> None:
    assert shape(function) == expected


def test_node_arguments() -> None:
    parameters = inspect.signature(coord.Node).parameters
    contract = ["name", "bind", "advertise", "peers", "data_dir", "group", "options", "keys", "registry"]
    assert list(parameters)[: len(contract)] == contract
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert kinds.pop("name") is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert all(parameter.default is not EMPTY for parameter in parameters.values()), "coord.Node() works"


def test_cluster_signatures() -> None:
    node = coord.Node()
    assert shape(node.cluster.members) == "()"
    assert shape(node.cluster.leader) == "()"
    assert shape(node.cluster.transfer_leadership) == "(to=None, timeout=None)"


FIELDS = {
    coord.Status: (
        "name group cluster_id role term leader commit_index applied_index last_index first_index state_hash members "
        "quorum_ok loop_lag started_at"
    ),
    coord.Member: "name address voter alive match_index lag last_contact incarnation",
    coord.Entry: "key value revision created version session",
    coord.Event: "kind key value revision",
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_of_frozen_dataclasses(kind: Any) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    assert names[: len(FIELDS[kind].split())] == FIELDS[kind].split()
    made = kind(*[None] * len(names))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, names[0], "x")


OPTIONS = {
    "heartbeat": 0.15,
    "election_timeout": (1.5, 3.0),
    "session_ttl": 10.0,
    "session_grace": 45.0,
    "default_timeout": 10.0,
    "lease_reads": False,
    "clock_drift": 0.01,
    "fsync": "auto",
}


def test_defaults_of_options() -> None:
    options = coord.Options()
    assert {name: getattr(options, name) for name in OPTIONS} == OPTIONS
    for name in ("max_value_bytes", "max_state_bytes", "max_inflight_bytes", "snapshot_entries", "wal_segment_bytes"):
        assert getattr(options, name) > 0
    assert options.priority == 0


BASES = {
    coord.Unavailable: TimeoutError,
    coord.OutcomeUnknown: TimeoutError,
    coord.LockTimeout: TimeoutError,
    coord.NotHeld: RuntimeError,
    coord.AlreadyHeld: RuntimeError,
    coord.ConfigurationError: ValueError,
    coord.StorageError: OSError,
    coord.ForkedError: RuntimeError,
    coord.ClosedError: RuntimeError,
}


@pytest.mark.parametrize("error", BASES, ids=lambda error: error.__name__)
def test_errors_are_also_what_callers_catch_already(error: type[coord.CoordError]) -> None:
    assert issubclass(error, BASES[error])
    assert issubclass(error, coord.CoordError)


def test_a_node_is_a_coordinator_with_the_promised_parts() -> None:
    node = coord.Node("a")
    assert isinstance(node, coord.Coordinator)
    assert node.name == "a"
    assert isinstance(node.config, coord.ConfigMap)
    assert repr(node) == "coord.Node('a', group='coord')"
