"""The typed state of the pipeline: what a seat needs, one row to sample, and the step contract. Knows no step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from penstock.types.request import SamplingParams

Tokens = npt.NDArray[np.int32]
P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingNeed:
    """What a step is told when a request takes a seat."""

    params: SamplingParams
    num_prompt_tokens: int
    vocab_size: int

    @property
    def greedy(self) -> bool:
        """One candidate is left whatever the numbers are: temperature 0, or the top 1."""
        return self.params.greedy or self.params.top_k == 1


class FusedCuts(NamedTuple):
    """Parameters of the op that cuts and draws at once. ``top_k`` is the vocabulary's size where it cuts nothing."""

    temperature: float
    min_p: float
    top_k: int
    top_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatSampling:
    """The sampling of the request in one seat, made at admission.

    ``prepared`` has one entry per step of the pipeline, None where this request does not need the step. Entries may
    be mutable (token counts): they belong to this seat alone and die with it.
    """

    params: SamplingParams
    seed: int
    num_prompt_tokens: int
    greedy: bool
    prepared: tuple[Any, ...]
    plain: bool  # nothing but the cuts changes the logits, and nothing but the token is asked
    fused: FusedCuts | None  # what one op can do for this row, if it is not greedy

    @property
    def plain_greedy(self) -> bool:
        """The answer is the argmax of the raw logits and nothing else is asked."""
        return self.greedy and self.plain


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One token to sample.

    ``tokens`` are all tokens before it, the first ``num_committed`` of which are final; the rest are drafts.
    ``mask`` holds one bit per token id, little-endian 32-bit words, or None.
    """

    seat: SeatSampling
    tokens: Tokens
    num_committed: int
    mask: bytes | None = None

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.seat.num_prompt_tokens


class SamplerStep(Protocol[P]):
    """One step of the pipeline. Stateless: what a request needs lives in what ``prepare`` returned."""

    @property
    def name(self) -> str: ...

    def prepare(self, need: SamplingNeed) -> P | None:
        """Called once per admission; None when requests with these parameters never need the step."""

    def apply(self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[P]) -> None:
        """Change the logits of some rows in place.

        logits [n, vocab] float32; entry i of ``rows`` and ``own`` (what ``prepare`` returned for its seat) belongs to
        ``logits[indices[i]]``. Rows not listed stay as they are.
        """


def token_index(token_ids: Sequence[int], vocab_size: int) -> torch.Tensor:
    """The ids that exist in the vocabulary, sorted, once each; others cannot be sampled anyway."""
    return torch.tensor(sorted({t for t in token_ids if 0 <= t < vocab_size}), dtype=torch.int64)


def selected(logits: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Rows ``indices`` (ascending) of logits: the tensor itself when they are all of them, else a copy."""
    return logits if len(indices) == logits.shape[0] else logits[torch.tensor(indices, device=logits.device)]


def write_back(logits: torch.Tensor, indices: Sequence[int], rows: torch.Tensor) -> None:
    """The counterpart of ``selected``."""
    if rows is not logits:
        logits[torch.tensor(indices, device=logits.device)] = rows
