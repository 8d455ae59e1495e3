"""What a device can, by its compute capability: for launches, and for what is compiled ahead of time for others.

Devices of ROCm call themselves "cuda" in torch, with numbers of their own. Knows no kernel.
"""

from __future__ import annotations

from functools import cache

import torch

Capability = tuple[int, int]
NONE: Capability = (0, 0)


@cache
def capability_of(device: torch.device) -> Capability:
    """Of NVIDIA's devices; NONE of others, and in the interpreter."""
    if device.type != "cuda" or torch.version.hip is not None:
        return NONE
    return torch.cuda.get_device_capability(device)


def multiplies_float8(capability: Capability) -> bool:
    """Whether the matrix units multiply e4m3 as the Open Compute Project defines it."""
    return capability >= (8, 9)


def multiplies_from_shared_memory(capability: Capability) -> bool:
    """Whether matrix instructions take operands from there (wgmma, tcgen05), and so need no registers for them."""
    return capability[0] in (9, 10)


def launches_dependents(capability: Capability) -> bool:
    """Whether a kernel may begin while the one in front of it ends."""
    return capability >= (9, 0)


@cache
def device_sizes(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, shared memory of each in bytes). In the interpreter the former are few and no divisor of usual
    sizes."""
    if device.type != "cuda":
        return 3, 228 << 10
    facts = torch.cuda.get_device_properties(device)
    return int(facts.multi_processor_count), int(facts.shared_memory_per_multiprocessor)
