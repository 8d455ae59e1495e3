"""Linear method "reference": dequantizes in every call and multiplies in float32. The truth that others are held to.

It does not know schemes beyond ``reference_dequantize``, keeps the record as it came, and is slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from penstock.kernels.device import device_of
from penstock.quantization.backends.linear_dense import dense_verdict, largest_of, tensor_of
from penstock.quantization.dequantize import dense_bytes, reference_dequantize
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.records import take_rows
from penstock.quantization.schemes import WeightRecord, record_bytes
from penstock.types.decision import Verdict


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The record itself, with parts in memory of their own, and the type that results are rounded to."""

    record: WeightRecord
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.record.nbytes


class LinearReference:
    name = "reference"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        return dense_verdict(spec)

    def prepared_bytes(self, spec: LinearSpec) -> int:
        shape = (spec.out_features, spec.in_features)
        if spec.scheme.kind == "dense":
            return dense_bytes(shape, torch.float32)
        return record_bytes(spec.scheme, shape)

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> StoredWeight:
        dense = record.scheme.kind == "dense"  # widened once, so that its memory is known from the spec
        parts = {
            name: part.to(device_of(spec.platform), torch.float32 if dense else part.dtype, copy=True)
            for name, part in record.parts.items()
        }
        return StoredWeight(WeightRecord(record.scheme, record.shape, parts), getattr(torch, spec.dtype))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: StoredWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight = reference_dequantize(prepared.record)
        result = F.linear(tensor_of(x).float(), weight, None if bias is None else bias.float()).to(prepared.dtype)
        return result if out is None else out.copy_(result)

    def argmax(self, prepared: StoredWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        return largest_of(self.apply(prepared, x, None))

    def embed(self, prepared: StoredWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return reference_dequantize(take_rows(prepared.record, token_ids), prepared.dtype)
