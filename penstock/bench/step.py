"""Where the time of a decode step goes: the core, the executor and every kernel by name, and what is left of the clock.

The counters of the engine's own statistics are used, so that what is measured is what runs in production. Kernels are
told apart in a second pass, because timing each of them costs time itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock.bench.report import Report, engine_record
from penstock.bench.workload import random_prompts
from penstock.engine.llm import LLM
from penstock.types.control import KernelTime, ResetPrefixCache, TimeKernels
from penstock.types.output import EngineStats
from penstock.types.request import SamplingParams

Progress = Callable[[str], None]

# Counter of EngineStats -> what the table calls it, in the order of a step.
_SPANS = {
    "plan_s": "core: plan",
    "inputs_s": "executor: inputs",
    "forward_s": "executor: forward",
    "sample_s": "executor: sample, result",
    "results_s": "core: take result in",
    "outputs_s": "core: updates out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWorkload:
    """Greedy decode steps of ``batch_sizes`` rows behind random prompts. ``sampled`` rows draw instead, top-p 0.95."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    input_len: int = 128
    output_len: int = 64
    repeats: int = 5
    seed: int = 0
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class _Span:
    """Seconds of ``steps`` decode steps: by the wall clock and by each counter."""

    steps: int
    seconds: float
    counters: dict[str, float]


def measure_steps(llm: LLM, workload: StepWorkload, command: str, progress: Progress) -> Report:
    """Microseconds of one decode step by component and batch size, medians over interleaved repeats.

    Each repeat decodes the same prompts twice, a few tokens and ``output_len`` more: their difference leaves prefill,
    start and end out.
    """
    spans: dict[int, list[_Span]] = {batch: [] for batch in workload.batch_sizes}
    kernels: dict[int, tuple[KernelTime, ...]] = {}
    for repeat in range(workload.repeats + 1):
        for batch in workload.batch_sizes:
            progress(f"repeat {repeat} of {workload.repeats}, batch {batch}" + ("" if repeat else ", kernel by kernel"))
            if repeat:
                spans[batch].append(_measure(llm, workload, batch, repeat))
            else:
                kernels[batch] = _time_kernels(llm, workload, batch)
    steps = workload.output_len
    return Report(
        name="step",
        command=command,
        workload=asdict(workload),
        rows=tuple(_row(batch, spans[batch], kernels[batch], steps) for batch in workload.batch_sizes),
        engine=engine_record(llm.info),
        notes=_notes(kernels),
    )


FEW = 4  # tokens of the shorter run: its rows are all decoding before it ends


def _measure(llm: LLM, workload: StepWorkload, batch: int, repeat: int) -> _Span:
    short = _run(llm, workload, batch, repeat, FEW)
    long = _run(llm, workload, batch, repeat, FEW + workload.output_len)
    counters = {name: long.counters[name] - short.counters[name] for name in _SPANS}
    return _Span(long.steps - short.steps, long.seconds - short.seconds, counters)


def _time_kernels(llm: LLM, workload: StepWorkload, batch: int) -> tuple[KernelTime, ...]:
    """Of steps in which every row decodes."""
    llm.control(TimeKernels(True))
    _run(llm, workload, batch, 0, FEW + workload.output_len)
    times = llm.control(TimeKernels(False)).kernel_times
    most = max((time.steps for time in times if time.num_tokens == batch), default=0)
    return tuple(time for time in times if time.num_tokens == batch and 2 * time.steps > most)


def _run(llm: LLM, workload: StepWorkload, batch: int, repeat: int, num_tokens: int) -> _Span:
    prompts = random_prompts(batch, workload.input_len, llm.info.model.vocab_size, workload.seed + repeat)
    drawn = {"temperature": 0.8, "top_p": 0.95, "seed": 1} if workload.sampled else {"temperature": 0.0}
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, **drawn)  # type: ignore[arg-type]
    llm.control(ResetPrefixCache())
    before = llm.stats()
    started = time.perf_counter()
    llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    after = llm.stats()
    return _Span(after.num_steps - before.num_steps, seconds, _counters(after, before))


def _counters(after: EngineStats, before: EngineStats) -> dict[str, float]:
    return {name: getattr(after, name) - getattr(before, name) for name in _SPANS}


def _row(batch: int, spans: Sequence[_Span], kernels: Sequence[KernelTime], steps: int) -> dict[str, Any]:
    wall = statistics.median(span.seconds / steps for span in spans)
    parts = {name: statistics.median(span.counters[name] / steps for span in spans) for name in _SPANS}
    other = statistics.median((span.seconds - sum(span.counters.values())) / steps for span in spans)
    row: dict[str, Any] = {"batch": batch, "step_us": _us(wall)}
    row |= {f"{text}, us": _us(parts[name]) for name, text in _SPANS.items()}
    row["hand-over, idle, us"] = _us(other)
    row["outside forward"] = f"{1 - parts['forward_s'] / wall:.1%}"
    for kernel in kernels:
        row[f"kernel {kernel.name} ({kernel.calls}x), us"] = _us(kernel.seconds)
    if kernels:
        row["kernels together, us"] = _us(sum(kernel.seconds for kernel in kernels))
    return row


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _notes(kernels: dict[int, tuple[KernelTime, ...]]) -> tuple[str, ...]:
    notes = ["microseconds of one decode step, medians; outside forward = what is neither kernels nor their launch"]
    if not all(kernels.values()):
        notes.append(
            "steps run eagerly (penstock explain says why): kernels and the Python between them are not told apart"
        )
    return tuple(notes)
