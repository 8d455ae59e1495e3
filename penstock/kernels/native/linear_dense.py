"""Linear layers with a dense weight on the extension: bfloat16, float16 or float32, packed once after load.

Products are summed in float32, for every output in one order: a row's result is the same bits alone and in any batch.
Knows no layer and no quantized weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from penstock.kernels.native.extension import address, extension, row_stride
from penstock.kernels.native.memory import empty
from penstock.kernels.pages import WEIGHTS

# The numbers of native/linear_dense/linear_dense.hpp.
FORMATS: Mapping[torch.dtype, int] = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


@dataclass(frozen=True, slots=True)
class PackedDense:
    """A weight [out_features, in_features] of ``dtype`` in the layout of one instruction set. ``data`` is uint8."""

    data: torch.Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype
    isa: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def packed_dense_bytes(isa: int, out_features: int, in_features: int, dtype: torch.dtype) -> int:
    """Memory of the packed weight. Raises ValueError when the instruction set has no kernels for the type."""
    size: int = extension().dense_packed_bytes(isa, FORMATS[dtype], out_features, in_features)
    return size


def pack_dense(isa: int, values: torch.Tensor) -> PackedDense:
    """values [out_features, in_features] of one of FORMATS, contiguous rows."""
    outs, cols = values.shape
    data = WEIGHTS.take(packed_dense_bytes(isa, outs, cols, values.dtype))
    extension().pack_dense(
        isa, FORMATS[values.dtype], values.data_ptr(), outs, cols, row_stride(values), data.data_ptr()
    )
    return PackedDense(data, outs, cols, values.dtype, isa)


def linear_dense(
    isa: int,
    x: torch.Tensor,
    weight: PackedDense,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``reference.linear``, and ``reference.linear_bf16`` for a bfloat16 weight, which rounds x.

    x float32 [rows, in_features] with contiguous rows, bias float32 [out_features] or None -> float32 [rows,
    out_features], written to ``out`` where it is given: some columns of a wider result, for example.
    """
    rows = _rows(isa, x, weight)
    if out is None:
        out = empty((rows, weight.out_features), torch.float32)
    elif tuple(out.shape) != (rows, weight.out_features):
        raise ValueError(f"a result [{rows}, {weight.out_features}] is needed, found {tuple(out.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.out_features,):
        raise ValueError(f"a bias of {weight.out_features} outputs is needed, found {tuple(bias.shape)}")
    if rows:
        workspace = _workspace(weight, rows)
        extension().linear_dense(
            isa, FORMATS[weight.dtype], address(x, torch.float32), rows, weight.in_features, row_stride(x),
            weight.data.data_ptr(), 0 if bias is None else address(bias.contiguous(), torch.float32),
            weight.out_features, workspace.data_ptr(), address(out, torch.float32), row_stride(out),
        )  # fmt: skip
    return out


def linear_dense_argmax(isa: int, x: torch.Tensor, weight: PackedDense) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.argmax`` of ``linear_dense(isa, x, weight)``, which is not stored: (int64 [rows], float32 [rows])."""
    rows = _rows(isa, x, weight)
    ids, values = empty((rows,), torch.int64), empty((rows,), torch.float32)
    if rows:
        workspace = _workspace(weight, rows, argmax_outs=weight.out_features)
        extension().dense_argmax(
            isa, FORMATS[weight.dtype], address(x, torch.float32), rows, weight.in_features, row_stride(x),
            weight.data.data_ptr(), weight.out_features, workspace.data_ptr(), ids.data_ptr(), values.data_ptr(),
        )  # fmt: skip
    return ids, values


def embedding_dense(isa: int, weight: PackedDense, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of the weight: token_ids int64 [n], contiguous -> float32 [n, in_features]. A row of NaN for an id that the
    weight does not have."""
    _check(isa, weight)
    rows = token_ids.shape[0]
    out = empty((rows, weight.in_features), torch.float32)
    if token_ids.stride(0) != 1 and rows > 1:
        raise ValueError("token ids must be contiguous")
    if rows:
        extension().embed_dense(
            isa, FORMATS[weight.dtype], weight.data.data_ptr(), weight.out_features, weight.in_features,
            address(token_ids, torch.int64), rows, out.data_ptr(),
        )  # fmt: skip
    return out


def _check(isa: int, weight: PackedDense) -> None:
    if weight.isa != isa:
        raise ValueError(f"the weight was packed for instruction set {weight.isa}, not {isa}")


def _rows(isa: int, x: torch.Tensor, weight: PackedDense) -> int:
    _check(isa, weight)
    if x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"activations [rows, {weight.in_features}] are needed, found {tuple(x.shape)}")
    return x.shape[0]


def _workspace(weight: PackedDense, rows: int, argmax_outs: int = 0) -> torch.Tensor:
    size = extension().dense_workspace(weight.isa, FORMATS[weight.dtype], rows, weight.in_features, argmax_outs)
    return empty((size,), torch.uint8)
