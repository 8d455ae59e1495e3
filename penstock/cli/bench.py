"""``penstock bench``: measure this machine. Every report is a table for people and, on request, JSON with its facts."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from penstock.cli.options import fetch_model
from penstock.cli.parse import Argument, ModelArgument, Option, group, load, verb
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
        batch_sizes=_numbers(batch_size, "--batch-size"),
        input_len=input_len,
        output_len=output_len,
        repeats=repeats,
        seed=prompt_seed,
    )
    texts = file_prompts(prompts, max(workload.batch_sizes)) if prompts else None
    with _llm(model, options) as llm:
        report = measure_latency(llm, workload, _command(), _say, texts)
    _show(report, json_file, plot, x="batch", ys=("decode_step_ms_p50", "decode_tokens_per_s", "prefill_tokens_per_s"))


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
        report = measure_throughput(llm, workload, _command(), _say, texts)
    _show(report, json_file)


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
        batch_sizes=_numbers(batch_size, "--batch-size"),
        input_len=input_len,
        output_len=output_len,
        repeats=repeats,
        seed=prompt_seed,
        sampled=sampled,
    )
    with _llm(model, options) as llm:
        report = measure_steps(llm, workload, _command(), _say)
    _show(report, json_file)


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
        rows=_numbers(rows, "--rows"),
        ops=tuple(op or ()),
        implementations=tuple(implementation or ()),
        context=context,
        repeats=repeats,
        threads=threads,
    )
    shapes = read_shapes(fetch_model(model, None), facts, scheme)
    report = measure_kernels(shapes, facts, cache_bytes, workload, _command(), _say)
    _show(report, json_file, in_lines=True)


@verb()
def serve(
    model: Annotated[str, Argument("[MODEL]", "Name to ask for. Default: the first served.")] = "",
    url: Annotated[str, Option("--url", help="Server to load, this one or any other.")] = "http://127.0.0.1:8000",
    chat: Annotated[
        bool, Option("--chat", off="--completions", help="Load /v1/chat/completions instead of /v1/completions.")
    ] = False,
    concurrency: Annotated[
        str | None,
        Option(
            "--concurrency",
            metavar="N,N,...",
            help="Closed loop: streams open at once. With --request-rate: the most that may be open, one number. "
            "Default: 1,8,32, or no limit with --request-rate.",
        ),
    ] = None,
    num_prompts: Annotated[
        int, Option("--num-prompts", minimum=1, help="Requests per row; at least two per stream in a closed loop.")
    ] = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    request_rate: Annotated[
        str | None,
        Option(
            "--request-rate",
            metavar="X,X,...",
            help="Open loop: requests per second on average, sent when they are due, whatever the server does.",
        ),
    ] = None,
    burstiness: Annotated[
        float,
        Option(
            "--burstiness", help="Shape of the gaps of an open loop: 1 Poisson arrivals, less in bursts, 100 evenly."
        ),
    ] = 1.0,
    processes: Annotated[
        int, Option("--processes", minimum=1, help="Processes of the load generator that share the work.")
    ] = 1,
    pid: Annotated[
        int | None,
        Option("--pid", help="The server's process: report its CPU time per token and its memory."),
    ] = None,
    timeout: Annotated[float, Option("--timeout", help="Seconds after which an answer counts as failed.")] = 600.0,
    natural_end: Annotated[
        bool,
        Option(
            "--natural-end",
            help="Answers end by themselves: ignore_eos and min_tokens are not sent, which some servers refuse.",
        ),
    ] = False,
    text: Annotated[
        bool, Option("--text", help="Completions get words instead of token ids, which some servers do not take.")
    ] = False,
    vocab_size: Annotated[
        int | None,
        Option(
            "--vocab-size",
            minimum=200,
            help="Random token ids stay below it. Default: that of a Penstock server's model, else 32000.",
        ),
    ] = None,
    api_key: Annotated[str, Option("--api-key", help="Key to present.")] = "",
    prompt_seed: Seed = 0,
    prompts: PromptsOption = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Load a running OpenAI-compatible server over HTTP, this one or another: percentiles of the time to the first
    token (TTFT), between chunks (ITL), per token (TPOT) and of whole requests (E2E); tokens per chunk and per second.

    penstock serve smollm2 &
    penstock bench serve --concurrency 1,8,32
    penstock bench serve --request-rate 2,4,8 --num-prompts 200 --json rates.json --plot rates.png
    penstock bench serve --request-rate 4 --burstiness 0.5 --concurrency 64
    penstock bench serve --url http://127.0.0.1:9000 --chat --prompts questions.jsonl --natural-end
    penstock bench serve --concurrency 64,256 --processes 2 --pid 4711

    A closed loop (--concurrency) shows what a server can do; an open loop (--request-rate) shows what clients get
    that do not wait for each other: late_ms is how long after its moment a request was sent. Of a Penstock server
    it also shows added_ms: what the frontend takes from the engine's output to the socket, per token.
    """
    from penstock.bench.http_load import Target
    from penstock.bench.serve import Prompts, ServeWorkload, measure_serve
    from penstock.bench.workload import file_prompts, random_prompts, random_texts

    def prompts_for(number: int, seed: int) -> Prompts:
        if prompts:
            return file_prompts(prompts, number)
        if chat or text:
            return random_texts(number, max(1, input_len // 2), seed)
        return random_prompts(number, input_len, ids, seed)

    workload = ServeWorkload(
        concurrencies=_numbers(concurrency, "--concurrency") if concurrency else () if request_rate else (1, 8, 32),
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        request_rates=_positive(request_rate, "--request-rate") if request_rate else (),
        burstiness=_positive(str(burstiness), "--burstiness")[0],
        timeout_s=_positive(str(timeout), "--timeout")[0],
        ignore_eos=not natural_end,
        processes=processes,
        seed=prompt_seed,
    )
    engine = _ask(url, "/debug/decisions", api_key) or {}
    ids = vocab_size or engine.get("model", {}).get("vocab_size") or 32000
    target = Target(base_url=url, model=model or _first_model(url, api_key), chat=chat, api_key=api_key)
    report = measure_serve(target, workload, prompts_for, _command(), _say, engine, pid)
    x = "request_rate" if request_rate else "concurrency"
    _show(report, json_file, plot, x=x, ys=("output_tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p99"))


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
        _show(measure_server_startup(model, options, repeats, _command(), _say), json_file, in_lines=True)
    else:
        _show(measure_startup(model, options, output_len, repeats, _command(), _say), json_file)


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

    sizes = _numbers(rows, "--rows")
    _show(measure_core(sizes, context, steps, _command(), _say), json_file)


HELP = "Measure: core (scheduler alone), kernels, latency, throughput, step and startup of a model, serve (HTTP)."
VERBS = {
    "core": ("penstock.cli.bench:core", "The scheduler alone, without a model."),
    "latency": ("penstock.cli.bench:latency", "Step and prefill time of a model by batch size."),
    "throughput": ("penstock.cli.bench:throughput", "Offline requests and tokens per second."),
    "step": ("penstock.cli.bench:step", "Where the time of a decode step goes, part by part."),
    "startup": (
        "penstock.cli.bench:startup",
        "Time to a new process's first token, or to a server's first answer.",
    ),
    "kernels": ("penstock.cli.bench:kernels", "Every kernel at a model's shapes, beside what the machine can give."),
    "serve": ("penstock.cli.bench:serve", "HTTP load on a running server."),
}
bench = group(HELP, VERBS, load)


def _llm(model: str, options: dict[str, Any]) -> LLM:
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    fetch_model(model, given.get("revision"))
    from penstock.engine.llm import LLM

    return LLM(model, **given)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{option} is {text!r}, but it must be numbers with commas between them, e.g. 1,8."
        ) from error
    if min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}, but every number must be at least 1.")
    return numbers


def _positive(text: str, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ConfigError(f"{option} is {text!r}, but it must be positive numbers with commas between them, e.g. 2,4.")
    return numbers


def _command() -> str:
    return shlex.join(["penstock", *sys.argv[1:]])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ask(url: str, path: str, api_key: str) -> Any:
    """JSON that a server answers, or None when it has no such route or is not there."""
    import urllib.request  # a web client is a tenth of this program's start

    base = url.rstrip("/").removesuffix("/v1")
    request = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def _first_model(url: str, api_key: str) -> str:
    served = _ask(url, "/v1/models", api_key)
    if not served or not served.get("data"):
        raise ConfigError(f"No server answers at {url}/v1/models. Start one (penstock serve) or give --url.")
    name: str = served["data"][0]["id"]
    return name


def _show(
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
