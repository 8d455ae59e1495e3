"""TextStream: deltas add up to the answer, whatever the engine's batches are; every stream finishes exactly once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import byte_level_tokenizer, id_of, sentencepiece_tokenizer

from penstock.frontend.text.stream import TextFold, TextStream
from penstock.types.output import FailureKind, FinishReason, Terminal, TokenUpdate
from penstock.types.request import SamplingParams
from penstock.types.result import TokenLogprobs

TOKENIZER = byte_level_tokenizer()
EOS = 2


def logprobs_of(token_id: int) -> TokenLogprobs:
    return TokenLogprobs((token_id, 5, 6), (-0.5, -0.1, -3.0), 2)


def run(stream, batches, terminal, *, with_logprobs=False) -> TextFold:
    """Feed batches the way a server does, to the end or to the abort."""
    fold = TextFold()
    for batch in batches:
        scores = tuple(map(logprobs_of, batch)) if with_logprobs else ()
        delta = stream.on_update(TokenUpdate(1, tuple(batch), scores))
        fold.add(delta)
        assert delta.abort == (delta.finish_reason is not None)
    fold.add(stream.on_terminal(terminal))
    return fold


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


STOPPED = Terminal(1, FinishReason.STOP, stop_token_id=EOS)
CUT = Terminal(1, FinishReason.LENGTH)


@given(
    text=st.text("ab<é漢🙂 ", max_size=20),
    stops=st.lists(st.text("ab<é漢", min_size=1, max_size=3), max_size=2),
    data=st.data(),
    with_logprobs=st.booleans(),
)
def test_the_answer_does_not_depend_on_batches(text, stops, data, with_logprobs):
    ids = [*ids_of(text), EOS]
    sampling = SamplingParams(stop=tuple(stops), stop_token_ids=(EOS,))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids)), max_size=6)) | {0, len(ids)})
    batches = [ids[begin:end] for begin, end in pairwise(cuts)]
    streams = [TextStream(TOKENIZER, sampling, eos_token_ids=frozenset({EOS})) for _ in range(2)]
    cut = run(streams[0], batches, STOPPED, with_logprobs=with_logprobs)
    single = run(streams[1], [[token_id] for token_id in ids], STOPPED, with_logprobs=with_logprobs)
    found = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert (cut.text, cut.token_ids, cut.scores) == (single.text, single.token_ids, single.scores)
    assert (cut.finish_reason, cut.stop_reason) == ("stop", single.stop_reason)
    if not found:
        assert (cut.text, cut.stop_reason, cut.token_ids) == (text, None, ids)
    else:
        assert cut.stop_reason in stops
        assert not any(stop in cut.text for stop in stops)
        assert text.startswith(cut.text + cut.stop_reason)
        assert cut.token_ids == ids[: len(cut.token_ids)]
    assert len(cut.scores) == (len(cut.token_ids) if with_logprobs else 0)


def test_after_a_stop_string_the_rest_of_the_batch_is_dropped_and_the_caller_must_abort():
    stream = TextStream(TOKENIZER, SamplingParams(stop=("STOP",)))
    delta = stream.on_update(TokenUpdate(1, tuple(ids_of("one STOP two three"))))
    assert (delta.text, delta.finish_reason, delta.stop_reason, delta.abort) == ("one ", "stop", "STOP", True)
    assert TOKENIZER.decode(delta.token_ids) == "one STOP"
    assert stream.num_output_tokens == len(delta.token_ids)
    assert stream.on_update(TokenUpdate(1, (7, 8))).is_empty
    assert stream.on_terminal(Terminal(1, FinishReason.ABORT)).is_empty


def test_the_stop_string_is_in_the_text_when_asked():
    fold = run(
        TextStream(TOKENIZER, SamplingParams(stop=("b",), include_stop_str_in_output=True)), [ids_of("abc")], CUT
    )
    assert (fold.text, fold.stop_reason) == ("ab", "b")


@pytest.mark.parametrize(
    ("include", "skip", "text"), [(False, True, "hi"), (False, False, "hi"), (True, False, "hi<|im_end|>")]
)
def test_the_stop_token_adds_no_text_unless_asked(include, skip, text):
    sampling = SamplingParams(stop_token_ids=(EOS,), skip_special_tokens=skip, include_stop_str_in_output=include)
    for batches in ([[*ids_of("hi"), EOS]], [ids_of("hi"), [EOS]]):
        fold = run(TextStream(TOKENIZER, sampling, eos_token_ids=frozenset({EOS})), batches, STOPPED)
        assert (fold.text, fold.finish_reason, fold.stop_reason) == (text, "stop", None)


def test_a_stop_token_of_the_request_is_the_stop_reason_and_hides_its_text():
    (stop_id,) = ids_of("!")
    sampling = SamplingParams(stop_token_ids=(EOS, stop_id))
    stream = TextStream(TOKENIZER, sampling, eos_token_ids=frozenset({EOS}))
    fold = run(stream, [[*ids_of("hi"), stop_id]], Terminal(1, FinishReason.STOP, stop_token_id=stop_id))
    assert (fold.text, fold.stop_reason) == ("hi", stop_id)


def test_a_stop_token_that_did_not_stop_is_text():
    """Before min_tokens the engine goes on after a stop token."""
    (stop_id,) = ids_of("!")
    sampling = SamplingParams(stop_token_ids=(stop_id,), min_tokens=3)
    fold = run(TextStream(TOKENIZER, sampling), [[stop_id], ids_of("a"), ids_of("b")], CUT)
    assert (fold.text, fold.finish_reason) == ("!ab", "length")


def test_stop_strings_count_from_min_tokens_on():
    sampling = SamplingParams(stop=("a",), min_tokens=3)
    fold = run(TextStream(TOKENIZER, sampling), [ids_of("a"), ids_of("a"), ids_of("xa")], CUT)
    assert (fold.text, fold.stop_reason) == ("aax", "a")


def test_withheld_text_goes_out_at_the_end():
    fold = run(TextStream(TOKENIZER, SamplingParams(stop=("<end>",))), [ids_of("x<en")], CUT)
    assert (fold.text, fold.finish_reason, fold.stop_reason) == ("x<en", "length", None)


@pytest.mark.parametrize("terminal", [CUT, STOPPED])
def test_a_character_that_was_cut_off_adds_no_text_but_its_tokens_and_bytes_are_told(terminal):
    half = [id_of(TOKENIZER, piece) for piece in "ðŁ"]  # F0 9F, the first bytes of most emoji
    stream = TextStream(TOKENIZER, SamplingParams(logprobs=0), eos_token_ids=frozenset({EOS}))
    fold = run(stream, [ids_of("a"), half], terminal, with_logprobs=True)
    assert fold.text == "a"
    assert fold.token_ids == [*ids_of("a"), *half]
    assert [score.chosen.data for score in fold.scores] == [b"a", b"\xf0", b"\x9f"]


def test_broken_bytes_inside_a_text_become_replacement_characters():
    ids = [*ids_of("a"), id_of(TOKENIZER, "ð"), *ids_of("b")]
    assert run(TextStream(TOKENIZER, SamplingParams()), [ids], CUT).text == "a\ufffdb"


@pytest.mark.parametrize("reason", FinishReason)
def test_every_terminal_finishes_the_stream_once(reason):
    stream = TextStream(TOKENIZER, SamplingParams())
    failure = FailureKind.DEADLINE if reason is FinishReason.ERROR else None
    terminal = Terminal(1, reason, failure, "too late" if failure else "")
    delta = stream.on_terminal(terminal)
    assert delta.finish_reason == reason.value
    assert delta.failure is (terminal if failure else None)
    assert stream.on_terminal(terminal).is_empty


def test_output_after_visible_text_keeps_its_leading_space():
    tokenizer = sentencepiece_tokenizer()
    paris = id_of(tokenizer, "▁Paris")
    prompt = tokenizer.encode("the capital is")
    for prompt_ids, text in ((prompt, " Paris"), ([tokenizer.bos_token_id], "Paris"), ([], "Paris")):
        fold = run(TextStream(tokenizer, SamplingParams(), prompt_token_ids=prompt_ids), [[paris]], CUT)
        assert fold.text == text


def test_scores_carry_bytes_alternatives_and_offsets():
    ids = ids_of("né🙂x")
    sampling = SamplingParams(logprobs=2)
    fold = run(TextStream(TOKENIZER, sampling), [ids[:2], ids[2:]], CUT, with_logprobs=True)
    assert b"".join(score.chosen.data for score in fold.scores).decode() == "né🙂x"
    assert [score.chosen.token_id for score in fold.scores] == ids
    assert fold.scores[-1].text_offset == len("né🙂")
    assert fold.scores[-1].chosen.text == "x"
    first = fold.scores[0]
    assert (first.rank, first.chosen.logprob, [top.token_id for top in first.top]) == (2, -0.5, [5, 6])
    offsets = [score.text_offset for score in fold.scores]
    assert offsets == sorted(offsets)


def test_prompt_scores_have_offsets_in_the_prompt():
    ids = ids_of("ab cd")
    stream = TextStream(TOKENIZER, SamplingParams(prompt_logprobs=1), prompt_token_ids=ids)
    half = len(ids) // 2
    scores = [
        score
        for part in (ids[1:half], ids[half:])
        for score in stream.on_update(TokenUpdate(1, (), (), tuple(map(logprobs_of, part)))).prompt_scores
    ]
    assert [score.chosen.token_id for score in scores] == ids[1:]
    for score in scores:
        assert "ab cd"[score.text_offset :].startswith(score.chosen.text)
