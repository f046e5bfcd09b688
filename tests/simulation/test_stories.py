"""Stories: what was found once, or what chance would find too seldom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simulation.stories import STORIES
from simulation.stories_of_disks import DISK_STORIES
from simulation.stories_of_locks import LOCK_STORIES
from simulation.stories_of_members import MEMBER_STORIES

_ALL = [*STORIES, *DISK_STORIES, *MEMBER_STORIES, *LOCK_STORIES]


@pytest.mark.parametrize("story", _ALL, ids=lambda story: story.__name__)
@pytest.mark.parametrize("seed", range(10))
def test_story(story: Callable[[int], None], seed: int) -> None:
    story(seed)
