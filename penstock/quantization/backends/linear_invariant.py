"""Linear method "cuda_invariant": dense weights on NVIDIA devices, one order of sums for every number of rows.

What a row gives does not depend on the rows beside it, to the bit. It does not know schemes: quantized weights become
dense copies in ``prepare``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F

from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_dense import DenseWeight, dense_values, dense_verdict, tensor_of
from penstock.quantization.dequantize import dense_bytes
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.types.decision import YES, Verdict

DTYPES = ("bfloat16", "float16")
COLUMN_MULTIPLE = 16  # so that every row begins where 16 bytes can be read at once

_linear_invariant = lazy("linear_invariant", "linear_invariant")
_argmax = lazy("argmax", "argmax")


class LinearInvariant:
    name = "cuda_invariant"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        platform = spec.platform
        reasons = list(dense_verdict(spec, DTYPES, batch_invariant=True).reasons)
        if platform.name != "cuda":
            reasons.append(f"needs platform cuda, found {platform.name}")
        elif platform.accelerators and int(platform.accelerators[0].capability.split(".")[0]) < 8:
            reasons.append(f"needs compute capability 8.0, found {platform.accelerators[0].capability}")
        if "triton" not in platform.libraries:
            reasons.append("needs triton, which is not installed")
        if spec.in_features % COLUMN_MULTIPLE:
            reasons.append(f"needs columns in multiples of {COLUMN_MULTIPLE}, found {spec.in_features}")
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
        found: tuple[torch.Tensor, torch.Tensor] = _argmax(self.apply(prepared, x, None))
        return found

    def embed(self, prepared: DenseWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(token_ids, prepared.values)
