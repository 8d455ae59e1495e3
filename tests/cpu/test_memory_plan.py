"""The memory plan: sums that add up, balanced pools, and refusals that name a flag and a value that works."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.sizes import size_text
from penstock.errors import ConfigError
from penstock.executor.memory_plan import MemoryNeed, blocks_needed, blocks_of, plan_memory
from penstock.types.kv import KvGroupSpec, Visibility

MIB, GIB = 1 << 20, 1 << 30


def group(name: str, bytes_per_block: int, window: int | None = None, tokens: int = 16) -> KvGroupSpec:
    kind = Visibility.ALL if window is None else Visibility.WINDOW
    return KvGroupSpec(
        name=name, visibility=kind, entries_per_block=tokens, bytes_per_block=bytes_per_block, window=window
    )


def need(*groups: KvGroupSpec, **changes) -> MemoryNeed:
    values = {
        "weight_bytes": 500 * MIB,
        "activation_bytes": 100 * MIB,
        "memory_available": 8 * GIB,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "max_model_len": 4096,
    }
    return MemoryNeed(groups=groups or (group("full", MIB),), **{**values, **changes})


def test_default_takes_what_all_requests_can_use() -> None:
    plan = plan_memory(need(group("full", 64 * 1024)))
    assert plan.num_blocks == (8 * 256,)
    assert plan.kv_bytes == 8 * 256 * 64 * 1024


def test_default_leaves_half_of_the_rest() -> None:
    plan = plan_memory(need(max_num_seqs=64, memory_available=4 * GIB))
    left = 4 * GIB - 600 * MIB
    assert left // 2 - MIB * 64 <= plan.kv_bytes <= left // 2


def test_default_has_a_ceiling() -> None:
    plan = plan_memory(need(max_num_seqs=64, memory_available=100 * GIB))
    assert 3.9 * GIB < plan.kv_bytes <= 4 * GIB


def test_one_longest_request_may_exceed_the_default() -> None:
    plan = plan_memory(need(max_model_len=32768, memory_available=3 * GIB, max_num_seqs=4))
    assert plan.num_blocks == (2048,)


def test_named_memory_is_used_up() -> None:
    plan = plan_memory(need(kv_cache_memory=1000 * MIB + 5))
    assert plan.num_blocks == (1000,)


def test_groups_of_equal_blocks_share_a_pool() -> None:
    plan = plan_memory(need(group("full", MIB), group("window", MIB, window=1024), group("odd", 3 * MIB, window=64)))
    assert [g.pool for g in plan.groups] == [0, 0, 1]
    assert len(plan.num_blocks) == 2


def test_a_window_needs_its_window_and_what_is_fresh() -> None:
    sliding = group("window", MIB, window=1024)
    assert blocks_of(sliding, 100, 512) == 7
    assert blocks_of(sliding, 100_000, 512) == (1023 + 512 + 15) // 16 + 1
    state = KvGroupSpec(name="state", visibility=Visibility.STATE, entries_per_block=16, bytes_per_block=1)
    assert blocks_of(state, 100_000, 512) == 2


def test_the_lines_add_up() -> None:
    plan = plan_memory(need(group("full", MIB), group("window", 5 * MIB, window=512)))
    text = "\n".join(plan.lines)
    assert size_text(plan.weight_bytes + plan.activation_bytes + plan.kv_bytes) in text
    assert all(f"{count} blocks" in text for count in plan.num_blocks)
    assert "window 512" in text


@pytest.mark.parametrize("named", [None, 200 * MIB])
def test_refusal_names_a_length_that_works(named: int | None) -> None:
    asked = need(max_model_len=131072, memory_available=2 * GIB, kv_cache_memory=named)
    with pytest.raises(ConfigError) as refusal:
        plan_memory(asked)
    text = str(refusal.value)
    assert "8.00 GiB" in text
    assert ("--kv-cache-memory gives 200.00 MiB" in text) == (named is not None)
    length = int(re.search(r"--max-model-len to (\d+)", text)[1])
    plan_memory(need(max_model_len=length, memory_available=2 * GIB, kv_cache_memory=named))
    with pytest.raises(ConfigError):
        plan_memory(need(max_model_len=length + 1, memory_available=2 * GIB, kv_cache_memory=named))


def test_weights_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(ConfigError, match="Choose a smaller model, or free memory"):
        plan_memory(need(weight_bytes=9 * GIB))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, 16, 100, 4096])), min_size=1, max_size=3),
    seqs=st.integers(1, 300),
    budget=st.integers(1, 1 << 34),
    length=st.integers(1, 200_000),
    named=st.booleans(),
)
def test_any_plan_keeps_its_promises(sizes, seqs, budget, length, named) -> None:
    groups = [group(f"g{i}", size * 65536, window) for i, (size, window) in enumerate(sizes)]
    changes = {"kv_cache_memory": budget} if named else {"memory_available": budget + 600 * MIB}
    asked = need(*groups, max_num_seqs=seqs, max_model_len=length, **changes)
    try:
        plan = plan_memory(asked)
    except ConfigError:
        return
    assert plan.kv_bytes <= budget
    least = blocks_needed(plan.groups, asked, length, 1)
    assert all(count >= minimum for count, minimum in zip(plan.num_blocks, least, strict=True))
    if named:
        assert budget - plan.kv_bytes < sum({g.pool: g.bytes_per_block for g in plan.groups}.values())
