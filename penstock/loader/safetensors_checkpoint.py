"""The safetensors kind of checkpoint: a directory with config.json and one or several weight files, memory-mapped.

It does not know families. Quantized hub formats are refused by name: dense weights only.
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
from penstock.quantization.schemes import WeightRecord, dense_record, dense_scheme
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
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class SafetensorsCheckpoint:
    """Raises ModelSourceError for missing or damaged files, UnsupportedModelError for what they contain."""

    format = "safetensors"
    names = "hub"

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.config = ConfigReader(read_config(source.path), str(source.path / "config.json"))
        _refuse_quantized(self.config)
        self._entries: dict[str, tuple[SafetensorsFile, SafetensorsEntry]] = {}
        self._files = [SafetensorsFile(source.path / name) for name in _file_names(source)]
        for file in self._files:
            for name, entry in file.tensors.items():
                if name in self._entries:
                    raise ModelSourceError(f"{file.path}: tensor {name} is also in {self._entries[name][0].path.name}.")
                self._entries[name] = (file, entry)
        self.tensor_names = tuple(self._entries)

    def facts(self) -> ModelFacts:
        facts = {name: self._facts_of(entry) for name, (_, entry) in self._entries.items()}
        samples = (
            (name, facts[name], middle_bytes(file.data, entry.offset, entry.nbytes))
            for name, (file, entry) in self._entries.items()
        )
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
        dtype = self._dtype_of(entry)
        if entry.nbytes == 0:
            return dense_record(torch.empty(entry.shape, dtype=dtype))
        if entry.offset % dtype.itemsize:  # the format does not promise alignment; torch wants it
            raw = bytearray(file.data[entry.offset : entry.offset + entry.nbytes])
            return dense_record(torch.frombuffer(raw, dtype=dtype).view(entry.shape))
        # Through numpy, which holds on to the map: a tensor of torch.frombuffer would outlive it and point nowhere.
        data = np.frombuffer(file.data, dtype=np.uint8, count=entry.nbytes, offset=entry.offset)
        return dense_record(torch.from_numpy(data).view(dtype).view(entry.shape))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _facts_of(self, entry: SafetensorsEntry) -> TensorFacts:
        dtype = self._dtype_of(entry)
        return TensorFacts(dense_scheme(dtype), entry.shape, entry.nbytes, str(dtype).removeprefix("torch."))

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


def _refuse_quantized(config: ConfigReader) -> None:
    section = config.section("quantization_config")
    if section is not None:
        method = section.str("quant_method", default="an unknown method")
        raise UnsupportedModelError(
            f"{config.origin} says that the weights are quantized with {method}, which "
            "Penstock cannot read from safetensors files; use a GGUF file or the unquantized model."
        )
