"""A lock, and a database that refuses whoever held it too long ago: mutual exclusion that survives any pause.

A lock that is held over a network can be lost unnoticed: its holder was paused, or its host suspended.
So every hold has a fencing token, greater than all before it; the database keeps the greatest it has seen with each
row, and takes no write with a smaller one.
"""

from __future__ import annotations

import sqlite3

import coord


def write(database: sqlite3.Connection, text: str, token: int) -> bool:
    """Write the report, unless somebody with a newer token has. Check and write are one statement."""
    with database:
        done = database.execute(
            "UPDATE reports SET text = ?, fence = ? WHERE name = 'nightly' AND fence <= ?", (text, token, token)
        )
    return done.rowcount == 1


def main() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE reports (name TEXT PRIMARY KEY, text TEXT, fence INTEGER NOT NULL)")
    database.execute("INSERT INTO reports VALUES ('nightly', '', 0)")

    with coord.Node() as node:
        # `fenced`: all that it protects compares tokens, so nobody need wait longer for a holder that was lost.
        lock = node.lock("reports/nightly", fenced=True)
        with lock as hold:
            print("a holder writes:", write(database, "first", hold.token))
            print("somebody else meanwhile:", node.lock("reports/nightly", fenced=True).acquire(blocking=False))
            print("why:", lock.describe().why)
            # What a worker would still have in its hands that is paused right here, before its next write.
            stale = hold.token

        # Time passes, and another worker has the lock.
        with node.lock("reports/nightly", fenced=True) as hold:
            print("the next holder writes:", write(database, "second", hold.token))
            print("its token is greater:", hold.token > stale)

            # Now the paused one goes on. It believes that it holds the lock, and nothing it could ask would be in time.
            print("the paused one writes:", write(database, "late", stale))

            # A third party can ask whether a hold stands, by the text that its holder passed on with its request.
            text = hold.sequencer
            print("its hold stands:", node.check_sequencer(text))
        print("and when it is released:", node.check_sequencer(text))

        # What is written into the group's own configuration needs no token: the group decides in the same moment.
        with lock as hold:
            with node.config.transaction() as transaction:
                transaction.require(hold)
                transaction.put("reports/last", "nightly")
            print("written while the lock was held:", node.config["reports/last"])

        # Not to be had in time is no error, and nothing is left waiting.
        with lock:
            other = node.lock("reports/nightly", fenced=True).acquire(timeout=0.2)
            print("within 0.2 s:", other)

    (text, _) = database.execute("SELECT text, fence FROM reports").fetchone()
    print("in the database:", text)
    database.close()


if __name__ == "__main__":
    main()
