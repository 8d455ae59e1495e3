"""Llama: Llama 2 and 3, SmolLM2, TinyLlama, and Mistral with its sliding window (architecture 2023, Touvron et al.)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from penstock.layers.activation import GatedMlp
from penstock.layers.attention import AttentionPlace, SelfAttention
from penstock.layers.embedding import Embedding, LmHead
from penstock.layers.norm import RmsNorm
from penstock.layers.parameter import Layer
from penstock.layers.rotary import RopeSpec, RopeTables, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.loader.weight_map import Weight
from penstock.models.family import CarrySpec, KvGeometry, ModelParts, attention_spec
from penstock.models.rope_config import read_rope
from penstock.types.kv import Visibility

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "llama")
PARALLEL: tuple[str, ...] = ()

WEIGHTS = (
    Weight(target="embedding.weight", hub=("model.embed_tokens.weight",), gguf=("token_embd.weight",), shard="vocab"),
    Weight(
        target="layers.{i}.attention_norm.weight",
        hub=("model.layers.{i}.input_layernorm.weight",),
        gguf=("blk.{i}.attn_norm.weight",),
    ),
    Weight(
        target="layers.{i}.attention.qkv.weight",
        hub=(
            "model.layers.{i}.self_attn.q_proj.weight",
            "model.layers.{i}.self_attn.k_proj.weight",
            "model.layers.{i}.self_attn.v_proj.weight",
        ),
        gguf=("blk.{i}.attn_q.weight", "blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
        gguf_folds=("rope_unpermute", "rope_unpermute", ""),
        shard="rows",
    ),
    Weight(
        target="layers.{i}.attention.qkv.bias",
        hub=(
            "model.layers.{i}.self_attn.q_proj.bias",
            "model.layers.{i}.self_attn.k_proj.bias",
            "model.layers.{i}.self_attn.v_proj.bias",
        ),
        gguf=("blk.{i}.attn_q.bias", "blk.{i}.attn_k.bias", "blk.{i}.attn_v.bias"),
        gguf_folds=("rope_unpermute", "rope_unpermute", ""),
        optional=True,
        shard="rows",
    ),
    Weight(
        target="layers.{i}.attention.output.weight",
        hub=("model.layers.{i}.self_attn.o_proj.weight",),
        gguf=("blk.{i}.attn_output.weight",),
        shard="columns",
    ),
    Weight(
        target="layers.{i}.attention.output.bias",
        hub=("model.layers.{i}.self_attn.o_proj.bias",),
        gguf=("blk.{i}.attn_output.bias",),
        optional=True,
    ),
    Weight(
        target="layers.{i}.mlp_norm.weight",
        hub=("model.layers.{i}.post_attention_layernorm.weight",),
        gguf=("blk.{i}.ffn_norm.weight",),
    ),
    Weight(
        target="layers.{i}.mlp.gate_up.weight",
        hub=("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
        gguf=("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
        shard="rows",
    ),
    Weight(
        target="layers.{i}.mlp.gate_up.bias",
        hub=("model.layers.{i}.mlp.gate_proj.bias", "model.layers.{i}.mlp.up_proj.bias"),
        gguf=("blk.{i}.ffn_gate.bias", "blk.{i}.ffn_up.bias"),
        optional=True,
        shard="rows",
    ),
    Weight(
        target="layers.{i}.mlp.down.weight",
        hub=("model.layers.{i}.mlp.down_proj.weight",),
        gguf=("blk.{i}.ffn_down.weight",),
        shard="columns",
    ),
    Weight(
        target="layers.{i}.mlp.down.bias",
        hub=("model.layers.{i}.mlp.down_proj.bias",),
        gguf=("blk.{i}.ffn_down.bias",),
        optional=True,
    ),
    Weight(target="norm.weight", hub=("model.norm.weight",), gguf=("output_norm.weight",)),
    Weight(
        target="lm_head.weight",
        hub=("lm_head.weight",),
        gguf=("output.weight",),
        tied="embedding.weight",
        shard="vocab",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    num_layers: int
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
    mlp_bias: bool
    tied: bool


def read_config(reader: ConfigReader) -> LlamaConfig:
    reader.expect("hidden_act", "silu")
    reader.expect("pretraining_tp", 1)
    heads, hidden = reader.int("num_attention_heads"), reader.int("hidden_size")
    head_dim = reader.int("head_dim", default=hidden // heads)
    return LlamaConfig(
        num_layers=reader.int("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=reader.int("intermediate_size"),
        num_heads=heads,
        num_kv_heads=reader.int("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab_size=reader.int("vocab_size"),
        norm_eps=reader.float("rms_norm_eps", default=1e-6),
        rope=read_rope(reader, head_dim),
        window=_window(reader),
        attention_bias=reader.bool("attention_bias", default=False),
        mlp_bias=reader.bool("mlp_bias", default=False),
        tied=reader.bool("tie_word_embeddings", default=False),
    )


def _window(reader: ConfigReader) -> int | None:
    """Only Mistral slides; the other models of this family carry the key, if at all, without effect."""
    if reader.str("model_type", default="") == "mistral" and reader.has("sliding_window"):
        return reader.int("sliding_window")
    return None


def kv_groups(config: LlamaConfig) -> tuple[KvGeometry, ...]:
    return (
        KvGeometry(
            name="full" if config.window is None else "sliding",
            visibility=Visibility.ALL if config.window is None else Visibility.WINDOW,
            layers=tuple(range(config.num_layers)),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.window,
        ),
    )


def carry_spec(config: LlamaConfig) -> CarrySpec:
    return CarrySpec(widths={"hidden": config.hidden_size})


def build(config: LlamaConfig, parts: ModelParts) -> LlamaModel:
    return LlamaModel(config, parts)


class LlamaLayer(Layer):
    def __init__(self, layer: int, config: LlamaConfig, rotary: Rotary, parts: ModelParts) -> None:
        (group,) = kv_groups(config)
        spec = attention_spec(group, parts.dtype_name, parts.platform)
        self.attention_norm = RmsNorm(config.hidden_size, config.norm_eps, parts)
        self.attention = SelfAttention(
            config.hidden_size,
            AttentionPlace(layer=layer, group=group.name, spec=spec),
            rotary,
            parts,
            scale=config.head_dim**-0.5,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
        )
        self.mlp_norm = RmsNorm(config.hidden_size, config.norm_eps, parts)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, "silu", parts, bias=config.mlp_bias)

    def __call__(self, hidden: torch.Tensor, tables: RopeTables) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), tables)
        return hidden + self.mlp(self.mlp_norm(hidden))


class LlamaModel(Layer):
    def __init__(self, config: LlamaConfig, parts: ModelParts) -> None:
        self._rotary = Rotary(config.rope, config.head_dim, parts)
        self.embedding = Embedding(config.vocab_size, config.hidden_size, parts)
        self.layers = [LlamaLayer(i, config, self._rotary, parts) for i in range(config.num_layers)]
        self.norm = RmsNorm(config.hidden_size, config.norm_eps, parts)
        tied_to = self.embedding if config.tied else None
        self.lm_head = LmHead(config.vocab_size, config.hidden_size, parts, tied_to=tied_to)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        carry: Mapping[str, torch.Tensor] | None = None,
        embeds: torch.Tensor | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[Mapping[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        if carry is not None:
            hidden = carry["hidden"]
        else:
            hidden = self.embedding(token_ids) if embeds is None else embeds
        tables = self._rotary.tables(positions)
        tapped = []
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, tables)
            if i in taps:
                tapped.append(hidden)
        return {"hidden": hidden}, tuple(tapped)

    def logits(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(carry["hidden"].index_select(0, rows)))
