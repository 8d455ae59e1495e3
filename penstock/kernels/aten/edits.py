"""What requests change in their logits, in torch calls. Knows no request."""

from __future__ import annotations

import torch

from penstock.kernels.reference.edits import COUNT, STOPS

NEVER = float("-inf")


def edit_logits(
    logits: torch.Tensor,
    finite: torch.Tensor,
    seats: torch.Tensor,
    rules: torch.Tensor,
    penalties: torch.Tensor,
    words: torch.Tensor,
    shifts: torch.Tensor,
) -> None:
    """See kernels.reference.edits.edit_logits."""
    finite.copy_(torch.isfinite(logits).all(dim=-1))
    place, held, shifted, penalised = (column[:, None] for column in rules[seats].unbind(-1))
    at = place.squeeze(1).clamp(min=0)
    seen = words[at]
    values = logits.masked_fill(((seen & STOPS) != 0) & (held > 0), NEVER)
    values = torch.where(shifted != 0, values + shifts[at], values)
    repetition, presence, frequency = (column[:, None] for column in penalties[seats].unbind(-1))
    produced = (seen & COUNT).float()
    turned = torch.where(values > 0, values / repetition, values * repetition)
    turned -= frequency * produced + presence * (produced > 0)
    values = torch.where((penalised != 0) & ((seen < 0) | (produced > 0)), turned, values)
    logits.copy_(torch.where(place >= 0, values, logits))


def mask_logits(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    """See kernels.reference.edits.mask_logits."""
    bits = (masks[:, :, None] >> torch.arange(32, dtype=torch.int32, device=masks.device)) & 1
    forbidden = bits.view(len(masks), 32 * masks.shape[1])[:, : logits.shape[1]] == 0
    logits[rows] = logits[rows].masked_fill_(forbidden, NEVER)


def count_tokens(words: torch.Tensor, rules: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See kernels.reference.edits.count_tokens. Rows that count nothing add 0, which has no order."""
    place, held = rules[seats, 0], rules[seats, 1]
    counts = (place >= 0) & (token_ids >= 0)
    at = torch.where(counts, place * words.shape[1] + token_ids, 0)
    words.view(-1).index_add_(0, at, counts.to(words.dtype))
    rules.view(-1).index_add_(0, seats * rules.shape[1] + 1, -(counts & (held > 0)).to(rules.dtype))
