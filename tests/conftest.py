"""Shared by every tier: a clean environment, one hypothesis profile. Fixtures live next to the tests that use them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest
from drawn_examples import num_examples
from hypothesis import HealthCheck, settings

# A developer's own settings must not change what a test sees; the cache stays, so that bundles are not fetched twice,
# and so does what tests are told: how many examples to draw; on a card, how long to run, and where a model is.
_KEPT = ("PENSTOCK_CACHE", "PENSTOCK_SOAK_SECONDS", "PENSTOCK_TEST_EXAMPLES", "PENSTOCK_TEST_MODEL")
for _name in [name for name in os.environ if name.startswith("PENSTOCK_") and name not in _KEPT]:
    del os.environ[_name]

# Without a card Triton's kernels run in its interpreter. It reads this when triton is imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No deadlines: a busy machine is no failure of the code. PENSTOCK_TEST_EXAMPLES=10 draws ten times as many examples.
settings.register_profile(
    "penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=num_examples(100)
)
settings.load_profile("penstock")


def pytest_collection_finish() -> None:
    """What importing all tests made stays: no garbage collection need look at it again, of which each executor that
    stops makes one, for a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """Verbs of the command line configure logging for their process, which here is that of all tests."""
    logger = logging.getLogger("penstock")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before
