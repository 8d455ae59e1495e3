"""What weights take: as stored in the checkpoint and as prepared for computing, known before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.config.sizes import size_text
from penstock.layers.linear import LinearWeight
from penstock.layers.parameter import Parameter
from penstock.loader.checkpoint import Checkpoint
from penstock.loader.weight_map import WeightTable
from penstock.loader.weights import describe_parameters
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.types.facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """``prepared_bytes`` of what the methods will keep, and where they go, in lines for people."""

    prepared_bytes: int
    lines: tuple[str, ...]


def plan_weights(
    table: WeightTable,
    facts: ModelFacts,
    checkpoint: Checkpoint,
    parameters: Mapping[str, Parameter],
    linear_method: Callable[[LinearSpec], LinearMethod],
) -> WeightPlan:
    """Ask for the method of every linear weight and add up what it will keep; other parameters are as large as they
    are."""
    described = describe_parameters(table, facts.num_layers, checkpoint, parameters)
    prepared: dict[tuple[str, str, bool], int] = {}
    others = 0
    for target, parameter in parameters.items():
        if not isinstance(parameter, LinearWeight):
            others += parameter.nbytes
            continue
        for spec in parameter.specs(described[target]):
            method = linear_method(spec)
            kept = method.prepared_bytes(spec)
            copied = spec.scheme.kind != "dense" and kept >= spec.out_features * spec.in_features * 2
            key = (spec.scheme.name, method.name, copied)
            prepared[key] = prepared.get(key, 0) + kept
    lines = [
        _line(scheme, method, copied, facts.weight_schemes.get(scheme, 0), kept)
        for (scheme, method, copied), kept in prepared.items()
    ]
    if others:
        lines.append(f"norms and biases: {size_text(others)}")
    return WeightPlan(prepared_bytes=sum(prepared.values()) + others, lines=tuple(lines))


def _line(scheme: str, method: str, copied: bool, stored: int, kept: int) -> str:
    how = f"a dense copy, which method {method} multiplies" if copied else f"prepared by method {method}"
    found = f"{size_text(stored)} stored, " if stored else ""
    return f"{scheme} weights: {found}{size_text(kept)} as {how}"
