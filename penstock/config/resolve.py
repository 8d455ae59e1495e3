"""The one resolver: what was asked + facts -> what will be, and why. Pure; knows no backend and reads no machine.

Start-up calls it in two steps, because attention backends are chosen for a dtype and then declare block sizes:
``resolve_dtype`` first, ``resolve`` when the backends have declared theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from penstock.config.sections import EngineConfig
from penstock.errors import ConfigError
from penstock.types.decision import Decision, Rejection
from penstock.types.facts import ModelFacts, PlatformFacts

FALLBACK_MODEL_LEN = 2048  # for checkpoints that declare no context length


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFacts:
    """What the chosen backends and the memory plan declare.

    ``block_tokens`` are the block sizes that every attention group accepts, the preferred one first.
    ``kv_dtypes`` are the types that they store keys and values in, once each.
    ``longest_request`` answers, for a configuration that is resolved but for its length, how many tokens one request
    may have, up to ``max_model_len``, so that the KV cache holds it alone; 0 when it holds none.
    """

    block_tokens: tuple[int, ...]
    kv_dtypes: tuple[str, ...]
    longest_request: Callable[[ResolvedConfig], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """Every engine option with its final value. Names are those of the flags."""

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_cache_dtype: str  # "auto": what each backend prefers
    kv_cache_memory: int | None  # None: the memory plan's own share
    enable_prefix_caching: bool
    scheduling_policy: str
    async_depth: int
    check_integrity: bool
    platform: str
    attention_backend: str | None
    linear_backend: str | None
    structured_backend: str | None
    graphs: bool
    deterministic: bool
    threads: int
    load_format: str
    seed: int | None  # None: drawn at the start

    def settings(self) -> dict[str, str]:
        """As text, for the debug route and reports."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: "left open" if value is None else str(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Batch:
    max_num_seqs: int
    max_num_batched_tokens: int
    why: str


# Decode is bound by reading weights once per step, so rows are nearly free until compute catches up; a prefill chunk
# of the whole budget is the longest pause that running requests see between two of their tokens.
_BATCH_BY_PLATFORM: dict[str, _Batch] = {
    "cpu": _Batch(64, 512, "default for CPUs: a step of 512 tokens is the longest pause between two tokens of others"),
    "cuda": _Batch(256, 8192, "default for CUDA devices: 8192 tokens keep their matrix units busy"),
    "rocm": _Batch(256, 8192, "default for ROCm devices: 8192 tokens keep their matrix units busy"),
}
_BF16_SETS = ("amx_bf16", "avx512_bf16", "bf16")  # the last one is Arm's


def resolve_dtype(config: EngineConfig, model: ModelFacts, platform: PlatformFacts) -> tuple[str, Decision]:
    """The type of activations and unquantized weights.

    On CPUs the kernels of the compiled extension take float32 activations and keep weights as they are stored, bfloat16
    and quantized ones included: float32 is both the faster and the more accurate type, and the choice ends there.

    Where they cannot run (no extension, or ``--linear-backend`` names another method) torch multiplies, in one type for
    weights and activations. There bfloat16 is for bfloat16 checkpoints, whose weights it holds exactly; float16 and
    float32 ones would lose 3 and 16 bits of every weight without having been asked. It needs dot-product instructions:
    with AVX512-BF16 its matrix products run 2.5 times as fast as float32's (measured on two cores), while CPUs without
    them emulate it and are slower than in float32. For quantized checkpoints accuracy decides as well: with
    SmolLM2-135M in Q4_1, bfloat16 moves log-probabilities by 0.03 on average and flips the first greedy token of "What
    is the capital of France?", which then is not answered.
    """
    asked = config.model.dtype
    if asked != "auto":
        return asked, Decision("dtype", asked, "named by --dtype")
    if platform.name != "cpu":
        chosen = model.dtype if model.dtype in ("bfloat16", "float16") else "bfloat16"
        return chosen, Decision("dtype", chosen, f"the checkpoint is {model.dtype}, the device is {platform.name}")
    if not _native_refused(config, platform):
        why = "native kernels take float32 activations and keep weights in their stored type"
        reason = f"native kernels multiply {model.dtype} weights as they are; --dtype bfloat16 leaves them for torch's"
        return "float32", Decision("dtype", "float32", why, (Rejection("bfloat16", (reason,)),))
    found = [name for name in _BF16_SETS if name in platform.instruction_sets]
    quantized = model.quantized_schemes
    if found and quantized:
        reason = (
            f"the weights are quantized ({', '.join(quantized)}); rounding activations on top of that changes greedy "
            "answers of small models, though it is faster: --dtype bfloat16 takes it"
        )
        why = "quantized weights are meant for float32 activations"
        return "float32", Decision("dtype", "float32", why, (Rejection("bfloat16", (reason,)),))
    if found and model.dtype != "bfloat16":
        reason = (
            f"the checkpoint is {model.dtype}; its weights would be rounded to 8 bits of precision, though that is "
            "faster: --dtype bfloat16 takes it"
        )
        why = f"holds the checkpoint's {model.dtype} weights exactly"
        return "float32", Decision("dtype", "float32", why, (Rejection("bfloat16", (reason,)),))
    if found:
        why = f"the checkpoint's own, and this CPU multiplies it natively ({found[0]})"
        return "bfloat16", Decision("dtype", "bfloat16", why)
    refused = Rejection("bfloat16", (f"needs one of {', '.join(_BF16_SETS)}, this CPU has none of them",))
    return "float32", Decision("dtype", "float32", "the fastest type of this CPU", (refused,))


def _native_refused(config: EngineConfig, platform: PlatformFacts) -> bool:
    """Whether linear layers cannot be native ones, whose names begin so. With the extension some always can, and CPUs
    that have none of the fast ones have no bfloat16 products either."""
    named = config.backend.linear_backend
    return bool(platform.extension_missing) or not (named is None or named.startswith("native_"))


def resolve(
    config: EngineConfig, model: ModelFacts, platform: PlatformFacts, kv: KvFacts, *, is_mock: bool = False
) -> tuple[ResolvedConfig, tuple[Decision, ...]]:
    """Fill in everything the user left open. Raises ConfigError, with a sentence, for values that cannot hold.

    ``is_mock``: the steps of this engine pass without computing, whatever the platform is.
    """
    dtype, dtype_decision = resolve_dtype(config, model, platform)
    block_size, block_decision = _block_size(config, kv)
    num_seqs, num_tokens, batch_decisions = _batch(config, platform)
    depth, depth_decision = _depth(config, platform, is_mock)
    asked_len = config.model.max_model_len
    wanted = ResolvedConfig(
        dtype=dtype,
        max_model_len=asked_len or model.max_position or FALLBACK_MODEL_LEN,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_tokens,
        block_size=block_size,
        kv_cache_dtype=resolve_kv_dtype(config),
        kv_cache_memory=config.cache.kv_cache_memory,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        scheduling_policy=config.scheduler.scheduling_policy,
        async_depth=depth,
        check_integrity=config.scheduler.check_integrity,
        platform=platform.name,
        attention_backend=config.backend.attention_backend,
        linear_backend=config.backend.linear_backend,
        structured_backend=config.backend.structured_backend,
        graphs=config.backend.graphs,
        deterministic=config.backend.deterministic,
        threads=config.backend.threads or platform.num_cores,
        load_format=config.model.load_format,
        seed=config.model.seed,
    )
    max_model_len, length_decision = _max_model_len(wanted, asked_len, model, kv)
    return replace(wanted, max_model_len=max_model_len), (
        dtype_decision,
        _kv_cache_dtype(config, kv),
        block_decision,
        length_decision,
        depth_decision,
        *batch_decisions,
    )


def resolve_kv_dtype(config: EngineConfig) -> str:
    """The type that keys and values are asked for in, by torch's name, or "auto"."""
    asked = config.cache.kv_cache_dtype
    return "float8_e4m3fn" if asked == "fp8" else asked


def _kv_cache_dtype(config: EngineConfig, kv: KvFacts) -> Decision:
    """A named type was part of what the backends were chosen for."""
    if config.cache.kv_cache_dtype == "auto":
        return Decision("kv_cache_dtype", ", ".join(kv.kv_dtypes), "preferred by the attention backend")
    return Decision("kv_cache_dtype", resolve_kv_dtype(config), "named by --kv-cache-dtype")


def _block_size(config: EngineConfig, kv: KvFacts) -> tuple[int, Decision]:
    asked = config.cache.block_size
    others = tuple(str(size) for size in kv.block_tokens if size != (asked or kv.block_tokens[0]))
    if asked is None:
        size = kv.block_tokens[0]
        why = "preferred by the attention backend"
        return size, Decision("block_size", str(size), why, also_possible=others)
    if asked not in kv.block_tokens:
        accepted = ", ".join(map(str, kv.block_tokens))
        raise ConfigError(f"block_size is {asked}, but the chosen attention backend accepts only {accepted}.")
    return asked, Decision("block_size", str(asked), "named by --block-size", also_possible=others)


def _max_model_len(wanted: ResolvedConfig, asked: int | None, model: ModelFacts, kv: KvFacts) -> tuple[int, Decision]:
    """A length that was asked for is never shortened: when it does not fit, the memory plan refuses with the sum."""
    if asked is not None:
        if model.max_position and asked > model.max_position:
            raise ConfigError(
                f"max_model_len is {asked}, but {model.name} was made for at most {model.max_position} tokens: beyond "
                f"that its output is noise. Give {model.max_position} or less."
            )
        return asked, Decision("max_model_len", str(asked), "named by --max-model-len")
    declared = wanted.max_model_len
    holds = kv.longest_request(wanted)
    if 0 < holds < declared:
        refused = (Rejection(str(declared), ("the KV cache does not hold one request of that length",)),)
        return holds, Decision("max_model_len", str(holds), "the longest request that the KV cache holds", refused)
    why = "declared by the checkpoint" if model.max_position else "the checkpoint declares no context length"
    return declared, Decision("max_model_len", str(declared), why)


def _depth(config: EngineConfig, platform: PlatformFacts, is_mock: bool) -> tuple[int, Decision]:
    """On a CPU a second plan in flight saves nothing: it is made on the cores that compute the first, and only for it
    must plans and results pass from thread to thread."""
    asked = config.scheduler.async_depth
    if asked is not None:
        return asked, Decision("async_depth", str(asked), "named by --async-depth")
    if is_mock:
        return 2, Decision("async_depth", "2", "the next step is planned while a mock step passes, as beside a device")
    if platform.name == "cpu":
        why = "planning a step takes less than handing it to another thread that computes on the same cores"
        return 1, Decision("async_depth", "1", why)
    return 2, Decision("async_depth", "2", "the next step is planned while the device computes")


def _batch(config: EngineConfig, platform: PlatformFacts) -> tuple[int, int, tuple[Decision, Decision]]:
    default = _BATCH_BY_PLATFORM.get(platform.name, _BATCH_BY_PLATFORM["cpu"])
    asked_seqs, asked_tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    # What was asked wins; the other one follows it, so that one flag alone never contradicts a default.
    num_seqs = asked_seqs or min(default.max_num_seqs, asked_tokens or default.max_num_seqs)
    num_tokens = asked_tokens or max(default.max_num_batched_tokens, num_seqs)
    if num_tokens < num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {num_tokens}, but max_num_seqs is {num_seqs}: every running request needs at "
            "least one token of each step. Raise the first or lower the second."
        )
    return (
        num_seqs,
        num_tokens,
        (
            Decision("max_num_seqs", str(num_seqs), "named by --max-num-seqs" if asked_seqs else default.why),
            Decision(
                "max_num_batched_tokens",
                str(num_tokens),
                "named by --max-num-batched-tokens" if asked_tokens else default.why,
            ),
        ),
    )
