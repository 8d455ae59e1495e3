"""Llama: Llama 2 and 3, SmolLM2, TinyLlama, and Mistral with its sliding window (Touvron et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.layers.activation import GatedMlp
from penstock.layers.attention import AttentionPlace, SelfAttention
from penstock.layers.norm import RmsNorm
from penstock.layers.parameter import Layer
from penstock.layers.rotary import RopeSpec, RopeTables, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.models.decoder import (
    FULL,
    SLIDING,
    DecoderModel,
    DecoderSizes,
    Residual,
    attention_places,
    attention_weights,
    groups_by_type,
    hidden_carry,
    mlp_weights,
    norm_weight,
    outer_weights,
    read_sizes,
)
from penstock.models.family import CarrySpec, KvGeometry, ModelParts
from penstock.models.rope_config import read_rope

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "llama")
PARALLEL: tuple[str, ...] = ()

WEIGHTS = (
    *outer_weights(),
    *attention_weights(gguf_rope_fold="rope_unpermute"),
    *mlp_weights(),
    norm_weight("attention_norm.weight", "input_layernorm", "attn_norm"),
    norm_weight("mlp_norm.weight", "post_attention_layernorm", "ffn_norm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    num_layers: int
    sizes: DecoderSizes
    rope: RopeSpec
    window: int | None
    attention_bias: bool
    mlp_bias: bool


def read_config(reader: ConfigReader) -> LlamaConfig:
    reader.expect("hidden_act", "silu")
    reader.expect("pretraining_tp", 1)
    sizes = read_sizes(reader, ungrouped=True)
    return LlamaConfig(
        num_layers=reader.int("num_hidden_layers"),
        sizes=sizes,
        rope=read_rope(reader, sizes.head_dim),
        window=_read_window(reader),
        attention_bias=reader.bool("attention_bias", default=False),
        mlp_bias=reader.bool("mlp_bias", default=False),
    )


def _read_window(reader: ConfigReader) -> int | None:
    """Only Mistral slides; the other models of this family carry the key, if at all, without effect."""
    if reader.str("model_type", default="") == "mistral" and reader.has("sliding_window"):
        return reader.int("sliding_window")
    return None


def kv_groups(config: LlamaConfig) -> tuple[KvGeometry, ...]:
    kind = FULL if config.window is None else SLIDING
    return groups_by_type(
        [kind] * config.num_layers,
        config.window,
        config.sizes,
    )


def carry_spec(config: LlamaConfig) -> CarrySpec:
    return hidden_carry(config.sizes)


class LlamaLayer(Layer):
    def __init__(self, config: LlamaConfig, place: AttentionPlace, parts: ModelParts) -> None:
        sizes = config.sizes
        self.attention_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.attention = SelfAttention(
            sizes.hidden_size,
            place,
            parts,
            scale=sizes.head_dim**-0.5,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
        )
        self.mlp_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.mlp = GatedMlp(sizes.hidden_size, sizes.intermediate_size, "silu", parts, bias=config.mlp_bias)

    def __call__(self, delta: torch.Tensor | None, hidden: torch.Tensor, tables: RopeTables) -> Residual:
        normed, hidden = self.attention_norm.add(delta, hidden, feeds=self.attention.qkv)
        normed, hidden = self.mlp_norm.add(self.attention(normed, tables), hidden, feeds=self.mlp.gate_up)
        return self.mlp(normed), hidden


def build(config: LlamaConfig, parts: ModelParts) -> DecoderModel:
    rotary = Rotary(config.rope, config.sizes.head_dim, parts)
    places = attention_places(kv_groups(config), parts)
    return DecoderModel(
        config.sizes,
        parts,
        [LlamaLayer(config, place, parts) for place in places],
        [rotary],
        [0] * config.num_layers,
    )
