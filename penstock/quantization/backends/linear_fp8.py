"""Linear method "cuda_fp8": float8 e4m3 weights with scales on NVIDIA devices, a ladder over one prepared weight.

If the scheme permits it and the device's matrix units have float8 (compute capability 8.9), activations are rounded to
float8 too, each row with scales of its own, whatever the number of rows: what is multiplied does not depend on it, only
how. Otherwise activations stay as they are, and the values of the weight are widened on their way to the matrix units.

It keeps codes and scales as they are stored. The codes of NaN have their meaning moved to their scale, since kernels
that widen codes do not know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch

from penstock.kernels.device import device_of
from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_cuda import largest_of
from penstock.quantization.backends.linear_dense import dense_verdict, tensor_of
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.records import take_rows
from penstock.quantization.schemes import WeightRecord, record_bytes
from penstock.quantization.triton_needs import reasons_against
from penstock.types.decision import YES, Rung, Verdict

DTYPES = ("bfloat16", "float16")
ROW_MULTIPLE = 16  # of torch's product
# By what multiplies many rows: up to how many the kernel that reads the weight evenly is taken instead. H200, us: with
# one scale a row 28672 x 4096 takes 16, 32 and 64 rows 42, 47 and 64, torch 54, 53 and 52; 4096 x 14336 takes 64 rows
# 41 and 46. In blocks of 128, 28672 x 4096 takes 128 rows 145, in tiles 256 rows 154.
STREAMED_ROWS: Mapping[str, int] = {"torch": 32, "product_fp8": 64}

_linear_fp8 = lazy("linear_fp8", "linear_fp8")
_linear_fp8_dynamic = lazy("linear_fp8", "linear_fp8_dynamic")
_quantize_fp8 = lazy("linear_fp8", "quantize_fp8")
_arrivals_on = lazy("linear", "arrivals_on")


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
        if _has_one_scale(spec):
            on_few = "one scale a row: 16 rows of 28672 x 4096 take 42 us, a dense copy 63 (H200)"
            on_many = "what torch does for bfloat16 on compute capability 9.0 and later; not timed"
        else:
            on_few = "blocks: 16 and 64 rows of 28672 x 4096 take 44 and 73 us, a dense copy 63 and 66 (H200)"
            on_many = (
                "blocks: 256 and 1,024 rows of 28672 x 4096 take 154 and 517 us; a dense copy 92 and 303, in twice the "
                "memory: --linear-backend cuda_skinny makes one (H200)"
            )
        if many == "torch":
            on_many = "one scale a row: 256 rows of 28672 x 4096 take 62 us, a dense copy 92 (H200)"
        return Rung(STREAMED_ROWS[many], "streamed_fp8", on_few), Rung(None, many, on_many)

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
        if prepared.many == "linear_fp8":
            return cast(torch.Tensor, _linear_fp8(rows, parts["codes"], parts["scales"], bias, out))
        streamed = STREAMED_ROWS[prepared.many]
        if prepared.many == "torch" and rows.shape[0] > streamed:
            codes, scales = _quantize_fp8(rows)
            result = product_by_torch(codes, scales, parts["codes"], parts["scales"], bias)
            return result if out is None else out.copy_(result)
        result = _linear_fp8_dynamic(rows, parts["codes"], parts["scales"], bias, out, streamed_rows=streamed)
        return cast(torch.Tensor, result)

    def argmax(self, prepared: Fp8Weight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        return largest_of(self.apply(prepared, x, None))

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
    """What multiplies more than a few rows: torch, which takes one scale a row and devices of compute
    capability 9.0, or a kernel of our own."""
    capability = spec.platform.device.compute_capability if spec.platform.device else ()
    if spec.scheme.activation == "dense" or capability < (8, 9):
        return "linear_fp8"
    for_torch = spec.dtype == "bfloat16" and capability >= (9, 0) and spec.out_features % ROW_MULTIPLE == 0
    return "torch" if for_torch and _has_one_scale(spec) else "product_fp8"


def _has_one_scale(spec: LinearSpec) -> bool:
    """A row of the weight, not a block of its columns."""
    return spec.scheme.scales[0].group_size == 0
