"""Scenes for attention backends: a pool with a history in it, one step on it, and the right answer by a naive
computation over contiguous keys, written here and nowhere else. Knows the layouts only to read back what was stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from penstock.attention.contract import UNSCALED, AttentionBackend, AttentionSpec, GroupStep, KvLayout
from penstock.kernels import reference
from penstock.platforms.probe import probe_platform
from penstock.platforms.recorded import RECORDED
from penstock.types.facts import PlatformFacts

CPU = probe_platform()
CARD = torch.cuda.is_available()
# Without a card the kernels for one are interpreted.
FOR_CARDS = ("cuda_triton",)
# Other people's kernels cannot be interpreted: they run where there is a card and they are installed.
PACKAGES = ("flash-attn", "flashinfer-python", "flashinfer-jit-cache")
PACKAGED = ("cuda_flash_attn", "cuda_flashinfer")
# A card without what does not come with torch, so that ops are torch calls on a CPU as well.
PLAIN_CARD = replace(RECORDED["h200"], libraries={})
# With what is installed here.
PACKAGED_CARD = replace(
    RECORDED["h200"],
    libraries={
        **RECORDED["h200"].libraries,
        **{name: CPU.libraries[name] for name in PACKAGES if name in CPU.libraries},
    },
    cuda_compiler=CPU.cuda_compiler,
)


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
    kv_dtype: str = "auto"
    sinks: bool = False
    kv_scales: tuple[float, float] = UNSCALED
    block_tokens: int = 8
    layers: int = 2
    platform: PlatformFacts = CPU

    @property
    def device(self) -> str:
        return "cuda" if CARD and self.platform.name == "cuda" else "cpu"

    @property
    def scale(self) -> float:
        return 1.2 * self.head_dim**-0.5

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            window=self.window,
            soft_cap=self.soft_cap,
            platform=self.platform,
            kv_dtype=self.kv_dtype,
            sinks=self.sinks,
        )

    def on(self, backend: AttentionBackend) -> Work:
        """With a platform and a block size that the backend takes. Skips what cannot be computed on this machine."""
        if backend.name == "cuda_sdpa" and self.platform is CPU:
            return replace(self, platform=PLAIN_CARD).on(backend)
        if backend.name in PACKAGED and self.platform is CPU:
            work = replace(self, platform=PACKAGED_CARD).on(backend)
            if not CARD and backend.can_run(work.spec).ok:
                pytest.skip("installed, but there is no card")
            return work
        if backend.name in FOR_CARDS and self.platform is CPU:
            if not CARD:
                pytest.importorskip("triton", reason="the interpreter of kernels comes with triton")
                if {self.dtype, self.kv_dtype} - {"float32", "auto", "float8_e4m3fn"}:
                    pytest.skip("Triton's interpreter rounds to types other than float32 in its own way")
            return replace(self, platform=RECORDED["h200"]).on(backend)
        if self.block_tokens in backend.block_tokens:
            return self
        return replace(self, block_tokens=min(size for size in backend.block_tokens if size >= self.block_tokens))


@dataclass
class Scene:
    """A pool that holds the histories, and one step on it. ``q`` and ``keys`` are rotated; ``keys`` and ``values`` have
    one tensor per row, history and new tokens, not rounded to the type of the cache, and lie on the CPU as ``q``."""

    work: Work
    qk: torch.Tensor
    v: torch.Tensor
    tables: tuple[torch.Tensor, torch.Tensor] | None
    pool: torch.Tensor
    step: GroupStep
    q: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    sinks: torch.Tensor | None = None

    @property
    def kv(self) -> torch.Tensor:
        return self.pool[:, -1]

    def run(self, backend: AttentionBackend) -> torch.Tensor:
        metadata = backend.plan(self.work.spec, self.step)
        with torch.inference_mode():
            return backend.run(
                self.qk, self.v, self.tables, self.kv, self.work.scale, metadata,
                sinks=None if self.sinks is None else self.sinks.to(self.work.device), kv_scales=self.work.kv_scales,
            ).cpu()  # fmt: skip

    def stored(self, backend: AttentionBackend, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a row as the pool holds them, float32 [positions, kv_heads, head_dim]; zero where no query
        of the step looks."""
        history, new = self.work.rows[row]
        size, layout = self.work.block_tokens, backend.kv_layout(self.work.spec, self.work.block_tokens)
        low = _first_seen(self.work, history)
        positions = torch.arange(low, history + new)
        blocks, offsets = self.step.block_table[row].cpu()[positions // size], positions % size
        kv = self.kv.cpu()
        # torch widens float8 and cannot index it.
        pair = READERS[backend.name](kv.float() if kv.dtype is torch.float8_e4m3fn else kv, layout, self.work)
        padding = torch.zeros(low, self.work.kv_heads, self.work.head_dim)
        keys, values = (
            torch.cat((padding, part[blocks, offsets].float() * scale))
            for part, scale in zip(pair, self.work.kv_scales, strict=True)
        )
        return keys, values

    def wanted(self, backend: AttentionBackend) -> torch.Tensor:
        """The right answer over what the pool holds after ``run``."""
        outs = []
        for row, query in enumerate(self.q.split([new for _, new in self.work.rows])):
            outs.append(naive(query, *self.stored(backend, row), self.work, self.sinks))
        return torch.cat(outs)


def make_scene(backend: AttentionBackend, work: Work, seed: int = 0, *, rotated: bool = True) -> Scene:
    """Everything that no row wrote is NaN. Blocks before a row's window are given back: their table entry is wrong.

    The histories are written by the backend itself, in a step whose result is thrown away.
    """
    torch.manual_seed(seed)
    dtype = getattr(torch, work.dtype)
    lens = [history + new for history, new in work.rows]
    needed = [-(-length // work.block_tokens) for length in lens]
    order = torch.randperm(sum(needed) + 3).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    for (history, _), table in zip(work.rows, tables, strict=True):
        gone = _first_seen(work, history) // work.block_tokens
        table[:gone] = [0] * gone
    pool = empty_pool(backend.kv_layout(work.spec, work.block_tokens), sum(needed) + 3, work.layers, work.device)
    angles = torch.rand(max(lens), 1, work.head_dim // 2) * 6
    turns = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)
    width = work.heads + work.kv_heads
    # As large as scores are, so that some heads see little else.
    sinks = torch.randn(work.heads) * 3 + 1 if work.sinks else None
    parts = [
        (
            (torch.randn(length, width, work.head_dim) * 1.2).to(dtype),
            torch.randn(length, work.kv_heads, work.head_dim).to(dtype),
        )
        for length in lens
    ]

    def scene(ranges: list[tuple[int, int]]) -> Scene:
        positions = torch.cat([torch.arange(*r) for r in ranges])
        seen = (turns[0][positions], turns[1][positions]) if rotated else None
        qk = torch.cat([qk[first:last] for (qk, _), (first, last) in zip(parts, ranges, strict=True)])
        v = torch.cat([v[first:last] for (_, v), (first, last) in zip(parts, ranges, strict=True)])
        turned = reference.rotary(qk, *seen) if seen else qk
        whole = [reference.rotary(qk, turns[0][: len(qk)], turns[1][: len(qk)]) if rotated else qk for qk, _ in parts]
        there = work.device
        return Scene(
            work, qk.to(there), v.to(there), (seen[0].to(there), seen[1].to(there)) if seen else None, pool,
            make_step(ranges, tables, work.block_tokens, there), turned[:, : work.heads],
            [each[:, work.heads :] for each in whole], [v for _, v in parts], sinks,
        )  # fmt: skip

    before = [(_first_seen(work, history), history) for history, _ in work.rows]
    if any(low < high for low, high in before):
        scene(before).run(backend)
    return scene([(history, history + new) for history, new in work.rows])


def make_step(
    ranges: list[tuple[int, int]], tables: list[list[int]], block_tokens: int, device: str = "cpu"
) -> GroupStep:
    """A step that computes the positions [first, last) of each row. Rows of the table lie apart, as in the executor."""
    counts = [last - first for first, last in ranges]
    widest = max(len(table) for table in tables)
    whole = torch.full((len(tables), widest + 3), -1)
    table = whole[:, :widest]
    for row, blocks in enumerate(tables):
        table[row] = torch.tensor(blocks + [0] * (widest - len(blocks)))
    positions = torch.cat([torch.arange(*r) for r in ranges])
    row_of_token = torch.repeat_interleave(torch.arange(len(ranges)), torch.tensor(counts))
    return GroupStep(
        query_start=torch.tensor([0, *counts]).cumsum(0).to(device),
        kv_lens=torch.tensor([last for _, last in ranges]).to(device),
        block_table=whole.to(device)[:, :widest],
        slots=(table[row_of_token, positions // block_tokens] * block_tokens + positions % block_tokens).to(device),
        positions=positions.to(device),
        max_query_len=max(counts),
        max_kv_len=max(last for _, last in ranges),
        block_tokens=block_tokens,
    )


def empty_pool(layout: KvLayout, num_blocks: int, layers: int, device: str = "cpu") -> torch.Tensor:
    """Every float in it is a NaN."""
    return (
        torch.full((num_blocks, layers, layout.nbytes), 255, dtype=torch.uint8, device=device)
        .view(layout.dtype)
        .view(num_blocks, layers, *layout.shape)
    )


def naive(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, work: Work, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """float64, all heads repeated, a full mask; sinks are one more key, whose weight is dropped."""
    history, new = len(keys) - len(query), len(query)
    k, v = (t.double().repeat_interleave(work.heads // work.kv_heads, dim=1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), k) * work.scale
    if work.soft_cap is not None:
        scores = work.soft_cap * torch.tanh(scores / work.soft_cap)
    behind = torch.arange(history, history + new)[:, None] - torch.arange(history + new)[None]
    hidden = behind < 0 if work.window is None else (behind < 0) | (behind >= work.window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, new, 1)), dim=-1)
    weights = scores.softmax(-1)[..., : history + new]
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)


def _first_seen(work: Work, history: int) -> int:
    return 0 if work.window is None else max(0, history - work.window + 1)


# Readers: keys and values of a pool's layer, [num_blocks, block_tokens, kv_heads, head_dim].


def _read_entries(kv: torch.Tensor, layout: KvLayout, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    return kv[:, 0], kv[:, 1]


def _read_tiles(kv: torch.Tensor, layout: KvLayout, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles of 16 tokens, keys [head_dim, 16] before values [16, padded head_dim], behind them 16 + 16 scales of int8
    codes: see penstock.attention.backends.cpu_native."""
    dim, padded = work.head_dim, -(-work.head_dim // 16) * 16
    keys = kv[..., : dim * 16].unflatten(-1, (dim, 16)).float()  # [blocks, kv_heads, tiles, dim, 16]
    values = kv[..., dim * 16 : (dim + padded) * 16].unflatten(-1, (16, padded))[..., :dim].float()
    if layout.dtype is torch.int8:
        scales = kv[..., (dim + padded) * 16 :].contiguous().view(torch.float32)
        keys, values = keys * scales[..., None, :16], values * scales[..., 16:, None]
    return keys.permute(0, 2, 4, 1, 3).flatten(1, 2), values.permute(0, 2, 3, 1, 4).flatten(1, 2)


def _read_heads(kv: torch.Tensor, layout: KvLayout, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    return kv[:, 0].transpose(1, 2), kv[:, 1].transpose(1, 2)


READERS: dict[str, Callable[[torch.Tensor, KvLayout, Work], tuple[torch.Tensor, torch.Tensor]]] = {
    "cpu_native": _read_tiles,
    "cpu_sdpa": _read_entries,
    "cuda_flash_attn": _read_heads,
    "cuda_flashinfer": _read_heads,
    "cuda_sdpa": _read_entries,
    "cuda_triton": _read_heads,
    "reference_torch": _read_entries,
}
