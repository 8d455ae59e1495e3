"""The OpenAPI document, read by schemathesis, which makes requests of it: fitting ones and broken ones."""

from __future__ import annotations

import contextlib
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode

from penstock.frontend.openai.openapi import make_document
from penstock.frontend.routes.table import ROUTES
from reliability.wire import Outcome

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


def whole_document(port: int, examples: int, paths: str = "") -> Outcome:
    """``examples`` fitting requests per operation and as many broken ones, by a fixed seed: never a 5xx, and every
    answer has a status and a form that the document gives."""
    outcome = Outcome()
    schema = schemathesis.openapi.from_dict(make_document(ROUTES, keyed=False))
    schema = schema.include(path_regex=paths) if paths else schema
    checks.load_all_checks()
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable):  # an operation that has nothing to get wrong
                _attempt(operation.as_strategy(generation_mode=mode), port, examples, outcome)
    outcome.broken = list(dict.fromkeys(outcome.broken))
    return outcome


def _attempt(strategy: Any, port: int, examples: int, outcome: Outcome) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=strategy)
    def attempt(case: Any) -> None:
        answer = case.call(base_url=f"http://127.0.0.1:{port}", timeout=60)
        outcome.add(str(answer.status_code))
        try:
            case.validate_response(answer, checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            causes = getattr(failure, "exceptions", (failure,))
            for cause in causes:
                outcome.broken.append(f"{case.method} {case.path}: {answer.status_code}: {cause}"[:500])

    attempt()
