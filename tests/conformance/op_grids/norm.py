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
    yield Cell("tiny", lambda dtype: (values(2, 8, dtype=dtype) * 1e-3, values(8, dtype=F32), 1e-6))
    yield Cell("zero", lambda dtype: (torch.zeros(2, 8, dtype=dtype), values(8, dtype=F32), 1e-6))


GRIDS = {"rms_norm": _norm}
TRUTHS = {"rms_norm": lambda x, w, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], None, eps) * w}
