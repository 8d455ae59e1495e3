"""The last step: one random token per row. Knows no parameter but the uniform number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

PIECE = 128  # divides the vocabularies of the families; others are padded


def draw(logits: torch.Tensor, uniforms: npt.NDArray[np.float64]) -> torch.Tensor:
    """Inverse of the cumulated distribution, in the order of token ids: logits [n, vocab], uniforms [n] in [0, 1)
    -> token ids [n]. Token order keeps a draw stable under rounding noise in the logits, which would swap neighbours
    in an order by likelihood. Sums in float64, so that the tail of a large vocabulary keeps its mass.

    Two levels: first the piece of the vocabulary, then the token in it. That leaves nothing of the vocabulary's size
    to write but the probabilities themselves; for 32 rows it takes a third of the time of cumulating them all.
    """
    probs = logits.softmax(dim=-1)
    if probs.shape[1] % PIECE:
        probs = torch.nn.functional.pad(probs, (0, PIECE - probs.shape[1] % PIECE))
    pieces = probs.view(len(probs), -1, PIECE)
    piece_ends = pieces.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = torch.from_numpy(uniforms).unsqueeze(1) * piece_ends[:, -1:]
    piece = _first_beyond(piece_ends, target)
    before = piece_ends.gather(1, (piece - 1).clamp_(min=0)).masked_fill_(piece == 0, 0.0)
    chosen = pieces[torch.arange(len(probs)), piece.squeeze(1)]
    place = _first_beyond(chosen.cumsum(dim=-1, dtype=torch.float64), target - before)
    return (piece * PIECE + place).squeeze(1)


def _first_beyond(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place [n, 1] whose cumulated mass in ends [n, places] exceeds the target [n, 1]: never one without
    mass. Rounding may lift a target to the total, behind which there is nothing."""
    total = ends[:, -1:].contiguous()
    return torch.searchsorted(ends, torch.minimum(target, torch.nextafter(total, torch.zeros_like(total))), right=True)
