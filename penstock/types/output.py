"""What the engine core tells a frontend: token updates and, exactly once per request, a terminal message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from penstock.types.result import TokenLogprobs
from penstock.types.structured import ConstraintStats


class FinishReason(Enum):
    STOP = "stop"  # a stop token; stop strings are the frontend's business
    LENGTH = "length"  # max_tokens or the context length
    ABORT = "abort"  # the client asked
    ERROR = "error"  # see Terminal.failure


class FailureKind(Enum):
    INTERNAL = "internal"
    DEADLINE = "deadline"  # the request's deadline passed
    TOO_LONG = "too_long"  # does not fit the KV cache even alone, or the model's context
    CONTRADICTION = "contradiction"  # the request's own parameters exclude every token
    CONSTRAINT = "constraint"  # what the answer must look like cannot be compiled, or cannot be followed
    OVERLOADED = "overloaded"  # refused before anything was computed: the queue that several frontends share is full
    ENGINE_DEAD = "engine_dead"


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """New tokens of one request, in order. ``logprobs`` is empty or has one entry per token."""

    request_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # positions 1.., in order, possibly over several updates


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """One new token each of many requests, none of which has anything else to say: the usual step, in two columns.

    ``request_ids`` are int64 and ``token_ids`` int32 values in the machine's byte order, as many of both.
    """

    request_ids: bytes = b""
    token_ids: bytes = b""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The last message of a request. Nothing follows it.

    ``stop_token_id`` is set when a stop token ended the request (the token is part of the last update).
    Times are ``time.monotonic()`` seconds: arrival, first admission, first token, end (0.0: never happened).
    """

    request_id: int
    reason: FinishReason
    failure: FailureKind | None = None
    message: str = ""
    stop_token_id: int | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens served by the prefix cache at first admission
    num_preemptions: int = 0
    arrived: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges at one moment and counters since start, from the core."""

    num_running: int = 0
    num_waiting: int = 0
    num_held: int = 0  # waiting for KV, or finished and held by a transfer
    kv_usage: float = 0.0  # share of blocks in use by requests, of the fullest pool
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    prompt_tokens: int = 0  # computed, without hits
    generation_tokens: int = 0
    forward_s: float = 0.0  # the executor's seconds in forwards: from the inputs to the logits
    sample_s: float = 0.0  # the executor's seconds in sampling
    inputs_s: float = 0.0  # the executor's seconds from plans to inputs
    plan_s: float = 0.0  # the core's seconds in making plans and handing them over
    results_s: float = 0.0  # the core's seconds in taking results in, without waiting for them
    num_compiling: int = 0  # requests whose constraint is being compiled; they are not among the waiting ones
    num_masked_rows: int = 0  # rows that sampled under a token mask
    accept_s: float = 0.0  # the core's seconds in following constraints by the tokens of answers
    outputs_s: float = 0.0  # the core's seconds in handing updates to the frontend
    constraints: ConstraintStats = field(default_factory=ConstraintStats)

    def at_rest(self) -> EngineStats:
        """The same counters with nothing in use: what is true of an engine that has gone."""
        return replace(self, num_running=0, num_waiting=0, num_held=0, num_compiling=0, kv_usage=0.0)


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """Everything one step produced, for one frontend. Updates of a request precede its terminal.

    ``columns`` has what is one token and nothing else in the form that travels; a request in it is not in ``updates``.
    """

    updates: tuple[TokenUpdate, ...] = ()
    terminals: tuple[Terminal, ...] = ()
    stats: EngineStats | None = field(default=None)
    columns: TokenColumns | None = None


OutputSink = Callable[[Sequence[TokenUpdate], Terminal | None], None]
"""Called on the event loop's thread, once per batch in which the request has news; must not block or raise."""
