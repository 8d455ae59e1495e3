"""Linear layers with a quantized weight on the extension: int4 to int8 codes times int8 activations, packed after load.

Dots of blocks are exact integers and their products with scales are added in one order for every output: a row's result
is the same bits alone and in any batch. The numerics and the packed layout are stated in ``native/linear/linear.hpp``.
Knows no scheme and no layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows
from penstock.kernels.native.extension import address, extension, row_stride
from penstock.kernels.native.memory import empty

CODE_BITS = (4, 5, 6, 8)
# Outputs that are packed together. Slices of whole tiles, packed alone and put one behind the other, are the weight.
TILE = 16
_SCALE_TYPES = {16: torch.float16, 32: torch.float32}
_WeightTuple = tuple[int, int, int, int, int, int, bool, int]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """value = scale * (code - zero_point) + minimum, in the layout of one instruction set. ``data`` is uint8."""

    data: torch.Tensor
    out_features: int
    in_features: int
    code_bits: int
    group_size: int
    scale_bits: int
    has_min: bool
    zero_point: int
    isa: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def packed_bytes(
    isa: int,
    out_features: int,
    in_features: int,
    *,
    code_bits: int,
    group_size: int,
    scale_bits: int,
    has_min: bool,
) -> int:
    """Memory of the packed weight. Raises ValueError for a shape or type that has no kernel."""
    if code_bits not in CODE_BITS or scale_bits not in _SCALE_TYPES:
        raise ValueError(f"codes of {code_bits} bits with scales of {scale_bits} have no kernel")
    if in_features % BLOCK:
        raise ValueError(f"columns come in blocks of {BLOCK}, found {in_features}")
    if in_features and (in_features % group_size or (group_size != BLOCK // 2 and group_size % BLOCK)):
        raise ValueError(f"groups have {BLOCK // 2} columns or a multiple of {BLOCK}, found {group_size}")
    size: int = extension().packed_bytes(
        (0, out_features, in_features, code_bits, group_size, scale_bits, has_min, 0)
    )  # fmt: skip
    return size


def pack_linear(
    isa: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    mins: torch.Tensor | None,
    zero_point: int,
    code_bits: int,
) -> PackedWeight:
    """codes uint8 [out_features, in_features], each below 2 ** code_bits; scales and mins float16 or float32
    [out_features, groups]; every group has in_features / groups columns. See ``reference.linear_quantized``."""
    outs, cols = codes.shape
    groups = scales.shape[1]
    if scales.shape[0] != outs or (mins is not None and (mins.shape != scales.shape or mins.dtype != scales.dtype)):
        raise ValueError("scales and minima of the same shape and type are needed for every output")
    if groups == 0 or cols % groups:
        raise ValueError(f"{cols} columns do not make {groups} equal groups")
    group_size, scale_bits, has_min = cols // groups, scales.dtype.itemsize * 8, mins is not None
    size = packed_bytes(
        isa, outs, cols, code_bits=code_bits, group_size=group_size, scale_bits=scale_bits, has_min=has_min
    )
    codes, scales = codes.contiguous(), scales.contiguous()
    mins = None if mins is None else mins.contiguous()
    data = torch.empty(size, dtype=torch.uint8)
    weight = PackedWeight(data, outs, cols, code_bits, group_size, scale_bits, has_min, zero_point, isa)
    extension().pack_linear(
        isa, address(codes, torch.uint8), address(scales, _SCALE_TYPES[scale_bits]),
        0 if mins is None else mins.data_ptr(), data.data_ptr(), _weight(isa, weight),
    )  # fmt: skip
    return weight


def linear_quantized(
    isa: int,
    x: QuantizedRows,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``reference.linear_quantized``. x [rows, in_features], bias float32 [out_features] or None -> float32 [rows,
    out_features]. ``out``: where to write instead, float32 with contiguous columns and rows any distance apart."""
    rows = x.shape[0]
    if out is None:
        out = empty((rows, weight.out_features), torch.float32)
    if tuple(out.shape) != (rows, weight.out_features):
        raise ValueError(f"results are [{rows}, {weight.out_features}], found {tuple(out.shape)} for them")
    if bias is not None and (tuple(bias.shape) != (weight.out_features,) or not bias.is_contiguous()):
        raise ValueError(f"a contiguous bias of {weight.out_features} outputs is needed, found {tuple(bias.shape)}")
    if out.numel():
        extension().linear_quantized(
            isa, _rows(x, weight), _weight(isa, weight), 0 if bias is None else address(bias, torch.float32),
            address(out, torch.float32), row_stride(out),
        )  # fmt: skip
    return out


def linear_quantized_argmax(isa: int, x: QuantizedRows, weight: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.argmax`` of ``linear_quantized(isa, x, weight)``, none of which is stored: (int64 [rows], float32
    [rows])."""
    rows = x.shape[0]
    ids, largest = empty((rows,), torch.int64), empty((rows,), torch.float32)
    if rows:
        chunks = -(-weight.out_features // extension().ARGMAX_CHUNK)
        chunk_ids, chunk_values = empty((chunks, rows), torch.int64), empty((chunks, rows), torch.float32)
        extension().linear_quantized_argmax(
            isa, _rows(x, weight), _weight(isa, weight), chunk_values.data_ptr(), chunk_ids.data_ptr(),
            largest.data_ptr(), ids.data_ptr(),
        )  # fmt: skip
    return ids, largest


def embedding_quantized(isa: int, weight: PackedWeight, token_ids: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Rows of the weight times ``scale``: token_ids int64 [n], contiguous -> float32 [n, in_features]. A row of NaN for
    an id that the weight does not have."""
    rows = token_ids.shape[0]
    out = empty((rows, weight.in_features), torch.float32)
    if rows > 1 and token_ids.stride(0) != 1:
        raise ValueError("token ids must be contiguous")
    if rows:
        ids = address(token_ids, torch.int64)
        extension().embedding_quantized(isa, _weight(isa, weight), ids, rows, scale, out.data_ptr())
    return out


def _weight(isa: int, weight: PackedWeight) -> _WeightTuple:
    if weight.isa != isa:
        raise ValueError(f"the weight was packed for instruction set {weight.isa}, not {isa}")
    return (
        weight.data.data_ptr(), weight.out_features, weight.in_features, weight.code_bits, weight.group_size,
        weight.scale_bits, weight.has_min, weight.zero_point,
    )  # fmt: skip


def _rows(x: QuantizedRows, weight: PackedWeight) -> tuple[int, int, int, int, int]:
    if len(x.shape) != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"activations [rows, {weight.in_features}] are needed, found {tuple(x.shape)}")
    if not all(part.is_contiguous() for part in (x.codes, x.scales, x.zeros, x.sums)):
        raise ValueError("quantized rows must be contiguous")
    return (
        address(x.codes, torch.int8), address(x.scales, torch.float32), address(x.zeros, torch.int8),
        address(x.sums, torch.int32), x.shape[0],
    )  # fmt: skip
