"""Steps over rows of filling are consistent: what they ask for can be computed, and computed is what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from executor_fixtures import save_tiny_model, tiny_spec

from penstock.executor.device_warmup import compile_kernels, even_lengths, filling_step
from penstock.executor.graphs import Variant
from penstock.executor.load import load_executor
from penstock.kernels.device import CPU


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(8192, 256), (7, 3), (3, 7), (1, 1), (100, 33)])
def test_even_lengths_differ_by_one(num_tokens: int, num_rows: int) -> None:
    lengths = even_lengths(num_tokens, num_rows)
    assert sum(lengths) == num_tokens
    assert len(lengths) == min(num_tokens, num_rows)
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5, 1], [40, 3, 1]])
def test_a_filling_step_computes_finite_logits_for_every_row(tmp_path: Path, lengths: list[int]) -> None:
    pytest.importorskip("transformers")
    save_tiny_model("gemma3", tmp_path)
    loaded = load_executor(tiny_spec(tmp_path))
    forward, groups = loaded.runner._forward, loaded.capacity.groups
    with torch.inference_mode():
        inputs = filling_step(groups, lengths, CPU)
        (logits,) = forward.compute(inputs, Variant.LOGITS)
    assert logits.shape[0] == len(lengths)
    assert bool(torch.isfinite(logits).all())
    assert inputs.groups[0].query_start.diff().tolist() == lengths


def test_every_kind_of_step_is_computed_once(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_tiny_model("llama", tmp_path)
    loaded = load_executor(tiny_spec(tmp_path, threads=1))
    seen: list[tuple[int, Variant]] = []

    class Counting:
        def compute(self, inputs, variant):
            seen.append((inputs.token_ids.shape[0], variant))
            return loaded.runner._forward.compute(inputs, variant)

    drawn: list[torch.Tensor] = []
    passed: list[bool] = []
    compile_kernels(
        Counting(),
        loaded.capacity.groups,
        max_num_seqs=6,
        max_num_batched_tokens=100,
        sample=drawn.append,
        pass_tokens=lambda: passed.append(True),
        device=CPU,
        num_threads=1,
    )
    greedy = sorted(tokens for tokens, variant in seen if variant is Variant.GREEDY)
    assert greedy == [1, 2, 3, 4, 6, 79, 81]
    assert [tokens for tokens, variant in seen if variant is Variant.LOGITS] == [100]
    assert [logits.shape[0] for logits in drawn] == [6]
    assert passed == [True]
