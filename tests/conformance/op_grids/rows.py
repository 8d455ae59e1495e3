"""Grids of the ops on whole rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import ROWS, Cell, strided, values


def _gather() -> Iterator[Cell]:
    for size in (1, 17, 576, 4096):
        for rows in ROWS:
            yield Cell(
                f"{rows}x{size}",
                lambda dtype, r=rows, n=size: (values(9, n, dtype=dtype), torch.arange(r) * 5 % 9),
            )
    yield Cell("strided", lambda dtype: (strided(5, 64, dtype=dtype), torch.tensor([4, 0, 4])))


def _add() -> Iterator[Cell]:
    for size in (1, 17, 576, 4096):
        for rows in ROWS:
            yield Cell(
                f"{rows}x{size}",
                lambda dtype, r=rows, n=size: (values(r, n, dtype=dtype), values(r, n, dtype=dtype, seed=1)),
            )
    yield Cell("strided", lambda dtype: (strided(5, 64, dtype=dtype), values(5, 64, dtype=dtype, seed=1)))
    yield Cell(
        "strided 3d", lambda dtype: (values(3, 4, 5, dtype=dtype)[:, :, :3], values(3, 4, 3, dtype=dtype, seed=1))
    )
    yield Cell("3d", lambda dtype: (values(3, 4, 5, dtype=dtype), values(3, 4, 5, dtype=dtype, seed=1)))


def _scale() -> Iterator[Cell]:
    for cell in _add():
        yield Cell(cell.name, lambda dtype, make=cell.make: (make(dtype)[0], 25.298221))


GRIDS = {"gather_rows": _gather, "add": _add, "scale": _scale}
