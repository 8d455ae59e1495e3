"""The GGUF kind of checkpoint: one file that holds configuration and weights. It does not know families."""

from __future__ import annotations

from collections import Counter

import numpy as np

from penstock.errors import UnsupportedModelError
from penstock.loader.config_reader import ConfigReader
from penstock.loader.contract import TensorFacts
from penstock.loader.gguf_config import hub_style_config
from penstock.loader.gguf_file import GgufFile, GgufTensor
from penstock.loader.model_facts import make_facts, make_identity, middle_bytes
from penstock.loader.sources import ModelSource
from penstock.quantization.formats.ggml_types import GGML_TYPES
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.schemes import WeightRecord, record_bytes
from penstock.types.facts import ModelFacts


class GgufCheckpoint:
    """Raises ModelSourceError for a damaged file, UnsupportedModelError for tensor types that cannot be read."""

    format = "gguf"
    names = "gguf"

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._file = GgufFile(source.path)
        _refuse_parts(self._file)
        self._facts = {tensor.name: _describe(self._file, tensor) for tensor in self._file.tensors.values()}
        self.config = ConfigReader(hub_style_config(self._file), str(source.path))
        self.tensor_names = tuple(self._file.tensors)

    def facts(self) -> ModelFacts:
        samples = (
            (
                name,
                facts,
                middle_bytes(self._file.data, self._file.tensors[name].offset, self._file.tensors[name].nbytes),
            )
            for name, facts in self._facts.items()
        )
        return make_facts(
            self._source,
            format=self.format,
            config=self.config,
            identity=make_identity(self.config.data, samples),
            tensors=self._facts.values(),
            dtype=self._nearest_dtype(),
        )

    def describe(self, name: str) -> TensorFacts | None:
        return self._facts.get(name)

    def load(self, name: str) -> WeightRecord:
        tensor = self._file.tensors[name]
        data = np.frombuffer(self._file.data, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        return convert_gguf(tensor.type_name, data, tensor.shape)

    def close(self) -> None:
        self._file.close()

    def _nearest_dtype(self) -> str:
        """The type of most dense matrix weights; bfloat16 for a quantized file, whose model was trained in it."""
        sizes: Counter[str] = Counter()
        for facts in self._facts.values():
            if len(facts.shape) > 1:
                sizes[facts.dtype or "bfloat16"] += facts.nbytes
        return sizes.most_common(1)[0][0] if sizes else "float32"


def _refuse_parts(file: GgufFile) -> None:
    if int(file.metadata.get("split.count", 1)) > 1:
        raise UnsupportedModelError(
            f"{file.path} is one part of a file split in {file.metadata['split.count']}, "
            "which Penstock does not read.\n\n"
            "Join the parts first: llama-gguf-split --merge FIRST_PART WHOLE_FILE."
        )


def _describe(file: GgufFile, tensor: GgufTensor) -> TensorFacts:
    kind = GGUF_TYPES.get(tensor.type_name)
    if kind is None or (kind.take_apart is not None and len(tensor.shape) < 2):
        numbers = {block.name: number for number, block in GGML_TYPES.items()}
        number = f" ({numbers[tensor.type_name]})" if tensor.type_name in numbers else ""
        what = "which Penstock cannot read" if kind is None else "which Penstock does not read for vectors"
        raise UnsupportedModelError(
            f"{file.path}: tensor {tensor.name} has type {tensor.type_name}{number}, {what}; "
            f"supported: {', '.join(GGUF_TYPES)}."
        )
    if kind.dtype is not None:
        return TensorFacts(kind.scheme, tensor.shape, tensor.nbytes, str(kind.dtype).removeprefix("torch."))
    return TensorFacts(kind.scheme, tensor.shape, record_bytes(kind.scheme, tensor.shape))
