"""Told about changes instead of asking for them: a watch with a callback, and one to iterate.

A group of one, so that it runs as it is; in a larger group the changes may come from any member.
"""

from __future__ import annotations

import threading

import coord


def main() -> None:
    with coord.Node() as node:
        node.config["limits/requests"] = 100

        # A callback runs on a thread of its own. First it is told what is there, then every change.
        seen = threading.Event()

        def apply(event: coord.Event) -> None:
            print(f"callback: {event.kind} {event.key} = {event.value} at revision {event.revision}")
            if event.value == 250:
                seen.set()

        with node.config.watch("limits/", callback=apply, conflate=False):
            node.config["limits/requests"] = 250
            node.config["unrelated"] = "not told"
            assert seen.wait(5)

        # To iterate: it blocks until something happens, here for half a second at most. Without `conflate` every single
        # change is told; with it a slow reader gets the latest of each key.
        watch = node.config.watch("limits/", initial=False, conflate=False, timeout=0.5)
        for number in (1, 2, 3):
            node.config["limits/requests"] = number
        last = node.config.delete("limits/requests")
        assert last
        for event in watch:
            print(f"iterating: {event.kind} {event.key} = {event.value}")
        watch.close()

        # A process that was away: everything since the revision it knows, as long as that is kept.
        known = node.config.put("limits/users", 5)
        node.config["limits/users"] = 6
        with node.config.watch("limits/", from_revision=known + 1, timeout=0.2) as missed:
            print("missed:", [(event.key, event.value) for event in missed])


if __name__ == "__main__":
    main()
