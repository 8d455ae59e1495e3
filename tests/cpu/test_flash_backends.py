"""What the backends of packages that are not here tell them, seen by stand-ins that attend, naively, over just what
they are told. Numbers of the packages themselves are for ``tests/gpu/test_flash_backends_cuda.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_scenes import Scene, Work, make_scene, naive

from penstock.attention.backends import cuda_flash_attn
from penstock.attention.backends.cuda_flash_attn import CudaFlashAttn
from penstock.attention.backends.cuda_flashinfer import CudaFlashinfer
from penstock.attention.contract import AttentionBackend, AttentionSpec, GroupStep, HostLengths
from penstock.attention.select import BACKENDS, GROUNDS, choose_attention
from penstock.errors import NoBackendError
from penstock.platforms.recorded import RECORDED
from penstock.types.facts import AcceleratorFacts, PlatformFacts

pytest.importorskip("triton", reason="the interpreter of kernels comes with triton")

H200 = RECORDED["h200"]
EQUIPPED = replace(
    H200,
    libraries={**H200.libraries, "flashinfer-python": "0.6.18.post1", "flash-attn": "2.8.3.post2"},
    cuda_compiler="/usr/local/cuda/bin/nvcc",
)
TOLERANCE = 4e-6

WORKS = {
    "decode": Work(((20, 1), (0, 1), (45, 1), (15, 1))),
    "equal lengths": Work(((20, 1), (20, 1))),
    "prompts": Work(((0, 19), (16, 20))),
    "mixed": Work(((20, 1), (0, 17), (5, 9), (40, 1))),
    "a row without tokens": Work(((20, 1), (5, 0), (6, 1))),
    "window": Work(((70, 1), (3, 1), (40, 20), (60, 2)), window=18),
    "window of one": Work(((70, 1), (3, 1), (31, 3)), window=1),
    "window wider than all": Work(((20, 1), (3, 4)), window=1000),
    "soft cap": Work(((20, 1), (3, 4)), soft_cap=3.0),
    "no groups": Work(((20, 1), (3, 4)), heads=3, kv_heads=3),
    "one KV head": Work(((20, 1), (3, 4)), heads=6, kv_heads=1),
}


class Wrapper:
    """Stands in for flashinfer.BatchPrefillWithPagedKVCacheWrapper."""

    made: list[Wrapper]

    def __init__(self, workspace: torch.Tensor, kv_layout: str, *, backend: str) -> None:
        assert (workspace.dtype, kv_layout, backend) == (torch.uint8, "HND", "fa2")
        self.made.append(self)

    def plan(
        self, qo_indptr: torch.Tensor, indptr: torch.Tensor, indices: torch.Tensor, last: torch.Tensor, heads: int,
        kv_heads: int, head_dim: int, page_size: int, **told: Any,
    ) -> None:  # fmt: skip
        for tensor in (qo_indptr, indptr, last, told["seq_lens"]):
            assert tensor.dtype is torch.int32
            assert tensor.device.type == "cpu", "a plan that is made on the host waits for what it finds elsewhere"
        assert indices.dtype is torch.int32
        assert told["causal"]
        self.bounds, self.start, self.indices, self.last = qo_indptr.tolist(), indptr.tolist(), indices, last.tolist()
        self.lens, self.page_size, self.told = told["seq_lens"].tolist(), page_size, told
        window = told["window_left"] + 1 or None
        self.work = Work((), heads, kv_heads, head_dim, window, told["logits_soft_cap"])

    def pages(self, row: int) -> list[int]:
        return self.indices[self.start[row] : self.start[row + 1]].tolist()

    def run(self, q: torch.Tensor, kv: torch.Tensor, *, k_scale: float, out: torch.Tensor) -> None:
        assert k_scale * self.told["sm_scale"] == pytest.approx(self.work.scale)
        assert q.shape == out.shape == (self.bounds[-1], self.work.heads, self.work.head_dim)
        assert kv.shape[1:] == (2, self.work.kv_heads, self.page_size, self.work.head_dim)
        longest = max(end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False))
        assert longest == self.told["max_token_per_sequence"]
        for row, length in enumerate(self.lens):
            pages = self.pages(row)
            assert length == (max(0, len(pages) - 1) * self.page_size + self.last[row])
            entries = kv[pages].transpose(2, 3).transpose(0, 1).flatten(1, 2)[:, :length]  # [2, entries, heads, dim]
            answer = out[self.bounds[row] : self.bounds[row + 1]]
            answer.copy_(seen_by(q[self.bounds[row] : self.bounds[row + 1]], *entries, self.work))


def seen_by(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, work: Work) -> torch.Tensor:
    """Values that no query sees are whatever they are, as in scenes."""
    low = 0 if work.window is None else max(0, len(keys) - len(query) + 1 - work.window)
    values = torch.cat((torch.zeros_like(values[:low]), values[low:]))
    return naive(query.cpu(), keys.cpu(), values.cpu(), work).to(query.device)


class VarlenAttention:
    """Stands in for flash_attn.flash_attn_varlen_func."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, kv_bounds: torch.Tensor,
        max_query: int, max_kv: int, **told: Any,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append({"max_query": max_query, **told})
        table = told["block_table"]
        for tensor in (bounds, kv_bounds, table):
            assert tensor.dtype is torch.int32
            assert tensor.stride(-1) == 1
        assert told["causal"]
        assert {q.stride(-1), k.stride(-1), v.stride(-1)} == {1}
        size, heads_k = k.shape[1:3]
        assert size % 256 == 0
        left, right = told["window_size"]
        assert right == (-1 if left < 0 else 0)
        work = Work((), q.shape[1], heads_k, q.shape[2], left + 1 or None, told["softcap"] or None)
        assert told["softmax_scale"] == pytest.approx(work.scale)
        counts, lens = bounds.diff().tolist(), kv_bounds.diff().tolist()
        assert bounds[-1] == len(q)
        assert max(counts) <= max_query
        assert max(lens) <= max_kv
        if max_query == 1:
            assert set(counts) == {1}, "the package takes every row to have one query"
        rows = []
        for row, (query, length) in enumerate(zip(q.split(counts), lens, strict=True)):
            blocks = table[row, : -(-length // size)].long()
            rows.append(seen_by(query, k[blocks].flatten(0, 1)[:length], v[blocks].flatten(0, 1)[:length], work))
        return torch.cat(rows)


@pytest.fixture(autouse=True)
def wrappers(monkeypatch: pytest.MonkeyPatch) -> list[Wrapper]:
    monkeypatch.setattr(Wrapper, "made", [], raising=False)
    module = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Wrapper)
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    return Wrapper.made


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> Iterator[VarlenAttention]:
    attend = VarlenAttention()
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=attend))
    cuda_flash_attn._attend.cache_clear()
    yield attend
    cuda_flash_attn._attend.cache_clear()


def scene_of(backend: AttentionBackend, work: Work) -> Scene:
    return make_scene(backend, replace(work, platform=EQUIPPED, block_tokens=backend.block_tokens[0]))


def check(backend: AttentionBackend, scene: Scene) -> None:
    torch.testing.assert_close(scene.run(backend), _wanted(backend, scene), rtol=TOLERANCE, atol=TOLERANCE)


def _wanted(backend: AttentionBackend, scene: Scene) -> torch.Tensor:
    rows = scene.q.split([new for _, new in scene.work.rows])
    return torch.cat([naive(q, *scene.stored(backend, row), scene.work) for row, q in enumerate(rows) if len(q)])


@pytest.mark.parametrize("name", WORKS)
def test_flashinfer_is_told_what_every_row_sees(name: str, wrappers: list[Wrapper]) -> None:
    backend = CudaFlashinfer()
    scene = scene_of(backend, WORKS[name])
    check(backend, scene)
    work, table = scene.work, scene.step.block_table.tolist()
    for row, (history, new) in enumerate(work.rows):
        low = 0 if work.window is None else max(0, history + 1 - work.window)
        wanted = table[row][low // work.block_tokens : -(-(history + new) // work.block_tokens)]
        assert wrappers[-1].pages(row) == wanted, "blocks that nobody sees may be another row's by now"


@pytest.mark.parametrize("name", WORKS)
def test_flash_attention_is_told_what_every_row_sees(name: str, varlen: VarlenAttention) -> None:
    backend = CudaFlashAttn()
    check(backend, scene_of(backend, WORKS[name]))
    assert varlen.calls


def test_several_blocks_of_flash_attention(varlen: VarlenAttention) -> None:
    backend = CudaFlashAttn()
    check(backend, scene_of(backend, Work(((257, 1), (0, 2)), heads=1, kv_heads=1, head_dim=8)))
    check(backend, scene_of(backend, Work(((520, 2), (255, 1)), heads=1, kv_heads=1, head_dim=8, window=100)))


def test_flashinfer_plans_without_a_look_at_the_device() -> None:
    """Tensors without data take the place of the device's."""
    backend = CudaFlashinfer()
    scene = scene_of(backend, WORKS["window"])
    step = scene.step
    away = GroupStep(
        **{name: getattr(step, name).to("meta") for name in ("query_start", "kv_lens", "block_table", "slots")},
        positions=step.positions.to("meta"),
        max_query_len=step.max_query_len,
        max_kv_len=step.max_kv_len,
        block_tokens=step.block_tokens,
        host=HostLengths(step.query_start.cpu(), step.kv_lens.cpu()),
    )
    planned = backend.plan(scene.work.spec, away).flashinfer
    here = backend.plan(scene.work.spec, step).flashinfer
    assert (planned.bounds, planned.start, planned.lens, planned.last) == (
        here.bounds, here.start, here.lens, here.last,
    )  # fmt: skip
    assert planned.indices.shape == here.indices.shape


def test_a_plan_of_flashinfer_that_somebody_holds_is_not_written_over(wrappers: list[Wrapper]) -> None:
    backend = CudaFlashinfer()
    scene = scene_of(backend, WORKS["decode"])
    spec, step = scene.work.spec, scene.step
    wrappers.clear()
    backend = CudaFlashinfer()
    first, second = backend.plan(spec, step), backend.plan(spec, step)
    assert first.flashinfer is not second.flashinfer
    del first
    third = backend.plan(spec, step)
    assert len(wrappers) == 2
    assert third.flashinfer is not second.flashinfer


def test_a_plan_of_flashinfer_that_is_still_being_copied_is_not_written_over(wrappers: list[Wrapper]) -> None:
    backend = CudaFlashinfer()
    scene = scene_of(backend, WORKS["decode"])
    wrappers.clear()
    backend = CudaFlashinfer()
    backend.plan(scene.work.spec, scene.step)
    ((free,),) = (waiting._free for waiting in backend._wrappers.values())
    free.copied = SimpleNamespace(query=lambda: False)
    backend.plan(scene.work.spec, scene.step)
    assert len(wrappers) == 2
    free.copied = SimpleNamespace(query=lambda: True)
    backend.plan(scene.work.spec, scene.step)
    assert len(wrappers) == 2


def test_a_larger_workspace_replaces_wrappers_of_the_smaller_one(wrappers: list[Wrapper]) -> None:
    backend = CudaFlashinfer()
    small, large = (scene_of(backend, Work(((20, 1),), head_dim=dim)) for dim in (8, 64))
    wrappers.clear()
    backend = CudaFlashinfer()
    for scene in (small, large, small, large):
        backend.plan(scene.work.spec, scene.step)
    assert len(wrappers) == 2


def spec_of(**changes: Any) -> AttentionSpec:
    values: dict[str, Any] = {
        "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "dtype": "bfloat16", "window": None, "soft_cap": None,
        "platform": EQUIPPED,
    }  # fmt: skip
    return AttentionSpec(**values | changes)


def test_where_they_are_installed_they_can_be_named_but_are_not_preferred() -> None:
    chosen, decision = choose_attention(spec_of(window=4096, soft_cap=50.0))
    assert (chosen.name, decision.also_possible[:2]) == ("cuda_triton", ("cuda_flashinfer", "cuda_flash_attn"))
    chosen, _ = choose_attention(spec_of(), "cuda_flashinfer")
    assert chosen.eager_because
    chosen, _ = choose_attention(spec_of(), "cuda_flash_attn")
    assert not chosen.eager_because
    assert chosen.block_tokens[0] == 256
    for name in ("cuda_flashinfer", "cuda_flash_attn"):
        assert BACKENDS[name].kv_layout(spec_of(), 256).shape == (2, 8, 256, 128)
    assert "cuda_triton 165 ms" in GROUNDS["cuda_flashinfer"]
    assert "not timed" in GROUNDS["cuda_flash_attn"]


def test_named_where_they_are_missing_they_are_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(NoBackendError, match=r"needs flashinfer-python 0\.6\.13 or newer, before 0\.8, which is not"):
        choose_attention(spec_of(platform=H200), "cuda_flashinfer")
    with pytest.raises(NoBackendError, match=r"needs flash-attn 2\.8 or newer, before 3, which is not installed"):
        choose_attention(spec_of(platform=H200), "cuda_flash_attn")


@pytest.mark.parametrize(
    ("name", "library", "version", "good"),
    [
        ("cuda_flashinfer", "flashinfer-python", "0.5.3", False),
        ("cuda_flashinfer", "flashinfer-python", "0.6.12", False),
        ("cuda_flashinfer", "flashinfer-python", "0.6.13", True),
        ("cuda_flashinfer", "flashinfer-python", "0.7.4", True),
        ("cuda_flashinfer", "flashinfer-python", "0.8.0rc1", False),
        ("cuda_flashinfer", "flashinfer-python", "unknown", False),
        ("cuda_flash_attn", "flash-attn", "2.7.4.post1", False),
        ("cuda_flash_attn", "flash-attn", "2.8.3", True),
        ("cuda_flash_attn", "flash-attn", "3.0.0b1", False),
    ],
)
def test_versions(name: str, library: str, version: str, good: bool) -> None:
    verdict = BACKENDS[name].can_run(
        spec_of(platform=replace(EQUIPPED, libraries={**EQUIPPED.libraries, library: version}))
    )
    assert verdict.ok == good
    assert good or (len(verdict.reasons) == 1 and verdict.reasons[0].endswith(f"found {version}"))


def test_flashinfer_needs_a_compiler_or_compiled_kernels() -> None:
    without = replace(EQUIPPED, cuda_compiler="")
    (reason,) = BACKENDS["cuda_flashinfer"].can_run(spec_of(platform=without)).reasons
    assert "nvcc" in reason
    compiled = replace(without, libraries={**EQUIPPED.libraries, "flashinfer-jit-cache": "0.6.18"})
    assert BACKENDS["cuda_flashinfer"].can_run(spec_of(platform=compiled)).ok


OLD = PlatformFacts(
    name="cuda",
    machine="x86_64",
    accelerators=(AcceleratorFacts(name="V100", kind="cuda", capability="7.0", memory_bytes=1 << 34),),
)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "cuda_flashinfer",
            ("capability 8.0, found 7.0", "flashinfer-python", "nvcc", "needs triton", "bfloat16, float16, asked",
             "type of activations, asked for int8", "equal groups", "64, 128, 256, found 100", "batch-invariant"),
        ),
        (
            "cuda_flash_attn",
            ("capability 8.0, found 7.0", "flash-attn", "needs triton", "bfloat16, float16, asked for float32",
             "type of activations, asked for int8", "equal groups", "multiples of 8 up to 256, found 100",
             "batch-invariant"),
        ),
    ],
)  # fmt: skip
def test_they_say_every_reason_against_them(name: str, wanted: tuple[str, ...]) -> None:
    spec = spec_of(
        platform=OLD, dtype="float32", kv_dtype="int8", num_heads=7, num_kv_heads=2, head_dim=100, batch_invariant=True
    )
    reasons = BACKENDS[name].can_run(spec).reasons
    assert len(reasons) == len(wanted)
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))


def test_neither_has_sinks() -> None:
    for name in ("cuda_flashinfer", "cuda_flash_attn"):
        (reason,) = BACKENDS[name].can_run(spec_of(sinks=True)).reasons
        assert reason == "the call that is made here has no sinks, asked for them"


def test_neither_keeps_float8() -> None:
    for name in ("cuda_flashinfer", "cuda_flash_attn"):
        (reason,) = BACKENDS[name].can_run(spec_of(kv_dtype="float8_e4m3fn")).reasons
        assert reason.endswith("asked for float8_e4m3fn")
