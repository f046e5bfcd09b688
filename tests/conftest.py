"""What all tests share: the `--rewrite` option, and how hypothesis is set up."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A busy machine makes any test slow at times, so slowness alone fails none; and a failure must come again on the next
# run, everywhere.
settings.register_profile("coord", deadline=None, derandomize=True, database=None)
settings.load_profile("coord")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="accept what golden files now say; then read the diff")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten rather than compared."""
    return bool(request.config.getoption("--rewrite"))
