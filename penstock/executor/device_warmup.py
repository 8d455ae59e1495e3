"""Steps over rows of filling, before the first request: what they need is compiled, loaded and seen. Knows no plan."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from penstock.attention.contract import GroupStep, HostLengths
from penstock.executor.forward import Forward
from penstock.executor.graphs import Variant
from penstock.executor.inputs import ForwardInputs
from penstock.types.kv import KvGroupSpec

Sample = Callable[[torch.Tensor], object]
LONG_ROW = 80  # longer than what kernels of few queries take


def filling_step(groups: Sequence[KvGroupSpec], lengths: Sequence[int], device: torch.device) -> ForwardInputs:
    """Rows of so many tokens behind nothing, each sampled, over a pool whose blocks are all block 0."""
    counts = torch.tensor(lengths)
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    longest = max(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    query_start, kv_lens = bounds.to(device), counts.to(device)
    steps = tuple(
        GroupStep(
            query_start=query_start,
            kv_lens=kv_lens,
            block_table=torch.zeros(
                len(lengths), -(-longest // group.tokens_per_block), dtype=torch.int64, device=device
            ),
            slots=positions % group.tokens_per_block,
            positions=positions,
            max_query_len=longest,
            max_kv_len=longest,
            block_tokens=group.tokens_per_block,
            host=HostLengths(bounds, counts),
        )
        for group in groups
    )
    asked = None if len(positions) == len(lengths) else query_start[1:] - 1
    return ForwardInputs(torch.zeros(len(positions), dtype=torch.int64, device=device), positions, steps, asked)


def even_lengths(num_tokens: int, num_rows: int) -> list[int]:
    """``num_tokens`` in at most ``num_rows`` rows."""
    num_rows = min(num_rows, num_tokens)
    bounds = [num_tokens * row // num_rows for row in range(num_rows + 1)]
    return [end - begin for begin, end in itertools.pairwise(bounds)]


def compile_kernels(
    forward: Forward,
    groups: Sequence[KvGroupSpec],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    sample: Sample | None,
    device: torch.device,
) -> None:
    """Compute one step of every kind at once, in threads: each meets kernels that others do not, and compilers work
    without Python's lock. All launch on one stream, where kernels follow each other whoever launched them.

    On 16 cores an 8B model's first start on a machine takes a third of the time that compiling one by one would.
    """
    rows = [1 << power for power in range(max_num_seqs.bit_length())]
    kinds = [[1] * count for count in rows]
    prefill = even_lengths(max_num_batched_tokens, max_num_seqs)
    if max_num_batched_tokens > LONG_ROW:
        kinds += [[LONG_ROW, 1], [LONG_ROW - 1] * min(2, max_num_batched_tokens // LONG_ROW)]

    def compute(lengths: Sequence[int], drawn: bool) -> None:
        with torch.inference_mode():
            inputs = filling_step(groups, lengths, device)
            if drawn and sample is not None:
                sample(forward.compute(inputs, Variant.LOGITS)[0])
            else:
                forward.compute(inputs, Variant.GREEDY)

    with ThreadPoolExecutor(min(len(kinds) + 1, os.cpu_count() or 1)) as threads:
        started = [threads.submit(compute, prefill, True), *(threads.submit(compute, kind, False) for kind in kinds)]
        for one in started:
            one.result()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch._C._cuda_clearCublasWorkspaces()  # one for every thread that multiplied
