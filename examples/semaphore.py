"""No more than so many at a time, over all processes: a lock with permits.

Each permit is a numbered slot with fencing tokens of its own, so a slot can stand for something: a license, a port, a
share of the work. A group of one, so that it runs as it is; in a larger group the workers may be anywhere.
"""

from __future__ import annotations

import threading

import coord

PERMITS = 2


def main() -> None:
    with coord.Node() as node:
        busy: set[int] = set()
        most = 0
        guard = threading.Lock()

        def work(number: int) -> None:
            nonlocal most
            with node.lock("licenses", permits=PERMITS) as hold:
                with guard:
                    assert hold.slot not in busy, "two have the same license"
                    busy.add(hold.slot)
                    most = max(most, len(busy))
                print(f"worker {number} works with license {hold.slot}")
                with guard:
                    busy.remove(hold.slot)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(f"never more than {PERMITS} at a time: {most <= PERMITS}")

        # Who does not want to wait asks once.
        lock = node.lock("licenses", permits=PERMITS)
        taken = [node.lock("licenses", permits=PERMITS).acquire(timeout=5) for _ in range(PERMITS)]
        if not lock.acquire(blocking=False):
            print(f"none is free: {lock.describe().why}")
        for hold in taken:
            if hold is not None:
                hold.release()
        print(f"again {PERMITS} are free: {not lock.locked()}")

        # All have to agree on the number.
        with node.lock("licenses", permits=PERMITS):
            try:
                node.lock("licenses", permits=3).acquire(timeout=5)
            except coord.ConfigurationError as error:
                print(f"refused: {error}")


if __name__ == "__main__":
    main()
