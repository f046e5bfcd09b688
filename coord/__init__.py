"""Locks, leader election and a replicated config map for ordinary Python processes, with nothing to operate.

The public names and nothing else. Importing starts nothing: no thread, no socket, no file.
"""

from coord.config_map import ABSENT, ConfigMap, Entry, Transaction
from coord.coordinator import Coordinator, Member, Status
from coord.election import Election
from coord.errors import (
    AlreadyHeld,
    AuthenticationError,
    ClosedError,
    Compacted,
    ConfigurationError,
    Conflict,
    CoordError,
    ForkedError,
    IdentityError,
    LeadershipLost,
    LockLost,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    QueueFull,
    QuotaExceeded,
    SessionExpired,
    StaleToken,
    StorageError,
    TooStale,
    Unavailable,
)
from coord.fence import FenceGuard
from coord.hold import Hold
from coord.leadership import Leader, Leadership, Observation
from coord.lock import Holder, Lock, LockInfo, WaiterInfo
from coord.node import Node
from coord.options import Options
from coord.recipes import Barrier, Counter, DoubleBarrier, Party
from coord.session import Session
from coord.watch import Event, Watch

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "AlreadyHeld",
    "AuthenticationError",
    "Barrier",
    "ClosedError",
    "Compacted",
    "ConfigMap",
    "ConfigurationError",
    "Conflict",
    "CoordError",
    "Coordinator",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Entry",
    "Event",
    "FenceGuard",
    "ForkedError",
    "Hold",
    "Holder",
    "IdentityError",
    "Leader",
    "Leadership",
    "LeadershipLost",
    "Lock",
    "LockInfo",
    "LockLost",
    "LockTimeout",
    "Member",
    "Node",
    "NotHeld",
    "Observation",
    "Options",
    "OutcomeUnknown",
    "Party",
    "QueueFull",
    "QuotaExceeded",
    "Session",
    "SessionExpired",
    "StaleToken",
    "Status",
    "StorageError",
    "TooStale",
    "Transaction",
    "Unavailable",
    "WaiterInfo",
    "Watch",
]
