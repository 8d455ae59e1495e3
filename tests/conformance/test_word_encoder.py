"""The memory of words against the tokenizers library, over published tokenizers and every way to cut a text."""

from __future__ import annotations

import unicodedata

import pytest
from dialect_round_trips import tokenizer_of
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HubBackend

from penstock.frontend.text import word_encoder
from penstock.frontend.text.pretokenizers import PRE_TOKENIZERS, pre_tokenizer
from penstock.frontend.text.tokenizer import HubTokenizer
from penstock.frontend.text.vocabularies import Vocabulary, build_byte_level
from penstock.frontend.text.word_encoder import MAX_NEW_CHARACTERS, WordEncoder, why_not, written_out

# A folder for every way to cut that the package has.
PUBLISHED = ("qwen-3", "qwen-3.5", "deepseek-v4", "minimax-m3", "deepseek-coder-33b-base")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CHARACTERS = (
    " \x1c\x85\xa0\u1680\u180e\u200b\u2028\u3000\ufeff'\"!?.,;:(){}[]<>|#~^`"
    "é\u0301ßŒñЖжΩω你好。カ한½²Ⅷ٣३אبعरไทย€™—“\u200d\ufffd\U0001f600"
)
WORDS = (
    "'s",
    "'S",
    "'ll",
    "'LL",
    "  ",
    " a",
    " the",
    "123",
    " 4567",
    "\r\n",
    "\n\n  ",
    "\t",
    "http://",
    "</",
    "_x",
    "ſ",
    "K",
)
PIECES = st.sampled_from([*WORDS, *CHARACTERS])
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=("Cs",)), max_size=6), max_size=16).map("".join)


def byte_level(pre: str) -> HubBackend:
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("a", "b"), ("Ġ", "Ġ"), ("Ã", "©")]
    tokens = ["<bos>", "<eos>", *ALPHABET, *(left + right for left, right in merges), "<think>"]
    types = [3, 3, *[1] * (len(ALPHABET) + len(merges)), 4]
    return build_byte_level(Vocabulary(tokens=tokens, types=types), merges, pre_tokenizer(pre))


def plain() -> HubBackend:
    backend = HubBackend(models.BPE({letter: number for number, letter in enumerate(ALPHABET)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def check(backend: HubBackend, known: WordEncoder, text: str) -> bool:
    """Whether the words are known, after the answers have been compared."""
    for special in (False, True):
        found = known.encode(text, add_special_tokens=special)
        assert found is None or found == backend.encode(text, add_special_tokens=special).ids
    return found is not None


@pytest.fixture(params=PUBLISHED, scope="module")
def published(request):
    backend = tokenizer_of(request.param)._backend
    return backend, WordEncoder(backend)


@given(text=TEXTS)
@example(text="It's 12,345 o'clock -- WE'LL see:\n\n\tdef f(x): return x[0]  # done\r\n")
@example(text="Straße, naïve, ÉTÉ; Привет, мир! 你好，世界。 カタカナ 한국어 ½ «x» \u00a0 \u2028end ")
def test_published_tokenizers(published, text):
    check(*published, text)


def test_ordinary_texts_are_known(published):
    backend, known = published
    for text in (
        "The capital of France is Paris.\n",
        "def f(x):\n    return x + 1\n",
        "Übermäßig schön, ça va; Привет!",
    ):
        assert check(backend, known, text)


def test_added_tokens_are_found_where_the_library_finds_them(published):
    backend, known = published
    added = sorted(token.content for token in backend.get_added_tokens_decoder().values())[:40]
    for first, second in zip(added, added[1:] + added[:1], strict=True):
        for text in (f"a{first}b", f" {first}{second} ", first[:-1] + second, f"{first} \n{second}\n\n"):
            check(backend, known, text)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
@given(text=TEXTS)
@example(text="<bos>the 123456 <think> it's  ab\n")
def test_every_split_rule(pre, text):
    backend, known = SPLIT[pre]
    check(backend, known, text)


SPLIT = {pre: (backend, WordEncoder(backend)) for pre in sorted(PRE_TOKENIZERS) for backend in (byte_level(pre),)}


def test_frames_of_special_tokens():
    backend = byte_level("llama3")
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> <bos> $A <eos>", pair="$A $B", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    assert check(backend, WordEncoder(backend), "the end")


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_added_tokens_that_look_around_are_the_library_s(flags):
    backend = byte_level("qwen2")
    backend.add_tokens([AddedToken("<mask>", normalized=False, **flags)])
    known = WordEncoder(backend)
    assert known.encode("a <mask> b", add_special_tokens=False) is None
    assert check(backend, known, "a <mas b")


def test_tokens_that_are_normalised_come_second():
    backend = byte_level("gpt-2")
    backend.add_tokens([AddedToken("  x", normalized=True), AddedToken(" x<bos", normalized=True)])
    known = WordEncoder(backend)
    for text in ("a  x<bos>", " x<bos", "  x<bos>  x", "<think>  x"):
        assert check(backend, known, text)


def test_what_is_not_certain_is_left_to_the_library(monkeypatch):
    backend = byte_level("qwen2")
    known = WordEncoder(backend)
    cut = []
    monkeypatch.setattr(word_encoder, "_words", lambda part, cuts: cut.append(part) or [part])
    newer = next(chr(code) for code in range(0x370, 0x3400) if unicodedata.category(chr(code)) != "Cn"
                 and unicodedata.ucd_3_2_0.category(chr(code)) == "Cn")  # fmt: skip
    for text in (newer, "e\u0301", "\U0001f600"):
        assert check(backend, known, text)
    for text in ("\ud800", "x" * (MAX_NEW_CHARACTERS + 1)):
        assert known.encode(text, add_special_tokens=False) is None
    assert not cut


def test_a_conversation_is_encoded_once(monkeypatch):
    backend = byte_level("qwen2")
    known = WordEncoder(backend)
    cut = []
    cut_words = word_encoder._words
    monkeypatch.setattr(word_encoder, "_words", lambda part, cuts: cut.append(part) or cut_words(part, cuts))
    turns = ["<bos>", "the system", "<think>", "question 12", "<think>", "an answer" * (MAX_NEW_CHARACTERS // 20)]
    assert check(backend, known, "".join(turns))
    assert cut == turns[1::2]
    turns += ["<think>", "more " * (MAX_NEW_CHARACTERS // 6)]
    assert check(backend, known, "".join(turns))
    assert cut == turns[1::2]


def _other(change) -> HubBackend:
    backend = plain()
    change(backend)
    return backend


def _set(**parts):
    return lambda backend: [setattr(backend, name, part) for name, part in parts.items()]


OTHERS = {
    "its model is not BPE": _set(model=models.WordPiece({"a": 0}, unk_token="a")),
    "it drops merges at random": lambda backend: setattr(backend.model, "dropout", 0.5),
    "it cuts special tokens": _set(encode_special_tokens=True),
    "it normalises by Lowercase": _set(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "its last step is Whitespace": _set(pre_tokenizer=pre_tokenizers.Whitespace()),
    "its last step is ByteLevel": _set(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "it does not cut": lambda backend: setattr(backend, "pre_tokenizer", None),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_tokenizers_have_a_reason(reason):
    assert reason in why_not(_other(OTHERS[reason]))


@pytest.mark.parametrize(
    "pattern", ["(a)", r"\bx", r"[\S]", r"[a[b]]", r"[a&&b]", r"\p{Han}", r"(?<=a)b", r"\d+", "(?P<n>a)"]
)
def test_other_patterns_are_refused(pattern):
    with pytest.raises(NotImplementedError):
        written_out(pattern, wide=False)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(word_encoder, "MAX_WORDS", 10)
    monkeypatch.setattr(word_encoder, "MAX_PARTS_CHARACTERS", 100)
    backend = byte_level("gpt-2")
    known = WordEncoder(backend)
    for number in range(60):
        assert check(backend, known, f"w{'a' * number}")
        assert len(known._words) <= 10
        assert max(map(len, known._words)) <= word_encoder.MAX_WORD_CHARACTERS < 60
        assert sum(map(len, known._parts)) == known._parts_characters <= 100


def test_the_tokenizer_uses_it():
    tokenizer = HubTokenizer(byte_level("qwen2"))
    text = "the 12 <think>"
    assert tokenizer.encode_known(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode_known("\ud83d", add_special_tokens=False) is None
    assert tokenizer.encode("\ud83d", add_special_tokens=False) == tokenizer.encode_batch(["\ud83d"])[0]
