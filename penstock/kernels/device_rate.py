"""How fast the memory of a CUDA device is: a short copy, once per device and driver. Knows no op.

A copy reads and writes at once, as steps of many rows do; it is what a roofline can promise, where the data sheet's
rate is what no program reaches.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging

import torch

from penstock.kernels.device import device_of, prepare_device
from penstock.platforms.rates import keep_rate
from penstock.types.facts import PlatformFacts

COPY_BYTES = 256 << 20  # more than any second-level cache of one device holds
_REPEATS = 32  # of 0.13 ms at 4 TB/s; clocks rise in the first ones

log = logging.getLogger(__name__)


def with_measured_rate(platform: PlatformFacts) -> PlatformFacts:
    """``platform`` with ``copied_bytes_per_s`` of the device that is computed on; measured, and kept for other
    processes, if it has not been. Other platforms, and a device without room or in trouble, stay as they are."""
    device = platform.device
    if device is None or device.kind != "cuda" or device.copied_bytes_per_s:
        return platform
    try:
        prepare_device(platform)
        rate = copied_bytes_per_s(device_of(platform))
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        log.info("the rate of the device's memory was not measured: %s", error)
        return platform
    keep_rate(device, rate)
    measured = dataclasses.replace(device, copied_bytes_per_s=rate)
    return dataclasses.replace(platform, accelerators=(measured, *platform.accelerators[1:]))


def copied_bytes_per_s(device: torch.device) -> int:
    """Bytes read plus bytes written in a second, of the fastest of some copies. Takes a few hundredths of a second, and
    512 MiB meanwhile."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        target.copy_(source)
        mark.record()
    marks[-1].synchronize()
    fastest = min(begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)) / 1e3
    del source, target
    torch.cuda.empty_cache()
    return int(2 * COPY_BYTES / fastest)
