"""Open a checkpoint of any kind: safetensors directories, GGUF files, and configurations without weights (dummy)."""

from __future__ import annotations

from penstock.errors import ModelSourceError
from penstock.loader.contract import Checkpoint, TensorFacts
from penstock.loader.dummy_checkpoint import DummyCheckpoint
from penstock.loader.gguf_checkpoint import GgufCheckpoint
from penstock.loader.safetensors_checkpoint import SafetensorsCheckpoint
from penstock.loader.sources import ModelSource

__all__ = ["LOAD_FORMATS", "Checkpoint", "TensorFacts", "open_checkpoint"]

LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")


def open_checkpoint(source: ModelSource, *, load_format: str = "auto", seed: int = 0) -> Checkpoint:
    """Open what ``source`` points at. ``seed`` is that of dummy weights.

    Raises ModelSourceError when files are missing, damaged or not of ``load_format``, and UnsupportedModelError for
    contents that cannot be read (a tensor type, a quantization method).
    """
    if load_format not in LOAD_FORMATS:
        raise ModelSourceError(f"There is no load format {load_format!r}; choose one of {', '.join(LOAD_FORMATS)}.")
    if load_format == "dummy":
        return DummyCheckpoint(source, seed)
    if source.kind == "gguf":
        if load_format == "safetensors":
            raise ModelSourceError(f"{source.path} is a GGUF file, but --load-format safetensors was asked for.")
        return GgufCheckpoint(source)
    if load_format == "gguf":
        raise ModelSourceError(f"{source.path} holds no GGUF file, but --load-format gguf was asked for.")
    return SafetensorsCheckpoint(source)
