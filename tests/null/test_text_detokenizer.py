"""Streaming equals decoding at once, for any tokens, any cuts and every kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import (
    CORPUS,
    TOKENIZERS,
    byte_level_tokenizer,
    ends_inside_a_character,
    id_of,
    sentencepiece_tokenizer,
    trained_byte_level,
)

from penstock.errors import UnsupportedModelError
from penstock.frontend.text.detokenizer import Detokenizer
from penstock.frontend.text.pieces import byte_alphabet, piece_decoder


def stream(tokenizer, chunks, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_in_any_cut_equal_the_full_decode(kind, data, skip):
    tokenizer = TOKENIZERS[kind]()
    ids = st.integers(0, tokenizer.vocab_size + 3)
    chunks = data.draw(st.lists(st.lists(ids, max_size=4), max_size=12))
    flat = [token_id for chunk in chunks for token_id in chunk]
    whole = tokenizer.decode(flat, skip_special_tokens=skip)
    hidden = tokenizer.special_token_ids if skip else frozenset()
    if ends_inside_a_character(b"".join(tokenizer.token_bytes(one) for one in flat if one not in hidden)):
        assert whole[-1] == "\ufffd"
        whole = whole[:-1]
    assert "".join(stream(tokenizer, chunks, skip_special_tokens=skip)) == whole
    assert "".join(stream(tokenizer, [[token_id] for token_id in flat], skip_special_tokens=skip)) == whole


@given(data=st.data(), skip=st.booleans())
def test_byte_level_decode_equals_the_librarys(data, skip):
    tokenizer, backend = byte_level_tokenizer(), trained_byte_level()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("prefix", [True, False])
@given(text=st.text(max_size=40), data=st.data())
def test_byte_fallback_decode_equals_the_librarys_on_whole_characters(prefix, text, data):
    tokenizer = sentencepiece_tokenizer(prefix)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer._backend.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "sentencepiece_without_prefix"])
@pytest.mark.parametrize("text", [*CORPUS, " leading", "  two", "", " ", "\n", "\x00\x7f\u2028"])
def test_text_survives_a_round_trip_one_token_at_a_time(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, [[token_id] for token_id in ids])
    assert all("\ufffd" not in piece for piece in pieces)
    if not (kind == "sentencepiece" and text.startswith(" ")):
        assert "".join(pieces) == text


@given(text=st.text(max_size=30), data=st.data())
def test_half_a_character_is_never_emitted(text, data):
    tokenizer = byte_level_tokenizer()
    by_byte = {value: id_of(tokenizer, character) for character, value in byte_alphabet().items()}
    ids = [by_byte[value] for value in text.encode("utf-8", "replace")]
    seen = ""
    for piece in stream(tokenizer, [[token_id] for token_id in ids]):
        seen += piece
        assert text.encode("utf-8", "replace").decode().startswith(seen)


def test_a_continuation_keeps_its_leading_space():
    tokenizer = sentencepiece_tokenizer()
    paris = id_of(tokenizer, "▁Paris")
    assert "".join(stream(tokenizer, [[paris]])) == "Paris"
    assert "".join(stream(tokenizer, [[paris]], at_start=False)) == " Paris"
    assert "".join(stream(tokenizer, [[1], [], [paris, paris]])) == "Paris Paris"


def test_broken_bytes_become_replacement_characters_as_soon_as_that_is_certain():
    tokenizer = sentencepiece_tokenizer()
    lead, letter = id_of(tokenizer, "<0xE2>"), id_of(tokenizer, "a")
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([lead]) == ""
    assert detokenizer.push([letter]) == "\ufffda"
    assert detokenizer.push([lead]) == ""
    assert detokenizer.push([lead]) == "\ufffd"
    assert detokenizer.flush() == ""


def test_bytes_that_no_character_begins_with_are_not_mistaken_for_a_cut_one():
    """E1 A0 begins a character; ED A0 would begin a surrogate, which no UTF-8 may hold."""
    tokenizer = sentencepiece_tokenizer()
    for first, expected in (("E1", ""), ("ED", "\ufffd\ufffd"), ("F0", "")):
        ids = [id_of(tokenizer, f"<0x{value}>") for value in (first, "A0")]
        assert "".join(stream(tokenizer, [ids])) == expected


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}]},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]},
    ],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(decoder):
    with pytest.raises(UnsupportedModelError, match="cannot be streamed"):
        piece_decoder(decoder)
