"""Options that cannot work are refused at construction, with a text that leads to some that do."""

from __future__ import annotations

import ast
import inspect
import math
import re
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord import options
from coord.errors import ConfigurationError
from coord.machine.limits import Limits
from coord.options import Options

NUMBERS = [field.name for field in fields(Options) if type(field.default) in (int, float)]
WHOLE = [field.name for field in fields(Options) if type(field.default) is int]


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Options(**settings)
    return str(caught.value)


def suggested(text: str) -> dict[str, Any]:
    """The first `name=value` a text says to use."""
    found = re.search(r"use (\w+)=(\([^)]*\)|[\d.e+]+)", text)
    assert found, text
    return {found[1]: ast.literal_eval(found[2])}


def test_the_documented_defaults() -> None:
    ours = Options()
    assert (ours.heartbeat, ours.election_timeout, ours.session_ttl, ours.session_grace) == (0.15, (1.5, 3.0), 10, 45)
    assert (ours.default_timeout, ours.lease_reads, ours.clock_drift, ours.fsync, ours.priority) == (
        *(10.0, False),
        *(0.01, "auto", 0),
    )
    assert (ours.max_lock_requests, ours.max_waiters) == (100_000, 1000)


def test_the_defaults_of_the_state_are_the_limits_it_begins_with() -> None:
    """Else every new group would begin by changing them."""
    names = {"lock_requests": "max_lock_requests", "waiters": "max_waiters"}
    for field in fields(Limits):
        name = names.get(field.name, f"max_{field.name}")
        assert getattr(Options(), name) == getattr(Limits(), field.name), name
        low, high = options._RANGES[name]
        Limits(**{field.name: int(low)})
        Limits(**{field.name: int(high)})


def test_the_defaults_keep_the_rules_of_a_session() -> None:
    ours = Options()
    assert ours.keepalive <= ours.session_ttl / 4
    # A change of leader, with a second to spare, costs no session its peace.
    assert ours.keepalive + ours.election_timeout[1] + 1 <= ours.jeopardy
    assert ours.lease == pytest.approx(9.55)
    assert ours.jeopardy < ours.lease < ours.session_ttl


@given(ttl=st.floats(0.1, 300), drift=st.floats(0, 0.1))
def test_jeopardy_begins_while_the_lease_holds(ttl: float, drift: float) -> None:
    ours = Options(heartbeat=0.005, election_timeout=(0.025, 0.05), session_ttl=ttl, clock_drift=drift)
    assert ours.keepalive + ours.election_timeout[1] <= ours.jeopardy * (1 + 1e-9)
    assert ours.jeopardy < ours.lease < ours.session_ttl


def test_every_field_is_documented() -> None:
    lines = inspect.getsource(Options).splitlines()
    for number, line in enumerate(lines):
        if re.match(r"    \w+: .* = ", line):
            assert lines[number - 1].startswith("    #: "), line


def test_every_number_has_a_range_that_holds_its_default() -> None:
    assert set(options._RANGES) == {*NUMBERS, "election_timeout"}
    for name in NUMBERS:
        low, high = options._RANGES[name]
        assert low <= getattr(Options(), name) <= high


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, None, math.nan, math.inf, -math.inf, [1], 1j])
def test_a_number_of_another_type_is_refused(name: str, value: object) -> None:
    assert name in refused(**{name: value})


@pytest.mark.parametrize("name", WHOLE)
def test_a_fraction_is_no_whole_number(name: str) -> None:
    assert f"{name}=2.0: expected a whole number" in refused(**{name: 2.0})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_range_is_refused_with_one_in_range(name: str) -> None:
    low, high = options._RANGES[name]
    for value, nearest in ((low - 1, low), (high + 1, high)):
        assert f"{name}={nearest} works" in refused(**{name: value})


@pytest.mark.parametrize("value", [3, (3,), (1, 2, 3), "ab", None, ("1", "2"), (True, 3.0), (1.5, math.nan), (-1, 3)])
def test_an_election_timeout_is_two_numbers(value: object) -> None:
    assert "election_timeout=" in refused(election_timeout=value)


@pytest.mark.parametrize(
    ("name", "value"), [("lease_reads", 1), ("lease_reads", "no"), ("fsync", "never"), ("fsync", None), ("fsync", [])]
)
def test_a_choice_is_one_of_those_offered(name: str, value: object) -> None:
    assert f"{name}={value!r}: expected" in refused(**{name: value})


def test_numbers_become_what_the_field_says() -> None:
    ours = Options(election_timeout=[2, 4], session_ttl=10)  # type: ignore[arg-type]
    assert ours.election_timeout == (2.0, 4.0)
    assert {type(ours.session_ttl), *map(type, ours.election_timeout)} == {float}
    assert hash(ours) == hash(replace(ours))


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().heartbeat = 1.0  # type: ignore[misc]


#: Settings that cannot go together, and both fields the text has to name.
COMBINATIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"session_ttl": 5.0}, "session_ttl", "election_timeout"),
    ({"heartbeat": 0.5}, "heartbeat", "election_timeout"),
    ({"election_timeout": (0.2, 0.4)}, "election_timeout", "heartbeat"),
    ({"election_timeout": (2.0, 2.0)}, "election_timeout", "heartbeat"),
    ({"election_timeout": (3.0, 1.5)}, "election_timeout", "election_timeout"),
    ({"disk_stall_timeout": 0.1}, "disk_stall_timeout", "heartbeat"),
    ({"max_value_bytes": 512 << 10}, "max_transaction_bytes", "max_value_bytes"),
    ({"max_transaction_bytes": 2 << 20}, "max_batch_bytes", "max_transaction_bytes"),
    ({"max_state_bytes": 65536}, "max_state_bytes", "max_value_bytes"),
    ({"max_inflight_bytes": 65536}, "max_inflight_bytes", "max_batch_bytes"),
    ({"max_uncommitted_bytes": 65536}, "max_uncommitted_bytes", "max_batch_bytes"),
    ({"max_frame_bytes": 1 << 20}, "max_frame_bytes", "max_batch_bytes"),
    ({"max_append_bytes": 8 << 20}, "max_frame_bytes", "max_append_bytes"),
    ({"snapshot_chunk_bytes": 4 << 20}, "max_frame_bytes", "snapshot_chunk_bytes"),
]


@pytest.mark.parametrize(("settings", "one", "other"), COMBINATIONS, ids=lambda value: str(value))
def test_a_combination_is_refused_by_both_names_and_a_value_that_works(
    settings: dict[str, Any], one: str, other: str
) -> None:
    text = refused(**settings)
    assert f"{one}=" in text or f"{one}[1]=" in text
    assert f"{other}=" in text or f"{other}[1]=" in text
    Options(**{**settings, **suggested(text)})


@given(heartbeat=st.floats(0.005, 10), shortest=st.floats(0.025, 120), longest=st.floats(0.025, 120))
def test_following_the_advice_always_leads_to_options(heartbeat: float, shortest: float, longest: float) -> None:
    settings: dict[str, Any] = {"heartbeat": heartbeat, "election_timeout": (shortest, longest)}
    texts: list[str] = []
    while len(texts) < 5:
        try:
            Options(**settings)
        except ConfigurationError as error:
            texts.append(str(error))
            settings |= suggested(str(error))
        else:
            return
    pytest.fail(f"{settings} still refused after {texts}")
