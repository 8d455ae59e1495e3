"""The sampler: runs the pipeline over the rows of one step. Knows no model, no seats' bookkeeping and no plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.executor.sampler.counter_random import seed_of, uniform
from penstock.executor.sampler.draw import draw
from penstock.executor.sampler.fused import SampleOp, draw_fused, fused_cuts
from penstock.executor.sampler.logprobs import RawLogprobs
from penstock.executor.sampler.masks import AllowedTokens, BadTokens, LogitBias, MinTokens, apply_bitmask
from penstock.executor.sampler.penalties import Penalties
from penstock.executor.sampler.rows import SampleRow, SamplerStep, SamplingNeed, SeatSampling, selected
from penstock.executor.sampler.truncation import MinP, Temperature, TopK, TopP, TypicalP
from penstock.types.request import SamplingParams
from penstock.types.result import RowFailure, TokenLogprobs

MASKS: tuple[SamplerStep[Any], ...] = (AllowedTokens(), BadTokens(), MinTokens())
SHIFTS: tuple[SamplerStep[Any], ...] = (LogitBias(), Penalties())
CUTS: tuple[SamplerStep[Any], ...] = (Temperature(), MinP(), TopK(), TopP(), TypicalP())
STEPS = MASKS + SHIFTS + CUTS
_MASKS = range(len(MASKS))
_SHIFTS = range(len(MASKS), len(MASKS + SHIFTS))
_CUTS = range(len(MASKS + SHIFTS), len(STEPS))

# Rows run through the whole pipeline in tiles of so many logits (2 MiB), so that every step finds them in a core's
# cache. No answer depends on the tiles.
TILE_ELEMENTS = 1 << 19

NOT_FINITE = RowFailure("The model's logits are not finite; the weights, the dtype or the input overflow.")
NO_TOKEN_LEFT = RowFailure(
    "No token is allowed here: the token mask, allowed tokens, bad tokens and min_tokens exclude all.", by_request=True
)
EMPTY_MASK = RowFailure("The token mask of this position allows no token.")
OVERFLOW = RowFailure("The logit bias and the penalties move the model's logits out of float32's range.")


@dataclass(frozen=True, slots=True)
class Sampled:
    """``tokens[i]`` answers row i; it is meaningless where ``failed`` has an entry."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    failed: dict[int, RowFailure] = field(default_factory=dict)

    def replaced(self, rows: Sequence[int], others: Sampled) -> Sampled:
        """With these rows as ``others`` answers them, in order."""
        tokens = list(self.tokens)
        logprobs, failed = dict(self.logprobs), dict(self.failed)
        for index, row in enumerate(rows):
            tokens[row] = others.tokens[index]
            logprobs.pop(row, None)
            failed.pop(row, None)
        logprobs |= {rows[index]: entry for index, entry in others.logprobs.items()}
        failed |= {rows[index]: failure for index, failure in others.failed.items()}
        return Sampled(tokens, logprobs, failed)


class Sampler:
    """``seed`` is the engine's: it seeds the requests that bring no seed of their own. ``op`` cuts and draws at once
    where a row needs no more; without it the steps do."""

    def __init__(self, vocab_size: int, seed: int = 0, op: SampleOp | None = None) -> None:
        self.vocab_size = vocab_size
        self._seed = seed
        self._op = op

    def admit(self, request_id: int, params: SamplingParams, num_prompt_tokens: int) -> SeatSampling:
        """Prepare what the request's rows will need."""
        need = SamplingNeed(params=params, num_prompt_tokens=num_prompt_tokens, vocab_size=self.vocab_size)
        prepared = tuple(step.prepare(need) for step in STEPS)
        unchanged = all(prepared[place] is None for place in (*_MASKS, *_SHIFTS))
        return SeatSampling(
            params=params,
            seed=seed_of(params.seed, self._seed, request_id),
            num_prompt_tokens=num_prompt_tokens,
            greedy=need.greedy,
            prepared=prepared,
            plain=unchanged and params.logprobs is None,
            fused=None if need.greedy or self._op is None else fused_cuts(params, self.vocab_size),
        )

    def sample(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> Sampled:
        """One token per row. logits [len(rows), vocab] float32 belong to the sampler, which changes them in place."""
        if all(row.seat.plain_greedy and row.mask is None for row in rows):
            return Sampled(logits.argmax(dim=-1).tolist(), failed=_not_finite(logits)) if rows else Sampled([])
        if all(row.seat.plain and row.seat.fused is not None and row.mask is None for row in rows):
            tokens, finite = self._draw_fused(logits, rows)
            return Sampled(tokens, failed={i: NOT_FINITE for i, sound in enumerate(finite) if not sound})
        size = max(1, TILE_ELEMENTS // logits.shape[1])
        if len(rows) <= size:
            return self._sample_tile(logits, rows)
        answer = Sampled([])
        for begin in range(0, len(rows), size):
            tile = self._sample_tile(logits[begin : begin + size], rows[begin : begin + size])
            answer.tokens.extend(tile.tokens)
            answer.logprobs.update((begin + i, entry) for i, entry in tile.logprobs.items())
            answer.failed.update((begin + i, failure) for i, failure in tile.failed.items())
        return answer

    def _sample_tile(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> Sampled:
        failed = _not_finite(logits)
        for index in failed:
            logits[index] = 0.0  # keeps the arithmetic of the batch clean; the answer is not used
        asked = [i for i, row in enumerate(rows) if row.seat.params.logprobs is not None and i not in failed]
        raw = RawLogprobs(logits if len(asked) == len(rows) else logits[torch.tensor(asked)]) if asked else None
        failed = self._transform(logits, rows) | failed  # the first reason stays
        tokens = self._choose(logits, rows)
        described: dict[int, TokenLogprobs] = {}
        if raw is not None:
            num_top = [rows[i].seat.params.logprobs or 0 for i in asked]
            described = dict(zip(asked, raw.describe([tokens[i] for i in asked], num_top), strict=True))
            described = {i: entry for i, entry in described.items() if i not in failed}
        return Sampled(tokens, described, failed)

    def _transform(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> dict[int, RowFailure]:
        """Run the steps over the rows that need them; answers the rows that cannot go on. The logits that reach the
        cuts and the draw have a finite maximum, which is all that those need never to fail."""
        for index, row in enumerate(rows):
            if row.mask is not None:
                apply_bitmask(logits[index], row.mask)
        self._run(_MASKS, logits, rows)
        failed = _spoiled(logits, [i for i, row in enumerate(rows) if row.mask is not None or _needs(row, _MASKS)])
        answer = {i: NO_TOKEN_LEFT if _needs(rows[i], _MASKS) else EMPTY_MASK for i in failed}
        self._run(_SHIFTS, logits, rows)
        shifted = _spoiled(logits, [i for i, row in enumerate(rows) if _needs(row, _SHIFTS)])
        answer |= dict.fromkeys(shifted, OVERFLOW)
        return answer

    def _run(self, places: range, logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
        for place in places:
            indices = [i for i, row in enumerate(rows) if row.seat.prepared[place] is not None]
            if indices:
                part = [rows[i] for i in indices]
                STEPS[place].apply(logits, indices, part, [row.seat.prepared[place] for row in part])

    def _choose(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
        """Cut and draw. Rows that the op takes are drawn by it, whatever is beside them."""
        tokens = [0] * len(rows)
        fused = [i for i, row in enumerate(rows) if row.seat.fused is not None]
        if fused:
            answers, _ = self._draw_fused(logits[torch.tensor(fused)], [rows[i] for i in fused])
            for i, token in zip(fused, answers, strict=True):
                tokens[i] = token
        rest = [i for i, row in enumerate(rows) if row.seat.fused is None]
        if rest:
            part, part_rows = selected(logits, rest), [rows[i] for i in rest]
            self._run(_CUTS, part, part_rows)
            for i, token in zip(rest, self._draw(part, part_rows), strict=True):
                tokens[i] = token
        return tokens

    def _draw(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
        random = [i for i, row in enumerate(rows) if not row.seat.greedy]
        if not random:
            return list(logits.argmax(dim=-1).tolist())
        uniforms = _uniforms([rows[i] for i in random])
        if len(random) == len(rows):
            return list(draw(logits, uniforms).tolist())
        at = torch.tensor(random)
        tokens = logits.argmax(dim=-1)
        tokens[at] = draw(logits[at], uniforms)
        return list(tokens.tolist())

    def _draw_fused(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> tuple[list[int], list[bool]]:
        assert self._op is not None
        cuts = [row.seat.fused for row in rows if row.seat.fused is not None]
        return draw_fused(self._op, logits, cuts, _uniforms(rows))


def _uniforms(rows: Sequence[SampleRow]) -> npt.NDArray[np.float64]:
    """A number of each row that depends on its request's seed and its position alone."""
    seeds = np.array([row.seat.seed for row in rows], dtype=np.uint64)
    return uniform(seeds, np.array([row.num_output for row in rows], dtype=np.uint64))


def _not_finite(logits: torch.Tensor) -> dict[int, RowFailure]:
    """Rows with a NaN or an infinity. A sum finds them in one pass; it may overflow, so suspects are looked at."""
    suspects = torch.isfinite(logits.sum(dim=-1)).logical_not_().nonzero().flatten().tolist()
    return {i: NOT_FINITE for i in suspects if not bool(torch.isfinite(logits[i]).all())}


def _needs(row: SampleRow, places: range) -> bool:
    return any(row.seat.prepared[place] is not None for place in places)


def _spoiled(logits: torch.Tensor, suspects: Sequence[int]) -> list[int]:
    """Those of the rows ``suspects`` whose maximum is not finite: nothing is left of them, or they overflowed. Their
    logits are made harmless for the steps that follow."""
    if not suspects:
        return []
    sound = torch.isfinite(logits[torch.tensor(suspects)].amax(dim=-1)).tolist()
    failed = [i for i, fine in zip(suspects, sound, strict=True) if not fine]
    for index in failed:
        logits[index] = 0.0
    return failed
