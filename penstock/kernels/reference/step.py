"""Reference of the ops on tokens that stay on the device between steps. Knows no plan: a seat is a number here."""

from __future__ import annotations

import torch


def resolve_tokens(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
    """The tokens of a step: an entry t < 0 means what seat -1 - t sampled last, ``last_tokens[-1 - t]``; others are
    themselves. Both int64, [n] and [seats] -> int64 [n]."""
    return torch.tensor([t if t >= 0 else int(last_tokens[-1 - t]) for t in token_ids.tolist()], dtype=torch.int64)


def keep_tokens(last_tokens: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """``last_tokens[seats] = max(token_ids, 0)`` in place: -1, which stands for no token, is no place in an embedding.

    All int64; last_tokens [seats + 1], seats and token_ids [m]. Rows that are there for their shape alone share the
    last seat, which may come to hold the token of any of them.
    """
    for seat, token in zip(seats.tolist(), token_ids.tolist(), strict=True):
        last_tokens[seat] = max(token, 0)
