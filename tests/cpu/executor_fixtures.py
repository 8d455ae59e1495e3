"""Tiny transformers models on disk, and StepPlans made by hand, as a scheduler would make them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from penstock.executor.spec import ExecutorSpec
from penstock.loader.sources import ModelSource
from penstock.types.facts import PlatformFacts
from penstock.types.kv import KvCapacity
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import StepResult, TokenLogprobs

GREEDY = SamplingParams(temperature=0.0)
VOCAB = 211
PLATFORM = PlatformFacts(name="cpu", machine="x86_64", memory_bytes=2 << 30, memory_available_bytes=2 << 30)


def tiny_config(name: str, **changes: Any) -> Any:
    from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    shared = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # far from uniform logits, so that greedy choices are not decided by rounding
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **changes,
    }
    if name == "llama":
        return LlamaConfig(**shared)
    if name == "mistral":
        return MistralConfig(**shared, sliding_window=20)
    if name == "qwen2":
        return Qwen2Config(**{key: value for key, value in shared.items() if key != "head_dim"})
    if name == "qwen3":
        return Qwen3Config(**shared)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(**{**shared, "tie_word_embeddings": True}, sliding_window=20, layer_types=layers)


def save_tiny_model(name: str, directory: Path, **changes: Any) -> Any:
    """A random model in ``directory``, as transformers writes it; answers transformers' own, in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes), dtype=torch.float32).eval()
    model.save_pretrained(directory)
    return model


def tiny_spec(directory: Path, **changes: Any) -> ExecutorSpec:
    values: dict[str, Any] = {
        "source": ModelSource("tiny", "directory", directory),
        "platform": PLATFORM,
        "dtype": "float32",
        "max_num_seqs": 6,
        "max_num_batched_tokens": 128,
        "max_model_len": 256,
        "kv_cache_memory": 4 << 20,
        "threads": 1,
    }
    values |= changes
    # What transformers computes has an unrounded cache.
    values.setdefault("kv_cache_dtype", "float32" if values["dtype"] == "float32" else "auto")
    return ExecutorSpec(**values)


def greedy_by_transformers(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=2
        )
    return out[0, len(prompt) :].tolist()


def random_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    dice = random.Random(seed)
    return tuple(dice.randrange(3, VOCAB) for _ in range(length))


@dataclass
class Resident:
    """A seat as the plan maker believes it to be. ``num_computed`` is kept by the rules of StepPlan."""

    num_computed: int
    blocks: list[list[int]]
    first_block: list[int]


@dataclass
class PlanMaker:
    """Hands out blocks in random order and writes plans. Never frees: tests do, by name."""

    capacity: KvCapacity
    free: list[list[int]] = field(default_factory=list)
    residents: dict[int, Resident] = field(default_factory=dict)
    num_steps: int = 0
    _admitted: list[Admission] = field(default_factory=list)
    _dropped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        dice = random.Random(3)
        self.free = [dice.sample(range(count), count) for count in self.capacity.num_blocks]

    def admit(
        self,
        seat: int,
        tokens: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        num_prompt: int | None = None,
        num_computed: int = 0,
        blocks: Sequence[Sequence[int]] | None = None,
        first_block: Sequence[int] | None = None,
        request_id: int = 0,
    ) -> None:
        groups = len(self.capacity.groups)
        own = [list(ids) for ids in blocks] if blocks else [[] for _ in range(groups)]
        first = list(first_block) if first_block else [0] * groups
        self.residents[seat] = Resident(num_computed, own, first)
        self._admitted.append(
            Admission(
                seat=seat,
                request_id=request_id,
                token_ids=tuple(tokens),
                num_prompt_tokens=len(tokens) if num_prompt is None else num_prompt,
                num_computed=num_computed,
                sampling=sampling,
                block_ids=tuple(tuple(ids) for ids in own),
                first_block=tuple(first),
            )
        )

    def drop(self, seat: int) -> None:
        del self.residents[seat]
        self._dropped.append(seat)

    def plan(
        self, rows: Sequence[tuple[int, int, bool]], drafts: Sequence[Sequence[int]] = (), **more: Any
    ) -> StepPlan:
        """rows of (seat, tokens, samples). Appends the blocks that the longest outcome needs."""
        appended = []
        for place, (seat, num_tokens, _) in enumerate(rows):
            resident = self.residents[seat]
            num_drafts = len(drafts[place]) if drafts else 0
            for group, spec in enumerate(self.capacity.groups):
                have = resident.first_block[group] + len(resident.blocks[group])
                need = -(-(resident.num_computed + num_tokens + num_drafts) // spec.tokens_per_block) - have
                new = [self.free[spec.pool].pop() for _ in range(need)]
                resident.blocks[group] += new
                if new:
                    appended.append((seat, group, tuple(new)))
            resident.num_computed += num_tokens
        self.num_steps += 1
        admitted, self._admitted = self._admitted, []
        dropped, self._dropped = self._dropped, []
        return StepPlan(
            step_id=self.num_steps,
            dropped=tuple(dropped),
            admitted=tuple(admitted),
            appended=tuple(appended),
            row_seats=tuple(row[0] for row in rows),
            row_num_tokens=tuple(row[1] for row in rows),
            row_samples=tuple(row[2] for row in rows),
            row_drafts=tuple(tuple(row) for row in drafts),
            **more,
        )

    def learn(self, plan: StepPlan, result: StepResult) -> None:
        """Correct what ``plan`` assumed (one token per sampling row) by what came."""
        for seat, samples, tokens in zip(plan.row_seats, plan.row_samples, result.row_tokens, strict=True):
            if samples and seat in self.residents:
                self.residents[seat].num_computed += len(tokens) - 1


def run_alone(executor: Any, maker: PlanMaker, seat: int, prompt: Sequence[int], count: int, **admit: Any) -> list[int]:
    """Prefill and decode one request, one plan at a time, ending with a drop."""
    return describe_alone(executor, maker, seat, prompt, count, **admit)[0]


def describe_alone(
    executor: Any, maker: PlanMaker, seat: int, prompt: Sequence[int], count: int, **admit: Any
) -> tuple[list[int], list[TokenLogprobs]]:
    """``run_alone`` with the log-probabilities, for sampling parameters that ask for them."""
    maker.admit(seat, prompt, **admit)
    tokens: list[int] = []
    entries: list[TokenLogprobs] = []
    num_tokens = len(prompt) - maker.residents[seat].num_computed
    for _ in range(count):
        result = executor.step(maker.plan([(seat, num_tokens, True)])).result()
        tokens += result.row_tokens[0]
        entries += result.logprobs.get(0, ())
        num_tokens = 1
    maker.drop(seat)
    return tokens, entries


def assert_same_logprobs(got: Sequence[TokenLogprobs], want: Sequence[TokenLogprobs], tolerance: float = 1e-5) -> None:
    """The same tokens in the same order, with log-probabilities within the tolerance."""
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        assert one.token_ids == other.token_ids
        assert one.rank == other.rank
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) <= tolerance
