"""Grids of rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import ROWS, Cell, values


def tables(tokens: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(tokens, 1, head_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


def _rotary() -> Iterator[Cell]:
    for tokens in ROWS:
        for heads, head_dim in ((1, 2), (3, 10), (12, 64)):
            yield Cell(
                f"{tokens}x{heads}x{head_dim}",
                lambda dtype, t=tokens, h=heads, d=head_dim: (values(t, h, d, dtype=dtype), *tables(t, d)),
            )
    yield Cell("fused", lambda dtype: (values(9, 48, 128, dtype=dtype)[:, :40], *tables(9, 128)))
    yield Cell("strided", lambda dtype: (values(4, 9, 16, dtype=dtype)[:, 2:7], *tables(4, 16)))


def frequencies(half: int) -> torch.Tensor:
    return 1.0 / 10000.0 ** (torch.arange(half, dtype=torch.float32) / half)


def _tables() -> Iterator[Cell]:
    for tokens in ROWS:
        for half in (1, 5, 32, 128):
            yield Cell(f"{tokens}x{half}", lambda dtype, t=tokens, h=half: (torch.arange(t) * 977, frequencies(h), 1.0))
    far = torch.tensor([0, 1, 22, 65_537, 999_983, 1_048_575, (1 << 20)])
    yield Cell("far", lambda dtype: (far, frequencies(40), 1.0))
    yield Cell("temperature", lambda dtype: (torch.arange(9), frequencies(32), 1.1386))


GRIDS = {"rotary": _rotary, "rotary_tables": _tables}
