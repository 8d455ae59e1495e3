"""From a checkpoint to a model's parameters, by a family's WEIGHTS table. Strict in both directions.

It does not know families or layers: parameters are anything with ``shape`` and ``load(records)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from penstock.errors import UnsupportedModelError
from penstock.kernels.device import CPU
from penstock.loader.contract import Checkpoint, TensorFacts
from penstock.loader.dummy_checkpoint import DummyCheckpoint
from penstock.loader.folds import FOLDS
from penstock.loader.gguf_config import ROPE_FACTORS
from penstock.loader.weight_map import Weight, WeightTable
from penstock.quantization.schemes import WeightRecord

# Stored though they are no weights: buffers that older tools saved, and rotary divisors that became configuration.
IGNORABLE_SUFFIXES = (".rotary_emb.inv_freq", ".self_attn.masked_bias", ROPE_FACTORS)
_SHOWN_NAMES = 8

Progress = Callable[[int, int], None]


class LoadableParameter(Protocol):
    """The side of ``layers.parameter.Parameter`` that loading needs."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def load(self, records: Sequence[WeightRecord], /) -> None: ...


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One stored tensor that goes into a parameter, and the fold it passes through ("" for none)."""

    name: str
    fold: str = ""


@dataclass(frozen=True, slots=True)
class _Assignment:
    """One parameter and where it comes from. ``sources`` is empty when the checkpoint has nothing for it."""

    target: str
    weight: Weight
    sources: tuple[TensorSource, ...]


def sources_of(weight: Weight, layer: int | None, names: str) -> tuple[TensorSource, ...]:
    """The stored tensors of one parameter in layer ``layer``. ``names`` is "hub" or "gguf".

    Raises ValueError when the table names folds for another number of parts.
    """
    stored, folds = (weight.hub, weight.hub_folds) if names == "hub" else (weight.gguf, weight.gguf_folds)
    if folds and len(folds) != len(stored):
        raise ValueError(f"{weight.target}: {len(folds)} folds for {len(stored)} {names} tensors")
    folds = folds or ("",) * len(stored)
    return tuple(TensorSource(_fill(name, layer), fold) for name, fold in zip(stored, folds, strict=True))


def load_parameters(
    table: WeightTable,
    num_layers: int,
    checkpoint: Checkpoint,
    parameters: Mapping[str, LoadableParameter],
    *,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> None:
    """Fill every parameter, one after the other, so that never more than one is held twice. Weights that are made up
    are made on ``device``; stored ones come as they are stored.

    ``progress(done, total)`` counts parameters. Raises UnsupportedModelError, before anything is read, when a
    parameter has no tensor or a tensor no parameter, and for shapes that do not fit.
    """
    assignments = _assign(table, num_layers, checkpoint, parameters)
    with _one_thread():
        for done, (target, assignment) in enumerate(assignments.items()):
            if progress is not None:
                progress(done, len(assignments))
            parameter = parameters[target]
            if isinstance(checkpoint, DummyCheckpoint):
                parameter.load([checkpoint.make_weight(target, parameter.shape, device)])
            else:
                parameter.load([_load(source, checkpoint) for source in assignment.sources])
    if progress is not None:
        progress(len(assignments), len(assignments))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Loading is copies and many small operations, and torch's threads wait for each other at every one of them: on two
    busy cores SmolLM2 took 3.7 s with them and 0.6 s without."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_parameters(
    table: WeightTable, num_layers: int, checkpoint: Checkpoint, parameters: Mapping[str, LoadableParameter]
) -> dict[str, tuple[TensorFacts, ...]]:
    """What ``load_parameters`` would put into each parameter, from headers alone and with the same checks."""
    described: dict[str, tuple[TensorFacts, ...]] = {}
    for target, assignment in _assign(table, num_layers, checkpoint, parameters).items():
        if isinstance(checkpoint, DummyCheckpoint):
            described[target] = (checkpoint.describe_weight(target, parameters[target].shape),)
        else:
            described[target] = tuple(_facts(source.name, checkpoint) for source in assignment.sources)
    return described


def _assign(
    table: WeightTable, num_layers: int, checkpoint: Checkpoint, parameters: Mapping[str, LoadableParameter]
) -> dict[str, _Assignment]:
    """Parameters that are to be filled, each object once, with the tensors that fill it; all checks are made here."""
    expected = {
        _fill(weight.target, layer): _Assignment(
            _fill(weight.target, layer), weight, sources_of(weight, layer, checkpoint.names)
        )
        for weight in table
        for layer in _layers(weight, num_layers)
    }
    unknown = [target for target in parameters if target not in expected]
    if unknown:
        raise UnsupportedModelError(
            f"The family's WEIGHTS table has no entry for {_some(unknown)}: a fault in Penstock."
        )
    if isinstance(checkpoint, DummyCheckpoint):
        return _once(
            {target: item for target, item in expected.items() if target in parameters and item.sources}, parameters
        )
    stored = frozenset(checkpoint.tensor_names)
    found = {target: item for target in parameters if (item := _find(expected[target], expected, stored)) is not None}
    _refuse_missing(
        [target for target in parameters if target not in found and not expected[target].weight.optional],
        expected,
        checkpoint,
    )
    _refuse_unused(stored, found.values(), expected, checkpoint)
    for target, item in found.items():
        _check_shapes(item, parameters[target].shape, checkpoint)
    return _once(found, parameters)


def _find(item: _Assignment, expected: Mapping[str, _Assignment], stored: frozenset[str]) -> _Assignment | None:
    """The assignment with sources that exist: its own, or those of the target it is tied to."""
    present = [source.name in stored for source in item.sources]
    if present and all(present):
        return item
    if not any(present) and item.weight.tied:
        tied = expected[item.weight.tied]
        if all(source.name in stored for source in tied.sources):
            return _Assignment(item.target, item.weight, tied.sources)
    return None


def _once(found: dict[str, _Assignment], parameters: Mapping[str, LoadableParameter]) -> dict[str, _Assignment]:
    """Drop tied targets whose parameter is the very object of another target: it is filled there."""
    seen: set[int] = set()
    kept = {}
    for target, item in sorted(found.items(), key=lambda entry: bool(entry[1].weight.tied)):
        if id(parameters[target]) not in seen:
            seen.add(id(parameters[target]))
            kept[target] = item
    return kept


def _refuse_missing(missing: Sequence[str], expected: Mapping[str, _Assignment], checkpoint: Checkpoint) -> None:
    if missing:
        names = [source.name for target in missing for source in expected[target].sources]
        absent = [name for name in names if name not in checkpoint.tensor_names]
        raise UnsupportedModelError(
            f"{checkpoint.config.origin}: the weights lack {_some(absent or missing)}. "
            "The files are incomplete or belong to another architecture than their configuration says."
        )


def _refuse_unused(
    stored: frozenset[str], found: Iterable[_Assignment], expected: Mapping[str, _Assignment], checkpoint: Checkpoint
) -> None:
    used = {source.name for item in found for source in item.sources}
    # A tied weight that the file stores nevertheless is a copy of the one it is tied to.
    copies = {source.name for item in expected.values() if item.weight.tied for source in item.sources}
    unused = [name for name in sorted(stored - used - copies) if not name.endswith(IGNORABLE_SUFFIXES)]
    if unused:
        raise UnsupportedModelError(
            f"{checkpoint.config.origin}: nothing in this model uses {_some(unused)}. Ignoring weights would change "
            "what the model computes, so it is refused."
        )


def _check_shapes(item: _Assignment, shape: tuple[int, ...], checkpoint: Checkpoint) -> None:
    facts = [_facts(source.name, checkpoint) for source in item.sources]
    rows = sum(fact.shape[0] for fact in facts if fact.shape)
    if (rows, *facts[0].shape[1:]) != shape or any(fact.shape[1:] != shape[1:] for fact in facts):
        found = " + ".join(
            f"{source.name} {list(fact.shape)}" for source, fact in zip(item.sources, facts, strict=True)
        )
        raise UnsupportedModelError(
            f"{checkpoint.config.origin}: {item.target} must have the shape {list(shape)}, "
            f"but the weights hold {found}."
        )


def _load(source: TensorSource, checkpoint: Checkpoint) -> WeightRecord:
    record = checkpoint.load(source.name)
    return FOLDS[source.fold](record, checkpoint.config) if source.fold else record


def _facts(name: str, checkpoint: Checkpoint) -> TensorFacts:
    facts = checkpoint.describe(name)
    assert facts is not None, name
    return facts


def _layers(weight: Weight, num_layers: int) -> Iterator[int | None]:
    yield from range(num_layers) if "{i}" in weight.target else (None,)


def _fill(name: str, layer: int | None) -> str:
    return name if layer is None else name.replace("{i}", str(layer))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
