"""Grids of the norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import ROWS, Cell, strided, values

F32 = torch.float32


def _norm() -> Iterator[Cell]:
    for size in (1, 8, 63, 576):
        for rows in ROWS:
            yield Cell(
                f"{rows}x{size}",
                lambda dtype, r=rows, n=size: (values(r, n, dtype=dtype), values(n, dtype=F32), 1e-5),
            )
    yield Cell("strided", lambda dtype: (strided(5, 64, dtype=dtype), values(64, dtype=F32), 1e-6))
    yield Cell("per-head", lambda dtype: (strided(3, 5, 16, dtype=dtype), values(5, 16, dtype=F32), 1e-6))
    yield Cell("fused heads", lambda dtype: (fused_heads(5, 40, 48, 128, dtype), values(40, 128, dtype=F32), 1e-6))
    yield Cell("one weight", lambda dtype: (fused_heads(5, 3, 4, 24, dtype), values(24, dtype=F32), 1e-6))
    yield Cell("one head", lambda dtype: (strided(3, 1, 16, dtype=dtype), values(1, 16, dtype=F32), 1e-6))
    for size in (4096, 5120):
        yield Cell(f"3x{size}", lambda dtype, n=size: (values(3, n, dtype=dtype), values(n, dtype=F32), 1e-5))
    yield Cell("2x16384", lambda dtype: (values(2, 16384, dtype=dtype), values(16384, dtype=F32), 1e-5))
    yield Cell("tiny", lambda dtype: (values(2, 8, dtype=dtype) * 1e-3, values(8, dtype=F32), 1e-6))
    yield Cell("zero", lambda dtype: (torch.zeros(2, 8, dtype=dtype), values(8, dtype=F32), 1e-6))


def fused_heads(tokens: int, heads: int, all_heads: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """The first heads of a fused projection of more."""
    return values(tokens, all_heads, size, dtype=dtype)[:, :heads]


def _pairs(sizes: tuple[int, ...]) -> Iterator[Cell]:
    """x, residual, weight, eps."""
    for size in sizes:
        for rows in ROWS:
            yield Cell(
                f"{rows}x{size}",
                lambda dtype, r=rows, n=size: (
                    values(r, n, dtype=dtype),
                    values(r, n, dtype=dtype, seed=1),
                    values(n, dtype=F32, seed=2),
                    1e-5,
                ),
            )
    yield Cell(
        "strided",
        lambda dtype: (strided(5, 64, dtype=dtype), values(5, 64, dtype=dtype, seed=1), values(64, dtype=F32), 1e-6),
    )


def _add_norm() -> Iterator[Cell]:
    yield from _pairs((1, 8, 63, 65, 576, 4096))


def _add_norm_quantized() -> Iterator[Cell]:
    yield from _pairs((32, 96, 576))


def _norm_quantized() -> Iterator[Cell]:
    for cell in _pairs((32, 96, 576)):
        yield Cell(cell.name, lambda dtype, make=cell.make: (make(dtype)[0], *make(dtype)[2:]))
    yield Cell("zero", lambda dtype: (torch.zeros(2, 64, dtype=dtype), values(64, dtype=F32), 1e-6))
    nan = torch.tensor([[float("nan")] + [1.0] * 63, [2.0] * 64])
    yield Cell("nan", lambda dtype: (nan.to(dtype), values(64, dtype=F32), 1e-6))


GRIDS = {
    "rms_norm": _norm,
    "add_rms_norm": _add_norm,
    "rms_norm_quantized": _norm_quantized,
    "add_rms_norm_quantized": _add_norm_quantized,
}
TRUTHS = {"rms_norm": lambda x, w, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], None, eps) * w}
