"""Linear methods "native_<isa>": the kernels of the compiled extension, quantized weights times quantized activations.

A quantized weight is repacked from its ``packed_form``, so every scheme runs; activations become QuantizedRows. A dense
weight stays in its stored type and is multiplied in float32 (bfloat16 ones with activations rounded to bfloat16, as
the products of processors with such instructions are). It does not know layouts: kernels do.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows
from penstock.kernels.implementation import Implementation, OpSpec
from penstock.kernels.native import BF16_ISA_NEEDS, implementations
from penstock.kernels.native.extension import ISAS
from penstock.kernels.native.linear import (
    TILE,
    PackedWeight,
    embedding_quantized,
    linear_quantized,
    linear_quantized_argmax,
    pack_linear,
    packed_bytes,
)
from penstock.kernels.native.linear_dense import (
    PackedDense,
    embedding_dense,
    linear_dense,
    linear_dense_argmax,
    pack_dense,
    packed_dense_bytes,
)
from penstock.kernels.native.quantize import quantize_rows
from penstock.kernels.pages import WEIGHTS
from penstock.quantization.backends.linear_dense import tensor_of
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.packed import packed_form, packed_parts
from penstock.quantization.records import cut_rows
from penstock.quantization.schemes import BF16, F16, F32, WeightRecord
from penstock.types.decision import YES, Verdict

NativeWeight = PackedWeight | PackedDense
SLICE_VALUES = 1 << 22  # repacked at once: what loading takes besides the weight stays small whatever its size
_DENSE_DTYPES = {F32.name: torch.float32, F16.name: torch.float16, BF16.name: torch.bfloat16}


class LinearNative:
    """One instruction set: ``row`` says what it needs, ``bf16_isas`` are better ones for bfloat16 weights."""

    def __init__(self, row: Implementation) -> None:
        self.name = row.name
        self._row = row
        self._isa = row.name.removeprefix("native_")

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        reasons = list(self._row.can_run(OpSpec(dtype=spec.dtype, platform=spec.platform)).reasons)
        scheme = spec.scheme
        if scheme.activation != "dense":
            reasons.append(f"quantizes activations itself, the scheme wants {scheme.activation}")
        if scheme.kind == "float":
            reasons.append(f"multiplies codes that are integers, those of {scheme.name} are floats")
        multiple = 1 if scheme.kind == "dense" else max(BLOCK, scheme.column_multiple)
        if spec.in_features % multiple:
            reasons.append(f"needs columns in multiples of {multiple} for {scheme.name}, found {spec.in_features}")
        return Verdict(tuple(reasons)) if reasons else YES

    def prepared_bytes(self, spec: LinearSpec) -> int:
        """What this build's kernels say; for recorded machines whose kernels it has not (`penstock explain`), the size
        without what their layout fills up."""
        try:
            return self._packed_bytes(spec)
        except (ImportError, ValueError):
            return _bytes_unpadded(spec)

    def _packed_bytes(self, spec: LinearSpec) -> int:
        if spec.scheme.kind == "dense":
            dtype = _DENSE_DTYPES[spec.scheme.name]
            return packed_dense_bytes(self._dense_isa(spec), spec.out_features, spec.in_features, dtype)
        form = packed_form(spec.scheme)
        return packed_bytes(
            ISAS[self._isa],
            spec.out_features,
            spec.in_features,
            code_bits=form.code_bits,
            group_size=form.group_size,
            scale_bits=form.scale_bits,
            has_min=form.has_min,
        )

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> NativeWeight:
        if spec.scheme.kind == "dense":
            values = record.parts["values"].to(_DENSE_DTYPES[spec.scheme.name])
            return pack_dense(self._dense_isa(spec), values)
        form = packed_form(record.scheme)
        rows = max(TILE, SLICE_VALUES // spec.in_features // TILE * TILE)
        data = WEIGHTS.take(self.prepared_bytes(spec))
        filled = 0
        for start in range(0, spec.out_features, rows):
            parts = packed_parts(cut_rows(record, start, min(start + rows, spec.out_features)))
            piece = pack_linear(
                ISAS[self._isa],
                parts.codes,
                parts.scales,
                parts.mins,
                zero_point=form.zero_point,
                code_bits=form.code_bits,
            )
            data[filled : filled + piece.nbytes] = piece.data
            filled += piece.nbytes
        return replace(piece, data=data, out_features=spec.out_features)

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR if spec.scheme.kind == "dense" else InputFormat.QUANTIZED

    def apply(
        self, prepared: NativeWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(prepared, PackedDense):
            return linear_dense(prepared.isa, tensor_of(x), prepared, bias, out)
        return linear_quantized(prepared.isa, self._quantized(x), prepared, bias, out)

    def argmax(self, prepared: NativeWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(prepared, PackedDense):
            return linear_dense_argmax(prepared.isa, tensor_of(x), prepared)
        return linear_quantized_argmax(prepared.isa, self._quantized(x), prepared)

    def embed(self, prepared: NativeWeight, token_ids: torch.Tensor) -> torch.Tensor:
        if isinstance(prepared, PackedDense):
            return embedding_dense(prepared.isa, prepared, token_ids)
        return embedding_quantized(prepared.isa, prepared, token_ids)

    def _quantized(self, x: LinearInput) -> QuantizedRows:
        return x if isinstance(x, QuantizedRows) else quantize_rows(ISAS[self._isa], x)

    def _dense_isa(self, spec: LinearSpec) -> int:
        """With bfloat16 weights a processor's dot product of that type is used where it has one."""
        own = f"{self._isa}_bf16"
        has = own in BF16_ISA_NEEDS and set(BF16_ISA_NEEDS[own]) <= set(spec.platform.instruction_sets)
        return ISAS[own if has and spec.scheme is BF16 else self._isa]


def _bytes_unpadded(spec: LinearSpec) -> int:
    values = spec.out_features * spec.in_features
    if spec.scheme.kind == "dense":
        return values * _DENSE_DTYPES[spec.scheme.name].itemsize
    form = packed_form(spec.scheme)
    scale_bits = form.scale_bits * (2 if form.has_min else 1)
    return values * form.code_bits // 8 + values // form.group_size * scale_bits // 8


NATIVE_METHODS = tuple(LinearNative(row) for row in implementations(partial(linear_quantized)))
