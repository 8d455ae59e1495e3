"""Linear method "dense": torch's own multiplication, on the weight as it is or on a dense copy of a quantized one.

It does not know schemes: dequantization is asked for once, in ``prepare``. Quantized files save no memory with it. It
runs on every platform. On CUDA devices products are summed in float32 only when
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` and its twin for float16 are off: whoever starts
an executor turns them off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from penstock.kernels.aten import argmax
from penstock.kernels.device import device_of
from penstock.quantization.dequantize import dense_bytes, reference_dequantize
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.records import move_parts
from penstock.quantization.schemes import DYNAMIC_ACTIVATIONS, WeightRecord
from penstock.types.decision import YES, Verdict

DENSE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """values [out_features, in_features] in the spec's dtype, contiguous and in memory of its own."""

    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()


class LinearDense:
    name = "dense"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        return dense_verdict(spec)

    def prepared_bytes(self, spec: LinearSpec) -> int:
        return dense_bytes((spec.out_features, spec.in_features), getattr(torch, spec.dtype))

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> DenseWeight:
        return DenseWeight(dense_values(record, spec))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: DenseWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        result = F.linear(tensor_of(x), prepared.values, bias)
        return result if out is None else out.copy_(result)

    def argmax(self, prepared: DenseWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        return largest_of(self.apply(prepared, x, None))

    def embed(self, prepared: DenseWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(token_ids, prepared.values)


def dense_values(record: WeightRecord, spec: LinearSpec) -> torch.Tensor:
    """The weight [out_features, in_features] in the spec's dtype on its platform's device, contiguous and in memory of
    its own. What arrives like that on an accelerator is kept: it can be no file's map, and copies there cost memory."""
    device = device_of(spec.platform)
    moved = move_parts(record, device)  # as stored, which is never larger than what is made of it by much
    values = reference_dequantize(moved, getattr(torch, spec.dtype))
    shared = record.scheme.kind == "dense" and values.data_ptr() == record.parts["values"].data_ptr()
    if shared and (device.type == "cpu" or values.untyped_storage().nbytes() != values.nbytes):
        # Copied out of the file's map: weights must not wait for the disk, nor change when the file does.
        return values.clone(memory_format=torch.contiguous_format)
    return values.contiguous()


def tensor_of(x: LinearInput) -> torch.Tensor:
    """The input of a method that did not ask for quantized rows. Raises TypeError when it got some."""
    if not isinstance(x, torch.Tensor):
        raise TypeError("this linear method multiplies tensors and was given quantized rows")
    return x


def largest_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``LinearMethod.argmax`` of values that are there."""
    return argmax(values)


def dense_verdict(
    spec: LinearSpec, dtypes: tuple[str, ...] = DENSE_DTYPES, *, batch_invariant: bool = False
) -> Verdict:
    """What methods with dense weights need of a spec; ``batch_invariant`` are those without torch's multiplication."""
    reasons = []
    if spec.batch_invariant and not batch_invariant:
        reasons.append("torch's library orders sums by the number of rows, asked for batch-invariant results")
    if spec.dtype not in dtypes:
        reasons.append(f"needs activations in {', '.join(dtypes)}, found {spec.dtype}")
    if spec.scheme.activation not in ("dense", *DYNAMIC_ACTIVATIONS):
        reasons.append(f"multiplies with dense activations only, the scheme wants {spec.scheme.activation}")
    multiple = spec.scheme.column_multiple
    if spec.in_features % multiple:
        reasons.append(f"needs columns in multiples of {multiple} for {spec.scheme.name}, found {spec.in_features}")
    return Verdict(tuple(reasons)) if reasons else YES
