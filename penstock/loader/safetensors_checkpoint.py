"""The safetensors kind of checkpoint: a directory with config.json and one or several weight files, memory-mapped.

It does not know families. Weights are dense, or in float8 with scales in tensors of their own, which belong to their
weight and have no name here. Other quantized hub formats are refused by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.loader.config_reader import ConfigReader
from penstock.loader.contract import TensorFacts
from penstock.loader.model_facts import make_facts, make_identity, middle_bytes, read_config, read_json
from penstock.loader.safetensors_file import SafetensorsEntry, SafetensorsFile
from penstock.loader.sources import ModelSource
from penstock.quantization.formats.fp8 import (
    SCALE_SUFFIXES,
    UNUSED_SCALES,
    Fp8Layout,
    cache_scales,
    convert_fp8,
    read_layout,
)
from penstock.quantization.schemes import WeightRecord, dense_record, dense_scheme, record_bytes
from penstock.types.facts import ModelFacts

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FP8 = "F8_E4M3"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class SafetensorsCheckpoint:
    """Raises ModelSourceError for missing or damaged files, UnsupportedModelError for what they contain."""

    format = "safetensors"
    names = "hub"

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.config = ConfigReader(read_config(source.path), str(source.path / "config.json"))
        self._layout = _layout_of(self.config)
        self._entries: dict[str, tuple[SafetensorsFile, SafetensorsEntry]] = {}
        self._files = [SafetensorsFile(source.path / name) for name in _file_names(source)]
        for file in self._files:
            for name, entry in file.tensors.items():
                if name in self._entries:
                    raise ModelSourceError(f"{file.path}: tensor {name} is also in {self._entries[name][0].path.name}.")
                self._entries[name] = (file, entry)
        self._scales = self._find_scales() if self._layout else {}
        scales = {entry.name for _, entry in self._scales.values()}
        plain = [name for name in self._entries if name not in scales and not self._is_unused(name)]
        self._cache_scales = cache_scales(self._entries)
        self._entries |= {name: self._entries[stored] for name, stored in self._cache_scales.items()}
        self.tensor_names = tuple(dict.fromkeys((*plain, *self._cache_scales)))

    def facts(self) -> ModelFacts:
        facts = {name: self._facts_of(self._entries[name][1]) for name in self.tensor_names}
        samples = ((name, facts[name], self._sample(name)) for name in self.tensor_names)
        return make_facts(
            self._source,
            format=self.format,
            config=self.config,
            identity=make_identity(self.config.data, samples),
            tensors=facts.values(),
            dtype=declared_dtype(self.config) or _largest_dtype(list(facts.values())),
        )

    def describe(self, name: str) -> TensorFacts | None:
        found = self._entries.get(name)
        return None if found is None else self._facts_of(found[1])

    def load(self, name: str) -> WeightRecord:
        file, entry = self._entries[name]
        if name in self._cache_scales:
            return dense_record(_values(file, entry, self._dtype_of(entry)).reshape(-1))
        if name not in self._scales:
            return dense_record(_values(file, entry, self._dtype_of(entry)))
        assert self._layout is not None
        scale_file, scale = self._scales[name]
        scales = _values(scale_file, scale, self._dtype_of(scale))
        try:
            return convert_fp8(self._layout, _values(file, entry, torch.uint8), scales)
        except ValueError as error:
            raise UnsupportedModelError(f"{self._source.path}: tensor {name} cannot be read: {error}.") from error

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _find_scales(self) -> dict[str, tuple[SafetensorsFile, SafetensorsEntry]]:
        """By the name of the matrix whose scales they are. Raises UnsupportedModelError for float8 values without."""
        found = {}
        for name, (_, entry) in self._entries.items():
            if entry.dtype != _FP8:
                continue
            names = [name + suffix for suffix in SCALE_SUFFIXES if name + suffix in self._entries]
            if len(names) != 1 or len(entry.shape) != 2:
                what = f"has {' and '.join(names) or 'no scales'} and the shape {list(entry.shape)}"
                raise UnsupportedModelError(
                    f"{self._source.path}: tensor {name} has type {_FP8}, {what}; Penstock reads matrices with scales."
                )
            found[name] = self._entries[names[0]]
        return found

    def _is_unused(self, name: str) -> bool:
        return self._layout is not None and name.rpartition(".")[2] in UNUSED_SCALES

    def _sample(self, name: str) -> bytes:
        places = [self._entries[name], *([self._scales[name]] if name in self._scales else [])]
        return b"".join(middle_bytes(file.data, entry.offset, entry.nbytes) for file, entry in places)

    def _facts_of(self, entry: SafetensorsEntry) -> TensorFacts:
        if entry.name in self._scales and self._layout is not None:
            scheme = self._layout.scheme
            return TensorFacts(scheme, entry.shape, record_bytes(scheme, entry.shape))
        dtype = self._dtype_of(entry)
        shape = entry.shape or (1,)  # one value is a row of one
        return TensorFacts(dense_scheme(dtype), shape, entry.nbytes, str(dtype).removeprefix("torch."))

    def _dtype_of(self, entry: SafetensorsEntry) -> torch.dtype:
        if entry.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"{self._source.path}: tensor {entry.name} has type {entry.dtype}, which Penstock cannot read; "
                f"supported: {', '.join(_DTYPES)}."
            )
        return _DTYPES[entry.dtype]


def declared_dtype(config: ConfigReader) -> str:
    """The float type that the configuration names (transformers 5 writes dtype, older ones torch_dtype), or ""."""
    text = config.section("text_config") or config
    for reader in (text, config):
        for key in ("dtype", "torch_dtype"):
            name = reader.str(key, default="").removeprefix("torch.")
            if name in ("float32", "bfloat16", "float16"):
                return name
    return ""


def _largest_dtype(tensors: list[TensorFacts]) -> str:
    floats = [facts for facts in tensors if facts.dtype in ("float32", "bfloat16", "float16")]
    return max(floats, key=lambda facts: facts.nbytes).dtype if floats else "float32"


def _file_names(source: ModelSource) -> list[str]:
    """The weight files: those the index lists, or the single one, or whatever safetensors files lie there."""
    index = source.path / _INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelSourceError(f"{index} is damaged: it has no weight_map.")
        names = sorted({str(name) for name in weight_map.values()})
        strangers = [name for name in names if Path(name).name != name]
        if strangers:
            raise ModelSourceError(f"{index} is damaged: {strangers[0]} is not a file of its directory.")
        return names
    if (source.path / _SINGLE).is_file():
        return [_SINGLE]
    others = sorted(path.name for path in source.path.glob("*.safetensors"))
    if not others:
        raise ModelSourceError(
            f"{source.path} has a config.json but no weights: no *.safetensors file is there.\n\n"
            "Fetch them, or use --load-format dummy for random weights. Pickled weights (*.bin) are not read; "
            "of a hub repository with GGUF files, name one: owner/model/FILE.gguf."
        )
    return others


def _values(file: SafetensorsFile, entry: SafetensorsEntry, dtype: torch.dtype) -> torch.Tensor:
    """One stored tensor as it is, a view of the file's map where that is aligned."""
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.offset % dtype.itemsize:  # the format does not promise alignment; torch wants it
        raw = bytearray(file.data[entry.offset : entry.offset + entry.nbytes])
        return torch.frombuffer(raw, dtype=dtype).view(entry.shape)
    # Through numpy, which holds on to the map: a tensor of torch.frombuffer would outlive it and point nowhere.
    data = np.frombuffer(file.data, dtype=np.uint8, count=entry.nbytes, offset=entry.offset)
    return torch.from_numpy(data).view(dtype).view(entry.shape)


def _layout_of(config: ConfigReader) -> Fp8Layout | None:
    """None for dense weights. Raises UnsupportedModelError for a quantization that cannot be read."""
    section = config.section("quantization_config")
    if section is None:
        return None
    try:
        return read_layout(dict(section.data))
    except ValueError as error:
        raise UnsupportedModelError(
            f"{config.origin} says that the weights are quantized with {error}, which "
            "Penstock cannot read from safetensors files; use a GGUF file or the unquantized model."
        ) from error
