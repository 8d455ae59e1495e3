"""``penstock bench serve``: HTTP load on a running server."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from penstock.cli.bench import (
    InputLen,
    JsonOption,
    OutputLen,
    PlotOption,
    PromptsOption,
    Seed,
    command_line,
    numbers,
    say,
    show,
)
from penstock.cli.parse import Argument, Option, verb
from penstock.errors import ConfigError

Model = Annotated[str, Argument("[MODEL]", "Name to ask for. Default: the first served.")]
Url = Annotated[str, Option("--url", help="Server to load, this one or any other.")]
Chat = Annotated[
    bool, Option("--chat", off="--completions", help="Load /v1/chat/completions instead of /v1/completions.")
]
Concurrency = Annotated[
    str | None,
    Option(
        "--concurrency",
        metavar="N,N,...",
        help="Closed loop: streams open at once. With --request-rate: the most that may be open, one number. "
        "Default: 1,8,32, or no limit with --request-rate.",
    ),
]
NumPrompts = Annotated[
    int, Option("--num-prompts", minimum=1, help="Requests per row; at least two per stream in a closed loop.")
]
RequestRate = Annotated[
    str | None,
    Option(
        "--request-rate",
        metavar="X,X,...",
        help="Open loop: requests per second on average, sent when they are due, whatever the server does.",
    ),
]
Burstiness = Annotated[
    float,
    Option("--burstiness", help="Shape of the gaps of an open loop: 1 Poisson arrivals, less in bursts, 100 evenly."),
]
Processes = Annotated[
    int, Option("--processes", minimum=1, help="Processes of the load generator that share the work.")
]
Pid = Annotated[
    int | None,
    Option("--pid", help="The server's process: report its CPU time per token and its memory."),
]
Timeout = Annotated[float, Option("--timeout", help="Seconds after which an answer counts as failed.")]
NaturalEnd = Annotated[
    bool,
    Option(
        "--natural-end",
        help="Answers end by themselves: ignore_eos and min_tokens are not sent, which some servers refuse.",
    ),
]
Text = Annotated[
    bool, Option("--text", help="Completions get words instead of token ids, which some servers do not take.")
]
VocabSize = Annotated[
    int | None,
    Option(
        "--vocab-size",
        minimum=200,
        help="Random token ids stay below it. Default: that of a Penstock server's model, else 32000.",
    ),
]
ApiKey = Annotated[str, Option("--api-key", help="Key to present.")]


@verb()
def serve(
    model: Model = "",
    url: Url = "http://127.0.0.1:8000",
    chat: Chat = False,
    concurrency: Concurrency = None,
    num_prompts: NumPrompts = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    request_rate: RequestRate = None,
    burstiness: Burstiness = 1.0,
    processes: Processes = 1,
    pid: Pid = None,
    timeout: Timeout = 600.0,
    natural_end: NaturalEnd = False,
    text: Text = False,
    vocab_size: VocabSize = None,
    api_key: ApiKey = "",
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

    streams = numbers(concurrency, "--concurrency") if concurrency else () if request_rate else (1, 8, 32)
    if request_rate and len(streams) > 1:
        raise ConfigError("Give one number to --concurrency beside --request-rate: the most streams that may be open.")
    workload = ServeWorkload(
        concurrencies=streams,
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
    report = measure_serve(target, workload, prompts_for, command_line(), say, engine, pid)
    x = "request_rate" if request_rate else "concurrency"
    show(report, json_file, plot, x=x, ys=("output_tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p99"))


def _positive(text: str, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ConfigError(f"{option} is {text!r}, but it must be positive numbers with commas between them, e.g. 2,4.")
    return numbers


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
