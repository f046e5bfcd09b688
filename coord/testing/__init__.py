"""For tests: a group in one process, its faults, and judges of what it did.

`Group` is for your own tests: see docs/testing.md. With pytest come the fixtures of `coord.testing.plugin`.
What must not live here: anything a production process needs. Nothing in `coord` outside this package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coord.testing.group import QUICK, Group

__all__ = ["QUICK", "Group"]


def __getattr__(name: str) -> Any:
    """Imported by the first who asks: pytest loads the plugin in this package also where nobody uses it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coord.testing import group

    return getattr(group, name)
