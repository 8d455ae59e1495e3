"""Linear method "cuda_skinny": dense weights on NVIDIA devices, a ladder. Few rows take as long as the weight takes to
be read. Kernels of our own read it for one row, and small weights for some, faster than torch's library; the rest is
torch's.

All rungs multiply the same contiguous weight. It does not know schemes: quantized weights become dense copies in
``prepare``. For torch's rung the note on sums in ``linear_dense`` holds.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F

from penstock.kernels.device import device_of
from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_dense import DenseWeight, dense_values, dense_verdict, tensor_of
from penstock.quantization.dequantize import dense_bytes
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.quantization.triton_needs import reasons_against
from penstock.types.decision import YES, Rung, Verdict

DTYPES = ("bfloat16", "float16")
# Measured on an H200 over the weights of Llama 3.1 8B, read from memory, in us (docs/performance.md).
SMALL_WEIGHT = (
    20 << 20
)  # elements: 4096 x 4096 takes 10.9 with up to 32 rows, with torch 12.3; 6144 x 4096 16.7 and 15.3
MAX_SMALL_ROWS = 32
MAX_VECTOR_ROWS = 1  # the five weights take 3.68 ms a step, with torch 3.86; two rows 3.9 and 3.87

_linear_skinny = lazy("linear", "linear_skinny")
_linear_vector = lazy("linear", "linear_vector")
_arrivals_on = lazy("linear", "arrivals_on")
_argmax = lazy("argmax", "argmax")


class LinearCuda:
    name = "cuda_skinny"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        reasons = list(dense_verdict(spec, DTYPES).reasons)
        reasons += reasons_against(spec)
        return Verdict(tuple(reasons)) if reasons else YES

    def rungs(self, spec: LinearSpec) -> tuple[Rung, ...]:
        small = Rung(MAX_SMALL_ROWS, "linear_skinny", "a weight of this size takes torch an eighth longer (H200)")
        return (
            Rung(MAX_VECTOR_ROWS, "linear_vector", "reads weights 5% faster than torch (H200)"),
            *((small,) if _is_small(spec.out_features, spec.in_features) else ()),
            Rung(None, "torch", "reads large weights as fast, and many rows are bound by the matrix units"),
        )

    def prepared_bytes(self, spec: LinearSpec) -> int:
        return dense_bytes((spec.out_features, spec.in_features), getattr(torch, spec.dtype))

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> DenseWeight:
        _arrivals_on(device_of(spec.platform))
        return DenseWeight(dense_values(record, spec))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: DenseWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = tensor_of(x)
        num_rows = rows.shape[0]
        if num_rows <= MAX_VECTOR_ROWS:
            return cast(torch.Tensor, _linear_vector(rows, prepared.values, bias, out))
        if num_rows <= MAX_SMALL_ROWS and _is_small(*prepared.values.shape):
            return cast(torch.Tensor, _linear_skinny(rows, prepared.values, bias, out))
        result = F.linear(rows, prepared.values, bias)
        return result if out is None else out.copy_(result)

    def argmax(self, prepared: DenseWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        return largest_of(self.apply(prepared, x, None))

    def embed(self, prepared: DenseWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(token_ids, prepared.values)


def largest_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``LinearMethod.argmax`` of values that are there."""
    return cast(tuple[torch.Tensor, torch.Tensor], _argmax(values))


def _is_small(outs: int, columns: int) -> bool:
    return outs * columns <= SMALL_WEIGHT
