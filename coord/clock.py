"""The one clock: how leases, elections and callers' deadlines measure time. Nothing else of `coord` may read another.

It counts seconds from some fixed moment and is never set; wall clocks are (architecture 2, principle 6).
"""

from __future__ import annotations

import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def clock() -> float:
    """Seconds since some fixed moment. It runs while the machine sleeps, where the system offers that: a lease must
    not outlive a suspend. Only differences mean something, and only on one machine."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
