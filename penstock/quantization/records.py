"""Row operations on weight records. They act on every part alike, so a quantized weight stays quantized.

It does not know what the rows mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from penstock.quantization.schemes import WeightRecord


def take_rows(record: WeightRecord, rows: torch.Tensor) -> WeightRecord:
    """The rows of ``record`` at the indices ``rows`` [n] int64, in that order: a copy."""
    return _map_parts(record, rows.numel(), lambda part: part.index_select(0, rows))


def cut_rows(record: WeightRecord, start: int, stop: int) -> WeightRecord:
    """Rows [start, stop) as views."""
    if not 0 <= start <= stop <= record.shape[0]:
        raise ValueError(f"rows {start} to {stop} of a weight with {record.shape[0]} rows")
    return _map_parts(record, stop - start, lambda part: part[start:stop])


def move_parts(record: WeightRecord, device: torch.device) -> WeightRecord:
    """The record on ``device``; parts that are there already are not copied."""
    return _map_parts(record, record.shape[0], lambda part: part.to(device))


def _map_parts(record: WeightRecord, num_rows: int, act: Callable[[torch.Tensor], torch.Tensor]) -> WeightRecord:
    parts = {name: act(part) for name, part in record.parts.items()}
    return WeightRecord(record.scheme, (num_rows, *record.shape[1:]), parts)
