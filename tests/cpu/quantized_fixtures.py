"""A checkpoint whose matrices are quantized on the way in, as in mixed GGUF files: parts of one projection differ."""

from __future__ import annotations

import gguf
import numpy as np

from penstock.loader.checkpoint import Checkpoint
from penstock.loader.config_reader import ConfigReader
from penstock.loader.contract import TensorFacts
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.schemes import WeightRecord, record_bytes
from penstock.types.facts import ModelFacts

# The first entry whose text is in a tensor's name decides. Tensors that none fits stay as they are.
MIXED = (
    ("norm", ""),
    ("v_proj", "Q8_0"),
    ("down_proj", "Q4_0"),
    ("up_proj", "Q5_1"),
    ("o_proj", "Q5_0"),
    ("proj", "Q4_1"),
    ("embed", "Q8_0"),
    ("lm_head", "Q8_0"),
)


class QuantizedCheckpoint:
    """The tensors of ``inner`` through the gguf package's own quantization."""

    def __init__(self, inner: Checkpoint, kinds: tuple[tuple[str, str], ...] = MIXED) -> None:
        self._inner = inner
        self._kinds = kinds

    @property
    def format(self) -> str:
        return self._inner.format

    @property
    def names(self) -> str:
        return self._inner.names

    @property
    def config(self) -> ConfigReader:
        return self._inner.config

    @property
    def tensor_names(self) -> tuple[str, ...]:
        return self._inner.tensor_names

    def facts(self) -> ModelFacts:
        return self._inner.facts()

    def describe(self, name: str) -> TensorFacts | None:
        facts, kind = self._inner.describe(name), self._kind(name)
        if facts is None or len(facts.shape) != 2 or not kind:
            return facts
        scheme = GGUF_TYPES[kind].scheme
        return TensorFacts(scheme, facts.shape, record_bytes(scheme, facts.shape))

    def load(self, name: str) -> WeightRecord:
        record, kind = self._inner.load(name), self._kind(name)
        if len(record.shape) != 2 or not kind:
            return record
        data = gguf.quants.quantize(record.parts["values"].float().numpy(), gguf.GGMLQuantizationType[kind])
        return convert_gguf(kind, data.reshape(-1).view(np.uint8).copy(), record.shape)

    def close(self) -> None:
        self._inner.close()

    def _kind(self, name: str) -> str:
        return next((kind for text, kind in self._kinds if text in name), "")
