"""The op list: for each op its reference, its tolerance per dtype, and its implementations in order of preference.

Knows no layer and no model. A row is accepted by ``tests/conformance/test_ops.py``, which runs every implementation
against the reference over the op's grid of shapes, dtypes and strides; native and Triton kernels are rows here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.kernels import aten, reference
from penstock.kernels.implementation import Implementation, OpSpec
from penstock.kernels.native import activation, implementations, norm, quantize, rotary, rows, sampling
from penstock.kernels.triton import implementation
from penstock.oracle.choose import choose
from penstock.types.decision import Decision


@dataclass(frozen=True, slots=True)
class Op:
    """``tolerance`` gives (relative, absolute) against the reference on inputs of unit size.

    ``selected_in`` names the table that chooses for ops with a richer contract than a function (attention backends,
    linear methods); such a row gives the truth and the tolerance only. ``changes``: the places of the arguments that
    it writes; all others stay as they are.
    """

    name: str
    reference: Callable[..., Any]
    tolerance: Mapping[str, tuple[float, float]]
    implementations: tuple[Implementation, ...] = ()
    selected_in: str = ""
    changes: tuple[int, ...] = ()


POINTWISE = {"float32": (2e-6, 2e-6), "bfloat16": (1.6e-2, 1e-2), "float16": (2e-3, 2e-3)}
REDUCTION = {"float32": (1e-5, 1e-5), "bfloat16": (1.6e-2, 2e-2), "float16": (2e-3, 4e-3)}
# Dots are exact in integers; only their sum over the blocks is rounded.
QUANTIZED = {"float32": (1e-6, 2e-6)}
# Of a draw: how far the uniform number may lie from a boundary of the cumulated distribution where the token differs.
DRAWN = {"float32": (0.0, 1e-6)}
EXACT = {"float32": (0.0, 0.0), "bfloat16": (0.0, 0.0), "float16": (0.0, 0.0)}

INTEGERS = {"float32": (0.0, 0.0)}  # no float in it, whatever the model's type is
TABLES = {"float32": (3e-7, 1e-7)}  # cosines and sines, whatever the model's type is


def _op(
    name: str,
    tolerance: Mapping[str, tuple[float, float]],
    native: Callable[..., Any] | None,
    triton: str = "",
    changes: tuple[int, ...] = (),
    **claims: Any,
) -> Op:
    """A row whose implementations are the extension's, best instruction set first, the kernel of the module ``triton``
    and torch calls. References, kernels and torch calls have the name of their op."""
    candidates = (
        *(implementations(native, **claims) if native else ()),
        *((implementation(triton, name, **claims),) if triton else ()),
        Implementation("aten", getattr(aten, name)),
    )
    return Op(name, getattr(reference, name), tolerance, candidates, changes=changes)


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        _op("rms_norm", POINTWISE, norm.rms_norm, "norm"),
        _op("add_rms_norm", POINTWISE, norm.add_rms_norm, "norm"),
        _op("rms_norm_quantized", POINTWISE, norm.rms_norm_quantized),
        _op("add_rms_norm_quantized", POINTWISE, norm.add_rms_norm_quantized),
        _op("quantize_rows", POINTWISE, quantize.quantize_rows),
        _op("rotary", POINTWISE, rotary.rotary, "rotary"),
        _op("rotary_tables", TABLES, rotary.rotary_tables, "rotary", dtypes=()),
        _op("silu_and_mul", POINTWISE, activation.silu_and_mul, "activation"),
        _op("silu_and_mul_quantized", POINTWISE, activation.silu_and_mul_quantized),
        _op("gelu_and_mul", POINTWISE, activation.gelu_and_mul, "activation"),
        _op("gelu_and_mul_quantized", POINTWISE, activation.gelu_and_mul_quantized),
        _op("add", POINTWISE, rows.add, "rows"),
        _op("scale", POINTWISE, rows.scale, "rows"),
        _op("gather_rows", EXACT, rows.gather_rows, "rows"),
        _op("argmax", EXACT, None, "argmax"),
        _op("resolve_tokens", INTEGERS, None, "step", dtypes=()),
        _op("keep_tokens", INTEGERS, None, "step", changes=(0,), dtypes=()),
        _op("edit_logits", {"float32": (2e-6, 2e-6)}, None, "edits", changes=(0, 1), dtypes=("float32",)),
        _op("mask_logits", {"float32": (0.0, 0.0)}, None, "edits", changes=(0,), dtypes=("float32",)),
        _op("count_tokens", INTEGERS, None, "edits", changes=(0, 1), dtypes=()),
        # Elsewhere the steps of the executor's sampler do the same one by one.
        Op(
            "sample",
            reference.sample,
            DRAWN,
            (*implementations(sampling.sample), implementation("sampling", "sample", ("float32",))),
        ),
        Op("rotate_and_write", reference.rotate_and_write, POINTWISE, selected_in="penstock.attention.select"),
        Op("paged_attention", reference.paged_attention, REDUCTION, selected_in="penstock.attention.select"),
        Op("linear", reference.linear, REDUCTION, selected_in="penstock.quantization.select"),
        Op("linear_bf16", reference.linear_bf16, REDUCTION, selected_in="penstock.quantization.select"),
        Op("linear_fp8", reference.linear_fp8, REDUCTION, selected_in="penstock.quantization.select"),
        # The same rounding of activations as the reference's: a code that differs would show.
        Op("linear_fp8_dynamic", reference.linear_fp8_dynamic, REDUCTION, selected_in="penstock.quantization.select"),
        Op("quantize_fp8", reference.quantize_fp8, EXACT, selected_in="penstock.quantization.select"),
        Op("embedding", reference.embedding, EXACT, selected_in="penstock.quantization.select"),
        Op("linear_quantized", reference.linear_quantized, QUANTIZED, selected_in="penstock.quantization.select"),
        Op(
            "linear_quantized_argmax",
            reference.linear_quantized_argmax,
            QUANTIZED,
            selected_in="penstock.quantization.select",
        ),
        Op("embedding_quantized", reference.embedding_quantized, QUANTIZED, selected_in="penstock.quantization.select"),
    )
}


def choose_op(name: str, spec: OpSpec, forced: str | None = None) -> tuple[Callable[..., Any], Decision]:
    """The function that runs op ``name``. Raises NoBackendError when no implementation can, or the forced one not."""
    chosen, decision = choose(f"op {name} {spec.dtype}", spec, OPS[name].implementations, forced=forced)
    function = next(i.function for i in OPS[name].implementations if i.name == chosen.name)
    return function, decision
