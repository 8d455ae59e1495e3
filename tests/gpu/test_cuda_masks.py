"""``tests/cpu/test_device_masks.py`` on a card, recorded and not, in float32, and the kernel on logits of a large
vocabulary."""

from __future__ import annotations

import pytest
import torch
from test_cuda_edits import start  # noqa: F401 - the fixture
from test_device_masks import *  # noqa: F403

from penstock.executor.device_masks import DeviceMasks
from penstock.kernels import aten
from penstock.kernels.triton.edits import mask_logits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LARGE = 151936


@pytest.mark.parametrize("vocab", [LARGE, 128256, 50257])
def test_many_rows_of_a_large_vocabulary(vocab: int) -> None:
    """Steps follow each other without waiting, as many as may be in flight and more."""
    device, rows = torch.device("cuda"), 256
    noise = torch.Generator().manual_seed(vocab)
    masks = DeviceMasks(rows, vocab, mask_logits, 3, device)
    for count in (1, rows, 64, 3):
        words = torch.randint(-(1 << 31), 1 << 31, (count, -(-vocab // 32)), generator=noise).to(torch.int32)
        at = torch.randperm(rows, generator=noise)[:count]
        logits = torch.randn(rows, vocab, device=device)
        want = logits.clone()
        aten.mask_logits(want, at.to(device), words.to(device))
        masks.apply(logits, {row: words[i].numpy().tobytes() for i, row in enumerate(at.tolist())})
        assert torch.equal(logits, want)
        assert torch.isinf(logits).any()
