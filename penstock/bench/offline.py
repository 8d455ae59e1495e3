"""Offline benchmarks over the ``LLM`` API: step latency by batch size, and request throughput."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.bench.report import Report, engine_record, percentile
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
class _Decode:
    """The steps of one run in which every row decoded: seconds of each, and tokens per second of all together."""

    steps_s: tuple[float, ...]
    tokens_per_s: float


def measure_latency(
    llm: LLM, workload: LatencyWorkload, command: str, progress: Progress, texts: Sequence[str] | None = None
) -> Report:
    """Decode and prefill speed per batch size; a batch of n takes the first n of ``texts`` if there are some.

    Nothing is subtracted: tokens carry the time at which they were there. Decoding is measured between the moment at
    which the last row had its first token and the one at which the first row was done. Prefill is a run of its own, of
    one token per row, from the hand-over to the last row's token. The prefix cache is emptied before each run.
    Medians and extremes over interleaved repeats.
    """
    decodes: dict[int, list[_Decode]] = {batch: [] for batch in workload.batch_sizes}
    prefills: dict[int, list[float]] = {batch: [] for batch in workload.batch_sizes}
    tokens: dict[int, int] = {}
    vocab_size = llm.info.model.vocab_size
    _times(llm, random_prompts(2, workload.input_len, vocab_size, workload.seed), 8)  # first-use costs
    for repeat in range(workload.repeats):
        for batch in workload.batch_sizes:
            progress(f"repeat {repeat + 1} of {workload.repeats}, batch {batch}")
            seed = workload.seed + 1 + repeat
            prompts = texts[:batch] if texts else random_prompts(batch, workload.input_len, vocab_size, seed)
            before = llm.stats().prompt_tokens
            started, arrivals = _times(llm, prompts, 1)
            prefills[batch].append(max(times[0] for times in arrivals) - started)
            tokens[batch] = llm.stats().prompt_tokens - before
            decodes[batch].append(_decode(_times(llm, prompts, 1 + workload.output_len)[1]))
    return Report(
        name="latency",
        command=command,
        workload=_described(workload, from_file=bool(texts)),
        rows=tuple(
            _latency_row(batch, decodes[batch], prefills[batch], tokens[batch]) for batch in workload.batch_sizes
        ),
        engine=engine_record(llm.info),
        notes=(
            "medians over repeats, and in brackets the extremes; steps are those in which all rows decode, p50 and p95 "
            "of all repeats together",
        ),
    )


def _times(
    llm: LLM, prompts: Sequence[str] | Sequence[Sequence[int]], num_tokens: int
) -> tuple[float, list[tuple[float, ...]]]:
    llm.control(ResetPrefixCache())
    return llm.time_tokens(prompts, SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True))


def _decode(arrivals: Sequence[Sequence[float]]) -> _Decode:
    """``arrivals``: when each token of each row was there. The row that began last is the clock: every step since then
    gave every row a token, until the first row was done.

    Rows of one step are told apart by microseconds, hence the half step. A row that has all its tokens before another
    has its first leaves no such steps: NaN.
    """
    clock = max(arrivals, key=lambda times: times[0])
    steps = [after - before for before, after in itertools.pairwise(clock)]
    if not steps:
        return _Decode((), math.nan)
    end = min(times[-1] for times in arrivals) + statistics.median(steps) / 2
    together = tuple(step for step, moment in zip(steps, clock[1:], strict=True) if moment <= end)
    return _Decode(together, len(arrivals) * len(together) / sum(together) if together else math.nan)


def _latency_row(
    batch: int, decodes: Sequence[_Decode], prefills: Sequence[float], prompt_tokens: int
) -> dict[str, Any]:
    steps = [step for decode in decodes for step in decode.steps_s]
    rates = [prompt_tokens / seconds for seconds in prefills]
    return {
        "batch": batch,
        "decode_tokens_per_s": round(statistics.median(decode.tokens_per_s for decode in decodes), 1),
        "decode_tokens_per_s_range": _range([decode.tokens_per_s for decode in decodes]),
        "decode_step_ms_p50": round(percentile(steps, 50) * 1000, 3),
        "decode_step_ms_p95": round(percentile(steps, 95) * 1000, 3),
        "prompt_tokens": prompt_tokens,
        "prefill_ms": round(statistics.median(prefills) * 1000, 2),
        "prefill_tokens_per_s": round(statistics.median(rates), 1),
        "prefill_tokens_per_s_range": _range(rates),
    }


def _range(values: Sequence[float]) -> str:
    return f"({min(values):.1f} to {max(values):.1f})"


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

    The prefix cache is emptied before each run. The note has the median run; the rows are all of them.
    """
    _times(llm, random_prompts(2, workload.input_len, llm.info.model.vocab_size, workload.seed), 8)  # first-use costs
    rows: list[dict[str, Any]] = []
    for repeat in range(workload.repeats):
        progress(f"repeat {repeat + 1} of {workload.repeats}")
        work: list[str] | list[list[int]]
        work = prompts or random_prompts(
            workload.num_prompts, workload.input_len, llm.info.model.vocab_size, workload.seed + repeat + 1
        )
        params = SamplingParams(temperature=0.0, max_tokens=workload.output_len, ignore_eos=True)
        llm.control(ResetPrefixCache())
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
        notes=(_throughput_note(rows),),
    )


def _throughput_note(rows: Sequence[dict[str, Any]]) -> str:
    output = [row["output_tokens_per_s"] for row in rows]
    total = statistics.median(row["total_tokens_per_s"] for row in rows)
    return f"median: {statistics.median(output):,.1f} output tokens/s {_range(output)}, {total:,.1f} tokens/s in all"


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
