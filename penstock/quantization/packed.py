"""The one form that native kernels multiply: unsigned codes, one scale level, a zero point or minima.

Schemes with a form of their own in a file are re-expressed in it, and always exactly: two scale levels become their
product, which float32 holds (11 bits of a float16 times at most 8 of an integer), and a codebook of signed magnitudes
becomes their integers. It does not know the layout that a kernel wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.quantization.codebooks import codebook
from penstock.quantization.dequantize import natural_codes, scale_levels, unpack_bits
from penstock.quantization.schemes import WeightRecord, WeightScheme

CODE_BITS = (4, 5, 6, 8)  # that kernels unpack; fewer are widened to the next
SIGNED = 128  # zero point of codes that were signed bytes
CODEBOOK_STEP = 8  # codebook magnitudes are eighths


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedForm:
    """value = scale * (code - zero_point) + minimum; codes of ``code_bits``, a scale (and a minimum, if ``has_min``) of
    ``scale_bits`` for every ``group_size`` columns."""

    code_bits: int
    group_size: int
    scale_bits: int
    zero_point: int
    has_min: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedParts:
    """codes uint8 [rows, columns], one per byte; scales and mins [rows, groups], float16 or float32."""

    codes: torch.Tensor
    scales: torch.Tensor
    mins: torch.Tensor | None


def packed_form(scheme: WeightScheme) -> PackedForm:
    """How a quantized scheme is expressed."""
    signed = scheme.kind == "codebook" or scheme.code_bits == 8
    return PackedForm(
        code_bits=8 if signed else next(bits for bits in CODE_BITS if bits >= scheme.code_bits),
        group_size=scheme.scales[-1].group_size,
        scale_bits=16 if len(scheme.scales) == 1 else 32,
        zero_point=SIGNED if signed else scheme.zero_point,
        has_min=scheme.minimum == "min",
    )


def packed_parts(record: WeightRecord) -> PackedParts:
    """The parts of a quantized record in its ``packed_form``."""
    scales = _scales(record, "scales", "subscales")
    if record.scheme.kind == "codebook":
        return PackedParts(codes=_codebook_codes(record), scales=scales / CODEBOOK_STEP, mins=None)
    codes = natural_codes(record)
    if codes.dtype is torch.int8:
        codes = codes.view(torch.uint8) ^ SIGNED
    mins = _scales(record, "mins", "submins") if record.scheme.minimum == "min" else None
    return PackedParts(codes=codes, scales=scales, mins=mins)


def _scales(record: WeightRecord, coarse: str, fine: str) -> torch.Tensor:
    return scale_levels(record, coarse, fine) if fine in record.parts else record.parts[coarse]


def _codebook_codes(record: WeightRecord) -> torch.Tensor:
    """Magnitudes times 8, with their signs, as unsigned bytes around the zero point."""
    points = (codebook(record.scheme.codebook) * CODEBOOK_STEP).to(torch.int16)
    magnitudes = points[record.parts["codes"].long()].flatten(-2)
    negative = unpack_bits(record.parts["signs"].contiguous(), 1).bool()
    return (torch.where(negative, -magnitudes, magnitudes) + SIGNED).to(torch.uint8)
