"""Stories: what was found once, or what chance would find too seldom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coord.raft.messages import Append, AppendResponse, Heartbeat, HeartbeatResponse, Send
from simulation.stories import STORIES, batch, follower, persists


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
@pytest.mark.parametrize("seed", range(10))
def test_story(story: Callable[[int], None], seed: int) -> None:
    story(seed)


def test_a_damaged_member_answers_no_leader() -> None:
    """What it forgot may be a newer term. Its word would let an older leader commit, or confirm reads."""
    core = follower(damage="entry 3 is corrupt")
    core.step(1.0, "a", 1, Append(1, 0, 0, 0, 1, [batch(1, 1)]))
    core.step(1.0, "a", 1, Heartbeat(1, 0, 2))
    commands = core.take()
    (persist,) = persists(commands)
    core.persisted(1.1, persist.seq)
    commands += core.take()
    said = [command.message for command in commands if isinstance(command, Send)]
    assert not [message for message in said if isinstance(message, AppendResponse | HeartbeatResponse)]
