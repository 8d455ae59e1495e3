"""Quantization of activations on the extension."""

from __future__ import annotations

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows
from penstock.kernels.native.extension import address, extension, matrix, row_stride
from penstock.kernels.native.memory import empty


def empty_quantized(rows: int, size: int) -> QuantizedRows:
    """Memory for quantized rows. Raises ValueError for rows that are not whole blocks."""
    if size % BLOCK:
        raise ValueError(f"rows of {size} columns are not made of blocks of {BLOCK}")
    blocks = (rows, size // BLOCK)
    codes, scales = empty((rows, size), torch.int8), empty(blocks, torch.float32)
    return QuantizedRows(codes, scales, empty(blocks, torch.int8), empty(blocks, torch.int32))


def addresses(out: QuantizedRows) -> tuple[int, int, int, int]:
    """Where the kernels write, in their order of arguments."""
    return out.codes.data_ptr(), out.scales.data_ptr(), out.zeros.data_ptr(), out.sums.data_ptr()


def quantize_rows(isa: int, x: torch.Tensor) -> QuantizedRows:
    """See ``reference.quantize_rows``. x float32 [rows, n] with contiguous rows."""
    x = matrix(x)
    rows, size = x.shape
    out = empty_quantized(rows, size)
    extension().quantize_rows(isa, address(x, torch.float32), rows, size, row_stride(x), *addresses(out))
    return out
