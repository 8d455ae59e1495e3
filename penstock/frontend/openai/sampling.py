"""From request fields to sampling parameters: what both generation routes share. Knows no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.openai.removed import CHAT_REMOVED, refuse_removed
from penstock.frontend.openai.requests import ChatRequest, CompletionRequest, SamplingFields
from penstock.frontend.openai.structured import constraint_of
from penstock.frontend.text.requests import merge_sampling
from penstock.types.request import MAX_LOGPROBS, SamplingParams

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for completions; a chat may use the rest of the context."""

MAX_STOPS = 16
MAX_BIASES = 16_384
MAX_BAD_WORDS = 1024
"""Each is tokenized twice, and looked for at every token."""

_SAME_NAMES = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "ignore_eos", "skip_special_tokens",
    "include_stop_str_in_output", "prompt_logprobs",
)  # fmt: skip


def completion_sampling(request: CompletionRequest, defaults: Mapping[str, Any], max_n: int) -> SamplingParams:
    """Sampling of POST /v1/completions. Raises InvalidRequestError naming the field."""
    if request.suffix:
        raise InvalidRequestError(
            "suffix is not supported: the served model completes text, it does not fill in. Leave suffix out.",
            param="suffix",
        )
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequestError(
            f"best_of is supported only when it equals n, got best_of {request.best_of} and n {request.n or 1}. "
            "Ask for n answers with logprobs and choose among them.",
            param="best_of",
        )
    asked = _asked(request, max_n)
    asked["logprobs"] = request.logprobs
    if request.echo and request.logprobs is not None and request.prompt_logprobs is None:
        asked["prompt_logprobs"] = _checked_logprobs(request.logprobs, "logprobs")
    return merge_sampling(defaults, asked)


def chat_sampling(request: ChatRequest, defaults: Mapping[str, Any], max_n: int) -> SamplingParams:
    """Sampling of POST /v1/chat/completions. Raises InvalidRequestError naming the field."""
    _refuse_unsupported(request)
    if request.top_logprobs is not None:
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        _checked_logprobs(request.top_logprobs, "top_logprobs")
    asked = _asked(request, max_n)
    if request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise InvalidRequestError(
                "max_completion_tokens has replaced max_tokens, and the two differ: give max_completion_tokens alone.",
                param="max_tokens",
            )
        if request.max_completion_tokens < 0:
            raise InvalidRequestError(
                f"max_completion_tokens must be at least 0, got {request.max_completion_tokens}.",
                param="max_completion_tokens",
            )
        asked["max_tokens"] = request.max_completion_tokens
    asked["logprobs"] = (request.top_logprobs or 0) if request.logprobs else None
    return merge_sampling(defaults, asked)


def _refuse_unsupported(request: ChatRequest) -> None:
    given = [
        name for name in ("functions", "function_call") if getattr(request, name) not in (None, [], "none", "auto")
    ]
    refuse_removed(given, CHAT_REMOVED)
    if request.audio is not None or (request.modalities is not None and set(request.modalities) - {"text"}):
        name = "audio" if request.audio is not None else "modalities"
        raise InvalidRequestError(f"{name} is not supported: this model answers with text only.", param=name)
    if request.chat_template is not None:
        raise InvalidRequestError(
            "chat_template is not taken from requests; the server's operator sets it (--chat-template).",
            param="chat_template",
        )


def _asked(request: SamplingFields, max_n: int) -> dict[str, Any]:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options is only for requests with stream true.", param="stream_options")
    if request.n is not None and request.n > max_n:
        raise InvalidRequestError(f"n must be at most {max_n} on this server (--max-n), got {request.n}.", param="n")
    asked: dict[str, Any] = {name: getattr(request, name) for name in _SAME_NAMES}
    asked["structured"] = constraint_of(request)
    if request.stop is not None:
        stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
        if len(stops) > MAX_STOPS:
            raise InvalidRequestError(f"stop may hold at most {MAX_STOPS} strings, got {len(stops)}.", param="stop")
        asked["stop"] = stops
    if request.bad_words is not None and len(request.bad_words) > MAX_BAD_WORDS:
        raise InvalidRequestError(
            f"bad_words may hold at most {MAX_BAD_WORDS} words, got {len(request.bad_words)}.", param="bad_words"
        )
    for name in ("stop_token_ids", "allowed_token_ids", "bad_words"):
        value = getattr(request, name)
        if value is not None:
            asked[name] = tuple(value)
    if request.logit_bias:
        if len(request.logit_bias) > MAX_BIASES:
            raise InvalidRequestError(
                f"logit_bias may hold at most {MAX_BIASES} tokens, got {len(request.logit_bias)}.", param="logit_bias"
            )
        asked["logit_bias"] = {_bias_token(key): bias for key, bias in request.logit_bias.items()}
    return asked


def _bias_token(key: str) -> int:
    if key.isascii() and key.isdigit() and len(key) < 20:
        return int(key)
    raise InvalidRequestError(f"logit_bias keys must be token ids, got {key[:64]!r}.", param="logit_bias")


def _checked_logprobs(value: int, param: str) -> int:
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(f"{param} must be at least 0 and at most {MAX_LOGPROBS}, got {value}.", param=param)
    return value
