"""schemathesis reads our OpenAPI document and tries every route, with fitting data and with broken: never a 5xx."""

from __future__ import annotations

import pytest
import schemathesis
from http_fixtures import MockServer
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig
from schemathesis.generation import GenerationMode

from penstock.config.sections import ServerConfig
from penstock.frontend.openai.openapi import make_document
from penstock.frontend.routes.table import ROUTES

EXAMPLES = 60


@pytest.fixture(scope="module")
def server():
    limits = ServerConfig(port=0, max_n=4, request_timeout=10.0)
    with MockServer(max_model_len=128, check_integrity=False, server=limits) as server:
        yield server
        server.wait_idle()
        with server.http() as http:
            assert http.post("/v1/completions", json={"prompt": "still alive"}).status_code == 200


schema = schemathesis.openapi.from_dict(make_document(ROUTES, keyed=False))
schema.config.generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_route_ever_answers_with_a_server_error(case, server):
    case.call_and_validate(base_url=server.url, checks=[not_a_server_error], timeout=60)
