"""The grid of sampling. A token may differ from the reference's only where the uniform number lies on a boundary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from op_grids.cells import Cell
from penstock.kernels.reference import sampling as reference

NEVER = float("-inf")
SOME = 7  # of the points that follow each other this far apart, each has another cut
MOST_INTERPRETED = 12  # rows
HEATS = (1.0, 0.7, 3.0, 1e-30, 1e-3, 100.0)
CUTS = ((0.0, 0, 1.0), (0.1, 0, 1.0), (0.0, 1, 1.0), (0.0, 5, 1.0), (0.0, 0, 0.9), (0.0, 0, 0.2), (0.02, 40, 0.95),
        (0.0, 3, 0.5), (1.0, 0, 1.0), (0.0, 0, 1e-9), (0.0, 700, 0.999), (0.0, 2**31, 0.999999))  # fmt: skip


def _arguments(logits: torch.Tensor, seed: int = 0, every: int = 1) -> tuple[torch.Tensor, ...]:
    """Every temperature with every cut, or ``every`` so many of these, on the rows in turn."""
    points = list(itertools.product(HEATS, CUTS))[::every]
    rows = torch.arange(len(points)) % max(1, len(logits))
    heat, min_p, top_k, top_p = zip(*((h, *cut) for h, cut in points), strict=True)
    vocab = logits.shape[1]
    return (
        logits[rows],
        torch.tensor(heat, dtype=torch.float32),
        torch.tensor(min_p, dtype=torch.float32),
        torch.tensor([k or vocab for k in top_k]),
        torch.tensor(top_p, dtype=torch.float64),
        torch.rand(len(points), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
    )


def _logits(kind: str, rows: int, vocab: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(vocab)
    flat = torch.randn(rows, vocab, generator=noise)
    if kind == "tied":
        return torch.randint(-2, 3, (rows, vocab), generator=noise).float()
    if kind == "masked":
        return (
            (flat * 3)
            .masked_fill(torch.rand(rows, vocab, generator=noise) < 0.9, NEVER)
            .index_fill(1, torch.tensor([vocab // 2]), 1.5)
        )
    if kind == "single":
        return torch.full((rows, vocab), NEVER).index_fill(1, torch.tensor([vocab - 1]), -3.0)
    return flat * {"peaked": 6.0, "flat": 0.01, "far": 1.0}[kind] + (1e4 if kind == "far" else 0.0)


def _compare(arguments: tuple[torch.Tensor, ...], found: Any, wanted: Any, tolerance: tuple[float, float]) -> None:
    logits, *parameters, uniforms = arguments
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=0)
    differ = (found[0] != wanted[0]).nonzero().flatten().tolist()
    for i in differ:
        heat, least, k, mass = (float(t[i]) for t in parameters)
        row = reference.cut(logits[i].double().tolist(), heat=heat, least=least, k=int(k), mass=mass)
        probs = reference.softmax(row)
        token = int(found[0][i])
        assert probs[token] > 0, (i, token)
        low = math.fsum(probs[:token])
        distance = max(low - float(uniforms[i]), float(uniforms[i]) - low - probs[token])
        assert distance <= tolerance[1], (i, token, distance)
    assert len(differ) <= 1 + len(uniforms) // 50


def _cell(name: str, arguments: tuple[torch.Tensor, ...]) -> Cell:
    return Cell(
        name,
        lambda dtype: arguments,
        lambda found, wanted, tolerance: _compare(arguments, found, wanted, tolerance),
        interpreted=len(arguments[0]) <= MOST_INTERPRETED,
    )


def _sample() -> Iterator[Cell]:
    for kind in ("peaked", "flat", "far", "tied", "masked", "single"):
        for vocab in (1, 17, 64, 127, 700):
            yield _cell(f"{kind} {vocab}", _arguments(_logits(kind, 3, vocab)))
    for kind, vocab in (("peaked", 700), ("flat", 127), ("tied", 64), ("masked", 130)):
        yield _cell(f"some {kind} {vocab}", _arguments(_logits(kind, 3, vocab), every=SOME))
    for kind in ("peaked", "flat"):  # pieces of more than one tile
        yield _cell(f"some {kind} 5003", _arguments(_logits(kind, 2, 5003), every=3 * SOME))
        yield _cell(f"{kind} 128256", _arguments(_logits(kind, 2, 128256), every=5))
    yield _cell("peaked 5003", _arguments(_logits("peaked", 2, 5003)))
    wide = _logits("peaked", 3, 200)
    yield _cell("strided", _strided(wide))
    yield _cell("no rows", tuple(t[:0] for t in _arguments(wide)))
    yield _cell(
        "ends",
        (*_arguments(wide)[:5], torch.tensor([0.0, 1 - 2**-53] * (len(HEATS) * len(CUTS) // 2), dtype=torch.float64)),
    )
    broken = _logits("peaked", 5, 130)
    broken[0, 129], broken[1, 3], broken[2, 64], broken[3] = float("nan"), float("inf"), NEVER, NEVER
    yield _cell("broken", _arguments(broken))
    yield _cell("some broken", tuple(t[:5] for t in _arguments(broken)))


def _strided(wide: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (wide[:, 50:151], *(t[:3] for t in _arguments(wide[:, 50:151])[1:]))


GRIDS = {"sample": _sample}
