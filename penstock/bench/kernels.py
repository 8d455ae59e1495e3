"""Times the cases of ``kernel_cases`` and sets them beside the ceilings of the machine.

Kernels of the extension run as recorded programs and those of a device in CUDA graphs, as they do in decode steps:
without Python between them. Whatever cannot be recorded is called from Python, whose share is in the figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from penstock.bench.ceilings import Ceilings, beyond_caches, measure_ceilings
from penstock.bench.device_ceilings import CACHED_BYTES, capture, device_seconds
from penstock.bench.kernel_cases import Call, Candidate, Case, Work, make_cases, tensor_bytes
from penstock.bench.model_shapes import ModelShapes
from penstock.bench.report import Report
from penstock.errors import ConfigError
from penstock.kernels.device import CPU, device_of, prepare_device
from penstock.kernels.device_rate import with_measured_rate
from penstock.kernels.native.extension import set_num_threads
from penstock.kernels.native.program import RecordingRefusedError, record
from penstock.types.decision import Decision
from penstock.types.facts import PlatformFacts

Progress = Callable[[str], None]

_REPEAT_S = 0.003  # a repeat calls as often as makes about this long
_MOST_CALLS = 1000  # of one repeat
_MOST_S = 0.5  # of one candidate of one case; at least three repeats are made
_ARENA_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelWorkload:
    """``ops`` and ``implementations`` are those to measure, empty for all; ``context`` is what decoding rows attend to;
    ``threads`` None takes every core that this process may use."""

    rows: tuple[int, ...] = (1, 8, 32, 128, 512)
    ops: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    context: int = 512
    repeats: int = 9
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of one call in each repeat, and the bytes of its result."""

    seconds: tuple[float, ...]
    result_bytes: int


def measure_kernels(
    shapes: ModelShapes,
    platform: PlatformFacts,
    cache_bytes: int,
    workload: KernelWorkload,
    command: str,
    say: Progress,
) -> Report:
    """Every case and candidate that the workload asks for. ``cache_bytes``: size of the last-level cache.

    Raises ConfigError when nothing of that name can run here.
    """
    device = device_of(platform)
    if device != CPU:
        prepare_device(platform)
    platform = with_measured_rate(platform)
    threads = workload.threads or platform.num_cores
    torch.set_num_threads(threads)
    set_num_threads(threads)
    ceilings = None
    if platform.name == "cuda" or not platform.extension_missing:
        say("ceilings")
        ceilings = measure_ceilings(platform, cache_bytes)
    rows: list[dict[str, Any]] = []
    decisions: dict[str, Decision] = {}
    # Cases make their tensors without naming a device. On a CPU nothing is set: it would cost each call of torch.
    made_on = contextlib.nullcontext() if device.type == "cpu" else device
    with torch.inference_mode(), made_on:
        for case in make_cases(shapes, platform, workload.rows, workload.context):
            wanted = _wanted(case, workload)
            if wanted:
                say(f"{case.op} {case.shape}, {case.rows} rows")
                decisions[case.decision.subject] = case.decision
            for candidate in wanted:
                work = candidate.work()
                times = _time(work, device, beyond_caches(cache_bytes), workload.repeats)
                rows.append(_row(case, candidate, work, times, ceilings))
    if not rows:
        raise ConfigError("Nothing to measure: no implementation with such a name runs such an op here.")
    return Report(
        name="kernels",
        command=command,
        workload={
            "model": shapes.facts.name,
            "activations": shapes.dtype,
            "context": workload.context,
            "repeats": workload.repeats,
            "threads": threads,
        },
        rows=tuple(rows),
        engine={
            "model": dataclasses.asdict(shapes.facts),
            "platform": dataclasses.asdict(platform),
            "ceilings": None if ceilings is None else dataclasses.asdict(ceilings),
            "decisions": [dataclasses.asdict(decision) for decision in decisions.values()],
        },
        notes=_notes(platform, ceilings),
    )


def _wanted(case: Case, workload: KernelWorkload) -> list[Candidate]:
    if workload.ops and case.op not in workload.ops:
        return []
    return [each for each in case.candidates if not workload.implementations or each.name in workload.implementations]


def _time(work: Work, device: torch.device, cold_set: int, repeats: int) -> _Times:
    """Cold data is used in turn, ``cold_set`` bytes of it in all."""
    timed = _seconds if device.type == "cpu" else device_seconds
    result_bytes = tensor_bytes(work.make(1)[0]())  # with the costs of the first use
    once = max(timed(work.make(1)[0]), 1e-7)
    together = max(1, min(_MOST_CALLS, int(_REPEAT_S / once)))
    copies = -(-cold_set // work.copy_bytes) if work.copy_bytes else 1
    calls = work.make(max(1, min(copies, together * (repeats + 1))))
    groups = _groups(calls, together)
    runs = itertools.cycle(_recorded(groups, device))
    seconds: list[float] = []
    began = time.perf_counter()
    for run in itertools.islice(runs, repeats + 1):  # the first one is for warming up
        seconds.append(timed(run) / together)
        if len(seconds) > 3 and time.perf_counter() - began > _MOST_S:
            break
    return _Times(tuple(seconds[1:]), result_bytes)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _groups(calls: Sequence[Call], together: int) -> list[list[Call]]:
    """Groups of ``together`` calls, one per repeat, that go on through ``calls`` where the one before ended."""
    around = itertools.cycle(calls)
    num_groups = max(1, -(-len(calls) // together))
    return [list(itertools.islice(around, together)) for _ in range(num_groups)]


def _recorded(groups: Sequence[Sequence[Call]], device: torch.device) -> list[Callable[[], None]]:
    """Each group as one function: a program or a CUDA graph where its calls can be recorded, else a loop in Python."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            return [capture(_loop(group)) for group in groups]
        return [_loop(group) for group in groups]
    with contextlib.suppress(RecordingRefusedError, ImportError):
        arena = torch.empty(_ARENA_BYTES, dtype=torch.uint8)
        return [record(_loop(group), arena)[0].run for group in groups]
    return [_loop(group) for group in groups]


def _loop(calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _row(case: Case, candidate: Candidate, work: Work, times: _Times, ceilings: Ceilings | None) -> dict[str, Any]:
    best = min(times.seconds)
    warm = tensor_bytes(work.warm) + times.result_bytes
    row: dict[str, Any] = {
        "op": case.op,
        "shape": case.shape,
        "rows": case.rows,
        "implementation": candidate.name,
        "chosen": "*" if candidate.name == case.decision.chosen else "",
        "median_us": _round(statistics.median(times.seconds) * 1e6),
        "min_us": _round(best * 1e6),
        "cold_kb": _round(work.cold_bytes / 1e3),
        "warm_kb": _round(warm / 1e3),
        "kop": _round(work.operations / 1e3),
        "gb_s": _round((work.cold_bytes + warm) / best / 1e9),
        "gop_s": _round(work.operations / best / 1e9),
    }
    if ceilings is None:
        return row | {"bound": "", "roofline": ""}
    bounds = {
        "memory": work.cold_bytes / ceilings.memory_gb_s / 1e9,
        "cache": warm / ceilings.warm_gb_s(warm) / 1e9,
        work.kind: work.operations / (ceilings.gop_s[work.kind] or ceilings.gop_s["float32"]) / 1e9,
    }
    least = max(bounds["memory"] + bounds["cache"], bounds[work.kind])
    return row | {"bound": max(bounds, key=bounds.__getitem__), "roofline": f"{least / best:.0%}"}


def _round(value: float) -> float:
    """Three significant digits, and whole numbers above a hundred."""
    return round(value) if value >= 100 else float(f"{value:.3g}")


def _notes(platform: PlatformFacts, ceilings: Ceilings | None) -> tuple[str, ...]:
    notes = [
        "cold: weights and keys, each call on other ones than those before it, as the layers of a model are; warm: "
        "activations read and results written; * is what an engine takes; gb_s, gop_s and roofline are of the fastest "
        "repeat",
    ]
    if ceilings is None:
        return (*notes, f"no ceilings: {platform.extension_missing}")
    if platform.name == "cuda":
        reads = (
            f"copied, bytes read and written, {ceilings.memory_gb_s} GB/s in memory and "
            f"{ceilings.shared_cache_gb_s} GB/s of {CACHED_BYTES >> 20} MiB in the second-level cache"
        )
    else:
        reads = _reads(ceilings)
    rates = ", ".join(f"{kind} {rate:,} Gop/s" for kind, rate in ceilings.gop_s.items() if rate)
    where = f"on {ceilings.threads} threads" if ceilings.threads else f"on {platform.name}"
    notes.append(f"ceilings measured in this run {where}: {reads}; {rates}")
    notes.append(
        "roofline: the share of the time that these ceilings alone would take, cold and warm bytes after another"
    )
    return tuple(notes)


def _reads(ceilings: Ceilings) -> str:
    return (
        f"read {ceilings.memory_gb_s} GB/s from memory, {ceilings.shared_cache_gb_s} GB/s from 32 MiB, "
        f"{ceilings.own_cache_gb_s} GB/s from 256 KiB and {ceilings.first_cache_gb_s} GB/s from 16 KiB per thread"
    )
