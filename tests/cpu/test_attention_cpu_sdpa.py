"""What the conformance suite cannot see of cpu_sdpa: how many calls it makes, how it cuts gathers, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.attention.backends import cpu_sdpa
from penstock.attention.backends.cpu_sdpa import CpuSdpa
from penstock.attention.contract import AttentionSpec, GroupStep
from penstock.types.facts import PlatformFacts

BLOCK = 8
SPEC = AttentionSpec(
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
    window=None,
    soft_cap=None,
    platform=PlatformFacts(name="cpu", machine="x86_64"),
)


class CallCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def make_step(lengths: list[int], block_tokens: int = BLOCK) -> tuple[GroupStep, torch.Tensor]:
    """A decode step over rows of these lengths, this step's token included, and a pool of random values."""
    per_row = -(-max(lengths) // block_tokens)
    table = torch.randperm(len(lengths) * per_row).view(len(lengths), per_row)
    lens = torch.tensor(lengths)
    last = lens - 1
    step = GroupStep(
        query_start=torch.arange(len(lengths) + 1),
        kv_lens=lens,
        block_table=table,
        slots=table.gather(1, (last // block_tokens)[:, None])[:, 0] * block_tokens + last % block_tokens,
        positions=last,
        max_query_len=1,
        max_kv_len=max(lengths),
        block_tokens=block_tokens,
    )
    return step, torch.randn(table.numel(), 2, block_tokens, 2, 8)


def make_inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Queries and keys in one, values, no rotation."""
    return torch.randn(rows, 6, 8), torch.randn(rows, 2, 8), None


def run(step: GroupStep, kv: torch.Tensor, inputs: tuple[torch.Tensor, torch.Tensor, None]) -> torch.Tensor:
    backend = CpuSdpa()
    return backend.run(*inputs, kv.clone(), 0.3, backend.plan(SPEC, step))


def test_calls_of_a_layer_do_not_grow_with_the_rows() -> None:
    """Decode has no loop over sequences: the second layer of a step makes as many calls for 2 rows as for 64."""
    counts = []
    for rows in (2, 64):
        step, kv = make_step([40 + i for i in range(rows)])
        backend, inputs = CpuSdpa(), make_inputs(rows)
        metadata = backend.plan(SPEC, step)
        backend.run(*inputs, kv, 0.3, metadata)
        with CallCounter() as counter:
            backend.run(*inputs, kv, 0.3, metadata)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_calls_of_a_plan_do_not_grow_with_the_rows() -> None:
    counts = []
    for rows in (2, 64):
        step, _ = make_step([40 + i for i in range(rows)])
        with CallCounter() as counter:
            CpuSdpa().plan(SPEC, step)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_short_rows_are_not_padded_to_the_longest() -> None:
    step, _ = make_step([4000] + [20] * 31)
    batches = CpuSdpa().plan(SPEC, step).batches
    assert sum(batch.num_rows * batch.length for batch in batches) == 4000 + 31 * 20


def test_large_gathers_are_cut_without_changing_results(monkeypatch: pytest.MonkeyPatch) -> None:
    step, kv = make_step([70, 33, 71, 12, 69])
    inputs = make_inputs(5)
    whole = run(step, kv, inputs)
    monkeypatch.setattr(cpu_sdpa, "MAX_GATHERED_VALUES", 2 * (2 * 2 * 8 << 8))
    assert [batch.num_rows for batch in CpuSdpa().plan(SPEC, step).batches] == [2, 2, 1]
    torch.testing.assert_close(run(step, kv, inputs), whole)


def test_block_sizes_that_are_no_power_of_two() -> None:
    step, kv = make_step([70, 33, 71], block_tokens=24)
    inputs = make_inputs(3)
    flat = kv[step.block_table].transpose(1, 2).flatten(2, 3)  # [rows, 2, entries, kv_heads, head_dim]
    for row, length in enumerate([70, 33, 71]):
        keys, values = (flat[row, i, :length].clone() for i in (0, 1))
        keys[-1], values[-1] = inputs[0][row, 4:], inputs[1][row]
        q = inputs[0][row, :4].view(2, 2, 8)
        weights = (torch.einsum("kgd,lkd->kgl", q, keys) * 0.3).softmax(-1)
        wanted = torch.einsum("kgl,lkd->kgd", weights, values).view(4, 8)
        torch.testing.assert_close(run(step, kv, inputs)[row], wanted)


def test_a_pool_with_scattered_entries_is_refused() -> None:
    step, kv = make_step([9])
    scattered = kv.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous entries"):
        CpuSdpa().run(*make_inputs(1), scattered, 0.3, CpuSdpa().plan(SPEC, step))
