"""The lease of a session, as arithmetic. What must not live here: who renews it, and how (the simulation does that)."""

from __future__ import annotations

import math
import random

import pytest

from coord.lease import EXPIRED, JEOPARDY, SUSPENDED, VALID, Lease
from coord.options import Options

OPTIONS = Options()
LENGTH, TTL, DRIFT = OPTIONS.lease, OPTIONS.session_ttl, OPTIONS.clock_drift


def begun(at: float = 100.0) -> Lease:
    lease = Lease(7, OPTIONS)
    lease.begin(at, at)
    return lease


def test_the_defaults_are_those_of_the_specification() -> None:
    assert (OPTIONS.keepalive, OPTIONS.jeopardy) == (1.0, 6.0)
    assert pytest.approx(9.55) == LENGTH
    # One change of leader causes no jeopardy: the longest election, one more renewal, and a second to spare.
    assert OPTIONS.keepalive + OPTIONS.election_timeout[1] + 1.0 <= OPTIONS.jeopardy


def test_nothing_is_held_before_the_group_has_the_session() -> None:
    lease = Lease(7, OPTIONS)
    assert lease.state(0.0) == SUSPENDED
    assert not lease.stands(0.0)
    assert lease.remaining(1e9) == 0.0
    assert not lease.lapsed(1e9), "there is nothing to give up yet"
    assert lease.changes_at(0.0) == math.inf


@pytest.mark.parametrize(
    ("age", "state", "stands"),
    [
        (0.0, VALID, True),
        (5.99, VALID, True),
        (6.0, JEOPARDY, True),
        (LENGTH - 0.01, JEOPARDY, True),
        (LENGTH, SUSPENDED, False),
        (LENGTH + 44.0, SUSPENDED, False),
    ],
)
def test_states_follow_the_clock_alone(age: float, state: str, stands: bool) -> None:
    lease = begun(0.0)
    assert (lease.state(age), lease.stands(age)) == (state, stands)
    assert lease.remaining(age) == pytest.approx(max(0.0, LENGTH - age))


def test_it_counts_from_the_sending_whenever_the_answer_comes() -> None:
    lease = begun(0.0)
    lease.confirm(3.0)  # the answer comes much later; nobody asks when
    assert lease.remaining(8.0) == pytest.approx(3.0 + LENGTH - 8.0)


def test_an_answer_that_was_overtaken_takes_nothing_back() -> None:
    lease = begun(0.0)
    lease.confirm(5.0)
    lease.confirm(4.0)
    assert lease.confirmed_at == 5.0


def test_an_answer_after_the_end_brings_it_back_and_after_the_end_for_good_does_not() -> None:
    lease = begun(0.0)
    assert lease.state(20.0) == SUSPENDED
    lease.confirm(19.0)
    assert (lease.state(20.0), lease.stands(20.0)) == (VALID, True)
    lease.ended = "expired"
    lease.confirm(20.0)
    assert (lease.state(20.0), lease.stands(20.0), lease.remaining(20.0)) == (EXPIRED, False, 0.0)


def test_an_owner_that_ran_late_is_in_jeopardy_until_it_is_answered() -> None:
    lease = begun(0.0)
    lease.late = True
    assert (lease.state(1.0), lease.stands(1.0)) == (JEOPARDY, True)
    lease.confirm(1.0)
    assert lease.state(1.0) == VALID


def test_it_lapses_a_grace_after_its_end() -> None:
    lease = begun(0.0)
    lapses = LENGTH + OPTIONS.session_grace
    assert [lease.lapsed(at) for at in (lapses - 0.01, lapses)] == [False, True]


def test_a_session_found_open_late_is_not_given_up_at_once() -> None:
    lease = Lease(7, OPTIONS)
    lease.begin(asked_at=0.0, now=500.0)
    assert not lease.stands(500.0), "the lease counts from when it was asked for"
    assert not lease.lapsed(500.0), "giving it up counts from when it was found"
    lease.confirm(500.0)
    assert lease.stands(501.0)


def test_every_change_is_announced() -> None:
    lease, now, seen = begun(0.0), 0.0, []
    while (at := lease.changes_at(now)) != math.inf:
        now = at
        seen.append(lease.state(now))
    assert seen == [JEOPARDY, SUSPENDED, SUSPENDED]
    assert lease.lapsed(now), "the last change is that it may be given up"


def test_the_owner_stops_before_the_leader_may_end_it_whatever_is_late() -> None:
    """`lease_sim`: both clocks off by the bound in either direction, any delay of request and answer."""
    rng = random.Random(1)
    for _ in range(20_000):
        owner_rate, leader_rate = rng.choice([1 - DRIFT, 1, 1 + DRIFT]), rng.choice([1 - DRIFT, 1, 1 + DRIFT])
        sent = rng.uniform(0, 100)
        received = sent + rng.expovariate(1.0)
        answered = received + rng.expovariate(0.5)
        lease = Lease(7, OPTIONS)
        lease.begin(-1e6, -1e6)
        lease.confirm(sent * owner_rate)
        ended = received + TTL / leader_rate
        assert not lease.stands(ended * owner_rate), f"held at {ended}, when it is ended; answered at {answered}"
