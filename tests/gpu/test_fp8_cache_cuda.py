"""The scales of a checkpoint's float8 cache on a card, as ``tests/cpu/test_fp8_checkpoints.py`` checks them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_fp8_checkpoints import CACHE_SCALES, check_scales_are_used

from penstock.platforms.probe import probe_platform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "eager"])
@pytest.mark.parametrize("tool", CACHE_SCALES)
def test_scales_are_read_and_used(tool: str, graphs: bool, tmp_path: Path) -> None:
    # Dense products: the reference's activations are not rounded to float8.
    backends = {"attention_backend": "cuda_triton", "linear_backend": "dense"}
    check_scales_are_used(tmp_path, tool, 2e-3, platform=probe_platform(), graphs=graphs, **backends)
