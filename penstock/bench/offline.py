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
from penstock.types.request import SamplingParams

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyWorkload:
    """Random prompts of ``input_len`` tokens, all sent at once, ``output_len`` greedy tokens each."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    input_len: int = 128
    output_len: int = 64
    repeats: int = 3
    seed: int = 0


def measure_latency(llm: LLM, workload: LatencyWorkload, command: str, progress: Progress) -> Report:
    """Decode step time and prefill time per batch size.

    Two runs per repeat: one of a single token (prefill), one of ``output_len`` more. Their difference is the decode
    time, so that start and end effects cancel. Medians over interleaved repeats; prompts never repeat, so the prefix
    cache cannot help.
    """
    prefill: dict[int, list[float]] = {batch: [] for batch in workload.batch_sizes}
    decode: dict[int, list[float]] = {batch: [] for batch in workload.batch_sizes}
    seed = workload.seed
    _timed_run(llm, workload, 2, 8, seed)  # first-use costs
    for repeat in range(workload.repeats):
        for batch in workload.batch_sizes:
            progress(f"repeat {repeat + 1} of {workload.repeats}, batch {batch}")
            seed += 1
            short = _timed_run(llm, workload, batch, 1, 2 * seed)
            long = _timed_run(llm, workload, batch, 1 + workload.output_len, 2 * seed + 1)
            prefill[batch].append(short)
            decode[batch].append(max(long - short, 1e-9))
    rows = tuple(_latency_row(workload, batch, prefill[batch], decode[batch]) for batch in workload.batch_sizes)
    return Report(
        name="latency",
        command=command,
        workload=_as_dict(workload),
        rows=rows,
        engine=engine_record(llm.info),
        notes=("medians; decode = time of 1 + output_len tokens minus time of 1 token",),
    )


def _timed_run(llm: LLM, workload: LatencyWorkload, batch: int, num_tokens: int, seed: int) -> float:
    prompts = random_prompts(batch, workload.input_len, llm.info.model.vocab_size, seed)
    return _timed(llm, prompts, num_tokens)


def _timed(llm: LLM, prompts: Sequence[str] | Sequence[Sequence[int]], num_tokens: int) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    started = time.perf_counter()
    llm.generate(prompts, params)
    return time.perf_counter() - started


def _latency_row(
    workload: LatencyWorkload, batch: int, prefill: Sequence[float], decode: Sequence[float]
) -> dict[str, Any]:
    step_s = statistics.median(decode) / workload.output_len
    prefill_s = statistics.median(prefill)
    return {
        "batch": batch,
        "decode_step_ms": round(step_s * 1000, 3),
        "decode_step_ms_min": round(min(decode) / workload.output_len * 1000, 3),
        "decode_tokens_per_s": round(batch / step_s, 1),
        "prefill_ms": round(prefill_s * 1000, 2),
        "prefill_tokens_per_s": round(batch * workload.input_len / prefill_s, 1),
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
    _timed_run(llm, LatencyWorkload(input_len=workload.input_len), 2, 8, workload.seed)
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
        workload=_as_dict(workload) | {"prompts": "file" if prompts else "random"},
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


def _as_dict(workload: LatencyWorkload | ThroughputWorkload) -> dict[str, Any]:
    return {name: getattr(workload, name) for name in workload.__dataclass_fields__}
