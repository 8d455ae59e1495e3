"""The stream is the truth: whatever a request's news are and however they are grouped, chunks add up to the answer."""

from __future__ import annotations

import json

from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.generation import delta_of, fold_deltas
from penstock.frontend.openai.answers import Usage
from penstock.frontend.openai.format import ChatFormat, CompletionFormat, Echo, Head, Shown
from penstock.frontend.text.stream import PositionScores, TextDelta, TextFold, TokenScore

HEAD = Head(id="x", created=1, model="m")

scores = st.builds(
    TokenScore,
    token_id=st.integers(0, 99),
    text=st.text(max_size=3),
    data=st.binary(max_size=3),
    logprob=st.floats(-50, 0),
)
positions = st.builds(
    PositionScores,
    chosen=scores,
    rank=st.integers(1, 9),
    top=st.lists(scores, max_size=3).map(tuple),
    text_offset=st.integers(0, 99),
)
news = st.builds(
    TextDelta,
    text=st.text(max_size=5),
    token_ids=st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple),
    scores=st.lists(positions, max_size=2).map(tuple),
)


@st.composite
def streams(draw) -> list[TextDelta]:
    """News of one choice: prompt scores first, a finish reason last."""
    first = TextDelta(prompt_scores=tuple(draw(st.lists(positions, max_size=3))), text=draw(st.text(max_size=3)))
    last = TextDelta(finish_reason=draw(st.sampled_from(["stop", "length"])), stop_reason=draw(st.none() | st.text()))
    return [first, *draw(st.lists(news, max_size=6)), last]


shown = st.builds(
    Shown,
    logprobs=st.booleans(),
    max_top=st.none() | st.integers(0, 3),
    tokens_as_ids=st.booleans(),
    token_ids=st.booleans(),
    prompt_logprobs=st.booleans(),
    usage_in_chunks=st.booleans(),
)
cuts = st.lists(st.booleans(), min_size=8, max_size=8)


def grouped(deltas: list[TextDelta], joined: list[bool]) -> list[TextDelta]:
    """Neighbours folded into one where ``joined`` says so, as a congested stream does."""
    groups = [[deltas[0]]]
    for delta, join in zip(deltas[1:], joined, strict=False):
        groups[-1].append(delta) if join else groups.append([delta])
    return [group[0] if len(group) == 1 else fold_deltas(group) for group in groups]


def fold_of(deltas: list[TextDelta]) -> TextDelta:
    fold = TextFold()
    for delta in deltas:
        fold.add(delta)
    return delta_of(fold)


def events(data: bytes) -> list[dict]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def merge(into: dict, more: dict) -> dict:
    """What a client does with two choices of a stream: text and lists grow, everything else is replaced when set."""
    for key, value in more.items():
        old = into.get(key)
        grows = isinstance(value, list) or (isinstance(value, str) and key in ("text", "content"))
        if isinstance(value, dict) and isinstance(old, dict):
            merge(old, value)
        elif grows and isinstance(old, type(value)):
            into[key] = old + value
        elif value is not None or old is None:
            into[key] = value
    return into


@settings(max_examples=num_examples(30), deadline=None)
@given(choices=st.lists(streams(), min_size=1, max_size=3), cuts=cuts, shown=shown, echo=st.booleans())
def test_completion_chunks_add_up_to_the_answer(choices, cuts, shown, echo):
    fields = {"head": HEAD, "shown": shown, "n": 1, "prompts": [(5, 6)] * len(choices)}
    if echo:
        fields["echoes"] = [Echo(text="Prompt", first_token=TokenScore(5, "P", b"P", 0.0))] * len(choices)
    form = CompletionFormat(**fields)
    merged: dict[int, dict] = {}
    for index, deltas in enumerate(choices):
        for delta in grouped(deltas, cuts):
            for event in events(form.chunk(index, delta)):
                assert ("usage" in event) == shown.usage_in_chunks
                (choice,) = event["choices"]
                merge(merged.setdefault(choice["index"], {}), choice)
    answer = json.loads(CompletionFormat(**fields).answer({i: fold_of(d) for i, d in enumerate(choices)}, Usage()))
    assert answer["choices"] == [merged[index] for index in sorted(merged)]


@settings(max_examples=num_examples(30), deadline=None)
@given(choices=st.lists(streams(), min_size=1, max_size=3), cuts=cuts, shown=shown)
def test_chat_chunks_add_up_to_the_answer(choices, cuts, shown):
    fields = {"head": HEAD, "shown": shown, "prompts": [(5, 6)]}
    form = ChatFormat(**fields)
    merged: dict[int, dict] = {}
    for index, deltas in enumerate(choices):
        for delta in grouped(deltas, cuts):
            for event in events(form.chunk(index, delta)):
                assert event["object"] == "chat.completion.chunk"
                (choice,) = event["choices"]
                merge(merged.setdefault(choice["index"], {}), choice)
    answer = json.loads(ChatFormat(**fields).answer({i: fold_of(d) for i, d in enumerate(choices)}, Usage()))
    for choice in answer["choices"]:
        mine = merged[choice["index"]]
        assert mine["delta"] == {key: choice["message"][key] for key in ("role", "content")}
        assert mine["finish_reason"] == choice["finish_reason"]
        assert mine["stop_reason"] == choice["stop_reason"]
        assert mine.get("token_ids") == choice.get("token_ids")
        if shown.logprobs and choice["logprobs"]["content"]:
            assert mine["logprobs"] == choice["logprobs"]
    assert merged[0].get("prompt_logprobs") == answer.get("prompt_logprobs")
