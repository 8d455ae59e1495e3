"""What this machine gives at most: bytes read and operations done per second, measured by loops that do nothing else.

Knows no op. The measure of the roofline (Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from penstock.bench.device_ceilings import CACHED_BYTES, COPY_BYTES, FLOAT32_SIZE, MATRIX_SIZE, copy_gb_s, product_gop_s
from penstock.kernels.device import device_of
from penstock.kernels.native import BF16_ISA_NEEDS, ISA_MACHINES, ceilings
from penstock.kernels.native.extension import ISAS, extension
from penstock.types.facts import PlatformFacts

SHARED_CACHE_BYTES = 32 << 20  # of the buffer that stands for what caches hold in part
OWN_CACHE_BYTES = 256 << 10  # of one thread's buffer that stands for what its second-level cache holds
FIRST_CACHE_BYTES = 16 << 10  # the same of the first level
_CHUNK_BYTES = OWN_CACHE_BYTES
_REPEAT_S = 0.02  # a repeat takes about so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """All threads together. Memory: a buffer that no cache holds; shared_cache: one of 32 MiB; own_cache and
    first_cache: 256 KiB and 16 KiB for each thread. Operations by type of the products, with the best instruction set
    that the processor has for it.

    Of a CUDA device, which has 0 threads: bytes copied, read and written ones together; every cache stands for the
    second-level one."""

    threads: int
    memory_gb_s: float
    shared_cache_gb_s: float
    own_cache_gb_s: float
    first_cache_gb_s: float
    gop_s: Mapping[str, float]

    def warm_gb_s(self, num_bytes: int) -> float:
        """Of data that was just written or read, by its size."""
        if num_bytes <= FIRST_CACHE_BYTES * self.threads:
            return self.first_cache_gb_s
        if num_bytes <= OWN_CACHE_BYTES * self.threads:
            return self.own_cache_gb_s
        return self.shared_cache_gb_s if num_bytes <= SHARED_CACHE_BYTES else self.memory_gb_s


def beyond_caches(cache_bytes: int) -> int:
    """Bytes of a set of data of which a run over it finds next to nothing in a last-level cache of ``cache_bytes``."""
    return 4 * max(cache_bytes, SHARED_CACHE_BYTES)


def usable_isas(platform: PlatformFacts) -> tuple[str, ...]:
    """Instruction sets of the extension that the processor has, best first. None without the extension."""
    if platform.extension_missing:
        return ()
    return tuple(
        isa
        for isa, needs in BF16_ISA_NEEDS.items()
        if ISA_MACHINES.get(isa, platform.machine) == platform.machine and set(needs) <= set(platform.instruction_sets)
    )


def measure_ceilings(platform: PlatformFacts, cache_bytes: int, repeats: int = 9) -> Ceilings:
    """The best of ``repeats`` runs of each loop, on as many threads as the extension's pool has, or on the device.

    Everything else on the machine lowers it: measure when nothing else runs. Raises ImportError without the extension.
    """
    if platform.name == "cuda":
        return _measure_device(device_of(platform), repeats)
    isas = [ISAS[isa] for isa in usable_isas(platform)]
    reader = next(ISAS[isa] for isa in usable_isas(platform) if not isa.endswith("_bf16"))
    threads = extension().num_threads()
    buffer = torch.ones(2 * beyond_caches(cache_bytes), dtype=torch.uint8)

    def reading(size: int) -> float:
        part = buffer[:size]
        return _rate(lambda times: ceilings.read_bytes(reader, part, _CHUNK_BYTES, times), repeats)

    def reading_own(size: int) -> float:
        part = buffer[: threads * size]
        return _rate(lambda times: ceilings.read_bytes(reader, part, size, times, own=True), repeats)

    def computing(kind: str) -> float:
        isa = next((isa for isa in isas if ceilings.multiply_add(isa, kind, 1)), None)
        return 0.0 if isa is None else _rate(lambda times: ceilings.multiply_add(isa, kind, times), repeats)

    return Ceilings(
        threads=threads,
        memory_gb_s=reading(buffer.numel()),
        shared_cache_gb_s=reading(SHARED_CACHE_BYTES),
        own_cache_gb_s=reading_own(OWN_CACHE_BYTES),
        first_cache_gb_s=reading_own(FIRST_CACHE_BYTES),
        gop_s={kind: computing(kind) for kind in ceilings.KINDS},
    )


def _measure_device(device: torch.device, repeats: int) -> Ceilings:
    cached = copy_gb_s(CACHED_BYTES, device, repeats)
    return Ceilings(
        threads=0,
        memory_gb_s=copy_gb_s(COPY_BYTES, device, repeats),
        shared_cache_gb_s=cached,
        own_cache_gb_s=cached,
        first_cache_gb_s=cached,
        gop_s={
            "float32": product_gop_s(FLOAT32_SIZE, torch.float32, device, repeats),
            "bfloat16": product_gop_s(MATRIX_SIZE, torch.bfloat16, device, repeats),
            "float16": product_gop_s(MATRIX_SIZE, torch.float16, device, repeats),
            "int8": 0.0,
        },
    )


def _rate(run: Callable[[int], int], repeats: int) -> float:
    """The most that ``run(times)`` answers per nanosecond, in runs that take long enough."""
    times, done, best = 1, 0, 0.0
    while done < repeats:
        started = time.perf_counter()
        amount = run(times)
        seconds = time.perf_counter() - started
        if seconds < _REPEAT_S:
            times = max(times + 1, min(8 * times, int(1.2 * times * _REPEAT_S / seconds)))
        else:
            best, done = max(best, amount / seconds), done + 1
    return round(best / 1e9, 1)
