"""Every setting of a node or client, and all of their validation, in one place.

What must not live here: what a process is told about itself (name, addresses, directory, keys: those are arguments of
`Node`), or anything that acts. Times are seconds, sizes are bytes. Members of one group should share their settings;
where they must, the field says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from coord.errors import ConfigurationError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: Bytes of a config key in UTF-8, whatever the settings.
KEY_BYTES_MAX = 512
#: No setting lets a value of the config map be larger.
VALUE_BYTES_MAX = MIB
#: What a command adds to the keys and values it carries, and a frame to the batches it carries; generous.
COMMAND_MARGIN_BYTES = 32 * KIB
FRAME_MARGIN_BYTES = 64 * KIB


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """Settings, checked when constructed: a wrong type, range or combination is a ConfigurationError that names the
    fields and a value that works. The defaults suit members on one network with fsync of up to 100 ms."""

    # Time.

    #: Seconds between two signs of life of a leader; 0.15. Smaller notices nothing sooner than `election_timeout`
    #: does, and costs messages.
    heartbeat: float = 0.15
    #: Seconds of a leader's silence after which a follower stands for election, drawn anew each time between these
    #: two; (1.5, 3.0). At least 5 heartbeats. Shorter fails over sooner, until a busy host's pauses depose a leader
    #: that is well. Like on all members.
    election_timeout: tuple[float, float] = (1.5, 3.0)
    #: Seconds after which a silent process loses its locks, leaderships and ephemeral keys; 10. At least twice the
    #: longer `election_timeout`, so that a change of leader alone costs no session; 2 s more leaves room for a
    #: pause. At most 300.
    session_ttl: float = 10.0
    #: Seconds a handle waits, not held, for a session whose cluster does not answer, before it is given up; 45.
    #: 0 gives up as soon as the lease is over.
    session_grace: float = 45.0
    #: Seconds a call waits when its own `timeout` is None; 10.
    default_timeout: float = 10.0
    #: Whether a leader may answer linearizable reads from its lease, without a round of messages; False. True trusts
    #: `clock_drift`, on every member alike.
    lease_reads: bool = False
    #: The fraction by which the rates of two members' clocks may differ; 0.01. Only rates: no clock need be set right.
    clock_drift: float = 0.01
    #: Seconds after which a leader whose disk has not answered hands over, and a follower stops standing; 1.5.
    disk_stall_timeout: float = 1.5

    # Who leads.

    #: Members of a higher priority are preferred as leader; 0. Negative: never leads, though it votes.
    priority: int = 0

    # The replicated state. The leader's settings hold; let all members agree.

    #: Bytes of an encoded config value; 64 KiB. At most 1 MiB.
    max_value_bytes: int = 64 * KIB
    #: Bytes of the keys and values of one transaction; 256 KiB.
    max_transaction_bytes: int = 256 * KIB
    #: Bytes of all keys and values with their overhead; 64 MiB. Beyond it only what frees room is accepted. Every
    #: member keeps the state in memory.
    max_state_bytes: int = 64 * MIB
    #: Keys in the config map; 100 000.
    max_keys: int = 100_000
    #: Sessions open at a time; 10 000.
    max_sessions: int = 10_000
    #: Requests for locks and elections that hold or wait, in all; 100 000. Beyond it only what ends some is accepted.
    max_lock_requests: int = 100_000
    #: Requests that wait for one lock; 1000. One more is a QueueFull. 0: nobody waits.
    max_waiters: int = 1000
    #: Changes kept for watches that resume; 10 000. 0: a watch can only start from the present.
    history_revisions: int = 10_000
    #: Bytes of changes kept for watches that resume, whichever bound is met first; 16 MiB.
    history_bytes: int = 16 * MIB

    # Flow: what bounds memory, and what a caller meets as QueueFull.

    #: Requests waiting in this process; 65 536.
    max_pending: int = 65_536
    #: Bytes of entries the leader puts in one batch; 1 MiB. No command, a transaction included, may be larger.
    max_batch_bytes: int = MIB
    #: Bytes of batches joined in one message to a follower; 1 MiB. A larger batch goes alone.
    max_append_bytes: int = MIB
    #: Messages with entries sent to one follower and not yet answered; 64. 1: each waits for the answer to the last.
    max_inflight_messages: int = 64
    #: Bytes of entries sent to one follower and not yet answered; 8 MiB.
    max_inflight_bytes: int = 8 * MIB
    #: Bytes of entries in the leader's log and not yet committed; 64 MiB. Beyond it the leader accepts no more.
    max_uncommitted_bytes: int = 64 * MIB
    #: Bytes of the largest frame taken from the network; 4 MiB. Holds a whole batch; like on all members.
    max_frame_bytes: int = 4 * MIB

    # Disk.

    #: Log entries from one snapshot to the next; 10 000. Fewer: a quicker start and a shorter log, more writing.
    snapshot_entries: int = 10_000
    #: Bytes of a snapshot in one message; 256 KiB.
    snapshot_chunk_bytes: int = 256 * KIB
    #: Bytes a log file is preallocated with; 16 MiB.
    wal_segment_bytes: int = 16 * MIB
    #: Where the log is synced: "inline" in the background thread, "thread" in one of its own, "auto" as measured at
    #: the start; "auto".
    fsync: Literal["auto", "thread", "inline"] = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _checked(field.name, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
        _check_times(self)
        _check_sizes(self)

    @property
    def keepalive(self) -> float:
        """Seconds between two renewals of a session: a tenth of `session_ttl`."""
        return self.session_ttl / 10

    @property
    def jeopardy(self) -> float:
        """Seconds after the last renewal when a session is told to wind up: 0.6 of `session_ttl`. `keepalive` plus
        the longer `election_timeout` fits in it."""
        return self.session_ttl * 0.6

    @property
    def lease(self) -> float:
        """Seconds, from the sending of the last acknowledged renewal, that a session may count on: `session_ttl`
        less both clocks' drift and a guard of 250 ms (of a fortieth of `session_ttl` below 10 s)."""
        return self.session_ttl * (1 - 2 * self.clock_drift) - min(0.25, self.session_ttl / 40)


#: Lowest and highest value of each number, both allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "heartbeat": (0.005, 10.0),
    "election_timeout": (0.025, 120.0),
    "session_ttl": (0.1, 300.0),
    "session_grace": (0.0, 86_400.0),
    "default_timeout": (0.001, 86_400.0),
    "clock_drift": (0.0, 0.1),
    "disk_stall_timeout": (0.01, 300.0),
    "priority": (-1000, 1000),
    "max_value_bytes": (1, VALUE_BYTES_MAX),
    "max_transaction_bytes": (1, 2 * MIB),
    "max_state_bytes": (64 * KIB, 16 * GIB),
    "max_keys": (1, 10_000_000),
    "max_sessions": (16, 100_000),
    "max_lock_requests": (1, 1_000_000),
    "max_waiters": (0, 100_000),
    "history_revisions": (0, 10_000_000),
    "history_bytes": (0, 4 * GIB),
    "max_pending": (1, 1 << 20),
    "max_batch_bytes": (KIB, 32 * MIB),
    "max_append_bytes": (KIB, 32 * MIB),
    "max_inflight_messages": (1, 4096),
    "max_inflight_bytes": (KIB, GIB),
    "max_uncommitted_bytes": (KIB, 4 * GIB),
    "max_frame_bytes": (KIB, 64 * MIB),
    "snapshot_entries": (1, 1 << 30),
    "snapshot_chunk_bytes": (KIB, 16 * MIB),
    "wal_segment_bytes": (64 * KIB, GIB),
}


#: Five times 0.14 is a little more than 0.7, which is not what the user meant by it.
_EXACTLY = 1 - 1e-9


def _down(seconds: float) -> float:
    return math.floor(seconds * 10_000) / 10_000


def _checked(name: str, value: object, default: object) -> object:
    """Return `value` as the field keeps it; its default tells the type."""
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ConfigurationError(f"{name}={value!r}: expected two numbers, shortest and longest, as {default!r}")
        return tuple(_number(name, part, 0.0, f"{name}={value!r}") for part in value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: expected True or False")
        return value
    if isinstance(default, str):
        if value not in ("auto", "thread", "inline"):
            raise ConfigurationError(f'{name}={value!r}: expected "auto", "thread" or "inline"')
        return value
    return _number(name, value, default, f"{name}={value!r}")


def _number(name: str, value: object, like: object, shown: str) -> float:
    low, high = _RANGES[name]
    if isinstance(like, int):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{shown}: expected a whole number from {low} to {high}, not a {_kind(value)}")
    elif not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigurationError(f"{shown}: expected a finite number from {low} to {high}, not a {_kind(value)}")
    if not low <= value <= high:
        raise ConfigurationError(f"{shown}: expected {low} to {high}; {name}={min(max(value, low), high)} works")
    return value if isinstance(like, int) else float(value)


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, float) else type(value).__name__


def _check_times(options: Options) -> None:
    shortest, longest = options.election_timeout
    if longest < shortest:
        raise ConfigurationError(
            f"election_timeout={options.election_timeout} has the longest first; use election_timeout="
            f"({longest}, {shortest})"
        )
    if shortest < 5 * options.heartbeat * _EXACTLY:
        fits = max(_down(shortest / 5), _RANGES["heartbeat"][0])
        raise ConfigurationError(
            f"election_timeout={options.election_timeout} is less than 5 times heartbeat={options.heartbeat}: one late "
            f"heartbeat would depose a leader; use heartbeat={fits} or election_timeout="
            f"({5 * options.heartbeat:.6g}, {10 * options.heartbeat:.6g})"
        )
    if longest < (shortest + options.heartbeat) * _EXACTLY:
        base = min(shortest, _RANGES["election_timeout"][1] / 2)
        raise ConfigurationError(
            f"election_timeout={options.election_timeout} spreads over less than heartbeat={options.heartbeat}: "
            f"members would stand at the same moment and split the vote; use election_timeout=({base}, {2 * base})"
        )
    if options.session_ttl < 2 * longest:
        raise ConfigurationError(
            f"session_ttl={options.session_ttl} is less than twice election_timeout[1]={longest}: a change of leader "
            f"would cost sessions; use session_ttl={math.ceil(2 * longest + 2)} or more, or a shorter election_timeout"
        )
    if options.disk_stall_timeout < options.heartbeat:
        raise ConfigurationError(
            f"disk_stall_timeout={options.disk_stall_timeout} is less than heartbeat={options.heartbeat}: an ordinary "
            f"fsync would depose a leader; use disk_stall_timeout={shortest}"
        )


def _check_sizes(options: Options) -> None:
    pair = KEY_BYTES_MAX + options.max_value_bytes
    _at_least(options, "max_transaction_bytes", pair, "max_value_bytes", "a transaction must hold one value")
    command = options.max_transaction_bytes + COMMAND_MARGIN_BYTES
    _at_least(options, "max_batch_bytes", command, "max_transaction_bytes", "one command must fit in a batch")
    _at_least(options, "max_state_bytes", pair + KIB, "max_value_bytes", "the state must hold one value")
    for name in ("max_inflight_bytes", "max_uncommitted_bytes"):
        _at_least(options, name, options.max_batch_bytes, "max_batch_bytes", "one batch must be allowed on its way")
    for name in ("max_batch_bytes", "max_append_bytes", "snapshot_chunk_bytes"):
        needed = getattr(options, name) + FRAME_MARGIN_BYTES
        _at_least(options, "max_frame_bytes", needed, name, "other members must take what this one sends")


def _at_least(options: Options, name: str, needed: int, because_of: str, reason: str) -> None:
    value = getattr(options, name)
    if value < needed:
        raise ConfigurationError(
            f"{name}={value} is too small for {because_of}={getattr(options, because_of)}: {reason}; "
            f"use {name}={needed} or more, or a smaller {because_of}"
        )
