"""Grids of the quantization of activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import ROWS, Cell, strided, values


def _with(value: float) -> torch.Tensor:
    """Three blocks, one of which has the value in it."""
    x = values(1, 96, dtype=torch.float32)
    x[0, 40] = value
    return x


def _quantize() -> Iterator[Cell]:
    for size in (32, 64, 576):
        for rows in ROWS:
            yield Cell(f"{rows}x{size}", lambda dtype, r=rows, n=size: (values(r, n, dtype=dtype),))
    yield Cell("strided", lambda dtype: (strided(5, 64, dtype=dtype),))
    yield Cell("positive", lambda dtype: (values(3, 64, dtype=dtype).abs(),))
    yield Cell("negative", lambda dtype: (-values(3, 64, dtype=dtype).abs(),))
    yield Cell("zero", lambda dtype: (torch.zeros(2, 32, dtype=dtype),))
    yield Cell("one", lambda dtype: (torch.eye(32, dtype=dtype),))
    for value in (float("nan"), float("inf"), float("-inf"), 3e38, 1e-38, 6e4):
        yield Cell(f"with {value}", lambda dtype, v=value: (_with(v).to(dtype),))
    yield Cell("tiny", lambda dtype: (values(2, 32, dtype=torch.float32).mul(1e-35).to(dtype),))
    yield Cell("both ends huge", lambda dtype: ((_with(3e38) - _with(-3e38)).to(dtype),))


GRIDS = {"quantize_rows": _quantize}
