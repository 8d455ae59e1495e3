"""The largest logit of every row in torch calls."""

from __future__ import annotations

import torch


def argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.reference.linear.argmax. Elsewhere than on the CPU, whose ``max`` goes through a row in order, places
    are compared: a parallel search may find any of equal values."""
    values = logits.float()
    if values.device.type == "cpu":
        largest, first = values.max(dim=-1)
        return first, largest
    largest = values.amax(dim=-1, keepdim=True)
    places = torch.arange(values.shape[-1], device=values.device)
    is_largest = (values == largest) | values.isnan()
    return torch.where(is_largest, places, values.shape[-1]).amin(dim=-1), largest.squeeze(-1)
