"""GGUF metadata under the names that hub configurations use, so that families read one naming only. No torch.

It does not know families. Where a GGUF file stores a result instead of a setting, the result is passed on: Llama 3's
rope scaling becomes ``{"rope_type": "factors", "factors": [...]}`` (one divisor per rotary frequency, head_dim / 2).
"""

from __future__ import annotations

import struct
from typing import Any

from penstock.errors import UnsupportedModelError
from penstock.loader.gguf_file import GgufFile

# hub key -> key under the architecture's prefix
_PLAIN = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
ROPE_FACTORS = "rope_freqs.weight"
_GEMMA3_27B_LAYERS = 62


def hub_style_config(gguf: GgufFile) -> dict[str, Any]:
    """What config.json would say about the model in ``gguf``; absent metadata stays absent.

    Raises UnsupportedModelError when the file names no architecture or settings vary from layer to layer.
    """
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise UnsupportedModelError(f"{gguf.path} does not name its architecture (general.architecture).")
    config: dict[str, Any] = {"architectures": [arch], "model_type": arch}
    for hub_key, key in _PLAIN.items():
        value = gguf.metadata.get(f"{arch}.{key}")
        if value is not None:
            config[hub_key] = _uniform(gguf, f"{arch}.{key}", value)
    config["head_dim"] = _head_dim(gguf, arch, config)
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    scaling = _rope_scaling(gguf, arch)
    if scaling is not None:
        config["rope_scaling"] = scaling
    if "blk.0.attn_q.bias" in gguf.tensors:
        config["attention_bias"] = True
    if arch == "llama" and config.get("sliding_window"):
        config["model_type"] = "mistral"  # the only model of this architecture that slides
    if arch == "gemma3":
        config |= _gemma3_keys(gguf, config)
    return {key: value for key, value in config.items() if value is not None}


def _uniform(gguf: GgufFile, key: str, value: Any) -> Any:
    """One number. Files may give one per layer; they must agree, because hub configurations have one."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
        raise UnsupportedModelError(f"{gguf.path}: {key} must be a number, not {str(value)[:60]!r}.")
    if any(one != values[0] for one in values):
        raise UnsupportedModelError(f"{gguf.path}: {key} differs from layer to layer, which is not supported.")
    return values[0]


def _head_dim(gguf: GgufFile, arch: str, config: dict[str, Any]) -> int | None:
    """Stated, or the rotary width of files written before it was; values must be as wide as keys."""
    key_length = gguf.metadata.get(f"{arch}.attention.key_length")
    value_length = gguf.metadata.get(f"{arch}.attention.value_length", key_length)
    if value_length != key_length:
        raise UnsupportedModelError(
            f"{gguf.path}: heads of {key_length} for keys and {value_length} for values; both must be the same."
        )
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if key_length is None and hidden and heads:
        key_length = hidden // heads
    rotary = gguf.metadata.get(f"{arch}.rope.dimension_count", key_length)
    if rotary != key_length:
        raise UnsupportedModelError(
            f"{gguf.path}: {rotary} rotary dimensions in heads of {key_length}; partial rotation is not supported."
        )
    return key_length if key_length is None else int(key_length)


def _rope_scaling(gguf: GgufFile, arch: str) -> dict[str, Any] | None:
    factors = _rope_factors(gguf)
    if factors is not None:
        return {"rope_type": "factors", "factors": factors}
    kind = gguf.metadata.get(f"{arch}.rope.scaling.type", "none")
    factor = gguf.metadata.get(f"{arch}.rope.scaling.factor", gguf.metadata.get(f"{arch}.rope.scale_linear", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    original = gguf.metadata.get(f"{arch}.rope.scaling.original_context_length")
    return scaling if original is None else scaling | {"original_max_position_embeddings": original}


def _rope_factors(gguf: GgufFile) -> list[float] | None:
    """The divisors of the rotary frequencies, if the file has any that change something."""
    tensor = gguf.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.type_name != "F32" or len(tensor.shape) != 1:
        raise UnsupportedModelError(f"{gguf.path}: tensor {ROPE_FACTORS} must be a vector of type F32.")
    factors = list(struct.unpack_from(f"<{tensor.shape[0]}f", gguf.data, tensor.offset))
    return factors if any(factor != 1.0 for factor in factors) else None


def _gemma3_keys(gguf: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma 3's files leave to the reader: five sliding layers to one full one, local rope base, query scale.

    The query scale is the head size but for the 27B model, whose files are told apart by their 62 layers, as ggml does.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads:
        return {}
    period = gguf.metadata.get("gemma3.attention.sliding_window_pattern") or 6
    slides = period if isinstance(period, list) else [(i + 1) % period != 0 for i in range(layers)]
    scalar = config["hidden_size"] // heads if layers == _GEMMA3_27B_LAYERS else config["head_dim"]
    return {
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "query_pre_attn_scalar": scalar,
        "rope_local_base_freq": config.get("rope_local_base_freq", 10000.0),
        "rope_theta": config.get("rope_theta", 1000000.0),
        "hidden_activation": "gelu_pytorch_tanh",
    }
