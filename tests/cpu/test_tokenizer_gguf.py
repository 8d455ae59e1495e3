"""Tokenizers built from GGUF metadata give the ids that transformers' own GGUF-built tokenizers give."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_fixtures import (
    RANDOM_TEXT,
    SPECIAL,
    TEXTS,
    byte_level_keys,
    byte_level_parts,
    sentencepiece_keys,
    transformers_tokenizer,
    write_gguf,
)
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, Qwen2Tokenizer

from penstock.errors import UnsupportedModelError
from penstock.frontend.text.gguf_tokenizer import gguf_stop_ids, tokenizer_from_gguf
from penstock.loader.gguf_file import GgufFile
from penstock.loader.sources import resolve_source

BYTE_LEVEL = ("gpt-2", "llama-bpe", "qwen2", "deepseek-r1-qwen", "qwen35", "tekken", "gpt-4o", "llama4", "falcon3")
SPECIAL_TEXT = st.lists(st.one_of(RANDOM_TEXT, st.sampled_from([*SPECIAL, "<think>"])), max_size=5).map("".join)


def both(folder: Path, architecture: str, keys: dict):
    """Our tokenizer and transformers' one of the same file."""
    write_gguf(folder / "model.gguf", architecture, dict(keys))
    ours = tokenizer_from_gguf(GgufFile(folder / "model.gguf").metadata)
    return ours, AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request, tmp_path_factory):
    ours, theirs = both(tmp_path_factory.mktemp("bpe"), "qwen2", byte_level_keys(request.param, add_bos_token=False))
    theirs.backend_tokenizer.model.ignore_merges = request.param in ("llama-bpe", "tekken", "falcon3")
    return ours, theirs


@given(text=SPECIAL_TEXT)
def test_byte_level_ids_equal_transformers(byte_level, text):
    ours, theirs = byte_level
    text = unicodedata.normalize("NFC", text)
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_samples_equal_transformers(byte_level, text):
    ours, theirs = byte_level
    text = unicodedata.normalize("NFC", text)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text


@given(text=RANDOM_TEXT)
def test_qwen2_composes_characters_as_the_models_own_tokenizer_does(text):
    tokens, _, merges = byte_level_parts()
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    theirs = Qwen2Tokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    ours = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in byte_level_keys("qwen2").items()})
    text = unicodedata.normalize("NFD", text)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("pre", "splits"),
    [
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "deepseek-v3",
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
                pre_tokenizers.Split(
                    Regex(
                        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
                    ),
                    "isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
    ],
)
@given(text=RANDOM_TEXT)
def test_splits_equal_the_hub_tokenizers_of_these_families(pre, splits, text):
    ours = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in byte_level_keys(pre).items()})
    theirs = pre_tokenizers.Sequence(splits).pre_tokenize_str(text)
    assert ours._backend.pre_tokenizer.pre_tokenize_str(text) == theirs


@pytest.fixture(scope="module", params=["llama", "llama_without_prefix", "gemma3"])
def sentencepiece(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    if request.param == "gemma3":
        return both(folder, "gemma3", sentencepiece_keys(gemma=True, add_space_prefix=False))
    more = {"add_space_prefix": False} if request.param != "llama" else {}
    ours, theirs = both(folder, "llama", sentencepiece_keys(**more))
    if more:  # transformers does not read this key
        scheme = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        theirs.backend_tokenizer.pre_tokenizer = scheme
    return ours, theirs


@given(text=RANDOM_TEXT)
def test_sentencepiece_ids_equal_transformers(sentencepiece, text):
    ours, theirs = sentencepiece
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text)[0] == ours.bos_token_id


@given(texts=st.lists(RANDOM_TEXT, min_size=1, max_size=3))
def test_sentencepiece_ids_around_special_tokens_equal_transformers(sentencepiece, texts):
    ours, theirs = sentencepiece
    text = ours.token_text(ours.eos_token_id).join(texts)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        (byte_level_keys("gpt-2"), None),
        (byte_level_keys("gpt-2", add_bos_token=True), 1),
        (byte_level_keys("llama-bpe"), 1),
        (byte_level_keys("llama-bpe", add_bos_token=False), None),
        (sentencepiece_keys(), 1),
        (sentencepiece_keys(add_bos_token=False), None),
    ],
)
def test_beginning_of_sequence_is_added_where_the_file_or_its_kind_says_so(keys, first):
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    plain = tokenizer.encode("Paris", add_special_tokens=False)
    assert tokenizer.encode("Paris") == ([] if first is None else [first]) + plain


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (byte_level_keys("no-such-split"), "no-such-split"),
        ({"model": "t5", "tokens": ["a"]}, "'t5'"),
        ({}, "no tokenizer"),
        ({key: value for key, value in byte_level_keys("gpt-2").items() if key != "merges"}, "no merges"),
        (sentencepiece_keys(scores=[]), "no score"),
        (byte_level_keys("gpt-2", merges=["nowhere tofind"]), "do not fit together"),
        (byte_level_keys("gpt-2", merges=["nospace"]), "do not fit together"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(keys, named):
    with pytest.raises(UnsupportedModelError, match=named):
        tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def test_stop_ids_are_every_end_that_the_file_names():
    keys = {"tokens": ["a"] * 9, "eos_token_id": 2, "eot_token_id": 5, "eom_token_id": 7, "bos_token_id": 1}
    assert gguf_stop_ids({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == {2, 5, 7}


def test_an_end_of_turn_that_the_file_does_not_name_is_known_by_its_text():
    keys = {"tokens": ["<eos>", "<end_of_turn>", "x"], "token_type": [3, 3, 1], "eos_token_id": 0}
    assert gguf_stop_ids({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == {0, 1}
    keys["token_type"] = [3, 1, 1]
    assert gguf_stop_ids({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == {0}


@pytest.mark.parametrize("named", [{}, {"eot_token_id": 2}, {"eot_token_id": 3}])
def test_an_answer_of_several_messages_does_not_end_with_the_first(named):
    """gpt-oss ends its thoughts with <|end|>, and an answer with the other two."""
    keys = {"tokens": ["x", "<|return|>", "<|end|>", "<|call|>"], "token_type": [1, 3, 3, 3], "eos_token_id": 1}
    keys |= named
    assert gguf_stop_ids({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == {1, 3}
    keys["tokens"] = ["x", "<|endoftext|>", "<|end|>", "<|user|>"]
    ends = {1, named.get("eot_token_id", 2)}
    assert gguf_stop_ids({f"tokenizer.ggml.{key}": value for key, value in keys.items()}) == ends


@pytest.fixture(scope="module")
def smollm2():
    path = resolve_source("smollm2").path
    theirs = transformers_tokenizer(path)
    # The file says "smollm", whose splits transformers does not know; these are the ones of the model's tokenizer.json.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer_from_gguf(GgufFile(path).metadata), theirs


@pytest.mark.slow
@given(text=SPECIAL_TEXT)
def test_the_real_models_ids_equal_transformers(smollm2, text):
    ours, theirs = smollm2
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_the_real_models_samples_survive_a_round_trip(smollm2, text):
    ours, theirs = smollm2
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text
