"""Harmony, the format of gpt-oss: an answer is messages, and the header of each says what it is.

``<|channel|>NAME<|message|>TEXT<|end|>``, then ``<|start|>assistant`` and the next one. The channel analysis is
reasoning, final and commentary are content; a message to ``functions.NAME`` is a call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.frontend.dialects.contract import (
    Dialect,
    Evidence,
    Reading,
    Reasoning,
    Sample,
    Tool,
    needs,
)
from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed, Steps
from penstock.frontend.dialects.json_calls import read_arguments
from penstock.frontend.dialects.tagged import read_guarded
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec, schema_text

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
TO = " to="
_CLOSERS = (END, CALL, RETURN)
_OPENERS = (START, CHANNEL, MESSAGE, TO)
_ENDS = (*_CLOSERS, START, CHANNEL)  # models forget to close a message
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_ROLE = re.compile(r"\s*([^\s<]*)")


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_a_message_to_a_function=evidence.prints_call(
            r'to=functions\.TOOL[^{]*<\|message\|>\{"KEY": ?"VALUE"\}'
        )
    )


def read(text: Cursor, out: Writer, reading: Reading) -> Steps[None]:
    """Messages to the end. A header that cannot be read comes back as content, with its message."""
    trigger = ANALYSIS if reading.in_reasoning else ""
    while True:
        yield from read_guarded(_read_messages, (), text, out, trigger)
        out.content((yield from text.stream_until(*_CLOSERS, sink=out.content)))
        trigger = ""


def _read_messages(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """Messages until one is broken. Text without a header is content: it goes on with what the prompt has begun."""
    opener: str | None = None
    if trigger == ANALYSIS:
        opener = yield from _read_reasoning(text, out)
    while True:
        if opener not in (START, CHANNEL):
            text.commit()
            opener = yield from text.accept(*_OPENERS)
        header = ""
        if opener is not None and opener != MESSAGE:
            header, ended_by = yield from text.read_until(MESSAGE, *_CLOSERS)
            if ended_by != MESSAGE:  # no message at all
                out.content(text.take_back())
                opener = None
                continue
        channel, recipient = _parts_of(opener or "", header)
        if recipient is not None:
            opener = yield from _read_call(text, out, recipient)
        elif channel == "analysis":
            opener = yield from _read_reasoning(text, out)
        else:
            opener = yield from _read_content(text, out)


def _parts_of(opener: str, header: str) -> tuple[str, str | None]:
    """Channel and recipient. Raises Malformed for a message of somebody else."""
    role = _ROLE.match(header)
    if opener == START and (role is None or role[1] != "assistant"):
        raise Malformed("a message that is not the assistant's")
    channel, recipient = _CHANNEL.search(opener + header), _RECIPIENT.search(opener + header)
    return channel[1] if channel is not None else "", recipient[1] if recipient is not None else None


def _read_reasoning(text: Cursor, out: Writer) -> Steps[str]:
    out.begin_reasoning()
    ended_by = yield from text.stream_until(*_ENDS, sink=out.reasoning)
    out.end_reasoning(commit=ended_by in _CLOSERS)
    return ended_by


def _read_content(text: Cursor, out: Writer) -> Steps[str]:
    """A second message to the user stands apart from the first."""
    text.commit()
    ended_by = yield from text.accept(*_ENDS)
    if ended_by is not None:
        return ended_by
    if out.has_content and not (yield from text.at_end()):
        out.content("\n\n")
    return (yield from text.stream_until(*_ENDS, sink=out.content))


def _read_call(text: Cursor, out: Writer, recipient: str) -> Steps[str | None]:
    yield from text.skip_space()
    yield from read_arguments(text, out, recipient.removeprefix("functions."), end=CALL)
    yield from text.skip_space()
    if (yield from text.at_end()):
        raise EndOfText
    return (yield from text.accept(*_ENDS))


def constrain(tools: Sequence[Tool], reading: Reading, required: bool) -> StructuredSpec | None:
    """Thoughts, then one call, or else an answer or a word to the user. The mark behind a call ends the answer, so it
    is no part of the form and there is never a second call. None where the prompt has begun a message to the user."""
    if not (reading.in_reasoning or reading.reads_reasoning):
        return None
    rules = [
        f"start: ({' | '.join(('thought', *(() if required else ('word',))))})* last",
        f"thought: {_rule_of('analysis')} TEXT {_NEXT}",
        f"word: {_rule_of('commentary')} TEXT {_NEXT}",
        f"last: {' | '.join((*(() if required else ('final',)), *(f'call_{at}' for at in range(len(tools)))))}",
        f"final: {_rule_of('final')} TEXT",
        *(
            f"call_{at}: {_rule_of(f'commentary to=functions.{tool.name} {CONSTRAIN}json')} "
            f"%json {schema_text(tool.parameters)}"
            for at, tool in enumerate(tools)
        ),
        r"TEXT: /(.|\n)*/",
    ]
    tag = StructuralTag(begin=CHANNEL, kind=StructuredKind.LARK, text="\n".join(rules) + "\n")
    after = f"{END}{START}assistant" if reading.in_reasoning else ""
    return StructuredSpec.structural_tags((tag,), required=True, single=True, after=after)


_NEXT = f'"{END}{START}assistant{CHANNEL}"'


def _rule_of(header: str) -> str:
    return f'"{header}{MESSAGE}"'


DIALECT = Dialect(
    name="gpt_oss",
    models="gpt-oss 20B and 120B, gpt-oss-safeguard",
    detect=detect,
    markers=(START, CHANNEL, CONSTRAIN, MESSAGE, *_CLOSERS),
    reasoning=Reasoning(begin=ANALYSIS, end=END, ends_at_call=True),
    gap="",
    content_opening=f"{CHANNEL}final{MESSAGE}",
    constrain=constrain,
    read=read,
    samples=(
        Sample(
            title="reasoning, then a call; the mark that ends it ends the answer",
            text="<|channel|>analysis<|message|>Use the tool.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.weather <|constrain|>json<|message|>{"city": "Köln"}',
            reasoning="Use the tool.",
            calls=(("weather", '{"city": "Köln"}'),),
        ),
        Sample(
            title="a word to the user before the answer",
            text="<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
            content="One moment.\n\nFour.",
        ),
        Sample(
            title="the recipient before the channel",
            text=" to=functions.clock<|channel|>commentary json<|message|>{}<|call|>",
            calls=(("clock", "{}"),),
        ),
        Sample(title="an answer whose header is in the prompt", text="Four.<|return|>", content="Four."),
    ),
)
