"""A replicated config map for ordinary Python processes, with nothing to operate.

The public names and nothing else. Importing starts nothing: no thread, no socket, no file.
"""

from coord.config_map import ABSENT, ConfigMap, Entry, Transaction
from coord.coordinator import Coordinator, Member, Status
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
    StorageError,
    TooStale,
    Unavailable,
)
from coord.node import Node
from coord.options import Options
from coord.watch import Event, Watch

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "AlreadyHeld",
    "AuthenticationError",
    "ClosedError",
    "Compacted",
    "ConfigMap",
    "ConfigurationError",
    "Conflict",
    "CoordError",
    "Coordinator",
    "Entry",
    "Event",
    "ForkedError",
    "IdentityError",
    "LeadershipLost",
    "LockLost",
    "LockTimeout",
    "Member",
    "Node",
    "NotHeld",
    "Options",
    "OutcomeUnknown",
    "QueueFull",
    "QuotaExceeded",
    "SessionExpired",
    "Status",
    "StorageError",
    "TooStale",
    "Transaction",
    "Unavailable",
    "Watch",
]
