"""Round trips: a conversation is rendered by the model's own template, its last turn is read back in pieces, and what
was read is rendered again. Template, dialect and detokenizer cannot drift apart unnoticed, and no model is needed."""

from __future__ import annotations

import codecs
import json
import random
from typing import Any

import pytest
from dialect_cases import cases_of
from dialect_round_trips import (
    MESSAGES,
    REASONING,
    ROUND_TRIPS,
    TOOL_LIST,
    TOOLS,
    UNREAD,
    RoundTrip,
    published_models,
    template_of,
    template_source,
    tokenizer_of,
)

from penstock.frontend.dialects.events import AnswerFold, ContentText
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.reading import make_reading
from penstock.frontend.dialects.select import SelectedDialect, select_dialect
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.stream import TextStream
from penstock.mock.tokenizer import ByteTokenizer
from penstock.types.output import FinishReason, Terminal, TokenUpdate
from penstock.types.request import SamplingParams

USER = {"role": "user", "content": "What is the weather in Rome?"}


def selected(trip: RoundTrip) -> SelectedDialect:
    template = template_of(trip.source)
    tokenizer = tokenizer_of(trip.tokenizer) if trip.tokenizer else ByteTokenizer()
    return select_dialect(template.sources, template.render, tokenizer)


def message_of(trip: RoundTrip, content: str, calls: list[tuple[str, Any]], reasoning: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {
                "type": "function",
                "id": trip.call_id.format(name=name, index=index),
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(calls)
        ]
    return message


def render(trip: RoundTrip, messages: list[dict[str, Any]], variant: str, *, prompt: bool = False) -> str:
    kwargs = trip.thinking[variant]
    return template_of(trip.source).render(messages, tools=TOOL_LIST, add_generation_prompt=prompt, **kwargs)


def byte_cuts(text: str) -> list[list[str]]:
    """The text as a detokenizer would give it: from pieces of 1, 2, 7 and random numbers of bytes, characters split."""
    data, rng = text.encode(), random.Random(text)
    random_sizes = [rng.choice((1, 3, 5, 40)) for _ in data]
    ways = []
    for sizes in ([1] * len(data), [2] * len(data), [7] * len(data), random_sizes, [len(data)]):
        decoder, pieces, at = codecs.getincrementaldecoder("utf-8")(), [], 0
        for size in sizes:
            pieces.append(decoder.decode(data[at : at + size]))
            at += size
            if at >= len(data):
                break
        ways.append(pieces)
    return ways


def fold_pieces(dialect, reading, pieces: list[str]) -> AnswerFold:
    fold = AnswerFold()
    if reading is None:  # nothing but content can come
        fold.add([ContentText(piece) for piece in pieces])
        return fold
    machine = Machine(dialect, reading)
    for piece in pieces:
        fold.add(machine.push(piece))
    fold.add(machine.finish())
    return fold


def fold_tokens(
    trip: RoundTrip, choice: SelectedDialect, reading, prompt: str, completion: str, *, spelled: bool = False
) -> AnswerFold:
    """The same through token ids, one per update, with special tokens skipped as servers do. ``spelled``: every
    character by itself, so that no mark is the token that it has."""
    tokenizer = tokenizer_of(trip.tokenizer)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    parts = list(completion) if spelled else [completion]
    ids = [token_id for part in parts for token_id in tokenizer.encode(part, add_special_tokens=False)]
    text = TextStream(
        tokenizer, SamplingParams(), prompt_token_ids=prompt_ids, visible_token_ids=choice.visible_token_ids
    )
    stream, fold = AnswerStream(text, choice.dialect, reading), AnswerFold()
    for token_id in ids:
        fold.add(stream.on_update(TokenUpdate(request_id=1, token_ids=(token_id,))).events)
    last = stream.on_terminal(Terminal(request_id=1, reason=FinishReason.STOP))
    fold.add(last.events)
    assert last.finish_reason == ("tool_calls" if fold.calls else "stop")
    return fold


@pytest.mark.parametrize("trip", ROUND_TRIPS, ids=lambda trip: trip.source)
def test_the_template_is_recognised(trip):
    choice = selected(trip)
    assert choice.decision.chosen == trip.dialect, choice.decision
    assert (choice.dialect.reasoning is not None) == bool(trip.reasons or trip.unprinted)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize(
    ("trip", "variant"),
    [(trip, variant) for trip in ROUND_TRIPS for variant in trip.thinking],
    ids=lambda value: value if isinstance(value, str) else value.source,
)
def test_round_trip(trip, variant, name):
    if name in trip.skipped:
        assert trip.skipped[name]
        return
    content, calls = MESSAGES[name]
    choice = selected(trip)
    opened, written = trip.unprinted.get(variant, ("", ""))
    always = bool(written) or (trip.always_reasons and variant in trip.reasons)
    for reasoning in (REASONING,) if always else (REASONING, None) if variant in trip.reasons else (None,):
        message = message_of(trip, content, calls, reasoning)
        prompt, full = render(trip, [USER], variant, prompt=True), render(trip, [USER, message], variant)
        assert prompt.endswith(opened)
        head = prompt.removesuffix(opened)
        assert full.startswith(head)
        completion = written.replace("{}", REASONING) + full[len(head) : full.rindex(trip.stop)]
        reading = make_reading(choice.dialect, prompt, tools=TOOLS)
        folds = [fold_pieces(choice.dialect, reading, pieces) for pieces in byte_cuts(completion)]
        if trip.tokenizer:
            folds.append(fold_tokens(trip, choice, reading, prompt, completion))
            if name == "many calls":
                folds.append(fold_tokens(trip, choice, reading, prompt, completion, spelled=True))
        for fold in folds:
            assert fold.content == content
            assert fold.reasoning == (reasoning or "")
            assert all(call.complete for call in fold.calls)
            read = [(call.name, json.loads(call.arguments)) for call in fold.calls]
            assert read == calls
            order = sorted if trip.sorts_keys else list
            assert [list(arguments) for _, arguments in read] == [order(arguments) for _, arguments in calls]
            assert render(trip, [USER, message_of(trip, fold.content, read, fold.reasoning)], variant) == full


@pytest.mark.parametrize("source", published_models())
def test_every_published_model_is_recognised_or_has_a_reason(source):
    """Of the real templates none may go to a wrong dialect, or to none, without anybody noticing."""
    travelled = {trip.source: trip.dialect for trip in ROUND_TRIPS}
    assert (source in travelled) != (source in UNREAD)
    named = template_source(source)
    template = template_of(source) if named is not None else None
    tokenizer = ByteTokenizer() if named is not None else tokenizer_of(source)
    choice = select_dialect(
        template.sources if template is not None else {}, template.render if template is not None else None, tokenizer
    )
    expected, reason = UNREAD[source] if source in UNREAD else (travelled[source], "it makes a round trip")
    assert (choice.decision.chosen, bool(reason)) == (expected, True)


def test_every_dialect_makes_a_round_trip():
    """A dialect whose template cannot be had says so in its module of ``dialect_cases``."""
    travelled = {trip.dialect for trip in ROUND_TRIPS}
    for dialect in DIALECTS:
        assert dialect.name in travelled or getattr(cases_of(dialect.name), "NO_ROUND_TRIP", ""), dialect.name
