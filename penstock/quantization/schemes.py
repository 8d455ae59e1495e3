"""Canonical weight schemes. A checkpoint format ends at the loader; behind it there are only these records.

A dense weight has a scheme named after its stored type and one part,
``values``. A quantized weight is ``value = scale * (code - zero_point) + minimum`` (affine),
``value = scale * codebook[code]`` (codebook) or ``value = scale * code`` with codes that are floats (float), with one
or two scale levels that multiply. All parts keep the row order of the weight, so rows can be cut, permuted and
concatenated without dequantizing. What a kernel wants instead is made from these parts in a method's ``prepare``.

Parts of a quantized weight of shape [rows, columns]; every part is [rows, width]:

    codes        8-bit codes are int8; floats are the bytes of float8 e4m3 values, uint8. Fewer bits are unsigned and
                 packed in bytes: the lowest bits of a byte belong to the first column. 3, 5 and 6 bits are split:
                 codes holds the low 2, 4 and 4 bits ...
    codes_high   ... and this the remaining 1, 1 and 2 bits, packed in the same way.
    scales       float16 or float32, one for each group of the first (coarsest) scale level
    subscales    8-bit integers, one per group of the second level, when there is one
    mins         like scales, for schemes with minimum "min"; its sign is such that it is added
    submins      like subscales, for mins
    signs        codebooks of magnitudes: one bit per column, set when the value is negative

It does not know files, layers or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ScaleLevel:
    """One level of scales: type of an entry ("float", "uint", "int" of ``bits``) and the weights of a row it covers,
    0 for the whole row.

    ``bits`` are the significant ones; integers of fewer than 8 are stored one per byte.
    """

    kind: str
    bits: int
    group_size: int

    def groups(self, columns: int) -> int:
        """Entries of a row with so many columns."""
        return columns // self.group_size if self.group_size else 1


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the codes of a weight become values. ``name`` is unique, e.g. "q4_1"; see ``SCHEMES``."""

    name: str
    code_bits: float  # stored bits per code; 16 or 32 for dense floats
    kind: str = "affine"  # "dense" | "affine" | "codebook" | "float"
    scales: tuple[ScaleLevel, ...] = ()
    minimum: str = "none"  # "none" | "offset" (constant zero point) | "min" (its own scale levels, like the scales')
    activation: str = "dense"  # what methods multiply with: "dense", or a key of ``DYNAMIC_ACTIVATIONS``
    zero_point: int = 0  # with minimum "offset"
    codebook: str = ""  # name in ``codebooks``, with kind "codebook"

    @property
    def column_multiple(self) -> int:
        """The number of columns is a multiple of this."""
        return (self.scales[0].group_size if self.scales else 0) or 1


# Activations that the weights were made for: float8 e4m3 with a scale of their own for every row, or for every 128
# columns of a row, found as they come. A permission: dense activations are nearer to the model that was quantized.
DYNAMIC_ACTIVATIONS: Mapping[str, int] = {"fp8_row": 0, "fp8_128": 128}  # columns that share a scale, 0 for all

F32 = WeightScheme("f32", 32, kind="dense")
F16 = WeightScheme("f16", 16, kind="dense")
BF16 = WeightScheme("bf16", 16, kind="dense")

_ROW_SCALE = (ScaleLevel("float", 32, 0),)
_HALF_32 = (ScaleLevel("float", 16, 32),)


def _super(kind: str, bits: int, group_size: int) -> tuple[ScaleLevel, ...]:
    return (ScaleLevel("float", 16, 256), ScaleLevel(kind, bits, group_size))


SCHEMES: Mapping[str, WeightScheme] = {
    scheme.name: scheme
    for scheme in (
        F32,
        F16,
        BF16,
        WeightScheme("q8_0", 8, scales=_HALF_32),
        WeightScheme("q4_0", 4, scales=_HALF_32, minimum="offset", zero_point=8),
        WeightScheme("q4_1", 4, scales=_HALF_32, minimum="min"),
        WeightScheme("q5_0", 5, scales=_HALF_32, minimum="offset", zero_point=16),
        WeightScheme("q5_1", 5, scales=_HALF_32, minimum="min"),
        WeightScheme("q2_k", 2, scales=_super("uint", 4, 16), minimum="min"),
        WeightScheme("q3_k", 3, scales=_super("int", 6, 16), minimum="offset", zero_point=4),
        WeightScheme("q4_k", 4, scales=_super("uint", 6, 32), minimum="min"),
        WeightScheme("q5_k", 5, scales=_super("uint", 6, 32), minimum="min"),
        WeightScheme("q6_k", 6, scales=_super("int", 8, 16), minimum="offset", zero_point=32),
        WeightScheme("iq2_xxs", 2, kind="codebook", scales=_super("uint", 5, 32), codebook="iq2_xxs"),
        # A scale for a whole matrix or a block of rows stands at each of these rows, so that rows can be cut apart.
        WeightScheme("fp8_row", 8, kind="float", scales=_ROW_SCALE, activation="fp8_row"),
        WeightScheme("fp8_row_only", 8, kind="float", scales=_ROW_SCALE),  # weights alone, not activations
        WeightScheme("fp8_block", 8, kind="float", scales=(ScaleLevel("float", 32, 128),), activation="fp8_128"),
    )
}

_CODE_PLANES: Mapping[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}

_SCALE_DTYPES = {  # by kind, and whether it has 32 bits
    ("float", False): torch.float16,
    ("float", True): torch.float32,
    ("int", False): torch.int8,
    ("uint", False): torch.uint8,
}


def code_planes(scheme: WeightScheme) -> tuple[int, ...]:
    """Bits per column in ``codes`` and, if there is a second entry, in ``codes_high``."""
    return (1,) if scheme.kind == "codebook" else _CODE_PLANES[int(scheme.code_bits)]


def part_layout(scheme: WeightScheme, columns: int) -> dict[str, tuple[torch.dtype, int]]:
    """Name -> (dtype, width) of every part of a quantized weight with so many columns."""
    planes = code_planes(scheme)
    signed = planes[0] == 8 and scheme.kind == "affine"
    layout = {"codes": (torch.int8 if signed else torch.uint8, columns * planes[0] // 8)}
    if len(planes) > 1:
        layout["codes_high"] = (torch.uint8, columns * planes[1] // 8)
    if scheme.kind == "codebook":
        layout["signs"] = (torch.uint8, columns // 8)
    for names in (
        (("scales", "subscales"), ("mins", "submins")) if scheme.minimum == "min" else (("scales", "subscales"),)
    ):
        for name, level in zip(names, scheme.scales, strict=False):
            layout[name] = (_SCALE_DTYPES[level.kind, level.bits == 32], level.groups(columns))
    return layout


def record_bytes(scheme: WeightScheme, shape: tuple[int, ...]) -> int:
    """``WeightRecord.nbytes`` of a quantized weight, from its shape alone."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return sum(rows * width * dtype.itemsize for dtype, width in part_layout(scheme, shape[-1]).values())


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


def dense_scheme(dtype: torch.dtype) -> WeightScheme:
    """The scheme of plain values. Rarer types than the three (float64, integers) count as float32, which methods that
    take it convert them to."""
    return {torch.float16: F16, torch.bfloat16: BF16}.get(dtype, F32)


def dense_record(values: torch.Tensor) -> WeightRecord:
    return WeightRecord(dense_scheme(values.dtype), tuple(values.shape), {"values": values})
