"""Reference of the multiplications with a dense weight. Quantized weights are dequantized before they come here."""

from __future__ import annotations

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows


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

    logits [rows, m] -> (int64 [rows], float32 [rows]).
    """
    places = []
    for row in logits.tolist():
        unknown = [i for i, value in enumerate(row) if value != value]
        places.append(unknown[0] if unknown else row.index(max(row)))
    ids = torch.tensor(places, dtype=torch.int64)
    return ids, logits.gather(1, ids[:, None])[:, 0].to(torch.float32)


def embedding(weight: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix. weight [m, n], token_ids [rows] int64 -> [rows, n] in the weight's type."""
    return torch.stack([weight[i] for i in token_ids.tolist()]) if len(token_ids) else weight[:0]


def dequantize_affine(
    codes: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor | None, zero_point: int
) -> torch.Tensor:
    """``scale * (code - zero_point) + min`` in float64. codes uint8 [m, n], scales and mins [m, groups], groups of n /
    groups columns -> [m, n]."""
    grouped = codes.to(torch.float64).view(*scales.shape, -1) - zero_point
    values = grouped * scales.to(torch.float64).unsqueeze(-1)
    return (values if mins is None else values + mins.to(torch.float64).unsqueeze(-1)).view(codes.shape)


def linear_quantized(
    x: QuantizedRows,
    codes: torch.Tensor,
    scales: torch.Tensor,
    mins: torch.Tensor | None,
    zero_point: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``linear`` of the values that x and the affine weight stand for. Weight as in ``dequantize_affine``, bias float32
    [m] or None -> float32 [rows, m]."""
    blocks = x.codes.to(torch.float64).view(*x.scales.shape, BLOCK) - x.zeros.to(torch.float64).unsqueeze(-1)
    values = (blocks * x.scales.to(torch.float64).unsqueeze(-1)).view(x.codes.shape)
    out = values @ dequantize_affine(codes, scales, mins, zero_point).T
    return (out if bias is None else out + bias.to(torch.float64)).to(torch.float32)


def linear_quantized_argmax(
    x: QuantizedRows, codes: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor | None, zero_point: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``argmax`` of ``linear_quantized``."""
    return argmax(linear_quantized(x, codes, scales, mins, zero_point))


def embedding_quantized(
    codes: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor | None, zero_point: int, token_ids: torch.Tensor
) -> torch.Tensor:
    """``embedding`` of the values of an affine weight -> float32 [rows, n]."""
    return embedding(dequantize_affine(codes, scales, mins, zero_point), token_ids).to(torch.float32)
