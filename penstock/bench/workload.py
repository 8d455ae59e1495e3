"""Prompts to measure with: seeded random token ids, or a file. Knows no engine and no server."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import ConfigError

FIRST_RANDOM_ID = 100  # below it stand special tokens in the usual vocabularies


def random_prompts(num_prompts: int, prompt_len: int, vocab_size: int, seed: int) -> list[list[int]]:
    """``num_prompts`` lists of ``prompt_len`` token ids, no two alike, the same for the same seed."""
    generator = random.Random(seed)
    low = min(FIRST_RANDOM_ID, vocab_size - 1)
    return [[generator.randrange(low, vocab_size) for _ in range(prompt_len)] for _ in range(num_prompts)]


def random_texts(num_prompts: int, num_words: int, seed: int) -> list[str]:
    """``num_prompts`` texts of made-up words, for servers that take only text; about two tokens a word."""
    generator = random.Random(seed)

    def word() -> str:
        return "".join(generator.choice("bdfklmnprstvz") + generator.choice("aeiou") for _ in range(2))

    return [" ".join(word() for _ in range(num_words)) for _ in range(num_prompts)]


def file_prompts(path: Path, num_prompts: int) -> list[str]:
    """Prompts from a file: JSON lines with a "prompt" (or "text") field, a JSON list of strings, or plain lines.

    Repeats the file when it has fewer than ``num_prompts``. Raises ConfigError when there is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read prompts from {path}: {error.strerror}.") from error
    prompts = _parse(text, path)
    if not prompts:
        raise ConfigError(f"{path} holds no prompts. Give JSON lines with a 'prompt' field, or one prompt per line.")
    return [prompts[i % len(prompts)] for i in range(num_prompts)]


def _parse(text: str, path: Path) -> list[str]:
    if path.suffix == ".json":
        return [_text_of(entry, path) for entry in _json(text, path)]
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        return [_text_of(_json(line, path), path) for line in lines]
    return lines


def _json(text: str, path: Path) -> Sequence[object]:
    try:
        value: Sequence[object] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    return value


def _text_of(entry: object, path: Path) -> str:
    if isinstance(entry, dict):
        entry = entry.get("prompt", entry.get("text"))
    if not isinstance(entry, str):
        raise ConfigError(f"{path}: each entry must be a string or have a 'prompt' field, found {entry!r:.80}.")
    return entry
