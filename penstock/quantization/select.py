"""Which LinearMethod runs a weight: the candidate table, asked through the oracle.

It does not know layers or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from penstock.oracle.choose import choose
from penstock.quantization.backends.linear_dense import LinearDense
from penstock.quantization.backends.linear_reference import LinearReference
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.types.decision import Decision

# In order of preference. A method that multiplies with packed codes goes before dense for the schemes it can run;
# reference dequantizes in every call, so it stands last and runs only when it is named.
LINEAR_METHODS: tuple[LinearMethod, ...] = (LinearDense(), LinearReference())

# What the place of a method rests on (docs/performance.md).
GROUNDS: Mapping[str, str] = {
    "dense": "a step of SmolLM2-135M takes 31 ms, with the reference 148 ms (Q4_1, float32, batch 1, 2 CPU cores)",
}


def choose_linear(spec: LinearSpec, forced: str | None = None) -> tuple[LinearMethod, Decision]:
    """The first method that can run ``spec``, or the one named ``forced``. Raises NoBackendError with every reason."""
    subject = f"linear {spec.scheme.name} {spec.out_features}x{spec.in_features} {spec.dtype}"
    method, decision = choose(
        subject, spec, LINEAR_METHODS, forced=forced, forced_by="--linear-backend", grounds=GROUNDS
    )
    return cast(LinearMethod, method), decision
