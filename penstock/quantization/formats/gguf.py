"""GGUF tensor types: from the file's interleaved blocks to canonical parts.

It does not know the file: it gets the bytes of one tensor. Conversion only moves bits, it never computes a float, so
nothing is lost. Layouts are those of ggml's block structures (ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.quantization.formats.ggml_types import GGML_TYPES_BY_NAME, BlockSize
from penstock.quantization.schemes import SCHEMES, WeightRecord, WeightScheme, dense_record, dense_scheme

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Parts = dict[str, Array]


def _spread(packed: Bytes, *shifts: int) -> Array:
    """[..., k, w] bytes -> [..., k, len(shifts), w]: bit fields that lie ``w`` columns apart in the weight."""
    return packed[..., None, :] >> np.array(shifts, np.uint8)[:, None]


def _pack(codes: Array, bits: int) -> Array:
    """[rows, n] codes, one per byte -> [rows, n * bits / 8], the first column lowest."""
    if bits == 1:
        return np.asarray(np.packbits(codes, axis=-1, bitorder="little"))
    if bits == 4:
        pairs = np.ascontiguousarray(codes).view("<u2")
        return np.asarray(pairs | (pairs >> 4), dtype=np.uint16).astype(np.uint8)
    quads = np.ascontiguousarray(codes).view("<u4")
    spread = quads | (quads >> 6) | (quads >> 12) | (quads >> 18)
    return np.asarray(spread, dtype=np.uint32).astype(np.uint8)


def _half(blocks: Bytes, start: int) -> Array:
    """[rows, blocks, size] -> the float16 at byte ``start`` of each block, [rows, blocks]."""
    halves: Array = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")
    return halves[..., 0]


def _flat(columns: Array) -> Array:
    return columns.reshape(columns.shape[0], -1)


def _nibbles(quants: Bytes, width: int) -> Array:
    """Nibbles of runs of ``width`` bytes: all low ones of a run come first, then all high ones."""
    return _flat(_spread(quants.reshape(*quants.shape[:2], -1, width), 0, 4) & 0x0F)


def _q8_0(b: Bytes) -> Parts:
    return {"codes": _flat(b[..., 2:].view(np.int8)), "scales": _half(b, 0)}


def _q4_0(b: Bytes) -> Parts:
    return {"codes": _pack(_nibbles(b[..., 2:], 16), 4), "scales": _half(b, 0)}


def _q4_1(b: Bytes) -> Parts:
    return {"codes": _pack(_nibbles(b[..., 4:], 16), 4), "scales": _half(b, 0), "mins": _half(b, 2)}


def _q5_0(b: Bytes) -> Parts:
    return {"codes": _pack(_nibbles(b[..., 6:], 16), 4), "codes_high": _flat(b[..., 2:6]), "scales": _half(b, 0)}


def _q5_1(b: Bytes) -> Parts:
    codes = _pack(_nibbles(b[..., 8:], 16), 4)
    return {"codes": codes, "codes_high": _flat(b[..., 4:8]), "scales": _half(b, 0), "mins": _half(b, 2)}


def _q2_k(b: Bytes) -> Parts:
    codes = _flat(_spread(b[..., 16:80].reshape(*b.shape[:2], 2, 32), 0, 2, 4, 6) & 3)
    return {
        "codes": _pack(codes, 2),
        "scales": _half(b, 80),
        "subscales": _flat(b[..., :16] & 0x0F),
        "mins": -_half(b, 82),
        "submins": _flat(b[..., :16] >> 4),
    }


def _q3_k(b: Bytes) -> Parts:
    low = _flat(_spread(b[..., 32:96].reshape(*b.shape[:2], 2, 32), 0, 2, 4, 6) & 3)
    high = _flat(_spread(b[..., None, :32], *range(8)) & 1)
    # Sixteen 6-bit scales: low nibbles in 8 bytes, then the upper pairs of bits in 4 bytes.
    lower = _flat(_spread(b[..., None, 96:104], 0, 4) & 0x0F)
    upper = _flat(_spread(b[..., None, 104:108], 0, 2, 4, 6) & 3)
    subscales = (lower | (upper << 4)).view(np.int8) - np.int8(32)
    return {"codes": _pack(low, 2), "codes_high": _pack(high, 1), "scales": _half(b, 108), "subscales": subscales}


def _k_scales(packed: Bytes) -> tuple[Array, Array]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minima: four of each whole, four split over two places."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)], axis=-1)
    minima = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], axis=-1)
    return _flat(scales), _flat(minima)


def _q4_k(b: Bytes) -> Parts:
    subscales, submins = _k_scales(b[..., 4:16])
    return {
        "codes": _pack(_nibbles(b[..., 16:], 32), 4),
        "scales": _half(b, 0),
        "subscales": subscales,
        "mins": -_half(b, 2),
        "submins": submins,
    }


def _q5_k(b: Bytes) -> Parts:
    subscales, submins = _k_scales(b[..., 4:16])
    return {
        "codes": _pack(_nibbles(b[..., 48:], 32), 4),
        "codes_high": _pack(_flat(_spread(b[..., None, 16:48], *range(8)) & 1), 1),
        "scales": _half(b, 0),
        "subscales": subscales,
        "mins": -_half(b, 2),
        "submins": submins,
    }


def _q6_k(b: Bytes) -> Parts:
    high = _flat(_spread(b[..., 128:192].reshape(*b.shape[:2], 2, 32), 0, 2, 4, 6) & 3)
    return {
        "codes": _pack(_nibbles(b[..., :128], 64), 4),
        "codes_high": _pack(high, 2),
        "scales": _half(b, 208),
        "subscales": _flat(b[..., 192:208].view(np.int8)),
    }


def _iq2_xxs(b: Bytes) -> Parts:
    # Per 32 columns: four codebook indices, then a word of four 7-bit sign patterns and a 4-bit scale.
    groups = np.ascontiguousarray(b[..., 2:]).reshape(*b.shape[:2], 8, 8)
    words = np.ascontiguousarray(groups[..., 4:]).view("<u4")
    seven = ((words >> np.array([0, 7, 14, 21], np.uint32)) & 0x7F).astype(np.uint8)
    # The eighth sign is the parity of the seven: the number of negative values is always even.
    parity = seven ^ (seven >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return {
        "codes": _flat(groups[..., :4]),
        "signs": _flat(seven | (parity << 7)),
        "scales": _half(b, 0),
        "subscales": _flat(((words >> 28) * 2 + 1).astype(np.uint8)),  # (s + 1/2) / 4, in units of 1/8
    }


@dataclass(frozen=True, slots=True)
class GgufType:
    """A tensor type that can be read: its block in the file, its scheme, and for blocks how to take them apart."""

    name: str
    block: BlockSize
    scheme: WeightScheme
    dtype: torch.dtype | None = None  # of plain values
    take_apart: Callable[[Bytes], Parts] | None = None


def _plain(name: str, dtype: torch.dtype) -> GgufType:
    return GgufType(name, GGML_TYPES_BY_NAME[name], dense_scheme(dtype), dtype=dtype)


def _blocks(name: str, take_apart: Callable[[Bytes], Parts]) -> GgufType:
    return GgufType(name, GGML_TYPES_BY_NAME[name], SCHEMES[name.lower()], take_apart=take_apart)


GGUF_TYPES: Mapping[str, GgufType] = {
    kind.name: kind
    for kind in (
        _plain("F32", torch.float32),
        _plain("F16", torch.float16),
        _plain("BF16", torch.bfloat16),
        _blocks("Q4_0", _q4_0),
        _blocks("Q4_1", _q4_1),
        _blocks("Q5_0", _q5_0),
        _blocks("Q5_1", _q5_1),
        _blocks("Q8_0", _q8_0),
        _blocks("Q2_K", _q2_k),
        _blocks("Q3_K", _q3_k),
        _blocks("Q4_K", _q4_k),
        _blocks("Q5_K", _q5_k),
        _blocks("Q6_K", _q6_k),
        _blocks("IQ2_XXS", _iq2_xxs),
    )
}


def convert_gguf(type_name: str, data: Bytes, shape: tuple[int, ...]) -> WeightRecord:
    """The bytes of one tensor -> its record. ``data`` is writable (torch asks for that), flat, and may be a view of a
    mapped file; plain values stay views of it, everything else is copied.

    Raises KeyError for a type that is not in ``GGUF_TYPES`` and ValueError when shape and size do not fit.
    """
    kind = GGUF_TYPES[type_name]
    if kind.take_apart is None:
        assert kind.dtype is not None
        return dense_record(torch.from_numpy(data).view(kind.dtype).view(shape))
    columns = shape[-1]
    if len(shape) < 2 or columns % kind.block.columns:
        raise ValueError(f"shape {list(shape)} cannot hold {type_name}, whose blocks have {kind.block.columns} columns")
    blocks = data.reshape(-1, columns // kind.block.columns, kind.block.nbytes)
    parts = {
        name: torch.from_numpy(np.ascontiguousarray(part)).view(*shape[:-1], -1)
        for name, part in kind.take_apart(blocks).items()
    }
    return WeightRecord(kind.scheme, shape, parts)
