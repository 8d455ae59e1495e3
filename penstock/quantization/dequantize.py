"""From a weight record to floats, for every scheme: the plain meaning of the canonical parts.

It does not know formats or methods. The arithmetic is float32 with one rounding per operation, in the order
(scale * subscale) * code + (minimum * subminimum), so results agree bit for bit with the formats' own definition. Codes
that are floats become float32, which is exact, and are multiplied with their scale.
"""

from __future__ import annotations

import torch

from penstock.quantization.codebooks import codebook
from penstock.quantization.records import cut_rows
from penstock.quantization.schemes import WeightRecord, code_planes

# Values in flight: torch's grain size, so that no operation starts its threads. One thread in its own cache converts
# about a gigavalue per second; threads that wait for each other at every small operation took 0.2 s on two idle cores
# and 3 to 29 s on busy ones for SmolLM2's 134 million values (one thread: 0.2 and 0.5 s).
_CHUNK_VALUES = 1 << 15
_DEVICE_CHUNK_VALUES = 1 << 24  # an accelerator wants few, large operations; each takes some times this in memory


def reference_dequantize(record: WeightRecord, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as a dense tensor of the record's shape. Values are computed in float32, then rounded to ``dtype``.

    A dense record of that type is returned as it is (perhaps a view of a mapped file), not copied. Values are computed
    on the device of the parts, with the same bits on each.
    """
    if record.scheme.kind == "dense":
        return record.parts["values"].to(dtype)
    device = record.parts["codes"].device
    out = torch.empty(record.shape, dtype=dtype, device=device)
    columns = record.shape[-1]
    values = _CHUNK_VALUES if device.type == "cpu" else _DEVICE_CHUNK_VALUES
    rows = max(1, values // max(1, out[:1].numel()))
    convert = _CONVERT[record.scheme.kind]
    for start in range(0, record.shape[0], rows):
        chunk = cut_rows(record, start, min(start + rows, record.shape[0]))
        out[start : start + rows] = convert(chunk, columns)
    return out


def unpack_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., n] bytes of ``bits``-bit codes -> [..., n * 8 / bits] codes, one uint8 each (8-bit codes unchanged)."""
    if bits == 8:
        return packed
    if bits == 4:  # by far the commonest: spread both nibbles of a byte with two shifts
        wide = packed.to(torch.int16)
        return ((wide & 0x0F) | ((wide & 0xF0) << 4)).view(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def natural_codes(record: WeightRecord) -> torch.Tensor:
    """The codes of an affine record, one per byte: [rows, columns] int8 when they have 8 bits, else uint8."""
    planes = code_planes(record.scheme)
    codes = unpack_bits(record.parts["codes"].contiguous(), planes[0])
    if len(planes) > 1:
        codes = codes | (unpack_bits(record.parts["codes_high"].contiguous(), planes[1]) << planes[0])
    return codes


def _affine_values(record: WeightRecord, columns: int) -> torch.Tensor:
    scheme = record.scheme
    values = natural_codes(record).to(torch.float32)
    if scheme.zero_point:
        values -= scheme.zero_point
    scales = scale_levels(record, "scales", "subscales")
    grouped = values.view(*values.shape[:-1], scales.shape[-1], columns // scales.shape[-1])
    grouped *= scales[..., None]
    if scheme.minimum == "min":
        grouped += scale_levels(record, "mins", "submins")[..., None]
    return values


def _codebook_values(record: WeightRecord, columns: int) -> torch.Tensor:
    scheme, parts = record.scheme, record.parts
    codes = parts["codes"].long()
    values = codebook(scheme.codebook).to(codes.device)[codes].flatten(-2)
    negative = unpack_bits(parts["signs"].contiguous(), 1).bool()
    values = torch.where(negative, -values, values)
    scales = scale_levels(record, "scales", "subscales")
    grouped = values.view(*values.shape[:-1], scales.shape[-1], columns // scales.shape[-1])
    grouped *= scales[..., None]
    return values


def _float_values(record: WeightRecord, columns: int) -> torch.Tensor:
    scales = record.parts["scales"]
    values = record.parts["codes"].contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    grouped = values.view(*values.shape[:-1], scales.shape[-1], columns // scales.shape[-1])
    grouped *= scales[..., None]
    return values


_CONVERT = {"affine": _affine_values, "codebook": _codebook_values, "float": _float_values}


def scale_levels(record: WeightRecord, coarse: str, fine: str) -> torch.Tensor:
    """The product of the scale levels, one float32 per group of the finest."""
    outer = record.parts[coarse].to(torch.float32)
    if fine not in record.parts:
        return outer
    inner = record.parts[fine].to(torch.float32)
    return (inner.view(*outer.shape, -1) * outer[..., None]).view(inner.shape)


def dense_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Size of a dense copy."""
    return torch.Size(shape).numel() * dtype.itemsize
