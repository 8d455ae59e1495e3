"""The last step: one token per row, the likeliest or a random one. Knows no parameter but the uniform number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def draw(logits: torch.Tensor, uniforms: npt.NDArray[np.float64]) -> torch.Tensor:
    """Inverse of the cumulated distribution, in the order of token ids: logits [n, vocab], uniforms [n] in [0, 1)
    -> token ids [n]. Token order keeps a draw stable under rounding noise in the logits, which would swap neighbours
    in an order by likelihood. Sums in float64, so that the tail of a large vocabulary keeps its mass."""
    cumulated = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1:].contiguous()
    target = torch.from_numpy(uniforms).unsqueeze(1) * total
    # The product may round up to the total, behind which there is no token.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, target, right=True).squeeze(1)
