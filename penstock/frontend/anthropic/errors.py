"""The error object of the Messages API."""

from __future__ import annotations

from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def encode_problem(problem: HttpError, request_id: str) -> bytes:
    """The JSON body of an answer that is an error, and the data of an error event."""
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    error = {"type": kind, "message": problem.message}
    return encode_json({"type": "error", "error": error, "request_id": request_id or None})
