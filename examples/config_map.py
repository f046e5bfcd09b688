"""The config map in five minutes: a dict whose writes a majority has on disk before they return.

A group of one, so that it runs as it is. In yours, give `coord.Node` a name, an address, the peers and a directory.
"""

from __future__ import annotations

import coord


def main() -> None:
    with coord.Node() as node:
        config = node.config

        # As a dict. Reads look into this process's own copy and never wait.
        config["db/url"] = "postgres://10.0.0.5/orders"
        config["db/pool"] = {"min": 2, "max": 10}
        print("db/url is", config["db/url"])
        print("keys under db/:", config.keys(prefix="db/"))

        # What is returned is yours: changing it changes nothing for others.
        config["db/pool"]["max"] = 99
        print("db/pool is still", config["db/pool"])

        # Two processes that both change one key: nobody's change is lost.
        for _ in range(3):
            config.update("jobs/done", lambda done: done + 1, default=0)
        print("jobs/done is", config["jobs/done"])

        # Or by hand: write only if nobody has written since we looked.
        entry = config.entry("db/url")
        assert entry is not None
        config.compare_and_set("db/url", "postgres://10.0.0.6/orders", revision=entry.revision)
        try:
            config.compare_and_set("db/url", "postgres://10.0.0.7/orders", revision=entry.revision)
        except coord.Conflict as conflict:
            print("refused:", conflict)

        # Several changes at one revision, or none of them.
        with config.transaction() as change:
            change.require_revision("feature/new-checkout", coord.ABSENT)
            change.put("feature/new-checkout", True)
            change.delete("db/pool")
        print("at revision", change.revision, "the map is", dict(config.snapshot()))


if __name__ == "__main__":
    main()
