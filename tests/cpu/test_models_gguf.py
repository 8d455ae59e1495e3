"""GGUF files of every family: tensor names against the gguf package's map, and logits of converted tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from model_driver import ModelDriver, Row, make_parts

from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.sources import ModelSource
from penstock.loader.weights import load_parameters
from penstock.models.table import FAMILIES, family_of

ARCHITECTURES = sorted(set(FAMILIES.values()))
LAYERS = 6


def permute(values: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to queries and keys of llama models: rotary halves to adjacent pairs."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


@dataclass(frozen=True)
class Converted:
    """How one family becomes a GGUF file. ``convert`` maps a hub tensor to the stored one."""

    config: str
    options: dict[str, Any]
    convert: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, values: values


def convert_llama(name: str, values: torch.Tensor) -> torch.Tensor:
    if "q_proj" in name:
        return permute(values, 4)
    return permute(values, 2) if "k_proj" in name else values


def convert_gemma(name: str, values: torch.Tensor) -> torch.Tensor:
    return values + 1 if name.endswith("norm.weight") else values


FAMILY: dict[str, Converted] = {
    "llama": Converted("LlamaConfig", {"attention_bias": True}, convert_llama),
    "qwen2": Converted("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": Converted("Qwen3Config", {"head_dim": 32}),
    "gemma3": Converted(
        "Gemma3TextConfig", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7}, convert_gemma
    ),
}


def make_model(family: str) -> Any:
    torch.manual_seed(5)
    config = getattr(transformers, FAMILY[family].config)(
        vocab_size=67, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        attn_implementation="eager", **FAMILY[family].options,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.06))
    return model


def name_map(family: str) -> Any:
    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    return gguf.get_tensor_name_map(arch, LAYERS)


def write_gguf(path: Path, family: str, model: Any) -> None:
    config, names = model.config, name_map(family)
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if family == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        writer.add_tensor(stored, FAMILY[family].convert(name, values).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_converted_model_gives_the_logits_of_the_original(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, family, model)
    checkpoint = open_checkpoint(ModelSource(name="tiny", kind="gguf", path=path))
    module = family_of(checkpoint.facts().architecture)
    driver = ModelDriver(module, module.read_config(checkpoint.config), make_parts())
    load_parameters(module.WEIGHTS, LAYERS, checkpoint, driver.model.parameters())
    tokens = torch.randint(3, 67, (23,)).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0]
    assert wanted.std() > 0.1
    torch.testing.assert_close(driver.step([(Row(), tokens)]), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_names_are_those_of_the_gguf_package(family: str) -> None:
    names = name_map(family)
    for row in family_of(family).WEIGHTS:
        if row.target.endswith(".kv_scales"):  # no GGUF file has them
            assert row.optional
            assert not row.gguf
            continue
        assert len(row.hub) == len(row.gguf), row.target
        for hub, stored in zip(row.hub, row.gguf, strict=True):
            wanted = names.get_name(hub.format(i=1), try_suffixes=(".weight", ".bias"))
            assert stored.format(i=1) == wanted, row.target


def test_every_family_is_here() -> None:
    assert set(FAMILY) == set(FAMILIES.values())
