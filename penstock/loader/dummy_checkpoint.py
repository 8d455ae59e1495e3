"""The dummy kind of checkpoint: a configuration without weights, and random values of any shape on request.

It serves tests and measurements of speed; answers are noise. Where the configuration says that weights are float8, the
matrices of layers are. ``weights.load_parameters`` asks ``make_weight`` once per
parameter instead of loading tensors.
"""

from __future__ import annotations

import hashlib
import math

import torch

from penstock.errors import ModelSourceError
from penstock.loader.config_reader import ConfigReader
from penstock.loader.contract import TensorFacts
from penstock.loader.gguf_config import hub_style_config
from penstock.loader.gguf_file import GgufFile
from penstock.loader.model_facts import make_facts, make_identity, read_config
from penstock.loader.safetensors_checkpoint import declared_dtype
from penstock.loader.sources import ModelSource
from penstock.quantization.formats.fp8 import BLOCK, Fp8Layout, convert_fp8, read_layout
from penstock.quantization.schemes import WeightRecord, dense_record, dense_scheme, record_bytes
from penstock.types.facts import ModelFacts

STANDARD_DEVIATION = 0.02
# A prime: rows of a matrix begin at different places of the pool, so no two of them are equal.
_POOL_VALUES = 1_048_583


class DummyCheckpoint:
    """The configuration comes from config.json or from a GGUF file's metadata; names are always the hub's."""

    format = "dummy"
    names = "hub"
    tensor_names: tuple[str, ...] = ()

    def __init__(self, source: ModelSource, seed: int) -> None:
        self._source = source
        self._seed = seed
        if source.kind == "gguf":
            config, origin = hub_style_config(GgufFile(source.path)), source.path
        else:
            config, origin = read_config(source.path), source.path / "config.json"
        self.config = ConfigReader(config, str(origin))
        self.dtype = declared_dtype(self.config) or "float32"
        self._layout = _layout_of(self.config)
        self._pool: torch.Tensor | None = None

    def facts(self) -> ModelFacts:
        """Parameter counts stay 0: without tensors only the built model knows them."""
        identity = make_identity({**self.config.data, "dummy_seed": self._seed}, ())
        return make_facts(
            self._source, format=self.format, config=self.config, identity=identity, tensors=(), dtype=self.dtype
        )

    def describe(self, name: str) -> TensorFacts | None:
        return None

    def load(self, name: str) -> WeightRecord:
        raise ModelSourceError(f"{self._source.path}: dummy weights are made per parameter; there is no tensor {name}.")

    def describe_weight(self, target: str, shape: tuple[int, ...]) -> TensorFacts:
        if self._layout is not None and _is_quantized(target, shape):
            scheme = self._layout.scheme
            return TensorFacts(scheme, shape, record_bytes(scheme, shape))
        dtype = getattr(torch, self.dtype)
        return TensorFacts(dense_scheme(dtype), shape, math.prod(shape) * dtype.itemsize, self.dtype)

    def make_weight(self, target: str, shape: tuple[int, ...], device: torch.device) -> WeightRecord:
        """Values of one parameter, the same for a seed, target and shape: ones for norms and scales, else normal.

        Values repeat with the period of one pool, because drawing billions of them would take minutes.
        """
        dtype = getattr(torch, self.dtype)
        if len(shape) == 1 and ("norm" in target or target.endswith("scales")):
            return dense_record(torch.ones(shape, dtype=dtype, device=device))
        if self._pool is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._pool = (torch.randn(_POOL_VALUES, generator=generator) * STANDARD_DEVIATION).to(device, dtype)
        count = math.prod(shape)
        start = int.from_bytes(hashlib.blake2b(target.encode(), digest_size=8).digest()) % _POOL_VALUES
        values = torch.empty(count, dtype=dtype, device=device)
        filled = 0
        while filled < count:
            piece = self._pool[start : start + count - filled]
            values[filled : filled + piece.numel()] = piece
            filled, start = filled + piece.numel(), 0
        if self._layout is not None and _is_quantized(target, shape):
            return _in_float8(values.view(shape), self._layout)
        return dense_record(values.view(shape))

    def close(self) -> None:
        self._pool = None


def _layout_of(config: ConfigReader) -> Fp8Layout | None:
    """None where weights are dense, or quantized in a way that is not read: then they are dense here."""
    section = config.section("quantization_config")
    try:
        return None if section is None else read_layout(dict(section.data))
    except ValueError:
        return None


def _is_quantized(target: str, shape: tuple[int, ...]) -> bool:
    """Embeddings, LM heads and vectors are usually left as they are."""
    return len(shape) == 2 and target.startswith("layers.")


def _in_float8(values: torch.Tensor, layout: Fp8Layout) -> WeightRecord:
    """All scales are one: it brings four standard deviations to 64, in the middle of what float8 has."""
    scale = STANDARD_DEVIATION / 16
    rows, columns = values.shape
    codes = (values / scale).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.full((-(-rows // BLOCK), -(-columns // BLOCK)) if layout.blocks else (1,), scale)
    return convert_fp8(layout, codes, scales.to(values.device))
