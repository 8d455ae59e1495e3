"""Frozen sections: what the user asked, before anything is resolved. None means "decide for me".

Every field is a command-line flag of the same name (``max_model_len`` -> ``--max-model-len``), a keyword of ``LLM``,
and a line of the generated flag reference; its ``flag`` metadata is the only description. Sections do not inherit
from each other, and nobody writes to them after construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def flag(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    env: str = "",
    size: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A configuration field. ``env`` names an environment variable that gives the default; ``size`` fields take
    bytes or a string such as "4GiB"; ``minimum`` and ``maximum`` are inclusive."""
    metadata = {
        "help": text,
        "choices": choices,
        "env": env,
        "size": size,
        "minimum": minimum,
        "maximum": maximum,
    }
    return field(default=default, metadata=metadata)


DTYPES = ("auto", "float32", "bfloat16", "float16")
PLATFORMS = ("auto", "cpu", "cuda")
KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "fp8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how it presents itself."""

    model: str = flag("smollm2", "Bundle name, local directory, local .gguf file, or hub id.")
    tokenizer: str | None = flag(None, "Directory or hub id of another tokenizer than the model's own.")
    revision: str | None = flag(None, "Branch, tag or commit of a hub id.")
    load_format: str = flag(
        "auto",
        "Where weights come from; dummy builds random ones from the configuration alone.",
        choices=("auto", "safetensors", "gguf", "dummy"),
    )
    dtype: str = flag("auto", "Type of activations and of unquantized weights.", choices=DTYPES)
    max_model_len: int | None = flag(
        None, "Longest prompt plus output, in tokens. Default: what the model declares.", minimum=1
    )
    served_model_name: tuple[str, ...] = flag((), "Names that requests may use for the model; the first is shown.")
    generation_config: str = flag(
        "auto", "Sampling defaults: auto reads generation_config.json, none ignores it.", choices=("auto", "none")
    )
    chat_template: str | None = flag(None, "File with a Jinja chat template to use instead of the model's own.")
    tool_dialect: str = flag(
        "auto",
        "How the model writes tool calls and reasoning: auto asks its chat template and tokenizer, none reads its "
        "output as text, a name takes that dialect; `penstock explain` says what was found.",
    )
    seed: int | None = flag(
        None,
        "Seed of dummy weights and of requests that bring none. Default: another one at every start, 0 for weights.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV cache."""

    kv_cache_memory: int | None = flag(
        None, "Memory for KV blocks, e.g. 4GiB. Default: memory plan.", size=True, minimum=1
    )
    kv_cache_dtype: str = flag(
        "auto",
        "Type of keys and values; fp8 is e4m3, cut at +-448; int8 has a scale per token and head. "
        "Default: what the attention backend prefers.",
        choices=KV_DTYPES,
    )
    block_size: int | None = flag(None, "Tokens per KV block. Default: what the attention backend prefers.", minimum=1)
    enable_prefix_caching: bool = flag(True, "Reuse KV blocks of requests that begin with the same tokens.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How steps are filled."""

    max_num_seqs: int | None = flag(None, "Most requests in one step. Default: chosen for the platform.", minimum=1)
    max_num_batched_tokens: int | None = flag(
        None, "Token budget of one step. Default: chosen for the platform.", minimum=1
    )
    scheduling_policy: str = flag("fcfs", "Order of waiting requests.", choices=("fcfs", "priority"))
    async_depth: int | None = flag(
        None,
        "Plans in flight; 1 plans a step only after the one before it has finished. Default: chosen for the platform.",
        minimum=1,
    )
    check_integrity: bool = flag(False, "Check the core's invariants after every step (slow; for debugging).")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Named platforms and backends never fall back: they run or the start fails with their reasons."""

    platform: str = flag(
        "auto",
        "What to compute on; auto takes a CUDA device where everything for it is there, else the CPU.",
        choices=PLATFORMS,
    )
    attention_backend: str | None = flag(None, "Attention backend by name; `penstock explain` lists them.")
    linear_backend: str | None = flag(
        None,
        "Linear method by name, for every weight; cuda_fp8 is for quantized ones only, and leaves the others open.",
    )
    structured_backend: str | None = flag(
        None, "Backend of constrained output by name: llguidance or xgrammar. Default: the first one that can run."
    )
    graphs: bool = flag(
        True, "Record steps of one shape once and repeat them without Python, where all kernels allow it."
    )
    deterministic: bool = flag(
        False,
        "Give a request the same tokens whatever is computed beside it, however its prompt is cut and whether its "
        "prefix was cached: only kernels with one order of sums for every number of rows. Slower on CUDA devices.",
    )
    threads: int | None = flag(None, "CPU threads for kernels. Default: the cores this process may use.", minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server."""

    host: str = flag("127.0.0.1", "Address to listen on.")
    port: int = flag(8000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    api_key: tuple[str, ...] = flag((), "Keys that clients must present; repeatable.", env="PENSTOCK_API_KEY")
    cors_origins: tuple[str, ...] = flag((), "Origins allowed by CORS; repeatable, * allows all.")
    frontends: int = flag(
        1,
        "Processes that answer on this port, one engine behind them all. The limit on open requests and the metrics "
        "are those of all of them together; responses are stored only where there is one.",
        minimum=1,
        maximum=64,
    )
    max_request_bytes: int = flag(32 << 20, "Largest request body.", size=True, minimum=1)
    max_connections: int = flag(
        4096,
        "Most connections of a frontend process. For one more, those that have been idle for longest are closed; with "
        "none idle it gets 503.",
        minimum=1,
    )
    max_buffered_bytes: int = flag(
        1 << 30,
        "Memory of a frontend process for the requests that are open and for what clients have not read of their "
        "answers. Above it new bodies get 503.",
        size=True,
        minimum=1,
    )
    max_unread_bytes: int = flag(
        32 << 20,
        "Memory for what the client of a stream has not read. Above it the stream ends with an error.",
        size=True,
        minimum=1,
    )
    stall_timeout: float = flag(
        60.0, "Seconds after which a client that reads nothing of what waits for it is disconnected.", minimum=0.01
    )
    max_queue: int = flag(1024, "Open requests beyond which new ones get 429.", minimum=1)
    max_n: int = flag(128, "Largest n of one request.", minimum=1)
    request_timeout: float | None = flag(None, "Seconds after which a request ends with a deadline error.", minimum=0)
    drain_timeout: float = flag(30.0, "Seconds that SIGTERM waits for open requests.", minimum=0)
    max_stored_responses: int = flag(
        1024, "Responses kept in memory for previous_response_id; 0 keeps none.", minimum=0
    )
    max_stored_bytes: int = flag(64 << 20, "Bytes of all responses kept, with their input.", size=True, minimum=0)
    metrics_prefix: str = flag("penstock", "Prefix of metric names; vllm serves existing dashboards.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """The mock engine of `serve --mock`: how long its steps take, and what goes wrong. `--seed` seeds its tokens, and
    `--tokenizer` gives it another vocabulary than bytes."""

    mock_time: str = flag(
        "2ms", "Step time: a time, a sum such as 2ms+10us*tokens+5us*rows+1ns*context, or @FILE with measured times."
    )
    mock_fault: tuple[str, ...] = flag(
        (),
        "What goes wrong: fail-step=N, stall=N:SECONDS, die=N (steps from 0), or garbage=DIALECT (broken calls or "
        "reasoning, by a name of --tool-dialect); repeatable.",
    )
    mock_ceiling: bool = flag(
        False,
        "Answer in the core's place: random tokens, one per request and step, as fast as the frontend takes them. "
        "Shows what the frontend can carry; without --mock-time steps take no time.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All sections an engine needs. ``ServerConfig`` stays apart: an engine does not know that it is served."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
