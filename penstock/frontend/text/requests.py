"""From what a caller asked to what the engine gets: one preparation for the server and for ``LLM``.

Does not know HTTP formats; chat messages arrive here already rendered.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.contract import Reading
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.stream import TextStream
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.types.request import GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

_PLAIN = frozenset((bool, int, float))
MAX_STOP_CHARACTERS = 16_384
"""Over all stop strings of a request: they become an automaton with one node per character."""
MAX_BAD_WORD_CHARACTERS = 16_384
"""Over all bad words of a request: each is tokenized twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """One prompt, ready for the engine: ``children`` has one GenerateRequest per choice, in order.

    ``reading`` says how the model's dialect reads the answers; None: they are content.
    """

    children: tuple[GenerateRequest, ...]
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams  # resolved, with the caller's n and seed
    assets: TextAssets
    reading: Reading | None = None

    def make_stream(self, index: int = 0) -> TextStream | AnswerStream:
        """A fresh stream for the child of this index."""
        selected, reading = self.assets.dialect, self.reading
        dialect = selected.dialect if selected is not None and reading is not None else None
        text = TextStream(
            self.assets.tokenizer,
            self.children[index].sampling,
            prompt_token_ids=self.prompt_token_ids,
            eos_token_ids=self.assets.stop_token_ids,
            visible_token_ids=frozenset() if dialect is None or selected is None else selected.visible_token_ids,
        )
        return text if dialect is None or reading is None else AnswerStream(text, dialect, reading)


def merge_sampling(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from the model's defaults and the fields that the caller really gave (None: not given).

    Raises InvalidRequestError as SamplingParams does.
    """
    given = {**defaults, **{name: value for name, value in asked.items() if value is not None}}
    if not _PLAIN.issuperset(map(type, given.values())):
        return SamplingParams(**given)
    return _plain_sampling(tuple(given), *given.values())


@lru_cache(maxsize=256, typed=True)  # a bool is no number, although they are equal
def _plain_sampling(names: tuple[str, ...], *values: Any) -> SamplingParams:
    """Most requests of a server ask for what another one has asked for, and every value is checked."""
    return SamplingParams(**dict(zip(names, values, strict=True)))


def encode_prompt(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Token ids of a prompt with at most one beginning-of-sequence token.

    A text that already begins with that token's text gets no second one from the tokenizer.
    """
    return one_bos(tokenizer, text, tokenizer.encode(text, add_special_tokens=add_special_tokens), add_special_tokens)


def one_bos(tokenizer: Tokenizer, text: str, ids: list[int], add_special_tokens: bool) -> tuple[int, ...]:
    """``ids`` of ``text`` without a second beginning-of-sequence token."""
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos] and add_special_tokens:
        plain = tokenizer.encode(text, add_special_tokens=False)
        if plain[:1] == [bos]:
            del ids[0]
    return tuple(ids)


def prepare_request(
    assets: TextAssets,
    prompt: str | Sequence[int],
    sampling: SamplingParams,
    *,
    new_request_id: Callable[[], int],
    max_model_len: int,
    add_special_tokens: bool = True,
    vocab_size: int | None = None,
    arrival_time: float | None = None,
    deadline: float | None = None,
    priority: int = 0,
    cache_salt: str = "",
    extra_keys: tuple[str, ...] = (),
    param: str = "prompt",
) -> PreparedRequest:
    """Check a prompt and its sampling against the model, resolve them, and fan ``n`` out.

    ``prompt`` is text or token ids; a rendered chat passes ``add_special_tokens=False``, because its template wrote
    them. ``vocab_size`` is the model's, which no id may reach; the tokenizer's may be smaller or larger. ``param``
    names the prompt field in errors. Raises InvalidRequestError.
    """
    limit = vocab_size or assets.tokenizer.vocab_size
    if isinstance(prompt, str):
        ids = encode_prompt(assets.tokenizer, prompt, add_special_tokens=add_special_tokens)
    else:
        ids = tuple(prompt)
    max_tokens = _max_tokens(sampling, len(ids), max_model_len, param, assets)  # first: it costs nothing
    _check_ids(ids, limit, param)
    _check_sampling(sampling, limit)
    resolved = _resolve_sampling(sampling, assets, max_tokens)
    arrival = time.monotonic() if arrival_time is None else arrival_time
    children = tuple(
        GenerateRequest(
            request_id=new_request_id(),
            prompt_token_ids=ids,
            sampling=_child_sampling(resolved, index),
            arrival_time=arrival,
            deadline=deadline,
            priority=priority,
            cache_salt=cache_salt,
            extra_keys=extra_keys,
        )
        for index in range(resolved.n)
    )
    return PreparedRequest(children=children, prompt_token_ids=ids, sampling=resolved, assets=assets)


@lru_cache(maxsize=16)  # all prompts of a request have the same
def bad_word_ids(tokenizer: Tokenizer, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Token sequences of words that must not appear: as written, and as they are after a space.

    Raises InvalidRequestError for a word without tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        plain = word.lstrip(" ")
        if not plain:
            raise InvalidRequestError(f"bad_words must contain words, got {word!r}.", param="bad_words")
        for text in (plain, " " + plain):
            sequences[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
    return tuple(sequence for sequence in sequences if sequence)


def _check_sampling(sampling: SamplingParams, limit: int) -> None:
    """What depends on the model: ids below ``limit``, and texts that become automata or tokens."""
    _check_ids(sampling.logit_bias, limit, "logit_bias")
    _check_ids(sampling.allowed_token_ids, limit, "allowed_token_ids")
    _check_ids(sampling.stop_token_ids, limit, "stop_token_ids")
    for sequence in sampling.bad_token_ids:
        _check_ids(sequence, limit, "bad_token_ids")
    _check_characters(sampling.stop, MAX_STOP_CHARACTERS, "stop")
    _check_characters(sampling.bad_words, MAX_BAD_WORD_CHARACTERS, "bad_words")


def _check_characters(texts: Sequence[str], limit: int, param: str) -> None:
    if sum(map(len, texts)) > limit:
        raise InvalidRequestError(f"{param} must not be longer than {limit} characters together.", param=param)


def _resolve_sampling(sampling: SamplingParams, assets: TextAssets, max_tokens: int) -> SamplingParams:
    stop_ids = frozenset(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_ids |= assets.stop_token_ids
    ends = tuple(sorted(stop_ids))
    if (
        sampling.max_tokens == max_tokens
        and sampling.min_tokens <= max_tokens
        and sampling.stop_token_ids == ends
        and not sampling.bad_words
    ):
        return sampling  # nothing to resolve: a copy would be checked all over again
    return dataclasses.replace(
        sampling,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
        stop_token_ids=ends,
        bad_token_ids=sampling.bad_token_ids + bad_word_ids(assets.tokenizer, sampling.bad_words),
    )


def _max_tokens(sampling: SamplingParams, num_prompt: int, max_model_len: int, param: str, assets: TextAssets) -> int:
    """The request's own number, else the model's, else the context that is left."""
    room = max_model_len - num_prompt
    if num_prompt == 0:
        raise InvalidRequestError(f"{param} must contain at least one token.", param=param)
    wanted = sampling.max_tokens
    if room < (1 if wanted is None else min(wanted, 1)):
        raise InvalidRequestError(
            f"{param} has {num_prompt} tokens, but this model's context holds {max_model_len} tokens with the output. "
            "Shorten it.",
            param=param,
            code="context_length_exceeded",
        )
    if wanted is not None and wanted > room:
        raise InvalidRequestError(
            f"{param} has {num_prompt} tokens and max_tokens asks for {wanted} more, but this model's context holds "
            f"{max_model_len} tokens. Shorten it, or ask for at most {room} tokens.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    if wanted is None:
        return room if assets.max_new_tokens is None else min(room, assets.max_new_tokens)
    return wanted


def _check_ids(ids: Sequence[int] | Mapping[int, float], limit: int, param: str) -> None:
    if not ids or (min(ids) >= 0 and max(ids) < limit):
        return
    wrong = next(token_id for token_id in ids if not 0 <= token_id < limit)
    raise InvalidRequestError(
        f"{param} contains token id {wrong}, but this model has ids 0 to {limit - 1}.", param=param
    )


def _child_sampling(sampling: SamplingParams, index: int) -> SamplingParams:
    if sampling.n == 1:
        return sampling
    seed = None if sampling.seed is None else _wrapped(sampling.seed + index)
    return dataclasses.replace(sampling, n=1, seed=seed)


def _wrapped(seed: int) -> int:
    """Back into the signed 64 bits that a seed may have."""
    return (seed + 2**63) % 2**64 - 2**63
