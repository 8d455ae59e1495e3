"""The grid of argmax: equal largest values, values that are no number, rows of one program and of many."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import Cell, strided, values

NAN, NEVER = float("nan"), float("-inf")


def _with(places: dict[tuple[int, int], float], dtype: torch.dtype, vocab: int = 4100) -> tuple[torch.Tensor]:
    logits = values(3, vocab, dtype=dtype)
    for place, value in places.items():
        logits[place] = value
    return (logits,)


def _argmax() -> Iterator[Cell]:
    for vocab in (1, 17, 2048, 2049, 5003):
        for rows in (0, 1, 2, 33):
            yield Cell(f"{rows}x{vocab}", lambda dtype, r=rows, v=vocab: (values(r, v, dtype=dtype),))
    yield Cell("1x128256", lambda dtype: (values(1, 128256, dtype=dtype),))
    yield Cell("600x300", lambda dtype: (values(600, 300, dtype=dtype),), interpreted=False)
    yield Cell("200x9000", lambda dtype: (values(200, 9000, dtype=dtype),), interpreted=False)
    yield Cell("strided", lambda dtype: (strided(3, 4100, dtype=dtype),))
    yield Cell("tied", lambda dtype: (values(4, 9000, dtype=torch.float32).clamp(-1, 1).to(dtype),))
    yield Cell("all equal", lambda dtype: (torch.full((2, 4100), -3.0, dtype=dtype),))
    yield Cell("zeros", lambda dtype: (torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]], dtype=dtype),))
    yield Cell("nan", lambda dtype: _with({(0, 4099): NAN, (1, 7): NAN, (1, 2500): NAN, (1, 3): 50.0}, dtype))
    yield Cell("negative nan", lambda dtype: _with({(0, 9): -torch.tensor(NAN).abs()}, dtype))
    yield Cell(
        "infinite", lambda dtype: _with({(0, 4099): float("inf"), (1, 2): NEVER, (2, 2047): float("inf")}, dtype)
    )
    yield Cell("forbidden", lambda dtype: (torch.full((2, 2100), NEVER, dtype=dtype),))


GRIDS = {"argmax": _argmax}
