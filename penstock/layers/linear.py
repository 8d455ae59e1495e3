"""Linear layers over one or several fused weights. They know no scheme by name and no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from penstock.layers.parameter import DenseParameter, Layer, check_rows
from penstock.layers.parts import LayerParts
from penstock.quantization.linear import LinearMethod, LinearSpec, PreparedWeight
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


class LinearWeight:
    """A matrix [out_features, in_features] behind LinearMethods: one prepared weight per run of equal schemes.

    Fused projections (q, k, v or gate, up) whose parts share a scheme become one multiplication; parts with different
    schemes, as mixed GGUF files have them, keep a method each and are concatenated after it.
    """

    def __init__(self, out_features: int, in_features: int, parts: LayerParts) -> None:
        self.shape = (out_features, in_features)
        self._parts = parts
        self._pieces: tuple[_Piece, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(piece.prepared.nbytes for piece in self._pieces)

    def specs(self, stored: Sequence[StoredPart]) -> tuple[LinearSpec, ...]:
        """The specs that ``load`` will select methods for, known from headers alone: for memory plans and explain."""
        return tuple(
            self._spec(scheme, sum(part.shape[0] for part in run))
            for scheme, run in groupby(stored, key=lambda part: part.scheme)
        )

    def load(self, records: Sequence[WeightRecord], /) -> None:
        check_rows(self.shape, records)
        pieces = []
        for scheme, run in groupby(records, key=lambda record: record.scheme):
            record = concatenate_rows(list(run))
            spec = self._spec(scheme, record.shape[0])
            method = self._parts.linear_method(spec)
            pieces.append(_Piece(method, method.prepare(record, spec)))
        self._pieces = tuple(pieces)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [rows, in_features] -> [rows, out_features]."""
        if len(self._pieces) == 1:
            piece = self._pieces[0]
            return piece.method.apply(piece.prepared, x, bias)
        out = torch.cat([piece.method.apply(piece.prepared, x, None) for piece in self._pieces], dim=-1)
        return out if bias is None else out.add_(bias)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [n] -> the rows [n, in_features]. Embeddings are stored in one piece."""
        (piece,) = self._pieces
        return piece.method.embed(piece.prepared, token_ids)

    def _spec(self, scheme: WeightScheme, rows: int) -> LinearSpec:
        return LinearSpec(
            scheme=scheme,
            out_features=rows,
            in_features=self.shape[1],
            dtype=self._parts.dtype_name,
            platform=self._parts.platform,
        )


class Linear(Layer):
    """``x @ weight.T + bias``; ``out_features`` of several fused projections add up."""

    def __init__(self, in_features: int, out_features: int, parts: LayerParts, *, bias: bool = False) -> None:
        self.weight = LinearWeight(out_features, in_features, parts)
        self.bias = DenseParameter((out_features,), parts.dtype) if bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.apply(x, None if self.bias is None else self.bias.data)


def concatenate_rows(records: Sequence[WeightRecord]) -> WeightRecord:
    """Several records of one scheme as one. Parts are row-ordered, so nothing is dequantized; one record is itself."""
    if len(records) == 1:
        return records[0]
    first = records[0]
    parts = {name: torch.cat([record.parts[name] for record in records]) for name in first.parts}
    return WeightRecord(first.scheme, (sum(record.shape[0] for record in records), *first.shape[1:]), parts)
