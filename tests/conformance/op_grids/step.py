"""Grids of the tokens that stay on the device between steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from op_grids.cells import Cell

SEATS = 40


def _last(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 200_000, (SEATS + 1,), generator=torch.Generator().manual_seed(seed))


def _resolve() -> Iterator[Cell]:
    for count in (0, 1, 7, 256, 700):
        mixed = torch.randint(-SEATS - 1, 9, (count,), generator=torch.Generator().manual_seed(count))
        yield Cell(f"{count}", lambda dtype, ids=mixed: (ids, _last()))
    yield Cell("none sampled", lambda dtype: (torch.arange(9), _last()))
    yield Cell("all sampled", lambda dtype: (-1 - torch.arange(SEATS + 1), _last()))


def _keep() -> Iterator[Cell]:
    for count in (0, 1, 7, SEATS + 1):
        seats = torch.randperm(SEATS + 1, generator=torch.Generator().manual_seed(count))[:count]
        ids = torch.randint(-1, 5, (count,), generator=torch.Generator().manual_seed(count))
        yield Cell(f"{count}", lambda dtype, s=seats, t=ids: (_last(), s, t))


GRIDS = {"resolve_tokens": _resolve, "keep_tokens": _keep}
