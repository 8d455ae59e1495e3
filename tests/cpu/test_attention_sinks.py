"""Attention with sinks against the attention of gpt-oss in transformers, projections and rotation included, computed
there in one piece and here in steps of one request: a prompt in chunks, decoding, drafts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from attention_scenes import Work, empty_pool, make_step
from model_driver import make_parts
from transformers import GptOssConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding

from penstock.attention.context import ForwardContext, forward_context
from penstock.attention.contract import AttentionBackend, AttentionSpec, check_layer
from penstock.attention.select import BACKENDS, choose_attention
from penstock.errors import NoBackendError
from penstock.layers.attention import AttentionPlace, SelfAttention
from penstock.models.decoder import DecoderSizes, attention_places, groups_by_type
from penstock.platforms.recorded import RECORDED
from penstock.quantization.schemes import dense_record

LENGTH, WINDOW = 75, 24
LAYERS = {"full_attention": None, "sliding_attention": WINDOW}
CUTS = (0, 9, 41, 42, 43, 47, 70, LENGTH)  # queries of the request that one step computes
WITH_SINKS = ("cpu_native", "cuda_triton", "reference_torch")


@pytest.fixture(scope="module")
def config() -> GptOssConfig:
    return GptOssConfig(
        hidden_size=48, num_attention_heads=8, num_key_value_heads=2, head_dim=32, num_hidden_layers=len(LAYERS),
        layer_types=list(LAYERS), sliding_window=WINDOW, intermediate_size=8, num_local_experts=2, vocab_size=16,
        max_position_embeddings=256, attn_implementation="eager",
    )  # fmt: skip


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest, config: GptOssConfig) -> Iterator[GptOssAttention]:
    torch.manual_seed(4)
    made = GptOssAttention(config, list(LAYERS).index(request.param)).eval()
    with torch.inference_mode():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
        made.sinks.normal_(mean=1.0, std=2.0)
        yield made


@pytest.mark.parametrize("name", WITH_SINKS)
def test_as_gpt_oss_in_transformers(name: str, layer: GptOssAttention, config: GptOssConfig) -> None:
    backend = BACKENDS[name]
    work = Work(
        ((0, LENGTH),), heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, kv_dtype="float32",
        head_dim=config.head_dim, window=layer.sliding_window, block_tokens=16, layers=1, sinks=True,
    ).on(backend)  # fmt: skip
    verdict = backend.can_run(work.spec)
    if not verdict.ok:
        pytest.skip("; ".join(verdict.reasons))
    hidden = torch.randn(LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(5))
    positions = torch.arange(LENGTH)
    angles = GptOssRotaryEmbedding(config)(hidden[None], positions[None])
    make_mask = create_causal_mask if work.window is None else create_sliding_window_causal_mask
    mask = make_mask(
        config=config, inputs_embeds=hidden[None], attention_mask=None, past_key_values=None, position_ids=None
    )
    wanted = layer(hidden[None], angles, mask)[0][0]
    found = layer.o_proj(_in_steps(backend, work, layer, hidden, (angles[0][0], angles[1][0])).flatten(1))
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-5)
    none = {"sinks": torch.full_like(layer.sinks, float("-inf"))}
    without = torch.func.functional_call(layer, none, (hidden[None], angles, mask))[0][0]
    assert (wanted - without).abs().max() > 0.1, "the sinks make no difference here"


def _in_steps(
    backend: AttentionBackend,
    work: Work,
    layer: GptOssAttention,
    hidden: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """[LENGTH, heads, head_dim]; beside the request another one is computed that begins as it does."""
    there, d = work.device, work.head_dim
    qk = torch.cat((layer.q_proj(hidden), layer.k_proj(hidden)), dim=1).view(LENGTH, -1, d).to(there)
    v = layer.v_proj(hidden).view(LENGTH, -1, d).to(there)
    cos, sin = (x[:, None].to(there) for x in angles)
    tables = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    blocks = -(-LENGTH // work.block_tokens)
    pool = empty_pool(backend.kv_layout(work.spec, work.block_tokens), 2 * blocks, 1, there)
    numbers = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(6)).tolist()
    found = []
    for first, last in pairwise(CUTS):
        step = make_step([(first, last), (first, first + 1)], [numbers[:blocks], numbers[blocks:]], 16, there)
        if work.block_tokens != step.block_tokens:
            pytest.fail("blocks of 16 are for every backend with sinks")
        at = step.positions
        out = backend.run(
            qk[at], v[at], (tables[0][at], tables[1][at]), pool[:, 0], layer.scaling, backend.plan(work.spec, step),
            sinks=layer.sinks.detach().to(there),
        )  # fmt: skip
        found.append(out[: last - first].cpu())
    return torch.cat(found)


def test_the_layer_as_gpt_oss_in_transformers(layer: GptOssAttention, config: GptOssConfig) -> None:
    """Sinks are a parameter, kept in float32 although checkpoints have bfloat16."""
    sizes = DecoderSizes(
        hidden_size=config.hidden_size, intermediate_size=8, num_heads=config.num_attention_heads, vocab_size=16,
        num_kv_heads=config.num_key_value_heads, head_dim=config.head_dim, norm_eps=1e-5, tied=False,
    )  # fmt: skip
    parts = make_parts()
    place = attention_places(groups_by_type(config.layer_types, WINDOW, sizes, sinks=True), parts)[layer.layer_idx]
    ours = SelfAttention(config.hidden_size, place, parts, scale=layer.scaling, qkv_bias=True, output_bias=True)
    parameters = ours.parameters()
    for leaf in ("weight", "bias"):
        found = [dense_record(getattr(getattr(layer, f"{x}_proj"), leaf).detach()) for x in "qkvo"]
        parameters[f"qkv.{leaf}"].load(found[:3])
        parameters[f"output.{leaf}"].load(found[3:])
    narrow = layer.sinks.detach().bfloat16()
    parameters["sinks"].load([dense_record(narrow)])
    hidden = torch.randn(LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(5))
    angles = GptOssRotaryEmbedding(config)(hidden[None], torch.arange(LENGTH)[None])
    cos, sin = (x[0][:, None] for x in angles)
    backend = choose_attention(place.spec)[0]
    blocks = list(range(-(-LENGTH // 16)))
    kv = empty_pool(backend.kv_layout(place.spec, 16), len(blocks), 1)[:, 0]
    step = make_step([(0, LENGTH)], [blocks], 16)
    with forward_context(ForwardContext({place.group: backend.plan(place.spec, step)}, {place.layer: kv})):
        answer = ours(hidden, (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
    make_mask = create_causal_mask if place.spec.window is None else create_sliding_window_causal_mask
    mask = make_mask(
        config=config, inputs_embeds=hidden[None], attention_mask=None, past_key_values=None, position_ids=None
    )
    given = {"sinks": narrow.float()}
    wanted = torch.func.functional_call(layer, given, (hidden[None], angles, mask))[0][0]
    torch.testing.assert_close(answer, wanted, rtol=2e-5, atol=1e-5)


def test_a_place_without_sinks_has_no_parameter() -> None:
    place = AttentionPlace(layer=0, group="full", spec=_spec(sinks=False))
    assert "sinks" not in SelfAttention(48, place, make_parts(), scale=1.0).parameters()


def _spec(**changes: object) -> AttentionSpec:
    values = {
        "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "dtype": "float32", "window": None, "soft_cap": None,
        "platform": RECORDED["laptop-avx2"], "sinks": True,
    }  # fmt: skip
    return AttentionSpec(**(values | changes))


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_have_sinks_or_say_so(name: str) -> None:
    spec = _spec(platform=RECORDED["h200"], dtype="bfloat16") if name.startswith("cuda") else _spec()
    without = _spec(platform=spec.platform, dtype=spec.dtype, sinks=False)
    others = BACKENDS[name].can_run(without).reasons  # a package that is not installed
    reasons = [reason for reason in BACKENDS[name].can_run(spec).reasons if reason not in others]
    assert all("not installed" in reason or "neither is installed" in reason for reason in others)
    assert len(reasons) == (name not in WITH_SINKS)
    assert all("has no sinks, asked for them" in reason for reason in reasons)


def test_the_decision_names_sinks() -> None:
    _, decision = choose_attention(_spec(window=128))
    assert "window 128, sinks" in decision.subject
    with pytest.raises(NoBackendError, match="has no sinks, asked for them"):
        choose_attention(_spec(), "cpu_sdpa")


def test_a_layer_brings_what_its_spec_has_and_nothing_else() -> None:
    kv, float8 = torch.zeros(1), torch.zeros(1, dtype=torch.float8_e4m3fn)
    sinks, plain = torch.zeros(8), _spec(sinks=False)
    check_layer(_spec(), kv, sinks, (1.0, 1.0))
    check_layer(plain, float8, None, (0.5, 2.0))
    with pytest.raises(ValueError, match="brings none"):
        check_layer(_spec(), kv, None, (1.0, 1.0))
    with pytest.raises(ValueError, match="the spec has none"):
        check_layer(plain, kv, sinks, (1.0, 1.0))
    for wrong in (sinks.bfloat16(), torch.zeros(7), torch.zeros(8, 2)[:, 0]):
        with pytest.raises(ValueError, match=r"contiguous float32 \[8\]"):
            check_layer(_spec(), kv, wrong, (1.0, 1.0))
    with pytest.raises(ValueError, match="have no scales"):
        check_layer(plain, kv, None, (0.5, 1.0))
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="are positive"):
            check_layer(plain, float8, None, (1.0, scale))
