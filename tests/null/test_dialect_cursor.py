"""Reading a text that is still being written: texts that are looked for, and JSON in pieces."""

from __future__ import annotations

import json
import re

import pytest
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.dialects.cursor import Cursor, EndOfText, Literals, Malformed
from penstock.frontend.dialects.json_scan import MAX_DEPTH, JsonScanner


def run(parser, cursor, pieces):
    """The parser's result over pieces, or the class of what it raised; the rest of the pieces is there afterwards."""
    steps = parser(cursor)
    pieces = list(pieces)
    try:
        while True:
            next(steps)
            if pieces:
                cursor.feed(pieces.pop(0))
            else:
                cursor.end()
    except StopIteration as stop:
        result = stop.value
    except (Malformed, EndOfText) as error:
        result = type(error)
    for piece in pieces:
        cursor.feed(piece)
    return result


def pieces_of(text, cuts):
    at = sorted(min(cut, len(text)) for cut in cuts)
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


cuts = st.lists(st.integers(0, 30), max_size=6)


@pytest.mark.parametrize("texts", [(), ("",), ("abc", "b")])
def test_literals_that_cannot_be_told_apart_are_refused(texts):
    with pytest.raises(ValueError, match=r"literals|lies inside"):
        Literals(texts)


@settings(max_examples=num_examples(100))
@given(
    texts=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    text=st.text("ab<", max_size=20),
    cuts=cuts,
)
def test_stream_until_finds_what_a_search_finds(texts, text, cuts):
    try:
        ordered = Literals(texts).texts
    except ValueError:
        return
    expected = re.search("|".join(map(re.escape, ordered)), text)
    cursor, given_out = Cursor(), []
    found = run(lambda c: c.stream_until(*texts, sink=given_out.append), cursor, pieces_of(text, cuts))
    if expected is None:
        assert found is EndOfText
        assert "".join(given_out) == text
    else:
        assert found == expected.group()
        assert "".join(given_out) == text[: expected.start()]
    assert cursor.take_back(unread=True) == text  # nobody committed


@given(text=st.text("ab", max_size=12), cuts=cuts, limit=st.integers(1, 8))
def test_limits_do_not_depend_on_cuts(text, cuts, limit):
    results = []
    for pieces in ([text], pieces_of(text, cuts), list(text)):
        cursor = Cursor()
        found = run(lambda c: c.read_until("<", limit=limit), cursor, pieces)
        results.append((found, cursor.take_back()))
    assert results[0] == results[1] == results[2]


@given(text=st.text("ab< ", max_size=12), cuts=cuts)
def test_what_is_read_comes_back_until_it_is_committed(text, cuts):
    def parser(cursor):
        yield from cursor.skip_space()
        yield from cursor.accept("ab", "a")
        cursor.commit()
        yield from cursor.read_while(re.compile("[ab]"))

    cursor = Cursor()
    run(parser, cursor, pieces_of(text, cuts))
    back = cursor.take_back(unread=True)
    assert text.endswith(back)
    assert text[: len(text) - len(back)].strip(" ") in ("", "a", "ab")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=num_examples(100))
@given(value=values, cuts=cuts, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2))
def test_json_values_pass_unchanged(value, cuts, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    cursor, out = Cursor(), []
    assert run(lambda c: c.json_value(out.append), cursor, pieces_of(text + " rest", cuts)) is None
    assert "".join(out) == text
    assert cursor.take_back(unread=True) == text + " rest"


@settings(max_examples=num_examples(100))
@given(text=st.text('{}[]":,\\u0a1-.e+ntrue\n', max_size=14), cuts=cuts)
def test_what_passes_is_what_python_reads(text, cuts):
    """Up to the end of the first value the scanner takes exactly JSON, with raw control characters in strings."""
    results = []
    for pieces in ([text], pieces_of(text, cuts), list(text)):
        out: list[str] = []
        results.append((run(lambda c, out=out: c.json_value(out.append), Cursor(), pieces), "".join(out)))
    assert results[0] == results[1] == results[2]
    found, out_text = results[0]
    start = re.match(r"[ \t\n\r]*", text).end()
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    except ValueError:
        assert found in (Malformed, EndOfText)
        return
    number_goes_on = type(value) in (int, float) and re.match(r"[-+.0-9A-Za-z_]", text[end : end + 1])
    if not number_goes_on and not (value in (None, True, False) and re.match(r"[-+.0-9A-Za-z_]", text[end : end + 1])):
        assert found is None
        assert json.loads(out_text) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": True, "b": None}', '{"a": true, "b": null}'),
        ('"a\nb\x01"', '"a\\nb\\u0001"'),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, "[" * MAX_DEPTH + "]" * MAX_DEPTH),
    ],
)
def test_mended(text, expected):
    out: list[str] = []
    scanner = JsonScanner()
    assert scanner.scan(text, 0, out, is_last=True) == len(text)
    assert scanner.complete
    assert "".join(out) == expected


@pytest.mark.parametrize(
    "text", ["[" * (MAX_DEPTH + 1), "1" * 300, "NaN", "01", '"\\x"', '"\\u12g4"', "{1}", "[,]", "}"]
)
def test_not_json(text):
    scanner = JsonScanner()
    scanner.scan(text, 0, [], is_last=True)
    assert scanner.error.startswith("not JSON")
