"""Reference of the multiplications with a dense weight. Quantized weights are dequantized before they come here."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``. x [rows, n], weight [m, n], bias [m] or None -> [rows, m]; float32, in x's type."""
    out = x.to(torch.float32) @ weight.to(torch.float32).T
    return (out if bias is None else out + bias.to(torch.float32)).to(x.dtype)


def embedding(weight: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix. weight [m, n], token_ids [rows] int64 -> [rows, n] in the weight's type."""
    return torch.stack([weight[i] for i in token_ids.tolist()]) if len(token_ids) else weight[:0]
