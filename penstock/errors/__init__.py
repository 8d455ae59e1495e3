"""The one exception tree.

    PenstockError
    |-- UserError                  what was asked cannot be done; the message says what to do instead
    |   |-- InvalidRequestError    a field of a request is wrong              HTTP 400, names the field
    |   |-- ModelNotServedError    the request names a model we do not serve  HTTP 404
    |   |-- ConfigError            a flag, section or environment variable    exit code 2
    |   |-- ModelSourceError       a model could not be found or fetched      exit code 2
    |   |-- UnsupportedModelError  files are there, but no family or format reads them
    |   `-- NoBackendError         every candidate refused; carries the Decision with all reasons
    |-- OverloadedError            try again later                            HTTP 429 or 503, Retry-After
    |-- RequestFailedError         one accepted request ended with an error   HTTP 500 (408 past its deadline)
    |-- EngineDeadError            the engine process is gone                 HTTP 503
    `-- IntegrityError             an invariant of the core does not hold: a bug in Penstock

Messages are sentences: what was asked, what was found, what to do. A hint follows a blank line.
"""

from __future__ import annotations

from typing import Any


class PenstockError(Exception):
    """Root of every exception that Penstock raises on purpose."""


class UserError(PenstockError):
    """The caller can fix this; the message says how. Never printed with a stack trace."""


class InvalidRequestError(UserError):
    """A request field has a wrong type, a value out of range, or does not fit the model.

    ``param`` is the name of the offending field as the caller wrote it, or None when no one field is to blame.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotServedError(UserError):
    """The request names a model that this server does not serve."""


class ConfigError(UserError):
    """A flag, a configuration section or an environment variable is wrong."""


class ModelSourceError(UserError):
    """A model name is unknown, or its files could not be fetched, verified or read."""


class UnsupportedModelError(UserError):
    """The files are readable, but their architecture, tensor type or options are not supported."""


class NoBackendError(UserError):
    """No candidate of an operation can run, or the one the user named refused.

    ``decision`` is the :class:`penstock.types.decision.Decision` with every refusal and its reasons.
    """

    def __init__(self, message: str, *, decision: Any) -> None:
        super().__init__(message)
        self.decision = decision


class OverloadedError(PenstockError):
    """The server cannot take this request now. ``status`` is 429 (queue full) or 503 (starting or draining)."""

    def __init__(self, message: str, *, status: int = 429, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class RequestFailedError(PenstockError):
    """An accepted request ended with an error. ``kind`` is one of ``types.output.FailureKind``'s values."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class EngineDeadError(PenstockError):
    """The engine stopped; no request can be answered until the server is restarted."""


class IntegrityError(PenstockError):
    """An invariant of the scheduler or the KV bookkeeping does not hold."""
