"""Offline benchmarks over the ``LLM`` API: step latency by batch size, and request throughput."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.bench.report import Report, engine_record
from penstock.bench.workload import random_prompts
from penstock.engine.llm import LLM
from penstock.types.control import ResetPrefixCache
from penstock.types.request import SamplingParams

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyWorkload:
    """Prompts of a file, or random ones of ``input_len`` tokens; all at once, ``output_len`` greedy tokens each."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    input_len: int = 128
    output_len: int = 64
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds from the first hand-over to the last token, what the executor spent of them, and tokens of prompts."""

    seconds: float
    forward_s: float
    sample_s: float
    prompt_tokens: int


def measure_latency(
    llm: LLM, workload: LatencyWorkload, command: str, progress: Progress, texts: Sequence[str] | None = None
) -> Report:
    """Decode step time and prefill time per batch size; a batch of n takes the first n of ``texts`` if there are some.

    Two runs of the same prompts per repeat: one of a single token (prefill), one of ``output_len`` more. Their
    difference is the decode time, so that start and end effects cancel. The prefix cache is emptied before each run.
    Medians over interleaved repeats.
    """
    pairs: dict[int, list[tuple[_Run, _Run]]] = {batch: [] for batch in workload.batch_sizes}
    vocab_size = llm.info.model.vocab_size
    _run(llm, random_prompts(2, workload.input_len, vocab_size, workload.seed), 8)  # first-use costs
    for repeat in range(workload.repeats):
        for batch in workload.batch_sizes:
            progress(f"repeat {repeat + 1} of {workload.repeats}, batch {batch}")
            seed = workload.seed + 1 + repeat
            prompts = texts[:batch] if texts else random_prompts(batch, workload.input_len, vocab_size, seed)
            pairs[batch].append((_run(llm, prompts, 1), _run(llm, prompts, 1 + workload.output_len)))
    return Report(
        name="latency",
        command=command,
        workload=_described(workload, from_file=bool(texts)),
        rows=tuple(_latency_row(batch, pairs[batch], workload.output_len) for batch in workload.batch_sizes),
        engine=engine_record(llm.info),
        notes=(
            "medians; decode = time of 1 + output_len tokens minus time of 1 token; of a decode step, forward_ms and "
            "sample_ms are the executor's",
        ),
    )


def _run(llm: LLM, prompts: Sequence[str] | Sequence[Sequence[int]], num_tokens: int) -> _Run:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    llm.control(ResetPrefixCache())
    before = llm.stats()
    started = time.perf_counter()
    answers = llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    after = llm.stats()
    return _Run(
        seconds,
        after.forward_s - before.forward_s,
        after.sample_s - before.sample_s,
        sum(len(answer.prompt_token_ids) for answer in answers),
    )


def _latency_row(batch: int, pairs: Sequence[tuple[_Run, _Run]], output_len: int) -> dict[str, Any]:
    steps_s = [max(long.seconds - short.seconds, 1e-9) / output_len for short, long in pairs]
    forward_s = statistics.median(long.forward_s - short.forward_s for short, long in pairs) / output_len
    sample_s = statistics.median(long.sample_s - short.sample_s for short, long in pairs) / output_len
    step_s = statistics.median(steps_s)
    prefill_s = statistics.median(short.seconds for short, _ in pairs)
    prompt_tokens = pairs[0][0].prompt_tokens
    return {
        "batch": batch,
        "decode_step_ms": round(step_s * 1000, 3),
        "decode_step_ms_min": round(min(steps_s) * 1000, 3),
        "forward_ms": round(forward_s * 1000, 3),
        "sample_ms": round(sample_s * 1000, 3),
        "decode_tokens_per_s": round(batch / step_s, 1),
        "prompt_tokens": prompt_tokens,
        "prefill_ms": round(prefill_s * 1000, 2),
        "prefill_tokens_per_s": round(prompt_tokens / prefill_s, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputWorkload:
    """``num_prompts`` requests handed over at once; the engine batches them as it likes."""

    num_prompts: int = 64
    input_len: int = 128
    output_len: int = 64
    repeats: int = 3
    seed: int = 0


def measure_throughput(
    llm: LLM, workload: ThroughputWorkload, command: str, progress: Progress, prompts: list[str] | None = None
) -> Report:
    """Requests and tokens per second, from the first hand-over to the last token. Median run of ``repeats``.

    With ``prompts`` from a file the prefix cache may help in later repeats; the report shows every run.
    """
    _run(llm, random_prompts(2, workload.input_len, llm.info.model.vocab_size, workload.seed), 8)  # first-use costs
    rows: list[dict[str, Any]] = []
    for repeat in range(workload.repeats):
        progress(f"repeat {repeat + 1} of {workload.repeats}")
        work: list[str] | list[list[int]]
        work = prompts or random_prompts(
            workload.num_prompts, workload.input_len, llm.info.model.vocab_size, workload.seed + repeat + 1
        )
        params = SamplingParams(temperature=0.0, max_tokens=workload.output_len, ignore_eos=True)
        started = time.perf_counter()
        answers = llm.generate(work, params)
        elapsed = time.perf_counter() - started
        prompt_tokens = sum(len(answer.prompt_token_ids) for answer in answers)
        output_tokens = sum(len(choice.token_ids) for answer in answers for choice in answer.outputs)
        rows.append(_throughput_row(repeat, len(work), prompt_tokens, output_tokens, elapsed))
    return Report(
        name="throughput",
        command=command,
        workload=_described(workload, from_file=bool(prompts)),
        rows=tuple(rows),
        engine=engine_record(llm.info),
    )


def _throughput_row(run: int, requests: int, prompt_tokens: int, output_tokens: int, elapsed: float) -> dict[str, Any]:
    return {
        "run": run + 1,
        "requests_per_s": round(requests / elapsed, 3),
        "output_tokens_per_s": round(output_tokens / elapsed, 1),
        "total_tokens_per_s": round((prompt_tokens + output_tokens) / elapsed, 1),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "seconds": round(elapsed, 3),
    }


def _described(workload: LatencyWorkload | ThroughputWorkload, *, from_file: bool) -> dict[str, Any]:
    fields = {name: getattr(workload, name) for name in workload.__dataclass_fields__}
    if from_file:
        del fields["input_len"], fields["seed"]
    return fields | {"prompts": "file" if from_file else "random"}
