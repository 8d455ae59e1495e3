"""Rotary embedding: frequencies and their scaling variants. Knows no config key.

Angles are computed per step for the step's positions and shared by all layers: five small calls per step instead of a
table of max_position x head_dim float32 values (128 MiB for a 128K context with heads of 128) that no memory plan sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from penstock.layers.parts import LayerParts, layer_op

RopeTables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Base and scaling of the frequencies. ``kind`` is a key of ROPE_KINDS; each kind has its fields, ignoring others.

    ``attention_factor`` multiplies cosines and sines (YaRN's temperature); None means the kind's own formula.
    """

    base: float
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()


def _default(frequencies: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, float]:
    return frequencies, 1.0


def _linear(frequencies: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """Position interpolation (Chen et al. 2023)."""
    return frequencies / spec.factor, 1.0


def _factors(frequencies: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """One divisor per frequency, as converted files carry them instead of the options they came from."""
    return frequencies / torch.tensor(spec.factors, dtype=torch.float32), 1.0


def _llama3(frequencies: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, those between are blended."""
    turns = spec.original_max_position * frequencies / (2 * math.pi)  # full turns within the original context
    smooth = ((turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0, 1)
    return frequencies / spec.factor * (1 - smooth) + frequencies * smooth, 1.0


def _yarn(frequencies: torch.Tensor, spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al. 2023): interpolation by parts, and a temperature on the attention scores."""
    half = len(frequencies)

    def dimension_of(turns: float) -> float:
        return half * math.log(spec.original_max_position / (turns * 2 * math.pi)) / math.log(spec.base)

    low, high = dimension_of(spec.beta_fast), dimension_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low if high != low else 0.001
    interpolated = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0, 1)
    scaled = frequencies / spec.factor * interpolated + frequencies * (1 - interpolated)
    own = 0.1 * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0
    return scaled, own if spec.attention_factor is None else spec.attention_factor


ROPE_KINDS: Mapping[str, Callable[[torch.Tensor, RopeSpec], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "factors": _factors,
    "llama3": _llama3,
    "yarn": _yarn,
}


class Rotary:
    """One frequency table; layers with the same base and scaling share it."""

    def __init__(self, spec: RopeSpec, head_dim: int, parts: LayerParts) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        # Made on the CPU: a device's powers differ in the last bit, which a far position multiplies.
        frequencies, self._temperature = ROPE_KINDS[spec.kind](1.0 / spec.base**exponents, spec)
        self._frequencies = frequencies.to(parts.device)
        self._tables = layer_op("rotary_tables", parts)

    def tables(self, positions: torch.Tensor) -> RopeTables:
        """positions [tokens] -> cosines and sines float32 [tokens, 1, head_dim] as the rotary op wants them."""
        tables: RopeTables = self._tables(positions, self._frequencies, self._temperature)
        return tables
