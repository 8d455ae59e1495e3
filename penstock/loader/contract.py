"""Checkpoint: the contract of everything that weights and configurations are read from.

A checkpoint does not know families: names are the files' own, and nothing here says what a tensor is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.loader.config_reader import ConfigReader
from penstock.quantization.schemes import WeightRecord, WeightScheme
from penstock.types.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One stored tensor, from the header. ``nbytes`` is its size in canonical form, ``dtype`` the torch name of dense
    values and "" for quantized ones."""

    scheme: WeightScheme
    shape: tuple[int, ...]
    nbytes: int
    dtype: str = ""


class Checkpoint(Protocol):
    """What the three kinds offer. Opening reads headers; only ``load`` touches weights.

    ``names`` says which name column of ``Weight`` applies. ``load`` raises KeyError for a name that is not in
    ``tensor_names``. Records may be views of the mapped file and stay valid after ``close``.
    """

    @property
    def format(self) -> str:
        """ "safetensors", "gguf" or "dummy"."""

    @property
    def names(self) -> str:
        """ "hub" or "gguf"."""

    @property
    def config(self) -> ConfigReader: ...

    @property
    def tensor_names(self) -> tuple[str, ...]: ...

    def facts(self) -> ModelFacts:
        """From headers and configuration. ``family`` is left empty: only the models table knows it."""

    def describe(self, name: str) -> TensorFacts | None: ...

    def load(self, name: str) -> WeightRecord: ...

    def close(self) -> None: ...
