"""Triton's kernels beyond what the grids of the op list ask: repeated calls, shapes that are refused, keys of floats.

They run in the interpreter, or on the card where there is one."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which is not installed")

from penstock.kernels import reference
from penstock.kernels.triton import activation, argmax, norm, rotary, rows, sampling, step

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
pytestmark = pytest.mark.skipif(
    not CARD and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a card that torch can use, or the interpreter"
)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE)


def _parameters(count: int, top_p: float = 1.0) -> tuple[torch.Tensor, ...]:
    return (
        torch.ones(count, device=DEVICE),
        torch.zeros(count, device=DEVICE),
        torch.full((count,), 1 << 40, device=DEVICE),
        torch.full((count,), top_p, dtype=torch.float64, device=DEVICE),
        torch.full((count,), 0.5, dtype=torch.float64, device=DEVICE),
    )


@pytest.mark.parametrize("splits", [0, 1, 2, 16])
def test_argmax_leaves_its_counters_as_it_found_them(splits: int) -> None:
    for seed in range(3):
        logits = torch.randn(3, 9000, generator=torch.Generator().manual_seed(seed))
        ids, largest = argmax.argmax(logits.to(DEVICE), splits=splits)
        wanted = reference.argmax(logits)
        assert ids.tolist() == wanted[0].tolist()
        assert largest.tolist() == wanted[1].tolist()
        assert not argmax._arrivals(ids.device).any()


def test_as_many_programs_as_fill_the_card_share_the_rows() -> None:
    assert argmax._splits_for(1, 128256) == argmax.MAX_SPLITS // 2  # a block of the vocabulary each
    assert argmax._splits_for(256, 128256) == 4
    assert argmax._splits_for(argmax.NUM_PROGRAMS, 128256) == 1
    assert argmax._splits_for(1, 7) == 1
    most = max(rows for rows in range(1, 2000) if argmax._splits_for(rows, 1 << 20) > 1)
    assert most == argmax.MAX_SPLIT_ROWS
    with pytest.raises(ValueError, match="splits at most"):
        argmax.argmax(_random(most + 1, 9), splits=2)


def test_a_top_k_beyond_32_bits_cuts_nothing() -> None:
    logits = _random(2, 200)
    ids, _ = sampling.sample(logits, *_parameters(2))
    assert ids.tolist() == reference.sample(logits.cpu(), *(each.cpu() for each in _parameters(2)))[0].tolist()


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_two_runs_draw_the_same_tokens(top_p: float) -> None:
    logits = _random(2, 300)
    assert torch.equal(*(sampling.sample(logits, *_parameters(2, top_p))[0] for _ in range(2)))


def test_layouts_that_a_kernel_would_misread_are_refused() -> None:
    turned = _random(8, 4).T
    weight = torch.ones(8, device=DEVICE)
    with pytest.raises(ValueError, match="contiguous rows"):
        norm.rms_norm(turned, weight, 1e-6)
    with pytest.raises(ValueError, match="float32 weight"):
        norm.rms_norm(_random(4, 8), weight.half(), 1e-6)
    with pytest.raises(ValueError, match="float32 weight"):
        norm.rms_norm(_random(4, 3, 8), _random(2, 8), 1e-6)
    with pytest.raises(ValueError, match="residual"):
        norm.add_rms_norm(_random(4, 8), _random(3, 8), weight, 1e-6)
    with pytest.raises(ValueError, match="contiguous rows"):
        activation.silu_and_mul(turned)
    with pytest.raises(ValueError, match="rows at one distance"):
        activation.silu_and_mul(_random(2, 3, 8)[:, :2])
    with pytest.raises(ValueError, match="one shape"):
        rows.add(_random(4, 8), _random(4, 7))
    with pytest.raises(ValueError, match="contiguous vectors"):
        rows.gather_rows(_random(4, 8), torch.arange(8, device=DEVICE)[::2])
    with pytest.raises(ValueError, match="needs tables"):
        rotary.rotary(_random(4, 2, 8), _random(4, 1, 4), _random(4, 1, 4))
    with pytest.raises(ValueError, match="contiguous vectors"):
        step.keep_tokens(torch.zeros(3, dtype=torch.int64), torch.arange(2), torch.arange(3))
    with pytest.raises(ValueError, match="contiguous vectors"):
        sampling.sample(_random(3, 9), *_parameters(2))
    for op in (argmax.argmax, lambda logits: sampling.sample(logits, *_parameters(2))):
        with pytest.raises(ValueError, match="a token in every row"):
            op(torch.empty(2, 0))
