"""Log-probabilities of sampled tokens in steps that are launched: computed on the device, copied behind the step.

What ``sampler.logprobs`` does on the host, of the model's own distribution. Knows no plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from penstock.types.request import MAX_LOGPROBS
from penstock.types.result import TokenLogprobs

ROWS_AT_ONCE = 32
TEMPORARY_BYTES = 4 + 4 + 1 + 4  # of a row and token at once: log-probabilities, what they are compared and sorted with

Described = tuple[torch.Tensor, ...]  # values [n], ranks [n], ids and values of the likeliest [n, width]


def described_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """A copy of all rows' logits, which are edited in place, and what ``describe`` takes for a moment."""
    return vocab_size * (4 * max_num_seqs + TEMPORARY_BYTES * min(ROWS_AT_ONCE, max_num_seqs))


def describe(logits: torch.Tensor, token_ids: torch.Tensor) -> Described:
    """logits float32 [n, vocab] before any step changes them, tokens int64 [n]; those of -1 are described as any."""
    width = min(MAX_LOGPROBS, logits.shape[1])
    picks = token_ids.clamp(min=0)[:, None]
    parts = []
    for begin in range(0, logits.shape[0], ROWS_AT_ONCE):
        logprobs = logits[begin : begin + ROWS_AT_ONCE].log_softmax(dim=-1)
        values = logprobs.gather(1, picks[begin : begin + ROWS_AT_ONCE])
        ranks = (logprobs > values).sum(dim=-1) + 1
        top = logprobs.topk(width, dim=-1)
        parts.append((values.squeeze(1), ranks, top.indices, top.values))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


class DescribedPlace:
    """Host memory that one step in flight copies to."""

    def __init__(self, max_rows: int, vocab_size: int, *, pinned: bool) -> None:
        width = min(MAX_LOGPROBS, vocab_size)
        self._tensors = (
            torch.zeros(max_rows, dtype=torch.float32, pin_memory=pinned),
            torch.zeros(max_rows, dtype=torch.int64, pin_memory=pinned),
            torch.zeros(max_rows, width, dtype=torch.int64, pin_memory=pinned),
            torch.zeros(max_rows, width, dtype=torch.float32, pin_memory=pinned),
        )

    def copy(self, described: Described, count: int) -> None:
        for host, computed in zip(self._tensors, described, strict=True):
            host[:count].copy_(computed[:count], non_blocking=True)

    def entries(self, tokens: Mapping[int, int], num_top: Mapping[int, int]) -> dict[int, TokenLogprobs]:
        """Of the rows in ``tokens``, once the copy is there: the token, then its ``num_top`` likeliest ones."""
        values, ranks, top_ids, top_values = (tensor.numpy() for tensor in self._tensors)
        return {
            row: TokenLogprobs(
                (token, *top_ids[row, : num_top[row]].tolist()),
                (float(values[row]), *top_values[row, : num_top[row]].tolist()),
                int(ranks[row]),
            )
            for row, token in tokens.items()
        }
