"""Qwen3 (dense): Llama's layer with an RMS norm on every head of queries and keys, and heads of their own size."""

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

ARCHITECTURES = ("Qwen3ForCausalLM", "qwen3")
PARALLEL: tuple[str, ...] = ()

WEIGHTS = (
    *outer_weights(),
    *attention_weights(),
    *mlp_weights(),
    norm_weight("attention_norm.weight", "input_layernorm", "attn_norm"),
    norm_weight("mlp_norm.weight", "post_attention_layernorm", "ffn_norm"),
    norm_weight("attention.norms.query", "self_attn.q_norm", "attn_q_norm"),
    norm_weight("attention.norms.key", "self_attn.k_norm", "attn_k_norm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    layer_types: tuple[str, ...]
    sizes: DecoderSizes
    rope: RopeSpec
    window: int | None
    attention_bias: bool


def read_config(reader: ConfigReader) -> Qwen3Config:
    reader.expect("hidden_act", "silu")
    sizes = read_sizes(reader, head_dim=128)
    layer_types, window = read_window_layers(reader)
    return Qwen3Config(
        layer_types=layer_types,
        sizes=sizes,
        rope=read_rope(reader, sizes.head_dim),
        window=window,
        attention_bias=reader.bool("attention_bias", default=False),
    )


def kv_groups(config: Qwen3Config) -> tuple[KvGeometry, ...]:
    return groups_by_type(
        config.layer_types,
        config.window,
        config.sizes,
    )


def carry_spec(config: Qwen3Config) -> CarrySpec:
    return hidden_carry(config.sizes)


class Qwen3Layer(Layer):
    def __init__(self, config: Qwen3Config, place: AttentionPlace, parts: ModelParts) -> None:
        sizes = config.sizes
        self.attention_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.attention = SelfAttention(
            sizes.hidden_size,
            place,
            parts,
            scale=sizes.head_dim**-0.5,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            head_norm_eps=sizes.norm_eps,
        )
        self.mlp_norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        self.mlp = GatedMlp(sizes.hidden_size, sizes.intermediate_size, "silu", parts)

    def __call__(self, delta: torch.Tensor | None, hidden: torch.Tensor, tables: RopeTables) -> Residual:
        normed, hidden = self.attention_norm.add(delta, hidden, feeds=self.attention.qkv)
        normed, hidden = self.mlp_norm.add(self.attention(normed, tables), hidden, feeds=self.mlp.gate_up)
        return self.mlp(normed), hidden


def build(config: Qwen3Config, parts: ModelParts) -> DecoderModel:
    rotary = Rotary(config.rope, config.sizes.head_dim, parts)
    places = attention_places(kv_groups(config), parts)
    return DecoderModel(
        config.sizes,
        parts,
        [Qwen3Layer(config, place, parts) for place in places],
        [rotary],
        [0] * len(places),
    )
