"""Reference of the multiplications with a dense weight. Quantized weights are dequantized before they come here."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``. x [rows, n], weight [m, n], bias [m] or None -> [rows, m]; float32, in x's type."""
    out = x.to(torch.float32) @ weight.to(torch.float32).T
    return (out if bias is None else out + bias.to(torch.float32)).to(x.dtype)


def linear_bf16(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``linear`` of x rounded to bfloat16 and a bfloat16 weight: exact products, sums in float32. x float32 [rows, n],
    weight [m, n], bias float32 [m] or None -> float32 [rows, m]."""
    return linear(x.to(torch.bfloat16).to(torch.float32), weight, bias)


def argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of every row and where it is: the first of equal ones, a NaN before any number.

    logits [rows, m] -> (int64 [rows], values [rows] in logits' type).
    """
    places = []
    for row in logits.tolist():
        unknown = [i for i, value in enumerate(row) if value != value]
        places.append(unknown[0] if unknown else row.index(max(row)))
    ids = torch.tensor(places, dtype=torch.int64)
    return ids, logits.gather(1, ids[:, None])[:, 0]


def embedding(weight: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix. weight [m, n], token_ids [rows] int64 -> [rows, n] in the weight's type."""
    return torch.stack([weight[i] for i in token_ids.tolist()]) if len(token_ids) else weight[:0]
