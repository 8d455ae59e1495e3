"""What a step takes of a device's memory, measured with the largest step before KV blocks are allocated. Knows no plan.

An estimate would have to know every library's workspace; the device's own counters see all that torch allocates, and
what is free afterwards sees the rest.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from penstock.attention.contract import GroupStep
from penstock.executor.forward import Forward
from penstock.executor.graphs import Variant
from penstock.executor.inputs import ForwardInputs
from penstock.types.kv import KvGroupSpec

# Left to the driver, to libraries that load code late, and to fragments: nothing that grows with the work.
RESERVE_BYTES = 1 << 30


def claim_device(device: torch.device) -> None:
    """Called before anything is allocated. torch's allocator keeps what it has freed, in segments that grow instead of
    such of one size each, which steps of many shapes would leave in pieces; bounded, it gives them back before it takes
    what libraries and the driver need. Sums of 16-bit products are float32's: torch may add parts in 16 bits otherwise.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)  # of other engines in this process, which the bound counts
    torch.cuda.set_per_process_memory_fraction((free + own - RESERVE_BYTES) / total, device)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def release_device() -> None:
    """Give back what torch's allocator keeps of an engine that has ended: others find it free only then. Never raises,
    not even when the device has failed."""
    gc.collect()  # a step that was in flight and its runner know each other
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes. ``step`` is the most that the largest step held at once besides weights and KV, ``free`` what the device
    had left with the weights loaded and the allocator's cache empty."""

    step: int
    free: int


def measure_step(
    forward: Forward,
    groups: tuple[KvGroupSpec, ...],
    *,
    num_tokens: int,
    num_rows: int,
    sample: Callable[[torch.Tensor], object] | None,
    device: torch.device,
) -> DeviceMemory:
    """Compute a prefill of ``num_tokens`` in ``num_rows`` rows, all sampled, over a pool whose blocks are all block 0
    (what they hold does not matter)."""
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    inputs = worst_step(groups, num_tokens, num_rows, device)
    (logits,) = forward.compute(inputs, Variant.LOGITS)
    if sample is not None:
        sample(logits)
    del logits
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated(device) - before
    after, _ = torch.cuda.mem_get_info(device)
    outside = max(0, free - after - torch.cuda.memory_reserved(device) + before)  # code and workspaces of libraries
    torch.cuda.empty_cache()
    return DeviceMemory(step=peak + outside, free=free)


def worst_step(groups: tuple[KvGroupSpec, ...], num_tokens: int, num_rows: int, device: torch.device) -> ForwardInputs:
    """Rows of equal length behind nothing."""
    num_rows = min(num_rows, num_tokens)
    bounds = torch.linspace(0, num_tokens, num_rows + 1, dtype=torch.float64).long()
    lengths = bounds.diff()
    longest = int(lengths.max())
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()]).to(device)
    asked = (bounds[1:] - 1).to(device)
    steps = tuple(
        GroupStep(
            query_start=bounds.to(device),
            kv_lens=lengths.to(device),
            block_table=torch.zeros(num_rows, -(-longest // group.tokens_per_block), dtype=torch.int64, device=device),
            slots=positions % group.tokens_per_block,
            positions=positions,
            max_query_len=longest,
            max_kv_len=longest,
            block_tokens=group.tokens_per_block,
        )
        for group in groups
    )
    return ForwardInputs(torch.zeros(num_tokens, dtype=torch.int64, device=device), positions, steps, asked)
