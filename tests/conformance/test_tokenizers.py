"""The tokenizer contract, over every kind of tokenizer: hub files, every GGUF split rule, sentencepiece, the mock's.

A row of the table of split rules without a place here fails.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubBackend
from tokenizers import decoders, models, pre_tokenizers, trainers

from penstock.frontend.text.detokenizer import Detokenizer
from penstock.frontend.text.pretokenizers import PRE_TOKENIZERS, pre_tokenizer
from penstock.frontend.text.tokenizer import HubTokenizer, Tokenizer
from penstock.frontend.text.vocabularies import TokenType, Vocabulary, build_byte_level, build_sentencepiece
from penstock.mock.tokenizer import ByteTokenizer

SPLITS = (
    *("default", "gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "gigachat", "granite-docling", "falcon"),
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "dbrx", "smaug-bpe"),
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken", "gpt-4o", "llama4"),
    *("kanana2", "minimax-m2", "qwen2", "deepseek-r1-qwen", "qwen35", "deepseek-v3", "hunyuan-dense"),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=25)


def test_every_split_rule_has_a_place_here():
    assert sorted(SPLITS) == sorted(PRE_TOKENIZERS)


def _byte_level(pre: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("a", "b"), ("Ġ", "Ġ"), ("Ã", "©")]
    tokens = ["<bos>", "<eos>", *alphabet, *(left + right for left, right in merges), "<think>"]
    types = [3, 3, *[1] * (len(alphabet) + len(merges)), 4]
    backend = build_byte_level(Vocabulary(tokens=tokens, types=types), merges, pre_tokenizer(pre))
    return HubTokenizer(backend, bos_token_id=0, eos_token_id=1)


def _sentencepiece(prefix: bool) -> Tokenizer:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{value:02X}>" for value in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "he",
        "▁t",
        "▁the",
    ]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * 7]
    vocabulary = Vocabulary(tokens=tokens, types=[int(kind) for kind in types])
    scores = [0.0] * 262 + [-4.0, -1.0, -2.0, -3.0]
    backend = build_sentencepiece(vocabulary, scores, add_space_prefix=prefix, unknown_token="<unk>")
    return HubTokenizer(backend, bos_token_id=1, eos_token_id=2)


def _hub() -> Tokenizer:
    backend = HubBackend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox", "das schöne Übermaß"], trainer)
    return HubTokenizer(backend, bos_token_id=0, eos_token_id=1)


TOKENIZERS: dict[str, Tokenizer] = {
    **{f"gguf:{name}": _byte_level(name) for name in SPLITS},
    "sentencepiece": _sentencepiece(True),
    "sentencepiece:no-prefix": _sentencepiece(False),
    "hub": _hub(),
    "mock": ByteTokenizer(add_bos=True),
}
COMPOSING = frozenset(f"gguf:{name}" for name, row in PRE_TOKENIZERS.items() if row.nfc)


@pytest.fixture(params=TOKENIZERS, scope="module")
def named(request):
    return request.param, TOKENIZERS[request.param]


@given(text=TEXT)
@example(text="<s> <bos>a</s>")
def test_text_comes_back(named, text):
    name, tokenizer = named
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    if name in COMPOSING or (tokenizer.drops_first_space and text.startswith((" ", "▁"))):
        return
    if "sentencepiece" in name:
        text = text.replace("▁", " ")
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(data=st.data(), skip=st.booleans())
def test_decode_is_the_joined_bytes_and_streaming_is_decode(named, data, skip):
    _, tokenizer = named
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    shown = [token_id for token_id in ids if not (skip and token_id in tokenizer.special_token_ids)]
    joined = b"".join(map(tokenizer.token_bytes, shown)).decode("utf-8", "replace")
    if tokenizer.drops_first_space:
        joined = joined.removeprefix(" ")
    assert tokenizer.decode(ids, skip_special_tokens=skip) == joined
    detokenizer = Detokenizer(tokenizer, skip)
    streamed = "".join([*(detokenizer.push((token_id,)) for token_id in ids), detokenizer.flush()])
    assert streamed in (joined, joined.removesuffix("\ufffd"))  # without a last character that was cut off


def test_ends_are_special_and_are_recognised_in_text(named):
    _, tokenizer = named
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        assert token_id in tokenizer.special_token_ids
        assert tokenizer.encode(tokenizer.token_text(token_id), add_special_tokens=False) == [token_id]
        assert tokenizer.decode([token_id]) == ""
        assert tokenizer.decode([token_id], skip_special_tokens=False) == tokenizer.token_text(token_id)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "\ud83d\ude42"])
def test_surrogates_are_accepted(named, text):
    _, tokenizer = named
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def test_ids_outside_the_vocabulary_stream_as_nothing(named):
    _, tokenizer = named
    assert Detokenizer(tokenizer).push([tokenizer.vocab_size, tokenizer.vocab_size + 100]) == ""


def test_special_tokens_are_added_on_request_only(named):
    _, tokenizer = named
    plain = tokenizer.encode("the", add_special_tokens=False)
    full = tokenizer.encode("the")
    assert [token_id for token_id in full if token_id not in tokenizer.special_token_ids] == plain
