"""What a node counts about itself."""

from __future__ import annotations

import pytest

from coord import wire
from coord.events import BOUNDS, NOTES_MAX, Counters, Durations, Note


def test_every_reason_to_drop_a_frame_is_counted_from_the_start() -> None:
    counters = Counters()
    assert counters.frames_dropped == dict.fromkeys(wire.REASONS, 0)
    assert counters.dropped("magic")
    assert not counters.dropped("magic")
    assert counters.dropped("cluster")
    assert (counters.frames_dropped["magic"], counters.frames_dropped["cluster"]) == (2, 1)


def test_two_nodes_share_no_counter() -> None:
    one, other = Counters(), Counters()
    one.dropped("magic")
    one.late(1.0)
    one.note(0.0, "role", "x")
    assert other.frames_dropped["magic"] == 0
    assert sum(other.loop_lag.buckets) == 0
    assert other.recent == ()


def test_notes_are_bounded_and_the_newest_kept() -> None:
    counters = Counters()
    held = counters.recent
    for number in range(NOTES_MAX + 10):
        counters.note(float(number), "role", str(number))
    assert held == ()
    assert [note.text for note in counters.recent] == [str(number) for number in range(10, NOTES_MAX + 10)]
    assert counters.recent[-1] == Note(NOTES_MAX + 9.0, "role", str(NOTES_MAX + 9))


def test_role_changes_count_elections_leaders_and_step_downs() -> None:
    counters = Counters()
    story = [
        ("pre-candidate", 1, None),
        ("candidate", 2, None),
        ("leader", 2, "a"),
        ("follower", 3, None),
        ("follower", 3, "b"),
        ("pre-candidate", 3, None),
        ("follower", 3, "b"),
        ("candidate", 4, None),
        ("leader", 4, "a"),
    ]
    for at, (role, term, leader) in enumerate(story):
        counters.role_changed(float(at), role, term, leader, "as told")
    assert (counters.elections, counters.leader_changes, counters.step_downs) == (2, 3, 1)
    assert len(counters.recent) == len(story)
    assert counters.recent[2].text == "leader in term 2, leader a: as told"


@pytest.mark.parametrize("seconds", [0.0, BOUNDS[0], BOUNDS[0] * 1.01, 0.1, BOUNDS[-1], 1e9])
def test_a_duration_is_counted_in_the_bucket_that_holds_it(seconds: float) -> None:
    durations = Durations()
    durations.add(seconds)
    (bucket,) = [number for number, count in enumerate(durations.buckets) if count]
    bounds = (-1.0, *BOUNDS, float("inf"))
    assert bounds[bucket] < seconds <= bounds[bucket + 1]
    assert durations.total == seconds


def test_the_longest_lag_is_kept() -> None:
    counters = Counters()
    for seconds in (0.1, 0.3, 0.2):
        counters.late(seconds)
    assert counters.loop_lag_max == 0.3
    assert sum(counters.loop_lag.buckets) == 3
