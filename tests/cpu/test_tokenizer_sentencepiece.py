"""``tokenizer.model`` files read without sentencepiece give sentencepiece's ids."""

from __future__ import annotations

import io

import pytest
import sentencepiece
from hypothesis import assume, given
from tokenizer_fixtures import RANDOM_TEXT, TEXTS

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.frontend.text.hub_files import TokenizerFiles, tokenizer_from_files


def train(**options) -> bytes:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "the capital of the capital is Paris"] * 20),
        model_writer=stream,
        **{
            "vocab_size": 520,
            "model_type": "bpe",
            "byte_fallback": True,
            "character_coverage": 0.98,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "split_digits": True,
            "minloglevel": 3,
            "hard_vocab_limit": False,
            **options,
        },
    )
    return stream.getvalue()


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no_prefix"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    data = train(add_dummy_prefix=request.param)
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    return tokenizer_from_files(TokenizerFiles.read(folder)), theirs


@given(text=RANDOM_TEXT)
def test_ids_equal_sentencepiece(model, text):
    assume(not text.startswith((" ", "▁")))  # there the prefix space is not doubled, as in transformers
    ours, theirs = model
    assume("<0x" not in text and "\0" not in text)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_samples_equal_sentencepiece_and_come_back(model, text):
    ours, theirs = model
    ids = theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.decode(ids) == theirs.decode(ids) == text


def test_special_tokens_are_known(model):
    ours, _ = model
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)
    assert ours.special_token_ids == {0, 1, 2}
    assert ours.encode("a</s>", add_special_tokens=False)[-1] == 2


@pytest.mark.parametrize(
    "options", [{"model_type": "unigram"}, {"normalization_rule_name": "nfkc"}, {"remove_extra_whitespaces": True}]
)
def test_kinds_that_would_give_other_ids_are_refused(tmp_path, options):
    (tmp_path / "tokenizer.model").write_bytes(train(**options))
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        tokenizer_from_files(TokenizerFiles.read(tmp_path))


@pytest.mark.parametrize("data", [b"", b"\x0a\xff", b"no model at all", train()[:1000]])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises((ModelSourceError, UnsupportedModelError), match=r"tokenizer\.model"):
        tokenizer_from_files(TokenizerFiles.read(tmp_path))


def test_no_tokenizer_at_all_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ModelSourceError, match="--tokenizer"):
        tokenizer_from_files(TokenizerFiles.read(tmp_path))
