"""Checkpoints in float8 as they are published, against transformers in float32 on the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import VOCAB, PlanMaker, describe_alone, greedy_by_transformers, random_prompt, tiny_spec
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from penstock.errors import UnsupportedModelError
from penstock.executor.load import plan_executor
from penstock.executor.local import LocalExecutor
from penstock.kernels.device import CPU
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.dummy_checkpoint import STANDARD_DEVIATION
from penstock.loader.sources import resolve_source
from penstock.platforms.recorded import RECORDED
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.fp8 import Fp8Layout, convert_fp8, read_layout
from penstock.quantization.records import cut_rows, take_rows
from penstock.quantization.schemes import record_bytes
from penstock.types.request import SamplingParams

LARGEST = torch.finfo(torch.float8_e4m3fn).max
BLOCK = 128
INPUTS = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"}


def compressed(strategy: str, inputs: dict[str, Any] | None = INPUTS, **weights: Any) -> dict[str, Any]:
    stored = {"dynamic": False, "num_bits": 8, "strategy": strategy, "symmetric": True, "type": "float", **weights}
    group = {"input_activations": inputs, "output_activations": None, "targets": ["Linear"], "weights": stored}
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max().reshape(1) / LARGEST


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(dim=1, keepdim=True) / LARGEST


def blocks(weight: torch.Tensor) -> torch.Tensor:
    height, width = (-(-size // BLOCK) for size in weight.shape)
    filled = torch.zeros(height * BLOCK, width * BLOCK)
    filled[: weight.shape[0], : weight.shape[1]] = weight
    return filled.view(height, BLOCK, width, BLOCK).abs().amax(dim=(1, 3)) / LARGEST


def spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What every value is multiplied with, as the formats define it."""
    if scales.numel() == 1:
        return scales.float().reshape(1, 1).expand(shape)
    if scales.shape[1] == 1 and shape[1] > BLOCK:
        return scales.float().expand(shape)
    if scales.shape == (shape[0], 1):
        return scales.float().expand(shape)
    return scales.float().repeat_interleave(BLOCK, 0)[: shape[0]].repeat_interleave(BLOCK, 1)[:, : shape[1]]


DEEPSEEK = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
# Name: (quantization_config, scales of a weight, type that they are stored in, name behind the weight's, scheme).
LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor], torch.dtype, str, str]] = {
    "fp8-blocks": (DEEPSEEK, blocks, torch.float32, "_scale_inv", "fp8_block"),
    "fp8-blocks-bf16": (DEEPSEEK, blocks, torch.bfloat16, "_scale_inv", "fp8_block"),
    "fp8-tensor": (
        {"activation_scheme": "static", "quant_method": "fp8", "ignored_layers": ["lm_head"]},
        whole, torch.float32, "_scale", "fp8_row",
    ),
    "compressed-tensor": (
        compressed("tensor", {**INPUTS, "strategy": "tensor"}), whole, torch.bfloat16, "_scale", "fp8_row",
    ),
    "compressed-channel": (compressed("channel"), rows, torch.bfloat16, "_scale", "fp8_row"),
    "compressed-weights": (compressed("channel", None), rows, torch.float32, "_scale", "fp8_row_only"),
    "compressed-blocks": (
        compressed("block", block_structure=[BLOCK, BLOCK]), blocks, torch.float32, "_scale", "fp8_block",
    ),
}  # fmt: skip


def save(directory: Path, layout: str) -> Any:
    """A tiny model in ``directory``; answers transformers' own with the values that are stored."""
    config, scales_of, scale_dtype, suffix, _ = LAYOUTS[layout]
    torch.manual_seed(5)
    sizes = {"vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads, tie_word_embeddings=False)).eval()
    model.save_pretrained(directory)
    stored, values = load_file(directory / "model.safetensors"), {}
    for name, weight in list(stored.items()):
        values[name] = weight
        if name.endswith("_proj.weight"):
            # Parts of one projection have scales far from each other.
            weight = weight * (4.0 if "k_proj" in name or "up_proj" in name else 1.0)
            scales = scales_of(weight).to(scale_dtype)
            factor = spread(scales, weight.shape)
            codes = (weight / factor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
            stored[name], stored[f"{name}{suffix}"] = codes, scales
            values[name] = codes.float() * factor
            if config.get("activation_scheme") == "static":
                stored[name.replace("weight", "input_scale")] = torch.tensor(0.5)
    save_file(stored, directory / "model.safetensors")
    edit_config(directory, quantization_config=config, dtype="bfloat16")
    model.load_state_dict(values)
    return model


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_the_dequantized_weights(layout: str, tmp_path: Path) -> None:
    model = save(tmp_path, layout)
    executor = LocalExecutor(tiny_spec(tmp_path))
    try:
        maker = PlanMaker(executor.start())
        prompt = random_prompt(20)
        sampling = SamplingParams(temperature=0.0, logprobs=5)
        tokens, entries = describe_alone(executor, maker, 0, prompt, 10, sampling=sampling)
    finally:
        executor.stop()
    assert tokens == greedy_by_transformers(model, prompt, 10)
    with torch.inference_mode():
        wanted = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
    for place, entry in enumerate(entries):
        there = wanted[len(prompt) - 1 + place, list(entry.token_ids)]
        torch.testing.assert_close(torch.tensor(entry.logprobs), there, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_are_the_stored_values(layout: str, tmp_path: Path) -> None:
    model = save(tmp_path, layout)
    checkpoint = open_checkpoint(resolve_source(str(tmp_path)))
    wanted = model.state_dict()
    assert set(checkpoint.tensor_names) == set(wanted)
    for name in checkpoint.tensor_names:
        record, facts = checkpoint.load(name), checkpoint.describe(name)
        assert (facts.scheme, facts.shape, facts.nbytes) == (record.scheme, record.shape, record.nbytes)
        assert record.scheme.name == (LAYOUTS[layout][-1] if name.endswith("_proj.weight") else "f32")
        values = reference_dequantize(record)
        assert torch.equal(values, wanted[name])
        if record.scheme.kind == "float":
            assert record.nbytes == record_bytes(record.scheme, record.shape)
            assert torch.equal(reference_dequantize(cut_rows(record, 3, 60)), values[3:60])
            order = torch.randperm(record.shape[0])
            assert torch.equal(reference_dequantize(take_rows(record, order)), values[order])
    assert checkpoint.facts().dtype == "bfloat16"
    assert checkpoint.facts().quantized_schemes == (LAYOUTS[layout][-1],)


def test_every_code_is_its_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    values = reference_dequantize(convert_fp8(Fp8Layout(False, False), codes, torch.ones(1)))[0].tolist()
    for code, value in enumerate(values):
        exponent, mantissa = code >> 3 & 15, code & 7
        if code & 127 == 127:
            assert value != value
            continue
        size = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        assert value == (-size if code & 128 else size)


@pytest.mark.parametrize("layout", ["fp8-blocks", "compressed-channel"])
def test_dummy_weights_are_float8_too(layout: str, tmp_path: Path) -> None:
    save(tmp_path, layout)
    checkpoint = open_checkpoint(resolve_source(str(tmp_path)), load_format="dummy")
    record = checkpoint.make_weight("layers.0.mlp.down.weight", (128, 256), CPU)
    facts = checkpoint.describe_weight("layers.0.mlp.down.weight", (128, 256))
    assert (facts.scheme, facts.nbytes) == (record.scheme, record.nbytes)
    assert record.scheme.name == LAYOUTS[layout][-1]
    values = reference_dequantize(record)
    assert abs(values.std() / STANDARD_DEVIATION - 1) < 0.05
    assert len(values.unique()) > 100
    assert checkpoint.make_weight("lm_head.weight", (64, 128), CPU).scheme.name == "bf16"
    executor = LocalExecutor(tiny_spec(tmp_path, load_format="dummy"))
    executor.start()
    executor.stop()


def test_values_without_scales_and_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "compressed-channel")
    name = "model.layers.1.mlp.down_proj.weight"
    stored = load_file(tmp_path / "model.safetensors")
    good = stored.pop(f"{name}_scale")
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight has type F8_E4M3, has no scales"):
        open_checkpoint(resolve_source(str(tmp_path)))
    save_file({**stored, f"{name}_scale": good[:5].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"have the shape \[5, 1\], not one value or \[128, 1\]"):
        open_checkpoint(resolve_source(str(tmp_path))).load(name)


# How tools name the scales of keys and values below self_attn.
CACHE_SCALES = {
    "llm-compressor": ("k_scale", "v_scale"),
    "modelopt": ("k_proj.k_scale", "v_proj.v_scale"),
    "autofp8": ("k_proj.output_scale", "v_proj.output_scale"),
}
SCALES = (0.02, 0.005)  # what a layer's keys and values of about 1 are divided by


class ScaledCache(DynamicCache):
    """Of transformers: whatever is read from it has been rounded to float8 under these scales."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        pairs = zip((keys, values), SCALES, strict=True)
        stored = [(x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale for x, scale in pairs]
        return super().update(*stored, *args, **kwargs)


def add_cache_scales(directory: Path, names: tuple[str, str], values: tuple[float, float] = SCALES) -> None:
    stored = load_file(directory / "model.safetensors")
    for layer in range(2):
        for position, (name, value) in enumerate(zip(names, values, strict=True)):
            scale = torch.tensor(value) if position else torch.tensor([value])
            stored[f"model.layers.{layer}.self_attn.{name}"] = scale
    save_file(stored, directory / "model.safetensors")


def check_scales_are_used(directory: Path, tool: str, tolerance: float, **backends: Any) -> None:
    """Log-probabilities of greedy tokens, against transformers with a cache that rounds alike under the same scales."""
    model = save(directory, "fp8-tensor")
    add_cache_scales(directory, CACHE_SCALES[tool])
    spec = tiny_spec(directory, max_num_batched_tokens=16, kv_cache_dtype="float8_e4m3fn", **backends)
    prompt = random_prompt(40)
    executor = LocalExecutor(spec)
    try:
        maker = PlanMaker(executor.start())
        tokens, entries = describe_alone(
            executor, maker, 0, prompt, 8, sampling=SamplingParams(temperature=0.0, logprobs=5)
        )
    finally:
        executor.stop()
    caches = ScaledCache(), DynamicCache()
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        scaled, exact = (model(ids, past_key_values=cache).logits[0].log_softmax(-1) for cache in caches)
    furthest = 0.0
    for place, entry in enumerate(entries):
        row, there = len(prompt) - 1 + place, list(entry.token_ids)
        torch.testing.assert_close(torch.tensor(entry.logprobs), scaled[row, there], rtol=0, atol=tolerance)
        furthest = max(furthest, float((scaled - exact)[row, there].abs().max()))
    assert furthest > 10 * tolerance  # the rounding under these scales is seen


@pytest.mark.parametrize("tool", CACHE_SCALES)
def test_scales_of_a_float8_cache_are_read_and_used(tool: str, tmp_path: Path) -> None:
    check_scales_are_used(tmp_path, tool, 2e-3, attention_backend="reference_torch")


def test_without_a_float8_cache_its_scales_change_nothing(tmp_path: Path) -> None:
    model = save(tmp_path, "fp8-tensor")
    add_cache_scales(tmp_path, CACHE_SCALES["llm-compressor"])
    executor = LocalExecutor(tiny_spec(tmp_path))
    try:
        maker = PlanMaker(executor.start())
        prompt = random_prompt(20)
        tokens, _ = describe_alone(executor, maker, 0, prompt, 5, sampling=SamplingParams(temperature=0.0, logprobs=1))
    finally:
        executor.stop()
    assert tokens == greedy_by_transformers(model, prompt, 5)


def test_scales_that_are_none_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "fp8-tensor")
    add_cache_scales(tmp_path, CACHE_SCALES["modelopt"], (-1.0, 0.5))
    with pytest.raises(UnsupportedModelError, match=r"must be above 0; the checkpoint has -1\.0, 0\.5"):
        LocalExecutor(tiny_spec(tmp_path)).start()


def test_a_scale_of_keys_alone_is_no_weight(tmp_path: Path) -> None:
    save(tmp_path, "fp8-tensor")
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.0.self_attn.k_scale"] = torch.tensor(0.1)
    save_file(stored, tmp_path / "model.safetensors")
    assert not [name for name in open_checkpoint(resolve_source(str(tmp_path))).tensor_names if "scale" in name]


REFUSED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "an unknown method": {"bits": 4},
    r"fp8 in blocks of \[64, 64\]": {**DEEPSEEK, "weight_block_size": [64, 64]},
    "fp8 in the format e5m2": {**DEEPSEEK, "fmt": "e5m2"},
    r"compressed-tensors \(4-bit int values\)": compressed("group", type="int", num_bits=4),
    r"compressed-tensors \(8-bit float values, scales per group\)": compressed("group"),
    r"compressed-tensors \(activations in 8-bit int values\)": compressed("channel", {**INPUTS, "type": "int"}),
    "compressed-tensors in 0 different ways": {"quant_method": "compressed-tensors"},
    "the sparse format": {**compressed("channel"), "sparsity_config": {"format": "sparse-24-bitmask"}},
}


@pytest.mark.parametrize("text", REFUSED)
def test_other_quantizations_are_refused_by_name(text: str, tmp_path: Path) -> None:
    save(tmp_path, "compressed-channel")
    edit_config(tmp_path, quantization_config=REFUSED[text])
    with pytest.raises(UnsupportedModelError, match=f"quantized with.*{text}.*, which"):
        open_checkpoint(resolve_source(str(tmp_path)))


def test_blocks_want_whole_columns() -> None:
    layout = read_layout(DEEPSEEK)
    with pytest.raises(ValueError, match="130 columns are no whole number of blocks"):
        convert_fp8(layout, torch.zeros(4, 130, dtype=torch.uint8), torch.ones(1, 2))


def test_the_float8_method_can_be_named_for_a_usual_checkpoint(tmp_path: Path) -> None:
    """Its embedding and its LM head are plain: they are left to the table."""
    save(tmp_path, "fp8-blocks")
    spec = tiny_spec(tmp_path, platform=RECORDED["h200"], dtype="bfloat16", linear_backend="cuda_fp8")
    plan = plan_executor(spec, open_checkpoint(spec.source))
    chosen = {each.subject.split()[1]: each.chosen for each in plan.decisions if each.subject.startswith("linear ")}
    assert chosen["fp8_block"] == "cuda_fp8"
    assert {chosen[scheme] for scheme in chosen if scheme != "fp8_block"} == {"cuda_skinny"}
