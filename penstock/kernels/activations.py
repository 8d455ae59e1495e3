"""Activations as integers, the way quantized linears read them. Knows no op and no weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 32  # columns that share a scale


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows of int8 codes with one scale per block of ``BLOCK`` columns: value = code * scale.

    ``sums`` are those of the codes of each block: what a weight's zero point is multiplied with. A block with a value
    that is not finite has codes 0 and a scale that is not finite, so that whatever is computed from it is NaN.
    """

    codes: torch.Tensor  # int8 [rows, n], n a multiple of BLOCK, contiguous
    scales: torch.Tensor  # float32 [rows, n / BLOCK], contiguous
    sums: torch.Tensor  # int32 [rows, n / BLOCK], contiguous

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """The values that the codes stand for, float32 [rows, n]."""
        blocks = self.codes.view(*self.scales.shape, BLOCK).to(torch.float32)
        return (blocks * self.scales.unsqueeze(-1)).view(self.codes.shape)
