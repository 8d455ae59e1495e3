"""One point of a grid, the values that fill it, and how two results are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows

ROWS = (0, 1, 2, 7, 33)

Compare = Callable[[Any, Any, tuple[float, float]], None]


def assert_agrees(found: Any, wanted: Any, tolerance: tuple[float, float]) -> None:
    """Tensors within (relative, absolute) of each other, the absolute part in units of the largest wanted value;
    tuples element by element; quantized rows by code and scale."""
    relative, absolute = tolerance
    if isinstance(wanted, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_agrees(one, other, tolerance)
    elif isinstance(wanted, QuantizedRows):
        _assert_quantized_agree(found, wanted, relative)
    else:
        sizes = wanted.to(torch.float64).abs().nan_to_num(0.0, posinf=0.0)
        scale = max(1.0, sizes.max().item()) if wanted.numel() else 1.0
        torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute * scale, equal_nan=True)


def _assert_quantized_agree(found: QuantizedRows, wanted: QuantizedRows, relative: float) -> None:
    """A value next to the middle between two codes may go either way, its block's zero and sum with it."""
    torch.testing.assert_close(found.scales, wanted.scales, rtol=max(relative, 2e-7), atol=0, equal_nan=True)
    assert found.codes.shape == wanted.codes.shape
    steps, wanted_steps = (
        x.codes.view(*x.scales.shape, BLOCK).to(torch.int32) - x.zeros.unsqueeze(-1) for x in (found, wanted)
    )
    apart = (steps - wanted_steps).abs()
    assert not apart.numel() or apart.max() <= 1
    assert apart.sum() <= 2e-3 * apart.numel() + 1
    torch.testing.assert_close(found.sums, steps.sum(dim=-1, dtype=torch.int32), rtol=0, atol=0)


@dataclass(frozen=True)
class Cell:
    """``make`` builds the arguments for a dtype; ``compare(found, wanted, tolerance)`` raises when they differ.
    ``interpreted``: Triton's interpreter, which takes a millisecond for what an instruction does, gets through it."""

    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    compare: Compare = assert_agrees
    interpreted: bool = True


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def strided(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Contiguous in the last dimension only, with rows further apart than they are long."""
    return values(*shape[:-1], shape[-1] + 13, dtype=dtype, seed=seed)[..., : shape[-1]]
