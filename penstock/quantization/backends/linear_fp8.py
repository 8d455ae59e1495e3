"""Linear method "cuda_fp8": float8 e4m3 weights with scales on NVIDIA devices, a ladder over one prepared weight.

Few rows take as long as the weight takes to be read: activations stay as they are. Many rows are bound by the matrix
units, which multiply float8 twice as fast: activations are rounded to float8 too, each row with scales of its own, if
the scheme permits it and the device has such units (compute capability 8.9). So the bits of a row depend on how many
rows stand beside it.

It keeps codes and scales as they are stored. The codes of NaN have their meaning moved to their scale, since kernels
that widen codes do not know them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
MAX_FEW_ROWS = 64  # with activations as they are; not yet timed
MAX_STREAMED_ROWS = 128  # that our kernel multiplies by reading the weight evenly; not yet timed

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
            return (Rung(None, many, "activations stay as they are; not yet timed"),)
        few = Rung(MAX_FEW_ROWS, "linear_fp8", "bound by reading the weight; not yet timed")
        some = Rung(
            MAX_STREAMED_ROWS, "linear_fp8_dynamic", "reads the weight evenly whatever its shape; not yet timed"
        )
        rest = Rung(None, many, "many rows are bound by the matrix units, which multiply float8 twice as fast")
        return (few, some, rest) if many == "torch" else (few, rest)

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
        way = "linear_fp8" if rows.shape[0] <= MAX_FEW_ROWS else prepared.many
        if way == "torch" and rows.shape[0] > MAX_STREAMED_ROWS:
            codes, scales = _quantize_fp8(rows)
            result = product_by_torch(codes, scales, parts["codes"], parts["scales"], bias)
            return result if out is None else out.copy_(result)
        function = _linear_fp8 if way == "linear_fp8" else _linear_fp8_dynamic
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
    """What multiplies many rows: torch, which takes one scale a row and devices of compute capability 9.0, or a kernel
    of our own."""
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
