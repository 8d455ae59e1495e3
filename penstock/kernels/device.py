"""Where the tensors of a platform live. Knows no op."""

from __future__ import annotations

import torch

from penstock.types.facts import PlatformFacts

CPU = torch.device("cpu")


def device_of(platform: PlatformFacts) -> torch.device:
    """The torch device of a platform's first accelerator, or the CPU."""
    return torch.device("cuda", 0) if platform.name == "cuda" else CPU
