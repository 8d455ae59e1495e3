"""Checkpoints: what transformers saved and what the gguf package wrote, opened, described and read back."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.kernels.device import CPU
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.dummy_checkpoint import STANDARD_DEVIATION, DummyCheckpoint
from penstock.loader.sources import ModelSource, resolve_source
from penstock.quantization.dequantize import reference_dequantize

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=False))


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def sharded(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    return tmp_path / "sharded"


def opened(path: Path, **options):
    return open_checkpoint(resolve_source(str(path)), **options)


@pytest.mark.parametrize("layout", ["saved", "sharded"])
def test_safetensors_equal_the_model(layout, model, request):
    checkpoint = opened(request.getfixturevalue(layout))
    expected = model.state_dict()
    assert (checkpoint.format, checkpoint.names) == ("safetensors", "hub")
    assert set(checkpoint.tensor_names) == set(expected)
    records = {name: checkpoint.load(name) for name in checkpoint.tensor_names}
    checkpoint.close()
    for name, values in expected.items():
        facts = checkpoint.describe(name)
        assert facts.shape == records[name].shape == tuple(values.shape)
        assert facts.nbytes == records[name].nbytes
        assert facts.dtype == "float32"
        torch.testing.assert_close(records[name].parts["values"], values, rtol=0, atol=0)
    assert checkpoint.describe("nothing") is None


def test_facts(saved, model):
    facts = opened(saved).facts()
    assert facts.num_parameters == sum(values.numel() for values in model.state_dict().values())
    assert facts.weight_bytes == 4 * facts.num_parameters
    assert facts.weight_schemes == {"f32": facts.weight_bytes}
    assert (facts.name, facts.format, facts.architecture) == ("whole", "safetensors", "LlamaForCausalLM")
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size, facts.max_position) == (2, 64, 160, 256)
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim, facts.dtype) == (4, 2, 16, "float32")


def test_identity_ignores_sharding_and_place_but_not_weights(saved, sharded, model, tmp_path):
    identity = opened(saved).facts().identity
    assert len(identity) == 32
    assert opened(sharded).facts().identity == identity
    assert opened(shutil.copytree(saved, tmp_path / "copy")).facts().identity == identity
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 0.5
    save_file(weights, saved / "model.safetensors")
    assert opened(saved).facts().identity != identity


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(model, tmp_path, dtype):
    torch_dtype = getattr(torch, dtype)
    weights = {name: values.to(torch_dtype) for name, values in model.state_dict().items()}
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = opened(tmp_path)
    assert checkpoint.facts().dtype == dtype
    for name, values in weights.items():
        assert torch.equal(checkpoint.load(name).parts["values"], values)


def test_unaligned_and_empty_tensors(tmp_path):
    """The format allows any order, so a float may begin at an odd byte."""
    values, data = np.arange(6, dtype=np.float32), b"\x07"
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "floats": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [25, 25]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data + values.tobytes())
    checkpoint = opened(tmp_path)
    assert checkpoint.load("floats").parts["values"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.load("none").shape == (0, 3)


def test_changing_a_loaded_tensor_leaves_the_file_alone(saved):
    before = (saved / "model.safetensors").read_bytes()
    opened(saved).load("model.norm.weight").parts["values"].zero_()
    assert (saved / "model.safetensors").read_bytes() == before


def test_cut_safetensors_is_one_sentence_at_every_length(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, 300, 7), 3000, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelSourceError, match=r"model\.safetensors"):
            opened(saved)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN = {
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights"),
    "config no json": (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
    "config no object": (lambda d: (d / "config.json").write_text("[]"), "no JSON object"),
    "header no json": (lambda d: (d / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"{oops}"), "not readable"),
    "offsets": (
        lambda d: (d / "model.safetensors").write_bytes(
            (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}'.ljust(64) + bytes(16)
        ),
        "does not fill its place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories(saved, case):
    damage, text = BROKEN[case]
    damage(saved)
    with pytest.raises(ModelSourceError, match=text):
        opened(saved)


def test_missing_shard_and_index_that_points_elsewhere(sharded):
    index = sharded / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    next(sharded.glob("model-00001*")).unlink()
    with pytest.raises(ModelSourceError, match=r"model-00001.* cannot be read"):
        opened(sharded)
    edit_json(index, weight_map=dict.fromkeys(listed["weight_map"], "../whole/model.safetensors"))
    with pytest.raises(ModelSourceError, match="not a file of its directory"):
        opened(sharded)


def test_quantized_hub_models_are_refused_by_method(saved):
    edit_json(saved / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="gptq"):
        opened(saved)


def test_unknown_tensor_type_is_refused_by_name(saved):
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight has type F8_E4M3.*supported: F64"):
        opened(saved).facts()


def test_load_format_must_fit(saved, tmp_path):
    with pytest.raises(ModelSourceError, match="no GGUF file"):
        opened(saved, load_format="gguf")
    with pytest.raises(ModelSourceError, match="no load format"):
        opened(saved, load_format="pickle")
    assert opened(saved, load_format="safetensors").format == "safetensors"


QUANTIZED = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}


def write_model(path: Path, types: dict[str, str], raw_types=()) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_context_length(32)
    generator = np.random.default_rng(0)
    for name, kind in types.items():
        values = generator.normal(0, 0.02, (8, 64)).astype(np.float32)
        quantization = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    for name, quantization in dict(raw_types).items():
        size = gguf.GGML_QUANT_SIZES[quantization]
        writer.add_tensor(name, np.zeros((2, size[1]), np.uint8), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_equals_the_package(tmp_path):
    path = write_model(tmp_path / "m.gguf", {f"blk.0.{kind}.weight": kind for kind in sorted(QUANTIZED)})
    checkpoint = opened(path)
    assert (checkpoint.format, checkpoint.names) == ("gguf", "gguf")
    for tensor in gguf.GGUFReader(str(path)).tensors:
        record = checkpoint.load(tensor.name)
        facts = checkpoint.describe(tensor.name)
        assert (facts.shape, facts.scheme, facts.nbytes) == (record.shape, record.scheme, record.nbytes)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert reference_dequantize(record).numpy().tobytes() == expected.tobytes()
    facts = checkpoint.facts()
    assert facts.num_parameters == len(QUANTIZED) * 8 * 64
    assert set(facts.weight_schemes) == {kind.lower() for kind in QUANTIZED}
    assert facts.weight_bytes == sum(facts.weight_schemes.values())
    assert (facts.architecture, facts.num_layers, facts.hidden_size) == ("llama", 1, 64)


@pytest.mark.parametrize(
    ("kinds", "dtype"), [(["F16"] * 2 + ["F32"], "float16"), (["F32"], "float32"), (["Q4_1", "F32"], "bfloat16")]
)
def test_gguf_dtype_is_the_nearest(tmp_path, kinds, dtype):
    types = {f"blk.0.{i}.weight": kind for i, kind in enumerate(kinds) if kind != "F32" or dtype == "float32"}
    assert opened(write_model(tmp_path / "m.gguf", types)).facts().dtype == dtype


def test_unknown_gguf_type_is_refused_by_name(tmp_path):
    path = write_model(tmp_path / "m.gguf", {}, {"blk.0.x.weight": gguf.GGMLQuantizationType.IQ1_S})
    with pytest.raises(UnsupportedModelError, match=r"tensor blk\.0\.x\.weight has type IQ1_S \(19\), which Penstock"):
        opened(path)


def test_type_number_of_the_future_is_refused(tmp_path):
    path = write_model(tmp_path / "m.gguf", {"blk.0.x.weight": "F32"})
    data = path.read_bytes()
    entry = b"blk.0.x.weight" + (2).to_bytes(4, "little") + (64).to_bytes(8, "little") + (8).to_bytes(8, "little")
    assert data.count(entry) == 1
    at = data.index(entry) + len(entry)
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UnsupportedModelError, match="type number 99"):
        opened(path)


def test_split_gguf_says_how_to_join(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"(?s)split in 3.*llama-gguf-split --merge"):
        opened(tmp_path / "m.gguf")


@pytest.fixture
def bare(tmp_path) -> ModelSource:
    """A configuration without weights."""
    config = LlamaConfig(**SIZES, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path / "bare")
    return resolve_source(str(tmp_path / "bare"))


def test_dummy_weights_follow_seed_target_and_shape(bare):
    first, same, other = (open_checkpoint(bare, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert isinstance(first, DummyCheckpoint)
    made = first.make_weight("layers.0.mlp.down.weight", (64, 96), CPU).parts["values"]
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, same.make_weight("layers.0.mlp.down.weight", (64, 96), CPU).parts["values"])
    assert not torch.equal(made, other.make_weight("layers.0.mlp.down.weight", (64, 96), CPU).parts["values"])
    assert not torch.equal(made, first.make_weight("layers.1.mlp.down.weight", (64, 96), CPU).parts["values"])
    assert first.facts().identity == same.facts().identity != other.facts().identity


def test_dummy_values_are_normal_and_norms_are_one(bare):
    checkpoint = open_checkpoint(bare, load_format="dummy")
    large = checkpoint.make_weight("embedding.weight", (40_000, 64), CPU).parts["values"].float()
    assert abs(large.mean()) < 1e-3
    assert abs(large.std() / STANDARD_DEVIATION - 1) < 1e-2
    assert len(large.unique(dim=0)) == 40_000  # the pool repeats, rows do not
    assert torch.equal(
        checkpoint.make_weight("layers.0.attention_norm.weight", (64,), CPU).parts["values"].float(), torch.ones(64)
    )


def test_dummy_facts_come_from_the_configuration(bare):
    facts = open_checkpoint(bare, load_format="dummy").facts()
    assert (facts.format, facts.num_layers, facts.dtype, facts.num_parameters) == ("dummy", 2, "bfloat16", 0)
