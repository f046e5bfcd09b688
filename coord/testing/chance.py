"""Where a simulation takes its chances from: streams that depend on the seed and on what they are for, on nothing else.

So taking one fault away, or adding one, moves no other draw, and a story can be made shorter without becoming another.
What must not live here: what is drawn.
"""

from __future__ import annotations

import random


def stream(seed: int, *purpose: str | int) -> random.Random:
    """The stream for `purpose`. A text as seed is hashed by the library itself, the same in every process."""
    return random.Random(repr((seed, *purpose)))
