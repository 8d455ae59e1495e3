"""Qwen3 (dense): Llama's layer with an RMS norm on every head of queries and keys, and heads of their own size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.layers.activation import GatedMlp
from penstock.layers.attention import AttentionPlace, SelfAttention
from penstock.layers.embedding import Embedding, LmHead
from penstock.layers.norm import RmsNorm
from penstock.layers.parameter import Layer
from penstock.layers.rotary import RopeSpec, RopeTables, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.models.decoder import (
    DecoderModel,
    attention_places,
    attention_weights,
    groups_by_type,
    hidden_carry,
    mlp_weights,
    norm_weight,
    outer_weights,
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
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: RopeSpec
    window: int | None
    attention_bias: bool
    tied: bool


def read_config(reader: ConfigReader) -> Qwen3Config:
    reader.expect("hidden_act", "silu")
    heads = reader.int("num_attention_heads")
    head_dim = reader.int("head_dim", default=128)
    layer_types, window = read_window_layers(reader)
    return Qwen3Config(
        layer_types=layer_types,
        hidden_size=reader.int("hidden_size"),
        intermediate_size=reader.int("intermediate_size"),
        num_heads=heads,
        num_kv_heads=reader.int("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab_size=reader.int("vocab_size"),
        norm_eps=reader.float("rms_norm_eps", default=1e-6),
        rope=read_rope(reader, head_dim),
        window=window,
        attention_bias=reader.bool("attention_bias", default=False),
        tied=reader.bool("tie_word_embeddings", default=False),
    )


def kv_groups(config: Qwen3Config) -> tuple[KvGeometry, ...]:
    return groups_by_type(
        config.layer_types,
        config.window,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


def carry_spec(config: Qwen3Config) -> CarrySpec:
    return hidden_carry(config.hidden_size)


class Qwen3Layer(Layer):
    def __init__(self, config: Qwen3Config, place: AttentionPlace, rotary: Rotary, parts: ModelParts) -> None:
        self.attention_norm = RmsNorm(config.hidden_size, config.norm_eps, parts)
        self.attention = SelfAttention(
            config.hidden_size,
            place,
            rotary,
            parts,
            scale=config.head_dim**-0.5,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            head_norm_eps=config.norm_eps,
        )
        self.mlp_norm = RmsNorm(config.hidden_size, config.norm_eps, parts)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, "silu", parts)

    def __call__(self, hidden: torch.Tensor, tables: RopeTables) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), tables)
        return hidden + self.mlp(self.mlp_norm(hidden))


def build(config: Qwen3Config, parts: ModelParts) -> DecoderModel:
    rotary = Rotary(config.rope, config.head_dim, parts)
    embedding = Embedding(config.vocab_size, config.hidden_size, parts)
    places = attention_places(kv_groups(config), parts)
    return DecoderModel(
        embedding,
        [Qwen3Layer(config, place, rotary, parts) for place in places],
        RmsNorm(config.hidden_size, config.norm_eps, parts),
        LmHead(config.vocab_size, config.hidden_size, parts, tied_to=embedding if config.tied else None),
        [rotary],
        [0] * len(places),
    )
