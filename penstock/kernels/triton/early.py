"""Programmatic dependent launch: a kernel begins while the one in front of it ends, and waits for it where it has to.

Steps of few rows are hundreds of kernels of a few microseconds; starting one takes as long as a tenth of it. With an
early launch that time passes beside the kernel in front (NVIDIA's programming guide; compute capability 9.0). Such a
kernel reads nothing but weights, and writes nothing, before it has waited. Others may stand between: they begin when
everything in front of them has ended. Knows no op.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def launches_early(device: torch.device) -> bool:
    """Whether kernels on the device are launched so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def early_launch(pdl: bool) -> dict[str, bool]:
    """Options of a launch whose kernel waits."""
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def wait_for_the_kernel_before():
    """Everything that is read may still be being written, by any kernel in front; the next one may begin."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
