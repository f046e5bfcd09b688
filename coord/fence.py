"""The resource's side of fencing: the newest token seen of each resource, and a refusal of anything older.

A lock is a lease: its holder may be paused beyond it and write afterwards. Only what is written to can refuse that. The
rule is one line: accept a token that is not less than the newest seen, and store it, at once with the write itself.
`docs/fencing.md` says how, with a guard from here or without one.

What must not live here: locks, sessions, clocks, or anything that asks the group. A guard needs neither a node nor a
network, and decides by the tokens alone. `sqlite3` is imported by those who use it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from coord.errors import ConfigurationError, StaleToken, Unavailable

if TYPE_CHECKING:
    import sqlite3

RESOURCE_BYTES_MAX = 255
#: A token fits a signed BIGINT, as every database has it.
TOKEN_MAX = 2**63 - 1
#: Seconds a guard that opens its own SQLite database waits for others to let go of it.
TIMEOUT = 10.0
TIMEOUT_MAX = 86_400.0

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){0,2}")
_TABLE_LENGTH_MAX = 128
#: `accepted` changes with each acceptance. MySQL counts the rows that an UPDATE changed, others those that it found;
#: so both count the same, also when the token is the one already there.
_SCHEMA = "{table} (resource {text} NOT NULL PRIMARY KEY, token BIGINT NOT NULL, accepted BIGINT NOT NULL)"
#: How each of the parameter styles of PEP 249 writes a parameter.
_MARKS: dict[str, Callable[[str, int], str]] = {
    "qmark": lambda name, position: "?",
    "numeric": lambda name, position: f":{position}",
    "named": lambda name, position: f":{name}",
    "format": lambda name, position: "%s",
    "pyformat": lambda name, position: f"%({name})s",
}
_BY_NAME = ("named", "pyformat")
#: A row that was not there, then is: one look more decides. Once more, as a savepoint may have been rolled back.
_LOOKS = 3


class FenceGuard:
    """The newest fencing token of each resource. Anything older is refused, anything else raises it.

    `FenceGuard()` remembers in this process: for a resource that only this process writes, and as long as it runs.
    `FenceGuard.sqlite` and `FenceGuard.sql` remember in the database that is written. The same token is accepted any
    number of times. Nothing is ever forgotten, so it costs one row, or one entry of a dict, for each resource.
    Made by `FenceGuard()` or given a path, it may be used by any thread; given a connection, wherever that may be.

    Resources: str of 1 to 255 bytes of UTF-8. Tokens: int, 1 to 2**63 - 1. Anything else is a TypeError or ValueError.
    """

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory: _Memory = _InProcess()

    @classmethod
    def sqlite(
        cls,
        database: str | os.PathLike[str] | sqlite3.Connection,
        table: str = "coord_fence",
        *,
        timeout: float | None = None,
    ) -> FenceGuard:
        """Remember in an SQLite database, in `table`, which is created by the first use.

        With a connection, checks take part in its transaction, which the guard begins if none is open, and neither
        commits nor rolls back: the check and the write are one. Check before anything else in the transaction: one that
        has read first may be refused at once when another process writes, however long the connection would wait.
        A connection that commits each statement by itself is refused unless a transaction is open.

        With a path, `accept` and `check` are transactions of their own, so a newer holder may come between them and
        what is written after them; `writing` has no such gap. `timeout` (seconds, 10 by default) bounds the wait for
        other processes. A connection has its own, so there it must be None.

        Raises ConfigurationError for a bad table name, path or timeout. Does no I/O.
        """
        import sqlite3

        guard = cls()
        if isinstance(database, sqlite3.Connection):
            if timeout is not None:
                raise ConfigurationError("timeout: a connection has its own; give it to sqlite3.connect()")
            guard._memory = _SqliteConnection(database, table)
        elif isinstance(database, (str, os.PathLike)):
            guard._memory = _SqliteFile(database, table, TIMEOUT if timeout is None else timeout)
        else:
            raise TypeError(
                f"database is a path or a sqlite3.Connection, not {type(database).__name__}; "
                "FenceGuard.sql() takes the connections of other drivers"
            )
        return guard

    @classmethod
    def sql(cls, connection: Any, *, paramstyle: str, table: str = "coord_fence") -> FenceGuard:
        """Remember in the database behind a DB-API 2 connection (PEP 249), in `table`, which must exist: `schema()`.

        `paramstyle` is that of the driver's module, as in `psycopg.paramstyle`. Checks take part in the connection's
        transaction, which the guard neither commits nor rolls back. The driver must not commit each statement by
        itself (autocommit) unless a transaction was begun. The first use of a resource also needs SAVEPOINT, as
        PostgreSQL, MySQL, MariaDB and SQLite have it; not if there is a row with the token 0 already.

        Raises ConfigurationError for a bad table name or style. Does no I/O. What the driver raises comes through
        unchanged: roll back, and repeat the transaction if it says so (deadlock, serialization failure).
        """
        guard = cls()
        guard._memory = _Sql(connection, _Table(table, paramstyle))
        return guard

    @staticmethod
    def schema(table: str = "coord_fence", *, text: str = "VARCHAR(255)") -> str:
        """The CREATE TABLE statement of the table that `FenceGuard.sql` needs.

        `text` is the type of a resource's name. It must tell capitals from small letters: on MySQL "VARBINARY(255)".
        """
        if not re.fullmatch(r"[A-Za-z]+( ?\([0-9]+\))?", text):
            raise ConfigurationError(f"text={text!r}: not a type of a column, such as 'VARCHAR(255)'")
        return "CREATE TABLE " + _SCHEMA.format(table=_checked_table(table), text=text)

    def accept(self, resource: str, token: int) -> bool:
        """Whether `token` is as new as any seen of `resource`; if so it is the newest from now on.

        From a connection's transaction it is part of that, and undone with it. Never blocks in memory, unless another
        thread is `writing` to this resource. Raises Unavailable when an SQLite database stays locked by others;
        nothing was written then.
        """
        resource, token = _checked(resource, token)
        return self._memory.raise_to(resource, token) <= token

    def check(self, resource: str, token: int) -> None:
        """As `accept`, but raises StaleToken where that returns False."""
        resource, token = _checked(resource, token)
        newest = self._memory.raise_to(resource, token)
        if newest > token:
            _refuse(resource, token, newest)

    def newest(self, resource: str) -> int:
        """The newest token accepted of `resource`; 0 if none was. For people and metrics: it protects nothing."""
        return self._memory.newest(_checked(resource, 1)[0])

    def writing(self, resource: str, token: int) -> AbstractContextManager[Any]:
        """`with guard.writing("reports", hold.token) as connection: connection.execute(...)`: check and write in one.

        With an SQLite path: takes the database's write lock (BEGIN IMMEDIATE), checks, gives the connection, commits
        at the end. An exception undoes everything. Nobody else writes to the database meanwhile; do not nest it, and
        neither commit nor roll back inside (`executescript` commits): RuntimeError at the end.

        In memory: gives None, and keeps other threads' checks of this resource waiting until the end. The token stays
        accepted after an exception.

        Raises StaleToken before the body is entered, Unavailable as `accept` does, and TypeError for a guard that
        was given a connection, whose transactions are its owner's.
        """
        return self._memory.writing(*_checked(resource, token))

    def __repr__(self) -> str:
        return f"<coord.FenceGuard {self._memory.describe()}>"


class _Memory(Protocol):
    """Where a guard remembers. Arguments were checked."""

    def raise_to(self, resource: str, token: int) -> int:
        """The newest token after this one was seen: `token` itself if it was accepted, else a greater one."""
        ...

    def newest(self, resource: str) -> int: ...

    def writing(self, resource: str, token: int) -> AbstractContextManager[Any]: ...

    def describe(self) -> str: ...


def _checked(resource: str, token: int) -> tuple[str, int]:
    if not isinstance(resource, str):
        raise TypeError(f"a resource is a str, not {type(resource).__name__}")
    # Lone surrogates, which no database stores, are a ValueError here.
    if not 1 <= len(resource.encode()) <= RESOURCE_BYTES_MAX:
        raise ValueError(f"a resource has 1 to {RESOURCE_BYTES_MAX} bytes, not {len(resource.encode())}")
    if not isinstance(token, int) or isinstance(token, bool):
        raise TypeError(f"a token is an int, not {type(token).__name__}")
    if not 1 <= token <= TOKEN_MAX:
        raise ValueError(f"a token is between 1 and 2**63 - 1, not {token}")
    return resource, int(token)


def _checked_table(table: str) -> str:
    """`table`, which is the only thing ever put into a statement's text."""
    if not isinstance(table, str) or len(table) > _TABLE_LENGTH_MAX or not _TABLE.fullmatch(table):
        raise ConfigurationError(
            f"table={table!r}: a table's name has letters, digits and underscores, begins with no digit, "
            f"and may have a schema's name and a dot before it; at most {_TABLE_LENGTH_MAX} characters"
        )
    return table


def _refuse(resource: str, token: int, newest: int) -> NoReturn:
    raise StaleToken(
        f"{resource!r}: token {token} is stale, the newest seen is {newest}; nothing was written. "
        "Somebody else holds the lock now: stop the protected work",
        resource=resource,
        token=token,
        newest=newest,
    )


class _Seen:
    """Of one resource, in memory."""

    __slots__ = ("lock", "token")

    def __init__(self) -> None:
        self.token = 0
        #: Held while the token is compared, and throughout `writing`.
        self.lock = threading.RLock()


class _InProcess:
    """In a dict. Safe for use by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def _of(self, resource: str) -> _Seen:
        with self._lock:
            return self._seen.setdefault(resource, _Seen())

    def raise_to(self, resource: str, token: int) -> int:
        seen = self._of(resource)
        with seen.lock:
            seen.token = max(seen.token, token)
            return seen.token

    def newest(self, resource: str) -> int:
        seen = self._seen.get(resource)
        return seen.token if seen is not None else 0

    @contextmanager
    def writing(self, resource: str, token: int) -> Iterator[None]:
        with self._of(resource).lock:
            newest = self.raise_to(resource, token)
            if newest > token:
                _refuse(resource, token, newest)
            yield

    def describe(self) -> str:
        return "in memory"


class _Statement:
    """A statement with its parameters written in the driver's style."""

    def __init__(self, template: str, paramstyle: str) -> None:
        self._names: list[str] = []
        self._by_name = paramstyle in _BY_NAME

        def mark(match: re.Match[str]) -> str:
            self._names.append(match[1])
            return _MARKS[paramstyle](match[1], len(self._names))

        self.text = re.sub(r"\{(\w+)\}", mark, template)

    def bind(self, values: Mapping[str, object]) -> Sequence[object] | Mapping[str, object]:
        if self._by_name:
            return {name: values[name] for name in self._names}
        return tuple(values[name] for name in self._names)


class _Table:
    """The statements on one table, and the decision. Any DB-API connection; its transaction is the caller's."""

    def __init__(self, table: str, paramstyle: str) -> None:
        if paramstyle not in _MARKS:
            raise ConfigurationError(
                f"paramstyle={paramstyle!r}: PEP 249 has {', '.join(_MARKS)}; the driver's module tells its own"
            )
        self.name = _checked_table(table)
        self._raise = _Statement(
            f"UPDATE {self.name} SET token = {{token}}, accepted = accepted + 1 "
            "WHERE resource = {resource} AND token <= {token}",
            paramstyle,
        )
        self._insert = _Statement(
            f"INSERT INTO {self.name} (resource, token, accepted) VALUES ({{resource}}, {{token}}, 1)", paramstyle
        )
        self._select = _Statement(f"SELECT token FROM {self.name} WHERE resource = {{resource}}", paramstyle)

    def raise_to(self, connection: Any, resource: str, token: int) -> int:
        """The newest token after this one was seen. The first statement writes, so it is what takes the row's lock.

        Only the UPDATE accepts: a SELECT may show what was so when the transaction began, and an older maximum with it.
        """
        values = {"resource": resource, "token": token}
        found: int | None = None
        failure: Exception | None = None
        for _ in range(_LOOKS):
            if self._updated(connection, values):
                return token
            found = self.select(connection, resource)
            if found is not None and found > token:
                return found
            if found is None:
                failure = self._inserted(connection, values)
                if failure is None:
                    return token
            # Somebody's first write came between, and its row is there now.
        if found is None:
            assert failure is not None, "no row was found, and inserting one did not fail"
            raise failure
        # The UPDATE sees a newer token, which the transaction's snapshot hides from the SELECT.
        return token + 1

    def _updated(self, connection: Any, values: Mapping[str, object]) -> bool:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._raise.text, self._raise.bind(values))
            if cursor.rowcount < 0:
                raise ConfigurationError(
                    "this driver does not tell how many rows an UPDATE touched (cursor.rowcount), so no token can be "
                    "checked with it; roll back"
                )
            return bool(cursor.rowcount)

    def select(self, connection: Any, resource: str) -> int | None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._select.text, self._select.bind({"resource": resource}))
            row = cursor.fetchone()
        return None if row is None else _first(row)

    def _inserted(self, connection: Any, values: Mapping[str, object]) -> Exception | None:
        """Insert the first row of a resource; what was raised if somebody else's was there first.

        PostgreSQL aborts a transaction at its first error, unless there is a savepoint to go back to.
        """
        _execute(connection, "SAVEPOINT coord_fence")
        failure: Exception | None = None
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(self._insert.text, self._insert.bind(values))
        except Exception as error:
            # By name, as every driver has its own class. Not all call a duplicate an IntegrityError; but a deadlock, a
            # lost connection or a serialization failure ends the transaction, and is its owner's to hear of.
            if any(kind.__name__ == "OperationalError" for kind in type(error).__mro__):
                raise
            failure = error
        if failure is not None:
            try:
                _execute(connection, "ROLLBACK TO SAVEPOINT coord_fence")
            except Exception as error:
                # The database has rolled back everything: what came before in this transaction is gone as well.
                raise failure from error
        _execute(connection, "RELEASE SAVEPOINT coord_fence")
        return failure


def _first(row: Any) -> int:
    """Its only column. A connection may have been told to make a dict of each row, or a plain value."""
    if isinstance(row, Mapping):
        return int(row["token"])
    return row if isinstance(row, int) else int(row[0])


def _execute(connection: Any, statement: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)


class _Sql:
    """In a table behind a connection whose transactions are somebody else's."""

    def __init__(self, connection: Any, table: _Table) -> None:
        self._connection = connection
        self._table = table

    def raise_to(self, resource: str, token: int) -> int:
        return self._table.raise_to(self._connection, resource, token)

    def newest(self, resource: str) -> int:
        return self._table.select(self._connection, resource) or 0

    def writing(self, resource: str, token: int) -> AbstractContextManager[Any]:
        raise TypeError(
            "this guard was given a connection, whose transactions are yours: begin one, call check() first, write, "
            "and commit; as in `with connection: guard.check(resource, token); connection.execute(...)`"
        )

    def describe(self) -> str:
        return f"in table {self._table.name} of a {type(self._connection).__module__} connection"


class _SqliteConnection(_Sql):
    """The same for SQLite, which has less to be told."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        super().__init__(connection, _Table(table, "qmark"))

    def raise_to(self, resource: str, token: int) -> int:
        connection = self._connection
        if not connection.in_transaction:
            # `autocommit` came with Python 3.12; where it is not True or False, `isolation_level` decides.
            autocommit = getattr(connection, "autocommit", -1)
            if autocommit is True or (autocommit is not False and connection.isolation_level is None):
                raise ConfigurationError(
                    "this connection commits each statement by itself and no transaction is open, so the check would "
                    "not be one with the write; execute BEGIN IMMEDIATE first, or connect without isolation_level=None "
                    "and autocommit=True"
                )
        with _locked_is_unavailable("the database", "roll back, then repeat the transaction; check before reading"):
            if not connection.in_transaction:
                _execute(connection, "BEGIN IMMEDIATE")
            return _raise_in_sqlite(self._table, connection, resource, token)

    def newest(self, resource: str) -> int:
        with _locked_is_unavailable("the database", "repeat the call"):
            return _newest_in_sqlite(self._table, self._connection, resource)


class _SqliteFile:
    """In an SQLite database of which only the path is known. One connection per use: for any thread, and after fork."""

    def __init__(self, path: str | os.PathLike[str], table: str, timeout: float) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(
                f"database={os.fspath(path)!r} is another database for each connection: use FenceGuard(), or give a "
                "connection"
            )
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
            raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
        if not 0 <= timeout <= TIMEOUT_MAX:
            raise ConfigurationError(f"timeout={timeout!r}: must be 0 to {TIMEOUT_MAX:g} seconds, such as {TIMEOUT:g}")
        #: Absolute, so that it stays this file when the process changes its directory.
        self._path = os.path.abspath(path)
        self._timeout = timeout
        self._table = _Table(table, "qmark")

    def _open(self) -> closing[sqlite3.Connection]:
        import sqlite3

        return closing(sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None))

    def _waiting(self) -> AbstractContextManager[None]:
        return _locked_is_unavailable(f"{self._path} (waited {self._timeout:g} s)", "repeat the call")

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction of its own, committed at the end. Closing it undoes what was not."""
        with self._open() as connection:
            with self._waiting():
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if not connection.in_transaction:
                raise RuntimeError(
                    "the transaction was ended inside writing(), by commit, rollback or executescript: what was "
                    "written after that was not guarded"
                )
            with self._waiting():
                connection.execute("COMMIT")

    def raise_to(self, resource: str, token: int) -> int:
        with self._begun() as connection:
            return _raise_in_sqlite(self._table, connection, resource, token)

    def newest(self, resource: str) -> int:
        with self._open() as connection, self._waiting():
            return _newest_in_sqlite(self._table, connection, resource)

    @contextmanager
    def writing(self, resource: str, token: int) -> Iterator[sqlite3.Connection]:
        with self._begun() as connection:
            newest = _raise_in_sqlite(self._table, connection, resource, token)
            if newest > token:
                _refuse(resource, token, newest)
            yield connection

    def describe(self) -> str:
        return f"in table {self._table.name} of {self._path}"


def _raise_in_sqlite(table: _Table, connection: sqlite3.Connection, resource: str, token: int) -> int:
    """As `_Table.raise_to`, in an open transaction; creates the table if need be.

    Not before it is missed: that would read, and a transaction that has read cannot wait for the write lock.
    """
    if (newest := _unless_missing(lambda: table.raise_to(connection, resource, token))) is not None:
        return newest
    _execute(connection, "CREATE TABLE IF NOT EXISTS " + _SCHEMA.format(table=table.name, text="VARCHAR(255)"))
    return table.raise_to(connection, resource, token)


def _newest_in_sqlite(table: _Table, connection: sqlite3.Connection, resource: str) -> int:
    return _unless_missing(lambda: table.select(connection, resource)) or 0


def _unless_missing(act: Callable[[], int | None]) -> int | None:
    """What `act` returns; None if the table does not exist."""
    import sqlite3

    try:
        return act()
    except sqlite3.OperationalError as error:
        if not str(error).startswith("no such table"):
            raise
        return None


@contextmanager
def _locked_is_unavailable(what: str, remedy: str) -> Iterator[None]:
    import sqlite3

    try:
        yield
    except sqlite3.OperationalError as error:
        # "database is locked", "database table is locked", ...: error codes came with Python 3.11.
        if "locked" not in str(error):
            raise
        raise Unavailable(
            f"{what} is in use by another connection, and nothing was written: {remedy}. SQLite says: {error}"
        ) from error
