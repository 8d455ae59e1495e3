"""How many examples hypothesis draws where the number is a test's own."""

from __future__ import annotations

import os

TIMES = max(1, int(os.environ.get("PENSTOCK_TEST_EXAMPLES", "1")))


def num_examples(usual: int) -> int:
    """``usual`` many, which every run draws anew; PENSTOCK_TEST_EXAMPLES times as many where time does not matter."""
    return usual * TIMES
