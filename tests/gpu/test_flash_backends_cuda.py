"""FlashInfer and FlashAttention on a card, where they are installed, against torch in float32 over gathered keys.

FlashInfer compiles a kernel for every size of heads, with and without a window and a soft cap, when it is first used:
minutes in all.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from attention_scenes import PACKAGED_CARD
from executor_fixtures import PlanMaker, random_prompt, run_alone, save_tiny_model, tiny_spec

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA device", allow_module_level=True)

from test_attention_cuda import ABSOLUTE, RELATIVE, Scene, Shape

from penstock.attention.contract import AttentionBackend, AttentionSpec, GroupStep, HostLengths
from penstock.attention.select import BACKENDS
from penstock.executor.local import LocalExecutor
from penstock.platforms.probe import probe_platform

NAMES = ("cuda_flashinfer", "cuda_flash_attn")
LONG_WAIT = 4_000_000_000  # cycles: seconds, which no launch takes
MIXED = ((700, 1), (90, 40), (0, 300), (63, 1), (255, 2), (0, 1), (256, 1), (1023, 17))
DECODE = tuple((31 * row + 500, 1) for row in range(40))

SHAPES = {
    "one long row": Shape(((30000, 1),)),
    "first token": Shape(((0, 1),)),
    "decode": Shape(DECODE),
    "prompts": Shape(((0, 1500), (37, 1500), (1000, 700))),
    "mixed": Shape(MIXED),
    "a row without tokens": Shape(((700, 1), (90, 0), (63, 1))),
    "groups of 7": Shape(MIXED, heads=28, kv_heads=4),
    "no groups": Shape(MIXED, heads=8, kv_heads=8),
    "larger blocks": Shape(MIXED, block_tokens=64),
    "window, decode": Shape(DECODE, window=300),
    "window, mixed": Shape(MIXED, window=100),
    "window, prompts": Shape(((1000, 1500), (37, 1500)), window=1024),
    "heads of 64": Shape(MIXED, heads=9, kv_heads=3, head_dim=64),
    "soft cap, window": Shape(MIXED, soft_cap=20.0, window=300),
    "heads of 256, soft cap": Shape(MIXED, heads=8, kv_heads=4, head_dim=256, soft_cap=50.0),
}


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    """Skips with the reasons where it cannot run."""
    found = BACKENDS[request.param]
    verdict = found.can_run(on_this_card(SHAPES["decode"].spec))
    if not verdict.ok:
        pytest.skip("; ".join(verdict.reasons))
    return found


def on_this_card(spec: AttentionSpec) -> AttentionSpec:
    return replace(spec, platform=PACKAGED_CARD)


def make_scene(backend: AttentionBackend, shape: Shape) -> Scene:
    """With a block size that the backend takes, and with lengths that the host knows."""
    size = min(size for size in backend.block_tokens if size >= shape.block_tokens)
    scene = Scene(replace(shape, block_tokens=size), backend)
    scene.step = replace(scene.step, host=host_lengths(scene.step))
    return scene


def host_lengths(step: GroupStep) -> HostLengths:
    return HostLengths(step.query_start.cpu(), step.kv_lens.cpu())


def behind_windows(scene: Scene) -> GroupStep:
    """The scene's step, but for blocks that no query of their row sees: those are another's by now, who left NaN."""
    if scene.shape.window is None:
        return scene.step
    table, size = scene.step.block_table.clone(), scene.shape.block_tokens
    others = next(block for block in range(len(scene.kv)) if not (table == block).any())
    for row, (history, _) in enumerate(scene.shape.rows):
        table[row, : max(0, history + 1 - scene.shape.window) // size] = others
    return replace(scene.step, block_table=table)


def run(backend: AttentionBackend, scene: Scene, step: GroupStep) -> torch.Tensor:
    metadata = backend.plan(on_this_card(scene.shape.spec), step)
    return backend.run(scene.qk, scene.v, scene.tables, scene.kv, scene.shape.scale, metadata)


@pytest.mark.parametrize("name", SHAPES)
def test_answers_and_writes(backend: AttentionBackend, name: str) -> None:
    scene = make_scene(backend, SHAPES[name])
    found = run(backend, scene, behind_windows(scene))
    torch.testing.assert_close(found.float(), scene.wanted(), rtol=RELATIVE, atol=ABSOLUTE)
    scene.check_writes()


def test_lengths_that_the_host_does_not_know_are_fetched(backend: AttentionBackend) -> None:
    scene = make_scene(backend, SHAPES["mixed"])
    found = run(backend, scene, replace(scene.step, host=None))
    torch.testing.assert_close(found.float(), scene.wanted(), rtol=RELATIVE, atol=ABSOLUTE)


def test_two_layers_share_a_plan_and_have_scales_of_their_own(backend: AttentionBackend) -> None:
    scene = make_scene(backend, SHAPES["mixed"])
    metadata = backend.plan(on_this_card(scene.shape.spec), scene.step)
    run_layer = partial(backend.run, scene.qk, scene.v, scene.tables, scene.kv)
    first, second, again = (run_layer(scale, metadata) for scale in (scene.shape.scale, 0.02, scene.shape.scale))
    torch.testing.assert_close(first.float(), scene.wanted(), rtol=RELATIVE, atol=ABSOLUTE)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


# What torch says whenever this mode is set: that it does not see every wait, which `busy` does.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_waits_for_nothing_and_steps_in_flight_keep_their_plans(backend: AttentionBackend) -> None:
    """Steps of different lengths are launched while the device is busy with something else."""
    scene = make_scene(backend, SHAPES["decode"])
    steps = []
    for shorter in (0, 37, 111, 3, 400, 250):
        step = replace(scene.step, kv_lens=scene.step.kv_lens - shorter)
        steps.append(replace(step, host=host_lengths(step)))
    alone = []
    for step in steps:
        alone.append(run(backend, scene, step))
        torch.cuda.synchronize()
    for makes_room in (True, False):  # what is made once may wait
        busy = torch.cuda.Event()
        torch.cuda._sleep(LONG_WAIT)
        busy.record()
        torch.cuda.set_sync_debug_mode("default" if makes_room else "error")
        try:
            together = [run(backend, scene, step) for step in steps]
            assert makes_room or not busy.query(), "the host waited for the device"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        for found, wanted in zip(together, alone, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("rows", [1, 8, 40])
def test_a_captured_step_reads_its_numbers_when_it_runs(backend: AttentionBackend, rows: int) -> None:
    if backend.eager_because:
        pytest.skip(backend.eager_because)
    scene = make_scene(backend, Shape(DECODE[:rows]))
    wanted = run(backend, scene, scene.step)
    lens = scene.step.kv_lens.clone()
    scene.step.kv_lens.fill_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run(backend, scene, scene.step)
    scene.step.kv_lens.copy_(lens)
    for _ in range(3):
        graph.replay()
        assert torch.equal(answer, wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("graphs", [True, False])
def test_greedy_tokens_are_those_with_our_own_kernels(
    backend: AttentionBackend, family: str, graphs: bool, tmp_path: Path
) -> None:
    """Of models in float16, with and without windows, from the executor as it is started for a server."""
    pytest.importorskip("transformers")
    save_tiny_model(family, tmp_path, head_dim=64)
    prompts = [random_prompt(length, seed=length) for length in (1, 17, 70)]

    def tokens(name: str) -> list[list[int]]:
        spec = tiny_spec(
            tmp_path, platform=probe_platform(), dtype="float16", attention_backend=name, graphs=graphs,
            kv_cache_memory=32 << 20,
        )  # fmt: skip
        executor = LocalExecutor(spec)
        try:
            maker = PlanMaker(executor.start())
            return [run_alone(executor, maker, 0, prompt, 40) for prompt in prompts]
        finally:
            executor.stop()

    assert tokens(backend.name) == tokens("cuda_triton")
