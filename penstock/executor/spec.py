"""ExecutorSpec: everything that an executor needs to know before it starts. Knows no engine configuration."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.loader.sources import ModelSource
from penstock.types.facts import PlatformFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec:
    """Resolved values; nothing here means "decide for me" except where None is documented.

    ``dtype`` is a torch dtype name. ``kv_cache_memory`` is in bytes, None lets the memory plan decide; ``block_size``
    is in tokens, None takes what the attention backend prefers, as ``kv_cache_dtype`` "auto" does. Forced backends come
    from the flags ``--attention-backend`` and ``--linear-backend`` and never fall back. ``seed`` seeds the requests
    that bring no seed, ``dummy_seed`` dummy weights. ``depth`` is the number of plans in flight, ``threads`` the CPU
    threads of kernels. ``graphs``: record steps where the kernels allow it. ``deterministic``: only kernels that
    compute a row to the same bits whatever rows stand beside it.
    """

    source: ModelSource
    platform: PlatformFacts
    dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    load_format: str = "auto"
    kv_cache_memory: int | None = None
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    attention_backend: str | None = None
    linear_backend: str | None = None
    graphs: bool = True
    deterministic: bool = False
    threads: int | None = None
    seed: int = 0
    dummy_seed: int = 0
    depth: int = 2
