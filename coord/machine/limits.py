"""The quotas of the replicated state, which are replicated state themselves.

`apply` checks against these, never against local options, so every member gives the same answer. The constants bound
what a limit may be set to; what bounds a command whatever the limits is in `coord.machine.commands`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

#: What one key costs beside its own bytes and its value's: the tables' share, rounded up.
RECORD_OVERHEAD_BYTES = 256

_RANGES = {
    "value_bytes": (1, 1 << 20),
    "transaction_bytes": (1, 2 << 20),
    "state_bytes": (0, 1 << 40),
    "keys": (0, 10_000_000),
    "sessions": (1, 100_000),
    "lock_requests": (1, 1_000_000),
    "waiters": (0, 100_000),
}


@dataclass(slots=True, frozen=True)
class Limits:
    """A command that would leave the state over one of these is refused; what only frees room always passes.

    All members must start from equal ones: they are part of the state hash. Raises ValueError out of range.
    """

    #: Largest encoded value, bytes; 1 to 1 MiB.
    value_bytes: int = 64 << 10
    #: Keys and encoded values of one transaction together, bytes; 1 to 2 MiB.
    transaction_bytes: int = 256 << 10
    #: Keys, values and RECORD_OVERHEAD_BYTES for each key, bytes.
    state_bytes: int = 64 << 20
    #: Number of config keys; up to 10 million.
    keys: int = 100_000
    #: Number of live sessions; 1 to 100,000.
    sessions: int = 10_000
    #: Requests for locks, those that hold and those that wait together; 1 to 1 million.
    lock_requests: int = 100_000
    #: Requests that wait for one lock; up to 100,000.
    waiters: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _RANGES[field.name]
            value = getattr(self, field.name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"limit {field.name} is {value!r}; give an int from {low} to {high}")

    def row(self) -> tuple[int, ...]:
        """The values in field order, as commands and snapshots carry them."""
        return astuple(self)


def read_limits(row: object) -> Limits:
    """Turn `Limits.row`'s tuple back; ValueError for anything else."""
    if type(row) is not tuple or len(row) != len(_RANGES):
        raise ValueError(f"limits are {len(_RANGES)} integers")
    return Limits(*row)
