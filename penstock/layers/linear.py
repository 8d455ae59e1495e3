"""Linear layers over one or several fused weights. They know no scheme by name and no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.native.memory import empty
from penstock.layers.parameter import DenseParameter, Layer, check_rows
from penstock.layers.parts import LayerParts, layer_op
from penstock.quantization.linear import InputFormat, LinearInput, LinearMethod, LinearSpec, PreparedWeight
from penstock.quantization.schemes import WeightRecord, WeightScheme


class StoredPart(Protocol):
    """What is known of one stored tensor before it is read; loader.TensorFacts and WeightRecord both fit."""

    @property
    def scheme(self) -> WeightScheme: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    method: LinearMethod
    prepared: PreparedWeight
    rows: slice  # of the whole weight
    input_format: InputFormat


class LinearWeight:
    """A matrix [out_features, in_features] behind LinearMethods: one prepared weight per run of equal schemes.

    Fused projections (q, k, v or gate, up) whose parts share a scheme become one multiplication; parts with different
    schemes, as mixed GGUF files have them, keep a method each, which writes its share of one result.
    """

    def __init__(self, out_features: int, in_features: int, parts: LayerParts) -> None:
        self.shape = (out_features, in_features)
        self._parts = parts
        self._pieces: tuple[_Piece, ...] = ()
        self._quantize = layer_op("quantize_rows", parts)

    @property
    def nbytes(self) -> int:
        return sum(piece.prepared.nbytes for piece in self._pieces)

    @property
    def input_format(self) -> InputFormat:
        """Quantized when nothing else is needed."""
        tensors = any(piece.input_format is InputFormat.TENSOR for piece in self._pieces)
        return InputFormat.TENSOR if tensors else InputFormat.QUANTIZED

    def specs(self, stored: Sequence[StoredPart]) -> tuple[LinearSpec, ...]:
        """The specs that ``load`` will select methods for, known from headers alone: for memory plans and explain."""
        return tuple(
            self._spec(scheme, sum(part.shape[0] for part in run))
            for scheme, run in groupby(stored, key=lambda part: part.scheme)
        )

    def load(self, records: Sequence[WeightRecord], /) -> None:
        check_rows(self.shape, records)
        pieces: list[_Piece] = []
        for scheme, run in groupby(records, key=lambda record: record.scheme):
            record = concatenate_rows(list(run))
            spec = self._spec(scheme, record.shape[0])
            method = self._parts.linear_method(spec)
            first = pieces[-1].rows.stop if pieces else 0
            rows = slice(first, first + record.shape[0])
            pieces.append(_Piece(method, method.prepare(record, spec), rows, method.input_format(spec)))
        self._pieces = tuple(pieces)

    def apply(self, x: LinearInput, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [rows, in_features] -> [rows, out_features]. x is quantized here when methods want that and it is not."""
        inputs = self._inputs(x)
        if len(self._pieces) == 1:
            piece = self._pieces[0]
            return piece.method.apply(piece.prepared, inputs[piece.input_format], bias)
        out = empty((x.shape[0], self.shape[0]), self._parts.dtype, self._parts.device)
        for piece in self._pieces:
            own_bias = None if bias is None else bias[piece.rows]
            piece.method.apply(piece.prepared, inputs[piece.input_format], own_bias, out[:, piece.rows])
        return out

    def argmax(self, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        """x [rows, in_features] -> (int64 [rows], float32 [rows]), see ``LinearMethod.argmax``. For a weight in one
        piece, as LM heads are."""
        (piece,) = self._pieces
        return piece.method.argmax(piece.prepared, self._inputs(x)[piece.input_format])

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [n] -> the rows [n, in_features]. Embeddings are stored in one piece."""
        (piece,) = self._pieces
        return piece.method.embed(piece.prepared, token_ids)

    def _inputs(self, x: LinearInput) -> dict[InputFormat, LinearInput]:
        """x in the formats that the pieces want; quantized once for all of them."""
        if isinstance(x, QuantizedRows):
            return {InputFormat.QUANTIZED: x}
        inputs: dict[InputFormat, LinearInput] = {InputFormat.TENSOR: x}
        if any(piece.input_format is InputFormat.QUANTIZED for piece in self._pieces):
            inputs[InputFormat.QUANTIZED] = self._quantize(x)
        return inputs

    def _spec(self, scheme: WeightScheme, rows: int) -> LinearSpec:
        return LinearSpec(
            scheme=scheme,
            out_features=rows,
            in_features=self.shape[1],
            dtype=self._parts.dtype_name,
            platform=self._parts.platform,
            batch_invariant=self._parts.batch_invariant,
        )


class Linear(Layer):
    """``x @ weight.T + bias``; ``out_features`` of several fused projections add up."""

    def __init__(self, in_features: int, out_features: int, parts: LayerParts, *, bias: bool = False) -> None:
        self.weight = LinearWeight(out_features, in_features, parts)
        self.bias = DenseParameter((out_features,), parts.dtype, device=parts.device) if bias else None

    @property
    def input_format(self) -> InputFormat:
        return self.weight.input_format

    def __call__(self, x: LinearInput) -> torch.Tensor:
        return self.weight.apply(x, None if self.bias is None else self.bias.data)


def concatenate_rows(records: Sequence[WeightRecord]) -> WeightRecord:
    """Several records of one scheme as one. Parts are row-ordered, so nothing is dequantized; one record is itself."""
    if len(records) == 1:
        return records[0]
    first = records[0]
    parts = {name: torch.cat([record.parts[name] for record in records]) for name in first.parts}
    return WeightRecord(first.scheme, (sum(record.shape[0] for record in records), *first.shape[1:]), parts)
