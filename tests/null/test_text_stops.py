"""Stop strings against a naive search over the whole text, for every way to cut it."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.frontend.text import stops
from penstock.frontend.text.stops import StopFinder

ALPHABET = "ab<é"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The stop that is complete first; the longest of those that end together."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def run(chunks: list[str], stops: list[str], include: bool = False) -> tuple[str, str | None]:
    finder = StopFinder(stops, include)
    emitted = ""
    for chunk in chunks:
        text, matched = finder.push(chunk)
        emitted += text
        if matched is not None:
            return emitted, matched
    return emitted + finder.flush(), None


@given(chunks=st.lists(st.text(ALPHABET, max_size=6), max_size=12), stops=STOPS, include=st.booleans())
@example(chunks=["aab", "aaab"], stops=["aaab"], include=False)
@example(chunks=["ab", "<"], stops=["abé", "b<"], include=False)
def test_equals_the_naive_search(chunks, stops, include):
    assert run(chunks, stops, include) == naive("".join(chunks), stops, include)


@given(chunks=st.lists(st.text(ALPHABET, max_size=6), max_size=12), stops=STOPS)
def test_never_emits_what_may_become_a_stop_and_withholds_nothing_else(chunks, stops):
    finder, seen, emitted = StopFinder(stops), "", ""
    for chunk in chunks:
        seen += chunk
        text, matched = finder.push(chunk)
        emitted += text
        if matched is not None:
            return
        longest = max(
            (cut for stop in stops for cut in range(len(stop)) if seen.endswith(stop[:cut])),
            default=0,
        )
        assert emitted == seen[: len(seen) - longest]


def test_every_cut_of_a_text_gives_the_same_answer():
    text, stops = "one </tool> two", ["</tool>", "ool"]
    expected = naive(text, stops, False)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert run([text[:first], text[first:second], text[second:]], stops) == expected


def test_after_a_match_everything_is_swallowed():
    finder = StopFinder(["END"])
    assert finder.push("text EN") == ("text ", None)
    assert finder.push("D more") == ("", "END")
    assert finder.push("again") == ("", "END")
    assert finder.flush() == ""


def test_without_stops_text_passes():
    finder = StopFinder([])
    assert not finder.is_active
    assert finder.push("anything") == ("anything", None)
    assert finder.flush() == ""


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopFinder([""])


def test_a_periodic_stop_costs_linear_work(monkeypatch):
    taken = 0
    advance = stops.StopAutomaton.advance

    def counting(automaton, node, character):
        nonlocal taken
        taken += 1
        return advance(automaton, node, character)

    monkeypatch.setattr(stops.StopAutomaton, "advance", counting)
    finder = StopFinder(["a" * 2000 + "b"])
    emitted = sum(len(finder.push("a")[0]) for _ in range(6000))
    assert emitted == 4000
    assert taken == 6000


def automaton_of(finder: StopFinder) -> stops.StopAutomaton:
    assert finder._automaton is not None
    return finder._automaton


def test_a_long_stop_takes_a_few_bytes_a_character():
    long = tuple(letter + "xyzw" * 256 for letter in "abcdefghijklmnop")
    tracemalloc.start()
    try:
        automaton = stops.StopAutomaton(long)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(automaton.depth) > 16_000
    assert held < 40 * len(automaton.depth)


@pytest.mark.parametrize(
    ("length", "kept"), [(stops.MAX_KEPT_CHARACTERS, True), (stops.MAX_KEPT_CHARACTERS + 1, False)]
)
def test_streams_share_an_automaton_and_only_a_small_one_outlives_them(length, kept):
    text = f"{kept}" + "x" * (length - len(f"{kept}"))
    one, other = StopFinder([text]), StopFinder([text])
    assert automaton_of(one) is automaton_of(other)
    seen = weakref.ref(automaton_of(one))
    del one, other
    gc.collect()
    assert (seen() is not None) == kept
