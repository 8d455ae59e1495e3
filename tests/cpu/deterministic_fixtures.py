"""A llama with random weights and what its deterministic mode promises: a request's tokens are its own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock import LLM, SamplingParams
from penstock.types.control import ResetPrefixCache

VOCAB = 4096
Tokens = list[tuple[int, ...]]


def save_config(directory: Path, *, dtype: str, hidden_size: int, layers: int) -> None:
    """Weights are dummy ones. Their logits lie so close together that a different last bit shows in the tokens."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "vocab_size": VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
        "num_key_value_heads": hidden_size // 128,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))


def random_prompts(count: int, longest: int) -> Tokens:
    dice = random.Random(7)
    return [tuple(dice.randrange(VOCAB) for _ in range(dice.randint(5, longest))) for _ in range(count)]


def start(directory: Path, **options: Any) -> LLM:
    return LLM(str(directory), load_format="dummy", seed=3, deterministic=True, **options)


def tokens_of(llm: LLM, prompts: Tokens, params: Sequence[SamplingParams], *, together: bool = True) -> Tokens:
    """Of each prompt's answer; nothing is taken from the prefix cache but what they share."""
    llm.control(ResetPrefixCache())
    if together:
        answers = llm.generate(prompts, params)
    else:
        answers = [llm.generate([prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]
    return [answer.outputs[0].token_ids for answer in answers]


def sampling(count: int, max_tokens: int, **changes: Any) -> list[SamplingParams]:
    values = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True} | changes
    return [SamplingParams(**values) for _ in range(count)]
