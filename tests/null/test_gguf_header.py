"""The GGUF header reader against files written by the gguf package, and against every way a file can be broken."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from drawn_examples import num_examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import ModelSourceError, UnsupportedModelError, UserError
from penstock.loader.gguf_config import hub_style_config
from penstock.loader.gguf_file import GgufFile
from penstock.quantization.formats.ggml_types import GGML_TYPES

LLAMA = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


def write_gguf(path: Path, arch: str = "llama", *, keys=(), tensors=(), alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(str(path), arch)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in dict(keys).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in dict(tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {
        "token_embd.weight": np.arange(320, dtype=np.float32).reshape(5, 64),
        "output_norm.weight": np.ones(64, dtype=np.float16),
    }
    keys = {f"llama.{key}": value for key, value in LLAMA.items()}
    keys |= {"tokens": ["a", "ä", "", "日本"], "scores": [0.5, -1.0], "kinds": [1, 2, 3], "flags": [True, False]}
    return write_gguf(tmp_path / "m.gguf", keys=keys, tensors=tensors)


def test_header_equals_what_the_gguf_package_reads(model):
    file, reader = GgufFile(model), gguf.GGUFReader(str(model))
    expected = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.metadata == expected
    assert file.metadata["tokens"] == ["a", "ä", "", "日本"]
    entries = [
        (t.name, tuple(map(int, t.shape[::-1])), t.tensor_type.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    assert [(t.name, t.shape, t.type_name, t.offset, t.nbytes) for t in file.tensors.values()] == entries


def test_alignment_of_the_file_is_used(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", tensors={"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}, alignment=256
    )
    file = GgufFile(path)
    assert {tensor.offset % 256 for tensor in file.tensors.values()} == {0}
    assert file.data[file.tensors["y"].offset :][:12] == np.ones(3, np.float32).tobytes()


def test_table_of_types_equals_the_gguf_package():
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: tuple(block) for number, block in GGML_TYPES.items()}.items() <= known.items()


def test_cut_file_is_one_sentence_at_every_length(model):
    whole = model.read_bytes()
    cut = model.with_name("cut.gguf")
    for length in [*range(400), *range(400, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelSourceError, match=r"cut\.gguf"):
            GgufFile(cut)


@settings(max_examples=num_examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_header_is_read_or_refused_with_a_user_error(model, data):
    damaged = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, 900))] = data.draw(st.integers(0, 255))
    path = model.with_name("damaged.gguf")
    path.write_bytes(damaged)
    try:
        file = GgufFile(path)
        hub_style_config(file)
    except UserError:
        return
    assert all(tensor.offset + tensor.nbytes <= len(damaged) for tensor in file.tensors.values())


def test_an_unknown_type_beyond_the_end_is_damage(model):
    """Its size is not known, its beginning is."""
    damaged = bytearray(model.read_bytes())
    entry = damaged.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8  # one dimension and its size
    damaged[entry : entry + 4] = (99).to_bytes(4, "little")
    model.write_bytes(damaged)
    assert GgufFile(model).tensors["output_norm.weight"].type_name == "type number 99"
    damaged[entry + 4 : entry + 12] = len(damaged).to_bytes(8, "little")
    model.write_bytes(damaged)
    with pytest.raises(ModelSourceError, match=r"output_norm\.weight begins at byte"):
        GgufFile(model)


def test_wild_counts_do_not_allocate(tmp_path):
    path = tmp_path / "wild.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62) + bytes(64))
    with pytest.raises(ModelSourceError, match="damaged or only half there"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"", ModelSourceError, "it is empty"),
        (b"PK\x03\x04 and more of a zip file", ModelSourceError, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), UnsupportedModelError, "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModelError, "big-endian"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, error, text):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=text):
        GgufFile(path)


def test_missing_file(tmp_path):
    with pytest.raises(ModelSourceError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")


def config_of(tmp_path: Path, arch: str, keys, tensors=()) -> dict:
    shaped = {f"{arch}.{key}": value for key, value in (LLAMA | dict(keys)).items()}
    names = {"token_embd.weight": np.zeros((5, 64), np.float32)} | dict(tensors)
    return hub_style_config(GgufFile(write_gguf(tmp_path / "c.gguf", arch, keys=shaped, tensors=names)))


def test_config_gets_hub_names(tmp_path):
    config = config_of(tmp_path, "llama", {})
    assert config["num_hidden_layers"] == 2
    assert config["hidden_size"] == 64
    assert config["intermediate_size"] == 96
    assert config["num_attention_heads"] == 4
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 16
    assert config["vocab_size"] == 5
    assert config["max_position_embeddings"] == 128
    assert config["architectures"] == ["llama"]
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert config["tie_word_embeddings"] is True
    assert "rope_scaling" not in config


def test_output_matrix_unties(tmp_path):
    config = config_of(tmp_path, "llama", {}, {"output.weight": np.zeros((5, 64), np.float32)})
    assert config["tie_word_embeddings"] is False


def test_head_dim_is_the_stated_one(tmp_path):
    config = config_of(tmp_path, "qwen3", {"attention.key_length": 32, "attention.value_length": 32})
    assert config["head_dim"] == 32


def test_llama3_divisors_become_rope_scaling(tmp_path):
    factors = np.array([1, 1, 1.5, 2, 4, 8, 8, 8], np.float32)
    config = config_of(tmp_path, "llama", {}, {"rope_freqs.weight": factors})
    assert config["rope_scaling"] == {"rope_type": "factors", "factors": factors.tolist()}


def test_divisors_of_one_change_nothing(tmp_path):
    assert "rope_scaling" not in config_of(tmp_path, "llama", {}, {"rope_freqs.weight": np.ones(8, np.float32)})


def test_linear_and_yarn_scaling(tmp_path):
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    scaling = config_of(tmp_path, "qwen2", keys)["rope_scaling"]
    assert scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def test_sliding_llama_is_mistral(tmp_path):
    config = config_of(tmp_path, "llama", {"attention.sliding_window": 48})
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 48)


def test_gemma3_layers_and_scales(tmp_path):
    keys = {"block_count": 7, "attention.key_length": 32, "attention.sliding_window": 16, "rope.freq_base": 1e6}
    config = config_of(tmp_path, "gemma3", keys)
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert config["query_pre_attn_scalar"] == 32
    assert config["rope_local_base_freq"] == 10000.0
    assert config["sliding_window"] == 16
    keys |= {"block_count": 62}
    assert config_of(tmp_path, "gemma3", keys)["query_pre_attn_scalar"] == 64 // 4


def test_equal_values_per_layer_are_one_and_unequal_ones_refused(tmp_path):
    assert config_of(tmp_path, "llama", {"attention.head_count_kv": [2, 2]})["num_key_value_heads"] == 2
    with pytest.raises(UnsupportedModelError, match="differs from layer to layer"):
        config_of(tmp_path, "llama", {"attention.head_count_kv": [2, 4]})


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"rope.dimension_count": 8}, "partial rotation"),
        ({"attention.key_length": 16, "attention.value_length": 32}, "both must be the same"),
        ({"block_count": "two"}, "must be a number"),
    ],
)
def test_unsupported_settings_are_named(tmp_path, keys, text):
    with pytest.raises(UnsupportedModelError, match=text):
        config_of(tmp_path, "llama", keys)
