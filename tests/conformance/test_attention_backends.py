"""Every attention backend against a naive computation over contiguous keys, written here and nowhere else."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock.attention.backends
from penstock.attention.contract import AttentionBackend, AttentionSpec, GroupStep
from penstock.attention.select import BACKENDS, GROUNDS, choose_attention
from penstock.errors import NoBackendError
from penstock.types.facts import PlatformFacts

CPU = PlatformFacts(name="cpu", machine="x86_64")
CUDA = PlatformFacts(name="cuda", machine="x86_64")
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 3e-3}


@dataclass(frozen=True)
class Work:
    """Rows as (tokens already in the cache, tokens of this step)."""

    rows: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    window: int | None = None
    soft_cap: float | None = None
    dtype: str = "float32"
    block_tokens: int = 8
    layers: int = 2

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            window=self.window,
            soft_cap=self.soft_cap,
            platform=CPU,
        )


WORKS = {
    "one decode": Work(((37, 1),)),
    "first token of all": Work(((0, 1),)),
    "decode batch": Work(((3, 1), (37, 1), (16, 1), (0, 1), (63, 1))),
    "decode of equal lengths": Work(((9, 1),) * 3),
    "decode of very different lengths": Work(((700, 1), (3, 1), (290, 1), (5, 1), (701, 1))),
    "drafts": Work(((10, 4), (33, 4), (0, 2), (7, 1), (12, 8))),
    "fresh prompts": Work(((0, 33), (0, 9), (0, 16))),
    "chunk behind a prefix": Work(((40, 17), (8, 64))),
    "tiles": Work(((0, 300), (100, 520)), heads=2, kv_heads=1, head_dim=8),
    "mixed": Work(((20, 1), (0, 31), (5, 40), (61, 1), (14, 3))),
    "interleaved": Work(((20, 1), (0, 31), (6, 1), (5, 40), (61, 1))),
    "a row without tokens": Work(((20, 1), (5, 0), (6, 1), (0, 12))),
    "multi-query": Work(((20, 1), (0, 31), (5, 4)), heads=3, kv_heads=1, head_dim=24),
    "multi-head": Work(((20, 1), (0, 31)), heads=3, kv_heads=3, head_dim=10),
    "window, decode": Work(((3, 1), (37, 1), (16, 1), (11, 1)), window=12),
    "window of one": Work(((3, 1), (0, 20), (5, 3)), window=1),
    "window, prompts": Work(((0, 40), (30, 33), (0, 9), (4, 2)), window=10),
    "window, tiles": Work(((0, 600), (500, 270)), window=70, heads=2, kv_heads=1, head_dim=8),
    "window wider than all": Work(((3, 1), (0, 40)), window=1000),
    "soft cap": Work(((3, 1), (0, 12)), soft_cap=3.0),
    "blocks of 16": Work(((20, 1), (0, 31), (5, 40)), block_tokens=16),
    "bfloat16": Work(((20, 1), (0, 31), (5, 40), (9, 3)), dtype="bfloat16"),
    "float16": Work(((20, 1), (0, 31), (5, 40), (9, 3)), dtype="float16"),
}


@dataclass
class Scene:
    """A filled pool, one step on it, and the right answer."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    pool: torch.Tensor
    step: GroupStep
    wanted: torch.Tensor
    histories: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def kv(self) -> torch.Tensor:
        return self.pool[:, -1]


def make_scene(work: Work, seed: int = 0) -> Scene:
    """Everything that no row wrote is NaN. Blocks before a row's window are given back: their table entry is wrong."""
    torch.manual_seed(seed)
    dtype = getattr(torch, work.dtype)
    lens = [history + new for history, new in work.rows]
    needed = [-(-length // work.block_tokens) for length in lens]
    order = torch.randperm(sum(needed) + 3).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    entry = (work.block_tokens, work.kv_heads, work.head_dim)
    pool = torch.full((sum(needed) + 3, work.layers, 2, *entry), float("nan"), dtype=dtype)
    histories, queries, wanted, slots = [], [], [], []
    for (history, new), table in zip(work.rows, tables, strict=True):
        keys, values = (torch.randn(history + new, work.kv_heads, work.head_dim).to(dtype) for _ in range(2))
        query = (torch.randn(new, work.heads, work.head_dim) * 1.5).to(dtype)
        places = [
            table[p // work.block_tokens] * work.block_tokens + p % work.block_tokens for p in range(history + new)
        ]
        first_seen = 0 if work.window is None else max(0, history - work.window + 1)
        for p in range(first_seen, history):
            block, offset = divmod(places[p], work.block_tokens)
            pool[block, -1, 0, offset], pool[block, -1, 1, offset] = keys[p], values[p]
        for gone in range(first_seen // work.block_tokens):
            table[gone] = 0
        histories.append((keys, values))
        queries.append(query)
        slots += places[history:]
        wanted.append(naive(query, keys, values, work))
    new_counts = [new for _, new in work.rows]
    widest = max(len(table) for table in tables)
    step = GroupStep(
        query_start=torch.tensor([0, *new_counts]).cumsum(0),
        kv_lens=torch.tensor(lens),
        block_table=torch.tensor([table + [0] * (widest - len(table)) for table in tables]),
        slots=torch.tensor(slots, dtype=torch.int64),
        positions=torch.cat([torch.arange(history, history + new) for history, new in work.rows]),
        max_query_len=max(new_counts),
        max_kv_len=max(lens),
        block_tokens=work.block_tokens,
    )
    new_kv = [
        torch.cat([pair[i][history:] for pair, (history, _) in zip(histories, work.rows, strict=True)]) for i in (0, 1)
    ]
    return Scene(torch.cat(queries), *new_kv, pool, step, torch.cat(wanted), histories)


def naive(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, work: Work) -> torch.Tensor:
    """float64, all heads repeated, a full mask."""
    history, new = len(keys) - len(query), len(query)
    k, v = (t.double().repeat_interleave(work.heads // work.kv_heads, dim=1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), k) * 0.3
    if work.soft_cap is not None:
        scores = work.soft_cap * torch.tanh(scores / work.soft_cap)
    behind = torch.arange(history, history + new)[:, None] - torch.arange(history + new)[None]
    hidden = behind < 0 if work.window is None else (behind < 0) | (behind >= work.window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)


def run(backend: AttentionBackend, work: Work, scene: Scene) -> torch.Tensor:
    metadata = backend.plan(work.spec, scene.step)
    with torch.inference_mode():
        return backend.run(scene.q, scene.k, scene.v, scene.kv, 0.3, metadata)


def usable(backend: AttentionBackend, work: Work) -> None:
    verdict = backend.can_run(work.spec)
    if not verdict.ok:
        assert all(verdict.reasons), "a refusal has reasons"
        pytest.skip("; ".join(verdict.reasons))


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return BACKENDS[request.param]


@pytest.mark.parametrize("name", WORKS)
def test_output_and_writes(backend: AttentionBackend, name: str) -> None:
    work = WORKS[name]
    usable(backend, work)
    scene = make_scene(work)
    found = run(backend, work, scene)
    assert found.dtype == scene.q.dtype
    torch.testing.assert_close(found, scene.wanted, atol=TOLERANCE[work.dtype], rtol=TOLERANCE[work.dtype])
    blocks, offsets = scene.step.slots // work.block_tokens, scene.step.slots % work.block_tokens
    torch.testing.assert_close(scene.kv[blocks, 0, offsets], scene.k, atol=0, rtol=0)
    torch.testing.assert_close(scene.kv[blocks, 1, offsets], scene.v, atol=0, rtol=0)
    assert scene.pool[:, 0].isnan().all(), "another layer's part of the pool was written"


def test_other_layers_share_the_plan(backend: AttentionBackend) -> None:
    """The same metadata serves every layer of the group, whatever its place in a block."""
    work = WORKS["mixed"]
    scene = make_scene(work)
    metadata = backend.plan(work.spec, scene.step)
    scene.pool[:, 0] = scene.pool[:, 1]
    for layer in (0, 1):
        found = backend.run(scene.q, scene.k, scene.v, scene.pool[:, layer], 0.3, metadata)
        torch.testing.assert_close(found, scene.wanted, atol=2e-6, rtol=2e-6)


def test_strided_queries_keys_and_values(backend: AttentionBackend) -> None:
    """Layers hand over views of one fused projection."""
    work = WORKS["mixed"]
    scene = make_scene(work)
    fused = torch.cat((scene.q, scene.k, scene.v), dim=1)
    scene.q, scene.k, scene.v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    torch.testing.assert_close(run(backend, work, scene), scene.wanted, atol=2e-6, rtol=2e-6)


def test_a_row_does_not_depend_on_its_neighbours(backend: AttentionBackend) -> None:
    """A neighbour that holds NaN, as after an overflow, spoils only its own output."""
    work = Work(((20, 1), (45, 1), (6, 1), (0, 12), (30, 11)))
    scene = make_scene(work)
    sick = scene.step.block_table[1, : 46 // 8 + 1]
    scene.kv[sick] = float("nan")
    found = run(backend, work, scene)
    healthy = [0, *range(2, len(found))]
    torch.testing.assert_close(found[healthy], scene.wanted[healthy], atol=2e-6, rtol=2e-6)
    assert found[1].isnan().all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=7),
    window=st.none() | st.integers(1, 80),
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    block_tokens=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 3),
)
@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"reference_torch"}))
def test_random_steps(
    name: str,
    rows: list[tuple[int, int]],
    window: int | None,
    group: int,
    kv_heads: int,
    block_tokens: int,
    seed: int,
) -> None:
    work = Work(
        tuple(rows), heads=group * kv_heads, kv_heads=kv_heads, head_dim=8, window=window, block_tokens=block_tokens
    )
    backend = BACKENDS[name]
    usable(backend, work)
    scene = make_scene(work, seed)
    torch.testing.assert_close(run(backend, work, scene), scene.wanted, atol=2e-6, rtol=2e-6)


def test_block_sizes_are_multiples_of_eight(backend: AttentionBackend) -> None:
    assert backend.block_tokens
    assert all(size > 0 and size % 8 == 0 for size in backend.block_tokens)


def test_table_and_folder_agree() -> None:
    modules = {module.name for module in pkgutil.iter_modules(penstock.attention.backends.__path__)}
    assert modules == set(BACKENDS)
    for name in modules:
        importlib.import_module(f"penstock.attention.backends.{name}")


def _spec(**changes: Any) -> AttentionSpec:
    defaults: dict[str, Any] = {
        "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "dtype": "bfloat16", "window": None, "soft_cap": None,
        "platform": CPU,
    }  # fmt: skip
    return AttentionSpec(**(defaults | changes))


def test_the_batched_backend_is_chosen_on_the_cpu() -> None:
    chosen, decision = choose_attention(_spec())
    assert (chosen.name, decision.chosen) == ("cpu_sdpa", "cpu_sdpa")
    assert decision.also_possible == ("reference_torch",)
    assert decision.why == f"first of 2 that can run: {GROUNDS['cpu_sdpa']}"


def test_every_preference_has_its_ground() -> None:
    """All but the last are preferred to somebody."""
    assert list(GROUNDS) == list(BACKENDS)[:-1]


def test_a_soft_cap_falls_to_the_reference_with_the_reason() -> None:
    chosen, decision = choose_attention(_spec(soft_cap=50.0))
    assert chosen.name == "reference_torch"
    (refused,) = decision.rejected
    assert "soft cap" in refused.reasons[0]
    assert "50.0" in refused.reasons[0]


def test_a_named_backend_runs_or_is_an_error_with_its_reasons() -> None:
    assert choose_attention(_spec(), "reference_torch")[0].name == "reference_torch"
    with pytest.raises(NoBackendError, match="soft cap"):
        choose_attention(_spec(soft_cap=50.0), "cpu_sdpa")
    with pytest.raises(NoBackendError, match="no candidate named 'flash'"):
        choose_attention(_spec(), "flash")


def test_other_platforms_have_the_reference() -> None:
    chosen, decision = choose_attention(_spec(platform=CUDA))
    assert chosen.name == "reference_torch"
    (refused,) = decision.rejected
    assert (refused.name, refused.reasons) == ("cpu_sdpa", ("needs tensors on the cpu, found platform cuda",))
    assert decision.why == "the only one that can run"
