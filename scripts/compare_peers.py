"""Penstock, llama.cpp and vLLM in turns on one machine: medians and ratios of decode and prefill in tokens per second.

Decode: n rows, each behind a prompt, some tokens each; prefill: the best over the row counts. One sample of each engine
per round, in an order that rotates. A sample during which other processes took the processor is marked and, as long as
others are left, does not count. Nothing is known in advance: paths and flags are arguments (docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
Columns = dict[str, float]


class Engine(Protocol):
    name: str

    def measure(self) -> Columns: ...

    def seconds_used(self) -> float:
        """Processor time of processes that go on between samples."""

    def close(self) -> None: ...


class Penstock:
    """A new process per sample, as llama.cpp's: what it prints is the steady state either way."""

    def __init__(self, model: str, options: list[str], work: argparse.Namespace) -> None:
        self.name = "penstock"
        lengths = ["--input-len", str(work.input_len), "--output-len", str(work.output_len)]
        batches = ["--batch-size", ",".join(map(str, work.batches))]
        self._line = [sys.executable, "-m", "penstock.cli", "bench", "latency", model, *batches, *lengths]
        self._line += ["--repeats", str(work.repeats), "--threads", str(work.threads), "--json", "-", *options]

    def measure(self) -> Columns:
        rows = json.loads(_output(self._line, {"PYTHONPATH": str(ROOT)}))["rows"]
        decode = {f"decode {row['batch']}": float(row["decode_tokens_per_s"]) for row in rows}
        return {**decode, "prefill": max(float(row["prefill_tokens_per_s"]) for row in rows)}

    def seconds_used(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class LlamaCpp:
    """llama-batched-bench on one file."""

    def __init__(self, tool: str, name: str, model: str, options: list[str], work: argparse.Namespace) -> None:
        self.name = f"llama.cpp {name}"
        self._columns = list(work.batches)
        context = max(work.batches) * (work.input_len + work.output_len)
        self._line = [tool, "-m", model, "-t", str(work.threads), "-c", str(context), "-npp", str(work.input_len)]
        self._line += ["-ntg", str(work.output_len), "-npl", ",".join(map(str, work.batches)), *options]

    def measure(self) -> Columns:
        decode, prefill = {}, 0.0
        for line in _output(self._line).splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) >= 10 and cells[0].isdigit():  # PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S
                decode[f"decode {cells[2]}"] = float(cells[7])
                prefill = max(prefill, float(cells[5]))
        if len(decode) != len(self._columns):
            raise SystemExit(f"{shlex.join(self._line)} printed no line for some of {self._columns}")
        return {**decode, "prefill": prefill}

    def seconds_used(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class Vllm:
    """One engine for all rounds, in a session of its own that is stopped whenever something else is measured."""

    def __init__(self, python: str, model: str, work: argparse.Namespace) -> None:
        self.name = "vLLM"
        task = {key: getattr(work, key) for key in ("batches", "input_len", "output_len")}
        task["options"] = json.loads(work.vllm_options)
        environment = dict(each.split("=", 1) for each in work.vllm_env)
        self._process = subprocess.Popen(
            [python, str(ROOT / "scripts/compare_peers_vllm.py"), model, json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if work.verbose else subprocess.DEVNULL,
            text=True, start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip
        self._answer()
        os.killpg(self._process.pid, signal.SIGSTOP)

    def measure(self) -> Columns:
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return self._answer()
        finally:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def _answer(self) -> Columns:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with status {self._process.wait()}; --verbose shows what it said")
        found: Columns = json.loads(line)
        return found

    def seconds_used(self) -> float:
        """Of all processes of its session."""
        total = 0.0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[3]) == self._process.pid:
                total += sum(map(int, fields[11:15])) / TICKS
        return total

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _output(line: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise SystemExit(f"{shlex.join(line)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _machine_seconds() -> float:
    """Processor time of everything on this machine: user, nice and system, interrupts, and what a host took away."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields[:3]) + sum(fields[5:])) / TICKS


def _own_seconds(engine: Engine) -> float:
    return sum(os.times()[:4]) + engine.seconds_used()


def sample(engine: Engine) -> tuple[Columns, float]:
    """What it measured, and the share of the machine's processors that others had meanwhile."""
    wall, machine, own = time.monotonic(), _machine_seconds(), _own_seconds(engine)
    columns = engine.measure()
    wall, machine, own = time.monotonic() - wall, _machine_seconds() - machine, _own_seconds(engine) - own
    return columns, max(0.0, machine - own) / wall / (os.cpu_count() or 1)


def wait_for_quiet(limit: float) -> None:
    """Until the machine did next to nothing for a second, at most ``limit`` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = _machine_seconds()
        time.sleep(1.0)
        if _machine_seconds() - before < 0.1:
            return


def summarize(samples: list[dict[str, object]], most_foreign: float) -> list[str]:
    """A table in Markdown: medians, then ours as a multiple of the best peer's."""
    names = list(dict.fromkeys(str(each["engine"]) for each in samples))
    columns = list(samples[0]["columns"])  # type: ignore[call-overload]
    lines = [f"| tokens/s | {' | '.join(columns)} | samples, others' share |", "|---" * (len(columns) + 2) + "|"]
    medians: dict[str, Columns] = {}
    for name in names:
        mine = [each for each in samples if each["engine"] == name]
        quiet = [each for each in mine if float(str(each["foreign"])) <= most_foreign] or mine
        medians[name] = {c: statistics.median(each["columns"][c] for each in quiet) for c in columns}  # type: ignore[index]
        shares = [float(str(each["foreign"])) for each in quiet]
        note = f"{len(quiet)} of {len(mine)}, {min(shares):.0%} to {max(shares):.0%}"
        note += " **disturbed**" if max(shares) > most_foreign else ""
        lines.append(f"| {name} | {' | '.join(f'{medians[name][c]:,.1f}' for c in columns)} | {note} |")
    peers = [name for name in names if name != "penstock"]
    if peers and "penstock" in medians:
        best = {c: max(medians[name][c] for name in peers) for c in columns}
        ratios = " | ".join(f"{medians['penstock'][c] / best[c]:.2f}" for c in columns)
        lines.append(f"| ours / best peer | {ratios} | |")
    return lines


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="smollm2", help="what Penstock runs")
    add("--option", action="append", default=[], help="of penstock bench latency, e.g. --option=--max-model-len=2048")
    add("--llama", metavar="FILE", help="llama.cpp's llama-batched-bench")
    add("--gguf", action="append", default=[], metavar="NAME=FILE", help="a model for llama.cpp; may be repeated")
    add("--llama-options", default="-b 2048 -ub 512 -fa on", help="more of its options; default: %(default)s")
    add("--vllm-python", metavar="FILE", help="a Python that has vLLM")
    add("--vllm-model", metavar="DIR", help="a model for vLLM")
    add("--vllm-options", default="{}", help='keywords of vllm.LLM as JSON, e.g. {"enforce_eager": true}')
    add("--vllm-env", action="append", default=[], metavar="NAME=VALUE", help="for its process; may be repeated")
    add("--rounds", type=int, default=5)
    add("--repeats", type=int, default=1, help="of Penstock within a sample; default: %(default)s")
    add("--batches", default="1,8,32", type=lambda text: [int(n) for n in text.split(",")])
    add("--input-len", type=int, default=128)
    add("--output-len", type=int, default=64)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--quiet-wait", type=float, default=0.0, metavar="S", help="wait for an idle machine before each sample")
    add("--most-foreign", type=float, default=0.05, help="share of the processors that others may have in a sample")
    add("--json", type=Path, metavar="FILE", help="all samples, a line each")
    add("--verbose", action="store_true", help="show what vLLM logs")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    work = parse(arguments)
    engines: list[Engine] = [Penstock(work.model, work.option, work)]
    for given in work.gguf:
        name, _, path = given.rpartition("=")
        engines.append(LlamaCpp(work.llama, name or Path(path).stem, path, shlex.split(work.llama_options), work))
    if work.vllm_python:
        engines.append(Vllm(work.vllm_python, work.vllm_model, work))
    samples: list[dict[str, object]] = []
    try:
        for turn in range(work.rounds):
            for engine in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
                wait_for_quiet(work.quiet_wait)
                columns, foreign = sample(engine)
                samples.append({"round": turn, "engine": engine.name, "columns": columns, "foreign": foreign})
                shown = ", ".join(f"{name} {value:,.1f}" for name, value in columns.items())
                print(
                    f"round {turn + 1}, {engine.name}: {shown}; others had {foreign:.0%}", file=sys.stderr, flush=True
                )
                if work.json:
                    with work.json.open("a") as file:
                        file.write(json.dumps(samples[-1]) + "\n")
    finally:
        for engine in engines:
            engine.close()
    print("\n".join(summarize(samples, work.most_foreign)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
