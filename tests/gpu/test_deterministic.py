"""Deterministic mode on a card: the bits of a row are its own, in every op and in the engine's tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from deterministic_fixtures import Tokens, random_prompts, sampling, save_config, start, tokens_of

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA device", allow_module_level=True)

from test_attention_cuda import Scene, Shape

from penstock.attention.backends.cuda_triton import CudaTriton
from penstock.attention.contract import GroupStep
from penstock.kernels import reference
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import OPS, choose_op
from penstock.kernels.triton.linear_invariant import MANY_ROWS, TILINGS, linear_invariant
from penstock.platforms.probe import probe_platform

SHAPES = ((6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096), (576, 576), (1000, 1536), (300, 208))
MOST_ROWS = 2048
COUNTS = (1, 2, 7, 8, 16, 17, 33, 64, 65, 128, 129, 300, MOST_ROWS)


def _values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def _check(op: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tolerances are for results of unit size."""
    relative, absolute = OPS[op].tolerance[str(found.dtype).removeprefix("torch.")]
    scale = max(1.0, wanted.float().std().item())
    torch.testing.assert_close(found.float(), wanted.float(), rtol=relative, atol=absolute * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_of_a_product_is_the_same_bits_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = _values(*shape, seed=1, dtype=dtype), _values(shape[0], seed=2, dtype=dtype)
    x = _values(MOST_ROWS if shape[0] < 100_000 else 300, shape[1], dtype=dtype)
    whole = linear_invariant(x, weight, bias)
    for start_row in range(0, len(x), 256):
        rows = slice(start_row, start_row + 256)
        _check("linear", whole[rows], reference.linear(x[rows], weight, bias))
    for rows in COUNTS[:-1]:
        assert torch.equal(linear_invariant(x[-rows:], weight, bias), whole[-rows:]), rows
        assert torch.equal(linear_invariant(x[:rows], weight, bias), whole[:rows]), rows
    for tiling in (*TILINGS.values(), MANY_ROWS):
        assert torch.equal(linear_invariant(x[:300], weight, bias, tiling=tiling), whole[:300]), tiling


def test_a_wider_result_and_rows_at_any_distance_change_no_bit() -> None:
    weight, x = _values(576, 576, seed=1), _values(70, 576)
    wanted = linear_invariant(x, weight)
    wide, far = _values(70, 600), _values(70, 700)
    far[:, 3:579] = x
    assert torch.equal(linear_invariant(far[:, 3:579], weight, None, wide[:, 7:583]), wanted)
    assert torch.equal(wide[:, 7:583], wanted)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(((0, 1500),)),
        Shape(((0, 700),), heads=9, kv_heads=3, head_dim=64),
        Shape(((0, 700),), heads=8, kv_heads=8, head_dim=128, soft_cap=30.0),
        Shape(((0, 1500),), window=200),
        Shape(((0, 700),), heads=64, head_dim=64, window=128, sinks=True),
        Shape(((0, 700),), heads=8, kv_heads=4, head_dim=256, window=130),
        Shape(((0, 700),), heads=64, kv_heads=1, block_tokens=64),
    ],
    ids=str,
)
def test_a_query_is_the_same_bits_however_its_prompt_is_cut(shape: Shape) -> None:
    backend = CudaTriton()
    scene = Scene(shape, backend)
    length = len(scene.qk)
    whole = _pieces(scene, backend, [(0, length)])
    _check("paged_attention", whole, scene.wanted())
    before = scene.kv.clone()
    cuts = [0, 1, 2, 3, 17, 64, 65, 200, 231, 256, 511, 640, length]
    pieces = list(pairwise(cuts))
    assert torch.equal(_pieces(scene, backend, pieces), whole)
    backwards = torch.cat([whole[first:last] for first, last in pieces[::-1]])
    assert torch.equal(_pieces(scene, backend, pieces[::-1]), backwards)
    assert torch.equal(_pieces(scene, backend, [(at, at + 1) for at in range(length)]), whole), "decoding"
    for at in (0, 63, 64, 255, 600, length - 1):
        assert torch.equal(_pieces(scene, backend, [(at, at + 1)])[0], whole[at]), at
    assert torch.equal(scene.kv.view(torch.int16), before.view(torch.int16))


def _pieces(scene: Scene, backend: CudaTriton, pieces: list[tuple[int, int]]) -> torch.Tensor:
    """The request of the scene in one step, as rows that each compute a piece of it."""
    lasts = torch.tensor([last for _, last in pieces], device="cuda")
    counts = torch.tensor([0] + [last - first for first, last in pieces], device="cuda")
    at = torch.cat([torch.arange(first, last, device="cuda") for first, last in pieces])
    step = GroupStep(
        query_start=counts.cumsum(0), kv_lens=lasts, block_table=scene.step.block_table.expand(len(pieces), -1),
        slots=scene.step.slots[at], positions=at, max_query_len=int(counts.max()), max_kv_len=int(lasts.max()),
        block_tokens=scene.step.block_tokens,
    )  # fmt: skip
    metadata = backend.plan(replace(scene.shape.spec, batch_invariant=True), step)
    tables = (scene.tables[0][at], scene.tables[1][at])
    return backend.run(scene.qk[at], scene.v[at], tables, scene.kv, scene.shape.scale, metadata, sinks=scene.sinks)


def test_other_ops_compute_rows_alike() -> None:
    """Those that choose their blocks by the number of rows, and those that sum over a row."""
    asked = OpSpec(dtype="bfloat16", platform=probe_platform())
    x, residual = _values(MOST_ROWS, 4096), _values(MOST_ROWS, 4096, seed=1)
    weight = _values(4096, seed=2).float()
    norm, add_norm, gate, largest = (
        choose_op(name, asked)[0] for name in ("rms_norm", "add_rms_norm", "silu_and_mul", "argmax")
    )
    for rows in COUNTS[:-1]:
        few = slice(-rows, None)
        assert torch.equal(norm(x[few], weight, 1e-5), norm(x, weight, 1e-5)[few])
        for found, wanted in zip(
            add_norm(x[few], residual[few], weight, 1e-5), add_norm(x, residual, weight, 1e-5), strict=True
        ):
            assert torch.equal(found, wanted[few])
        assert torch.equal(gate(x[few]), gate(x)[few])
        assert torch.equal(largest(x[few])[0], largest(x)[0][few])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    save_config(made, dtype="bfloat16", hidden_size=512, layers=4)
    return made


OPTIONS = {"platform": "cuda", "max_model_len": 512, "max_num_seqs": 64, "kv_cache_memory": 1 << 30}


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, Tokens]:
    """Answers to requests that were computed one after the other, by the name of their sampling."""
    prompts = random_prompts(200, 300)
    with start(directory, **OPTIONS) as llm:
        return {
            "greedy": tokens_of(llm, prompts, sampling(200, 24), together=False),
            "drawn": tokens_of(llm, prompts[:40], sampling(40, 24, **DRAWN), together=False),
        }


DRAWN = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 5}


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_num_batched_tokens": 128}, {"graphs": False}, {"max_num_seqs": 37, "max_num_batched_tokens": 1000}],
    ids=str,
)
def test_tokens_of_a_request_are_its_own(directory: Path, alone: dict[str, Tokens], changes: dict[str, int]) -> None:
    prompts = random_prompts(200, 300)
    with start(directory, **(OPTIONS | changes)) as llm:
        decisions = {decision.subject: decision.chosen for decision in llm.info.decisions}
        assert {chosen for subject, chosen in decisions.items() if "batch-invariant" in subject} == {
            "cuda_invariant", "cuda_triton",
        }  # fmt: skip
        assert tokens_of(llm, prompts, sampling(200, 24)) == alone["greedy"]
        again = llm.generate(prompts, sampling(200, 24))
        assert sum(answer.num_cached_tokens for answer in again) > 1000
        assert [answer.outputs[0].token_ids for answer in again] == alone["greedy"]
        params = [*sampling(40, 24, **DRAWN), *sampling(160, 24)]
        assert tokens_of(llm, prompts, params) == alone["drawn"] + alone["greedy"][40:]


# Each needs the host in some or all of its steps.
COMPANY = ({"typical_p": 0.9}, {"prompt_logprobs": 0}, {"bad_token_ids": ((5, 6),)})


def test_company_that_needs_the_host_changes_no_bit(directory: Path) -> None:
    """The device draws and describes the rows beside it as it does where there is none."""
    prompts = random_prompts(12, 300)
    changes = [{"temperature": 0.0}, DRAWN, {"presence_penalty": 0.8, "seed": 2}, {"logit_bias": {7: 2.0}, "seed": 3}]
    params = [sampling(1, 16, logprobs=2, **(DRAWN | changes[i % 4]))[0] for i in range(12)]
    of_company = [sampling(1, 24, **(DRAWN | one))[0] for one in COMPANY]
    with start(directory, **OPTIONS) as llm:
        alone = [llm.generate([prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]
        together = llm.generate([*random_prompts(3, 200), *prompts], [*of_company, *params])[3:]
    for one, other in zip(together, alone, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].logprobs == other.outputs[0].logprobs


def test_log_probabilities_are_the_same_numbers(directory: Path) -> None:
    prompts = random_prompts(20, 300)
    params = sampling(20, 8, logprobs=0)
    with start(directory, **OPTIONS) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate([prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]
    for one, other in zip(together, alone, strict=True):
        found, wanted = (
            [entry.chosen.logprob for entry in answer.outputs[0].logprobs or ()] for answer in (one, other)
        )
        assert found == wanted
