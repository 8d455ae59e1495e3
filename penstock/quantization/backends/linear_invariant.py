"""Linear method "cuda_invariant": dense weights on NVIDIA devices, one order of sums for every number of rows.

What a row gives does not depend on the rows beside it, to the bit. It does not know schemes: quantized weights become
dense copies in ``prepare``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F

from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_cuda import largest_of
from penstock.quantization.backends.linear_dense import DenseWeight, dense_values, dense_verdict, tensor_of
from penstock.quantization.dequantize import dense_bytes
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.quantization.triton_needs import reasons_against
from penstock.types.decision import YES, Verdict

DTYPES = ("bfloat16", "float16")

_linear_invariant = lazy("linear_invariant", "linear_invariant")


class LinearInvariant:
    name = "cuda_invariant"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        reasons = list(dense_verdict(spec, DTYPES, batch_invariant=True).reasons)
        reasons += reasons_against(spec)
        return Verdict(tuple(reasons)) if reasons else YES

    def prepared_bytes(self, spec: LinearSpec) -> int:
        return dense_bytes((spec.out_features, spec.in_features), getattr(torch, spec.dtype))

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> DenseWeight:
        return DenseWeight(dense_values(record, spec))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: DenseWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return cast(torch.Tensor, _linear_invariant(tensor_of(x), prepared.values, bias, out))

    def argmax(self, prepared: DenseWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        return largest_of(self.apply(prepared, x, None))

    def embed(self, prepared: DenseWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(token_ids, prepared.values)
