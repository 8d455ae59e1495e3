"""Every dialect of the table: its samples, its positions on broken output, and the cost of long output."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import pytest
from dialect_cases import CASE_NAMES, ROME, TOOLS, Case, cases_of
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.events import AnswerFold, ArgumentText, CallBegun, CallEnded
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.stream import TextStream
from penstock.mock.tokenizer import ByteTokenizer
from penstock.types.output import TokenUpdate
from penstock.types.request import SamplingParams

SAMPLE_TOOLS = TOOLS | {
    "weather": {"type": "object", "properties": {**TOOLS["weather"]["properties"], "hours": {"type": "array"}}}
}
BY_NAME = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def read(dialect: Dialect, pieces, *, tools=TOOLS, in_reasoning=False):
    """(content, reasoning, calls) of an answer in pieces; checks what holds for every stream of events."""
    machine = Machine(dialect, Reading(tools=tools, in_reasoning=in_reasoning))
    events = [event for piece in pieces for event in machine.push(piece)]
    events.extend(machine.finish())
    num_begun, is_open = 0, False
    for event in events:
        match event:
            case CallBegun(index, call_id, _):
                assert not is_open
                assert index == num_begun
                assert call_id
                num_begun, is_open = num_begun + 1, True
            case ArgumentText(index, text):
                assert is_open
                assert index == num_begun - 1
                assert text
            case CallEnded(index, _):
                assert is_open
                assert index == num_begun - 1
                is_open = False
    assert not is_open
    fold = AnswerFold()
    fold.add(events)
    assert machine.num_completed == sum(call.complete for call in fold.calls)
    return fold.content, fold.reasoning, tuple((call.name, call.arguments, call.complete) for call in fold.calls)


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def cuts_of(text: str) -> list[list[str]]:
    """One piece, pieces of 1, 2 and 7 characters, and random ones."""
    rng = random.Random(text)
    ways = [[text], *(cut(text, size) for size in (1, 2, 7))]
    for _ in range(5):
        at = sorted(rng.randrange(len(text) + 1) for _ in range(6))
        ways.append([text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
    return ways


@BY_NAME
def test_samples_say_what_they_say(dialect):
    assert dialect.samples
    for sample in dialect.samples:
        expected = (sample.content, sample.reasoning, tuple((*call, True) for call in sample.calls))
        for pieces in cuts_of(sample.text):
            got = read(dialect, pieces, tools=SAMPLE_TOOLS, in_reasoning=sample.in_reasoning)
            assert got == expected, sample.title


@BY_NAME
def test_there_is_a_position_on_every_case(dialect):
    assert set(cases_of(dialect.name).CASES) == set(CASE_NAMES)


@BY_NAME
@pytest.mark.parametrize("name", CASE_NAMES)
def test_broken_output(dialect, name):
    case = cases_of(dialect.name).CASES[name]
    if not isinstance(case, Case):
        assert case  # a sentence why there is none
        return
    for pieces in cuts_of(case.text):
        got = read(dialect, pieces, in_reasoning=case.in_reasoning)
        assert got == (case.content, case.reasoning, case.calls)


@BY_NAME
def test_a_missing_end_does_not_swallow_the_next_call(dialect):
    """Where a call is complete without its end marker, what stands behind it is read as if the marker were there."""
    case = cases_of(dialect.name).CASES["no_end_marker"]
    if not isinstance(case, Case) or case.calls != (ROME,) or case.content:
        return
    whole = cases_of(dialect.name).CASES["space_between_calls"].text.split(" \n\n ")[0]
    for pieces in cuts_of(f"{case.text}\n{whole}"):
        assert read(dialect, pieces) == ("", "", (ROME, ROME))


@BY_NAME
def test_without_tools_a_call_is_content(dialect):
    """tool_choice none, and a model that calls all the same."""
    if dialect.name == "think":
        return
    text = cases_of(dialect.name).long_call("abc")
    for pieces in (cut(text, 7), [text]):
        assert read(dialect, pieces, tools={}) == (text, "", ())


@BY_NAME
def test_no_more_calls_than_the_request_wants(dialect):
    """parallel_tool_calls false, and a model that calls twice."""
    if dialect.name == "think":
        return
    text = cases_of(dialect.name).long_call("abc")
    for pieces in (cut(text + text, 1), [text + text]):
        machine, fold = Machine(dialect, Reading(tools=TOOLS, max_calls=1)), AnswerFold()
        for piece in pieces:
            fold.add(machine.push(piece))
        fold.add(machine.finish())
        assert machine.is_done
        assert [(call.name, call.arguments) for call in fold.calls] == [("note", '{"text": "abc"}')]
        assert not fold.content


@BY_NAME
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stop_string_inside_a_call_leaves_it_incomplete(dialect, size):
    """What stood before it is the call's, nothing is complete, and so the answer stopped."""
    if dialect.name == "think":
        return
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(cases_of(dialect.name).long_call("abc é STOP def"), add_special_tokens=False)
    text = TextStream(tokenizer, SamplingParams(stop=("STOP",)))
    stream, fold = AnswerStream(text, dialect, Reading(tools=TOOLS)), AnswerFold()
    for at in range(0, len(ids), size):
        fold.add(stream.on_update(TokenUpdate(request_id=1, token_ids=tuple(ids[at : at + size]))).events)
    assert stream.finish_reason == "stop"
    assert [(call.name, call.arguments, call.complete) for call in fold.calls] == [("note", '{"text": "abc é ', False)]
    assert not fold.content


def words_of(dialect: Dialect) -> list[str]:
    """What makes trouble: markers, whole samples and cases, and their pieces."""
    texts = [sample.text for sample in dialect.samples]
    texts += [case.text for case in cases_of(dialect.name).CASES.values() if isinstance(case, Case)]
    markers = [*dialect.visible_texts(), *(marker[: len(marker) // 2] for marker in dialect.visible_texts())]
    return [*texts, *markers, "\n", " ", '"', "{", "}", '{"name": "note", ', '"arguments": {', "é🦊", ">", "]", ";"]


@BY_NAME
@settings(max_examples=num_examples(150), deadline=None)
@given(data=st.data())
def test_the_answer_does_not_depend_on_the_cuts(dialect, data):
    words = data.draw(st.lists(st.sampled_from(words_of(dialect)) | st.text(max_size=4), max_size=8))
    text = "".join(words)
    in_reasoning = dialect.reasoning is not None and data.draw(st.booleans())
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    whole = read(dialect, [text], in_reasoning=in_reasoning)
    assert read(dialect, pieces, in_reasoning=in_reasoning) == whole
    assert read(dialect, cut(text, 1), in_reasoning=in_reasoning) == whole


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Per character of an answer: characters that the cursor looked at or moved, function calls (Python's and C's),
    characters in the strings that functions had in their hands when they returned or waited. ``held`` is the most text
    that was ever unread."""

    looked_at: float
    calls: float
    in_hand: float
    held: int


def cost_of(dialect: Dialect, text: str, *, piece_size: int = 7, traced: bool = False) -> Cost:
    """Of ``text`` in pieces. Calls and strings are counted when it is traced, which is slow."""
    pieces = cut(text, piece_size)
    machine = Machine(dialect, Reading(tools=TOOLS))
    held = num_calls = in_hand = 0

    def on_event(frame, event, _argument):
        nonlocal num_calls, in_hand
        if event == "return":
            in_hand += sum(len(value) for value in frame.f_locals.values() if type(value) is str)
        else:
            num_calls += event in ("call", "c_call")

    sys.setprofile(on_event if traced else None)
    try:
        for piece in pieces:
            machine.push(piece)
            held = max(held, machine.cursor.num_unread)
        machine.finish()
    finally:
        sys.setprofile(None)
    size = len(text)
    return Cost(looked_at=machine.cursor.work / size, calls=num_calls / size, in_hand=in_hand / size, held=held)


def assert_cost_does_not_grow(small: Cost, large: Cost) -> None:
    assert large.looked_at <= 1.2 * small.looked_at
    assert large.calls <= 1.2 * small.calls
    assert large.in_hand <= 1.2 * small.in_hand
    assert large.held <= 100
    assert small.looked_at < 8


@BY_NAME
def test_cost_per_character_does_not_grow(dialect):
    """An argument from 4 KiB to 1 MiB: what is looked at is counted for all sizes, all else for the smaller ones."""
    small, longer, long, huge = (
        cases_of(dialect.name).long_call("abcdefg " * (size // 8)) for size in (4 << 10, 16 << 10, 64 << 10, 1 << 20)
    )
    assert_cost_does_not_grow(cost_of(dialect, small, traced=True), cost_of(dialect, longer, traced=True))
    assert_cost_does_not_grow(cost_of(dialect, small), cost_of(dialect, long))
    assert_cost_does_not_grow(cost_of(dialect, small, piece_size=100), cost_of(dialect, huge, piece_size=100))


@BY_NAME
def test_text_that_looks_like_a_mark_costs_the_same(dialect):
    """Answers made of beginnings of marks, of marks, of calls of no tool: what makes a reader look twice."""
    marks = sorted(dialect.visible_texts())
    unknown = cases_of(dialect.name).long_call("abc").replace("note", "nope")
    begin = dialect.reasoning.begin if dialect.reasoning is not None else ""
    opening_marks = " ".join((*dialect.triggers, *dialect.start_triggers))
    for unit in filter(None, {f"{marks[0]} ", marks[-1][:-1], opening_marks, f"{opening_marks} x", unknown}):
        for opening in {"", begin}:
            small, large = (
                cost_of(dialect, opening + unit * (size // len(unit)), traced=True) for size in (3 << 10, 6 << 10)
            )
            assert_cost_does_not_grow(small, large)


def test_the_count_sees_work_that_is_done_again():
    def hoard(text, out, _reading):
        said = ""

        def sink(piece):
            nonlocal said
            said += piece
            out.content(said[-len(piece) :])

        yield from text.stream_rest(sink)

    dialect = Dialect(name="hoard", models="", detect=DIALECTS[0].detect, read=hoard)
    small, large = (cost_of(dialect, "abcdefg " * size, traced=True) for size in (256, 1024))
    with pytest.raises(AssertionError):
        assert_cost_does_not_grow(small, large)


def ids_of(dialect_name: str, text: str) -> list[str]:
    dialect = next(one for one in DIALECTS if one.name == dialect_name)
    machine = Machine(dialect, Reading(tools=TOOLS))
    events = [*machine.push(text), *machine.finish()]
    return [event.id for event in events if isinstance(event, CallBegun)]


def test_ids_that_a_model_writes_are_kept_and_never_come_twice():
    call = "<|tool_call_begin|>functions.clock:7<|tool_call_argument_begin|>{}<|tool_call_end|>"
    first, second = ids_of("kimi_k2", f"<|tool_calls_section_begin|>{call}{call}<|tool_calls_section_end|>")
    assert first == "functions.clock:7"
    assert second != first
    assert ids_of("kimi_k2", call.replace("functions.clock:7", "clock")) == ["functions.clock:0"]
    assert ids_of("mistral_v11", "[TOOL_CALLS]clock[CALL_ID]a1b2c3d4e[ARGS]{}") == ["a1b2c3d4e"]
    (own,) = ids_of("mistral_v13", "[TOOL_CALLS]clock[ARGS]{}")
    assert len(own) == 9
    assert own.isalnum()
