"""ModelFacts and the model's identity, from a configuration and a tensor index. Knows no file format and no family."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import ModelSourceError
from penstock.loader.config_reader import ConfigReader
from penstock.loader.contract import TensorFacts
from penstock.loader.sources import ModelSource
from penstock.types.facts import ModelFacts

_SAMPLE_BYTES = 64


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model. Raises ModelSourceError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelSourceError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except ValueError as error:
        raise ModelSourceError(f"{path} is damaged: it is not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise ModelSourceError(f"{path} is damaged: it holds no JSON object.")
    return data


def read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ModelSourceError(f"{directory} has no config.json, so it is not the directory of a model.")
    return read_json(path)


# Keys that differ between copies of the same model: where it was saved from, and by what.
_VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})


def make_identity(config: Mapping[str, Any], tensors: Iterable[tuple[str, TensorFacts, bytes]]) -> str:
    """Digest of configuration and tensor index: 32 hexadecimal digits, equal on every machine and however sharded.

    Each tensor brings a few bytes from its middle, so that two finetunes of one shape differ without being read.
    """
    digest = hashlib.blake2b(digest_size=16)
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, facts, sample in sorted(tensors, key=lambda entry: entry[0]):
        digest.update(f"\0{name}\0{facts.scheme.name}\0{facts.dtype}\0{facts.shape}\0".encode())
        digest.update(sample)
    return digest.hexdigest()


def middle_bytes(data: Any, offset: int, nbytes: int) -> bytes:
    """At most 64 bytes from the middle of a mapped tensor."""
    start = offset + max(0, nbytes - _SAMPLE_BYTES) // 2
    return bytes(data[start : min(start + _SAMPLE_BYTES, offset + nbytes)])


def make_facts(
    source: ModelSource, *, format: str, config: ConfigReader, identity: str, tensors: Iterable[TensorFacts], dtype: str
) -> ModelFacts:
    """ModelFacts from a hub-style configuration and the tensor index; sizes that are not declared stay 0."""
    tensors = tuple(tensors)
    schemes: Counter[str] = Counter()
    for facts in tensors:
        schemes[facts.scheme.name] += facts.nbytes
    text = config.section("text_config") or config
    heads = text.int("num_attention_heads", default=0)
    hidden = text.int("hidden_size", default=0)
    architectures = config.list("architectures", default=[])
    return ModelFacts(
        name=source.name,
        source=str(source.path),
        format=format,
        architecture=str(architectures[0]) if architectures else config.str("model_type", default=""),
        family="",
        identity=identity,
        num_parameters=sum(math.prod(facts.shape) for facts in tensors),
        weight_bytes=schemes.total(),
        weight_schemes=dict(schemes),
        num_layers=text.int("num_hidden_layers", default=0),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=text.int("num_key_value_heads", default=heads),
        head_dim=text.int("head_dim", default=hidden // heads if heads else 0),
        vocab_size=text.int("vocab_size", default=0),
        max_position=text.int("max_position_embeddings", default=0),
        dtype=dtype,
    )
