"""The leader's view of one follower."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coord.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress


def replicating(match: int = 5) -> Progress:
    progress = Progress(match + 1, 0.0)
    progress.acked(match)
    progress.become_replicate()
    return progress


def test_a_probe_goes_alone() -> None:
    progress = Progress(6, 0.0)
    assert progress.state == PROBE
    assert progress.may_send(64, 1000)
    progress.sent(9, 100, 3)
    assert not progress.may_send(64, 1000)
    assert (progress.next, progress.probe_round, len(progress.inflight)) == (6, 3, 0)


def test_appends_are_sent_ahead_up_to_a_number_of_messages() -> None:
    progress = replicating()
    for last in (6, 7, 8):
        assert progress.may_send(3, 1000)
        progress.sent(last, 10, 1)
    assert not progress.may_send(3, 1000)
    assert progress.next == 9
    progress.acked(6)
    assert progress.may_send(3, 1000)


def test_appends_are_sent_ahead_up_to_a_number_of_bytes() -> None:
    progress = replicating()
    progress.sent(6, 600, 1)
    assert progress.may_send(64, 1000)
    # What is larger than the window still goes, once.
    progress.sent(7, 600, 1)
    assert not progress.may_send(64, 1000)
    progress.acked(7)
    assert (progress.inflight_bytes, progress.may_send(64, 1000)) == (0, True)


def test_an_acknowledgement_covers_all_before_it_and_never_takes_back() -> None:
    progress = replicating()
    for last in (6, 8, 9):
        progress.sent(last, 10, 1)
    assert progress.acked(8)
    assert (progress.match, [last for last, _, _ in progress.inflight]) == (8, [9])
    assert not progress.acked(6)
    assert progress.match == 8
    # One that overtook us, from an earlier life of the pipeline.
    assert progress.acked(12)
    assert (progress.match, progress.next) == (12, 13)


def test_what_a_later_answer_has_not_seen_is_lost() -> None:
    progress = replicating(5)
    progress.sent(6, 10, 1)
    assert not progress.lost_since(1, 5), "it may still be on its way"
    assert progress.lost_since(2, 5)
    assert not progress.lost_since(2, 6), "it arrived; its answer waits for the disk"
    assert progress.lost_since(1, 4), "the follower no longer knows what it acknowledged"


def test_going_back_to_probing_forgets_what_was_on_its_way() -> None:
    progress = replicating(5)
    progress.sent(6, 10, 1)
    progress.become_probe(2)
    assert (progress.state, progress.next, progress.inflight_bytes, progress.paused) == (PROBE, 6, 0, False)
    progress.become_replicate()
    assert (progress.state, progress.next) == (REPLICATE, 6)


def test_nothing_is_sent_to_who_pulls_a_snapshot() -> None:
    progress = replicating(5)
    progress.sent(6, 10, 1)
    progress.become_snapshot(20, 3.0)
    assert not progress.may_send(64, 1000)
    assert (progress.state, progress.snapshot_index, progress.offered_at, len(progress.inflight)) == (
        SNAPSHOT,
        20,
        3.0,
        0,
    )


moves = st.lists(
    st.tuples(st.sampled_from(["send", "ack", "probe", "replicate", "snapshot"]), st.integers(0, 30)), max_size=40
)


@given(moves)
def test_the_invariants_hold_whatever_happens(moves: list[tuple[str, int]]) -> None:
    progress = Progress(1, 0.0)
    for number, (move, index) in enumerate(moves):
        match = progress.match
        if move == "send" and progress.may_send(4, 100):
            progress.sent(progress.next + index % 3, index, number)
        elif move == "ack":
            progress.acked(index)
        elif move == "probe":
            progress.become_probe(index)
        elif move == "replicate":
            progress.become_replicate()
        elif move == "snapshot":
            progress.become_snapshot(index, 0.0)
        assert match <= progress.match < progress.next
        assert progress.inflight_bytes == sum(size for _, size, _ in progress.inflight)
        assert progress.state == REPLICATE or not progress.inflight
        assert [last for last, _, _ in progress.inflight] == sorted(last for last, _, _ in progress.inflight)
