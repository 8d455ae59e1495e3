"""What a caller asks for: sampling parameters, and the token-id request that reaches the engine core."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.types.structured import StructuredSpec

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens, and when to stop. Names and defaults are the field's (OpenAI, vLLM).

    Text-level fields (``stop``, ``skip_special_tokens``, ``include_stop_str_in_output``, ``n``, ``bad_words``) are
    carried out by the frontend; everything else by the core and the sampler. ``stop_token_ids`` of a request that
    reaches the core already contains the model's end-of-sequence ids, unless ``ignore_eos``.
    Values are taken as Python callers give them and kept in the types declared here: lists become tuples, one text
    becomes a tuple of one, whole numbers become floats where a float is declared. Nothing else is converted: a bool is
    no number, and 2.0 is no integer. Raises InvalidRequestError naming the field when a type or a value is wrong.
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
    structured: StructuredSpec | None = None  # what the answer must look like

    def __post_init__(self) -> None:
        for name, kind, low, high in _RANGES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if type(value) is not kind:
                value = _as_integer(value, name) if kind is int else _as_number(value, name)
                object.__setattr__(self, name, value)
            if not low <= value <= high or value == math.inf:  # the comparison refuses NaN
                upper = f" and at most {high:g}" if high < _MAX_INT or value > high else ""
                raise InvalidRequestError(f"{name} must be at least {low:g}{upper}, got {value}.", param=name)
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise _wrong(name, "true or false", getattr(self, name))
        for name, normalised in _LISTS:
            value = getattr(self, name)
            if type(value) is not tuple or value:
                object.__setattr__(self, name, normalised(value, name))
        if type(self.logit_bias) is not dict or self.logit_bias:
            object.__setattr__(self, "logit_bias", _as_biases(self.logit_bias))
        self._check_together()

    def _check_together(self) -> None:
        if self.top_p <= 0:
            raise InvalidRequestError(f"top_p must be above 0, got {self.top_p}.", param="top_p")
        if self.typical_p <= 0:
            raise InvalidRequestError(f"typical_p must be above 0, got {self.typical_p}.", param="typical_p")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).", param="min_tokens"
            )
        if self.structured is not None and not isinstance(self.structured, StructuredSpec):
            raise _wrong("structured", "a StructuredSpec", self.structured)
        if "" in self.stop:
            raise InvalidRequestError("stop must not contain an empty string.", param="stop")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


_MAX_INT = 2**63 - 1  # what the records between processes hold

_RANGES: tuple[tuple[str, type, float, float], ...] = (
    ("n", int, 1, _MAX_INT),
    ("max_tokens", int, 0, _MAX_INT),
    ("min_tokens", int, 0, _MAX_INT),
    ("temperature", float, 0, 100),
    ("top_k", int, -1, _MAX_INT),
    ("top_p", float, 0, 1),
    ("min_p", float, 0, 1),
    ("typical_p", float, 0, 1),
    ("repetition_penalty", float, 0.01, 100),  # its powers must stay inside float32
    ("presence_penalty", float, -2, 2),
    ("frequency_penalty", float, -2, 2),
    ("seed", int, -(2**63), _MAX_INT),
    ("logprobs", int, 0, MAX_LOGPROBS),
    ("prompt_logprobs", int, 0, MAX_LOGPROBS),
)
_OPTIONAL = frozenset(("max_tokens", "seed", "logprobs", "prompt_logprobs"))
_SWITCHES = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")


def _wrong(name: str, wanted: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be {wanted}, got {reprlib.repr(value)}.", param=name)


def _as_integer(value: Any, name: str) -> int:
    """Whatever counts as an integer, numpy's too; not a bool, and no float however whole it is."""
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    raise _wrong(name, "an integer", value)


def _as_number(value: Any, name: str) -> float:
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _wrong(name, "a number", value)


def _as_texts(value: Any, name: str) -> tuple[str, ...]:
    """One text is a list of one; iterating over its characters is never what was meant."""
    if value is None:
        return ()
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise _wrong(name, "a text or a list of texts", value)
    return texts


def _as_ids(value: Any, name: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise _wrong(name, "a list of token ids", value)
    ids = value if type(value) is tuple else tuple(value)
    if set(map(type, ids)) <= {int}:
        return ids
    return tuple(_as_integer(token_id, name) for token_id in ids)


def _as_id_lists(value: Any, name: str) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, "a list of lists of token ids", value)
    return tuple(_as_ids(() if ids is None else ids, name) for ids in value)


def _as_biases(value: Any) -> dict[int, float]:
    """Biases by token id. Ids in digits are taken too, because JSON has no other keys."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong("logit_bias", "numbers by token id", value)
    biases: dict[int, float] = {}
    for key, given in value.items():
        digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
        token_id = key if type(key) is int else int(key) if digits else _as_integer(key, "logit_bias")
        bias = given if type(given) is float else _as_number(given, "logit_bias")
        if not -100 <= bias <= 100:  # also refuses NaN
            raise InvalidRequestError(
                f"logit_bias of token {token_id} must be between -100 and 100, got {bias}.", param="logit_bias"
            )
        biases[token_id] = bias
    return biases


_LISTS: tuple[tuple[str, Callable[[Any, str], tuple[Any, ...]]], ...] = (
    ("stop", _as_texts),
    ("bad_words", _as_texts),
    ("allowed_token_ids", _as_ids),
    ("stop_token_ids", _as_ids),
    ("bad_token_ids", _as_id_lists),
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
