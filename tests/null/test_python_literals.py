"""Literals of Python as JSON: what they say is what Python says, however the text is cut."""

from __future__ import annotations

import ast
import json

import pytest
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed
from penstock.frontend.dialects.python_literals import MAX_DEPTH, read_literal

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def read(text: str, size: int = 1000) -> str:
    """JSON text of the literal that ``text`` is, given in pieces."""
    cursor, parts = Cursor(), []
    steps = read_literal(cursor, parts.append)
    try:
        for at in range(0, len(text), size):
            cursor.feed(text[at : at + size])
            next(steps)
        cursor.end()
        next(steps)
    except StopIteration:
        return "".join(parts)
    raise AssertionError("it waits for text behind the end")


@settings(max_examples=num_examples(150), deadline=None)
@given(value=VALUES, size=st.integers(1, 20))
def test_what_python_writes_is_read(value, size):
    assert json.loads(read(repr(value), size)) == value


@settings(max_examples=num_examples(200), deadline=None)
@given(text=st.text(st.sampled_from('\\"abfnrtvxuU0178{N} \né'), max_size=12), size=st.integers(1, 5))
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_escapes_mean_what_they_mean_in_python(text, size):
    literal = f"'{text}'"
    try:
        expected = ast.literal_eval(literal.replace("\\\n", "").replace("\n", "\\n"))
    except (SyntaxError, ValueError):
        return  # quotes and codes that Python refuses
    if "\\N" in text or ("\n" in text and "\\" in text) or any("\ud800" <= one < "\ue000" for one in expected):
        return  # names of characters, and halves of characters
    assert json.loads(read(literal, size)) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000), ("0x1F", 31), ("+5", 5), (".5", 0.5), ("1.", 1.0), ("true", True), ("null", None),
        ("[1, 2,]", [1, 2]), ("{}", {}), ("{'a': [ ] ,}", {"a": []}), (r"'\x41\u00e9\101\q\
'", "AéA\\q"), (r"'\ud83e\udd8a'", "🦊"),
    ],
)  # fmt: skip
def test_forms(text, value):
    for size in (1, 2, 100):
        found = json.loads(read(text, size))
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["Rome", "nan", "1e", "(1, 2)", "{1: 2}", "[1 2]", "--1", r"'\U00110000'", "[" * (MAX_DEPTH + 1), "f()", ""]
)
def test_what_is_no_literal(text):
    with pytest.raises((Malformed, EndOfText)):
        read(text)
