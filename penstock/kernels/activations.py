"""Activations as integers, the way quantized linears read them. Knows no op and no weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 32  # columns that share a scale


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows of int8 codes with a scale and a zero per block of ``BLOCK`` columns: value = scale * (code - zero).

    ``sums`` are those of code - zero of each block: what a weight's zero point and minimum are multiplied with. A block
    with a value that is not finite has codes and zero 0 and a scale that is not finite, so that whatever is computed
    from it is NaN.

    The zero is there because outliers have one sign: a few channels behind a norm are several times as large as their
    neighbours, and a range around 0 spends half of its codes on the side where nothing is. For SmolLM2-135M Q4_1 it
    lowers the mean KL divergence from float32 activations from 3.2e-3 to 1.3e-3 nats, and top-1 disagreement from 3.4%
    to 2.1%.
    """

    codes: torch.Tensor  # int8 [rows, n], n a multiple of BLOCK, contiguous
    scales: torch.Tensor  # float32 [rows, n / BLOCK], contiguous
    zeros: torch.Tensor  # int8 [rows, n / BLOCK], contiguous
    sums: torch.Tensor  # int32 [rows, n / BLOCK], contiguous

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """The values that the codes stand for, float32 [rows, n]."""
        blocks = self.codes.view(*self.scales.shape, BLOCK).to(torch.float32) - self.zeros.unsqueeze(-1)
        return (blocks * self.scales.unsqueeze(-1)).view(self.codes.shape)
