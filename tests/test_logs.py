"""Who logs never waits for a handler, and nothing said is lost but what is counted as dropped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from coord import logs
from coord.logs import WAITING_MAX, Log

PATIENCE = 30.0


class Slow(logging.Handler):
    """Takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.said.append(record.getMessage())
        self.records.append(record)


@pytest.fixture
def handler() -> Iterator[Slow]:
    handler = Slow()
    logger = logging.getLogger("coord")
    logger.addHandler(handler)
    yield handler
    handler.gate.set()
    logs.flush(PATIENCE)
    logger.removeHandler(handler)


def test_nobody_waits_for_a_blocked_handler(handler: Slow) -> None:
    log = Log("coord.test")
    log.warning("first")
    assert handler.entered.wait(PATIENCE)
    for number in range(10):
        log.warning("number %d", number)
    assert handler.said == []
    handler.gate.set()
    logs.flush(PATIENCE)
    assert handler.said == ["first", *(f"number {number}" for number in range(10))]
    assert not any(thread.name == "coord-log" for thread in threading.enumerate())


def test_what_is_too_much_is_dropped_and_counted(handler: Slow) -> None:
    log = Log("coord.test")
    log.warning("first")
    assert handler.entered.wait(PATIENCE)
    for number in range(WAITING_MAX + 7):
        log.error("number %d", number)
    handler.gate.set()
    logs.flush(PATIENCE)
    assert len(handler.said) == WAITING_MAX + 2
    assert "7 messages were dropped: a log handler was too slow" in handler.said


def test_a_record_tells_where_it_was_said_and_what_was_raised(handler: Slow) -> None:
    handler.gate.set()
    try:
        raise ValueError("wrong")
    except ValueError:
        Log("coord.test").exception("it failed: %s", 7)
    logs.flush(PATIENCE)
    (record,) = handler.records
    assert (record.name, record.levelname, record.getMessage()) == ("coord.test", "ERROR", "it failed: 7")
    assert record.filename == "test_logs.py" and record.funcName.startswith("test_a_record")
    assert record.exc_info is not None and str(record.exc_info[1]) == "wrong"


def test_what_is_below_the_level_costs_nothing(handler: Slow) -> None:
    logging.getLogger("coord.test").setLevel(logging.ERROR)
    Log("coord.test").warning("unheard")
    assert not handler.entered.is_set()
    logging.getLogger("coord.test").setLevel(logging.NOTSET)
