"""Routes about the server itself: metrics read by Prometheus' own parser, the document, decisions, the page."""

from __future__ import annotations

import re

import pytest
from http_fixtures import MockServer, mock_server
from prometheus_client.parser import text_string_to_metric_families

import penstock
from penstock.config.sections import ServerConfig
from penstock.frontend.metrics import ServerMetrics, length_bounds
from penstock.frontend.routes.table import ROUTES
from penstock.types.output import EngineStats, FinishReason, Terminal

# Names that existing dashboards query, without prefix.
GAUGES = {
    "num_requests_running", "num_requests_waiting", "num_requests_compiling", "kv_cache_usage_perc",
    "cache_config_info",
}  # fmt: skip
COUNTERS = {
    "executor_forward_seconds", "executor_sample_seconds",
    "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens",
    "request_success", "prompt_tokens_cached", "structured_output_compilations", "structured_output_compile_seconds",
    "structured_output_cache_hits", "structured_output_rows", "structured_output_masks",
    "structured_output_mask_seconds", "structured_output_accept_seconds",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_params_n", "request_params_max_tokens", "iteration_tokens_total",
    "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens", "frontend_added_latency_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with MockServer(server=ServerConfig(port=0, metrics_prefix="vllm"), step_s=0.001) as server:
        yield server


def read_metrics(text: str) -> dict[str, float]:
    """Every sample by name and labels, after checking that the names are complete and typed."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kinds = {"gauge": GAUGES, "counter": COUNTERS, "histogram": HISTOGRAMS}
    for kind, names in kinds.items():
        found = {name.partition(":")[2] for name, family in families.items() if family.type == kind}
        assert found == names
    samples = {}
    for family in families.values():
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model_name"), labels.pop("engine")) == ("mock", "0")
            rest = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
            samples[f"{sample.name.partition(':')[2]}{{{rest}}}"] = sample.value
    return samples


def test_metrics_count_what_clients_saw(server):
    with server.http() as http:
        before = read_metrics(http.get("/metrics").text)
        http.post("/v1/completions", json={"prompt": "a" * 40, "max_tokens": 10, "n": 2})
        http.post("/v1/completions", json={"prompt": "a" * 40, "max_tokens": 300, "stop": "fox", "stream": True})
        server.wait_idle()
        response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.startswith("# HELP vllm:num_requests_running ")
    after = read_metrics(response.text)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["request_success_total{finished_reason=length}"] == 2
    assert grown["request_success_total{finished_reason=stop}"] == 1
    assert grown["prompt_tokens_total{}"] == 120
    assert 20 < grown["generation_tokens_total{}"] < 320
    assert grown["time_to_first_token_seconds_count{}"] == 3
    assert grown["e2e_request_latency_seconds_count{}"] == 3
    assert grown["request_queue_time_seconds_count{}"] == 3
    assert grown["request_params_n_sum{}"] == 3
    assert grown["request_params_max_tokens_sum{}"] == 310
    assert grown["request_prompt_tokens_sum{}"] == 120
    assert grown["inter_token_latency_seconds_count{}"] > 18
    assert grown["iteration_tokens_total_count{}"] > 0
    assert grown["prefix_cache_queries_total{}"] > 0
    assert grown["executor_forward_seconds_total{}"] > 0
    assert after["executor_sample_seconds_total{}"] == 0  # the mock does not tell it apart
    assert after["num_requests_running{}"] == 0


def test_histogram_buckets_are_cumulative(server):
    with server.http() as http:
        http.post("/v1/completions", json={"prompt": "abc"})
        samples = read_metrics(http.get("/metrics").text)
    for name in HISTOGRAMS:
        buckets = [value for key, value in samples.items() if key.startswith(name + "_bucket{")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == samples[f"{name}_count{{}}"]


def test_step_tokens_are_shared_out_over_the_steps_since_the_last_look():
    metrics = ServerMetrics(prefix="p", model_name="m", max_model_len=100)
    metrics.on_stats(EngineStats(num_steps=2, prompt_tokens=30, generation_tokens=2))
    metrics.on_stats(EngineStats(num_steps=5, prompt_tokens=30, generation_tokens=5))
    text = metrics.expose(EngineStats(num_steps=5, prompt_tokens=30, generation_tokens=5)).decode()
    assert 'p:iteration_tokens_total_sum{engine="0",model_name="m"} 35.0' in text
    assert 'p:iteration_tokens_total_count{engine="0",model_name="m"} 5.0' in text
    assert 'p:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 3.0' in text


def test_what_only_another_frontend_has_seen_is_shown_too():
    mine, other = (ServerMetrics(prefix="p", model_name="m", max_model_len=10) for _ in range(2))
    for metrics in (mine, other):
        metrics.set.counter("seen", "By label.", "what").at("both").add(1)
        metrics.set.histogram("took", "By label.", (1, 2), "what")
    counts = other.set.counts()
    counts["seen"]["theirs",] = [5.0]
    counts["took"]["theirs",] = [3.0, 0, 2, 0]
    text = mine.expose(EngineStats(), [counts, counts]).decode()
    assert 'p:seen_total{engine="0",model_name="m",what="both"} 3.0' in text
    assert 'p:seen_total{engine="0",model_name="m",what="theirs"} 10.0' in text
    assert 'p:took_bucket{engine="0",le="2.0",model_name="m",what="theirs"} 4.0' in text
    assert ("theirs",) not in mine.set.counts()["seen"]


def test_calls_are_counted_as_stops():
    metrics = ServerMetrics(prefix="p", model_name="m", max_model_len=10)
    metrics.on_terminal(Terminal(1, FinishReason.STOP), "tool_calls", 0.0, 1.0)
    counts = metrics.set.counts()["request_success"]
    assert counts == {("stop",): [1.0], ("length",): [0.0], ("abort",): [0.0], ("error",): [0.0]}


def test_label_values_are_escaped():
    metrics = ServerMetrics(prefix="p", model_name='a"b\\c\nd', max_model_len=10)
    families = list(text_string_to_metric_families(metrics.expose(EngineStats()).decode()))
    assert families[0].samples[0].labels["model_name"] == 'a"b\\c\nd'


def test_length_bounds():
    assert length_bounds(2048) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    assert length_bounds(1) == (1,)


def test_version_health_and_ready(server):
    with server.http() as http:
        assert http.get("/version").json()["version"] == penstock.__version__
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").json() == {"status": "ready"}


def test_decisions_show_facts_and_reasons(server):
    with server.http() as http:
        body = http.get("/debug/decisions").json()
    assert body["decisions"][0]["rejected"] == [{"name": "local", "reasons": ["no weights"]}]
    assert body["model"]["name"] == "mock"
    assert body["served_names"] == ["mock", "alias"]
    assert body["settings"]["dtype"] == "float32"


def test_load_follows_the_engine():
    with mock_server(step_s=0.01) as server, server.http() as http:
        with http.stream("POST", "/v1/completions", json={"prompt": "abc", "max_tokens": 500, "stream": True}):
            server.wait_for(lambda: http.get("/debug/load").json()["num_running"] == 1)
            server.wait_for(lambda: http.get("/debug/load").json()["sent_tokens"] > 3)
            assert http.get("/debug/load").json()["num_open"] == 1
        server.wait_idle()
        assert http.get("/debug/load").json()["num_running"] == 0


def test_the_document_describes_every_route_and_field(server):
    with server.http() as http:
        document = http.get("/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES if route.documented}
    completion = document["components"]["schemas"]["CompletionRequest"]
    assert {"prompt", "echo", "min_p", "cache_salt", "stop_token_ids"} <= set(completion["properties"])
    assert completion["required"] == ["prompt"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= set(document["components"]["schemas"])


def test_the_page_is_served_from_the_package_and_loads_nothing_from_elsewhere(server):
    with server.http() as http:
        page = http.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert path.startswith(("/", "data:")), path
            if not path.startswith("data:"):
                assert http.get(path).status_code == 200, path
        script = http.get("/page/page.js").text
    used = set(re.findall(r"\$\(\"([\w-]+)\"\)", script))
    assert used <= set(re.findall(r'id="([\w-]+)"', page.text))
    assert not re.findall(r"https?://", page.text + script)
