"""Steps that forbid tokens or shift their logits: grammar, allowed, bad, min_tokens, bias. Know no probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.executor.sampler.rows import SampleRow, SamplingNeed, token_index

NEVER = float("-inf")


# What is added to the logits of eight tokens, by the byte of a mask that holds their bits, lowest first: [256, 8]
# float32. Looking a byte up and adding takes a sixth of the time of writing minus infinity where bits are 0.
_STEPS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0.0, NEVER).astype(
    np.float32
)


def apply_bitmask(row: torch.Tensor, mask: bytes) -> None:
    """Forbid the tokens of row [vocab] float32 whose bit is 0, and those past the mask's end. Its logits are finite."""
    steps = _STEPS.take(np.frombuffer(mask, dtype=np.uint8), axis=0).reshape(-1)[: row.shape[0]]
    row[: len(steps)].add_(torch.from_numpy(steps).to(row.device))
    row[len(steps) :] = NEVER


class AllowedTokens:
    """Only ``allowed_token_ids`` may be sampled."""

    name = "allowed_tokens"

    def prepare(self, need: SamplingNeed) -> torch.Tensor | None:
        allowed = need.params.allowed_token_ids
        return token_index(allowed, need.vocab_size) if allowed else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[torch.Tensor]
    ) -> None:
        for index, allowed in zip(indices, own, strict=True):
            kept = logits[index, allowed]
            logits[index] = NEVER
            logits[index, allowed] = kept


@dataclass(frozen=True, slots=True)
class BadSequences:
    single: torch.Tensor  # ids that are forbidden always
    longer: tuple[tuple[int, ...], ...]
    max_prefix: int


class BadTokens:
    """No sequence of ``bad_token_ids`` may be completed: its last token is forbidden after its first ones.

    Prompt tokens count, as in transformers' NoBadWordsLogitsProcessor.
    """

    name = "bad_tokens"

    def prepare(self, need: SamplingNeed) -> BadSequences | None:
        sequences = need.params.bad_token_ids
        longer = tuple(s for s in sequences if len(s) > 1 and 0 <= s[-1] < need.vocab_size)
        single = token_index([s[0] for s in sequences if len(s) == 1], need.vocab_size)
        if not longer and not len(single):
            return None
        return BadSequences(single, longer, max((len(s) - 1 for s in longer), default=0))

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[BadSequences]
    ) -> None:
        for index, row, bad in zip(indices, rows, own, strict=True):
            logits[index, bad.single] = NEVER
            if not bad.longer:
                continue
            tail = tuple(row.tokens[-bad.max_prefix :].tolist())
            last = [s[-1] for s in bad.longer if tail[len(tail) - len(s) + 1 :] == s[:-1]]
            if last:
                logits[index, last] = NEVER


class MinTokens:
    """Stop tokens are forbidden before ``min_tokens`` output tokens."""

    name = "min_tokens"

    def prepare(self, need: SamplingNeed) -> torch.Tensor | None:
        stops = token_index(need.params.stop_token_ids, need.vocab_size)
        return stops if need.params.min_tokens and len(stops) else None

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[torch.Tensor]
    ) -> None:
        for index, row, stops in zip(indices, rows, own, strict=True):
            if row.num_output < row.seat.params.min_tokens:
                logits[index, stops] = NEVER


@dataclass(frozen=True, slots=True)
class Bias:
    token_ids: torch.Tensor
    values: torch.Tensor


class LogitBias:
    """Adds ``logit_bias`` (OpenAI)."""

    name = "logit_bias"

    def prepare(self, need: SamplingNeed) -> Bias | None:
        known = {t: b for t, b in need.params.logit_bias.items() if 0 <= t < need.vocab_size}
        if not known:
            return None
        return Bias(torch.tensor(list(known), dtype=torch.int64), torch.tensor(list(known.values())))

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[Bias]
    ) -> None:
        for index, bias in zip(indices, own, strict=True):
            logits[index, bias.token_ids] += bias.values
