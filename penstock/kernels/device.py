"""Where the tensors of a platform live, and what is settled before the first of them does. Knows no op."""

from __future__ import annotations

import os

import torch

from penstock.config.env import cache_dir
from penstock.errors import ConfigError
from penstock.types.facts import PlatformFacts

CPU = torch.device("cpu")


def device_of(platform: PlatformFacts) -> torch.device:
    """The torch device of a platform's first accelerator, or the CPU."""
    return torch.device("cuda", 0) if platform.name == "cuda" else CPU


def prepare_device(platform: PlatformFacts) -> None:
    """Before anything is computed on ``device_of`` a platform with accelerators. Kernels that Triton compiles are kept
    in the cache directory, unless TRITON_CACHE_DIR names another one.

    Raises ConfigError when torch counts devices in another order than the facts do, so that it would compute on one of
    the others.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
    if len(platform.accelerators) < 2:
        return
    wanted, *others = platform.accelerators
    found = f"GPU-{getattr(torch.cuda.get_device_properties(device_of(platform)), 'uuid', '')}"
    other = next((each for each in others if each.uuid == found), None)
    if other is not None:
        order = os.environ.get("CUDA_DEVICE_ORDER")
        set_to = f"it is {order}" if order != "PCI_BUS_ID" else "CUDA was started before it was set"
        raise ConfigError(
            f"Set CUDA_DEVICE_ORDER=PCI_BUS_ID before the start: {set_to}, so that CUDA's first device is {other.name} "
            f"({other.uuid}), and the first one that was found is {wanted.name} ({wanted.uuid})."
        )
