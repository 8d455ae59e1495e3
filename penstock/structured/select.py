"""The candidates of constrained output in order of preference, and the one call that selects."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from penstock.oracle.choose import choose
from penstock.structured.backends.llguidance import Llguidance
from penstock.structured.backends.xgrammar import Xgrammar
from penstock.structured.contract import StructuredBackend, StructuredNeed
from penstock.types.decision import Decision

PACKAGES = ("llguidance", "xgrammar", "torch", "transformers")
BACKENDS: Mapping[str, StructuredBackend] = {backend.name: backend for backend in (Llguidance(), Xgrammar())}

# What the place of a backend rests on (docs/quality.md).
GROUNDS: Mapping[str, str] = {
    "llguidance": "51% of the JSON Schema Test Suite right and no keyword ignored, without torch; xgrammar 13%",
}


def installed_packages() -> frozenset[str]:
    """Those that a backend needs and that are there; imports none of them."""
    return frozenset(name for name in PACKAGES if _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # somebody refuses it, as a tier of tests does
        return False


def choose_structured(forced: str | None = None) -> tuple[StructuredBackend, Decision]:
    """Select the backend of constrained output. Raises NoBackendError, which carries every refusal."""
    chosen, decision = choose(
        "structured output",
        StructuredNeed(packages=installed_packages()),
        tuple(BACKENDS.values()),
        forced=forced,
        forced_by="--structured-backend",
        grounds=GROUNDS,
    )
    return BACKENDS[chosen.name], decision
