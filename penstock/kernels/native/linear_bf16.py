"""Linear layers with a bfloat16 weight: the names under which linear methods know ``linear_dense`` of that type."""

from __future__ import annotations

import torch

from penstock.kernels.native.linear_dense import (
    PackedDense,
    embedding_dense,
    linear_dense,
    linear_dense_argmax,
    pack_dense,
    packed_dense_bytes,
)

PackedBf16 = PackedDense
linear_bf16 = linear_dense
linear_bf16_argmax = linear_dense_argmax
embedding_bf16 = embedding_dense


def packed_bf16_bytes(isa: int, out_features: int, in_features: int) -> int:
    return packed_dense_bytes(isa, out_features, in_features, torch.bfloat16)


def pack_bf16(isa: int, values: torch.Tensor) -> PackedBf16:
    """values bfloat16 [out_features, in_features], contiguous rows."""
    if values.dtype is not torch.bfloat16:
        raise TypeError(f"a bfloat16 weight is needed, found {values.dtype}")
    return pack_dense(isa, values)
