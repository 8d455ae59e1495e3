"""Shared by every tier: a clean environment, one hypothesis profile. Fixtures live next to the tests that use them."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A developer's own settings must not change what a test sees; the cache stays, so that bundles are not fetched twice.
for _name in [name for name in os.environ if name.startswith("PENSTOCK_") and name != "PENSTOCK_CACHE"]:
    del os.environ[_name]

# No deadlines: a busy machine is no failure of the code.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")
