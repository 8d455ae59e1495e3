"""``penstock bench``: measure this machine. Every report is a table for people and, on request, JSON with its facts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from penstock.cli.options import fetch_model
from penstock.cli.parse import ModelArgument, Option, group, load, verb
from penstock.config.flags import engine_flags
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.bench.report import Report
    from penstock.engine.llm import LLM

JsonOption = Annotated[
    Path | None,
    Option("--json", metavar="FILE", help="Also write the report as JSON, with facts and decisions; - is stdout."),
]
PlotOption = Annotated[
    Path | None,
    Option("--plot", metavar="FILE", help="Also draw it, as .png or .svg (needs penstock[reports])."),
]
PromptsOption = Annotated[
    Path | None,
    Option("--prompts", metavar="FILE", help="Prompts to use: JSON lines with 'prompt', or one per line."),
]
InputLen = Annotated[int, Option("--input-len", minimum=1, help="Tokens of a random prompt.")]
OutputLen = Annotated[int, Option("--output-len", minimum=1, help="Tokens to generate, end tokens ignored.")]
Repeats = Annotated[int, Option("--repeats", minimum=1, help="Interleaved repeats; the median is shown.")]
Seed = Annotated[int, Option("--prompt-seed", help="Seed of random prompts.")]


@verb(engine_flags)
def latency(
    model: ModelArgument = "smollm2",
    batch_size: Annotated[str, Option("--batch-size", metavar="N,N,...", help="Requests at once.")] = "1,8,32",
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    repeats: Repeats = 3,
    prompt_seed: Seed = 0,
    prompts: PromptsOption = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
    **options: Any,
) -> None:
    """Decode step time and prefill time by batch size, in this process.

    penstock bench latency smollm2
    penstock bench latency smollm2 --batch-size 1,4,16 --input-len 512 --json latency.json
    penstock bench latency smollm2 --prompts questions.jsonl
    """
    from penstock.bench.offline import LatencyWorkload, measure_latency
    from penstock.bench.workload import file_prompts

    workload = LatencyWorkload(
        batch_sizes=numbers(batch_size, "--batch-size"),
        input_len=input_len,
        output_len=output_len,
        repeats=repeats,
        seed=prompt_seed,
    )
    texts = file_prompts(prompts, max(workload.batch_sizes)) if prompts else None
    with _llm(model, options) as llm:
        report = measure_latency(llm, workload, command_line(), say, texts)
    show(report, json_file, plot, x="batch", ys=("decode_step_ms_p50", "decode_tokens_per_s", "prefill_tokens_per_s"))


@verb(engine_flags)
def throughput(
    model: ModelArgument = "smollm2",
    num_prompts: Annotated[int, Option("--num-prompts", minimum=1, help="Requests, handed over at once.")] = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    repeats: Repeats = 3,
    prompt_seed: Seed = 0,
    prompts: PromptsOption = None,
    json_file: JsonOption = None,
    **options: Any,
) -> None:
    """Requests and tokens per second when everything is handed over at once, in this process.

    penstock bench throughput smollm2 --num-prompts 128
    penstock bench throughput smollm2 --prompts questions.jsonl --output-len 256
    """
    from penstock.bench.offline import ThroughputWorkload, measure_throughput
    from penstock.bench.workload import file_prompts

    workload = ThroughputWorkload(
        num_prompts=num_prompts, input_len=input_len, output_len=output_len, repeats=repeats, seed=prompt_seed
    )
    texts = file_prompts(prompts, num_prompts) if prompts else None
    with _llm(model, options) as llm:
        report = measure_throughput(llm, workload, command_line(), say, texts)
    show(report, json_file)


@verb(engine_flags)
def step(
    model: ModelArgument = "smollm2",
    batch_size: Annotated[str, Option("--batch-size", metavar="N,N,...", help="Rows of a step.")] = "1,8,32",
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    repeats: Repeats = 5,
    sampled: Annotated[bool, Option("--sampled", help="Rows draw (temperature 0.8, top-p 0.95).")] = False,
    prompt_seed: Seed = 0,
    json_file: JsonOption = None,
    **options: Any,
) -> None:
    """Where each microsecond of a decode step goes: core, executor, every kernel by name, in this process.

    penstock bench step smollm2
    penstock bench step smollm2 --batch-size 1 --no-graphs
    """
    from penstock.bench.step import StepWorkload, measure_steps

    workload = StepWorkload(
        batch_sizes=numbers(batch_size, "--batch-size"),
        input_len=input_len,
        output_len=output_len,
        repeats=repeats,
        seed=prompt_seed,
        sampled=sampled,
    )
    with _llm(model, options) as llm:
        report = measure_steps(llm, workload, command_line(), say)
    show(report, json_file)


@verb()
def kernels(
    model: ModelArgument = "smollm2",
    rows: Annotated[str, Option("--rows", metavar="N,N,...", help="Rows, or tokens.")] = "1,8,32,128,512",
    op: Annotated[
        list[str] | None,
        Option("--op", metavar="NAME", help="Measure this op alone, e.g. linear or rms_norm; may be repeated."),
    ] = None,
    implementation: Annotated[
        list[str] | None,
        Option("--implementation", metavar="NAME", help="Measure this one alone; may be repeated."),
    ] = None,
    scheme: Annotated[
        str | None,
        Option("--scheme", metavar="NAME", help="Weights in this scheme instead of the model's own."),
    ] = None,
    context: Annotated[int, Option("--context", minimum=1, help="Tokens that decoding rows attend to.")] = 512,
    repeats: Annotated[int, Option("--repeats", minimum=1, help="Repeats of each; the median is shown.")] = 9,
    threads: Annotated[
        int | None,
        Option("--threads", minimum=1, help="Threads of kernels. Default: every core."),
    ] = None,
    platform: Annotated[str, Option("--platform", metavar="auto|cpu|cuda", help="What to compute on.")] = "auto",
    load_format: Annotated[
        str, Option("--load-format", metavar="auto|dummy", help="dummy: the model's configuration will do.")
    ] = "auto",
    json_file: JsonOption = None,
) -> None:
    """Every op at a model's shapes, every implementation that can run here, beside this machine's measured ceilings.

    Reads the model's header, none of its weights.

    penstock bench kernels
    penstock bench kernels --op linear --rows 1,32 --scheme q4_k
    penstock bench kernels ./my-model --implementation native_avx512 --json kernels.json
    """
    from penstock.bench.kernels import KernelWorkload, measure_kernels
    from penstock.bench.model_shapes import read_shapes
    from penstock.platforms.probe import choose_platform, probe_platform
    from penstock.platforms.processor import last_level_cache

    facts, _ = choose_platform(probe_platform(), platform)
    cache_bytes = facts.device.l2_bytes if facts.device else last_level_cache()
    workload = KernelWorkload(
        rows=numbers(rows, "--rows"),
        ops=tuple(op or ()),
        implementations=tuple(implementation or ()),
        context=context,
        repeats=repeats,
        threads=threads,
    )
    shapes = read_shapes(fetch_model(model, None), facts, scheme, load_format)
    report = measure_kernels(shapes, facts, cache_bytes, workload, command_line(), say)
    show(report, json_file, in_lines=True)


@verb()
def startup(
    model: ModelArgument = "smollm2",
    server: Annotated[
        bool, Option("--server", help="Start penstock serve instead, and wait until /health and /ready answer.")
    ] = False,
    output_len: OutputLen = 64,
    repeats: Repeats = 3,
    option: Annotated[
        list[str] | None,
        Option("--run-option", metavar="TEXT", help="Passed to penstock run (or serve) as it is; may be repeated."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Time from process start to the first token of penstock run, and its peak memory, in new processes; or to the
    first answers of penstock serve.

    penstock bench startup
    penstock bench startup smollm2 --run-option=--max-model-len=2048 --repeats 5
    penstock bench startup --server --run-option=--mock --repeats 10
    """
    from penstock.bench.server_startup import measure_server_startup
    from penstock.bench.startup import measure_startup

    options = tuple(option or ())
    if "--mock" not in options:
        fetch_model(model, None)
    if server:
        show(measure_server_startup(model, options, repeats, command_line(), say), json_file, in_lines=True)
    else:
        show(measure_startup(model, options, output_len, repeats, command_line(), say), json_file)


@verb()
def core(
    rows: Annotated[str, Option("--rows", metavar="N,N,...", help="Requests decoding at once.")] = "1,256,1024",
    context: Annotated[int, Option("--context", minimum=1, help="Tokens that each request has already.")] = 4096,
    steps: Annotated[int, Option("--steps", minimum=1, help="Steps to time.")] = 100,
    json_file: JsonOption = None,
) -> None:
    """Plan plus result handling of the engine core: mock executor without delay, two KV groups. No model, no torch.

    penstock bench core
    penstock bench core --rows 64 --context 16384
    """
    from penstock.bench.core import measure_core

    sizes = numbers(rows, "--rows")
    show(measure_core(sizes, context, steps, command_line(), say), json_file)


@verb()
def text(
    model: ModelArgument = "smollm2",
    sizes: Annotated[str, Option("--sizes", metavar="N,N,...", help="KiB of text.")] = "4,64,1024",
    dialect: Annotated[
        list[str] | None, Option("--dialect", metavar="NAME", help="Measure this one alone; may be repeated.")
    ] = None,
    repeats: Annotated[int, Option("--repeats", minimum=1, help="Repeats of each; the median is shown.")] = 3,
    json_file: JsonOption = None,
) -> None:
    """What text costs the frontend: tokens to chunks with a model's tokenizer, tool calls in every dialect. Reads the
    tokenizer alone; no torch.

    penstock bench text
    penstock bench text --dialect hermes --dialect kimi_k2 --sizes 4,16,64,256,1024
    """
    from penstock.bench.text import TextWorkload, measure_text
    from penstock.frontend.text.load import load_text_assets

    workload = TextWorkload(sizes=numbers(sizes, "--sizes"), dialects=tuple(dialect or ()), repeats=repeats)
    tokenizer = load_text_assets(fetch_model(model, None)).tokenizer
    show(measure_text(tokenizer, workload, command_line(), say), json_file, in_lines=True)


HELP = (
    "Measure: core (scheduler alone), text (tokens to chunks, tool calls), kernels, latency, throughput, step and "
    "startup of a model, serve (HTTP)."
)
VERBS = {
    "core": ("penstock.cli.bench:core", "The scheduler alone, without a model."),
    "text": ("penstock.cli.bench:text", "What text and tool calls cost the frontend, without a model."),
    "latency": ("penstock.cli.bench:latency", "Step and prefill time of a model by batch size."),
    "throughput": ("penstock.cli.bench:throughput", "Offline requests and tokens per second."),
    "step": ("penstock.cli.bench:step", "Where the time of a decode step goes, part by part."),
    "startup": (
        "penstock.cli.bench:startup",
        "Time to a new process's first token, or to a server's first answer.",
    ),
    "kernels": ("penstock.cli.bench:kernels", "Every kernel at a model's shapes, beside what the machine can give."),
    "serve": ("penstock.cli.bench_serve:serve", "HTTP load on a running server."),
}
bench = group(HELP, VERBS, load)


def _llm(model: str, options: dict[str, Any]) -> LLM:
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    fetch_model(model, given.get("revision"))
    from penstock.engine.llm import LLM

    return LLM(model, **given)


def numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{option} is {text!r}, but it must be numbers with commas between them, e.g. 1,8."
        ) from error
    if min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}, but every number must be at least 1.")
    return numbers


def command_line() -> str:
    return shlex.join(["penstock", *sys.argv[1:]])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(
    report: Report,
    json_file: Path | None,
    plot: Path | None = None,
    *,
    x: str = "",
    ys: tuple[str, ...] = (),
    in_lines: bool = False,
) -> None:
    if json_file is not None and str(json_file) == "-":
        print(report.as_json())
    else:
        _print_table(report, print, in_lines=in_lines)
        if json_file is not None:
            report.save(json_file)
    if plot is not None:
        report.plot(plot, x=x, ys=ys)


def _print_table(report: Report, out: Callable[[str], None], *, in_lines: bool = False) -> None:
    """One line per quantity and one column per row of the report: most reports are wide and have few rows.
    ``in_lines``: one line per row instead."""
    names = list(dict.fromkeys(name for row in report.rows for name in row))
    cells = [[name, *(f"{row.get(name, '-')}" for row in report.rows)] for name in names]
    if in_lines:
        cells = [list(line) for line in zip(*cells, strict=True)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    left = [i == 0 or (in_lines and isinstance(report.rows[0][names[i]], str)) for i in range(len(widths))]
    out(f"{report.name}: " + ", ".join(f"{k}={v}" for k, v in report.workload.items()))
    for line in cells:
        parts = (
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        )
        out("  ".join(parts).rstrip())
    for note in report.notes:
        out(f"note: {note}")
