"""Sampling on the extension, without sorting the vocabulary."""

from __future__ import annotations

import torch

from penstock.kernels.native.extension import address, extension, row_stride
from penstock.kernels.native.memory import empty


def sample(
    isa: int,
    logits: torch.Tensor,
    temperature: torch.Tensor,
    min_p: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.sample``. logits float32 [rows, vocab] with contiguous rows; the others contiguous [rows].

    Thresholds are found by pivots over the bits of the values, weights are summed in float64 in an order that the row
    alone decides. A row costs one or two passes over its logits and one over those that a cut may keep.
    """
    rows, vocab = logits.shape
    per_row = (temperature, min_p, top_k, top_p, uniforms)
    if any(tuple(t.shape) != (rows,) or not t.is_contiguous() for t in per_row) or not vocab:
        raise ValueError(f"needs contiguous parameters of {rows} rows, found {[tuple(t.shape) for t in per_row]}")
    tokens, finite = empty((rows,), torch.int64), empty((rows,), torch.bool)
    native = extension()
    workspace = empty((native.num_threads(), native.sample_workspace_bytes(vocab)), torch.uint8)
    native.sample(
        isa, address(logits, torch.float32), rows, vocab, row_stride(logits), address(temperature, torch.float32),
        address(min_p, torch.float32), address(top_k, torch.int64), address(top_p, torch.float64),
        address(uniforms, torch.float64), tokens.data_ptr(), finite.data_ptr(), workspace.data_ptr(),
    )  # fmt: skip
    return tokens, finite
