"""Gemma 3, text: sliding and full layers with rotary bases of their own, four norms per layer, scaled embeddings.

Norms multiply with one plus the stored weight: the one is added when hub weights are loaded; GGUF stores the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from penstock.layers.activation import GatedMlp
from penstock.layers.attention import AttentionPlace, SelfAttention
from penstock.layers.norm import RmsNorm
from penstock.layers.parameter import Layer
from penstock.layers.rotary import RopeSpec, RopeTables, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.loader.weight_map import Weight
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
    read_layer_types,
    read_sizes,
)
from penstock.models.family import CarrySpec, KvGeometry, ModelParts
from penstock.models.rope_config import read_rope

ARCHITECTURES = ("Gemma3ForCausalLM", "gemma3")
PARALLEL: tuple[str, ...] = ()


def _layer_norm(target: str, hub: str, gguf: str) -> Weight:
    return norm_weight(target, hub, gguf, hub_fold="add_one")


WEIGHTS = (
    *(replace(row, hub_folds=("add_one",)) if row.target == "norm.weight" else row for row in outer_weights()),
    *attention_weights(),
    *mlp_weights(),
    _layer_norm("attention_norm.weight", "input_layernorm", "attn_norm"),
    _layer_norm("attention_post_norm.weight", "post_attention_layernorm", "post_attention_norm"),
    _layer_norm("mlp_norm.weight", "pre_feedforward_layernorm", "ffn_norm"),
    _layer_norm("mlp_post_norm.weight", "post_feedforward_layernorm", "post_ffw_norm"),
    _layer_norm("attention.norms.query", "self_attn.q_norm", "attn_q_norm"),
    _layer_norm("attention.norms.key", "self_attn.k_norm", "attn_k_norm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config:
    """``scale`` multiplies attention scores: query_pre_attn_scalar to the power of -1/2."""

    layer_types: tuple[str, ...]
    sizes: DecoderSizes
    rope: RopeSpec
    local_rope: RopeSpec
    window: int
    scale: float
    attention_bias: bool
    score_cap: float | None
    logit_cap: float | None


def read_config(reader: ConfigReader) -> Gemma3Config:
    reader.expect("hidden_activation", "gelu_pytorch_tanh")
    reader.expect("use_bidirectional_attention", False)
    num_layers, sizes = reader.int("num_hidden_layers"), read_sizes(reader, head_dim=256, tied=True)
    pattern = reader.int("sliding_window_pattern", default=6)
    by_pattern = [SLIDING if (i + 1) % pattern else FULL for i in range(num_layers)]
    return Gemma3Config(
        layer_types=read_layer_types(reader, num_layers, otherwise=by_pattern),
        sizes=sizes,
        rope=read_rope(reader, sizes.head_dim, default_base=1_000_000.0, layer_type=FULL),
        local_rope=read_rope(
            reader, sizes.head_dim, default_base=10_000.0, layer_type=SLIDING, base_key="rope_local_base_freq"
        ),
        window=reader.int("sliding_window", default=4096),
        scale=reader.float("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_bias=reader.bool("attention_bias", default=False),
        score_cap=_optional_float(reader, "attn_logit_softcapping"),
        logit_cap=_optional_float(reader, "final_logit_softcapping"),
    )


def _optional_float(reader: ConfigReader, key: str) -> float | None:
    return reader.float(key) if reader.has(key) else None


def kv_groups(config: Gemma3Config) -> tuple[KvGeometry, ...]:
    return groups_by_type(
        config.layer_types,
        config.window,
        config.sizes,
        soft_cap=config.score_cap,
    )


def carry_spec(config: Gemma3Config) -> CarrySpec:
    return hidden_carry(config.sizes)


class Gemma3Layer(Layer):
    def __init__(self, config: Gemma3Config, place: AttentionPlace, parts: ModelParts) -> None:
        sizes = config.sizes

        def norm() -> RmsNorm:
            return RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)

        self.attention_norm, self.attention_post_norm = norm(), norm()
        self.mlp_norm, self.mlp_post_norm = norm(), norm()
        self.attention = SelfAttention(
            sizes.hidden_size,
            place,
            parts,
            scale=config.scale,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            head_norm_eps=sizes.norm_eps,
        )
        self.mlp = GatedMlp(sizes.hidden_size, sizes.intermediate_size, "gelu_tanh", parts)

    def __call__(self, delta: torch.Tensor | None, hidden: torch.Tensor, tables: RopeTables) -> Residual:
        normed, hidden = self.attention_norm.add(delta, hidden, feeds=self.attention.qkv)
        delta = self.attention_post_norm(self.attention(normed, tables))
        normed, hidden = self.mlp_norm.add(delta, hidden, feeds=self.mlp.gate_up)
        return self.mlp_post_norm(self.mlp(normed)), hidden


def build(config: Gemma3Config, parts: ModelParts) -> DecoderModel:
    rotaries = [Rotary(spec, config.sizes.head_dim, parts) for spec in (config.rope, config.local_rope)]
    rotary_of = [0 if kind == FULL else 1 for kind in config.layer_types]
    places = attention_places(kv_groups(config), parts)
    layers = [Gemma3Layer(config, place, parts) for place in places]
    # The factor is rounded to the type of the activations, as the model was trained.
    scale = torch.tensor(config.sizes.hidden_size**0.5, dtype=parts.dtype).item()
    return DecoderModel(
        config.sizes,
        parts,
        layers,
        rotaries,
        rotary_of,
        embedding_scale=scale,
        logit_cap=config.logit_cap,
    )
