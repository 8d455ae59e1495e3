"""Grids of gated activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import ROWS, Cell, strided, values


def _gated() -> Iterator[Cell]:
    for size in (1, 7, 64, 1536):
        for rows in ROWS:
            yield Cell(f"{rows}x{size}", lambda dtype, r=rows, n=size: (values(r, 2 * n, dtype=dtype),))
    for rows in (1, 9):
        yield Cell(f"{rows}x14336", lambda dtype, r=rows: (values(r, 28672, dtype=dtype),))
    yield Cell("300x1536", lambda dtype: (values(300, 3072, dtype=dtype),), interpreted=False)
    yield Cell("strided", lambda dtype: (strided(5, 32, dtype=dtype),))
    yield Cell("large", lambda dtype: (values(3, 32, dtype=dtype) * 30,))


def _gated_quantized() -> Iterator[Cell]:
    for size in (32, 96, 1536):
        for rows in ROWS:
            yield Cell(f"{rows}x{size}", lambda dtype, r=rows, n=size: (values(r, 2 * n, dtype=dtype),))
    yield Cell("strided", lambda dtype: (strided(5, 64, dtype=dtype),))
    yield Cell("large", lambda dtype: (values(3, 64, dtype=dtype) * 30,))
    nan = torch.tensor([[float("nan")] + [1.0] * 127, [2.0] * 128])
    yield Cell("nan", lambda dtype: (nan.to(dtype),))


GRIDS = {
    "silu_and_mul": _gated,
    "gelu_and_mul": _gated,
    "silu_and_mul_quantized": _gated_quantized,
    "gelu_and_mul_quantized": _gated_quantized,
}
TRUTHS = {
    "silu_and_mul": lambda x: torch.nn.functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "gelu_and_mul": lambda x: torch.nn.functional.gelu(x.chunk(2, -1)[0], approximate="tanh") * x.chunk(2, -1)[1],
}
