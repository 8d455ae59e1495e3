"""What the server measures, under vLLM's metric names, and its Prometheus text. Knows no request content.

Names follow vLLM's v1 metrics after a configurable prefix, so that dashboards made for it work unchanged. Tokens and
latencies are counted where clients see them, in this process; gauges and cache counters come from the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.observability.metrics import AnyMetric, Counts, Distribution, MetricSet, Number, add_counts
from penstock.types.output import EngineStats, Terminal

if TYPE_CHECKING:
    from prometheus_client import Metric

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TTFT_LONG = (*_TTFT, 2560)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ADDED = tuple(number * 10.0**power for power in range(-5, 1) for number in (1, 1.5, 2, 3, 5, 7))
_N = (1, 2, 5, 10, 20)
FINISHED_REASONS = ("stop", "length", "abort", "error")


_ENGINES = frozenset(
    (
        "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "executor_forward_seconds",
        "executor_sample_seconds", "iteration_tokens_total", "structured_output_compilations",
        "structured_output_compile_seconds", "structured_output_cache_hits", "structured_output_rows",
        "structured_output_masks", "structured_output_mask_seconds", "structured_output_accept_seconds",
    )
)  # fmt: skip
"""Counted by the engine, so that every frontend knows all of it."""


def length_bounds(longest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to ``longest``."""
    bounds: list[int] = []
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power > longest:
                return tuple(bounds) or (1,)
            bounds.append(step * power)
        power *= 10


class ServerMetrics:
    """All metrics of one frontend. Called from the event loop's thread."""

    def __init__(self, *, prefix: str, model_name: str, engine: str = "0", max_model_len: int) -> None:
        self._labels = {"model_name": model_name, "engine": engine}
        self._prefix = prefix
        self._last_stats = EngineStats()
        self.seen_at = 0.0  # the round of news whose statistics were taken in last
        self.set = MetricSet()
        self._define_engine()
        self._define_structured()
        self._define_tokens(length_bounds(max_model_len))
        self._define_latencies()

    def _define_engine(self) -> None:
        gauge, counter = self.set.gauge, self.set.counter
        self._running = gauge("num_requests_running", "Requests in the execution batches of the model.").at()
        self._waiting = gauge("num_requests_waiting", "Requests waiting to be scheduled.").at()
        self._kv_usage = gauge("kv_cache_usage_perc", "KV cache usage; 1 means all blocks are in use.").at()
        self._queries = counter("prefix_cache_queries", "Tokens looked up in the prefix cache.").at()
        self._hits = counter("prefix_cache_hits", "Tokens found in the prefix cache.").at()
        self._preemptions = counter("num_preemptions", "Preemptions by the scheduler.").at()
        self._forward = counter("executor_forward_seconds", "Executor time from the inputs to the logits.").at()
        self._sample = counter("executor_sample_seconds", "Executor time from the logits to the tokens.").at()
        self._cache_config = gauge("cache_config_info", "The engine's resolved settings, as labels.")

    def _define_structured(self) -> None:
        """What constraints cost the engine. Whatever runs on its own thread holds every request up; the rest runs
        beside."""
        gauge, counter = self.set.gauge, self.set.counter
        self._compiling = gauge("num_requests_compiling", "Requests whose constraint is being compiled.").at()
        compilations = counter("structured_output_compilations", "Constraints compiled, or refused.", "result")
        self._compiled, self._refused = compilations.at("compiled"), compilations.at("refused")
        self._compile = counter("structured_output_compile_seconds", "Time in compiling, beside the engine.").at()
        self._found = counter("structured_output_cache_hits", "Requests that met their compiled constraint.").at()
        self._masked_rows = counter("structured_output_rows", "Rows of engine steps that had a token mask.").at()
        self._masks = counter("structured_output_masks", "Token masks filled.").at()
        self._mask = counter("structured_output_mask_seconds", "Time in filling masks, beside the engine.").at()
        self._accept = counter(
            "structured_output_accept_seconds", "The engine's own time in following constrained answers."
        ).at()

    def _define_tokens(self, lengths: tuple[int, ...]) -> None:
        counter, histogram = self.set.counter, self.set.histogram
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that were started.").at()
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens served by the prefix cache.").at()
        self.generation_tokens = counter("generation_tokens", "Tokens generated.").at()
        self._step_tokens = histogram("iteration_tokens_total", "Tokens per engine step.", _STEP_TOKENS).at()
        self._success = counter("request_success", "Requests that ended, by reason.", "finished_reason")
        for reason in FINISHED_REASONS:
            self._success.at(reason)
        self._prompt_len = histogram("request_prompt_tokens", "Prompt tokens per request.", lengths).at()
        self._output_len = histogram("request_generation_tokens", "Generated tokens per request.", lengths).at()
        self._computed_len = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens computed, without cache hits.", lengths
        ).at()
        self._max_output = histogram(
            "request_max_num_generation_tokens", "Most tokens generated by one sequence of the request.", lengths
        ).at()
        self._params_n = histogram("request_params_n", "Parameter n of requests.", _N).at()
        self._params_max = histogram("request_params_max_tokens", "Parameter max_tokens of requests.", lengths).at()

    def _define_latencies(self) -> None:
        histogram = self.set.histogram
        self._ttft = histogram("time_to_first_token_seconds", "Arrival to first token.", _TTFT_LONG).at()
        self._itl = histogram("inter_token_latency_seconds", "Time between two outputs of a sequence.", _ITL).at()
        self._tpot = histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, per request.", _ITL
        ).at()
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to end.", _LATENCY).at()
        self._added = histogram(
            "frontend_added_latency_seconds",
            "Engine's output of a token to its chunk handed to the system, counted per token.",
            _ADDED,
        ).at()
        self._queue = histogram("request_queue_time_seconds", "Arrival to first admission.", _LATENCY).at()
        self._inference = histogram("request_inference_time_seconds", "First admission to end.", _LATENCY).at()
        self._prefill = histogram("request_prefill_time_seconds", "First admission to first token.", _LATENCY).at()
        self._decode = histogram("request_decode_time_seconds", "First token to end.", _LATENCY).at()

    def on_submitted(self, n: int, max_tokens: int | None) -> None:
        """Once per HTTP request."""
        self._params_n.observe(n)
        if max_tokens is not None:
            self._params_max.observe(max_tokens)

    def on_tokens(self, num_tokens: int, num_prompt: int, since: float, now: float, first: bool) -> None:
        """News of one sequence; ``since`` is its arrival (``first``) or its previous output."""
        self.generation_tokens.value += num_tokens
        if first:
            self.prompt_tokens.value += num_prompt
            self._ttft.observe(now - since)
        else:
            self._itl.observe(now - since)

    def on_later_tokens(self, num_tokens: int, gap: float) -> None:
        """The same for a sequence that has had output before, ``gap`` seconds ago."""
        self.generation_tokens.value += num_tokens
        self._itl.observe(gap)

    def on_delivery(self, seconds: float, num_tokens: int) -> None:
        """Once per step of the engine: how long its tokens took through this process."""
        self._added.observe(seconds, num_tokens)

    def on_stats(self, stats: EngineStats) -> None:
        """The newest engine statistics, called with every batch of output; cheap when they are the same record."""
        last = self._last_stats
        if stats is last:
            return
        self._last_stats = stats
        steps = stats.num_steps - last.num_steps
        tokens = stats.prompt_tokens + stats.generation_tokens - last.prompt_tokens - last.generation_tokens
        if steps > 0:
            self._step_tokens.observe(tokens / steps, steps)

    def on_terminal(self, terminal: Terminal, reason: str, arrival: float, now: float) -> None:
        """Once per sequence. ``reason`` is what the client was told ("stop" also for a stop string); calls end an
        answer as a stop does, and are counted so."""
        self._success.at("stop" if reason == "tool_calls" else reason).add()
        self._prompt_len.observe(terminal.num_prompt_tokens)
        self._output_len.observe(terminal.num_output_tokens)
        self.cached_tokens.add(terminal.num_cached_tokens)
        self._computed_len.observe(terminal.num_prompt_tokens - terminal.num_cached_tokens)
        self._max_output.observe(terminal.num_output_tokens)
        self._e2e.observe(now - arrival)
        if not terminal.admitted:
            return
        self._queue.observe(terminal.admitted - terminal.arrived)
        self._inference.observe(terminal.ended - terminal.admitted)
        if terminal.first_token:
            decode = terminal.ended - terminal.first_token
            self._prefill.observe(terminal.first_token - terminal.admitted)
            self._decode.observe(decode)
            if terminal.num_output_tokens > 1:
                self._tpot.observe(decode / (terminal.num_output_tokens - 1))

    def set_cache_config(self, settings: dict[str, str]) -> None:
        """Show resolved settings as the labels of one constant gauge."""
        names = tuple(sorted(settings))
        self._cache_config.label_names = names
        self._cache_config.samples.clear()
        self._cache_config.at(*(settings[name] for name in names)).set(1)

    def expose(self, stats: EngineStats, others: Sequence[Counts] = ()) -> bytes:
        """The Prometheus text (version 0.0.4) with gauges taken from ``stats``. ``others`` are the counts of other
        frontends of the same engine: what is counted per request is added up, what the engine counts is not."""
        from prometheus_client import generate_latest
        from prometheus_client.registry import Collector, CollectorRegistry

        self.on_stats(stats)
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._kv_usage.set(stats.kv_usage)
        self._queries.set(stats.prefix_query_tokens)
        self._hits.set(stats.prefix_hit_tokens)
        self._preemptions.set(stats.num_preemptions)
        self._forward.set(stats.forward_s)
        self._sample.set(stats.sample_s)
        self._set_structured(stats)
        metrics = self

        class Snapshot(Collector):
            def collect(self) -> Iterable[Metric]:
                return metrics._families(others)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Snapshot())
        return generate_latest(registry)

    def _set_structured(self, stats: EngineStats) -> None:
        constraints = stats.constraints
        self._compiling.set(stats.num_compiling)
        self._compiled.set(constraints.num_compiled)
        self._refused.set(constraints.num_refused)
        self._compile.set(constraints.compile_s)
        self._found.set(constraints.num_found)
        self._masked_rows.set(stats.num_masked_rows)
        self._masks.set(constraints.num_masks)
        self._mask.set(constraints.masks_s)
        self._accept.set(stats.accept_s)

    def _families(self, others: Sequence[Counts]) -> Iterator[Metric]:
        for metric in self.set:
            added = [counts[metric.name] for counts in others if metric.name in counts]
            if metric.name in _ENGINES:
                added = []
            yield _family(metric, f"{self._prefix}:{metric.name}", self._labels, added)


def _family(
    metric: AnyMetric, name: str, fixed: dict[str, str], others: Sequence[dict[tuple[str, ...], list[float]]] = ()
) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labels = [*fixed, *metric.label_names]
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family = kinds[metric.kind](name, metric.text, labels=labels)
    for values in dict.fromkeys(values for samples in (metric.samples, *others) for values in samples):
        full = [*fixed.values(), *values]
        own = metric.samples.get(values)
        sample = add_counts(
            metric.make() if own is None else own, [counts[values] for counts in others if values in counts]
        )
        if isinstance(sample, Number):
            family.add_metric(full, sample.value)
        else:
            family.add_metric(full, _cumulative(sample), sample.total)
    return family  # type: ignore[no-any-return]


def _cumulative(sample: Distribution) -> list[tuple[str, float]]:
    running = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, map(float, sample.bounds)), "+Inf"), sample.counts, strict=True):
        running += count
        buckets.append((bound, running))
    return buckets
