"""``tests/cpu/test_device_masks.py`` on a card, recorded and not, in float32, and the kernel on logits of a large
vocabulary."""

from __future__ import annotations

import pytest
import test_cuda_edits
import torch
from test_device_masks import *  # noqa: F403
from test_device_masks import LocalExecutor, PlanMaker, runner_of

from penstock.executor.device_masks import DeviceMasks
from penstock.kernels import aten
from penstock.kernels.triton import lazy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LARGE = 151936
start = test_cuda_edits.start  # instead of the CPU's


def test_steps_are_on_the_card(device: tuple[LocalExecutor, PlanMaker]) -> None:
    assert runner_of(device[0])._last_tokens.device.type == "cuda"


@pytest.mark.parametrize("vocab", [LARGE, 128256, 50257])
def test_many_rows_of_a_large_vocabulary(vocab: int) -> None:
    """Steps follow each other without waiting, as many as may be in flight and more."""
    card, rows = torch.device("cuda"), 256
    noise = torch.Generator().manual_seed(vocab)
    masks = DeviceMasks(rows, vocab, lazy("edits", "mask_logits"), 3, card)
    for count in (1, rows, 64, 3):
        words = torch.randint(-(1 << 31), 1 << 31, (count, -(-vocab // 32)), generator=noise).to(torch.int32)
        at = torch.randperm(rows, generator=noise)[:count]
        logits = torch.randn(rows, vocab, device=card)
        want = logits.clone()
        aten.mask_logits(want, at.to(card), words.to(card))
        masks.apply(logits, {row: words[i].numpy().tobytes() for i, row in enumerate(at.tolist())})
        assert torch.equal(logits, want)
        assert torch.isinf(logits).any()
