"""Errors about a chat request, in the words of the protocol that it was asked in."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidRequestError
from penstock.frontend.anthropic.requests import CHAT_NAMES as ANTHROPIC
from penstock.frontend.chat.naming import renamed
from penstock.frontend.responses.requests import CHAT_NAMES as RESPONSES


@pytest.mark.parametrize(
    ("names", "text", "translated"),
    [
        (RESPONSES, "messages has 3, max_tokens asks for 9", "input has 3, max_output_tokens asks for 9"),
        (RESPONSES, "cannot render these messages", "cannot render these messages"),
        (RESPONSES, "tools[1].function.name must", "tools[1].name must"),
        (RESPONSES, "messages[1].content 'messages'", "input[1].content 'messages'"),
        (RESPONSES, "no_messages and messages_", "no_messages and messages_"),
        (ANTHROPIC, "tools[0].function.parameters must be", "tools[0].input_schema must be"),
        (ANTHROPIC, "stop may hold, a nonstop", "stop_sequences may hold, a nonstop"),
    ],
)  # fmt: skip
def test_names(names, text, translated):
    with pytest.raises(InvalidRequestError) as caught, renamed(names):
        raise InvalidRequestError(text, param=text, code="c")
    assert (str(caught.value), caught.value.param, caught.value.code) == (translated, translated, "c")


def test_errors_about_nothing_in_particular_stay_so():
    with pytest.raises(InvalidRequestError) as caught, renamed(RESPONSES):
        raise InvalidRequestError("No.")
    assert caught.value.param is None
