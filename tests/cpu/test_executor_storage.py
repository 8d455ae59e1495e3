"""KV memory: views that overlap nowhere, and numbers that are not finite stay with the request that made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from executor_fixtures import PlanMaker, greedy_by_transformers, random_prompt, save_tiny_model, tiny_spec

from penstock.attention.contract import KvLayout
from penstock.executor.kv_storage import KvStorage, block_bytes
from penstock.executor.load import load_executor
from penstock.executor.sampler.sampler import NOT_FINITE
from penstock.models.family import KvGeometry
from penstock.types.kv import KvGroupSpec, Visibility


def geometry(name: str, layers: tuple[int, ...], heads: int, dim: int) -> KvGeometry:
    return KvGeometry(
        name=name, visibility=Visibility.ALL, layers=layers, num_heads=heads, num_kv_heads=heads, head_dim=dim
    )


def layout(shape: KvGeometry, tokens: int) -> KvLayout:
    return KvLayout(torch.bfloat16, (2, tokens, shape.num_kv_heads, shape.head_dim))


def spec(shape: KvGeometry, tokens: int, pool: int) -> KvGroupSpec:
    return KvGroupSpec(
        name=shape.name,
        visibility=Visibility.ALL,
        entries_per_block=tokens,
        bytes_per_block=block_bytes(shape, layout(shape, tokens)),
        pool=pool,
    )


def test_every_byte_of_a_block_belongs_to_one_entry_of_one_layer() -> None:
    """Two groups of different inner shape share pool 0, a third one has its own."""
    shapes = (geometry("a", (0, 2), 2, 8), geometry("b", (1,), 4, 8), geometry("c", (3, 4, 5), 1, 4))
    groups = (spec(shapes[0], 16, 0), spec(shapes[1], 16, 0), spec(shapes[2], 4, 1))
    layouts = [layout(shape, group.entries_per_block) for shape, group in zip(shapes, groups, strict=True)]
    storage = KvStorage(shapes, groups, (5, 7), layouts)
    assert storage.nbytes == 5 * groups[0].bytes_per_block + 7 * groups[2].bytes_per_block
    assert {layer: tuple(view.shape) for layer, view in storage.layers.items()} == {
        0: (5, 2, 16, 2, 8),
        2: (5, 2, 16, 2, 8),
        1: (5, 2, 16, 4, 8),
        **dict.fromkeys((3, 4, 5), (7, 2, 4, 1, 4)),
    }
    assert all(not view.any() for view in storage.layers.values())
    storage.layers[0].fill_(1)
    storage.layers[2].fill_(2)
    assert storage.layers[1][:, 0].unique().tolist() == [1]  # the block's first half is layer 0, its second layer 2
    assert storage.layers[1][:, 1].unique().tolist() == [2]
    storage.layers[1][3].fill_(7)
    assert storage.layers[0][3].unique().tolist() == [7]
    assert storage.layers[0][[0, 1, 2, 4]].unique().tolist() == [1]
    storage.layers[4].fill_(5)
    assert not storage.layers[3].any()
    assert not storage.layers[5].any()


def test_blocks_of_one_pool_must_be_equal() -> None:
    shapes = (geometry("a", (0, 2), 2, 8), geometry("b", (1,), 2, 8))
    with pytest.raises(ValueError, match="group b: blocks of pool 0 must have equal bytes"):
        KvStorage(
            shapes, (spec(shapes[0], 16, 0), spec(shapes[1], 16, 0)), (4,), [layout(shape, 16) for shape in shapes]
        )


@pytest.mark.parametrize("backend", ["cpu_native", "cpu_sdpa", "reference_torch"])
def test_poisoned_blocks_fail_their_request_and_serve_the_next_one(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = save_tiny_model("llama", tmp_path)
    loaded = load_executor(tiny_spec(tmp_path, attention_backend=backend))
    maker = PlanMaker(loaded.capacity)
    prompts = [random_prompt(30, seed=seed) for seed in range(3)]

    def run(*rows: tuple[int, int, bool]):
        return loaded.runner.run(maker.plan(rows), dict)

    maker.admit(0, prompts[0])
    maker.admit(1, prompts[1])
    tokens = list(run((0, 30, True), (1, 30, True)).row_tokens[1])
    poisoned = maker.residents[0].blocks[0]
    for view in loaded.runner._forward._storage.layers.values():
        view[poisoned] = float("nan")
    result = run((0, 1, True), (1, 1, True))
    assert result.failed_rows == {0: NOT_FINITE}
    tokens += result.row_tokens[1]
    maker.drop(0)
    maker.free[0] += poisoned
    maker.admit(2, prompts[2])
    fresh = list(run((2, 30, True)).row_tokens[0])
    assert set(maker.residents[2].blocks[0]) == set(poisoned)
    for _ in range(8):
        result = run((1, 1, True), (2, 1, True))
        tokens += result.row_tokens[0]
        fresh += result.row_tokens[1]
    assert tokens == greedy_by_transformers(model, prompts[1], 10)
    assert fresh == greedy_by_transformers(model, prompts[2], 9)
