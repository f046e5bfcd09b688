"""A job that runs once, not once per worker: every worker has the same schedule, and only the leader's copy does it.

Three workers, with a cron by hand and all in one process, so that it runs as it is. In yours, each is a process with a
`coord.Node`; what `Worker` does stays as it is.
"""

from __future__ import annotations

import coord
from coord.testing import Group

DAYS = ("monday", "tuesday", "wednesday", "thursday")


class Worker:
    def __init__(self, node: coord.Node) -> None:
        self.node = node
        self.election = node.election("reports")
        self.election.volunteer()
        self.make_reports = node.leader_only("reports")(self._make_reports)

    def _make_reports(self, today: int, *, leadership: coord.Leadership) -> list[str]:
        """All that are due: when the last one was, perhaps nobody led."""
        due = [day for day in DAYS[: today + 1] if f"reports/{day}" not in self.node.config]
        for day in due:
            report = f"what happened on {day}"
            # This process may be paused right here, and another one lead when it goes on. Then the group refuses this.
            # What is not in the group, a database say, should refuse it as well: see coord.FenceGuard.
            with self.node.config.transaction() as change:
                change.require(leadership)
                change.require_revision(f"reports/{day}", coord.ABSENT)
                change.put(f"reports/{day}", report)
        return due


def noon(workers: list[Worker], today: int) -> None:
    """Each worker's cron fires. For those that do not lead the call does nothing, and returns None."""
    results = [worker.make_reports(today) for worker in workers]
    made = [f"made {' and '.join(result)}" for result in results if result is not None]
    print(f"{DAYS[today]}: {'; '.join(made) or 'nobody leads'}")


def main() -> None:
    with Group(["worker-1", "worker-2", "worker-3"]) as group:
        workers = [Worker(group[name]) for name in group.names]

        def leader() -> Worker | None:
            return next((worker for worker in workers if worker.election.is_leader), None)

        first: Worker = group.wait_until(leader)
        noon(workers, 0)
        noon(workers, 1)

        workers.remove(first)
        group.kill(first.node)
        print("the leader is killed")
        # Its lock is kept until its lease is over, and a while longer, in case that it lives after all.
        noon(workers, 2)
        second: Worker = group.wait_until(leader)
        noon(workers, 3)
        for day in DAYS:
            print(" ", second.node.config.get(f"reports/{day}", linearizable=True))


if __name__ == "__main__":
    main()
