"""Steps over rows of filling, before the first request: what they need is compiled, loaded and seen. Knows no plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
    pass_tokens: Callable[[], object],
    device: torch.device,
    num_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compile what steps of every kind launch: each meets kernels that others do not. On a CUDA device nothing of ours
    is launched, and the kernels are compiled by ``num_threads`` threads at once (``kernels/triton/ahead.py``); torch's
    libraries take part as in any step, so that they are loaded meanwhile. ``progress(done, total)`` counts kernels."""
    powers = [1 << power for power in range(max_num_seqs.bit_length())]
    halfway = [3 * power for power in powers if 3 * power <= max_num_seqs]  # some rungs are narrow
    kinds = [[1] * count for count in (*powers, *halfway)]
    prefill = even_lengths(max_num_batched_tokens, max_num_seqs)
    if max_num_batched_tokens > LONG_ROW:
        kinds += [[LONG_ROW, 1], [LONG_ROW - 1] * min(2, max_num_batched_tokens // LONG_ROW)]

    @torch.inference_mode()
    def compute_all() -> None:
        (logits,) = forward.compute(filling_step(groups, prefill, device), Variant.LOGITS)
        if sample is not None:
            sample(logits)
        pass_tokens()
        for kind in kinds:
            forward.compute(filling_step(groups, kind, device), Variant.GREEDY)

    if device.type != "cuda":
        compute_all()
        return
    from penstock.kernels.triton.ahead import compile_ahead

    compile_ahead(compute_all, num_threads, progress)
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()  # taken again by the steps that are measured
