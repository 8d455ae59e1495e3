"""`penstock bench kernels` on a tiny model: every op of the list has a case, and what a case says of itself is so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from penstock.bench import ceilings as measured
from penstock.bench import device_ceilings, kernels
from penstock.bench.ceilings import Ceilings
from penstock.bench.kernel_cases import POINTWISE, Case, make_cases, random_record, tensor_bytes
from penstock.bench.kernels import KernelWorkload, measure_kernels
from penstock.bench.model_shapes import ModelShapes, read_shapes
from penstock.cli.main import main
from penstock.errors import ConfigError
from penstock.kernels.native.ceilings import KINDS
from penstock.kernels.ops import OPS
from penstock.loader.sources import resolve_source
from penstock.platforms.probe import probe_platform
from penstock.platforms.recorded import RECORDED
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.linear import LinearSpec
from penstock.quantization.schemes import SCHEMES
from penstock.quantization.select import choose_linear

HERE = probe_platform()
CEILINGS = Ceilings(
    threads=1,
    memory_gb_s=20.0,
    shared_cache_gb_s=50.0,
    own_cache_gb_s=100.0,
    first_cache_gb_s=200.0,
    gop_s={"float32": 100.0, "int8": 400.0, "bfloat16": 0.0},
)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 48,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 260, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
WEIGHTS = {
    "embed_tokens": (260, 48),
    "norm": (48,),
    "layers.0.input_layernorm": (48,),
    "layers.0.post_attention_layernorm": (48,),
    "layers.0.self_attn.q_proj": (64, 48),
    "layers.0.self_attn.k_proj": (32, 48),
    "layers.0.self_attn.v_proj": (32, 48),
    "layers.0.self_attn.o_proj": (48, 64),
    "layers.0.mlp.gate_proj": (96, 48),
    "layers.0.mlp.up_proj": (96, 48),
    "layers.0.mlp.down_proj": (48, 96),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tensors = {f"model.{name}.weight": torch.zeros(shape) for name, shape in WEIGHTS.items()}
    save_file({**tensors, "lm_head.weight": torch.zeros(260, 48)}, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def shapes(model: Path) -> ModelShapes:
    return read_shapes(resolve_source(str(model)), HERE)


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "measure_ceilings", lambda platform, cache_bytes: CEILINGS)
    monkeypatch.setattr(kernels, "beyond_caches", lambda cache_bytes: 1 << 16)
    monkeypatch.setattr(kernels, "_REPEAT_S", 1e-5)


def test_every_op_of_the_list_with_implementations_has_a_case() -> None:
    assert set(POINTWISE) == {name for name, op in OPS.items() if op.implementations}


def test_shapes_are_those_of_the_model(shapes: ModelShapes) -> None:
    found = {linear.role: (linear.spec.out_features, linear.spec.in_features) for linear in shapes.linears}
    assert found == {
        "embedding": (260, 48),
        "attention.qkv": (128, 48),
        "attention.output": (48, 64),
        "mlp.gate_up": (192, 48),
        "mlp.down": (48, 96),
        "lm_head": (260, 48),
    }
    assert shapes.intermediate_size == 96
    assert [linear.role for linear in shapes.linears if linear.gives_logits] == ["lm_head"]


def test_a_scheme_that_does_not_exist(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weight scheme 'q9'; there are .*q4_1"):
        read_shapes(resolve_source(str(model)), HERE, "q9")


def cases_of(shapes: ModelShapes, op: str) -> list[Case]:
    return [case for case in make_cases(shapes, HERE, (1, 3, 100), 20) if case.op == op]


def test_a_linear_layer_counts_its_weight_and_its_products(shapes: ModelShapes) -> None:
    case = next(case for case in cases_of(shapes, "linear") if case.rows == 3 and case.shape.startswith("mlp.down"))
    dense = next(each for each in case.candidates if each.name == "dense")
    work = dense.work()
    assert work.operations == 2 * 3 * 48 * 96
    assert work.cold_bytes == work.copy_bytes == 48 * 96 * 4
    calls = work.make(4)
    assert len(calls) == 4
    assert [tuple(call().shape) for call in calls] == [(3, 48)] * 4


def test_logits_are_not_asked_for_every_token_of_a_prefill(shapes: ModelShapes) -> None:
    rows = {case.rows for case in cases_of(shapes, "linear") if case.shape.startswith("lm_head")}
    assert rows == {1, 3}


def test_attention_decodes_few_rows_and_prefills_many(shapes: ModelShapes) -> None:
    one, three, hundred = cases_of(shapes, "paged_attention")[:3]
    assert three.shape.startswith("decode behind 20")
    assert hundred.shape.startswith("prefill of 100")
    work = three.candidates[0].work()
    assert work.operations == 4 * 3 * 20 * 4 * 16
    assert hundred.candidates[0].work().operations == 4 * (100 * 101 // 2) * 4 * 16
    for case in (one, three, hundred):
        for candidate in case.candidates:
            with torch.inference_mode():
                (call,) = candidate.work().make(1)
                assert tuple(call().shape) == (case.rows, 4, 16)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_random_weights_of_every_scheme_are_numbers(scheme) -> None:
    spec = LinearSpec(scheme=scheme, out_features=4, in_features=256, dtype="float32", platform=HERE)
    values = reference_dequantize(random_record(spec))
    assert tuple(values.shape) == (4, 256)
    assert torch.isfinite(values).all()
    assert values.abs().max() > 0
    choose_linear(spec)


def test_every_case_runs_and_has_a_row(shapes: ModelShapes, ceilings: None) -> None:
    workload = KernelWorkload(rows=(1, 2), context=20, repeats=1, threads=1)
    report = measure_kernels(shapes, HERE, 1 << 16, workload, "", lambda text: None)
    assert {row["op"] for row in report.rows} >= {*POINTWISE} - {
        name
        for name in POINTWISE
        if "quantize" in name  # 48 columns are no whole blocks
    } | {"linear", "embedding", "paged_attention"}
    for row in report.rows:
        assert 0 < row["min_us"] <= row["median_us"]
        assert row["roofline"].endswith("%") or HERE.extension_missing
    chosen = {(row["op"], row["shape"], row["rows"]) for row in report.rows if row["chosen"]}
    assert chosen == {(row["op"], row["shape"], row["rows"]) for row in report.rows}
    assert {decision["subject"].split()[0] for decision in report.engine["decisions"]} == {"op", "linear", "attention"}


@pytest.mark.skipif(bool(HERE.extension_missing), reason=HERE.extension_missing or "-")
def test_the_roofline_is_what_the_ceilings_alone_would_take(shapes: ModelShapes, ceilings: None) -> None:
    workload = KernelWorkload(rows=(2,), ops=("linear",), implementations=("dense",), repeats=1, threads=1)
    report = measure_kernels(shapes, HERE, 1 << 16, workload, "", lambda text: None)
    row = next(row for row in report.rows if row["shape"].startswith("mlp.gate_up"))
    memory = 192 * 48 * 4 / 20e9 + (2 * 48 + 2 * 192) * 4 / 200e9
    assert row["bound"] == "memory"
    assert int(row["roofline"][:-1]) == pytest.approx(memory / row["min_us"] * 1e8, rel=0.02, abs=1)


def test_quantized_rows_count_in_full() -> None:
    x = torch.zeros(2, 64)
    assert tensor_bytes((x, OPS["quantize_rows"].reference(x))) == 2 * 64 * 4 + 2 * 64 + 2 * 2 * (4 + 1 + 4)


@pytest.mark.skipif(bool(HERE.extension_missing), reason=HERE.extension_missing or "-")
def test_ceilings_are_measured_for_every_kind_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_REPEAT_S", 1e-3)
    found = measured.measure_ceilings(HERE, 1 << 20, repeats=1)
    assert found.memory_gb_s > 0
    assert found.first_cache_gb_s > found.memory_gb_s / 4
    assert set(found.gop_s) == set(KINDS)
    assert found.gop_s["float32"] > 0
    assert found.gop_s["int8"] > 0
    assert (found.gop_s["bfloat16"] > 0) == any("bf16" in isa for isa in measured.usable_isas(HERE))


def test_the_command_writes_rows_decisions_and_ceilings(
    model: Path, ceilings: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["bench", "kernels", str(model), "--op", "add", "--rows", "4", "--implementation", "aten"]
    monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json", "-"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    report = json.loads(out)
    assert [(row["op"], row["rows"], row["implementation"]) for row in report["rows"]] == [("add", 4, "aten")]
    with pytest.raises(SystemExit):
        main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["op", "shape", "rows"]
    assert lines[2].split()[:4] == ["add", "48", "4", "aten"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "kernels", str(model), "--op", "nonsense"])
    assert ended.value.code == 2
    assert "Nothing to measure" in capsys.readouterr().err


def test_ceilings_of_a_device_are_copies_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU in the place of the device, and calls in that of its graphs."""
    monkeypatch.setattr(device_ceilings, "capture", lambda run: run)
    monkeypatch.setattr(device_ceilings, "device_seconds", kernels._seconds)
    monkeypatch.setattr(device_ceilings, "_LEAST_S", 1e-4)
    monkeypatch.setattr(measured, "device_of", lambda platform: torch.device("cpu"))
    sizes = {"CACHED_BYTES": 1 << 14, "COPY_BYTES": 1 << 20, "FLOAT32_SIZE": 128, "MATRIX_SIZE": 128}
    for name, size in sizes.items():
        monkeypatch.setattr(measured, name, size)
    found = measured.measure_ceilings(RECORDED["h200"], 60 << 20, repeats=2)
    assert found.threads == 0
    assert min(found.memory_gb_s, found.shared_cache_gb_s, found.gop_s["float32"], found.gop_s["bfloat16"]) > 0
    assert found.warm_gb_s(1) == found.shared_cache_gb_s
    assert found.warm_gb_s(1 << 30) == found.memory_gb_s
    notes = kernels._notes(RECORDED["h200"], found)
    assert f"{found.memory_gb_s} GB/s in memory" in notes[1]
    assert "on cuda" in notes[1]
