"""Where the tensors of a platform live, and memory for results there. Knows no op."""

from __future__ import annotations

import torch

from penstock.kernels.native.memory import empty
from penstock.types.facts import PlatformFacts

CPU = torch.device("cpu")


def device_of(platform: PlatformFacts) -> torch.device:
    """The torch device of a platform's first accelerator, or the CPU."""
<<<<<<< HEAD
    return torch.device("cuda", 0) if platform.name == "cuda" else CPU
=======
    return torch.device("cuda", 0) if platform.name == "cuda" else torch.device("cpu")


def empty_on(platform: PlatformFacts, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a result that several ops write."""
    device = device_of(platform)
    return empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)
>>>>>>> wt-linear
