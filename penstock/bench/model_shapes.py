"""The shapes that a model gives its kernels, from its headers alone: which weights there are, which heads, how wide."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.attention.contract import AttentionSpec
from penstock.config.resolve import resolve_dtype
from penstock.config.sections import EngineConfig
from penstock.errors import ConfigError
from penstock.executor.load import build_model
from penstock.layers.linear import LinearWeight
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.weights import describe_parameters
from penstock.quantization.linear import LinearSpec
from penstock.quantization.schemes import SCHEMES
from penstock.types.facts import ModelFacts, PlatformFacts

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource

_GATED = "mlp.down"  # the weight whose columns are what a gated activation makes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """``role`` is the weight's name without its layer, e.g. "attention.qkv". ``embedded``: rows of it are looked up,
    and when no LM head has been stored it is that too."""

    role: str
    spec: LinearSpec
    embedded: bool = False
    gives_logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    facts: ModelFacts
    dtype: str  # of activations
    intermediate_size: int  # 0 for a model without a gated MLP
    linears: tuple[LinearShape, ...]  # each different one once
    attention: tuple[AttentionSpec, ...]


def read_shapes(
    source: ModelSource, platform: PlatformFacts, scheme: str | None = None, load_format: str = "auto"
) -> ModelShapes:
    """``load_format`` "dummy" reads a configuration and needs no weights. Raises ConfigError for a ``scheme``, the one
    that weights are to have instead of their own, that does not exist; UnsupportedModelError for a model that no family
    takes."""
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"There is no weight scheme {scheme!r}; there are {', '.join(SCHEMES)}.")
    with closing(open_checkpoint(source, load_format=load_format)) as checkpoint:
        dtype, _ = resolve_dtype(EngineConfig(), checkpoint.facts(), platform)
        built = build_model(checkpoint, dtype=dtype, platform=platform)
        parameters = built.model.parameters()
        described = describe_parameters(built.family.WEIGHTS, built.facts.num_layers, checkpoint, parameters)
    tied = not any("lm_head" in target for target in parameters)
    found: dict[tuple[str, str, int], LinearShape] = {}
    for target, parameter in parameters.items():
        if not isinstance(parameter, LinearWeight):
            continue
        role = re.sub(r"^layers\.\d+\.|\.weight$", "", target)
        embedded = role == "embedding"
        for spec in parameter.specs(described[target]):
            chosen = spec if scheme is None else replace(spec, scheme=SCHEMES[scheme])
            logits = role == "lm_head" or (embedded and tied)
            shape = LinearShape(role=role, spec=chosen, embedded=embedded, gives_logits=logits)
            found[(role, chosen.scheme.name, chosen.out_features)] = shape
    return ModelShapes(
        facts=built.facts,
        dtype=dtype,
        intermediate_size=next((s.spec.in_features for s in found.values() if s.role == _GATED), 0),
        linears=tuple(found.values()),
        attention=tuple(group.spec for group in built.attention),
    )
