"""Compiles the cases of modules for targets, in processes of their own. Knows no kernel, and imports no Triton itself.

A process of its own, because this one may interpret kernels (TRITON_INTERPRET), and because LLVM ends the process that
asks it for what it cannot do. What was compiled stays in a cache directory, by the digest that Triton makes of sources,
options and its own version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config.env import cache_dir
from penstock.kernels.triton import MODULES
from penstock.kernels.triton.aot import TARGETS, AotCase, Compiled, compile_case

NAMES = tuple(f"penstock.kernels.triton.{module}" for module in MODULES)
_ERROR_LINES = 12  # of a compiler's message that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One case of one module for one target: ``compiled``, or the ``error`` that came instead."""

    module: str
    kernel: str
    case: str  # its constants and launch, for people
    target: str
    compiled: Compiled | None = None
    error: str = ""


def compile_all(
    modules: Sequence[str] = NAMES,
    targets: Sequence[str] = tuple(TARGETS),
    *,
    workers: int | None = None,
    cache: Path | None = None,
    say: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Compile every case of ``modules`` (importable names) for every target. ``say`` hears of each as it is done.

    ``workers`` processes share the work, one per core by default. Calls with the same ``cache`` wait for each other:
    what the first has compiled, the second only looks up. Raises RuntimeError when a module cannot be imported.
    """
    cache = cache or cache_dir() / "triton"
    workers = workers or _num_cores()
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "compiling.lock"), ThreadPoolExecutor(workers) as pool:
        shares = pool.map(lambda share: list(_share(modules, targets, share, workers, cache, say)), range(workers))
        return sorted(
            (outcome for share in shares for outcome in share),
            key=lambda outcome: (
                modules.index(outcome.module),
                outcome.kernel,
                outcome.case,
                targets.index(outcome.target),
            ),
        )


def text_line(outcome: Outcome) -> str:
    """One line for people; an error takes the lines that it has."""
    head = f"{outcome.module.rpartition('.')[2]:18} {outcome.kernel:24} {outcome.target:8}"
    found = outcome.compiled
    if found is None:
        return f"{head} FAILED ({outcome.case})\n    " + outcome.error.replace("\n", "\n    ")
    registers = "  -" if found.registers is None else f"{found.registers:3}"
    spills = "-" if found.spills is None else str(found.spills)
    return (
        f"{head} {found.seconds:6.2f} s  {registers} registers  {spills:>4} spilled  "
        f"{found.shared_bytes:7,} B shared  {found.code_bytes:8,} B code"
    )


def _share(
    modules: Sequence[str],
    targets: Sequence[str],
    share: int,
    num_shares: int,
    cache: Path,
    say: Callable[[Outcome], None] | None,
) -> Iterator[Outcome]:
    """Outcomes of one share. A process that ends in the middle costs the case that it was at; the next goes on."""
    done = 0
    while True:
        ask = {"modules": modules, "targets": targets, "share": share, "num_shares": num_shares, "skip": done}
        begun: Outcome | None = None
        with tempfile.TemporaryFile("w+") as errors, _start(ask, cache, errors) as process:
            assert process.stdout is not None
            for line in process.stdout:
                record = json.loads(line)
                outcome = _outcome(record)
                if "begun" in record:
                    begun = outcome
                    continue
                begun, done = None, done + 1
                if say:
                    say(outcome)
                yield outcome
            status = process.wait()
            if status == 0:
                return
            errors.seek(0)
            text = _last_lines(errors.read())
        if begun is None:
            raise RuntimeError(f"The process that compiles kernels ended with status {status}:\n{text}")
        done += 1
        outcome = dataclasses.replace(begun, error=f"the compiler ended its process with status {status}\n{text}")
        if say:
            say(outcome)
        yield outcome


def _start(ask: dict[str, Any], cache: Path, errors: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "penstock.kernels.triton.compiler", json.dumps(ask)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def _outcome(record: dict[str, Any]) -> Outcome:
    compiled = record.get("compiled")
    names = {name: record[name] for name in ("module", "kernel", "case", "target")}
    return Outcome(**names, compiled=Compiled(**compiled) if compiled else None, error=record.get("error", ""))


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_ERROR_LINES:])


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The process that compiles --------------------------------------------------------------------------------------------


def compile_share(modules: Sequence[str], targets: Sequence[str], share: int, num_shares: int, skip: int) -> None:
    """Compile every ``num_shares``-th case, without the first ``skip`` of them; a JSON line before and after each."""
    cases = [(module, case) for module in modules for case in importlib.import_module(module).AOT]
    pairs = [
        (module, case, target) for module, case in cases for target in targets if target in (case.targets or TARGETS)
    ]
    for module, case, target in pairs[share::num_shares][skip:]:
        names = {"module": module, "kernel": _kernel_name(case), "case": _case_text(case), "target": target}
        _write({**names, "begun": True})
        try:
            compiled = compile_case(case, TARGETS[target])
        except Exception as error:  # noqa: BLE001  whatever a compiler raises belongs to this case alone
            _write({**names, "error": _message(error)})
        else:
            _write({**names, "compiled": dataclasses.asdict(compiled)})


def _write(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _message(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return "\n".join(lines[:_ERROR_LINES])


def _kernel_name(case: AotCase) -> str:
    return str(getattr(case.kernel, "__name__", case.kernel))


def _case_text(case: AotCase) -> str:
    constants = [f"{name}={value}" for name, value in case.constants.items()]
    stages = "" if case.num_stages is None else f" num_stages={case.num_stages}"
    return " ".join((*constants, f"num_warps={case.num_warps}")) + stages


if __name__ == "__main__":
    compile_share(**json.loads(sys.argv[1]))
