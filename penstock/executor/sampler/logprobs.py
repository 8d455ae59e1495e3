"""Log-probabilities of the model's own distribution, before any step changes it. Knows no sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penstock.types.request import MAX_LOGPROBS
from penstock.types.result import TokenLogprobs


class RawLogprobs:
    """Taken before the pipeline runs, described once the tokens are known. Owns a [n, vocab] float32 copy."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logprobs = logits.log_softmax(dim=-1)

    def describe(self, chosen: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
        """Row r: the chosen token, then its ``num_top[r]`` most likely ones (the chosen among them if it is one).

        ``num_top`` is at most MAX_LOGPROBS. So many are always looked for: which of several equals a selection finds
        depends on its size, and no answer may depend on what other rows ask.
        """
        picks = torch.tensor(chosen, dtype=torch.int64).unsqueeze(1)
        values = self._logprobs.gather(1, picks)
        ranks = ((self._logprobs > values).sum(dim=-1) + 1).tolist()
        width = min(MAX_LOGPROBS, self._logprobs.shape[1]) if any(num_top) else 0
        top = self._logprobs.topk(width, dim=-1)
        top_ids, top_values = top.indices.tolist(), top.values.tolist()
        return [
            TokenLogprobs((token, *ids[:count]), (value, *numbers[:count]), rank)
            for token, value, ids, numbers, count, rank in zip(
                chosen, values.squeeze(1).tolist(), top_ids, top_values, num_top, ranks, strict=True
            )
        ]
