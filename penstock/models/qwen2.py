"""Qwen2 and Qwen2.5: Llama's layer with biases on queries, keys and values, and upper layers that may slide."""

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
    read_window_layers,
)
from penstock.models.family import CarrySpec, KvGeometry, ModelParts
from penstock.models.rope_config import read_rope

ARCHITECTURES = ("Qwen2ForCausalLM", "qwen2")
PARALLEL: tuple[str, ...] = ()

WEIGHTS = (
    *outer_weights(),
    *attention_weights(),
    *mlp_weights(),
    norm_weight("attention_norm.weight", "input_layernorm", "attn_norm"),
    norm_weight("mlp_norm.weight", "post_attention_layernorm", "ffn_norm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config:
    layer_types: tuple[str, ...]
    sizes: DecoderSizes
    rope: RopeSpec
    window: int | None


def read_config(reader: ConfigReader) -> Qwen2Config:
    reader.expect("hidden_act", "silu")
    sizes = read_sizes(reader)
    layer_types, window = read_window_layers(reader)
    return Qwen2Config(
        layer_types=layer_types,
        sizes=sizes,
        rope=read_rope(reader, sizes.head_dim),
        window=window,
    )


def kv_groups(config: Qwen2Config) -> tuple[KvGeometry, ...]:
    return groups_by_type(
        config.layer_types,
        config.window,
        config.sizes,
    )


def carry_spec(config: Qwen2Config) -> CarrySpec:
    return hidden_carry(config.sizes)


class Qwen2Layer(Layer):
    def __init__(self, config: Qwen2Config, place: AttentionPlace, parts: ModelParts) -> None:
        sizes = config.sizes
        self.attention_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.attention = SelfAttention(sizes.hidden_size, place, parts, scale=sizes.head_dim**-0.5, qkv_bias=True)
        self.mlp_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.mlp = GatedMlp(sizes.hidden_size, sizes.intermediate_size, "silu", parts)

    def __call__(self, delta: torch.Tensor | None, hidden: torch.Tensor, tables: RopeTables) -> Residual:
        normed, hidden = self.attention_norm.add(delta, hidden, feeds=self.attention.qkv)
        normed, hidden = self.mlp_norm.add(self.attention(normed, tables), hidden, feeds=self.mlp.gate_up)
        return self.mlp(normed), hidden


def build(config: Qwen2Config, parts: ModelParts) -> DecoderModel:
    rotary = Rotary(config.rope, config.sizes.head_dim, parts)
    places = attention_places(kv_groups(config), parts)
    return DecoderModel(
        config.sizes,
        parts,
        [Qwen2Layer(config, place, parts) for place in places],
        [rotary],
        [0] * len(places),
    )
