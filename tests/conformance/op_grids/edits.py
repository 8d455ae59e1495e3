"""Grids of the ops that change logits by what requests ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from op_grids.cells import Cell, assert_agrees, strided
from penstock.kernels.reference.edits import IN_PROMPT, STOPS

SEATS, PLACES = 19, 8
NEVER = float("-inf")


def _state(vocab: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Rules of all kinds, penalties, words and shifts. The last seat changes nothing."""
    noise = torch.Generator().manual_seed(seed)
    places = torch.full((SEATS,), -1)
    places[torch.randperm(SEATS - 1, generator=noise)[:PLACES]] = torch.randperm(PLACES, generator=noise)
    held = torch.randint(-2, 3, (SEATS,), generator=noise).clamp(min=0)
    flags = torch.randint(0, 2, (2, SEATS), generator=noise)
    rules = torch.stack((places, held, *flags), dim=1)
    penalties = torch.stack(
        (
            0.5 + torch.rand(SEATS, generator=noise) * 2,
            torch.rand(SEATS, generator=noise) * 4 - 2,
            torch.rand(SEATS, generator=noise) * 4 - 2,
        ),
        dim=1,
    )
    words = (torch.randint(-9, 4, (PLACES, vocab), generator=noise)).clamp(min=0).to(torch.int32)
    words |= torch.where(torch.rand(PLACES, vocab, generator=noise) < 0.2, IN_PROMPT, 0).to(torch.int32)
    words |= torch.where(torch.rand(PLACES, vocab, generator=noise) < 0.1, STOPS, 0).to(torch.int32)
    shifts = torch.randn(PLACES, vocab, generator=noise) * 9
    shifts[torch.rand(PLACES, vocab, generator=noise) < 0.3] = NEVER
    return rules, penalties, words, shifts


def _compare(found: Any, wanted: Any, tolerance: tuple[float, float]) -> None:
    """Logits of rows that were not finite may become anything."""
    (logits, finite), (right, sound) = found, wanted
    assert torch.equal(finite, sound)
    assert_agrees(logits[sound], right[sound], tolerance)


def _edit() -> Iterator[Cell]:
    for rows, vocab in ((0, 40), (1, 1), (7, 211), (SEATS, 64), (3, 2048), (5, 2500)):
        seats = torch.randperm(SEATS, generator=torch.Generator().manual_seed(rows))[:rows]

        def make(dtype: torch.dtype, s: torch.Tensor = seats, v: int = vocab) -> tuple[Any, ...]:
            return (
                strided(len(s), v, dtype=dtype, seed=v).mul_(3),
                torch.zeros(len(s), dtype=torch.bool),
                s,
                *_state(v, v),
            )

        yield Cell(f"{rows}x{vocab}", make, _compare)

    def spoiled(dtype: torch.dtype) -> tuple[Any, ...]:
        logits = strided(SEATS, 2500, dtype=dtype)
        logits[0, 0], logits[3, 2499], logits[5, 1200], logits[6, 2100] = float("nan"), float("inf"), NEVER, 3e38
        return logits, torch.zeros(SEATS, dtype=torch.bool), torch.arange(SEATS), *_state(2500, 1)

    yield Cell("not finite", spoiled, _compare)
    filling = torch.full((4,), SEATS - 1)
    yield Cell(
        "filling",
        lambda dtype: (strided(4, 90, dtype=dtype), torch.zeros(4, dtype=torch.bool), filling, *_state(90, 2)),
    )


def _count() -> Iterator[Cell]:
    for count in (0, 1, 9, SEATS):
        noise = torch.Generator().manual_seed(count)
        seats = torch.randperm(SEATS, generator=noise)[:count]
        ids = torch.randint(-1, 50, (count,), generator=noise)

        def make(dtype: torch.dtype, s: torch.Tensor = seats, t: torch.Tensor = ids) -> tuple[Any, ...]:
            rules, _, words, _ = _state(50, len(s))
            return words, rules, s, t

        yield Cell(f"{count}", make)
    filling = torch.tensor([2, SEATS - 1, SEATS - 1, SEATS - 1])
    yield Cell("filling", lambda dtype: (_state(50, 3)[2], _state(50, 3)[0], filling, torch.tensor([7, 7, 7, -1])))


def _mask() -> Iterator[Cell]:
    """Masks of other widths than the vocabulary's, and with bits behind it; rows in any order."""
    for rows, vocab, more in (
        (0, 40, 0),
        (1, 1, 0),
        (1, 32, 1),
        (7, 211, 0),
        (SEATS, 64, 0),
        (3, 2048, 0),
        (5, 2500, 3),
    ):
        noise = torch.Generator().manual_seed(vocab)
        at = torch.randperm(SEATS, generator=noise)[:rows]
        words = torch.randint(-(1 << 31), 1 << 31, (rows, -(-vocab // 32) + more), generator=noise).to(torch.int32)
        words[1:2], words[2:3] = 0, -1  # nothing and everything is allowed

        def make(dtype: torch.dtype, a: torch.Tensor = at, w: torch.Tensor = words, v: int = vocab) -> tuple[Any, ...]:
            return strided(SEATS, v, dtype=dtype, seed=v), a, w

        yield Cell(f"{rows}x{vocab}", make)

    def spoiled(dtype: torch.dtype) -> tuple[Any, ...]:
        logits = strided(3, 90, dtype=dtype)
        logits[0, 3], logits[1, 4], logits[1, 5], logits[2, 89] = float("nan"), float("inf"), NEVER, 3e38
        return logits, torch.tensor([1, 0]), torch.tensor([[-1, 5, 0], [8, 0, 0]], dtype=torch.int32)

    yield Cell("not finite", spoiled)


GRIDS = {"edit_logits": _edit, "mask_logits": _mask, "count_tokens": _count}
