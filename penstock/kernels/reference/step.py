"""Reference of the ops that carry sampled tokens from one step to the next on the device. Knows no plan."""

from __future__ import annotations

import torch


def resolve_tokens(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
    """Token ids of a step, int64 [n]: an entry t < 0 stands for the token that seat -1 - t sampled last, which
    ``last_tokens`` int64 [seats + 1] has; others are themselves."""
    return torch.tensor([int(last_tokens[-1 - t]) if t < 0 else t for t in token_ids.tolist()], dtype=torch.int64)


def keep_tokens(last_tokens: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Write the tokens int64 [m] to their seats' places in ``last_tokens``, 0 for a negative one (no token).

    Rows that only fill a recorded shape all point at one scratch seat, whose entry is any of theirs afterwards.
    """
    for seat, token in zip(seats.tolist(), token_ids.tolist(), strict=True):
        last_tokens[seat] = max(token, 0)
