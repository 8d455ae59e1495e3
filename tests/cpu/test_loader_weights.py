"""Filling parameters by a WEIGHTS table: strict in both directions, and the same model from hub files and from GGUF.

The GGUF files are written with the gguf package's own table of tensor names; transformers reads them as a third party.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from model_driver import make_parts
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from penstock.errors import UnsupportedModelError
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.config_reader import ConfigReader
from penstock.loader.folds import FOLDS, rope_unpermute
from penstock.loader.sources import resolve_source
from penstock.loader.weight_map import Weight
from penstock.loader.weights import describe_parameters, load_parameters, sources_of
from penstock.models.table import family_of
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.gguf import convert_gguf
from penstock.quantization.schemes import dense_record


class Recorder:
    """A parameter that keeps what it was given, dequantized and put together."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self.values: torch.Tensor | None = None
        self.num_records = 0

    def load(self, records) -> None:
        assert self.values is None, "loaded twice"
        self.num_records = len(records)
        self.values = torch.cat([reference_dequantize(record) for record in records])
        assert tuple(self.values.shape) == self.shape


TABLE = (
    Weight(target="embedding.weight", hub=("embed",), gguf=("token_embd",)),
    Weight(target="layers.{i}.qkv", hub=("l.{i}.q", "l.{i}.k"), gguf=("blk.{i}.q", "blk.{i}.k")),
    Weight(target="layers.{i}.bias", hub=("l.{i}.b",), gguf=("blk.{i}.b",), optional=True),
    Weight(target="norm", hub=("norm",), gguf=("norm",), hub_folds=("add_one",)),
    Weight(target="head", hub=("head",), gguf=("output",), tied="embedding.weight"),
)
SHAPES = {
    "embedding.weight": (6, 4),
    "layers.0.qkv": (6, 4),
    "layers.0.bias": (3,),
    "layers.1.qkv": (6, 4),
    "norm": (4,),
    "head": (6, 4),
}


def stored() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (6, 4), "norm": (4,), "head": (6, 4), "l.0.b": (3,)}
    shapes |= {f"l.{layer}.{part}": (rows, 4) for layer in (0, 1) for part, rows in (("q", 4), ("k", 2))}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint_with(tmp_path: Path, tensors: Mapping[str, torch.Tensor]):
    (tmp_path / "config.json").write_text('{"head_dim": 4}')
    save_file(dict(tensors), tmp_path / "model.safetensors")
    return open_checkpoint(resolve_source(str(tmp_path)))


def recorders(without: tuple[str, ...] = ()) -> dict[str, Recorder]:
    return {target: Recorder(shape) for target, shape in SHAPES.items() if target not in without}


def test_parts_are_joined_in_order_and_folds_applied(tmp_path):
    tensors, parameters, seen = stored(), recorders(), []
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, tensors), parameters, progress=lambda *at: seen.append(at))
    for layer in (0, 1):
        wanted = torch.cat([tensors[f"l.{layer}.q"], tensors[f"l.{layer}.k"]])
        assert torch.equal(parameters[f"layers.{layer}.qkv"].values, wanted)
        assert parameters[f"layers.{layer}.qkv"].num_records == 2
    assert torch.equal(parameters["norm"].values, tensors["norm"] + 1)
    assert torch.equal(parameters["head"].values, tensors["head"])
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_tied_target_takes_the_other_tensor_when_its_own_is_absent(tmp_path):
    tensors, parameters = stored(), recorders()
    del tensors["head"]
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, tensors), parameters)
    assert torch.equal(parameters["head"].values, tensors["embed"])


def test_one_object_for_both_targets_is_loaded_once(tmp_path):
    parameters = recorders()
    parameters["head"] = parameters["embedding.weight"]
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, stored()), parameters)
    assert torch.equal(parameters["head"].values, stored()["embed"])


def test_stored_copy_of_a_tied_weight_needs_no_parameter(tmp_path):
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, stored()), recorders(without=("head",)))


def test_optional_parameters_may_be_absent_on_both_sides(tmp_path):
    tensors, parameters = stored(), recorders()
    del tensors["l.0.b"]
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, tensors), parameters)
    assert parameters["layers.0.bias"].values is None
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, tensors), recorders(without=("layers.0.bias",)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("l.1.k"), r"lack l\.1\.k\. The files are incomplete"),
        (lambda t: t.update(extra=torch.ones(1)), "nothing in this model uses extra"),
        (lambda t: t.update({"l.2.q": torch.ones(4, 4)}), r"uses l\.2\.q"),
        (
            lambda t: t.update({"l.0.k": torch.ones(3, 4)}),
            r"layers\.0\.qkv must .* \[6, 4\].*l\.0\.k \[3, 4\]",
        ),
        (lambda t: t.update(embed=torch.ones(6, 5)), r"embedding\.weight must have the shape"),
        (lambda t: t.update(norm=torch.ones(2, 2)), "norm must have the shape"),
        (lambda t: t.update({f"more.{i}": torch.ones(1) for i in range(20)}), r"more\.0, .* and 12 more"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, change, text):
    tensors, parameters = stored(), recorders()
    change(tensors)
    checkpoint = checkpoint_with(tmp_path, tensors)
    for call in (load_parameters, describe_parameters):
        with pytest.raises(UnsupportedModelError, match=text):
            call(TABLE, 2, checkpoint, parameters)
    assert all(parameter.values is None for parameter in parameters.values())


def test_tensor_of_an_absent_optional_parameter_is_not_dropped_silently(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"uses l\.0\.b"):
        load_parameters(TABLE, 2, checkpoint_with(tmp_path, stored()), recorders(without=("layers.0.bias",)))


def test_saved_buffers_are_ignored(tmp_path):
    tensors = stored() | {"l.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    load_parameters(TABLE, 2, checkpoint_with(tmp_path, tensors), recorders())


def test_description_equals_what_is_loaded(tmp_path):
    checkpoint = checkpoint_with(tmp_path, stored())
    described = describe_parameters(TABLE, 2, checkpoint, recorders())
    assert [facts.shape for facts in described["layers.0.qkv"]] == [(4, 4), (2, 4)]
    assert set(described) == set(SHAPES)
    assert sum(facts.nbytes for parts in described.values() for facts in parts) == checkpoint.facts().weight_bytes


def test_sources_of_fills_layers_and_pairs_folds():
    weight = Weight(target="a.{i}", hub=("x.{i}", "y"), gguf=("z.{i}",), gguf_folds=("rope_unpermute",))
    assert [(s.name, s.fold) for s in sources_of(weight, 7, "hub")] == [("x.7", ""), ("y", "")]
    assert [(s.name, s.fold) for s in sources_of(weight, 7, "gguf")] == [("z.7", "rope_unpermute")]
    wrong = dataclasses.replace(weight, hub_folds=("add_one",))
    with pytest.raises(ValueError, match="1 folds for 2"):
        sources_of(wrong, 0, "hub")


def converter_permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """What converters to GGUF do to q and k of llama models, written down from their definition."""
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1", "Q5_0"])
def test_rope_unpermute_restores_rows_of_every_part(kind):
    values = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    config = ConfigReader({"head_dim": 16}, "test")
    loaded = []
    for rows in (values, converter_permute(values, 4)):
        data = np.ascontiguousarray(gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])).reshape(-1)
        loaded.append(convert_gguf(kind, data.view(np.uint8).copy(), rows.shape))
    restored = rope_unpermute(loaded[1], config)
    assert restored.scheme == loaded[0].scheme
    assert all(torch.equal(restored.parts[name], part) for name, part in loaded[0].parts.items())


def test_rope_unpermute_of_a_bias_and_of_half_a_head():
    config = ConfigReader({"head_dim": 16}, "test")
    bias = np.arange(64, dtype=np.float32)
    restored = rope_unpermute(dense_record(torch.from_numpy(converter_permute(bias, 4))), config)
    assert restored.parts["values"].tolist() == bias.tolist()
    with pytest.raises(UnsupportedModelError, match="no whole number of heads"):
        rope_unpermute(dense_record(torch.ones(24)), config)


def test_norm_folds_undo_each_other_and_keep_small_differences():
    config = ConfigReader({}, "test")
    values = torch.tensor([1e-3, -0.5, 0.25], dtype=torch.bfloat16)
    there = FOLDS["add_one"](dense_record(values), config)
    assert there.parts["values"].dtype == torch.float32  # 1.001 is not a bfloat16
    back = FOLDS["subtract_one"](there, config)
    torch.testing.assert_close(back.parts["values"], values.float(), rtol=0, atol=1e-7)


COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": LlamaConfig(**COMMON, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": MistralConfig(**COMMON, sliding_window=32, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**{k: v for k, v in COMMON.items() if k != "head_dim"}, tie_word_embeddings=True),
    # 128 is what transformers takes every GGUF file of this family to have.
    "qwen3": Qwen3Config(**(COMMON | {"head_dim": 128}), tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(
        **(COMMON | {"head_dim": 32, "num_hidden_layers": 7}), sliding_window=16, query_pre_attn_scalar=32
    ),
}
GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}


def write_gguf(path: Path, config, state: Mapping[str, torch.Tensor]) -> None:
    """A GGUF file as converters write it: their names, llama's row order, Gemma's norms with the one added."""
    arch = GGUF_ARCHITECTURES[config.model_type]
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rope = config.rope_parameters
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.model_type in ("mistral", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if arch == "llama" and heads:
            values = converter_permute(values, heads)
        if arch == "gemma3" and "norm" in name:
            values = values + 1
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=MODELS)
def both(request, tmp_path):
    """The same random model as hub files and as a GGUF file, with its state."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[request.param])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_(0, 0.1)  # constants would hide a wrong order
    model.save_pretrained(tmp_path / "hub")
    write_gguf(tmp_path / "model.gguf", model.config, model.state_dict())
    return tmp_path, model


def loaded_parameters(path: Path) -> tuple[object, dict[str, torch.Tensor]]:
    checkpoint = open_checkpoint(resolve_source(str(path)))
    family = family_of(checkpoint.facts().architecture)
    config = family.read_config(checkpoint.config)
    shapes = {target: parameter.shape for target, parameter in family.build(config, make_parts()).parameters().items()}
    parameters = {target: Recorder(shape) for target, shape in shapes.items()}
    load_parameters(family.WEIGHTS, checkpoint.facts().num_layers, checkpoint, parameters)
    return config, {target: p.values for target, p in parameters.items() if p.values is not None}


def rounded(value):
    """Metadata are float32."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(np.float32(value)) if isinstance(value, float) else value


def test_hub_and_gguf_give_the_same_model(both):
    directory, _ = both
    hub_config, hub = loaded_parameters(directory / "hub")
    gguf_config, other = loaded_parameters(directory / "model.gguf")
    assert rounded(dataclasses.asdict(gguf_config)) == rounded(dataclasses.asdict(hub_config))
    assert set(hub) == set(other)
    for target, values in hub.items():
        torch.testing.assert_close(other[target], values, rtol=0, atol=2e-7, msg=lambda text, t=target: f"{t}: {text}")


def test_transformers_reads_the_same_gguf_alike(both):
    """The file above is one that others read too, so its names and row orders are not just our own idea."""
    directory, model = both
    read = AutoModelForCausalLM.from_pretrained(directory, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    for name, values in model.state_dict().items():
        torch.testing.assert_close(read[name], values, rtol=0, atol=2e-7, msg=lambda text, n=name: f"{n}: {text}")


def test_dummy_fills_every_parameter_of_the_family(both):
    directory, _ = both
    checkpoint = open_checkpoint(resolve_source(str(directory / "hub")), load_format="dummy")
    family = family_of(checkpoint.facts().architecture)
    built = family.build(family.read_config(checkpoint.config), make_parts()).parameters()
    parameters = {target: Recorder(parameter.shape) for target, parameter in built.items()}
    load_parameters(family.WEIGHTS, checkpoint.facts().num_layers, checkpoint, parameters)
    assert all(parameter.values is not None for parameter in parameters.values())
    norms = [p.values for target, p in parameters.items() if "norm" in target]
    assert norms
    assert all(torch.equal(values, torch.ones_like(values)) for values in norms)
    described = describe_parameters(family.WEIGHTS, checkpoint.facts().num_layers, checkpoint, parameters)
    assert {t: facts[0].shape for t, facts in described.items()} == {t: p.shape for t, p in parameters.items()}
