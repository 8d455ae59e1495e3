"""What a caller asks for: sampling parameters, and the token-id request that reaches the engine core."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.errors import InvalidRequestError

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens, and when to stop. Names and defaults are the field's (OpenAI, vLLM).

    Text-level fields (``stop``, ``skip_special_tokens``, ``include_stop_str_in_output``, ``n``, ``bad_words``) are
    carried out by the frontend; everything else by the core and the sampler. ``stop_token_ids`` of a request that
    reaches the core already contains the model's end-of-sequence ids, unless ``ignore_eos``.
    Raises InvalidRequestError naming the field when a value is out of range.
    """

    n: int = 1
    max_tokens: int | None = None  # None: up to the model's context length
    min_tokens: int = 0
    temperature: float = 1.0  # 0 means greedy
    top_k: int = 0  # 0 or -1 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and output (CTRL, arXiv 1909.05858)
    presence_penalty: float = 0.0  # over output only (OpenAI)
    frequency_penalty: float = 0.0  # over output only (OpenAI)
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()  # empty allows all
    bad_words: tuple[str, ...] = ()
    bad_token_ids: tuple[tuple[int, ...], ...] = ()  # sequences that may never be completed
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # 0: of the sampled token only
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                upper = "" if high == math.inf else f" and at most {high:g}"
                raise InvalidRequestError(f"{name} must be at least {low:g}{upper}, got {value}.", param=name)
        if self.top_p <= 0:
            raise InvalidRequestError(f"top_p must be above 0, got {self.top_p}.", param="top_p")
        if self.typical_p <= 0:
            raise InvalidRequestError(f"typical_p must be above 0, got {self.typical_p}.", param="typical_p")
        if self.repetition_penalty <= 0:
            raise InvalidRequestError(
                f"repetition_penalty must be above 0, got {self.repetition_penalty}.", param="repetition_penalty"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).", param="min_tokens"
            )
        if any(text == "" for text in self.stop):
            raise InvalidRequestError("stop must not contain an empty string.", param="stop")
        for token_id, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:  # also refuses NaN
                raise InvalidRequestError(
                    f"logit_bias of token {token_id} must be between -100 and 100, got {bias}.", param="logit_bias"
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("n", 1, math.inf),
    ("max_tokens", 0, math.inf),
    ("min_tokens", 0, math.inf),
    ("temperature", 0, 100),
    ("top_k", -1, math.inf),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("typical_p", 0, 1),
    ("repetition_penalty", 0.01, 100),  # its powers must stay inside float32
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", -(2**63), 2**63 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One token stream to produce: what the frontend hands to the engine (``n`` is always fanned out before).

    ``request_id`` is an integer unique per engine, made by the client. Times are ``time.monotonic()`` seconds of
    one machine. ``extra_keys`` lists everything besides token ids that changes KV content (adapter, media digests).
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_time: float = 0.0
    deadline: float | None = None
    priority: int = 0  # lower runs first
    cache_salt: str = ""
    extra_keys: tuple[str, ...] = ()
