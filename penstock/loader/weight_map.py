"""Rename, fuse, shard and fold rules as data: a family's ``WEIGHTS`` table, one entry per module parameter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How one parameter of a model comes from a checkpoint.

    ``target`` is its dotted path in the module tree, with ``{i}`` for the layer number. ``hub`` and ``gguf`` name the
    source tensors; several are parts of one fused parameter, concatenated along rows in this order (a layer may keep
    parts apart when their schemes differ). A fold is a named transform of ``loader.folds``, applied per part, for
    what a source stores differently: ``gguf_folds`` and ``hub_folds`` give one name (or "") per part.
    ``optional`` parameters may be absent; ``tied`` names the target to share when absent. ``shard`` says how tensor
    parallelism cuts it: "rows" (output), "columns" (input), "vocab", or "" for a copy on every rank.
    """

    target: str
    hub: tuple[str, ...]
    gguf: tuple[str, ...]
    hub_folds: tuple[str, ...] = ()
    gguf_folds: tuple[str, ...] = ()
    optional: bool = False
    tied: str = ""
    shard: str = ""


WeightTable = tuple[Weight, ...]
