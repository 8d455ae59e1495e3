"""Where the tensors of a platform live, and what is settled before the first of them does. Knows no op."""

from __future__ import annotations

import os

import torch

from penstock.config.env import cache_dir
from penstock.errors import ConfigError
from penstock.types.facts import PlatformFacts

CPU = torch.device("cpu")
BUS_ORDER = "PCI_BUS_ID"  # in which the facts are; see ``platforms.nvml``


def device_of(platform: PlatformFacts) -> torch.device:
    """The torch device of a platform's first accelerator, or the CPU."""
    return torch.device("cuda", 0) if platform.name == "cuda" else CPU


def prepare_device(platform: PlatformFacts) -> None:
    """Before anything is computed on ``device_of`` a platform with accelerators. Kernels that Triton compiles are kept
    in the cache directory, unless TRITON_CACHE_DIR names another one.

    Raises ConfigError when torch counts devices in another order than the facts do, so that it would compute on another
    one. A slice of a device has an identifier of its own, which the facts do not know: it is taken.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
    order = os.environ.get("CUDA_DEVICE_ORDER", "")
    wanted, others = platform.device, platform.accelerators[1:]
    if wanted is None or not wanted.uuid or (order == BUS_ORDER and not others):
        return
    found = torch.cuda.get_device_properties(device_of(platform))
    uuid = f"GPU-{getattr(found, 'uuid', '')}"
    known = uuid in [each.uuid for each in others]
    if known or (order != BUS_ORDER and uuid not in ("GPU-", wanted.uuid) and "MIG" not in found.name):
        why = f"it is {order or 'not set'}" if order != BUS_ORDER else "CUDA was started before it was set"
        raise ConfigError(
            f"Set CUDA_DEVICE_ORDER={BUS_ORDER} before the start: {why}, so that CUDA's first device is {found.name} "
            f"({uuid}), and the first one that was found is {wanted.name} ({wanted.uuid})."
        )
