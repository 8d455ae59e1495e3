"""Repetition, presence and frequency penalties over counts that are kept per seat. Knows no probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from penstock.executor.sampler.rows import SampleRow, SamplingNeed, Tokens


class TokenCounts:
    """Which tokens a request has seen, and how often it has produced each. Grows with distinct tokens only.

    Entry e stands for ``ids[e]``: in the prompt or the output; ``counts[e]`` counts the output alone. ``advance``
    takes each final token once, so that a step costs what is new, never the context length.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_taken = 0
        self._entry: dict[int, int] = {}
        self._ids: npt.NDArray[np.int64] = np.zeros(64, dtype=np.int64)
        self._counts: npt.NDArray[np.float32] = np.zeros(64, dtype=np.float32)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids[: len(self._entry)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: len(self._entry)]

    def advance(self, tokens: Tokens, num_final: int) -> None:
        """Take the final tokens that are new since the last call."""
        if self._num_taken < self._num_prompt_tokens:
            prompt = tokens[self._num_taken : min(self._num_prompt_tokens, num_final)]
            for token in np.unique(prompt).tolist():
                self._entry_of(token)
        for token in tokens[max(self._num_taken, self._num_prompt_tokens) : num_final].tolist():
            entry = self._entry_of(token)  # may replace the array that the next line adds to
            self._counts[entry] += 1
        self._num_taken = max(self._num_taken, num_final)

    def with_drafts(self, drafts: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(ids, counts) as if the drafts had been produced; the state stays as it is."""
        counts = self.counts.copy()
        new: dict[int, int] = {}
        for token in drafts:
            if (entry := self._entry.get(token)) is not None:
                counts[entry] += 1
            else:
                new[token] = new.get(token, 0) + 1
        ids = np.concatenate([self.ids, np.fromiter(new, dtype=np.int64, count=len(new))])
        return ids, np.concatenate([counts, np.fromiter(new.values(), dtype=np.float32, count=len(new))])

    def _entry_of(self, token: int) -> int:
        entry = self._entry.setdefault(token, len(self._entry))
        if entry == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[entry] = token
        return entry


class Penalties:
    """Repetition: positive logits of seen tokens are divided, negative ones multiplied (CTRL, arXiv 1909.05858).
    Frequency and presence: minus frequency * count and minus presence of produced tokens (OpenAI)."""

    name = "penalties"

    def prepare(self, need: SamplingNeed) -> TokenCounts | None:
        params = need.params
        neutral = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
        return None if neutral else TokenCounts(need.num_prompt_tokens)

    def apply(
        self, logits: torch.Tensor, indices: Sequence[int], rows: Sequence[SampleRow], own: Sequence[TokenCounts]
    ) -> None:
        ids: list[npt.NDArray[np.int64]] = []
        counts: list[npt.NDArray[np.float32]] = []
        for row, state in zip(rows, own, strict=True):
            state.advance(row.tokens, row.num_committed)
            drafts = row.tokens[row.num_committed :].tolist()
            row_ids, row_counts = state.with_drafts(drafts) if drafts else (state.ids, state.counts)
            ids.append(row_ids)
            counts.append(row_counts)
        lengths = torch.tensor([len(row_ids) for row_ids in ids])
        params = [row.seat.params for row in rows]
        repetition, presence, frequency = (
            torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths)
            for values in (
                [p.repetition_penalty for p in params],
                [p.presence_penalty for p in params],
                [p.frequency_penalty for p in params],
            )
        )
        at = torch.tensor(indices).repeat_interleave(lengths), torch.from_numpy(np.concatenate(ids))
        produced = torch.from_numpy(np.concatenate(counts))
        values = logits[at]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[at] = values - (frequency * produced + presence * (produced > 0))
