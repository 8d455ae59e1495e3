"""LinearMethod: the contract between a linear layer and whatever multiplies its weight.

Order of calls: the oracle asks ``can_run`` (facts and shapes only), the layer calls ``prepare`` once after its weight
record is loaded (the only place for repacking and for dense copies), then ``apply`` in every forward. Methods are
stateless: all that a weight needs lives in what ``prepare`` returned, which is handed back as ``prepared``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.quantization.schemes import WeightRecord, WeightScheme
from penstock.types.decision import Rung, Verdict
from penstock.types.facts import PlatformFacts

LinearInput = torch.Tensor | QuantizedRows


class InputFormat(Enum):
    """What ``apply`` multiplies with. Layers that can make QuantizedRows on the way (norms, activations) do so for a
    method that wants them; it takes tensors as well and quantizes them itself."""

    TENSOR = "tensor"
    QUANTIZED = "quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One kind of weight to multiply with. ``dtype`` is the activations' torch dtype name, e.g. "bfloat16".

    ``batch_invariant``: the bits of a row of the result must follow from that row of x alone, however many rows there
    are. A method that cannot promise it refuses.
    """

    scheme: WeightScheme
    out_features: int
    in_features: int
    dtype: str
    platform: PlatformFacts
    batch_invariant: bool = False


class PreparedWeight(Protocol):
    """A weight in the layout that its method wants; ``nbytes`` is its whole memory, for the memory report."""

    @property
    def nbytes(self) -> int: ...


class LinearMethod(Protocol):
    @property
    def name(self) -> str: ...

    def can_run(self, spec: LinearSpec, /) -> Verdict: ...

    def prepared_bytes(self, spec: LinearSpec) -> int:
        """What ``prepare`` will keep in memory, known before anything is loaded."""

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> PreparedWeight: ...

    def input_format(self, spec: LinearSpec) -> InputFormat: ...

    def apply(
        self, prepared: Any, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [rows, in_features] -> [rows, out_features], both in the spec's dtype; accumulates in float32.

        ``out`` is where the result goes, if given: [rows, out_features] with contiguous columns and any row stride.
        """

    def argmax(self, prepared: Any, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row of ``apply``'s result: where its largest value is, int64 [rows], the first among equals; and that
        value, float32 [rows], NaN when any of the row is."""

    def embed(self, prepared: Any, token_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, dequantized: token_ids [n] -> [n, in_features] (tied embeddings share the weight)."""


@runtime_checkable
class Ladder(Protocol):
    """A LinearMethod that multiplies in different ways for few and for many rows, with one prepared weight."""

    def rungs(self, spec: LinearSpec) -> tuple[Rung, ...]:
        """The ways, for few rows first, with what was measured where one ends; the last has no end."""
