"""Minutes of random traffic on a card: whatever comes in whatever order, everybody is answered once and nothing leaks.

PENSTOCK_SOAK_SECONDS says for how long (default 20); what came of it is logged (--log-cli-level=info). The core checks
its invariants after every step. The cache holds a few of the longest requests, so that much is preempted, and prompts
share beginnings.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from penstock.engine.build import build_for_llm
from penstock.engine.inproc import InProcessClient
from penstock.types.control import CheckIntegrity
from penstock.types.output import FinishReason, Terminal, TokenUpdate
from penstock.types.request import GenerateRequest, SamplingParams

log = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS", "20"))
VOCAB = 8000
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
BLOCK_BYTES = 4 * 2 * 2 * 64 * 2 * 16  # layers, keys and values, heads, head_dim, bfloat16, tokens
OPTIONS: dict[str, Any] = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "block_size": 16,
    "max_model_len": 2048,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 1024,
    "kv_cache_memory": 200 * BLOCK_BYTES,
    "check_integrity": True,
    "seed": 0,
}
LONGEST_PROMPT, MOST_TOKENS, MOST_OPEN = 1500, 400, 80
PHASE_SECONDS = 1.5

Kinds = tuple[dict[str, Any], ...]
GREEDY: Kinds = ({"temperature": 0.0}, {"temperature": 0.0, "stop_token_ids": tuple(range(100, 400))})
DRAWN: Kinds = ({}, {"temperature": 1.3, "top_p": 0.9}, {"temperature": 0.8, "top_k": 20}, {"min_p": 0.05, "seed": 4})
CAREFUL: Kinds = (
    {"typical_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "bad_token_ids": ((5,), (7, 9))},
    {"temperature": 0.0, "logprobs": 3},
    {"prompt_logprobs": 1},
    {"stop_token_ids": tuple(range(4000)), "min_tokens": 3},
)
PHASES = (GREEDY, GREEDY + DRAWN, GREEDY + DRAWN, GREEDY + DRAWN + CAREFUL)


@dataclass
class Life:
    """One request, and what came of it. Filled in the engine's thread."""

    request: GenerateRequest
    updates: list[TokenUpdate] = field(default_factory=list)
    terminals: list[Terminal] = field(default_factory=list)
    is_aborted: bool = False

    def on_news(self, updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
        assert not self.terminals, "something came after the terminal"
        self.updates += updates
        if terminal is not None:
            self.terminals.append(terminal)

    @property
    def tokens(self) -> list[int]:
        return [token for update in self.updates for token in update.token_ids]


class Traffic:
    def __init__(self, client: InProcessClient, random: Random) -> None:
        self._client, self._random = client, random
        self.lives: list[Life] = []
        self._beginnings = [[random.randrange(VOCAB) for _ in range(LONGEST_PROMPT)] for _ in range(4)]
        self._favourites = [(self._prompt(), random.randint(1, 120)) for _ in range(12)]

    def _prompt(self) -> tuple[int, ...]:
        random = self._random
        length = int(LONGEST_PROMPT ** random.random())
        shared = random.choice(self._beginnings)[: random.randrange(length + 1)]
        return (*shared, *(random.randrange(VOCAB) for _ in range(max(1, length - len(shared)))))[:LONGEST_PROMPT]

    def arrive(self, kinds: Kinds) -> None:
        """One prompt, sometimes several answers of it."""
        random = self._random
        if random.random() < 0.2:
            prompt, max_tokens = random.choice(self._favourites)
            kind = GREEDY[0]
        else:
            prompt, max_tokens = self._prompt(), 1 + int(MOST_TOKENS * random.random() ** 2)
            kind = random.choice(kinds)
        sampling = SamplingParams(**{**kind, "max_tokens": max(max_tokens, kind.get("min_tokens", 1))})
        for _ in range(random.choice((1, 1, 1, 1, 2, 4))):
            life = Life(
                GenerateRequest(
                    request_id=self._client.new_request_id(),
                    prompt_token_ids=prompt,
                    sampling=sampling,
                    arrival_time=time.monotonic(),
                )
            )
            self.lives.append(life)
            self._client.submit(life.request, life.on_news)

    def abort_some(self) -> None:
        chosen = self._random.sample(self.open, min(2, len(self.open)))
        for life in chosen:
            life.is_aborted = True
        self._client.abort([life.request.request_id for life in chosen])

    @property
    def open(self) -> list[Life]:
        return [life for life in self.lives[-1000:] if not life.terminals]

    def flow(self, seconds: float) -> None:
        random, end = self._random, time.monotonic() + seconds
        next_phase, kinds = 0.0, GREEDY
        while (now := time.monotonic()) < end:
            if now >= next_phase:
                next_phase, kinds = now + PHASE_SECONDS, random.choice(PHASES)
            if len(self.open) < random.randint(1, MOST_OPEN):
                self.arrive(kinds)
            if random.random() < 0.01:
                self.abort_some()
            if self._client.health():
                return
            time.sleep(random.choice((0.0, 0.001, 0.005, 0.02)))

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end and not self._client.health():
            time.sleep(0.01)


def check_life(life: Life) -> None:
    (terminal,) = life.terminals
    sampling, tokens = life.request.sampling, life.tokens
    assert terminal.failure is None, terminal
    assert terminal.num_output_tokens == len(tokens)
    assert all(0 <= token < VOCAB for token in tokens)
    assert sampling.max_tokens is not None
    if terminal.reason is FinishReason.ABORT:
        assert life.is_aborted
        return
    if terminal.reason is FinishReason.STOP:
        assert tokens[-1] == terminal.stop_token_id in sampling.stop_token_ids
        assert len(tokens) > sampling.min_tokens
    else:
        assert terminal.reason is FinishReason.LENGTH
        assert len(tokens) == sampling.max_tokens
    if sampling.logprobs is not None:
        assert sum(len(update.logprobs) for update in life.updates) == len(tokens)
    if sampling.prompt_logprobs is not None:
        described = sum(len(update.prompt_logprobs) for update in life.updates)
        assert described == len(life.request.prompt_token_ids) - 1


def compare_repeats(lives: Sequence[Life]) -> tuple[int, int]:
    """Answers of the same greedy request have one length and one reason. Answers how many there are, and how many of
    them differ in a token: logits are rounded to 16 bits, in sums that depend on what is computed beside them."""
    first: dict[tuple[Any, ...], Life] = {}
    compared = different = 0
    for life in lives:
        sampling = life.request.sampling
        if life.is_aborted or not sampling.greedy or sampling.stop_token_ids:
            continue
        key = life.request.prompt_token_ids, sampling.max_tokens, sampling.repetition_penalty
        other = first.setdefault(key, life)
        if other is not life:
            compared += 1
            different += other.tokens != life.tokens
            assert len(other.tokens) == len(life.tokens)
            assert other.terminals[0].reason is life.terminals[0].reason
    return compared, different


@pytest.fixture
def client(tmp_path: Path) -> Iterator[InProcessClient]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    client, _ = build_for_llm({"model": str(tmp_path), **OPTIONS})
    yield client
    client.stop()


def test_random_traffic(client: InProcessClient) -> None:
    traffic = Traffic(client, Random(5))
    traffic.flow(SECONDS)
    traffic.wait(120)
    assert client.health() == ""
    stats = client.stats()
    reply = client.control_now(CheckIntegrity())
    compared, different = compare_repeats([life for life in traffic.lives if life.terminals])
    reasons = Counter(life.terminals[0].reason.value for life in traffic.lives if life.terminals)
    log.info(
        "%d requests %s, %d tokens, %d steps, %d preempted, %d of %d repeats differ",
        len(traffic.lives), dict(reasons), stats.generation_tokens, stats.num_steps, stats.num_preemptions, different,
        compared,
    )  # fmt: skip
    for life in traffic.lives:
        check_life(life)
    assert reply.ok, reply.message
    assert (stats.kv_usage, stats.num_running, stats.num_waiting, stats.num_held) == (0.0, 0, 0, 0)
    assert stats.num_preemptions > 0
    assert compared > 0
