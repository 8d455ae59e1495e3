"""Tiny tokenizers of every kind, trained or spelled out here, for tests that need no model files."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from penstock.frontend.text.pretokenizers import pre_tokenizer
from penstock.frontend.text.tokenizer import HubTokenizer, set_sequence_ends
from penstock.frontend.text.vocabularies import TokenType, Vocabulary, build_byte_level, build_sentencepiece

CORPUS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(left, right):\n    return left + right  # 12345 67",
    "Größe, naïve café, übermäßig; съешь ещё этих мягких булок",
    "日本語のテキストと漢字、한국어 텍스트，中文文本。",
    "🙂🚀 emoji 👩‍👩‍👧 and flags 🇩🇪🇫🇷",
    "   spaces\t\ttabs\r\n\r\nlines ...!!! don't WE'LL I'm",
]


def ends_inside_a_character(data: bytes) -> bool:
    """Whether the last bytes begin a character and do not end it, by what a strict decoder says of them alone."""
    for length in range(1, min(3, len(data)) + 1):
        try:
            data[-length:].decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start == 0 and error.reason == "unexpected end of data":
                return True
    return False


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@cache
def trained_byte_level() -> Tokenizer:
    """Byte-level BPE with three special tokens and one plain added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def byte_level_parts() -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Tokens, types and merges of the trained byte-level tokenizer, as a GGUF file would store them."""
    import json

    state = json.loads(trained_byte_level().to_str())
    vocab = trained_byte_level().get_vocab(with_added_tokens=True)
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    types = [3 if token in SPECIAL else 4 if token == "<think>" else 1 for token in tokens]
    return tokens, types, [tuple(merge) for merge in state["model"]["merges"]]


@cache
def byte_level_tokenizer(pre: str = "gpt-2") -> HubTokenizer:
    tokens, types, merges = byte_level_parts()
    backend = build_byte_level(Vocabulary(tokens=tokens, types=types), merges, pre_tokenizer(pre))
    return HubTokenizer(backend, bos_token_id=1, eos_token_id=2)


def sentencepiece_parts() -> tuple[list[str], list[float], list[int]]:
    """A scored vocabulary with byte tokens, letters and a few merged words."""
    words = ["▁the", "▁cap", "ital", "▁capital", "▁of", "▁is", "▁Paris", "in", "an", "▁▁", "▁▁▁▁", "ar", "is", "Par"]
    pieces = {word[:cut] for word in words for cut in range(2, len(word) + 1)}
    letters = sorted({letter for text in CORPUS for letter in text if letter.isalnum() and ord(letter) < 0x250} | {"▁"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    merged = sorted(pieces | set(words), key=lambda piece: (len(piece), piece))
    tokens += merged + letters
    types += [TokenType.NORMAL] * (len(merged) + len(letters))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(merged) + len(letters))]
    return tokens, scores, [int(kind) for kind in types]


@cache
def sentencepiece_tokenizer(add_space_prefix: bool = True) -> HubTokenizer:
    tokens, scores, types = sentencepiece_parts()
    backend = build_sentencepiece(
        Vocabulary(tokens=tokens, types=types), scores, add_space_prefix=add_space_prefix, unknown_token="<unk>"
    )
    set_sequence_ends(backend, bos="<s>", eos=None)
    return HubTokenizer(backend, bos_token_id=1, eos_token_id=2)


@cache
def metaspace_tokenizer() -> HubTokenizer:
    """A decoder that takes the first space away without byte fallback."""
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0), ("b", -2.5), ("é", -3.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return HubTokenizer(backend)


TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "sentencepiece_without_prefix": lambda: sentencepiece_tokenizer(False),
    "metaspace": metaspace_tokenizer,
}


def id_of(tokenizer: HubTokenizer, token: str) -> int:
    """The id of a token by its stored text."""
    found = tokenizer._backend.token_to_id(token)
    assert found is not None, token
    return found
