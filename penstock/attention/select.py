"""The attention candidates of each platform in order of preference, and the one call that selects."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.attention.backends.cpu_sdpa import CpuSdpa
from penstock.attention.backends.reference_torch import ReferenceTorch
from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.oracle.choose import choose
from penstock.types.decision import Decision

BACKENDS: Mapping[str, AttentionBackend] = {backend.name: backend for backend in (CpuSdpa(), ReferenceTorch())}

# cpu: the batched backend stands first; the reference takes one row and query at a time (docs/performance.md).
# Elsewhere only the reference runs: correct on every device, and named by its slowness until a device backend comes.
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("cpu_sdpa", "reference_torch"),
    "": ("reference_torch",),
}


def candidates_of(platform: str) -> tuple[AttentionBackend, ...]:
    """The backends to ask on ``platform``; a platform without a row of its own has the row ""."""
    return tuple(BACKENDS[name] for name in CANDIDATES.get(platform, CANDIDATES[""]))


def choose_attention(
    spec: AttentionSpec, forced: str | None = None, forced_by: str = "--attention-backend"
) -> tuple[AttentionBackend, Decision]:
    """Select the backend of one KV group. Raises NoBackendError, which carries every refusal."""
    window = f", window {spec.window}" if spec.window is not None else ""
    subject = f"attention {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}, {spec.dtype}{window}"
    candidates = candidates_of(spec.platform.name)
    chosen, decision = choose(subject, spec, candidates, forced=forced, forced_by=forced_by)
    return BACKENDS[chosen.name], decision
