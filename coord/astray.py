"""Members compare the hashes of their states where all cut snapshots; the odd one out is to stop (trap 52).

What must not live here: how hashes are told (`coord.replica`), or kept (`coord.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coord.raft.quorum import majority


def difference(name: str, voters: Sequence[str], reports: Mapping[int, Mapping[str, int]]) -> str:
    """Why `name` has gone astray, by the `reports` of each index: a majority of `voters` agree on another state than
    its own. "" when it has not."""
    for index, told in reports.items():
        own = told.get(name)
        for value in set(told.values()):
            agreeing = sum(told.get(voter) == value for voter in voters)
            if own not in (None, value) and agreeing >= majority(len(voters)):
                return f"its state at index {index} hashes to {own:016x}, that of a majority to {value:016x}"
    return ""
