"""Tables for the resolver: what was asked and found on the left, what comes out on the right."""

from __future__ import annotations

import pytest

from penstock.config.resolve import FALLBACK_MODEL_LEN, KvFacts, resolve, resolve_dtype
from penstock.config.sections import (
    DTYPES,
    BackendConfig,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from penstock.errors import ConfigError
from penstock.types.facts import ModelFacts, PlatformFacts


def holding(tokens):
    """KV facts of a memory that holds one request of ``tokens`` tokens."""
    return KvFacts(
        block_tokens=(16, 32, 64),
        kv_dtypes=("float32",),
        longest_request=lambda wanted: min(tokens, wanted.max_model_len),
    )


KV = holding(1 << 16)


def model(**changes):
    facts = {
        "name": "tiny", "source": "", "format": "gguf", "architecture": "llama", "family": "llama", "identity": "i",
        "num_parameters": 1, "weight_bytes": 1, "max_position": 2048, "dtype": "float16",
    }  # fmt: skip
    return ModelFacts(**(facts | changes))


def platform(name="cpu", **changes):
    """Without native kernels, unless ``extension_missing`` is emptied."""
    given = {"num_cores": 4, "extension_missing": "was not built"} | changes
    return PlatformFacts(name=name, machine="x86_64", **given)


def config(**flat):
    sections = {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig, "backend": BackendConfig}
    chosen = {
        name: cls(**{key: value for key, value in flat.items() if key in cls.__dataclass_fields__})
        for name, cls in sections.items()
    }
    return EngineConfig(**chosen)


def resolved(*, model_facts=None, platform_facts=None, kv=KV, **flat):
    return resolve(config(**flat), model_facts or model(), platform_facts or platform(), kv)


@pytest.mark.parametrize(
    ("asked", "checkpoint", "machine", "expected"),
    [
        ("auto", "float16", platform(), "float32"),
        ("auto", "bfloat16", platform(instruction_sets=("avx2", "avx512f")), "float32"),
        ("auto", "bfloat16", platform(instruction_sets=("avx512_bf16",)), "bfloat16"),
        ("auto", "bfloat16", platform(instruction_sets=("amx_bf16",)), "bfloat16"),
        ("auto", "float16", platform(instruction_sets=("avx512_bf16",)), "float32"),
        ("auto", "float32", platform(instruction_sets=("amx_bf16",)), "float32"),
        ("bfloat16", "float32", platform(instruction_sets=("amx_bf16",)), "bfloat16"),
        ("auto", "float16", platform("cuda"), "float16"),
        ("auto", "bfloat16", platform("cuda"), "bfloat16"),
        ("auto", "float32", platform("cuda"), "bfloat16"),
        ("float32", "bfloat16", platform(instruction_sets=("amx_bf16",)), "float32"),
        ("float16", "float32", platform(), "float16"),
    ],
)
def test_dtype(asked, checkpoint, machine, expected):
    dtype, decision = resolve_dtype(config(dtype=asked), model(dtype=checkpoint), machine)
    assert dtype == expected == decision.chosen
    assert dtype in DTYPES
    assert ("--dtype" in decision.why) == (asked != "auto")


@pytest.mark.parametrize(
    ("schemes", "expected"),
    [({"bf16": 5}, "bfloat16"), ({"q4_1": 5, "f32": 1}, "float32"), ({}, "bfloat16")],
)
def test_quantized_weights_keep_float32_activations_unless_asked(schemes, expected):
    machine = platform(instruction_sets=("avx512_bf16",))
    facts = model(weight_schemes=schemes, dtype="bfloat16")
    dtype, decision = resolve_dtype(config(), facts, machine)
    assert dtype == expected
    if expected == "float32":
        assert "--dtype bfloat16" in decision.rejected[0].reasons[0]
    assert resolve_dtype(config(dtype="bfloat16"), facts, machine)[0] == "bfloat16"


@pytest.mark.parametrize("checkpoint", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("backend", [None, "native_avx2"])
def test_native_kernels_take_float32_whatever_the_checkpoint_is(checkpoint, backend):
    machine = platform(instruction_sets=("avx2", "avx512_bf16"), extension_missing="")
    dtype, decision = resolve_dtype(config(linear_backend=backend), model(dtype=checkpoint), machine)
    assert dtype == "float32"
    assert "native" in decision.why
    assert resolve_dtype(config(dtype="bfloat16"), model(dtype=checkpoint), machine)[0] == "bfloat16"


def test_a_named_torch_method_keeps_torchs_rule():
    machine = platform(instruction_sets=("avx512_bf16",), extension_missing="")
    assert resolve_dtype(config(linear_backend="dense"), model(dtype="bfloat16"), machine)[0] == "bfloat16"


@pytest.mark.parametrize("checkpoint", ["float16", "float32"])
def test_weights_are_not_rounded_unasked_and_the_faster_type_is_named(checkpoint):
    _, decision = resolve_dtype(config(), model(dtype=checkpoint), platform(instruction_sets=("avx512_bf16",)))
    (refused,) = decision.rejected
    assert refused.name == "bfloat16"
    assert f"the checkpoint is {checkpoint}" in refused.reasons[0]
    assert "--dtype bfloat16" in refused.reasons[0]


def test_a_cpu_without_bfloat16_says_what_it_lacks():
    _, decision = resolve_dtype(config(), model(), platform(instruction_sets=("avx2",)))
    (refused,) = decision.rejected
    assert refused.name == "bfloat16"
    assert "avx512_bf16" in refused.reasons[0]


@pytest.mark.parametrize(
    ("flat", "facts", "holds", "expected"),
    [
        ({}, {}, 1 << 16, 2048),
        ({"max_model_len": 100}, {}, 1 << 16, 100),
        ({"max_model_len": 2048}, {}, 1 << 16, 2048),
        ({}, {"max_position": 0}, 1 << 16, FALLBACK_MODEL_LEN),
        ({"max_model_len": 9000}, {"max_position": 0}, 1 << 16, 9000),
        ({}, {"max_position": 1 << 17}, 1 << 16, 1 << 16),
        ({}, {}, 2048, 2048),
        ({}, {}, 2047, 2047),
        ({}, {}, 1, 1),
        # The memory plan refuses these two with the whole sum.
        ({}, {}, 0, 2048),
        ({"max_model_len": 200}, {}, 100, 200),
    ],
)
def test_max_model_len(flat, facts, holds, expected):
    result, decisions = resolved(model_facts=model(**facts), kv=holding(holds), **flat)
    assert result.max_model_len == expected
    (decision,) = [d for d in decisions if d.subject == "max_model_len"]
    assert decision.chosen == str(expected)


def test_a_shortened_context_says_why():
    _, decisions = resolved(model_facts=model(max_position=1 << 17))
    (decision,) = [d for d in decisions if d.subject == "max_model_len"]
    assert decision.rejected[0].name == str(1 << 17)
    assert "does not hold" in decision.rejected[0].reasons[0]


def test_the_memory_is_asked_with_everything_else_resolved():
    asked_with = []

    def longest(wanted):
        asked_with.append(wanted)
        return wanted.max_model_len

    result, _ = resolved(
        kv=KvFacts(block_tokens=(32,), kv_dtypes=("float32",), longest_request=longest), max_num_seqs=3
    )
    assert asked_with == [result]


@pytest.mark.parametrize(
    ("flat", "machine", "expected"),
    [
        ({}, platform(), (64, 512)),
        ({}, platform("cuda"), (256, 8192)),
        ({}, platform("tpu"), (64, 512)),
        ({"max_num_seqs": 600}, platform(), (600, 600)),
        ({"max_num_batched_tokens": 32}, platform(), (32, 32)),
        ({"max_num_seqs": 4, "max_num_batched_tokens": 4}, platform(), (4, 4)),
    ],
)
def test_batch_sizes(flat, machine, expected):
    result, decisions = resolved(platform_facts=machine, **flat)
    assert (result.max_num_seqs, result.max_num_batched_tokens) == expected
    named = {d.subject for d in decisions if d.why.startswith("named by")}
    assert named == set(flat)


@pytest.mark.parametrize(
    ("asked", "machine", "is_mock", "expected"),
    [
        (None, "cpu", False, 1),
        (None, "cuda", False, 2),
        (None, "cpu", True, 2),
        (None, "cuda", True, 2),
        (3, "cpu", False, 3),
        (1, "cpu", True, 1),
    ],
)
def test_async_depth(asked, machine, is_mock, expected):
    """A mock step passes without a core, whatever the platform is: the next one can be planned meanwhile."""
    result, decisions = resolve(config(async_depth=asked), model(), platform(machine), KV, is_mock=is_mock)
    assert result.async_depth == expected
    (decision,) = [one for one in decisions if one.subject == "async_depth"]
    assert decision.chosen == str(expected)
    assert decision.why.startswith("named by") == (asked is not None)


@pytest.mark.parametrize(("asked", "expected"), [(None, 16), (16, 16), (64, 64)])
def test_block_size(asked, expected):
    assert resolved(block_size=asked)[0].block_size == expected


@pytest.mark.parametrize(
    ("flat", "kv", "sentence"),
    [
        ({"block_size": 17}, KV, "block_size is 17, but .* accepts only 16, 32, 64"),
        ({"max_model_len": 2049}, KV, "max_model_len is 2049, but tiny was made for at most 2048 tokens"),
        (
            {"max_num_seqs": 8, "max_num_batched_tokens": 4},
            KV,
            "max_num_batched_tokens is 4, but max_num_seqs is 8",
        ),
    ],
)
def test_values_that_cannot_hold_are_refused_with_a_sentence(flat, kv, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolved(kv=kv, **flat)


def test_what_needs_no_decision_passes_through():
    result, _ = resolved(
        enable_prefix_caching=False, scheduling_policy="priority", async_depth=3, check_integrity=True,
        attention_backend="a", linear_backend="b", load_format="dummy", seed=7, kv_cache_memory=5,
    )  # fmt: skip
    settings = result.settings()
    expected = {
        "enable_prefix_caching": "False", "scheduling_policy": "priority", "async_depth": "3",
        "check_integrity": "True", "attention_backend": "a", "linear_backend": "b", "load_format": "dummy",
        "seed": "7", "kv_cache_memory": "5", "threads": "4",
    }  # fmt: skip
    assert expected.items() <= settings.items()
    assert resolved(threads=2)[0].threads == 2
