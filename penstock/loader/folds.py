"""Folds: named transforms of one stored weight, for what a source stores differently from what a layer expects.

They do not know families; a WEIGHTS table names them per part. Adding one: a function and a line in ``FOLDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from penstock.errors import UnsupportedModelError
from penstock.loader.config_reader import ConfigReader
from penstock.quantization.records import take_rows
from penstock.quantization.schemes import WeightRecord, dense_record

Fold = Callable[[WeightRecord, ConfigReader], WeightRecord]


def rope_unpermute(record: WeightRecord, config: ConfigReader) -> WeightRecord:
    """Rows of q or k from interleaved rotary pairs to rotary halves, per head.

    Converters of llama models to GGUF reorder each head so that a pair that rotates together is adjacent; layers here
    rotate the first half of a head against the second, as hub models do. Works on quantized rows and on biases.
    """
    head_dim = config.int("head_dim")
    if record.shape[0] % head_dim or head_dim % 2:
        raise UnsupportedModelError(f"{record.shape[0]} rows are no whole number of heads of {head_dim}.")
    rows = torch.arange(record.shape[0]).view(-1, head_dim // 2, 2)
    return take_rows(record, rows.transpose(1, 2).reshape(-1))


def add_one(record: WeightRecord, config: ConfigReader) -> WeightRecord:
    """Norm weights stored as the difference from one (Gemma on the hub); float32, so that nothing is rounded away."""
    return dense_record(_dense_values(record).float() + 1.0)


def subtract_one(record: WeightRecord, config: ConfigReader) -> WeightRecord:
    """The way back, for layers that add the one themselves."""
    return dense_record(_dense_values(record).float() - 1.0)


FOLDS: Mapping[str, Fold] = {"rope_unpermute": rope_unpermute, "add_one": add_one, "subtract_one": subtract_one}


def _dense_values(record: WeightRecord) -> torch.Tensor:
    if record.scheme.kind != "dense":
        raise UnsupportedModelError(
            f"A norm weight is stored quantized ({record.scheme.name}), which is not supported."
        )
    return record.parts["values"]
