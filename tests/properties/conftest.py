"""How hypothesis is set up for the properties: fresh examples in every run, and a failure that can be repeated.

The rest of the suite tries the same examples every time; here a run may find what no run before it did. What failed is
printed as a line to paste above the test. `COORD_EXAMPLES=1000` tries so many of each in place of a few.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("COORD_EXAMPLES", "0"))

# Taken by name in each module, never loaded: the profile of the other folders stays what it is.
for _name, _examples in (("properties", 200), ("slow properties", 25)):
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=False,
        database=None,
        print_blob=True,
        max_examples=EXAMPLES or _examples,
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.too_slow],
    )
