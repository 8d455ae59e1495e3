"""Time from the start of a process to its first token, and the most memory it held: `penstock run` in new processes.

Knows the command line alone, so that everything is in it that a user waits for: Python, imports, weights, tokenizer.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.bench.report import Report
from penstock.errors import ConfigError

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Start:
    first_token_s: float
    exit_s: float
    peak_bytes: int


def measure_startup(
    model: str, options: Sequence[str], num_tokens: int, repeats: int, command: str, progress: Progress
) -> Report:
    """``options`` go to `penstock run` as they are. Each repeat is two processes: one is asked for one token, whose
    first byte of output ends the clock, the other for ``num_tokens``, whose peak memory counts.

    The model must be on this machine already. Raises ConfigError with what the process said when it fails.
    """
    ones: list[_Start] = []
    many: list[_Start] = []
    for repeat in range(repeats):
        progress(f"repeat {repeat + 1} of {repeats}")
        ones.append(_start(model, options, 1))
        many.append(_start(model, options, num_tokens))
    rows = [
        {
            "repeat": i + 1,
            "first_token_s": round(one.first_token_s, 3),
            "exit_s": round(one.exit_s, 3),
            "peak_mib": round(answer.peak_bytes / 2**20),
        }
        for i, (one, answer) in enumerate(zip(ones, many, strict=True))
    ]
    first = statistics.median(one.first_token_s for one in ones)
    peak = statistics.median(answer.peak_bytes for answer in many) / 2**20
    return Report(
        name="startup",
        command=command,
        workload={"model": model, "options": " ".join(options), "output_len": num_tokens, "repeats": repeats},
        rows=tuple(rows),
        notes=(
            f"median: {first:.2f} s from the start of the process to the first token, {peak:,.0f} MiB at most resident",
            "resident memory counts pages of mapped files that were touched, which the system may drop",
        ),
    )


def _start(model: str, options: Sequence[str], num_tokens: int) -> _Start:
    arguments = ["run", model, "One, two, three,", "--raw", "--temperature", "0", "--max-tokens", str(num_tokens)]
    line = [sys.executable, "-m", "penstock.cli", *arguments, *options]
    started = time.perf_counter()
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.read(1)
        first_token = time.perf_counter() - started
        process.stdout.read()
        said = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise ConfigError(f"penstock run failed: {said.strip().removeprefix('penstock: ') or 'it said nothing'}")
    kilo = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss is not the same everywhere
    return _Start(first_token, time.perf_counter() - started, usage.ru_maxrss * kilo)
