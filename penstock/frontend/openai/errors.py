"""The one error object of the protocol, and which status every exception of Penstock becomes."""

from __future__ import annotations

from penstock.errors import (
    EngineDeadError,
    InvalidRequestError,
    ModelNotServedError,
    OverloadedError,
    PenstockError,
    RequestFailedError,
    UserError,
)
from penstock.frontend.openai.encode import encode_json
from penstock.types.output import FailureKind, Terminal

TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable_error",
}

RETRY_AFTER_S = 5  # unless the one who refuses knows better: long enough to restart a process
_PASSING = frozenset({429, 503})

_FAILURE_STATUS = {
    FailureKind.INTERNAL.value: 500,
    FailureKind.DEADLINE.value: 408,
    FailureKind.TOO_LONG.value: 400,
    FailureKind.CONTRADICTION.value: 400,
    FailureKind.CONSTRAINT.value: 400,
    FailureKind.OVERLOADED.value: 429,
    FailureKind.ENGINE_DEAD.value: 503,
}


class HttpError(Exception):
    """An answer that is an error. Raised by routes and by the request boundary, encoded by ``encode``.

    Answers that say "not now" (429, 503) always say when to come back, so that clients and balancers need no guess.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers
        if status in _PASSING and all(name != "retry-after" for name, _ in headers):
            self.headers = (*headers, ("retry-after", str(RETRY_AFTER_S)))

    def encode(self) -> bytes:
        """The JSON body: an object with the one key ``error``."""
        kind = TYPE_OF_STATUS.get(self.status, "server_error")
        return encode_json({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})


def encode_problem(problem: HttpError, _request_id: str) -> bytes:
    """The JSON body of an answer that is an error. Its request's id stands in a header."""
    return problem.encode()


def problem_of(error: PenstockError) -> HttpError:
    """Map an exception of the tree to its answer; unknown branches are the server's fault."""
    message = str(error)
    if isinstance(error, InvalidRequestError):
        return HttpError(400, message, param=error.param, code=error.code)
    if isinstance(error, ModelNotServedError):
        return HttpError(404, message, param="model", code="model_not_found")
    if isinstance(error, UserError):
        return HttpError(400, message)
    if isinstance(error, OverloadedError):
        retry = (("retry-after", str(error.retry_after_s)),)
        code = "rate_limit_exceeded" if error.status == 429 else "unavailable"
        return HttpError(error.status, message, code=code, headers=retry)
    if isinstance(error, RequestFailedError):
        code = "rate_limit_exceeded" if error.kind == FailureKind.OVERLOADED.value else error.kind
        return HttpError(_FAILURE_STATUS.get(error.kind, 500), message, code=code)
    if isinstance(error, EngineDeadError):
        return HttpError(503, message, code=FailureKind.ENGINE_DEAD.value)
    return HttpError(500, message, code="internal")


def failure_of(terminal: Terminal) -> RequestFailedError:
    """The exception that stands for a terminal whose reason is ERROR."""
    kind = terminal.failure or FailureKind.INTERNAL
    return RequestFailedError(terminal.message or f"The request failed ({kind.value}).", kind=kind.value)
