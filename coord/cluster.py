"""`coordinator.cluster`: who is in the group, who leads it, and handing that over.

What must not live here: who is a member by Raft's rules (`coord.raft.membership`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.errors import Unavailable

if TYPE_CHECKING:
    from coord.coordinator import Coordinator, Member


class Cluster:
    """The group, seen from one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def members(self) -> list[Member]:
        """All members, by name."""
        return list(self._coordinator.status().members)

    def leader(self) -> str | None:
        """The leader's name; None while none is known. It may be out of date the moment it is returned."""
        loop = self._coordinator._running_loop()
        loop.check()
        return loop.replica.core.leader

    def transfer_leadership(self, to: str | None = None, timeout: float | None = None) -> None:
        """Hand leadership to member `to`, or to the best follower. Only on the leader; blocks until it is done.

        Raises Unavailable when this member does not lead, the target cannot take over, or it took too long; this member
        then leads on, unless the group has meanwhile elected another.
        """
        coordinator = self._coordinator
        loop = coordinator._running_loop()
        deadline = coordinator._deadline(loop, timeout)
        replica = loop.replica
        problem = loop.call(lambda: replica.transfer(to), deadline - loop.clock())
        if problem:
            raise Unavailable(
                f"leadership was not handed over: {problem}; the leader is {replica.core.leader}",
                leader=replica.core.leader,
            )
        failure = loop.when(replica.handed_over, deadline)
        if failure is None:
            failure = "it took longer than the timeout"
        if failure:
            raise Unavailable(f"leadership was not handed over: {failure}", leader=replica.core.leader)
