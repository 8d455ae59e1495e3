"""Rows of the executor-port suite for LocalExecutor: tiny models with dummy weights, one and two KV groups."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.executor.spec import ExecutorSpec
from penstock.loader.sources import ModelSource
from penstock.types.facts import PlatformFacts

CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA = {**CONFIG, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
GEMMA3 = {
    **CONFIG,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}


@cache
def _root() -> Path:
    root = tempfile.mkdtemp(prefix="penstock-conformance-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


def _executor(name: str, config: dict[str, Any], *, launches: bool = False) -> LocalExecutor:
    directory = _root() / name
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return LocalExecutor(
        ExecutorSpec(
            source=ModelSource(name, "directory", directory),
            platform=PlatformFacts(name="cpu", machine="x86_64", memory_bytes=1 << 30, memory_available_bytes=1 << 30),
            dtype="float32",
            max_num_seqs=4,
            max_num_batched_tokens=64,
            max_model_len=96,
            load_format="dummy",
            kv_cache_memory=1 << 20,
            threads=1,
        ),
        load=partial(load_executor, launches=launches),
        launches=launches,
    )


def local_executor() -> LocalExecutor:
    """One group that sees everything."""
    return _executor("llama", LLAMA)


def local_executor_with_window() -> LocalExecutor:
    """A full and a sliding group."""
    return _executor("gemma3", GEMMA3)


def local_executor_that_launches() -> LocalExecutor:
    """As on a device that computes while the host goes on."""
    return _executor("gemma3", GEMMA3, launches=True)
