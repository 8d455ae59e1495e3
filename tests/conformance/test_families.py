"""Every model family against transformers: logits, decode, batches, chunks, both attention backends, GGUF names."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from model_driver import ModelDriver, Row, make_parts

from penstock.errors import UnsupportedModelError
from penstock.loader.checkpoint import Checkpoint, open_checkpoint
from penstock.loader.sources import ModelSource
from penstock.loader.weights import describe_parameters, load_parameters
from penstock.models.table import FAMILIES, family_of

TOLERANCE = 1e-5
PROMPT_LEN = 41
BACKENDS = ("reference_torch", "cpu_sdpa", "cpu_native")
NAMES = ("ARCHITECTURES", "read_config", "WEIGHTS", "kv_groups", "carry_spec", "PARALLEL", "build")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}


@dataclass(frozen=True)
class Case:
    family: str
    name: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


CASES = (
    Case("llama", "grouped-untied", "LlamaConfig"),
    Case("llama", "tied-multihead", "LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    Case("llama", "one-kv-head-wide", "LlamaConfig", {"num_key_value_heads": 1, "head_dim": 24}),
    Case("llama", "biases", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    Case("llama", "rope-llama3", "LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    Case("llama", "rope-linear", "LlamaConfig", {"rope_parameters": LINEAR_ROPE}),
    Case("llama", "rope-yarn", "LlamaConfig", {"rope_parameters": YARN_ROPE}),
    Case("llama", "mistral-window", "MistralConfig", {"sliding_window": 11}),
    Case("llama", "mistral-full", "MistralConfig", {"sliding_window": None, "head_dim": 32}),
    Case("qwen2", "untied", "Qwen2Config"),
    Case("qwen2", "tied", "Qwen2Config", {"tie_word_embeddings": True}),
    Case(
        "qwen2", "upper-layers-slide", "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    Case("qwen3", "head-dim", "Qwen3Config", {"head_dim": 32}),
    Case("qwen3", "tied-bias", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    Case("gemma3", "local-global", "Gemma3TextConfig", {"sliding_window": 7}),
    Case(
        "gemma3", "capped-untied", "Gemma3TextConfig",
        {"sliding_window": 13, "final_logit_softcapping": 5.0, "tie_word_embeddings": False, "head_dim": 24},
    ),
    Case(
        "gemma3", "scaled-global-rope", "Gemma3TextConfig",
        {
            "rope_parameters": {
                "full_attention": LINEAR_ROPE | {"rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            }
        },
    ),
)  # fmt: skip

SHAPES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "gemma3": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "head_dim": 16,
        "query_pre_attn_scalar": 23,
        "sliding_window": 7,
    }
}


@dataclass(frozen=True)
class Fixture:
    """A saved tiny model, its tokens, and what transformers answers for them."""

    path: Path
    tokens: list[int]
    other_tokens: list[int]
    logits: torch.Tensor
    other_logits: torch.Tensor


def make_model(case: Case) -> Any:
    """Random weights, everything random: norms and biases too, and attention far from uniform."""
    torch.manual_seed(11)
    options = SHAPES | OF_FAMILY.get(case.family, {}) | case.options
    config = getattr(transformers, case.config)(**options, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.03 if parameter.shape[0] == SHAPES["vocab_size"] else 0.12
            parameter.add_(torch.randn_like(parameter) * spread)
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(2.0)
    return model


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def saved(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    model = make_model(case)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokens = torch.randint(3, SHAPES["vocab_size"], (PROMPT_LEN,)).tolist()
    other = torch.randint(3, SHAPES["vocab_size"], (19,)).tolist()
    with torch.no_grad():
        logits, other_logits = (model(torch.tensor([ids])).logits[0] for ids in (tokens, other))
    return Fixture(path, tokens, other, logits, other_logits)


def open_saved(path: Path) -> Checkpoint:
    return open_checkpoint(ModelSource(name="tiny", kind="directory", path=path))


def make_driver(path: Path, backend: str, dtype: torch.dtype = torch.float32) -> ModelDriver:
    checkpoint = open_saved(path)
    family = family_of(checkpoint.facts().architecture)
    driver = ModelDriver(family, family.read_config(checkpoint.config), make_parts(backend, dtype))
    num_layers = checkpoint.config.int("num_hidden_layers")
    load_parameters(family.WEIGHTS, num_layers, checkpoint, driver.model.parameters())
    return driver


@pytest.fixture(params=BACKENDS)
def driver(saved: Fixture, request: pytest.FixtureRequest) -> ModelDriver:
    return make_driver(saved.path, request.param)


def assert_same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.dtype == torch.float32
    assert wanted.std() > 0.1, "logits this flat prove nothing"
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def test_prefill_matches_transformers(saved: Fixture, driver: ModelDriver) -> None:
    assert_same(driver.step([(Row(), saved.tokens)]), saved.logits)


def test_token_by_token_matches_transformers(saved: Fixture, driver: ModelDriver) -> None:
    row = Row()
    found = torch.cat([driver.step([(row, [token])]) for token in saved.tokens])
    assert_same(found, saved.logits)


@pytest.mark.parametrize("cuts", [(0, 9, 41), (0, 1, 5, 6, 30, 41), (0, 16, 32, 41)], ids=str)
def test_chunks_match_transformers(saved: Fixture, driver: ModelDriver, cuts: tuple[int, ...]) -> None:
    row = Row()
    chunks = [saved.tokens[a:b] for a, b in pairwise(cuts)]
    assert_same(torch.cat([driver.step([(row, chunk)]) for chunk in chunks]), saved.logits)


def test_a_mixed_batch_matches_transformers(saved: Fixture, driver: ModelDriver) -> None:
    """A decoding row, a fresh prompt, a row in the middle of its prompt and a row with a few tokens, in one step."""
    decoding, middle, drafted = Row(), Row(), Row()
    driver.step([(decoding, saved.tokens[:40]), (middle, saved.other_tokens[:5]), (drafted, saved.tokens[:20])])
    found = driver.step(
        [
            (decoding, saved.tokens[40:]),
            (Row(), saved.other_tokens),
            (middle, saved.other_tokens[5:]),
            (drafted, saved.tokens[20:24]),
        ]
    )
    wanted = torch.cat([saved.logits[40:], saved.other_logits, saved.other_logits[5:], saved.logits[20:24]])
    assert_same(found, wanted)


def test_a_decode_batch_equals_single_rows(saved: Fixture, driver: ModelDriver) -> None:
    rows = [Row() for _ in range(5)]
    lengths = (1, 8, 17, 33, 40)
    driver.step([(row, saved.tokens[:n]) for row, n in zip(rows, lengths, strict=True)])
    found = driver.step([(row, [saved.tokens[n]]) for row, n in zip(rows, lengths, strict=True)])
    assert_same(found, saved.logits[list(lengths)])


def test_last_rows_only(saved: Fixture, driver: ModelDriver) -> None:
    found = driver.step([(Row(), saved.tokens), (Row(), saved.other_tokens)], all_logits=False)
    assert_same(found, torch.stack([saved.logits[-1], saved.other_logits[-1]]))


def test_embeds_taps_and_carry(saved: Fixture) -> None:
    """Embeddings from outside replace the model's own, taps are transformers' hidden states, a carry resumes."""
    driver = make_driver(saved.path, "cpu_sdpa")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved.path, attn_implementation="eager").eval()
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.tensor(saved.tokens))
        hidden = model(torch.tensor([saved.tokens]), output_hidden_states=True).hidden_states
    carry, taps = driver.forward([(Row(), saved.tokens)], embeds=embeds, taps=(0, 1))
    assert_same(taps[0], hidden[1][0], 1e-4)
    assert_same(taps[1], hidden[2][0], 1e-4)
    assert list(carry) == ["hidden"]
    rows = torch.tensor([3, 40])
    with torch.inference_mode():
        assert_same(driver.model.logits(carry, rows), saved.logits[rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_stay_near_float32(case: Case, saved: Fixture, dtype: torch.dtype) -> None:
    """Prefill and decode agree with each other and with float32 as far as the type goes."""
    driver = make_driver(saved.path, "cpu_sdpa", dtype)
    whole = driver.step([(Row(), saved.tokens)])
    row = Row()
    stepwise = torch.cat([driver.step([(row, saved.tokens[:37])]), driver.step([(row, saved.tokens[37:38])])])
    bound = {torch.bfloat16: 0.25, torch.float16: 0.03}[dtype] * saved.logits.std()
    assert (whole - saved.logits).abs().mean() < bound / 4
    assert (whole[:38] - stepwise).abs().mean() < bound / 4
    assert whole.isfinite().all()


def test_every_parameter_is_described_by_the_table(saved: Fixture, case: Case) -> None:
    checkpoint = open_saved(saved.path)
    family = family_of(checkpoint.facts().architecture)
    config = family.read_config(checkpoint.config)
    parameters = family.build(config, make_parts()).parameters()
    described = describe_parameters(family.WEIGHTS, SHAPES["num_hidden_layers"], checkpoint, parameters)
    optional = {
        weight.target.replace("{i}", str(layer))
        for weight in family.WEIGHTS
        for layer in range(SHAPES["num_hidden_layers"])
        if weight.optional
    }
    assert described.keys() == parameters.keys() - optional
    layers = sorted(layer for group in family.kv_groups(config) for layer in group.layers)
    assert layers == list(range(SHAPES["num_hidden_layers"])), "every attention layer is in exactly one group"
    assert family.carry_spec(config).widths == {"hidden": SHAPES["hidden_size"]}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_defines_its_contract(architecture: str) -> None:
    family = family_of(architecture)
    assert all(hasattr(family, name) for name in NAMES)
    assert architecture in family.ARCHITECTURES
    assert set(family.ARCHITECTURES) == {name for name, module in FAMILIES.items() if module == module_name(family)}
    assert len({row.target for row in family.WEIGHTS}) == len(family.WEIGHTS)


def module_name(family: ModuleType) -> str:
    return family.__name__.rsplit(".", 1)[1]


def test_every_family_has_a_case_here() -> None:
    assert {case.family for case in CASES} == set(FAMILIES.values())


def test_an_unknown_architecture_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'RavenForCausalLM'.*LlamaForCausalLM.*gemma3"):
        family_of("RavenForCausalLM")
