"""Calls behind Mistral's ``[TOOL_CALLS]``, in all the forms that its models have learned.

A list of objects up to version 7 of the tokenizer; from 11 on one trigger per call, with the name, an id in version 11
alone, and the arguments behind ``[ARGS]``. Models mix them up, so every one of the dialects reads all.
"""

from __future__ import annotations

import secrets
import string

from penstock.frontend.dialects.contract import Evidence, Reasoning
from penstock.frontend.dialects.cursor import Cursor, Malformed, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER, read_arguments, read_json_calls
from penstock.frontend.dialects.writer import Writer

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
REASONING = Reasoning(begin="[THINK]", end="[/THINK]", ends_at_call=True)
ID_LENGTH = 9
_ID_CHARACTERS = string.ascii_letters + string.digits


def new_call_id(_name: str, _index: int) -> str:
    """Mistral's templates refuse ids of any other form."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))


def prints_named_call(evidence: Evidence, between: str) -> bool:
    """Whether the template prints the name, ``between`` (a pattern), and the arguments."""
    return evidence.prints_call(r"\[TOOL_CALLS\]\s?TOOL" + between + r'\s?\{"KEY": ?"VALUE"\}')


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """What follows the trigger says which form it is."""
    yield from text.skip_space()
    found = yield from text.accept("[", "{")
    if found is None:
        yield from _named_call(text, out)
    else:
        yield from read_json_calls(text, out, found)


def _named_call(text: Cursor, out: Writer) -> Steps[None]:
    """``name[CALL_ID]id[ARGS]{...}``; id and marks may be missing."""
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.skip_space()
    call_id = ""
    if (yield from text.accept(CALL_ID)) is not None:
        call_id = yield from text.read_while(NAME_CHARACTER)
        yield from text.expect(ARGS)
    elif (yield from text.accept(ARGS)) is None and (yield from text.peek()) not in ("{", ""):
        raise Malformed(f"expected {ARGS} behind a name")
    yield from text.skip_space()
    yield from read_arguments(text, out, name, call_id or None)
