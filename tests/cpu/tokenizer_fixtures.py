"""Vocabularies of every kind, written as GGUF files and as hub directories, for comparison with transformers."""

from __future__ import annotations

import json
import string
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXTS = (
    "The capital of France is Paris, and 12345 + 678 = 13023.",
    "def add(left, right):\n\treturn left + right  # don't WE'LL I'm",
    "Größe, naïve café, übermäßig; съешь ещё этих мягких булок",
    "日本語のテキストと漢字、한국어 텍스트，中文文本。",
    "🙂🚀 emoji 👩‍👩‍👧 and flags 🇩🇪🇫🇷",
    "a   spaces\t\ttabs\r\n\r\nlines ...!!! x",
    "camelCase HTTPServer /path/to//file ﬁ e\u0301 ¾ x² ٣٤",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECES = st.one_of(
    st.sampled_from([" ", "  ", "\n", "\r\n", "'s", "'LL", "12", "3456", "the", "Paris", "é", "漢", "🚀", "...", "_a"]),
    st.sampled_from([*string.ascii_letters, *string.punctuation]),
    st.characters(min_codepoint=32, exclude_categories=("Cs", "Cn", "Co")),
)
RANDOM_TEXT = st.lists(PIECES, max_size=20).map("".join)


def transformers_tokenizer(path: Path) -> Any:
    """What transformers makes of a GGUF file, the caller's own: reading one takes seconds, and is done once."""
    return deepcopy(_read_by_transformers(path))


@cache
def _read_by_transformers(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@cache
def byte_level_parts() -> tuple[list[str], list[int], list[str]]:
    """Tokens, GGUF types and merges of a byte-level BPE trained without splits, so that every split rule matters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        max_token_length=8,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "1 12 123 1234 12 123 the the The s 'll ll  a   b"] * 3, trainer)
    tokenizer.add_tokens(["<think>"])
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=lambda token: vocab[token])
    types = [3 if token in SPECIAL else 4 if token == "<think>" else 1 for token in tokens]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return tokens, types, merges


@cache
def sentencepiece_parts(gemma: bool = False) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and GGUF types of a byte-fallback vocabulary with overlapping merges."""
    words = ["▁the", "▁capital", "▁of", "▁is", "▁Paris", "▁▁▁▁", "▁France", "▁and", "in", "an", "ar", "is", "on", "re"]
    words += ["user", "assistant", "system", "INST"]
    merged = sorted(
        {word[a:b] for word in words for a in range(len(word)) for b in range(a + 2, len(word) + 1)}, key=len
    )
    letters = [letter for letter in string.printable.strip() if letter != " "] + ["▁", "é", "漢"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    types = [3, 3, 3, 2] if gemma else [2, 3, 3]
    tokens = [*special, *(f"<0x{value:02X}>" for value in range(256))]
    types = [*types, *[6] * 256]
    if gemma:
        tokens += ["<start_of_turn>", "<end_of_turn>", "\n\n", "  ", "   "]
        types += [3, 3, 4, 4, 4]
    tokens += [*merged, *letters]
    types += [1] * (len(merged) + len(letters))
    return tokens, [-float(rank) for rank in range(len(tokens))], types


def write_gguf(path: Path, architecture: str, keys: dict[str, Any]) -> None:
    """A GGUF file with these ``tokenizer.ggml.*`` keys and no tensors. ``chat_template`` goes to its own key."""
    writer = GGUFWriter(path, architecture)
    if "chat_template" in keys:
        writer.add_chat_template(keys.pop("chat_template"))
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_keys(pre: str, **more: Any) -> dict[str, Any]:
    tokens, types, merges = byte_level_parts()
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, **ends, **more}


def sentencepiece_keys(gemma: bool = False, **more: Any) -> dict[str, Any]:
    tokens, scores, types = sentencepiece_parts(gemma)
    ends = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3} if gemma else {}
    ends = ends or {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, **ends, **more}
