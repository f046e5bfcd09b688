"""For tests: a group in one process, its faults, and judges of what it did.

`Group` is for your own tests: see docs/testing.md. With pytest come the fixtures of `coord.testing.plugin`.
What must not live here: anything a production process needs. Nothing in `coord` outside this package imports it.
"""

from coord.testing.group import Group
from coord.testing.realtime import QUICK

__all__ = ["QUICK", "Group"]
