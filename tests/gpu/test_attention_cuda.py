"""Attention on a card at real shapes, in bfloat16, against torch in float32 over gathered keys."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from penstock.attention.backends.cuda_triton import CudaTriton
from penstock.attention.contract import UNSCALED, AttentionBackend, AttentionSpec, GroupStep
from penstock.kernels import reference
from penstock.kernels.ops import OPS
from penstock.kernels.reference.attention import stored
from penstock.platforms.recorded import RECORDED

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

BLOCK = 16
RELATIVE, ABSOLUTE = OPS["paged_attention"].tolerance["bfloat16"]


@dataclass(frozen=True)
class Shape:
    """Rows as (tokens before this step, tokens of this step)."""

    rows: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    window: int | None = None
    soft_cap: float | None = None
    block_tokens: int = BLOCK
    kv_dtype: str = "auto"
    sinks: bool = False
    kv_scales: tuple[float, float] = UNSCALED

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            num_heads=self.heads, num_kv_heads=self.kv_heads, head_dim=self.head_dim, dtype="bfloat16",
            window=self.window, soft_cap=self.soft_cap, platform=RECORDED["h200"], kv_dtype=self.kv_dtype,
            sinks=self.sinks,
        )  # fmt: skip

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


class Scene:
    """A pool with three layers, whose second holds the histories; everything that no row wrote is NaN."""

    def __init__(self, shape: Shape, backend: AttentionBackend) -> None:
        torch.manual_seed(1)
        with torch.device("cuda"):
            self._fill(shape, backend)

    def _fill(self, shape: Shape, backend: AttentionBackend) -> None:
        self.shape = shape
        counts = torch.tensor([new for _, new in shape.rows])
        lens = torch.tensor([sum(row) for row in shape.rows])
        size, tokens = shape.block_tokens, int(counts.sum())
        needed = (lens + size - 1) // size
        ids = torch.randperm(int(needed.sum()) + 5)
        table = torch.full((len(shape.rows), int(needed.max()) + 7), -1)
        start = 0
        for row, count in enumerate(needed.tolist()):
            table[row, :count] = ids[start : start + count]
            start += count
        self.row_of = torch.repeat_interleave(torch.arange(len(counts)), counts)
        query_start = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
        positions = torch.arange(tokens) - query_start[self.row_of] + (lens - counts)[self.row_of]
        self.step = GroupStep(
            query_start=query_start, kv_lens=lens, block_table=table,
            slots=table[self.row_of, positions // size] * size + positions % size, positions=positions,
            max_query_len=int(counts.max()), max_kv_len=int(lens.max()), block_tokens=size,
        )  # fmt: skip
        layout = backend.kv_layout(shape.spec, size)
        self.pool = torch.full((len(ids), 3, layout.nbytes), 255, dtype=torch.uint8)
        self.pool = self.pool.view(layout.dtype).view(len(ids), 3, *layout.shape)
        self.kv = self.pool[:, 1]
        for row, (history, _) in enumerate(shape.rows):
            places = torch.arange(history)
            entries = torch.randn(history, 2, shape.kv_heads, shape.head_dim)
            _bits(self.kv)[table[row, places // size], :, :, places % size] = _bits(entries.to(layout.dtype))
        fused = torch.randn(tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim, dtype=torch.bfloat16)
        self.qk, self.v = fused[:, : -shape.kv_heads], fused[:, -shape.kv_heads :]
        self.sinks = torch.randn(shape.heads) * 2 + 1 if shape.sinks else None
        angles = torch.rand(tokens, 1, shape.head_dim // 2) * 6
        self.tables = (torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1))

    def run(self, backend: AttentionBackend, norms: tuple[torch.Tensor, float] | None = None) -> torch.Tensor:
        metadata = backend.plan(self.shape.spec, self.step)
        return backend.run(
            self.qk, self.v, self.tables, self.kv, self.shape.scale, metadata, sinks=self.sinks, norms=norms,
            kv_scales=self.shape.kv_scales,
        )  # fmt: skip

    def wanted(self) -> torch.Tensor:
        """Over what the pool holds after a run."""
        shape, size = self.shape, self.shape.block_tokens
        queries = reference.rotary(self.qk, *self.tables)[:, : shape.heads].float()
        answers = []
        for row, (history, new) in enumerate(shape.rows):
            places = torch.arange(history + new, device="cuda")
            keys, values = self._stored(self.step.block_table[row, places // size], places % size).unbind(1)
            position = torch.arange(history, history + new, device="cuda")[:, None]
            seen = places <= position
            if shape.window is not None:
                seen &= places > position - shape.window
            query = queries[self.row_of == row].transpose(0, 1)
            keys, values = (
                x.repeat_interleave(shape.heads // shape.kv_heads, 1).transpose(0, 1) for x in (keys, values)
            )
            answers.append(_attend(query, keys, values, seen, shape, self.sinks).transpose(0, 1))
        return torch.cat(answers)

    def _stored(self, blocks: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Keys and values of entries, float32 [entries, 2, kv_heads, head_dim]."""
        entries = _bits(self.kv)[blocks, :, :, offsets].view(self.kv.dtype).float()
        return entries * torch.tensor(self.shape.kv_scales, device="cuda")[:, None, None]

    def check_writes(self) -> None:
        keys = reference.rotary(self.qk, *self.tables)[:, self.shape.heads :]
        size = self.shape.block_tokens
        found = self._stored(self.step.slots // size, self.step.slots % size)
        lost = 2**-4 if self.kv.dtype is torch.float8_e4m3fn else 2**-8
        key_scale, value_scale = self.shape.kv_scales
        wanted = stored(keys, self.kv.dtype, key_scale).float() * key_scale
        torch.testing.assert_close(found[:, 0], wanted, rtol=2 * lost, atol=1e-2)
        wanted = stored(self.v, self.kv.dtype, value_scale).float() * value_scale
        torch.testing.assert_close(found[:, 1], wanted, rtol=0, atol=0)
        assert (self.pool[:, ::2].contiguous().view(torch.uint8) == 255).all(), "another layer's part was written"


def _bits(x: torch.Tensor) -> torch.Tensor:
    """What torch can index: float8 as bytes."""
    return x.view(torch.uint8) if x.dtype is torch.float8_e4m3fn else x


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
    shape: Shape,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if shape.soft_cap is None and sinks is None:
        return scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=seen, scale=shape.scale)[0]
    scores = query @ keys.transpose(1, 2) * shape.scale
    if shape.soft_cap is not None:
        scores = shape.soft_cap * (scores / shape.soft_cap).tanh()
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)), -1)
    return scores.softmax(-1)[..., : keys.shape[1]] @ values


def _lens(count: int, low: int = 512, high: int = 4096) -> tuple[tuple[int, int], ...]:
    return tuple((low + (high - low) * row // max(1, count - 1) - 1 + row % 3, 1) for row in range(count))


SHAPES = {
    "one row": Shape(((4095, 1),)),
    "first token": Shape(((0, 1),)),
    "8 rows": Shape(_lens(8)),
    "8 rows, window": Shape(_lens(8), window=1024),
    "256 rows": Shape(_lens(256, 64, 700)),
    "256 rows, window": Shape(_lens(256, 64, 1500), window=1024),
    "larger blocks": Shape(_lens(8), block_tokens=64),
    "drafts": Shape(((700, 4), (1000, 1), (63, 2), (0, 4))),
    "drafts of 16": Shape(((700, 16), (1000, 1), (63, 15))),
    "groups of 7": Shape(((700, 1), (1000, 1), (63, 1)), heads=28, kv_heads=4),
    "no groups": Shape(((700, 1), (90, 1)), heads=8, kv_heads=8),
    "heads of 64": Shape(((700, 1), (90, 40), (0, 300)), heads=9, kv_heads=3, head_dim=64),
    "heads of 80": Shape(((700, 1), (90, 40), (0, 300)), heads=8, kv_heads=2, head_dim=80),
    "heads of 256": Shape(((700, 1), (90, 40), (0, 300)), heads=8, kv_heads=4, head_dim=256, soft_cap=50.0),
    "prompts": Shape(((0, 1500), (0, 1500))),
    "prompts behind a prefix": Shape(((1000, 1500), (37, 1500))),
    "prompts, window": Shape(((1000, 1500), (37, 1500)), window=1024),
    "prompts, larger blocks": Shape(((1000, 1500), (37, 1500)), block_tokens=128),
    "prompts, soft cap": Shape(((100, 600), (37, 50)), soft_cap=20.0, window=300),
    "mixed": Shape((*_lens(20, 1, 2000), (300, 700), (0, 90), *_lens(5, 1, 90), (64, 17))),
    "float8": Shape(((700, 1), (90, 1), (1030, 1)), kv_dtype="float8_e4m3fn"),
    "float8, prompts": Shape(((700, 40), (90, 200), (300, 1)), kv_dtype="float8_e4m3fn"),
    "float8, scaled": Shape(_lens(8), kv_dtype="float8_e4m3fn", kv_scales=(0.03, 0.008)),
    "float8, cut": Shape(((700, 40), (90, 200), (300, 1)), kv_dtype="float8_e4m3fn", kv_scales=(2**-8, 2**-9)),
    "sinks, one row": Shape(((4095, 1),), heads=64, head_dim=64, sinks=True),
    "sinks, 8 rows": Shape(_lens(8), heads=64, head_dim=64, sinks=True),
    "sinks, 256 rows, window": Shape(_lens(256, 64, 1500), heads=64, head_dim=64, window=128, sinks=True),
    "sinks, drafts": Shape(((700, 4), (1000, 1), (63, 2), (0, 4)), sinks=True),
    "sinks, prompts": Shape(((0, 1500), (37, 700)), heads=64, head_dim=64, sinks=True),
    "sinks, prompts, window": Shape(((1000, 1500), (37, 700)), heads=64, head_dim=64, window=128, sinks=True),
    "sinks, mixed, soft cap": Shape((*_lens(20, 1, 2000), (300, 700), (0, 90), (64, 17)), soft_cap=20.0, sinks=True),
    "sinks, float8": Shape(
        (*_lens(5, 1, 900), (300, 200)), heads=64, head_dim=64, window=128, kv_dtype="float8_e4m3fn", sinks=True
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_answers_and_writes(name: str) -> None:
    backend = CudaTriton()
    scene = Scene(SHAPES[name], backend)
    assert backend.can_run(scene.shape.spec).ok
    found = scene.run(backend)
    torch.testing.assert_close(found.float(), scene.wanted(), rtol=RELATIVE, atol=ABSOLUTE)
    scene.check_writes()


@pytest.mark.parametrize(
    "name", ["one row", "256 rows", "drafts", "heads of 80", "prompts behind a prefix", "mixed", "float8, scaled"]
)
def test_norms_in_passing(name: str) -> None:
    backend = CudaTriton()
    assert backend.normalizes
    scene = Scene(SHAPES[name], backend)
    norms = (torch.rand(scene.qk.shape[1:], device="cuda") + 0.5, 1e-6)
    found = scene.run(backend, norms)
    scene.qk = reference.rms_norm(scene.qk, *norms)
    torch.testing.assert_close(found.float(), scene.wanted(), rtol=RELATIVE, atol=ABSOLUTE)
    scene.check_writes()


@pytest.mark.parametrize("name", ["one row", "8 rows", "drafts", "mixed", "sinks, one row", "float8, scaled"])
def test_two_runs_have_the_same_bits(name: str) -> None:
    """Whichever program of a row comes last."""
    backend = CudaTriton()
    scene = Scene(SHAPES[name], backend)
    first = scene.run(backend)
    for _ in range(20):
        assert torch.equal(scene.run(backend), first)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_a_captured_step_reads_its_numbers_when_it_runs(rows: int, sinks: bool) -> None:
    """Lengths change between recording and replay; the last row becomes padding."""
    backend = CudaTriton()
    scene = Scene(Shape(_lens(rows, 512, 2000), sinks=sinks), backend)
    wanted = scene.run(backend)
    lens = scene.step.kv_lens.clone()
    scene.step.kv_lens.fill_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = scene.run(backend)
    scene.step.kv_lens.copy_(lens)
    for _ in range(3):
        graph.replay()
        assert torch.equal(answer, wanted)
    scene.step.kv_lens[-1:] = 0
    graph.replay()
    assert torch.equal(answer[:-1], wanted[:-1])
    assert not answer[-1].any()
