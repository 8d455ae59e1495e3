"""Every attention backend against a naive computation over what it stored, in every scene."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from attention_scenes import CARD, FOR_CARDS, PACKAGED, PLAIN_CARD, READERS, Scene, Work, make_scene
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock.attention.backends
from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.attention.select import BACKENDS, GROUNDS, choose_attention
from penstock.errors import NoBackendError
from penstock.platforms.recorded import RECORDED
from penstock.types.facts import AcceleratorFacts, PlatformFacts

PLAIN = PlatformFacts(name="cpu", machine="x86_64", extension_missing="was not built")
CUDA = PlatformFacts(name="cuda", machine="x86_64")
MOST_INTERPRETED = 130  # tokens of all rows; Triton's interpreter takes 50 ms for each
TOLERANCE = {"float32": 4e-6, "bfloat16": 2e-2, "float16": 3e-3}
# What may be lost in the cache: relative to the value, and to the largest value of its token and head.
# The latter times the scale of the cache, if it has one.
ROUNDING = {
    torch.float32: (2e-6, 2e-6),
    torch.bfloat16: (2**-8, 2e-6),
    torch.float16: (2**-11, 2e-6),
    torch.float8_e4m3fn: (2**-4, 2**-10),
}
LARGEST_FLOAT8 = 448.0

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
    "bfloat16, heads of 64": Work(((20, 1), (0, 31), (130, 40)), heads=6, kv_heads=2, head_dim=64, dtype="bfloat16"),
    "bfloat16, heads of 128, soft cap": Work(((20, 1), (0, 31)), head_dim=128, dtype="bfloat16", soft_cap=5.0),
    "heads of 64": Work(((20, 1), (0, 31), (130, 40)), heads=9, kv_heads=3, head_dim=64),
    "heads of 80": Work(((20, 1), (0, 31), (130, 40)), heads=4, kv_heads=1, head_dim=80),
    "cache in float32": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="float32", head_dim=64),
    "cache in bfloat16": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="bfloat16", head_dim=64),
    "cache in int8": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="int8", head_dim=64),
    "cache in int8, small heads, window": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="int8", head_dim=8, window=70),
    "soft cap and window": Work(((300, 1), (0, 90), (40, 3)), soft_cap=5.0, window=33),
    "sinks, decode": Work(((3, 1), (37, 1), (16, 1), (0, 1), (63, 1)), sinks=True),
    "sinks, one long row": Work(((125, 1),), sinks=True),
    "sinks, drafts": Work(((10, 4), (33, 4), (0, 2), (7, 1), (12, 8)), sinks=True),
    "sinks, prompts behind prefixes": Work(((0, 33), (40, 17), (5, 9)), sinks=True),
    "sinks, mixed": Work(((20, 1), (0, 31), (5, 30), (30, 1), (9, 3)), sinks=True),
    "sinks, a row without tokens": Work(((20, 1), (5, 0), (6, 1), (0, 12)), sinks=True),
    "sinks, window": Work(((3, 1), (37, 1), (30, 33), (4, 2)), window=10, sinks=True),
    "sinks, window of one": Work(((3, 1), (0, 20), (5, 3)), window=1, sinks=True),
    "sinks, soft cap and window": Work(((70, 1), (0, 20), (20, 3)), soft_cap=5.0, window=13, sinks=True),
    "sinks, multi-query": Work(((20, 1), (0, 31), (5, 4)), heads=3, kv_heads=1, head_dim=24, sinks=True),
    "sinks, heads of gpt-oss": Work(((50, 1), (20, 9)), heads=16, kv_heads=2, head_dim=64, window=32, sinks=True),
    "sinks, bfloat16": Work(((20, 1), (0, 31), (5, 40), (9, 3)), dtype="bfloat16", sinks=True),
    "sinks, cache in bfloat16": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="bfloat16", sinks=True),
    "sinks, cache in int8": Work(((20, 1), (0, 31), (200, 40)), kv_dtype="int8", sinks=True),
    "sinks, long": Work(((1500, 1), (700, 33), (0, 130)), sinks=True),
    "cache in float8": Work(((20, 1), (0, 31), (50, 4), (3, 2)), kv_dtype="float8_e4m3fn", head_dim=64),
    "cache in float8, drafts": Work(((10, 4), (33, 4), (0, 2), (7, 1)), kv_dtype="float8_e4m3fn", heads=3, kv_heads=1),
    "cache in float8, scaled": Work(((20, 1), (0, 31), (50, 3)), kv_dtype="float8_e4m3fn", kv_scales=(0.05, 0.007)),
    # The largest of 448 times their scale: keys and values are cut.
    "cache in float8, cut": Work(((20, 1), (0, 31), (50, 3)), kv_dtype="float8_e4m3fn", kv_scales=(2**-8, 2**-9)),
    "cache in float8, soft cap, window, sinks": Work(
        ((20, 1), (0, 31), (50, 3)), kv_dtype="float8_e4m3fn", kv_scales=(0.5, 3.0), soft_cap=5.0, window=13, sinks=True
    ),
    "cache in float8, bfloat16": Work(((20, 1), (0, 31), (200, 40)), dtype="bfloat16", kv_dtype="float8_e4m3fn"),
    "long": Work(((1500, 1), (700, 33), (0, 130))),
}

SHORT = Work(((20, 1), (0, 19), (5, 10), (14, 3)))


def usable(backend: AttentionBackend, work: Work) -> Work:
    if backend.name in FOR_CARDS and not CARD and sum(map(sum, work.rows)) > MOST_INTERPRETED:
        pytest.skip("too long for Triton's interpreter")
    work = work.on(backend)
    verdict = backend.can_run(work.spec)
    if not verdict.ok:
        assert all(verdict.reasons), "a refusal has reasons"
        pytest.skip("; ".join(verdict.reasons))
    return work


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return BACKENDS[request.param]


def check(found: torch.Tensor, backend: AttentionBackend, scene: Scene) -> None:
    tolerance = TOLERANCE[scene.work.dtype]
    torch.testing.assert_close(found, scene.wanted(backend), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", WORKS)
def test_output_and_writes(backend: AttentionBackend, name: str) -> None:
    work = usable(backend, WORKS[name])
    scene = make_scene(backend, work, rotated=work.head_dim % 4 == 0)
    found = scene.run(backend)
    assert found.dtype == scene.q.dtype
    check(found, backend, scene)
    layout = backend.kv_layout(work.spec, work.block_tokens)
    for row, (history, _) in enumerate(work.rows):
        pairs = zip(scene.stored(backend, row), (scene.keys[row], scene.values[row]), work.kv_scales, strict=True)
        for stored, exact, scale in pairs:
            new = exact[history:].float()
            if layout.dtype is torch.float8_e4m3fn:
                new = new.clamp(-LARGEST_FLOAT8 * scale, LARGEST_FLOAT8 * scale)
            if layout.dtype is torch.int8:
                assert ((stored[history:] - new).abs() <= new.abs().amax(-1, keepdim=True) * 0.501 / 127).all()
            else:
                relative, absolute = ROUNDING[layout.dtype]
                torch.testing.assert_close(stored[history:], new, rtol=relative, atol=absolute * scale)
    untouched = scene.pool[:, 0].contiguous().view(torch.uint8)
    assert (untouched == 255).all(), "another layer's part of the pool was written"


def test_other_layers_share_the_plan(backend: AttentionBackend) -> None:
    """The same metadata serves every layer of the group, whatever its place in a block."""
    work = usable(backend, SHORT)
    scene = make_scene(backend, work)
    metadata = backend.plan(work.spec, scene.step)
    scene.pool[:, 0] = scene.pool[:, 1]
    first, second = (
        backend.run(scene.qk, scene.v, scene.tables, scene.pool[:, layer], work.scale, metadata) for layer in (0, 1)
    )
    check(second.cpu(), backend, scene)
    assert torch.equal(first, second)


def test_strided_queries_keys_and_values(backend: AttentionBackend) -> None:
    """Layers hand over views of one fused projection."""
    scene = make_scene(backend, usable(backend, SHORT))
    fused = torch.cat((scene.qk, scene.v), dim=1)
    scene.qk, scene.v = fused[:, :6], fused[:, 6:]
    check(scene.run(backend), backend, scene)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # of the interpreter
def test_a_row_does_not_depend_on_its_neighbours(backend: AttentionBackend) -> None:
    """A neighbour that holds NaN, as after an overflow, spoils only its own output."""
    work = usable(backend, Work(((20, 1), (45, 1), (6, 1), (0, 12), (30, 11))))
    scene = make_scene(backend, work)
    sick = scene.step.block_table[1, : 46 // work.block_tokens + 1]
    scene.kv[sick] = float("nan")
    found, wanted = scene.run(backend), scene.wanted(backend)
    healthy = [0, *range(2, len(found))]
    torch.testing.assert_close(found[healthy], wanted[healthy], atol=2e-6, rtol=2e-6)
    assert found[1].isnan().all()


@settings(max_examples=num_examples(25), deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=7),
    window=st.none() | st.integers(1, 80),
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    block_tokens=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 3),
)
@pytest.mark.parametrize(
    "name", sorted(set(BACKENDS) - {"reference_torch", *PACKAGED} - (set() if CARD else set(FOR_CARDS)))
)
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
    scene = make_scene(backend, usable(backend, work), seed)
    check(scene.run(backend), backend, scene)


def test_block_sizes_are_multiples_of_eight(backend: AttentionBackend) -> None:
    assert backend.block_tokens
    assert all(size > 0 and size % 8 == 0 for size in backend.block_tokens)


def test_table_and_folder_agree() -> None:
    modules = {module.name for module in pkgutil.iter_modules(penstock.attention.backends.__path__)}
    assert modules == set(BACKENDS) == set(READERS)
    for name in modules:
        importlib.import_module(f"penstock.attention.backends.{name}")


def _spec(**changes: Any) -> AttentionSpec:
    defaults: dict[str, Any] = {
        "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "dtype": "float32", "window": None, "soft_cap": None,
        "platform": RECORDED["laptop-avx2"],
    }  # fmt: skip
    return AttentionSpec(**(defaults | changes))


def test_the_native_backend_is_chosen_on_the_cpu() -> None:
    chosen, decision = choose_attention(_spec())
    assert (chosen.name, decision.chosen) == ("cpu_native", "cpu_native")
    assert decision.also_possible == ("cpu_sdpa", "reference_torch")
    assert decision.why == f"first of 3 that can run: {GROUNDS['cpu_native']}"


def test_without_the_extension_the_batched_backend_is_chosen() -> None:
    chosen, decision = choose_attention(_spec(platform=PLAIN))
    assert chosen.name == "cpu_sdpa"
    assert [(refused.name, refused.reasons) for refused in decision.rejected if refused.name.startswith("cpu")] == [
        ("cpu_native", ("was not built",))
    ]


def test_every_preference_has_its_ground() -> None:
    """All but the last are preferred to somebody."""
    assert list(GROUNDS) == list(BACKENDS)[:-1]


def test_a_soft_cap_falls_to_the_reference_with_the_reason() -> None:
    chosen, decision = choose_attention(_spec(soft_cap=50.0, dtype="bfloat16"))
    assert chosen.name == "reference_torch"
    *_, native, refused = decision.rejected
    assert native.reasons == ("needs dtype float32, asked for bfloat16",)
    assert "soft cap" in refused.reasons[0]
    assert "50.0" in refused.reasons[0]


def test_batch_invariant_results_are_for_kernels_of_our_own() -> None:
    chosen, decision = choose_attention(_spec(batch_invariant=True))
    assert (chosen.name, decision.also_possible) == ("cpu_native", ())
    reasons = {refused.name: refused.reasons for refused in decision.rejected}
    assert "batch-invariant" in reasons["cpu_sdpa"][0]
    assert "batch-invariant" in reasons["reference_torch"][0]
    chosen, decision = choose_attention(_spec(dtype="bfloat16", platform=RECORDED["h200"], batch_invariant=True))
    assert (chosen.name, decision.also_possible) == ("cuda_triton", ())


def test_a_type_of_the_cache_that_a_backend_lacks_is_a_reason() -> None:
    assert choose_attention(_spec(kv_dtype="int8"))[0].name == "cpu_native"
    assert choose_attention(_spec(kv_dtype="bfloat16", platform=PLAIN))[0].name == "reference_torch"
    with pytest.raises(NoBackendError) as caught:
        choose_attention(_spec(kv_dtype="int8", platform=PLAIN))
    text = str(caught.value)
    assert "in the type of activations, asked for int8" in text
    assert "keeps keys and values in float32, bfloat16, float16, float8_e4m3fn, asked for int8" in text
    chosen, decision = choose_attention(_spec(kv_dtype="float8_e4m3fn"))
    assert chosen.name == "reference_torch"
    reasons = {refused.name: refused.reasons for refused in decision.rejected}
    assert reasons["cpu_native"] == ("keeps keys and values in bfloat16, float32, int8, asked for float8_e4m3fn",)
    assert reasons["cpu_sdpa"] == ("keeps keys and values in the type of activations, asked for float8_e4m3fn",)
    chosen, decision = choose_attention(_spec(kv_dtype="float8_e4m3fn", dtype="bfloat16", platform=RECORDED["h200"]))
    assert (chosen.name, decision.also_possible) == ("cuda_triton", ("reference_torch",))


def test_the_native_backend_says_every_reason_against_it() -> None:
    spec = _spec(num_heads=97, num_kv_heads=1, head_dim=513, kv_dtype="float16", dtype="float16", platform=CUDA)
    reasons = BACKENDS["cpu_native"].can_run(spec).reasons
    wanted = ("dtype float32", "platform cpu", "bfloat16, float32, int8", "96 heads", "an even head_dim up to 512")
    assert len(reasons) == len(wanted)
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))


def test_a_named_backend_runs_or_is_an_error_with_its_reasons() -> None:
    assert choose_attention(_spec(), "reference_torch")[0].name == "reference_torch"
    with pytest.raises(NoBackendError, match="soft cap"):
        choose_attention(_spec(soft_cap=50.0), "cpu_sdpa")
    with pytest.raises(NoBackendError, match="no candidate named 'flash'"):
        choose_attention(_spec(), "flash")


@pytest.mark.parametrize("name", [name for name, facts in RECORDED.items() if facts.name == "cuda"])
def test_recorded_cards_have_kernels(name: str) -> None:
    spec = _spec(platform=RECORDED[name], dtype="bfloat16", soft_cap=30.0)
    chosen, decision = choose_attention(spec)
    assert (chosen.name, decision.also_possible) == ("cuda_triton", ("reference_torch",))
    reasons = {refused.name: refused.reasons for refused in decision.rejected}
    assert reasons["cuda_sdpa"] == ("scaled_dot_product_attention has no soft cap, asked for 30.0",)
    assert reasons["cuda_flashinfer"] == (
        "needs flashinfer-python 0.6.13 or newer, before 0.8, which is not installed",
        "needs flashinfer-jit-cache or the CUDA compiler, nvcc, of which neither is installed",
    )
    assert reasons["cuda_flash_attn"] == ("needs flash-attn 2.8 or newer, before 3, which is not installed",)
    assert chosen.kv_layout(spec, 16).shape == (2, 3, 16, 64)
    assert chosen.kv_layout(spec, 16).dtype is torch.bfloat16


def test_the_backend_of_cards_says_every_reason_against_it() -> None:
    old = PlatformFacts(
        name="cuda",
        machine="x86_64",
        accelerators=(AcceleratorFacts(name="V100", kind="cuda", capability="7.0", memory_bytes=1 << 34),),
    )
    spec = _spec(num_heads=131, num_kv_heads=2, head_dim=257, kv_dtype="int8", dtype="float64", platform=old)
    wanted = (
        "capability 8.0, found 7.0", "needs triton", "bfloat16, float16, float32, asked for float64",
        "float8_e4m3fn, asked for int8", "equal groups", "64 heads", "an even head_dim up to 256",
    )  # fmt: skip
    reasons = BACKENDS["cuda_triton"].can_run(spec).reasons
    assert len(reasons) == len(wanted)
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))
    for name in ("a100", "h100"):  # with and without a cast of float8
        assert BACKENDS["cuda_triton"].can_run(_spec(platform=RECORDED[name], kv_dtype="float8_e4m3fn")).ok


def test_cards_without_triton_have_torch() -> None:
    chosen, decision = choose_attention(_spec(platform=PLAIN_CARD, dtype="bfloat16", window=9))
    assert (chosen.name, decision.also_possible) == ("cuda_sdpa", ("reference_torch",))
    assert decision.why == f"first of 2 that can run: {GROUNDS['cuda_sdpa']}"
    assert chosen.eager_because
    refused = chosen.can_run(_spec(platform=PLAIN, dtype="float64", kv_dtype="int8", num_heads=7, soft_cap=2.0))
    assert len(refused.reasons) == 5


def test_other_platforms_have_the_reference() -> None:
    chosen, decision = choose_attention(_spec(platform=CUDA))
    assert chosen.name == "reference_torch"
    assert [(refused.name, refused.reasons) for refused in decision.rejected] == [
        ("cuda_triton", ("needs a GPU, found none", "needs triton, which is not installed")),
        (
            "cuda_flashinfer",
            (
                "needs a GPU, found none",
                "needs flashinfer-python 0.6.13 or newer, before 0.8, which is not installed",
                "needs flashinfer-jit-cache or the CUDA compiler, nvcc, of which neither is installed",
                "needs triton, which is not installed",
                "needs dtype bfloat16, float16, asked for float32",
            ),
        ),
        (
            "cuda_flash_attn",
            (
                "needs a GPU, found none",
                "needs flash-attn 2.8 or newer, before 3, which is not installed",
                "needs triton, which is not installed",
                "needs dtype bfloat16, float16, asked for float32",
            ),
        ),
        ("cuda_sdpa", ("needs a GPU, found none",)),
        ("cpu_native", ("needs platform cpu, found cuda",)),
        ("cpu_sdpa", ("needs platform cpu, found cuda",)),
    ]
    assert decision.why == "the only one that can run"
