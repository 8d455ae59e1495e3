"""The configuration reader and bundled model, where reading goes wrong and where it must be exact."""

import math

import gguf
import numpy as np
import pytest

from penstock.errors import UnsupportedModelError
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.config_reader import ConfigReader
from penstock.loader.sources import resolve_source
from penstock.quantization.dequantize import reference_dequantize

READER = ConfigReader(
    {
        "whole": 3,
        "float": 1.5,
        "round": 4.0,
        "text": "silu",
        "yes": True,
        "list": [1],
        "null": None,
        "infinite": math.inf,
        "nested": {"inner": 7},
    },
    "model/config.json",
)


def test_reads_of_the_right_type():
    assert READER.int("whole") == 3
    assert READER.int("round") == 4
    assert READER.float("float") == 1.5
    assert isinstance(READER.float("whole"), float)
    assert READER.str("text") == "silu"
    assert READER.bool("yes") is True
    assert READER.list("list") == [1]
    assert READER.section("nested").int("inner") == 7


@pytest.mark.parametrize("key", ["null", "absent"])
def test_null_is_absent(key):
    assert not READER.has(key)
    assert READER.section(key) is None
    assert READER.int(key, default=9) == 9
    assert READER.str(key, default="x") == "x"
    READER.expect(key, "anything")
    with pytest.raises(UnsupportedModelError, match=rf"model/config\.json has no {key}"):
        READER.float(key)


@pytest.mark.parametrize(
    ("read", "key"),
    [
        ("int", "float"),
        ("int", "yes"),
        ("int", "text"),
        ("float", "text"),
        ("float", "infinite"),
        ("float", "yes"),
        ("str", "whole"),
        ("bool", "whole"),
        ("list", "text"),
        ("section", "list"),
    ],
)
def test_wrong_types_are_named(read, key):
    with pytest.raises(UnsupportedModelError, match=rf"model/config\.json sets {key} to .* must be"):
        getattr(READER, read)(key)


def test_expect_states_what_is_implemented():
    READER.expect("text", "silu", "gelu")
    with pytest.raises(UnsupportedModelError, match=r"text to 'silu', which is not supported; .* 'gelu' or 'relu'"):
        READER.expect("text", "gelu", "relu")


def test_nested_origin_says_where():
    with pytest.raises(UnsupportedModelError, match=r"model/config\.json, nested has no other"):
        READER.section("nested").int("other")


@pytest.mark.slow
def test_every_tensor_of_the_default_model_equals_the_gguf_package():
    source = resolve_source("smollm2")
    checkpoint = open_checkpoint(source)
    tensors = gguf.GGUFReader(str(source.path)).tensors
    assert len(tensors) == len(checkpoint.tensor_names) == 272
    for tensor in tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = reference_dequantize(checkpoint.load(tensor.name)).numpy()
        assert np.array_equal(found.view(np.uint32).reshape(-1), expected.view(np.uint32).reshape(-1)), tensor.name
    facts = checkpoint.facts()
    assert (facts.num_parameters, facts.num_layers, facts.head_dim) == (134_515_008, 30, 64)
    assert set(facts.weight_schemes) == {"q4_1", "q8_0", "f32"}
