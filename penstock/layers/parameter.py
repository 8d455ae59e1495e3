"""Parameters: the leaves of a model, filled from weight records. They know no file and no checkpoint name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from penstock.errors import UnsupportedModelError
from penstock.quantization.schemes import WeightRecord


@runtime_checkable
class Parameter(Protocol):
    """One target of a family's WEIGHTS table.

    ``load`` is called once, with the records that make it up, concatenated along rows in this order; it raises
    UnsupportedModelError when their shapes do not add up to ``shape``. ``nbytes`` is the memory held after it.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def load(self, records: Sequence[WeightRecord], /) -> None: ...


class DenseParameter:
    """A small dense tensor (norm weight, bias) in one fixed type, whatever type the checkpoint stores.

    ``into`` lets several parameters fill parts of one tensor: a view that [n] values are broadcast to.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        fill: float = 0.0,
        into: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shape = shape
        self.data = torch.full(shape, fill, dtype=dtype, device=device) if into is None else into

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def load(self, records: Sequence[WeightRecord], /) -> None:
        check_rows(self.shape, records)
        for record in records:
            if record.scheme.kind != "dense":
                raise UnsupportedModelError(
                    f"A norm weight or bias of shape {self.shape} is stored quantized ({record.scheme.name}); "
                    "only dense ones are supported."
                )
        values = torch.cat([record.parts["values"].reshape(record.shape) for record in records])
        self.data.copy_(values)


class Layer:
    """A building block whose attributes are parameters, other layers, or lists of layers."""

    def parameters(self) -> Mapping[str, Parameter]:
        """Every parameter below this layer by its dotted path, list places as numbers: "layers.0.mlp.down.weight"."""
        return dict(_walk(self, ""))


def _walk(layer: Layer, prefix: str) -> Iterator[tuple[str, Parameter]]:
    for name, value in vars(layer).items():
        if isinstance(value, Layer):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, Layer):
                    yield from _walk(item, f"{prefix}{name}.{place}.")
        elif isinstance(value, Parameter):
            yield f"{prefix}{name}", value


def check_rows(shape: tuple[int, ...], records: Sequence[WeightRecord]) -> None:
    """The records' rows must add up to ``shape``, with equal columns."""
    found = [record.shape for record in records]
    columns_agree = all(part[1:] == shape[1:] for part in found)
    if not columns_agree or sum(part[0] for part in found) != shape[0]:
        raise UnsupportedModelError(
            f"A weight of shape {shape} was expected and {' + '.join(map(str, found)) or 'nothing'} was found: "
            "the checkpoint's tensors do not fit its configuration."
        )
