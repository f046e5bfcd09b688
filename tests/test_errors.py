"""The tree of exceptions is the contract of what users catch."""

from __future__ import annotations

import pickle
import traceback

import pytest

import coord
from coord import errors

#: Every public error, and what else it is.
TREE: dict[str, tuple[type[BaseException], ...]] = {
    "Unavailable": (TimeoutError,),
    "OutcomeUnknown": (TimeoutError,),
    "Conflict": (),
    "LockTimeout": (TimeoutError,),
    "LockLost": (),
    "LeadershipLost": (),
    "StaleToken": (),
    "NotHeld": (RuntimeError,),
    "AlreadyHeld": (RuntimeError,),
    "SessionExpired": (),
    "QuotaExceeded": (),
    "QueueFull": (),
    "Compacted": (),
    "TooStale": (),
    "ConfigurationError": (ValueError,),
    "IdentityError": (),
    "StorageError": (OSError,),
    "AuthenticationError": (),
    "ForkedError": (RuntimeError,),
    "ClosedError": (RuntimeError,),
}


def test_the_tree_is_whole() -> None:
    assert {error.__name__ for error in errors.ERRORS} == {"CoordError", *TREE}
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == "coord"}
    assert defined == {"CoordError", *TREE}


@pytest.mark.parametrize("name", TREE)
def test_each_error_is_what_users_catch(name: str) -> None:
    error = getattr(coord, name)
    assert error.__bases__ == (coord.CoordError, *TREE[name])


@pytest.mark.parametrize("error", errors.ERRORS, ids=lambda error: error.__name__)
def test_each_error_is_public_named_and_explained(error: type[coord.CoordError]) -> None:
    assert getattr(coord, error.__name__) is error
    assert error.__name__ in coord.__all__
    assert error.__doc__
    shown = traceback.format_exception_only(error, error("no quorum of 3 members"))
    assert shown == [f"coord.{error.__name__}: no quorum of 3 members\n"]


def test_no_error_is_caught_as_another_of_the_tree() -> None:
    for one in errors.ERRORS[1:]:
        assert not [other for other in errors.ERRORS[1:] if one is not other and issubclass(one, other)]


@pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (coord.Conflict("k is at revision 7", entry=("k", 7)), "entry", ("k", 7)),
        (coord.Conflict("k is absent"), "entry", None),
        (coord.Unavailable("no leader", leader="a"), "leader", "a"),
        (coord.OutcomeUnknown("no answer"), "leader", None),
        (coord.Compacted("watch from 40", revision=40), "revision", 40),
        (coord.StaleToken("stale", resource="r", token=7, newest=9), "newest", 9),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_error_carries_survives_a_process_boundary(
    error: coord.CoordError, attribute: str, value: object
) -> None:
    copy = pickle.loads(pickle.dumps(error))
    for kept in (error, copy):
        assert getattr(kept, attribute) == value
        assert str(kept) == error.args[0]


def test_a_storage_error_keeps_the_error_number() -> None:
    assert coord.StorageError(28, "no space left").errno == 28
    assert str(coord.StorageError("segment 4 is damaged at 1024")) == "segment 4 is damaged at 1024"
