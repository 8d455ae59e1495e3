"""Reference of rotary position embedding. Knows no scaling variant: angles come in as cosines and sines."""

from __future__ import annotations

import torch


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (j, j + d/2) of every head (Su et al. 2021, in the half-split layout of GPT-NeoX).

    x [tokens, heads, d]; cos, sin float32 [tokens, 1, d], full width so that one multiplication serves a head: the
    cosines are the same in both halves, the sines are negative in the first. Computed in float32, in x's type.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].to(torch.float32), x[..., half:].to(torch.float32)
    cosine, sine = cos[..., half:], sin[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


def rotary_tables(
    positions: torch.Tensor, frequencies: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of ``position * frequency`` (a float32 product) times the temperature, for ``rotary``.

    positions int64 [tokens], frequencies float32 [d / 2] -> two tables float32 [tokens, 1, d].
    """
    angles = (positions[:, None, None].to(torch.float32) * frequencies).to(torch.float64)
    cos, sin = (table.to(torch.float32) * temperature for table in (angles.cos(), angles.sin()))
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
