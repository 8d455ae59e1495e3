"""Steps that shape and cut the distribution: temperature, min_p, top_k, top_p, typical_p. Know no randomness.

Every cut is a threshold on the value of a token, computed from its own row: tokens that tie with the last kept one are
kept as well, so that no answer depends on the order in which a sort leaves equals. Each cut sees the distribution
that the one before it left, renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penstock.executor.sampler.rows import SampleRow, SamplingNeed, selected, write_back

NEVER = float("-inf")
FIRST_CANDIDATES = 64  # top_p looks at so many of the likeliest tokens before it widens the search


class Temperature:
    """Divides by the temperature, after a shift of the maximum to 0 that keeps tiny temperatures from overflowing."""

    name = "temperature"

    def prepare(self, need: SamplingNeed) -> float | None:
        # Below this a float32 quotient is 0 or infinite anyway; a denormal divisor would give 0 / 0.
        return None if need.greedy or need.params.temperature == 1.0 else max(need.params.temperature, 1e-30)

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[float]
    ) -> None:
        part = selected(logits, indices)
        part.sub_(part.amax(dim=-1, keepdim=True)).div_(_column(own))
        write_back(logits, indices, part)


class MinP:
    """Keeps tokens at least ``min_p`` times as likely as the likeliest (arXiv 2407.01082)."""

    name = "min_p"

    def prepare(self, need: SamplingNeed) -> float | None:
        return need.params.min_p if need.params.min_p > 0 and not need.greedy else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[float]
    ) -> None:
        part = selected(logits, indices)
        threshold = part.amax(dim=-1, keepdim=True) + _column(own).log()
        part.masked_fill_(part < threshold, NEVER)
        write_back(logits, indices, part)


class TopK:
    """Keeps the ``top_k`` likeliest tokens."""

    name = "top_k"

    def prepare(self, need: SamplingNeed) -> int | None:
        return need.params.top_k if 1 < need.params.top_k < need.vocab_size and not need.greedy else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[int]
    ) -> None:
        part = selected(logits, indices)
        best = part.topk(max(own), dim=-1).values
        threshold = best.gather(1, torch.tensor(own).unsqueeze(1) - 1)
        part.masked_fill_(part < threshold, NEVER)
        write_back(logits, indices, part)


class TopP:
    """Keeps the fewest likeliest tokens whose mass reaches ``top_p`` (nucleus sampling, arXiv 1904.09751).

    Most nuclei are small, so the search begins among few candidates and widens only for rows that need more; a full
    sort of the vocabulary is the last resort. How far it went does not change the answer.
    """

    name = "top_p"

    def prepare(self, need: SamplingNeed) -> float | None:
        return need.params.top_p if need.params.top_p < 1.0 and not need.greedy else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[float]
    ) -> None:
        part = selected(logits, indices)
        probs = part.softmax(dim=-1)
        mass = _column(own, torch.float64)
        threshold = probs.new_zeros(len(own), 1)
        open_rows = torch.arange(len(own))
        width = FIRST_CANDIDATES
        while len(open_rows):
            width = min(width, probs.shape[1])
            best = probs[open_rows].topk(width, dim=-1).values
            cumulated = best.cumsum(dim=-1, dtype=torch.float64)
            reached = cumulated[:, -1] >= mass[open_rows, 0]
            last = (cumulated < mass[open_rows]).sum(dim=-1, keepdim=True).clamp_(max=width - 1)
            threshold[open_rows[reached]] = best.gather(1, last)[reached]
            if width == probs.shape[1]:
                break
            open_rows = open_rows[~reached]
            width *= 16
        part.masked_fill_(probs < threshold, NEVER)
        write_back(logits, indices, part)


class TypicalP:
    """Keeps the tokens whose surprise is nearest to the entropy, until ``typical_p`` is reached (arXiv 2202.00666)."""

    name = "typical_p"

    def prepare(self, need: SamplingNeed) -> float | None:
        return need.params.typical_p if need.params.typical_p < 1.0 and not need.greedy else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[float]
    ) -> None:
        part = selected(logits, indices)
        logprobs = part.log_softmax(dim=-1).double()
        probs = logprobs.exp()
        entropy = -(probs * logprobs).nan_to_num(nan=0.0).sum(dim=-1, keepdim=True)
        distance = (-logprobs - entropy).abs()
        nearest, order = distance.sort(dim=-1, stable=True)
        cumulated = probs.gather(1, order).cumsum(dim=-1)
        last = (cumulated < _column(own, torch.float64)).sum(dim=-1, keepdim=True).clamp_(max=probs.shape[1] - 1)
        part.masked_fill_(distance > nearest.gather(1, last), NEVER)
        write_back(logits, indices, part)


def _column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(1)
