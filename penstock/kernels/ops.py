"""The op list: for each op its reference, its tolerance per dtype, and its implementations in order of preference.

Knows no layer and no model. A row is accepted by ``tests/conformance/test_ops.py``, which runs every implementation
against the reference over the op's grid of shapes, dtypes and strides; native and Triton kernels are rows here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from penstock.kernels import aten, reference
from penstock.oracle.choose import choose
from penstock.types.decision import YES, Decision, Verdict
from penstock.types.facts import PlatformFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """What an op is needed for. ``dtype`` is the torch dtype name of its activations, e.g. "bfloat16"."""

    dtype: str
    platform: PlatformFacts


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to run an op. Empty ``dtypes`` or ``platforms`` mean any; ``instruction_sets`` are all needed."""

    name: str
    function: Callable[..., Any]
    dtypes: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ()

    def can_run(self, spec: OpSpec, /) -> Verdict:
        reasons = []
        if self.dtypes and spec.dtype not in self.dtypes:
            reasons.append(f"needs dtype {' or '.join(self.dtypes)}, asked for {spec.dtype}")
        if self.platforms and spec.platform.name not in self.platforms:
            reasons.append(f"needs platform {' or '.join(self.platforms)}, found {spec.platform.name}")
        missing = [name for name in self.instruction_sets if name not in spec.platform.instruction_sets]
        if missing:
            reasons.append(f"needs instruction sets {', '.join(missing)}, which the processor lacks")
        return Verdict(tuple(reasons)) if reasons else YES


@dataclass(frozen=True, slots=True)
class Op:
    """``tolerance`` gives (relative, absolute) against the reference on inputs of unit size.

    ``selected_in`` names the table that chooses for ops with a richer contract than a function (attention backends,
    linear methods); such a row gives the truth and the tolerance only.
    """

    name: str
    reference: Callable[..., Any]
    tolerance: Mapping[str, tuple[float, float]]
    implementations: tuple[Implementation, ...] = ()
    selected_in: str = ""


POINTWISE = {"float32": (2e-6, 2e-6), "bfloat16": (1.6e-2, 1e-2), "float16": (2e-3, 2e-3)}
REDUCTION = {"float32": (1e-5, 1e-5), "bfloat16": (1.6e-2, 2e-2), "float16": (2e-3, 4e-3)}
EXACT = {"float32": (0.0, 0.0), "bfloat16": (0.0, 0.0), "float16": (0.0, 0.0)}

OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op("rms_norm", reference.rms_norm, POINTWISE, (Implementation("aten", aten.rms_norm),)),
        Op("rotary", reference.rotary, POINTWISE, (Implementation("aten", aten.rotary),)),
        Op("silu_and_mul", reference.silu_and_mul, POINTWISE, (Implementation("aten", aten.silu_and_mul),)),
        Op("gelu_and_mul", reference.gelu_and_mul, POINTWISE, (Implementation("aten", aten.gelu_and_mul),)),
        Op("paged_attention", reference.paged_attention, REDUCTION, selected_in="penstock.attention.select"),
        Op("linear", reference.linear, REDUCTION, selected_in="penstock.quantization.select"),
        Op("embedding", reference.embedding, EXACT, selected_in="penstock.quantization.select"),
    )
}


def choose_op(name: str, spec: OpSpec, forced: str | None = None) -> tuple[Callable[..., torch.Tensor], Decision]:
    """The function that runs op ``name``. Raises NoBackendError when no implementation can, or the forced one not."""
    chosen, decision = choose(f"op {name} {spec.dtype}", spec, OPS[name].implementations, forced=forced)
    function = next(i.function for i in OPS[name].implementations if i.name == chosen.name)
    return function, decision
