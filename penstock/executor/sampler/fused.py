"""The cuts and the draw of many rows in one op, where an implementation of it can run. Knows no mask and no penalty.

Temperature, min_p, top_k, top_p and the draw mean what the steps of ``truncation`` and ``draw`` mean; typical_p stays
with the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import NoBackendError
from penstock.executor.sampler.rows import FusedCuts
from penstock.executor.sampler.truncation import MIN_TEMPERATURE
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import choose_op
from penstock.types.decision import Decision
from penstock.types.facts import PlatformFacts
from penstock.types.request import SamplingParams

SampleOp = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_sample_op(platform: PlatformFacts) -> tuple[SampleOp | None, Decision]:
    """The op that samples float32 logits; None when nothing but the steps can run, for the reasons in the Decision."""
    try:
        return choose_op("sample", OpSpec(dtype="float32", platform=platform))
    except NoBackendError as error:
        if error.decision is None:
            raise
        return None, error.decision


def fused_cuts(params: SamplingParams, vocab_size: int) -> FusedCuts | None:
    """What the op is told about a request that is not greedy; None when it needs a step that the op has not."""
    if params.typical_p < 1.0:
        return None
    top_k = params.top_k if 0 < params.top_k < vocab_size else vocab_size
    return FusedCuts(max(params.temperature, MIN_TEMPERATURE), params.min_p, top_k, params.top_p)


def draw_fused(
    op: SampleOp, logits: torch.Tensor, cuts: Sequence[FusedCuts], uniforms: npt.NDArray[np.float64]
) -> tuple[list[int], list[bool]]:
    """Token ids, and whether all logits of the row were finite. logits float32 [n, vocab] stay as they are."""
    temperature, min_p, top_k, top_p = zip(*cuts, strict=True)
    device = logits.device
    tokens, finite = op(
        logits,
        torch.tensor(temperature, dtype=torch.float32, device=device),
        torch.tensor(min_p, dtype=torch.float32, device=device),
        torch.tensor(top_k, dtype=torch.int64, device=device),
        torch.tensor(top_p, dtype=torch.float64, device=device),
        torch.from_numpy(uniforms).to(device),
    )
    return tokens.tolist(), finite.tolist()
