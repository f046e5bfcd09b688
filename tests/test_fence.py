"""Fencing guards refuse what is stale, in each of their forms, and docs/fencing.md says what is so.

There is no server here: other databases are SQLite behind a thin driver that has their manners.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import random
import re
import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import coord
from coord.errors import StaleToken
from coord.fence import TOKEN_MAX, FenceGuard

ROOT = Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs" / "fencing.md").read_text(encoding="utf-8")
STYLES = ("qmark", "numeric", "named", "format", "pyformat")
PATIENCE = 60.0
#: Of other processes: they import what is tested here.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(coord.__file__).parent.parent), "PYTHONWARNINGS": "error"}


# --- drivers of other databases, as far as a guard can tell ---


class Aborted(Exception):
    """PostgreSQL: current transaction is aborted, commands ignored until end of transaction block."""


def translated(text: str, parameters: Any, style: str) -> tuple[str, tuple[Any, ...]]:
    """For SQLite's own style; a driver refuses what is not written in its own."""
    patterns = {
        "numeric": r":(\d+)",
        "named": r":([a-z]\w*)",
        "pyformat": r"%\((\w+)\)s",
        "format": r"%s",
        "qmark": r"\?",
    }
    found = re.findall(patterns[style], text)
    plain = re.sub(patterns[style], "?", text)
    rest = plain.replace("?", "")
    assert ":" not in rest and "%" not in rest, f"not in style {style}: {text}"
    if style in ("named", "pyformat"):
        assert isinstance(parameters, Mapping) or not found, f"{style} takes a mapping: {parameters!r}"
        assert not found or set(parameters) == set(found), f"{parameters!r} does not fit {text}"
        return plain, tuple(parameters[name] for name in found)
    assert isinstance(parameters, (tuple, list)), f"{style} takes a sequence: {parameters!r}"
    assert len(parameters) == len(found), f"{parameters!r} does not fit {text}"
    return plain, tuple(
        parameters[int(one) - 1] if style == "numeric" else parameters[n] for n, one in enumerate(found)
    )


class Driver:
    """A DB-API connection: begins by itself, commits when told. Notes what it was told."""

    def __init__(self, path: Path | str, style: str = "qmark", *, manners: str = "") -> None:
        self.raw = sqlite3.connect(path, isolation_level=None)
        self.style = style
        #: "", "mysql" (counts changed rows) or "postgres" (an error aborts the transaction).
        self.manners = manners
        self.aborted = False
        self.statements: list[str] = []
        #: By first word of a statement: what somebody else commits just before it. Each is used once.
        self.before: dict[str, list[Callable[[], object]]] = {}
        #: By first word: what the server answers instead, each time.
        self.fails: dict[str, Exception] = {}
        #: What a SELECT gives instead of what is so: an older snapshot.
        self.snapshot: list[Any] = []
        self.make_row: Callable[[Any], Any] = lambda row: row
        self.rowcount_known = True

    def cursor(self) -> DriverCursor:
        return DriverCursor(self)

    def commit(self) -> None:
        assert not self.aborted, "PostgreSQL would roll this back"
        self.raw.execute("COMMIT")

    def rollback(self) -> None:
        self.aborted = False
        self.raw.execute("ROLLBACK")

    def close(self) -> None:
        self.raw.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As in psycopg 3."""
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self.commit()


class DriverCursor:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._rows: list[Any] = []
        self.rowcount = -1

    def __enter__(self) -> DriverCursor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._rows = []

    def execute(self, text: str, parameters: Any = ()) -> None:
        driver, word = self._driver, text.split()[0]
        driver.statements.append(text)
        if driver.aborted and not text.startswith("ROLLBACK"):
            raise Aborted(text)
        if not driver.raw.in_transaction:
            driver.raw.execute("BEGIN IMMEDIATE")
        for interfere in [driver.before[word].pop(0)] if driver.before.get(word) else []:
            interfere()
        try:
            if word in driver.fails:
                raise driver.fails[word]
            self._run(word, *translated(text, parameters, self._style_of(text)))
        except Exception:
            driver.aborted = driver.manners == "postgres"
            raise
        if text.startswith("ROLLBACK"):
            driver.aborted = False

    def _style_of(self, text: str) -> str:
        # psycopg calls itself pyformat and takes both.
        return "format" if self._driver.style == "pyformat" and "%s" in text else self._driver.style

    def _run(self, word: str, text: str, values: tuple[Any, ...]) -> None:
        driver = self._driver
        table = text.split()[1]
        before = driver.raw.execute(f"SELECT * FROM {table}").fetchall() if word == "UPDATE" else []
        done = driver.raw.execute(text, values)
        self._rows = [driver.make_row(row) for row in done.fetchall()]
        if word == "SELECT" and driver.snapshot:
            self._rows = [row for row in driver.snapshot if row is not None]
        self.rowcount = done.rowcount if driver.rowcount_known else -1
        if word == "UPDATE" and driver.manners == "mysql":
            after = driver.raw.execute(f"SELECT * FROM {table}").fetchall()
            self.rowcount = sum(old != new for old, new in zip(before, after, strict=True))

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None


@pytest.fixture
def make_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def make(style: str = "qmark", *, manners: str = "") -> Driver:
        driver = Driver(tmp_path / "server.db", style, manners=manners)
        made.append(driver)
        if len(made) == 1:
            driver.raw.execute(FenceGuard.schema())
        return driver

    yield make
    for driver in made:
        driver.close()


# --- every form ---

FORMS = (
    "memory",
    "sqlite path",
    "sqlite connection",
    *(f"sql {style}" for style in STYLES),
    "sql mysql",
    "sql postgres",
)


@pytest.fixture(params=FORMS)
def guard(request: pytest.FixtureRequest, tmp_path: Path, make_driver: Callable[..., Driver]) -> Iterator[FenceGuard]:
    form = request.param
    if form == "memory":
        yield FenceGuard()
    elif form == "sqlite path":
        yield FenceGuard.sqlite(tmp_path / "fence.db")
    elif form == "sqlite connection":
        with closing(sqlite3.connect(tmp_path / "fence.db")) as connection:
            yield FenceGuard.sqlite(connection)
    else:
        kind = form.split()[1]
        driver = make_driver(*([kind] if kind in STYLES else []), manners="" if kind in STYLES else kind)
        yield FenceGuard.sql(driver, paramstyle=driver.style)


def test_a_token_is_accepted_until_a_newer_one_was(guard: FenceGuard) -> None:
    assert guard.newest("reports") == 0
    assert guard.accept("reports", 7)
    assert guard.accept("reports", 7), "the holder writes more than once"
    assert guard.accept("reports", 9)
    assert not guard.accept("reports", 8)
    assert guard.newest("reports") == 9, "a refused token was stored"
    assert guard.accept("reports", 9)
    assert guard.accept("mails", 1), "resources have nothing to do with each other"
    assert (guard.newest("reports"), guard.newest("mails")) == (9, 1)


def test_a_stale_token_is_told_what_happened(guard: FenceGuard) -> None:
    guard.check("reports", 9)
    with pytest.raises(StaleToken) as caught:
        guard.check("reports", 7)
    assert (caught.value.resource, caught.value.token, caught.value.newest) == ("reports", 7, 9)
    text = str(caught.value)
    assert all(part in text for part in ("'reports'", "7", "9", "Somebody else holds the lock now")), text
    assert isinstance(caught.value, coord.CoordError)
    guard.check("reports", 9)


def test_every_form_decides_as_a_dictionary_does(guard: FenceGuard) -> None:
    chance = random.Random(20260101)
    model: dict[str, int] = {}
    accepted = 0
    for _ in range(300):
        resource, token = chance.choice("abc"), chance.choice((chance.randint(1, 60), chance.randint(1, TOKEN_MAX)))
        expected = token >= model.get(resource, 0)
        assert guard.accept(resource, token) == expected, (resource, token, model)
        if expected:
            model[resource] = token
            accepted += 1
        assert guard.newest(resource) == model[resource]
    assert 10 < accepted < 290


@pytest.mark.parametrize("token", [True, 7.0, "7", None, b"7"], ids=repr)
def test_a_token_of_another_kind_is_a_type_error(guard: FenceGuard, token: Any) -> None:
    for act in (guard.accept, guard.check):
        with pytest.raises(TypeError, match="a token is an int"):
            act("reports", token)
    assert guard.newest("reports") == 0


@pytest.mark.parametrize("token", [0, -1, 2**63, 2**80], ids=repr)
def test_a_token_out_of_range_is_a_value_error(guard: FenceGuard, token: int) -> None:
    for act in (guard.accept, guard.check):
        with pytest.raises(ValueError, match=r"between 1 and 2\*\*63 - 1"):
            act("reports", token)
    assert guard.newest("reports") == 0


def test_the_greatest_token_is_accepted_and_ends_it(guard: FenceGuard) -> None:
    assert TOKEN_MAX == 2**63 - 1
    assert guard.accept("reports", TOKEN_MAX)
    assert not guard.accept("reports", TOKEN_MAX - 1)
    assert guard.newest("reports") == TOKEN_MAX


@pytest.mark.parametrize("resource", [b"reports", None, 7], ids=repr)
def test_a_resource_of_another_kind_is_a_type_error(guard: FenceGuard, resource: Any) -> None:
    for act in (lambda: guard.accept(resource, 1), lambda: guard.check(resource, 1), lambda: guard.newest(resource)):
        with pytest.raises(TypeError, match="a resource is a str"):
            act()


@pytest.mark.parametrize("resource", ["", "x" * 256, "ü" * 128, "\ud800"], ids=ascii)
def test_a_resource_too_short_or_too_long_is_a_value_error(guard: FenceGuard, resource: str) -> None:
    for act in (lambda: guard.accept(resource, 1), lambda: guard.check(resource, 1), lambda: guard.newest(resource)):
        with pytest.raises(ValueError, match=r"1 to 255 bytes|surrogates"):
            act()


@pytest.mark.parametrize(
    "resource", ["x" * 255, "ü" * 127, "'; DROP TABLE coord_fence; --", "%s %(token)s :token ? {token}", "Reports"]
)
def test_a_resource_is_never_part_of_a_statement(guard: FenceGuard, resource: str) -> None:
    assert guard.accept(resource, 5)
    assert not guard.accept(resource, 4)
    assert guard.newest(resource) == 5
    assert guard.newest("reports") == 0, "a name in other letters is another resource"


def test_a_guard_shows_what_it_is(guard: FenceGuard) -> None:
    assert re.fullmatch(r"<coord\.FenceGuard in (memory|table coord_fence of .+)>", repr(guard))


def test_what_an_error_carries_survives_a_process_boundary() -> None:
    copy = pickle.loads(pickle.dumps(StaleToken("stale", resource="r", token=7, newest=9)))
    assert (str(copy), copy.resource, copy.token, copy.newest) == ("stale", "r", 7, 9)


def test_importing_loads_no_database() -> None:
    code = "import sys, coord.fence; coord.fence.FenceGuard().check('r', 1); assert 'sqlite3' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr


# --- settings ---


@pytest.mark.parametrize(
    "table",
    ["", "a b", "a;b", "a-b", "1a", "a.", ".a", "a..b", "a.b.c.d", "a\n", 'a"', "tä", "x" * 129, "a'b", None, b"a"],
    ids=ascii,
)
def test_a_table_name_that_is_none_is_refused(tmp_path: Path, table: Any) -> None:
    connection = object()
    for make in (
        lambda: FenceGuard.sqlite(tmp_path / "f.db", table),
        lambda: FenceGuard.sql(connection, paramstyle="qmark", table=table),
        lambda: FenceGuard.schema(table),
    ):
        with pytest.raises(coord.ConfigurationError, match="table="):
            make()
    assert not list(tmp_path.iterdir())


def test_tables_are_told_apart(tmp_path: Path) -> None:
    one, two = (FenceGuard.sqlite(tmp_path / "f.db", table) for table in ("fence_1", "main.Fence2"))
    assert one.accept("r", 9) and two.accept("r", 7)
    assert (one.newest("r"), two.newest("r")) == (9, 7)


@pytest.mark.parametrize("style", ["", "QMARK", "dollar", None], ids=repr)
def test_a_style_that_is_none_is_refused(style: Any) -> None:
    with pytest.raises(coord.ConfigurationError, match="paramstyle="):
        FenceGuard.sql(object(), paramstyle=style)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e9], ids=repr)
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(coord.ConfigurationError, match="timeout="):
        FenceGuard.sqlite(tmp_path / "f.db", timeout=timeout)


def test_misuse_of_the_sqlite_form_is_refused_when_it_is_made(tmp_path: Path) -> None:
    for path in ("", ":memory:"):
        with pytest.raises(coord.ConfigurationError, match="another database for each connection"):
            FenceGuard.sqlite(path)
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(coord.ConfigurationError, match="has its own"),
    ):
        FenceGuard.sqlite(connection, timeout=1.0)
    for other in (7, b"f.db", object()):
        with pytest.raises(TypeError, match=r"a path or a sqlite3\.Connection"):
            FenceGuard.sqlite(other)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a number of seconds"):
        FenceGuard.sqlite(tmp_path / "f.db", timeout="5")  # type: ignore[arg-type]
    with pytest.raises(coord.ConfigurationError, match="text="):
        FenceGuard.schema(text="TEXT); DROP TABLE jobs; --")
    assert "resource VARBINARY(255) NOT NULL PRIMARY KEY" in FenceGuard.schema(text="VARBINARY(255)")


def test_making_a_guard_does_no_io_and_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guard = FenceGuard.sqlite("f.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    guard.check("r", 1)
    assert (tmp_path / "f.db").is_file()


# --- a connection's transaction is one with the check ---


def test_a_check_and_its_write_are_one_in_sqlite(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection:
        connection.execute("CREATE TABLE lines (text TEXT)")
        guard = FenceGuard.sqlite(connection)
        write = "INSERT INTO lines VALUES (?)"

        def transact(token: int, text: str, *, check_first: bool = True, then: Callable[[], object] = bool) -> None:
            with connection:
                if check_first:
                    guard.check("r", token)
                connection.execute(write, (text,))
                guard.check("r", token)
                then()

        with pytest.raises(ZeroDivisionError):
            transact(9, "never", then=lambda: 1 / 0)
        assert guard.newest("r") == 0, "the check was not rolled back with the write, or created its table outside"
        transact(7, "seven")
        for check_first in (True, False):
            with pytest.raises(StaleToken):
                transact(5, "undone", check_first=check_first)
        assert connection.execute("SELECT text FROM lines").fetchall() == [("seven",)]
    assert FenceGuard.sqlite(tmp_path / "f.db").newest("r") == 7


def test_nobody_comes_between_check_and_commit_in_sqlite(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "f.db")) as connection,
        closing(sqlite3.connect(tmp_path / "f.db")) as other,
    ):
        other.execute("PRAGMA busy_timeout = 0")
        with connection:
            FenceGuard.sqlite(connection).check("r", 7)
            with pytest.raises(coord.Unavailable, match="roll back"):
                FenceGuard.sqlite(other).check("r", 9)
        with other:
            FenceGuard.sqlite(other).check("r", 9)


def test_a_guard_neither_commits_nor_rolls_back(tmp_path: Path) -> None:
    told: list[str] = []
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection:
        connection.set_trace_callback(told.append)
        guard = FenceGuard.sqlite(connection)
        assert guard.accept("r", 7) and not guard.accept("r", 5) and guard.accept("s", 1)
        assert connection.in_transaction
        assert [text for text in told if text.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
        assert not [text for text in told if re.match(r"COMMIT|END|ROLLBACK", text)], told
        with closing(sqlite3.connect(tmp_path / "f.db")) as other:
            assert FenceGuard.sqlite(other).newest("r") == 0
        connection.commit()


def test_a_connection_that_commits_by_itself_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "f.db", isolation_level=None)) as connection:
        guard = FenceGuard.sqlite(connection)
        with pytest.raises(coord.ConfigurationError, match="commits each statement by itself"):
            guard.check("r", 7)
        assert guard.newest("r") == 0
        connection.execute("BEGIN")
        guard.check("r", 7)
        connection.execute("COMMIT")
        assert guard.newest("r") == 7


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect(autocommit=) came with Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_the_newer_way_to_say_autocommit_is_understood(tmp_path: Path, autocommit: bool) -> None:
    with closing(sqlite3.connect(tmp_path / "f.db", autocommit=autocommit)) as connection:  # type: ignore[call-overload, unused-ignore]
        guard = FenceGuard.sqlite(connection)
        if autocommit:
            with pytest.raises(coord.ConfigurationError, match="commits each statement by itself"):
                guard.check("r", 7)
        else:
            guard.check("r", 7)
            connection.rollback()
            assert guard.newest("r") == 0


@pytest.mark.parametrize("factory", [sqlite3.Row, lambda cursor, row: {"token": row[0]}, lambda cursor, row: row[0]])
def test_rows_may_be_made_into_anything(factory: Any) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = factory
        guard = FenceGuard.sqlite(connection)
        assert guard.accept("r", 7) and not guard.accept("r", 5)
        assert guard.newest("r") == 7


@pytest.mark.parametrize("manners", ["", "mysql", "postgres"])
def test_a_check_and_its_write_are_one_with_other_drivers(make_driver: Callable[..., Driver], manners: str) -> None:
    driver = make_driver("pyformat", manners=manners)
    guard = FenceGuard.sql(driver, paramstyle="pyformat")
    guard.check("r", 7)
    driver.rollback()
    assert guard.newest("r") == 0
    guard.check("r", 7)
    driver.commit()
    with pytest.raises(StaleToken):
        guard.check("r", 5)
    driver.rollback()
    assert guard.newest("r") == 7
    ended = [text for text in driver.statements if re.match(r"BEGIN|COMMIT|ROLLBACK(?! TO)", text)]
    assert not ended, "whose transaction is it?"


# --- two transactions that write a resource's first row ---


def rival(driver: Driver, token: int) -> Callable[[], object]:
    """Somebody else's first write, committed at this moment."""
    return lambda: driver.raw.execute("INSERT INTO coord_fence VALUES ('r', ?, 1)", (token,))


@pytest.mark.parametrize("manners", ["", "mysql", "postgres"])
@pytest.mark.parametrize("moment", ["SELECT", "SAVEPOINT"])
@pytest.mark.parametrize(("theirs", "accepted"), [(5, True), (7, True), (9, False)])
def test_the_first_row_may_come_from_somebody_else(
    make_driver: Callable[..., Driver], manners: str, moment: str, theirs: int, accepted: bool
) -> None:
    driver = make_driver(manners=manners)
    guard = FenceGuard.sql(driver, paramstyle="qmark")
    assert guard.accept("before", 3), "what else the transaction does stays"
    assert driver.statements[-1].startswith("RELEASE"), "a savepoint was left in somebody else's transaction"
    driver.before = {moment: [rival(driver, theirs)]}
    assert guard.accept("r", 7) == accepted
    assert not driver.before[moment], "the rival was to interfere"
    driver.commit()
    assert (guard.newest("r"), guard.newest("before")) == (max(7, theirs), 3)


def test_a_duplicate_need_not_be_called_an_integrity_error(make_driver: Callable[..., Driver]) -> None:
    """Not every driver does; what was raised is then decided by looking again."""
    driver = make_driver(manners="postgres")
    driver.fails = {"INSERT": sqlite3.DatabaseError("duplicate key value violates unique constraint")}
    driver.before = {"SAVEPOINT": [rival(driver, 5)]}
    assert FenceGuard.sql(driver, paramstyle="qmark").accept("r", 7)


def test_an_insert_that_cannot_be_done_is_raised_as_it_is(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(manners="postgres")
    driver.fails = {"INSERT": sqlite3.DatabaseError("permission denied")}
    with pytest.raises(sqlite3.DatabaseError, match="permission denied"):
        FenceGuard.sql(driver, paramstyle="qmark").accept("r", 7)


def test_a_deadlock_is_not_tried_again(make_driver: Callable[..., Driver]) -> None:
    """The database may have rolled back all that the transaction did: going on would write without it."""
    driver = make_driver()
    driver.fails = {"INSERT": sqlite3.OperationalError("deadlock found")}
    with pytest.raises(sqlite3.OperationalError, match="deadlock found"):
        FenceGuard.sql(driver, paramstyle="qmark").accept("r", 7)
    assert driver.statements[-1].startswith("INSERT")


def test_a_transaction_that_was_rolled_back_meanwhile_is_not_gone_on_with(make_driver: Callable[..., Driver]) -> None:
    """As the last one, where the driver calls a deadlock by another name: the savepoint went with the transaction."""
    driver = make_driver()
    driver.fails = {
        "INSERT": sqlite3.InternalError("deadlock found"),
        "ROLLBACK": sqlite3.DatabaseError("SAVEPOINT coord_fence does not exist"),
    }
    with pytest.raises(sqlite3.InternalError, match="deadlock found"):
        FenceGuard.sql(driver, paramstyle="qmark").accept("r", 7)
    assert driver.statements[-1].startswith("ROLLBACK TO")


@pytest.mark.parametrize("shown", [5, 7])
def test_an_older_snapshot_does_not_let_a_stale_token_pass(make_driver: Callable[..., Driver], shown: int) -> None:
    """MySQL, REPEATABLE READ: an UPDATE sees what is so, a SELECT what was so when the transaction first read."""
    driver = make_driver(manners="mysql")
    guard = FenceGuard.sql(driver, paramstyle="qmark")
    guard.check("r", 9)
    driver.snapshot = [(shown,)]
    with pytest.raises(StaleToken) as caught:
        guard.check("r", 7)
    assert caught.value.newest == 8, "all that is known: it is more than 7"


def test_a_snapshot_without_the_row_lets_nothing_pass(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(manners="mysql")
    guard = FenceGuard.sql(driver, paramstyle="qmark")
    guard.check("r", 9)
    driver.snapshot = [None]
    with pytest.raises(sqlite3.IntegrityError):
        guard.check("r", 7)


def test_rows_made_beforehand_need_no_savepoint(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.raw.execute("INSERT INTO coord_fence VALUES ('r', 0, 0)")
    guard = FenceGuard.sql(driver, paramstyle="qmark")
    assert guard.newest("r") == 0
    assert guard.accept("r", 1) and guard.accept("r", 3) and not guard.accept("r", 2)
    assert not [text for text in driver.statements if "SAVEPOINT" in text or "INSERT" in text]


def test_a_driver_that_counts_nothing_is_not_believed(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.rowcount_known = False
    with pytest.raises(coord.ConfigurationError, match="rowcount"):
        FenceGuard.sql(driver, paramstyle="qmark").accept("r", 1)


def test_dictionaries_for_rows(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver()
    driver.make_row = lambda row: {"token": row[0]} if len(row) == 1 else row
    guard = FenceGuard.sql(driver, paramstyle="qmark")
    assert guard.accept("r", 7) and not guard.accept("r", 5)
    assert guard.newest("r") == 7


# --- writing ---


def test_writing_is_check_and_write_in_one(tmp_path: Path) -> None:
    guard = FenceGuard.sqlite(tmp_path / "f.db")
    with guard.writing("r", 7) as connection:
        connection.execute("CREATE TABLE lines (text TEXT)")
        connection.execute("INSERT INTO lines VALUES ('seven')")
    with pytest.raises(sqlite3.OperationalError, match="no such column"), guard.writing("r", 9) as connection:
        connection.executemany("INSERT INTO lines VALUES (?)", [("undone",)]).execute("SELECT none FROM lines")
    assert guard.newest("r") == 7, "what failed was never there"
    with pytest.raises(StaleToken), guard.writing("r", 5):
        pytest.fail("entered with a stale token")
    with pytest.raises(ValueError, match="a token is"), guard.writing("r", 0):
        pytest.fail("entered without a token")
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection:
        assert connection.execute("SELECT text FROM lines").fetchall() == [("seven",)]


def test_nobody_comes_into_writing(tmp_path: Path) -> None:
    guard = FenceGuard.sqlite(tmp_path / "f.db", timeout=0)
    with guard.writing("r", 7):
        for other in (
            lambda: guard.accept("r", 9),
            lambda: guard.check("s", 1),
            lambda: guard.writing("r", 9).__enter__(),
        ):
            with pytest.raises(coord.Unavailable):
                other()
    assert guard.newest("r") == 7


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_ending_the_transaction_inside_writing_is_found_out(tmp_path: Path, end: str) -> None:
    guard = FenceGuard.sqlite(tmp_path / "f.db")
    with pytest.raises(RuntimeError, match="ended inside writing"), guard.writing("r", 7) as connection:
        getattr(connection, end)()


def test_an_error_of_the_body_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    guard = FenceGuard.sqlite(tmp_path / "f.db")
    with pytest.raises(sqlite3.OperationalError, match="my own is locked"), guard.writing("r", 7):
        raise sqlite3.OperationalError("my own is locked")


def test_writing_belongs_to_whoever_owns_the_transaction(make_driver: Callable[..., Driver]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for guard in (FenceGuard.sqlite(connection), FenceGuard.sql(make_driver(), paramstyle="qmark")):
            with pytest.raises(TypeError, match="whose transactions are yours"):
                guard.writing("r", 7)


def test_writing_in_memory_keeps_other_threads_out() -> None:
    guard = FenceGuard()
    with ThreadPoolExecutor(2) as pool:
        with guard.writing("r", 7) as nothing:
            assert nothing is None
            newer = pool.submit(guard.accept, "r", 9)
            assert pool.submit(guard.accept, "s", 1).result(PATIENCE), "another resource waits for nobody"
            with pytest.raises(FutureTimeout):
                newer.result(0.05)
            assert guard.newest("r") == 7
        assert newer.result(PATIENCE)
    with pytest.raises(StaleToken), guard.writing("r", 7):
        pytest.fail("entered with a stale token")


def test_many_threads_in_memory() -> None:
    guard, written, begin = FenceGuard(), [0], threading.Barrier(8)

    def hammer(seed: int) -> int:
        chance, refused = random.Random(seed), 0
        begin.wait(PATIENCE)
        for step in range(400):
            token = max(1, step + chance.randint(-40, 40))
            try:
                with guard.writing("r", token):
                    written.append(token)
            except StaleToken as error:
                refused += error.newest > token
        return refused

    with ThreadPoolExecutor(8) as pool:
        refused = sum(pool.map(hammer, range(8)))
    assert written == sorted(written), "an older token wrote after a newer one"
    assert guard.newest("r") == written[-1]
    assert len(written) - 1 + refused == 8 * 400 and refused


# --- SQLite and its lock ---


def test_a_locked_database_is_told_clearly(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    guard = FenceGuard.sqlite(path, timeout=0.05)
    guard.check("r", 7)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for act in (lambda: guard.accept("r", 9), lambda: guard.check("r", 9), lambda: guard.newest("r")):
            with pytest.raises(coord.Unavailable) as caught:
                act()
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert str(path) in str(caught.value) and "0.05 s" in str(caught.value), str(caught.value)
    assert guard.newest("r") == 7


def test_a_commit_that_finds_readers_is_undone(tmp_path: Path) -> None:
    """With a rollback journal a reader lets a writer begin, but not end."""
    path = tmp_path / "f.db"
    guard = FenceGuard.sqlite(path, timeout=0.05)
    guard.check("r", 7)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM coord_fence").fetchall()
        with pytest.raises(coord.Unavailable):
            guard.check("r", 9)
    assert guard.newest("r") == 7


@pytest.mark.parametrize(("timeout", "milliseconds"), [(None, 10_000), (0.25, 250), (0, 0)])
def test_the_timeout_is_what_sqlite_is_told(tmp_path: Path, timeout: float | None, milliseconds: int) -> None:
    with FenceGuard.sqlite(tmp_path / "f.db", timeout=timeout).writing("r", 1) as connection:
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (milliseconds,)


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    guard = FenceGuard.sqlite(path, timeout=PATIENCE)
    guard.check("r", 7)
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = pool.submit(guard.accept, "r", 9)
        with pytest.raises(FutureTimeout):
            waiting.result(0.1)
        other.execute("COMMIT")
        assert waiting.result(PATIENCE)


def test_a_transaction_that_has_read_is_told_to_begin_again(tmp_path: Path) -> None:
    """SQLite refuses it at once, however long it would wait: what it has read is no longer so."""
    path = tmp_path / "f.db"
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        guard = FenceGuard.sqlite(connection)
        connection.execute("BEGIN")
        assert guard.newest("r") == 0
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        assert FenceGuard.sqlite(path).accept("r", 9)
        with pytest.raises(coord.Unavailable, match="check before reading"):
            guard.check("r", 7)
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        with pytest.raises(StaleToken):
            guard.check("r", 7)
        connection.execute("ROLLBACK")


def test_other_errors_of_sqlite_come_through(tmp_path: Path) -> None:
    FenceGuard.sqlite(tmp_path / "f.db").check("r", 1)
    with (
        closing(sqlite3.connect(f"file:{tmp_path}/f.db?mode=ro", uri=True)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        FenceGuard.sqlite(connection).check("r", 2)
    prepare(str(tmp_path / "other.db"), "CREATE TABLE coord_fence (resource TEXT)")
    other = FenceGuard.sqlite(tmp_path / "other.db")
    for act in (lambda: other.check("r", 1), lambda: other.newest("r")):
        with pytest.raises(sqlite3.OperationalError, match="no such column"):
            act()
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        FenceGuard.sqlite(tmp_path / "no such folder" / "f.db").check("r", 7)
    (tmp_path / "text.db").write_text("not a database, and long enough to be taken for none" * 20)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        FenceGuard.sqlite(tmp_path / "text.db").check("r", 7)


# --- real processes ---

#: Arguments: the database, the form, a seed. Notes each write in a journal, in the order of the commits, and prints
#: what became of each token. It begins when told, and ends with a token that must be refused.
WRITER = """
import random, sqlite3, sys
from coord.fence import FenceGuard, StaleToken

path, form, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
connection = sqlite3.connect(path, timeout=60)
own = FenceGuard.sqlite(path, timeout=60)
theirs = FenceGuard.sqlite(connection)
note = "INSERT INTO journal (resource, token) VALUES ('r', ?)"
print("ready", flush=True)
sys.stdin.readline()
for token in [max(2, 4 * step + chance.randint(-20, 20)) for step in range(20)] + [1]:
    try:
        if form == "path":
            with own.writing("r", token) as inside:
                inside.execute(note, (token,))
        else:
            with connection:
                theirs.check("r", token)
                connection.execute(note, (token,))
        print("+", token, flush=True)
    except StaleToken as error:
        assert error.newest > token, error
        print("-", token, flush=True)
"""

#: Writes twice for each of its rising tokens, until it is killed.
VICTIM = """
import itertools, sys
from coord.fence import FenceGuard

guard = FenceGuard.sqlite(sys.argv[1], timeout=60)
print("ready", flush=True)
sys.stdin.readline()
for token in itertools.count(1):
    with guard.writing("v", token) as inside:
        for _ in range(2):
            inside.execute("INSERT INTO journal (resource, token) VALUES ('v', ?)", (token,))
    print("+", token, flush=True)
"""


def look(connection: sqlite3.Connection, resource: str) -> tuple[int, int]:
    """The newest token, and the newest in the journal, of one moment."""
    return connection.execute(  # type: ignore[no-any-return]
        "SELECT coalesce((SELECT token FROM coord_fence WHERE resource = :r), 0), "
        "coalesce((SELECT max(token) FROM journal WHERE resource = :r), 0)",
        {"r": resource},
    ).fetchone()


def run_writers(path: Path, observe: Callable[[], None]) -> list[list[str]]:
    """What four writers say; beside them one that is killed, in the middle of whatever it is doing."""
    commands = [[WRITER, str(path), form, str(seed)] for seed, form in enumerate(("path", "connection") * 2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for command in [[VICTIM, str(path)], *commands]
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n", "a writer did not start"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        victim, *writers = processes
        assert victim.stdout
        for token in range(1, 6):
            assert victim.stdout.readline() == f"+ {token}\n"
            observe()
        victim.kill()
        for process in writers:
            while process.poll() is None:
                observe()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.03)
        outputs = [process.communicate(timeout=PATIENCE)[0].splitlines() for process in writers]
        assert [process.returncode for process in writers] == [0] * len(writers)
        return outputs
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_many_processes_and_one_that_is_killed(tmp_path: Path, journal_mode: str) -> None:
    path = tmp_path / "f.db"
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE journal (id INTEGER PRIMARY KEY, resource TEXT, token INTEGER)")
        # Made beforehand only so that it can be looked at from the start.
        connection.execute(FenceGuard.schema())
        newest = {"r": 0, "v": 0}

        def observe() -> None:
            for resource in newest:
                token, written = look(connection, resource)
                assert token == written, f"{resource}: the newest token is {token}, and the newest written {written}"
                assert token >= newest[resource], f"{resource}: went back from {newest[resource]} to {token}"
                newest[resource] = token

        outputs = run_writers(path, observe)
        observe()
        journal = [row[0] for row in connection.execute("SELECT token FROM journal WHERE resource = 'r' ORDER BY id")]
        twice = connection.execute("SELECT token, count(*) FROM journal WHERE resource = 'v' GROUP BY token").fetchall()
    assert journal == sorted(journal), "an older token wrote after a newer one"
    said = [line.split() for output in outputs for line in output]
    assert sorted(int(token) for sign, token in said if sign == "+") == journal, "a write was lost, or never told"
    assert all(output[-1] == "- 1" for output in outputs), "the last token was stale for sure"
    assert FenceGuard.sqlite(path).newest("r") == journal[-1]
    assert len(twice) >= 5 and twice == [(token, 2) for token in range(1, len(twice) + 1)], (
        "half a transaction of a killed process"
    )


# --- docs/fencing.md ---


def sections() -> dict[str, list[str]]:
    """The python blocks of each section."""
    found = {}
    for section in DOCS.split("\n## ")[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        if blocks:
            found[section.splitlines()[0]] = blocks
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a block as a module, in an empty directory: a reader's file. `token` is given."""
    monkeypatch.chdir(tmp_path)

    def run(section: str, number: int = 0, token: int = 7) -> Any:
        path = tmp_path / "block.py"
        path.write_text(sections()[section][number])
        spec = importlib.util.spec_from_file_location("block", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        vars(module)["token"] = token
        spec.loader.exec_module(module)
        return module

    return run


def prepare(path: str, *statements: str) -> list[Any]:
    """What the last of them gives."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def test_every_block_is_run() -> None:
    assert {name: len(blocks) for name, blocks in sections().items()} == {
        "SQL: two lines": 1,
        "SQL: a guard for what is not one row": 2,
        "SQLite, from several processes, with nothing of your own open": 1,
        "Files": 2,
        "HTTP": 1,
        "Object stores": 1,
        "Write once on takeover": 1,
    }
    assert DOCS.count("```python") == 9


JOBS = "CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, fence BIGINT NOT NULL DEFAULT 0)"


def test_the_two_lines_of_sql() -> None:
    (statement,) = re.findall(r"^```sql\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(JOBS)
        connection.execute("INSERT INTO jobs (id) VALUES (1)")
        touched = [
            connection.execute(statement, {"id": 1, "state": "s", "token": token}).rowcount for token in (7, 7, 9, 8, 9)
        ]
    assert touched == [1, 1, 1, 0, 1]


def test_doc_two_lines(run: Callable[..., Any]) -> None:
    prepare("jobs.db", JOBS, "INSERT INTO jobs (id) VALUES (1)")
    block = run("SQL: two lines")
    with closing(block.database):
        block.finish(1, 7)
        block.finish(1, 9)
        with pytest.raises(RuntimeError, match="somebody else holds its lock"):
            block.finish(1, 8)
    assert prepare("jobs.db", "SELECT * FROM jobs") == [(1, "done", 9)]


def test_doc_a_guard_beside_what_it_guards(run: Callable[..., Any]) -> None:
    section = "SQL: a guard for what is not one row"
    prepare("reports.db", "CREATE TABLE lines (name TEXT, value INTEGER)")
    run(section, token=9).database.close()
    with pytest.raises(StaleToken) as caught:
        run(section, token=7)
    # The block that failed leaves its connection open.
    connection = next(value for value in vars_of(caught.tb).values() if isinstance(value, sqlite3.Connection))
    connection.close()
    assert prepare("reports.db", "SELECT * FROM lines") == [("total", 42)]


def vars_of(traceback: types.TracebackType) -> dict[str, Any]:
    """The names of the block that failed."""
    step: types.TracebackType | None = traceback
    while step:
        if step.tb_frame.f_code.co_filename.endswith("block.py"):
            return step.tb_frame.f_globals
        step = step.tb_next
    raise AssertionError("no block failed")


def test_doc_another_driver(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    psycopg = types.ModuleType("psycopg")
    driver = Driver("server.db", "pyformat", manners="postgres")
    vars(psycopg).update(paramstyle="pyformat", connect=lambda settings: driver)
    monkeypatch.setitem(sys.modules, "psycopg", psycopg)
    with closing(driver):
        driver.raw.execute("CREATE TABLE lines (name TEXT, value INTEGER)")
        block = run("SQL: a guard for what is not one row", 1)
        assert block.guard.newest("reports") == 7
        assert not block.guard.accept("reports", 6)
    assert prepare("server.db", "SELECT * FROM lines") == [("total", 42)]


def test_doc_writing(run: Callable[..., Any]) -> None:
    section = "SQLite, from several processes, with nothing of your own open"
    assert run(section, token=9).guard.newest("reports") == 9
    with pytest.raises(StaleToken):
        run(section, token=7)
    assert prepare("reports.db", "SELECT * FROM lines") == [("total", 42)]


def test_doc_a_file_for_each_token(run: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    block = run("Files")
    for token, text in ((9, "first"), (10, "newest"), (7, "late")):
        block.publish(folder, token, text)
    assert block.newest(folder).read_text() == "newest"
    assert len(list(folder.iterdir())) == 3, "a temporary file was left"


def test_doc_one_file_and_a_guard(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("Files", 1, token=9).guard.newest("report.txt") == 9
    (tmp_path / "report.txt").write_text("of the newest")
    with pytest.raises(StaleToken):
        run("Files", 1, token=7)
    assert (tmp_path / "report.txt").read_text() == "of the newest"
    run("Files", 1, token=9)
    assert (tmp_path / "report.txt").read_text() == "total 42\n"


def test_doc_http(run: Callable[..., Any]) -> None:
    block = run("HTTP")

    def put(body: bytes, token: str | None) -> str:
        statuses: list[str] = []
        environ = {"PATH_INFO": "/report", "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        if token is not None:
            environ["HTTP_FENCING_TOKEN"] = token
        text = b"".join(block.application(environ, lambda status, headers: statuses.append(status)))
        assert len(statuses) == 1 and (not text) == statuses[0].startswith("204")
        return statuses[0][:3]

    assert [put(b"a", "9"), put(b"b", "7"), put(b"c", "9"), put(b"d", "-3"), put(b"e", "x"), put(b"f", None)] == [
        "204",
        "412",
        "204",
        "428",
        "428",
        "428",
    ]
    assert block.documents == {"/report": b"c"}


class Store:
    """Of objects, with the conditional writes of S3, and its ETag that tells contents and nothing else."""

    class exceptions:
        class NoSuchKey(Exception):
            pass

    def __init__(self) -> None:
        self.body: bytes | None = None
        #: What somebody else does between a read and the write after it.
        self.between: Callable[[], None] = lambda: None

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        if self.body is None:
            raise self.exceptions.NoSuchKey
        return {"Body": io.BytesIO(self.body), "ETag": self.body.hex()}

    def put_object(self, Bucket: str, Key: str, Body: bytes, IfMatch: str = "", IfNoneMatch: str = "") -> None:
        assert (IfMatch == "") != (IfNoneMatch == ""), "a write without a condition"
        between, self.between = self.between, lambda: None
        between()
        if (self.body is not None) if IfNoneMatch else (self.body is None or self.body.hex() != IfMatch):
            raise ConnectionError("412 Precondition Failed")
        self.body = Body


def test_doc_object_store(run: Callable[..., Any]) -> None:
    put, store = run("Object stores").put, Store()
    put(store, "bucket", "report", "first", 7)
    put(store, "bucket", "report", "newer", 9)
    with pytest.raises(RuntimeError, match="stale"):
        put(store, "bucket", "report", "late", 8)
    store.between = lambda: put(store, "bucket", "report", "newer", 11)
    with pytest.raises(ConnectionError, match="412"):
        put(store, "bucket", "report", "late", 10)
    assert store.body is not None and json.loads(store.body) == {"fence": 11, "value": "newer"}
    empty = Store()
    empty.between = lambda: put(empty, "bucket", "report", "newer", 9)
    with pytest.raises(ConnectionError, match="412"):
        put(empty, "bucket", "report", "late", 7)


def test_doc_takeover(run: Callable[..., Any]) -> None:
    block = run("Write once on takeover", token=9)
    assert block.rows == []
    assert not block.guard.accept("reports", 8)
