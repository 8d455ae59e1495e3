"""What families read from configurations: every spelling, every refusal, and groups by layer type."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from model_driver import CPU, make_parts, read_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from penstock.errors import UnsupportedModelError
from penstock.layers.rotary import RopeSpec, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.models import gemma3, llama, qwen2, qwen3
from penstock.models.family import attention_spec
from penstock.models.rope_config import read_rope
from penstock.types.kv import Visibility

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def rope(config: dict[str, Any], **options: Any) -> RopeSpec:
    return read_rope(ConfigReader(config, "config.json"), 16, **options)


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
    },
    "yarn": {"factor": 16.0, "original_max_position_embeddings": 512},
    "yarn-tuned": {
        "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 20.0, "beta_slow": 2.0,
        "attention_factor": 1.2, "truncate": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    kind, options = name.split("-")[0], SCALINGS[name]
    parameters = {"rope_type": kind, "rope_theta": 500_000.0} | options
    config = LlamaConfig(**SMALL | {"max_position_embeddings": 8192}, rope_parameters=dict(parameters), head_dim=64)
    frequencies, temperature = ROPE_INIT_FUNCTIONS[kind](config)
    rotary = Rotary(read_rope(ConfigReader({**SMALL, "rope_parameters": parameters}, "x"), 64), 64, make_parts())
    positions = torch.tensor([0, 1, 63, 1000])
    cos, sin = rotary.tables(positions)
    angles = positions[:, None] * frequencies
    torch.testing.assert_close(cos[:, 0, 32:], angles.cos() * temperature, atol=5e-6, rtol=0)
    torch.testing.assert_close(sin[:, 0, 32:], angles.sin() * temperature, atol=5e-6, rtol=0)
    torch.testing.assert_close(sin[:, 0, :32], -sin[:, 0, 32:])


def test_old_and_new_spellings_are_the_same() -> None:
    new = rope({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}})
    assert new == RopeSpec(base=5e5, kind="linear", factor=2.0)
    assert new == rope({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert new == rope({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert rope({}) == rope({"rope_scaling": None}) == rope({"rope_theta": 10000}) == RopeSpec(base=10000.0)


def test_factors_of_converted_files_divide_the_frequencies() -> None:
    factors = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    spec = rope({"rope_scaling": {"rope_type": "factors", "factors": factors}})
    plain = Rotary(rope({}), 16, make_parts()).tables(torch.tensor([8]))
    divided = Rotary(spec, 16, make_parts()).tables(torch.tensor([8]))
    assert divided[0][0, 0, 0] == plain[0][0, 0, 0]
    assert divided[1][0, 0, 15].item() == pytest.approx(math.sin(8 * 10000 ** (-14 / 16) / 8), rel=1e-5)
    with pytest.raises(UnsupportedModelError, match="must be 8 of them"):
        rope({"rope_scaling": {"rope_type": "factors", "factors": [1.0]}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'su'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
    ],
)
def test_rotary_options_that_are_not_implemented_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        rope(config)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (llama, {"hidden_act": "gelu"}, "hidden_act"),
        (llama, {"pretraining_tp": 2}, "pretraining_tp"),
        (llama, {"hidden_size": "many"}, "hidden_size"),
        (llama, {"vocab_size": None}, "has no vocab_size"),
        (qwen2, {"layer_types": ["full_attention", "linear_attention"] * 2}, "layer_types"),
        (qwen2, {"layer_types": ["full_attention"]}, "layer_types"),
        (qwen2, {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window is off"),
        (qwen3, {"hidden_act": "relu"}, "hidden_act"),
        (gemma3, {"hidden_activation": "gelu"}, "hidden_activation"),
        (gemma3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_the_code_assumes_is_asserted(family: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_config(family, SMALL | changes)


def test_only_mistral_slides_in_its_family() -> None:
    window = {"sliding_window": 32}
    (group,) = llama.kv_groups(read_config(llama, SMALL | window | {"model_type": "mistral"}))
    assert (group.name, group.visibility, group.window) == ("sliding", Visibility.WINDOW, 32)
    (group,) = llama.kv_groups(read_config(llama, SMALL | window | {"model_type": "llama"}))
    assert (group.name, group.visibility, group.window) == ("full", Visibility.ALL, None)


@pytest.mark.parametrize("family", [qwen2, qwen3])
def test_qwen_slides_only_where_it_says_so(family: Any) -> None:
    window = {"sliding_window": 32, "max_window_layers": 3}
    assert len(family.kv_groups(read_config(family, SMALL | window))) == 1
    full, sliding = family.kv_groups(read_config(family, SMALL | window | {"use_sliding_window": True}))
    assert (full.layers, sliding.layers, sliding.window) == ((0, 1, 2), (3,), 32)
    types = ["sliding_attention", "full_attention"] * 2
    full, sliding = family.kv_groups(
        read_config(family, SMALL | window | {"use_sliding_window": True, "layer_types": types})
    )
    assert (full.layers, sliding.layers) == ((1, 3), (0, 2))


def test_gemma_reads_old_and_new_files_alike() -> None:
    old = SMALL | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2, "head_dim": 16}
    old |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = SMALL | {
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    assert read_config(gemma3, old) == read_config(gemma3, new)
    assert read_config(gemma3, new).local_rope == RopeSpec(base=1e4)
    full, sliding = gemma3.kv_groups(read_config(gemma3, new))
    assert (full.layers, sliding.layers, sliding.window) == ((1, 3), (0, 2), 4096)


def test_a_groups_attention_spec_carries_its_geometry() -> None:
    config = read_config(gemma3, SMALL | {"head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": 50.0})
    (group,) = gemma3.kv_groups(config)
    spec = attention_spec(group, "bfloat16", CPU)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.window) == (4, 2, 16, 9)
    assert (spec.soft_cap, spec.dtype) == (50.0, "bfloat16")
