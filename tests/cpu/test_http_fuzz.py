"""schemathesis reads our OpenAPI document and tries every route, with fitting data and with broken: never a 5xx, and
every answer is one that the document has.

Every route on the mock; the two that generate also on a real model, whose sampler meets the parameters.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
import schemathesis
from drawn_examples import num_examples
from engine_fixtures import save_model
from http_fixtures import MockServer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from penstock.config.sections import ServerConfig
from penstock.frontend.openai.openapi import make_document
from penstock.frontend.routes.table import ROUTES
from penstock.structured.grammar_cache import CompileLimits


@pytest.fixture(scope="module")
def server():
    limits = ServerConfig(port=0, max_n=4, request_timeout=10.0)
    # With the trial process, without which some of the grammars here compile for ever.
    trials = CompileLimits()
    with MockServer(max_model_len=128, check_integrity=False, server=limits, compile_limits=trials) as server:
        yield server
        server.wait_idle()
        with server.http() as http:
            assert http.post("/v1/completions", json={"prompt": "still alive"}).status_code == 200


schema = schemathesis.openapi.from_dict(make_document(ROUTES, keyed=False))
schema.config.generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


def bounded(examples):
    return settings(
        max_examples=num_examples(examples),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )


@schema.parametrize()
@bounded(60)
def test_no_route_ever_answers_with_a_server_error(case, server):
    conformance = [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.call_and_validate(base_url=server.url, checks=[not_a_server_error, *conformance], timeout=60)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server process with a tiny model; alive at the end."""
    directory = tmp_path_factory.mktemp("tiny")
    save_model(directory)
    flags = ("--dtype", "float32", "--max-model-len", "64", "--kv-cache-memory", "4MiB", "--threads", "1")
    command = [sys.executable, "-m", "penstock.cli", "serve", str(directory), "--port", "0", *flags]
    environment = {**os.environ, "PENSTOCK_LOG_LEVEL": "error"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        found = None
        for line in process.stderr:
            if found := re.match(r"Serving .* at (http://\S+)", line):
                break
        assert found, "the server did not start"
        yield found.group(1)
        answer = httpx.post(found.group(1) + "/v1/completions", json={"prompt": "still alive"}, timeout=60)
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0


@schema.include(path_regex="^/v1/(chat/)?completions$").parametrize()
@bounded(150)
def test_a_real_model_never_answers_with_a_server_error(case, url):
    case.call_and_validate(base_url=url, checks=[not_a_server_error], timeout=60)


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        yield client


def near(low, high, *tiny):
    return st.sampled_from((low, high, *tiny)) | st.floats(low, high)


LETTER_A = ord("a") - ord("!")  # its id in the tiny model's vocabulary
ids = st.integers(0, 259)
SAMPLING = {
    "temperature": near(0.0, 100.0, 5e-324, 1e-38, 1e-7),
    "top_k": st.sampled_from((-1, 0, 1, 2, 10**6)),
    "top_p": near(5e-324, 1.0, 1e-30),
    "min_p": near(0.0, 1.0, 1e-300),
    "typical_p": near(5e-324, 1.0, 1e-30),
    "repetition_penalty": near(0.01, 100.0),
    "presence_penalty": near(-2.0, 2.0),
    "frequency_penalty": near(-2.0, 2.0),
    "logit_bias": st.dictionaries(ids.map(str), near(-100.0, 100.0), max_size=3),
    "allowed_token_ids": st.lists(ids, min_size=1, max_size=4),
    "bad_words": st.lists(st.sampled_from(("a", " b", "<x>", "xyz")), max_size=3),
    "stop_token_ids": st.lists(ids, max_size=3),
    "min_tokens": st.integers(0, 4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logprobs": st.integers(0, 5),
    "prompt_logprobs": st.integers(0, 20),
    "ignore_eos": st.booleans(),
}


@given(body=st.fixed_dictionaries({}, optional=SAMPLING), prompt=st.lists(ids, min_size=1, max_size=20))
@bounded(800)
def test_any_parameters_in_range_are_answered_by_a_real_model(body, prompt, http):
    """With tokens, or with the sentence that these parameters exclude every token: nothing else."""
    answer = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 6, **body})
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "contradiction", answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"repetition_penalty": 1e-38, "temperature": 1}, 400),
        ({"repetition_penalty": 0.01, "temperature": 1}, 200),
        ({"allowed_token_ids": [LETTER_A], "bad_words": ["a"]}, 400),
        ({"allowed_token_ids": [259], "min_tokens": 2}, 400),
        ({"allowed_token_ids": [259, LETTER_A], "min_tokens": 2}, 200),
    ],
)
def test_contradictions_and_absurd_penalties_are_the_clients_fault(body, status, http):
    for stream in (False, True):
        answer = http.post("/v1/completions", json={"prompt": "a a a", "max_tokens": 4, "stream": stream, **body})
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["type"] == "invalid_request_error"
