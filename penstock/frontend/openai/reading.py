"""What a dialect has read, as the fields of OpenAI's chat messages: a piece of a stream, and the whole."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from penstock.frontend.dialects.events import (
    AnswerFold,
    ArgumentText,
    CallBegun,
    ContentText,
    Event,
    ReasoningText,
)
from penstock.frontend.openai.answers import CallFunction, ChatDelta, ChatMessage, ToolCallDelta, ToolCallMessage


def events_delta(events: Iterable[Event], include_reasoning: bool) -> ChatDelta:
    """The news of one chunk. Texts of one kind become one field; a call's name and first arguments, one entry."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCallDelta] = []
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text) if include_reasoning:
                reasoning.append(text)
            case CallBegun(index, call_id, name):
                function = CallFunction(name=name, arguments="")
                calls.append(ToolCallDelta(index=index, id=call_id, type="function", function=function))
            case ArgumentText(index, text):
                if not calls or calls[-1].index != index:
                    calls.append(ToolCallDelta(index=index, function=CallFunction(arguments="")))
                calls[-1].function.arguments += text
            case _:  # an end has no field of its own, and reasoning may be unwanted
                pass
    thought = "".join(reasoning) or UNSET
    return ChatDelta(
        content="".join(content) or UNSET, reasoning=thought, reasoning_content=thought, tool_calls=calls or UNSET
    )


def events_message(role: str, events: Iterable[Event], include_reasoning: bool) -> ChatMessage:
    """The whole message. Without any text, content is null where there are calls and empty where there are none."""
    fold = AnswerFold()
    fold.add(events)
    calls = [
        ToolCallMessage(id=call.id, function=CallFunction(name=call.name, arguments=call.arguments))
        for call in fold.calls
    ]
    thought = (fold.reasoning if include_reasoning else "") or UNSET
    return ChatMessage(
        role=role,
        content=fold.content or (None if calls else ""),
        reasoning=thought,
        reasoning_content=thought,
        tool_calls=calls or UNSET,
    )
