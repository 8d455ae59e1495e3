"""Linear method "cuda_skinny": dense weights on NVIDIA devices, a ladder of two. Few rows take as long as the weight
takes to be read, which kernels of our own do at nearly the bandwidth of the memory; many rows are torch's.

Both rungs multiply the same contiguous weight. It does not know schemes: quantized weights become dense copies in
``prepare``. For torch's rung the note on sums in ``linear_dense`` holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from penstock.kernels.device import device_of
from penstock.kernels.triton import lazy
from penstock.quantization.backends.linear_dense import DenseWeight, dense_values, dense_verdict, tensor_of
from penstock.quantization.dequantize import dense_bytes
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.types.decision import YES, Rung, Verdict

DTYPES = ("bfloat16", "float16")
COLUMN_MULTIPLE = 16  # so that every row begins where 16 bytes can be read at once
# Where torch takes over. Not yet measured: 64 rows is where its kernels for many rows begin to fill their tiles.
MAX_SKINNY_ROWS = 64

_linear_skinny = lazy("linear", "linear_skinny")
_arrivals_on = lazy("linear", "arrivals_on")
_argmax = lazy("argmax", "argmax")


class LinearCuda:
    name = "cuda_skinny"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        platform = spec.platform
        reasons = list(dense_verdict(spec, DTYPES).reasons)
        if platform.name != "cuda":
            reasons.append(f"needs platform cuda, found {platform.name}")
        elif platform.accelerators and int(platform.accelerators[0].capability.split(".")[0]) < 8:
            reasons.append(f"needs compute capability 8.0, found {platform.accelerators[0].capability}")
        if "triton" not in platform.libraries:
            reasons.append("needs triton, which is not installed")
        if spec.in_features % COLUMN_MULTIPLE:
            reasons.append(f"needs columns in multiples of {COLUMN_MULTIPLE}, found {spec.in_features}")
        return Verdict(tuple(reasons)) if reasons else YES

    def rungs(self, spec: LinearSpec) -> tuple[Rung, ...]:
        return (
            Rung(MAX_SKINNY_ROWS, "linear_skinny", "reads the weight once, evenly on all multiprocessors"),
            Rung(None, "torch", "many rows are bound by the matrix units"),
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
        if rows.shape[0] <= MAX_SKINNY_ROWS:
            result: torch.Tensor = _linear_skinny(rows, prepared.values, bias, out)
            return result
        result = F.linear(rows, prepared.values, bias)
        return result if out is None else out.copy_(result)

    def argmax(self, prepared: DenseWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = _argmax(self.apply(prepared, x, None))
        return found

    def embed(self, prepared: DenseWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(token_ids, prepared.values)
