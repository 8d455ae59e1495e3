"""Linear method "cuda_fp8": float8 e4m3 weights with scales on NVIDIA devices, a ladder over one prepared weight.

If the scheme permits it and the device's matrix units have float8 (compute capability 8.9), activations are rounded to
float8 too, each row with scales of its own, whatever the number of rows: what is multiplied does not depend on it, only
how. Otherwise activations stay as they are, and the values of the weight are widened on their way to the matrix units.

It keeps codes and scales as they are stored. The codes of NaN have their meaning moved to their scale, since kernels
that widen codes do not know them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch

from penstock.kernels.device import device_of
from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_dense import dense_verdict, tensor_of
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.records import take_rows
from penstock.quantization.schemes import WeightRecord, record_bytes
from penstock.quantization.triton_needs import capability_of, reasons_against
from penstock.types.decision import YES, Rung, Verdict

DTYPES = ("bfloat16", "float16")
ROW_MULTIPLE = 16  # of torch's product
# H200, us: 28672 x 4096 with 16, 32 and 64 rows 42, 47 and 64, by torch 54, 53 and 52; 4096 x 14336 with 64 41 and 46.
MAX_STREAMED_ROWS = 32

_linear_fp8 = lazy("linear_fp8", "linear_fp8")
_linear_fp8_dynamic = lazy("linear_fp8", "linear_fp8_dynamic")
_quantize_fp8 = lazy("linear_fp8", "quantize_fp8")
_arrivals_on = lazy("linear", "arrivals_on")
_argmax = lazy("argmax", "argmax")


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """``record`` on the device, in memory of its own. ``many``: what multiplies many rows, as the ladder calls it."""

    record: WeightRecord
    dtype: torch.dtype
    many: str

    @property
    def nbytes(self) -> int:
        return self.record.nbytes


class LinearFp8:
    name = "cuda_fp8"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        reasons = list(dense_verdict(spec, DTYPES).reasons)
        if spec.scheme.kind != "float":
            reasons.append(f"needs a weight of floats with scales, the scheme is {spec.scheme.name}")
        reasons += reasons_against(spec)
        return Verdict(tuple(reasons)) if reasons else YES

    def rungs(self, spec: LinearSpec) -> tuple[Rung, ...]:
        many = _many(spec)
        if many == "linear_fp8":
            return (
                Rung(None, many, "16 rows of 28672 x 4096 take 85 us, a dense copy 63 and twice the memory (H200)"),
            )
        few = Rung(MAX_STREAMED_ROWS, "linear_fp8_dynamic", "16 rows of 28672 x 4096 take 42 us, dense 63 (H200)")
        if many == "torch":
            return (few, Rung(None, many, "256 rows of 28672 x 4096 take 62 us, dense 92 (H200)"))
        return (replace(few, max_rows=None),)

    def prepared_bytes(self, spec: LinearSpec) -> int:
        return record_bytes(spec.scheme, (spec.out_features, spec.in_features))

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> Fp8Weight:
        device = device_of(spec.platform)
        _arrivals_on(device)
        parts = {name: part.to(device, copy=True).contiguous() for name, part in record.parts.items()}
        unknown = ((parts["codes"] & 0x7F) == 0x7F).view(*parts["scales"].shape, -1).any(-1)
        parts["scales"].masked_fill_(unknown, float("nan"))
        return Fp8Weight(WeightRecord(record.scheme, record.shape, parts), getattr(torch, spec.dtype), _many(spec))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: Fp8Weight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows, parts = tensor_of(x), prepared.record.parts
        if prepared.many == "torch" and rows.shape[0] > MAX_STREAMED_ROWS:
            codes, scales = _quantize_fp8(rows)
            result = product_by_torch(codes, scales, parts["codes"], parts["scales"], bias)
            return result if out is None else out.copy_(result)
        function = _linear_fp8 if prepared.many == "linear_fp8" else _linear_fp8_dynamic
        return cast(torch.Tensor, function(rows, parts["codes"], parts["scales"], bias, out))

    def argmax(self, prepared: Fp8Weight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = _argmax(self.apply(prepared, x, None))
        return found

    def embed(self, prepared: Fp8Weight, token_ids: torch.Tensor) -> torch.Tensor:
        return reference_dequantize(take_rows(prepared.record, token_ids), prepared.dtype)


def product_by_torch(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    fast: bool = False,
) -> torch.Tensor:
    """``kernels.triton.linear_fp8.product_fp8`` in bfloat16 by torch, with one scale a row. ``fast``: sums of all
    columns have fewer bits than float32."""
    return torch._scaled_mm(
        x.view(torch.float8_e4m3fn),
        codes.view(torch.float8_e4m3fn).t(),
        scale_a=x_scales,
        scale_b=scales.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


def _many(spec: LinearSpec) -> str:
    """What multiplies more than MAX_STREAMED_ROWS rows: torch, which takes one scale a row and devices of compute
    capability 9.0, or a kernel of our own."""
    if spec.scheme.activation == "dense" or capability_of(spec) < (8, 9):
        return "linear_fp8"
    one_scale = spec.scheme.scales[0].group_size == 0
    if (
        one_scale
        and spec.dtype == "bfloat16"
        and capability_of(spec) >= (9, 0)
        and spec.out_features % ROW_MULTIPLE == 0
    ):
        return "torch"
    return "linear_fp8_dynamic"
