"""A job that must not run twice at the same time: ways to say so above its definition.

A group of one, so that it runs as it is; in a larger group every process starts the job, as by a cron of its own.
"""

from __future__ import annotations

import threading

import coord


def main() -> None:
    with coord.Node() as node:
        begun, go_on = threading.Event(), threading.Event()

        # Whoever comes while it runs does nothing: the job is being done. It is given the hold because it asks for it.
        @node.locked("reports/nightly", on_busy="skip")
        def make_report(day: str, *, hold: coord.Hold) -> str:
            print(f"reporting on {day}; fencing token {'is there' if hold.token else 'is missing'}")
            begun.set()
            assert go_on.wait(10)
            # Before what must not be done twice: is it still ours, and for long enough?
            hold.check(min_remaining=1.0)
            return f"report on {day}"

        first = threading.Thread(target=lambda: print("made:", make_report("monday")))
        first.start()
        assert begun.wait(10)
        print("a second one at the same time:", make_report("monday"))

        # Whoever comes while it runs is told.
        @node.locked("reports/nightly", timeout=0.1, on_busy="raise")
        def delete_reports() -> None:
            print("deleted")

        try:
            delete_reports()
        except coord.LockTimeout as error:
            print(f"refused: {error}")

        # Whoever comes while it runs waits for its turn.
        @node.locked("reports/nightly", timeout=10)
        def send_reports() -> None:
            print("sent, after the report was made")

        go_on.set()
        first.join()
        send_reports()

        # Or one process does all of a kind, as long as it leads; in the others a call does nothing.
        @node.leader_only("scheduler")
        def schedule() -> str:
            return "scheduled"

        with node.election("scheduler").lead(timeout=10):
            print("the leader:", schedule())


if __name__ == "__main__":
    main()
