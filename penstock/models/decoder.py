"""What dense decoders have in common: the module tree around their layers, weight rows, and KV groups by layer type.

Knows no family. A family composes these; what only one family has stays in its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from penstock.layers.attention import AttentionPlace
from penstock.layers.embedding import Embedding, LmHead
from penstock.layers.norm import RmsNorm
from penstock.layers.parameter import Layer
from penstock.layers.parts import layer_op
from penstock.layers.rotary import RopeTables, Rotary
from penstock.loader.config_reader import ConfigReader
from penstock.loader.weight_map import Weight, WeightTable
from penstock.models.family import CarrySpec, KvGeometry, ModelParts, attention_spec
from penstock.quantization.linear import LinearInput
from penstock.types.kv import Visibility

FULL = "full_attention"
SLIDING = "sliding_attention"

_BLOCK = "model.layers.{i}."
_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """What the configuration of every dense decoder says. ``tied``: the LM head is the embedding."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    tied: bool


def read_sizes(
    reader: ConfigReader, *, head_dim: int | None = None, ungrouped: bool = False, tied: bool = False
) -> DecoderSizes:
    """``head_dim`` and ``tied`` are the family's defaults; without one for ``head_dim``, heads divide the hidden size.

    ``ungrouped`` families mean one KV head per query head when a configuration does not say; in others it must say.
    """
    heads, hidden = reader.int("num_attention_heads"), reader.int("hidden_size")
    return DecoderSizes(
        hidden_size=hidden,
        intermediate_size=reader.int("intermediate_size"),
        num_heads=heads,
        num_kv_heads=reader.int("num_key_value_heads", default=heads)
        if ungrouped
        else reader.int("num_key_value_heads"),
        head_dim=reader.int("head_dim", default=head_dim or hidden // heads),
        vocab_size=reader.int("vocab_size"),
        norm_eps=reader.float("rms_norm_eps", default=1e-6),
        tied=reader.bool("tie_word_embeddings", default=tied),
    )


# (delta, hidden): what the last branch computed, and the hidden states that it is to be added to.
Residual = tuple[torch.Tensor, torch.Tensor]


class DecoderLayer(Protocol):
    def __call__(self, delta: torch.Tensor | None, hidden: torch.Tensor, tables: RopeTables, /) -> Residual:
        """The sum of a branch and its input is left to the next norm, which makes it on its way through memory: the
        last layer's delta comes in (None before the first layer), this one's goes out."""


class DecoderModel(Layer):
    """Embedding, layers, final norm, LM head: a CausalModel.

    ``rotaries`` are the distinct frequency tables and ``rotary_of`` says which of them each layer turns with.
    ``embedding_scale`` multiplies embeddings and ``logit_cap`` bends logits to ``cap * tanh(logits / cap)`` (Gemma).
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        parts: ModelParts,
        layers: Sequence[DecoderLayer],
        rotaries: Sequence[Rotary],
        rotary_of: Sequence[int],
        *,
        embedding_scale: float | None = None,
        logit_cap: float | None = None,
    ) -> None:
        self.embedding = Embedding(sizes.vocab_size, sizes.hidden_size, parts)
        self.layers = list(layers)
        self.norm = RmsNorm(sizes.hidden_size, sizes.norm_eps, parts)
        tied_to = self.embedding if sizes.tied else None
        self.lm_head = LmHead(sizes.vocab_size, sizes.hidden_size, parts, tied_to=tied_to)
        self._rotaries = tuple(rotaries)
        self._rotary_of = tuple(rotary_of)
        self._embedding_scale = embedding_scale
        self._logit_cap = logit_cap
        self._add, self._scale, self._gather, self._argmax = (
            layer_op(name, parts) for name in ("add", "scale", "gather_rows", "argmax")
        )

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
            hidden = self._embed(token_ids) if embeds is None else embeds
        tables = [rotary.tables(positions) for rotary in self._rotaries]
        tapped, delta = [], None
        for i, (layer, rotary) in enumerate(zip(self.layers, self._rotary_of, strict=True)):
            delta, hidden = layer(delta, hidden, tables[rotary])
            if i in taps:
                tapped.append(self._add(delta, hidden))
        return {"hidden": hidden if delta is None else self._add(delta, hidden)}, tuple(tapped)

    def logits(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor | None) -> torch.Tensor:
        logits = self.lm_head(self._normed(carry, rows))
        return logits if self._logit_cap is None else torch.tanh(logits / self._logit_cap) * self._logit_cap

    def greedy(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self._logit_cap is not None:  # the cap's rounding makes equal what was not: the argmax is of what it leaves
            found: tuple[torch.Tensor, torch.Tensor] = self._argmax(self.logits(carry, rows))
            return found
        return self.lm_head.argmax(self._normed(carry, rows))

    def _normed(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor | None) -> LinearInput:
        hidden = carry["hidden"]
        return self.norm.feed(hidden if rows is None else self._gather(hidden, rows), self.lm_head)

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(token_ids)
        return hidden if self._embedding_scale is None else self._scale(hidden, self._embedding_scale)


def read_layer_types(reader: ConfigReader, num_layers: int, *, otherwise: Sequence[str]) -> tuple[str, ...]:
    """``layer_types`` of the configuration, FULL or SLIDING for each layer; ``otherwise`` where files lack the key."""
    types = tuple(reader.list("layer_types", default=list(otherwise)))
    unknown = set(types) - {FULL, SLIDING}
    if unknown or len(types) != num_layers:
        raise reader.refuse("layer_types", f"{num_layers} entries of {FULL} or {SLIDING} are supported")
    return types


def read_window_layers(reader: ConfigReader) -> tuple[tuple[str, ...], int | None]:
    """Layer types and window of Qwen: layers from ``max_window_layers`` on slide, if ``use_sliding_window`` says so."""
    num_layers = reader.int("num_hidden_layers")
    window = reader.int("sliding_window", default=4096) if reader.bool("use_sliding_window", default=False) else None
    first = num_layers if window is None else reader.int("max_window_layers", default=28)
    types = read_layer_types(reader, num_layers, otherwise=[FULL if i < first else SLIDING for i in range(num_layers)])
    if SLIDING in types and window is None:
        raise reader.refuse("layer_types", "layers slide although use_sliding_window is off, so there is no window")
    return types, window


def groups_by_type(
    layer_types: Sequence[str],
    window: int | None,
    sizes: DecoderSizes,
    *,
    soft_cap: float | None = None,
    sinks: bool = False,
) -> tuple[KvGeometry, ...]:
    """One group "full" and one group "sliding", each only if it has layers."""
    full = tuple(i for i, kind in enumerate(layer_types) if kind == FULL)
    sliding = tuple(i for i, kind in enumerate(layer_types) if kind == SLIDING)
    found = (("full", Visibility.ALL, full, None), ("sliding", Visibility.WINDOW, sliding, window))
    return tuple(
        KvGeometry(
            name=name,
            visibility=visibility,
            layers=layers,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            window=seen,
            soft_cap=soft_cap,
            sinks=sinks,
        )
        for name, visibility, layers, seen in found
        if layers
    )


def attention_places(groups: Sequence[KvGeometry], parts: ModelParts) -> list[AttentionPlace]:
    """The place of every layer, in layer order."""
    places = []
    for group in groups:
        spec = attention_spec(group, parts.dtype_name, parts.platform, parts.kv_dtype, parts.batch_invariant)
        places += [AttentionPlace(layer=layer, group=group.name, spec=spec) for layer in group.layers]
    return sorted(places, key=lambda place: place.layer)


def hidden_carry(sizes: DecoderSizes) -> CarrySpec:
    return CarrySpec(widths={"hidden": sizes.hidden_size})


def outer_weights() -> WeightTable:
    """Embedding, final norm and LM head."""
    return (
        Weight(
            target="embedding.weight", hub=("model.embed_tokens.weight",), gguf=("token_embd.weight",), shard="vocab"
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


def attention_weights(*, gguf_rope_fold: str = "") -> WeightTable:
    """Projections of one layer and their biases, which a model has or has not by its configuration; and the scales of
    its keys and values in a float8 cache, which checkpoints may bring.

    ``gguf_rope_fold`` undoes what GGUF converters of the family did to the rows of queries and keys.
    """
    folds = (gguf_rope_fold, gguf_rope_fold, "")
    rows = []
    for leaf in ("weight", "bias"):
        rows.append(
            Weight(
                target=f"layers.{{i}}.attention.qkv.{leaf}",
                hub=tuple(f"{_BLOCK}self_attn.{name}.{leaf}" for name in _QKV),
                gguf=tuple(f"blk.{{i}}.attn_{name}.{leaf}" for name in "qkv"),
                gguf_folds=folds if gguf_rope_fold else (),
                shard="rows",
            )
        )
        rows.append(_one("attention.output", "self_attn.o_proj", "attn_output", leaf, "columns"))
    rows.append(
        Weight(
            target="layers.{i}.attention.kv_scales",
            hub=(f"{_BLOCK}self_attn.k_scale", f"{_BLOCK}self_attn.v_scale"),
            gguf=(),
            optional=True,
        )
    )
    return tuple(rows)


def mlp_weights() -> WeightTable:
    """The gated feed-forward network of one layer, biases as in ``attention_weights``."""
    rows = []
    for leaf in ("weight", "bias"):
        rows.append(
            Weight(
                target=f"layers.{{i}}.mlp.gate_up.{leaf}",
                hub=(f"{_BLOCK}mlp.gate_proj.{leaf}", f"{_BLOCK}mlp.up_proj.{leaf}"),
                gguf=(f"blk.{{i}}.ffn_gate.{leaf}", f"blk.{{i}}.ffn_up.{leaf}"),
                shard="rows",
            )
        )
        rows.append(_one("mlp.down", "mlp.down_proj", "ffn_down", leaf, "columns"))
    return tuple(rows)


def norm_weight(target: str, hub: str, gguf: str, *, hub_fold: str = "") -> Weight:
    """One norm of a layer: its target, and its checkpoint names without ".weight", below the layer's prefix."""
    return Weight(
        target=f"layers.{{i}}.{target}",
        hub=(f"{_BLOCK}{hub}.weight",),
        gguf=(f"blk.{{i}}.{gguf}.weight",),
        hub_folds=(hub_fold,) if hub_fold else (),
    )


def _one(target: str, hub: str, gguf: str, leaf: str, shard: str) -> Weight:
    """A bias that is added after the partial products of all ranks is not cut."""
    return Weight(
        target=f"layers.{{i}}.{target}.{leaf}",
        hub=(f"{_BLOCK}{hub}.{leaf}",),
        gguf=(f"blk.{{i}}.{gguf}.{leaf}",),
        shard=shard if leaf == "weight" else "",
    )
