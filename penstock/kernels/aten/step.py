"""Tokens that stay on the device between steps, in torch calls. Knows no plan."""

from __future__ import annotations

import torch


def resolve_tokens(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.step.resolve_tokens."""
    return torch.where(token_ids < 0, last_tokens[(-1 - token_ids).clamp_(min=0)], token_ids)


def keep_tokens(last_tokens: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See kernels.reference.step.keep_tokens."""
    last_tokens[seats] = token_ids.clamp(min=0)
