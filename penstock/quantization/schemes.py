"""Canonical weight schemes. A checkpoint format ends at the loader; behind it there are only these records.

A dense weight is the scheme ``DENSE`` with one part, ``values``. A quantized weight is
``value = scale * code + minimum`` (affine) or ``value = scale * codebook[code]`` (codebook), with one or more scale
levels that multiply. All parts keep the row order of the weight, so rows can be cut, permuted and concatenated
without dequantizing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ScaleLevel:
    """One level of scales: type of an entry ("float", "uint", "int" of ``bits``) and the weights of a row it covers."""

    kind: str
    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the codes of a weight become values. ``name`` is unique, e.g. "q4_1"; see ``schemes.SCHEMES``."""

    name: str
    code_bits: float  # stored bits per code; 16 or 32 for dense floats
    kind: str = "affine"  # "dense" | "affine" | "codebook"
    scales: tuple[ScaleLevel, ...] = ()
    minimum: str = "none"  # "none" | "offset" (constant zero point) | "min" (its own scale levels)
    activation: str = "dense"  # what the method multiplies with: "dense", or a dynamic quantization key


DENSE = WeightScheme("dense", 16, kind="dense")


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """One weight as loaded: [rows, columns] for matrices, [n] for vectors, still in its scheme.

    ``parts`` are CPU tensors whose first dimension is rows; they may be views of a memory-mapped file.
    """

    scheme: WeightScheme
    shape: tuple[int, ...]
    parts: Mapping[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts.values())
