"""Reference of float8 e4m3 values with scales, and of multiplications with weights of them."""

from __future__ import annotations

import torch

from penstock.kernels.reference.linear import linear

LARGEST = 448.0
LEAST = 2.0**-100  # taken for the largest of a group of zeros, so that its scale is a number


def quantize_fp8(x: torch.Tensor, group: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as float8 e4m3 with a scale for every ``group`` columns, or for all of them if it is 0, which brings their
    largest to 448. x [rows, n] -> (uint8 bytes [rows, n], float32 scales [rows, n / group]).

    A group with a value that is not finite has codes 0 and a scale that is NaN, so that whatever is computed from it is
    NaN.
    """
    size = group or x.shape[-1]
    values = x.to(torch.float32).reshape(*x.shape[:-1], x.shape[-1] // size, size)
    largest = values.abs().amax(-1, keepdim=True).clamp_min(LEAST)
    finite = largest < float("inf")
    bound = torch.full_like(largest, LARGEST)  # torch divides tensors alone with one rounding
    codes = (values * (bound / largest)).where(finite, 0.0).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    scales = (largest / bound).where(finite, float("nan"))
    return codes.view(torch.uint8).flatten(-2), scales[..., 0]


def dequantize_fp8(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``code * scale``. codes uint8 [m, n], scales [m, groups] -> float32 [m, n]."""
    values = codes.view(torch.float8_e4m3fn).to(torch.float32).view(*scales.shape, codes.shape[-1] // scales.shape[-1])
    return (values * scales.unsqueeze(-1)).flatten(-2)


def linear_fp8(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``linear`` with the weight that the bytes [m, n] with their scales [m, groups] stand for."""
    return linear(x, dequantize_fp8(codes, scales), bias)


def linear_fp8_dynamic(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``linear_fp8`` of x in float8, quantized in groups of as many columns as the weight's."""
    groups = scales.shape[-1]
    rounded = dequantize_fp8(*quantize_fp8(x, 0 if groups == 1 else x.shape[-1] // groups))
    return linear_fp8(rounded, codes, scales, bias).to(x.dtype)
